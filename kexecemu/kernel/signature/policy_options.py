"""A signature policy from what a kernel was built with and booted with, by the kernel's own names."""

from collections.abc import Mapping

from kexecemu.errors import InputError
from kexecemu.kernel.base.cmdline import parameter, parameters
from kexecemu.kernel.signature.policy import KexecSignaturePolicy, Lockdown
from kexecemu.suggest import did_you_mean

__all__ = ["SIGNATURE_OPTIONS", "policy_of"]

SIGNATURE_OPTIONS: Mapping[str, str] = {
    "KEXEC_SIG": "y",
    "KEXEC_IMAGE_VERIFY_SIG": "y",
    "KEXEC_SIG_FORCE": "n",
    "IMA_ARCH_POLICY": "n",
    "IMA_APPRAISE_REQUIRE_KEXEC_SIGS": "n",
}
"""Kconfig names that decide over signatures of kernel images, with what holds unless they are given."""


def policy_of(options: Mapping[str, str], cmdline: str, *, secure_boot: bool = False) -> KexecSignaturePolicy:
    """The policy of a kernel with these Kconfig options, booted with this command line; its keyrings are empty.

    Of the command line lockdown=, ima_policy= and ima_appraise= count. InputError for an option that there is not, or
    that has no such value.
    """
    built = dict(SIGNATURE_OPTIONS)
    for name, value in options.items():
        built[_known(name)] = _yes_or_no(name, value)
    enabled = {name for name, value in built.items() if value == "y"}
    return KexecSignaturePolicy(
        sig="KEXEC_SIG" in enabled,
        image_verify_sig="KEXEC_IMAGE_VERIFY_SIG" in enabled,
        force="KEXEC_SIG_FORCE" in enabled,
        secure_boot=secure_boot,
        ima_arch_policy="IMA_ARCH_POLICY" in enabled,
        lockdown=_lockdown(cmdline),
        ima_appraise=_appraises(cmdline, required="IMA_APPRAISE_REQUIRE_KEXEC_SIGS" in enabled),
    )


def _known(name: str) -> str:
    short = name.removeprefix("CONFIG_")
    if short not in SIGNATURE_OPTIONS:
        like = did_you_mean(short, SIGNATURE_OPTIONS)
        known = ", ".join(SIGNATURE_OPTIONS)
        raise InputError(f"config option {name} decides nothing about signatures{like}; known are {known}")
    return short


def _yes_or_no(name: str, value: str) -> str:
    if value not in ("y", "n"):
        raise InputError(f"config option {name} is y or n, not {value!r}")
    return value


def _lockdown(cmdline: str) -> Lockdown:
    """lockdown_param(): the two levels by name. The kernel only warns of another; here it is a mistake.

    Each one raises the level, and none lowers it.
    """
    levels = list(Lockdown)
    found = Lockdown.NONE
    for value in parameters(cmdline, "lockdown"):
        if value not in (Lockdown.INTEGRITY.value, Lockdown.CONFIDENTIALITY.value):
            raise InputError(f"lockdown={value}: a kernel takes integrity or confidentiality")
        found = max(found, Lockdown(value), key=levels.index)
    return found


def _appraises(cmdline: str, *, required: bool) -> bool:
    """ima_appraise_signature(): is a rule for KEXEC_KERNEL_CHECK with appraise_type=imasig enforced?

    ima_policy=secure_boot has such a rule, CONFIG_IMA_APPRAISE_REQUIRE_KEXEC_SIGS builds one in. ima_appraise= off, fix
    or log means that no rule is enforced.
    """
    rules = [name for value in parameters(cmdline, "ima_policy") for name in value.split("|")]
    enforced = (parameter(cmdline, "ima_appraise") or "enforce") not in ("off", "fix", "log")
    return enforced and (required or "secure_boot" in rules)
