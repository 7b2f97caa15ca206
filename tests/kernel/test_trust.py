"""Who is trusted: chains, key identifiers, keyrings, what is blacklisted and revoked, several signers."""

from __future__ import annotations

import hashlib
from errno import EBADMSG, EINVAL, EKEYREJECTED, ENOKEY, ENOPKG

import pytest
import signing
from cryptography import x509 as reference
from signing import CA, INTERMEDIATE, LEAF, SIGNER, STRANGER, der_of, pe_image, signed

from kexecemu.errors import KexecError
from kexecemu.formats import x509
from kexecemu.kernel.signature.keyring import Blacklist, Keyring, SystemKeyrings
from kexecemu.kernel.signature.public_key import CryptoModules
from kexecemu.kernel.signature.signature import (
    VerifiedImage,
    kexec_kernel_verify_pe_sig,
    verify_pefile_signature,
)

CHAIN = [der_of(LEAF), der_of(INTERMEDIATE)]


def ring(*certificates: reference.Certificate, name: str = "test") -> Keyring:
    return Keyring.of(name, [x509.parse(der_of(one)) for one in certificates])


def verify(image: bytes, *trusted: reference.Certificate, **options: object) -> VerifiedImage:
    return verify_pefile_signature(image, ring(*trusted), **options)  # type: ignore[arg-type]


def refused(image: bytes, errno: int, *trusted: reference.Certificate, **options: object) -> KexecError:
    with pytest.raises(KexecError) as error:
        verify(image, *trusted, **options)
    assert error.value.errno == errno, error.value
    return error.value


def trusted_by(image: bytes, *trusted: reference.Certificate) -> str:
    return verify(image, *trusted).trusted_by.certificate.subject_text


# ---- chains


def test_a_chain_is_followed_to_the_key_that_signed_its_top() -> None:
    image = signed(pe_image(), LEAF, "signer", certificates=CHAIN)
    assert trusted_by(image, CA) == "kexecemu test CA"


def test_the_order_of_the_certificates_does_not_matter() -> None:
    verify(signed(pe_image(), LEAF, "signer", certificates=CHAIN[::-1]), CA)


def test_a_chain_that_carries_its_root_is_followed_to_it() -> None:
    image = signed(pe_image(), LEAF, "signer", certificates=[*CHAIN, der_of(CA)])
    assert trusted_by(image, CA) == "kexecemu test CA"
    assert "self-signed" in refused(image, ENOKEY, STRANGER).reason


def test_a_chain_with_a_gap_is_not_trusted() -> None:
    image = signed(pe_image(), LEAF, "signer")
    assert "kexecemu test intermediate" in refused(image, ENOKEY, CA).reason


def test_a_trusted_key_in_the_middle_of_a_chain_is_enough() -> None:
    image = signed(pe_image(), LEAF, "signer", certificates=CHAIN)
    assert trusted_by(image, INTERMEDIATE) == "kexecemu test intermediate"
    assert trusted_by(signed(pe_image(), LEAF, "signer"), INTERMEDIATE) == "kexecemu test intermediate"


def test_the_signers_own_key_may_be_trusted() -> None:
    assert trusted_by(signed(pe_image()), SIGNER) == "kexecemu test signer"
    assert trusted_by(signed(pe_image(), STRANGER, "stranger"), STRANGER) == "stranger"


def test_a_message_without_certificates_needs_the_signers_key() -> None:
    image = signed(pe_image(), certificates=[])
    assert trusted_by(image, SIGNER) == "kexecemu test signer"
    assert "no certificate of its signer" in refused(image, ENOKEY, CA).reason


def test_a_signer_named_by_its_key_is_only_found_in_a_keyring() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    skid = x509.parse(der_of(SIGNER)).skid
    assert skid is not None
    info = signing.signer_info(
        SIGNER, "signer", signing.attributes(content), content, version=3, signer_id=signing.der(0x80, skid)
    )
    image = signing.attach(pe_image(), signing.signed_data(content, [der_of(SIGNER)], [info], version=3))
    refused(image, ENOKEY, CA)
    assert trusted_by(image, SIGNER) == "kexecemu test signer"


def test_a_certificate_that_names_no_authority_is_not_found() -> None:
    bare = signing.certificate("bare", "signer", "kexecemu test CA", "ca", serial=1, akid=False)
    assert "names no authority" in refused(signed(pe_image(), bare, "signer"), ENOKEY, CA).reason
    assert trusted_by(signed(pe_image(), bare, "signer"), bare) == "bare"


def test_an_authority_named_by_issuer_and_serial_number_is_found() -> None:
    names = [reference.DirectoryName(CA.subject)]
    made = signing.certificate(
        "s",
        "signer",
        "kexecemu test CA",
        "ca",
        serial=2,
        akid=reference.AuthorityKeyIdentifier(None, names, 0x1000),
    )
    assert trusted_by(signed(pe_image(), made, "signer"), CA) == "kexecemu test CA"


def test_an_authority_named_so_is_climbed_to_in_the_message() -> None:
    """Only the root is trusted: the leaf's authority has to be found among the certificates that come along."""
    names = [reference.DirectoryName(INTERMEDIATE.issuer)]
    leaf = signing.certificate(
        "kexecemu test leaf",
        "signer",
        "kexecemu test intermediate",
        "intermediate",
        serial=0x5001,
        akid=reference.AuthorityKeyIdentifier(None, names, INTERMEDIATE.serial_number),
    )
    carried = [der_of(leaf), der_of(INTERMEDIATE)]
    assert trusted_by(signed(pe_image(), leaf, "signer", certificates=carried), CA) == "kexecemu test CA"
    refused(signed(pe_image(), leaf, "signer"), ENOKEY, CA)


def test_an_authority_with_two_names_must_be_one_key() -> None:
    names = [reference.DirectoryName(CA.subject)]
    akid = reference.AuthorityKeyIdentifier(b"x" * 20, names, 0x1000)
    made = signing.certificate("s", "signer", "kexecemu test CA", "ca", serial=3, akid=akid)
    assert refused(signed(pe_image(), made, "signer"), EKEYREJECTED, CA).step == "find_asymmetric_key"
    carried = signed(pe_image(), made, "signer", certificates=[der_of(made), der_of(CA)])
    assert refused(carried, EKEYREJECTED, CA).step == "pkcs7_verify_sig_chain"


def test_a_certificate_that_another_key_signed_is_rejected() -> None:
    # It names the CA as its authority, but the stranger made the signature.
    akid = reference.AuthorityKeyIdentifier.from_issuer_public_key(signing.private_key("ca").public_key())
    forged = signing.certificate("forged", "signer", "kexecemu test CA", "stranger", serial=4, akid=akid)
    error = refused(signed(pe_image(), forged, "signer"), EKEYREJECTED, CA)
    assert error.step == "pkcs7_validate_trust_one"
    assert "'kexecemu test CA' is trusted, but" in error.reason
    # Inside the message the check is pkcs7_verify()'s, and its errno goes out as it is.
    inside = signed(pe_image(), forged, "signer", certificates=[der_of(forged), der_of(CA)])
    assert refused(inside, EINVAL, CA).step == "pkcs1pad_verify"


def test_a_trusted_key_with_the_names_of_the_signers_must_be_its_key() -> None:
    twin = signing.certificate("twin", "intermediate", "kexecemu test CA", "ca", serial=0x2000, skid=False)
    assert refused(signed(pe_image()), EKEYREJECTED, twin).step == "pkcs7_validate_trust_one"


def test_a_self_signed_certificate_with_a_bad_signature_spoils_the_message() -> None:
    bad = signing.flip(der_of(STRANGER), -1)
    image = signed(pe_image(), certificates=[der_of(SIGNER), bad])
    assert refused(image, EINVAL, CA).step == "pkcs1pad_verify"


def test_a_self_signed_certificate_must_be_its_own_authority_by_both_names() -> None:
    skid = x509.parse(der_of(STRANGER)).skid
    names = [reference.DirectoryName(signing.name("self"))]
    for key_id, serial, errno in ((skid, 6, 0), (skid, 5, EKEYREJECTED), (b"x" * 20, 6, EKEYREJECTED)):
        akid = reference.AuthorityKeyIdentifier(key_id, names, serial)
        made = signing.certificate("self", "stranger", "self", "stranger", serial=6, akid=akid)
        image = signed(pe_image(), certificates=[der_of(SIGNER), der_of(made)])
        if errno:
            assert refused(image, errno, CA).step == "x509_check_for_self_signed"
        else:
            verify(image, CA)


def test_a_certificate_that_names_another_key_of_its_own_name_is_not_self_signed() -> None:
    # A new key of the same authority, which the old key vouches for.
    renewed = signing.certificate(
        "kexecemu test CA", "intermediate", "kexecemu test CA", "ca", serial=12, ca=True
    )
    leaf = signing.certificate("leaf", "signer", "kexecemu test CA", "intermediate", serial=13)
    image = signed(pe_image(), leaf, "signer", certificates=[der_of(leaf), der_of(renewed)])
    assert trusted_by(image, CA) == "kexecemu test CA"


def test_a_certificate_of_its_own_name_cannot_be_signed_with_another_kind_of_key() -> None:
    made = signing.certificate("x", "ec", "x", "ca", serial=14, akid=False)
    image = signed(pe_image(), certificates=[der_of(SIGNER), der_of(made)])
    assert refused(image, EKEYREJECTED, CA).step == "public_key_verify_signature"


def test_certificates_that_sign_each_other_end_the_chain() -> None:
    def made(subject: str, key: str, issuer: str, issuer_key: str, serial: int) -> reference.Certificate:
        return signing.certificate(subject, key, issuer, issuer_key, serial=serial)

    one, other = (
        made("one", "signer", "other", "intermediate", 7),
        made("other", "intermediate", "one", "signer", 8),
    )
    image = signed(pe_image(), one, "signer", certificates=[der_of(one), der_of(other)])
    refused(image, ENOKEY, CA)


def test_an_unrelated_certificate_that_linux_cannot_read_spoils_the_message() -> None:
    key = reference.CertificateBuilder(
        signing.name("x"), signing.name("x"), signing.private_key("ec").public_key(), 1
    )
    made = key.not_valid_before(signing.NOT_BEFORE).not_valid_after(signing.NOT_AFTER)
    p521 = der_of(made.sign(signing.private_key("ec"), signing.HASHES["sha256"], ecdsa_deterministic=True))
    p521 = p521.replace(signing.oid("1.2.840.10045.3.1.7"), signing.oid("1.2.840.10045.3.1.9"))
    image = signed(pe_image(), certificates=[der_of(SIGNER), p521])
    assert refused(image, ENOPKG, CA).step == "pkcs7_parse_message"


# ---- several signers


def two_signers(first: bytes, second: bytes, certificates: list[bytes]) -> bytes:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    return signing.attach(pe_image(), signing.signed_data(content, certificates, [first, second]))


def info(certificate: reference.Certificate, key: str, digest: str = "sha256") -> bytes:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    return signing.signer_info(certificate, key, signing.attributes(content, digest), content, digest=digest)


@pytest.mark.parametrize("order", [1, -1])
def test_one_trusted_signer_of_two_is_enough(order: int) -> None:
    infos = [info(SIGNER, "signer"), info(STRANGER, "stranger")][::order]
    image = two_signers(*infos, [der_of(SIGNER), der_of(STRANGER)])
    assert trusted_by(image, CA) == "kexecemu test CA"
    refused(image, ENOKEY, LEAF)


def test_a_bad_signature_of_either_signer_is_refused() -> None:
    bad = signing.flip(info(STRANGER, "stranger"), -1)
    refused(two_signers(info(SIGNER, "signer"), bad, [der_of(SIGNER), der_of(STRANGER)]), EINVAL, CA)


def test_a_signer_that_cannot_be_checked_does_not_matter_beside_one_that_can() -> None:
    few = CryptoModules(hashes=frozenset({"sha256"}))
    infos = info(STRANGER, "stranger", "sha512"), info(SIGNER, "signer")
    image = two_signers(*infos, [der_of(SIGNER), der_of(STRANGER)])
    verify(image, CA, crypto=few)
    refused(image, ENOPKG, STRANGER, crypto=few)


def test_two_signers_may_share_a_chain() -> None:
    other = signing.certificate("other", "ec", "kexecemu test intermediate", "intermediate", serial=11)
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    second = signing.signer_info(
        other, "ec", signing.attributes(content), content, key_algorithm="ecdsa-sha256"
    )
    image = two_signers(info(LEAF, "signer"), second, [*CHAIN, der_of(other)])
    assert trusted_by(image, CA) == "kexecemu test CA"
    assert refused(image, ENOKEY, STRANGER).reason == "the chain is an earlier signer's"


# ---- keyrings


def test_the_secondary_keyring_has_the_built_in_one_behind_it() -> None:
    image = signed(pe_image())
    both = SystemKeyrings(ring(CA, name="builtin"), secondary=ring(STRANGER, name="secondary"))
    assert kexec_kernel_verify_pe_sig(image, both).keyring == "secondary"
    with pytest.raises(KexecError) as error:
        kexec_kernel_verify_pe_sig(image, SystemKeyrings(ring(STRANGER)))
    assert error.value.errno == ENOKEY
    assert kexec_kernel_verify_pe_sig(signed(pe_image(), STRANGER, "stranger"), both).trusted_by


def test_the_platform_keyring_is_asked_when_no_key_was_found() -> None:
    image = signed(pe_image())
    rings = SystemKeyrings(ring(STRANGER), platform=ring(CA, name="platform"))
    assert kexec_kernel_verify_pe_sig(image, rings).keyring == "platform"


def test_the_platform_keyring_is_not_asked_after_any_other_refusal() -> None:
    twin = signing.certificate("twin", "intermediate", "kexecemu test CA", "ca", serial=0x2000, skid=False)
    with pytest.raises(KexecError) as error:
        kexec_kernel_verify_pe_sig(signed(pe_image()), SystemKeyrings(ring(twin), platform=ring(CA)))
    assert error.value.errno == EKEYREJECTED


def test_a_key_is_looked_up_by_either_of_its_names() -> None:
    keyring = ring(CA, SIGNER)
    read = x509.parse(der_of(SIGNER))
    assert keyring.find_asymmetric_key(read.id).certificate == read
    assert keyring.find_asymmetric_key(read.skid).certificate == read
    assert keyring.find_asymmetric_key(None, read.skid).certificate == read
    with pytest.raises(ValueError, match="by a name"):
        keyring.find_asymmetric_key(None)


def test_part_of_a_name_finds_no_key() -> None:
    read = x509.parse(der_of(CA))
    for wanted in (read.id[1:], read.id[:-1]):
        with pytest.raises(KexecError) as error:
            ring(CA).find_asymmetric_key(wanted)
        assert error.value.errno == ENOKEY


# ---- what is trusted no more


def tbs(certificate: reference.Certificate) -> bytes:
    return hashlib.sha256(certificate.tbs_certificate_bytes).digest()


@pytest.mark.parametrize("listed", [SIGNER, LEAF, INTERMEDIATE], ids=["signer", "leaf", "intermediate"])
def test_a_blacklisted_certificate_spoils_all_that_depends_on_it(listed: reference.Certificate) -> None:
    image = (
        signed(pe_image())
        if listed is SIGNER
        else signed(pe_image(), LEAF, "signer", certificates=[der_of(LEAF), der_of(INTERMEDIATE)])
    )
    verify(image, CA)
    error = refused(image, EKEYREJECTED, CA, blacklist=Blacklist(frozenset({tbs(listed)})))
    assert "blacklisted" in error.reason


def test_another_signer_saves_an_image_from_a_blacklisted_certificate() -> None:
    image = two_signers(
        info(SIGNER, "signer"), info(STRANGER, "stranger"), [der_of(SIGNER), der_of(STRANGER)]
    )
    verify(image, STRANGER, blacklist=Blacklist(frozenset({tbs(SIGNER)})))


@pytest.mark.parametrize("revoked", [SIGNER, CA], ids=["signer", "ca"])
def test_a_revoked_key_may_not_vouch(revoked: reference.Certificate) -> None:
    error = refused(signed(pe_image()), EKEYREJECTED, CA, blacklist=Blacklist(revoked=ring(revoked)))
    assert "revocation list" in error.reason


def test_other_revoked_keys_do_not_matter() -> None:
    verify(signed(pe_image()), CA, blacklist=Blacklist(revoked=ring(STRANGER)))


def test_a_bad_message_is_bad_before_anything_is_looked_up() -> None:
    broken = signing.attach(pe_image(), b"\x30\x02\x05\x00")
    refused(broken, EBADMSG, CA, blacklist=Blacklist(revoked=ring(CA)))


def test_a_trusted_copy_without_its_identifier_is_still_the_signers_key() -> None:
    # find_asymmetric_key() rejects it with both names, and finds it with the first alone, as a last resort.
    copy = signing.certificate(
        "kexecemu test signer", "signer", "kexecemu test CA", "ca", serial=0x2000, skid=False
    )
    assert verify(signed(pe_image()), copy).trusted_by.certificate.skid is None
    other = signing.certificate("other", "stranger", "kexecemu test CA", "ca", serial=0x2000, skid=False)
    refused(signed(pe_image()), EKEYREJECTED, other)


def test_a_signer_of_version_3_without_a_key_identifier_has_a_name_that_cannot_be_looked_up() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    info = signing.signer_info(SIGNER, "signer", signing.attributes(content), content, version=3)
    whole = signing.signed_data(content, [], [info], version=3)
    assert refused(signing.attach(pe_image(), whole), EINVAL, SIGNER).step == "asymmetric_key_hex_to_key_id"
