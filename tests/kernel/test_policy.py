"""When a signature matters: configuration, secure boot, lockdown and IMA, row by row and as a whole."""

from __future__ import annotations

import dataclasses
import itertools
from errno import EACCES, EKEYREJECTED, ENODATA, ENOKEY, EPERM

import pytest
import signing

from kexecemu.errors import InputError, KexecError
from kexecemu.formats import x509
from kexecemu.kernel.signature.keyring import Keyring, SystemKeyrings
from kexecemu.kernel.signature.policy import KexecSignaturePolicy, Lockdown
from kexecemu.kernel.signature.policy_options import SIGNATURE_OPTIONS, policy_of

KEYRINGS = SystemKeyrings(Keyring.of(".builtin_trusted_keys", [x509.parse(signing.der_of(signing.CA))]))
GOOD, UNSIGNED = signing.good().data, signing.pe_image()
FOREIGN = signing.BAD_IMAGES["stranger"]()


def policy(**options: object) -> KexecSignaturePolicy:
    return KexecSignaturePolicy(keyrings=KEYRINGS, **options)  # type: ignore[arg-type]


def check(image: bytes, **options: object) -> tuple[int, list[str]]:
    """The errno (0: loaded) and the log."""
    log: list[str] = []
    try:
        policy(**options).check(image, log.append)
    except KexecError as error:
        assert error.errno is not None
        return error.errno, log
    return 0, log


def test_arm64_as_it_ships_loads_an_unsigned_image_and_says_so() -> None:
    # The very line of 6.1.192, built with CONFIG_KEXEC_SIG and no CONFIG_KEXEC_SIG_FORCE.
    line = "kexec_file: kernel signature verification failed (-61)."
    assert check(UNSIGNED, sig=True) == (0, [line])


@pytest.mark.parametrize("name", ["stranger", "tampered", "badsig", "rev1", "nope"])
def test_a_refusal_that_is_not_enforced_is_one_line_in_the_log(name: str) -> None:
    errno, log = check(signing.BAD_IMAGES[name](), sig=True)
    numbers = {"stranger": 126, "tampered": 129, "badsig": 22, "rev1": 524, "nope": 80}
    assert errno == 0
    assert log == [f"kexec_file: kernel signature verification failed (-{numbers[name]})."]


def test_a_good_signature_leaves_no_line() -> None:
    assert check(GOOD, sig=True, force=True, lockdown=Lockdown.INTEGRITY) == (0, [])


def test_a_kernel_without_kexec_sig_looks_at_nothing() -> None:
    assert check(UNSIGNED, force=True, secure_boot=True, ima_arch_policy=True) == (0, [])
    # Not even lockdown asks: only the verification does.
    assert check(UNSIGNED, lockdown=Lockdown.CONFIDENTIALITY) == (0, [])


@pytest.mark.parametrize(
    ("image", "errno"), [(UNSIGNED, ENODATA), (FOREIGN, ENOKEY)], ids=["unsigned", "foreign"]
)
@pytest.mark.parametrize("why", [{"force": True}, {"secure_boot": True, "ima_arch_policy": True}])
def test_an_enforced_refusal_is_the_verifications_own_errno(
    image: bytes, errno: int, why: dict[str, bool]
) -> None:
    found, log = check(image, sig=True, **why)
    assert found == errno
    assert log == [f"kexec_file: Enforced kernel signature verification failed (-{errno})."]


@pytest.mark.parametrize("why", [{"secure_boot": True}, {"ima_arch_policy": True}])
def test_secure_boot_and_imas_policy_for_it_only_enforce_together(why: dict[str, bool]) -> None:
    assert check(UNSIGNED, sig=True, **why)[0] == 0


def test_a_loader_that_cannot_verify_rejects_every_image() -> None:
    assert check(GOOD, sig=True, image_verify_sig=False, force=True)[0] == EKEYREJECTED
    assert check(GOOD, sig=True, image_verify_sig=False) == (
        0,
        ["kexec_file: kernel signature verification failed (-129)."],
    )


@pytest.mark.parametrize("level", [Lockdown.INTEGRITY, Lockdown.CONFIDENTIALITY])
def test_lockdown_refuses_what_does_not_verify(level: Lockdown) -> None:
    errno, log = check(UNSIGNED, sig=True, lockdown=level)
    assert errno == EPERM
    assert log == ["Lockdown: kexec: kexec of unsigned images is restricted; see man kernel_lockdown.7"]


def test_lockdown_leaves_the_image_to_ima_where_that_appraises_it() -> None:
    assert check(UNSIGNED, sig=True, lockdown=Lockdown.INTEGRITY, ima_appraise=True)[0] == 0


def test_an_enforced_signature_comes_before_lockdown_and_ima() -> None:
    everything = {"sig": True, "force": True, "lockdown": Lockdown.INTEGRITY, "ima_appraise": True}
    assert check(UNSIGNED, **everything)[0] == ENODATA


@pytest.mark.parametrize(
    ("why", "errno"),
    [
        ({}, 0),
        ({"sig": True, "force": True}, 0),
        ({"secure_boot": True}, 0),
        ({"sig": True, "secure_boot": True}, EACCES),
        ({"ima_appraise": True}, EACCES),
        ({"lockdown": Lockdown.INTEGRITY}, EPERM),
        # The security hooks come before lockdown.
        ({"ima_appraise": True, "lockdown": Lockdown.INTEGRITY}, EACCES),
    ],
)
def test_kexec_load_is_refused_where_its_image_would_have_to_be_appraised(
    why: dict[str, bool], errno: int
) -> None:
    log: list[str] = []
    try:
        policy(**why).check_kexec_load(log.append)
        found = 0
    except KexecError as error:
        found = error.errno or 0
    assert found == errno
    assert bool(log) is bool(errno)


def test_every_combination_decides_as_the_rule_says() -> None:
    # kimage_validate_signature() as one expression, over all that it asks.
    names = ("sig", "image_verify_sig", "force", "secure_boot", "ima_arch_policy", "ima_appraise")
    images = {GOOD: 0, UNSIGNED: ENODATA, FOREIGN: ENOKEY}
    for values in itertools.product((False, True), repeat=len(names)):
        facts = dict(zip(names, values, strict=True))
        for level, (image, errno) in itertools.product(Lockdown, images.items()):
            failed = errno if facts["image_verify_sig"] else EKEYREJECTED
            enforced = facts["force"] or (facts["secure_boot"] and facts["ima_arch_policy"])
            if not facts["sig"] or not failed:
                wanted = 0
            elif enforced:
                wanted = failed
            else:
                wanted = EPERM if level is not Lockdown.NONE and not facts["ima_appraise"] else 0
            assert check(image, **facts, lockdown=level)[0] == wanted, facts


def test_a_key_that_is_not_there_any_more_refuses_what_was_loaded_before() -> None:
    enforcing = policy(sig=True, force=True)
    enforcing.check(GOOD, [].append)
    with pytest.raises(KexecError) as error:
        dataclasses.replace(enforcing, keyrings=SystemKeyrings()).check(GOOD, [].append)
    assert error.value.errno == ENOKEY


def test_secure_boot_is_what_the_firmware_says_and_off_where_nobody_says_it() -> None:
    assert not policy_of({}, "").secure_boot
    assert policy_of({}, "", secure_boot=True).secure_boot


def test_an_option_that_decides_nothing_is_answered_with_the_nearest_one_that_does() -> None:
    with pytest.raises(InputError) as refusal:
        policy_of({"CONFIG_KEXEC_SIGN": "y"}, "")
    words = "config option CONFIG_KEXEC_SIGN decides nothing about signatures (did you mean KEXEC_SIG?); known are "
    assert str(refusal.value) == words + ", ".join(SIGNATURE_OPTIONS)
