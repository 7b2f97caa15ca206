"""The verdicts of Linux's own tests of kexec and signatures (tools/testing/selftests/kexec).

They try kexec_load and kexec_file_load once each and judge from the machine's configuration whether the result is
right. Upstream runs them on x86 and powerpc only. Exit statuses are those of all selftests: 0, 1 and 4.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class SelftestVerdict(enum.Enum):
    """A selftest's exit status."""

    PASS = 0
    FAIL = 1
    SKIP = 4


@dataclass(frozen=True)
class SelftestMachine:
    """What the tests find out about the machine and the kernel image that they load; CONFIG names as in Kconfig.

    ima_sig_required is CONFIG_IMA_APPRAISE_REQUIRE_KEXEC_SIGS, or an appraise rule for KEXEC_KERNEL_CHECK that
    wants a signature. pe_sig_required is CONFIG_KEXEC_BZIMAGE_VERIFY_SIG, which only x86 has.
    """

    root: bool = True
    kexec: bool = True  # CONFIG_KEXEC
    kexec_file: bool = True  # CONFIG_KEXEC_FILE
    secure_boot: bool = False  # on, and not in setup mode
    ima_appraise: bool = False  # CONFIG_IMA_APPRAISE
    ima_arch_policy: bool = False  # CONFIG_IMA_ARCH_POLICY
    ima_read_policy: bool = False  # CONFIG_IMA_READ_POLICY
    ima_sig_required: bool = False
    platform_keyring: bool = False  # CONFIG_INTEGRITY_PLATFORM_KEYRING
    kexec_sig_force: bool = False  # CONFIG_KEXEC_SIG_FORCE
    pe_sig_required: bool = False
    pe_signed: bool = False
    ima_signed: bool = False
    modsig: bool = False


def judge_kexec_load(machine: SelftestMachine, *, loaded: bool) -> tuple[SelftestVerdict, str]:
    """test_kexec_load.sh: kexec_load() must fail in secure boot mode with IMA's policy for it, and nowhere else."""
    if not machine.root:
        return SelftestVerdict.SKIP, "requires root privileges"
    if not machine.kexec:
        return SelftestVerdict.SKIP, "kexec_load is not enabled"
    must_fail = machine.secure_boot and machine.ima_arch_policy
    reason = f"kexec_load {'succeeded' if loaded else 'failed'}"
    return (SelftestVerdict.PASS if loaded is not must_fail else SelftestVerdict.FAIL), reason


def judge_kexec_file_load(
    machine: SelftestMachine, *, loaded: bool, no_key: bool = False
) -> tuple[SelftestVerdict, str]:
    """test_kexec_file_load.sh: success is wrong where a signature is required and missing; failure is never wrong.

    no_key: it failed with ENOKEY.
    """
    if not machine.root:
        return SelftestVerdict.SKIP, "requires root privileges"
    if not machine.kexec_file:
        return SelftestVerdict.SKIP, "kexec_file_load is not enabled"
    if loaded:
        missing = _missing(machine, modsig_counts=True)
        if machine.secure_boot and machine.ima_arch_policy and not _any_signature(machine):
            missing = "missing sig"
        if missing:
            return SelftestVerdict.FAIL, f"kexec_file_load succeeded ({missing})"
        return SelftestVerdict.PASS, "kexec_file_load succeeded"
    if no_key:
        hint = "" if machine.platform_keyring else ", try enabling the CONFIG_INTEGRITY_PLATFORM_KEYRING"
        return SelftestVerdict.PASS, f"kexec_file_load failed (-ENOKEY){hint}"
    missing = _missing(machine, modsig_counts=False)
    return (
        SelftestVerdict.PASS,
        f"kexec_file_load failed ({missing})" if missing else "kexec_file_load failed",
    )


def _any_signature(machine: SelftestMachine) -> bool:
    return machine.ima_signed or machine.pe_signed or machine.modsig


def _missing(machine: SelftestMachine, *, modsig_counts: bool) -> str:
    """Which signature is required and missing; the first that is. A failure's reason does not look at modsig."""
    if (machine.kexec_sig_force or machine.pe_sig_required) and not machine.pe_signed:
        return "missing PE sig"
    if machine.ima_sig_required and not machine.ima_signed and not (modsig_counts and machine.modsig):
        return "missing IMA sig"
    ima_may_want_one = machine.ima_appraise and not machine.ima_sig_required and not machine.ima_read_policy
    if ima_may_want_one and not machine.pe_sig_required and not machine.ima_signed:
        return "possibly missing IMA sig"
    return ""
