"""Signatures of kernel images: the errnos of a real kernel, other people's signing tools, chains and keyrings."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from errno import EBADMSG, EINVAL, EKEYREJECTED, ELIBBAD, EMSGSIZE, ENODATA, ENOENT, ENOKEY, ENOPKG
from pathlib import Path

import pytest
import signing
from cryptography import x509 as reference
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from signing import CA, EC_SIGNER, SIGNER, STRANGER, der_of, good, pe_image, signed

from kexecemu.errors import KexecError
from kexecemu.formats import x509
from kexecemu.formats.algorithms import LINUX_6_12, SignatureAlgorithm
from kexecemu.formats.x509 import PublicKey
from kexecemu.kernel.load.kexec_image import image_probe
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.public_key import (
    CURVE_ORDERS,
    CryptoModules,
    Signature,
    public_key_verify_signature,
)
from kexecemu.kernel.signature.signature import VerifiedImage, verify_pefile_signature

ENOTSUPP = 524
TABLE = (signing.DATA / "errnos-6.1.192.txt").read_text()
# "== kexec -s -p Image.NAME", then what the log said, then the tool's status.
MEASURED = {
    name: int(number) if number else None
    for name, number in re.findall(
        r"^== kexec -s -p Image\.(\w+)\n(?:.*failed \(-(\d+)\)\n)?", TABLE, re.MULTILINE
    )
}


def ring(*certificates: reference.Certificate, name: str = "test") -> Keyring:
    return Keyring.of(name, [x509.parse(der_of(one)) for one in certificates])


TRUSTED = ring(CA)


def verify(image: bytes, keyring: Keyring = TRUSTED, **options: object) -> VerifiedImage:
    return verify_pefile_signature(image, keyring, **options)  # type: ignore[arg-type]


def refused(image: bytes, errno: int, keyring: Keyring = TRUSTED, **options: object) -> KexecError:
    with pytest.raises(KexecError) as error:
        verify(image, keyring, **options)
    assert error.value.errno == errno, error.value
    return error.value


def with_content(
    content: bytes,
    *,
    digest: str = "sha256",
    signed_attributes: Sequence[bytes] | None = None,
    **options: object,
) -> bytes:
    """An image whose signer signed this content, whatever it is."""
    attributes = signing.attributes(content, digest) if signed_attributes is None else signed_attributes
    info = signing.signer_info(SIGNER, "signer", attributes, content, digest=digest)
    whole = signing.signed_data(content, [der_of(SIGNER)], [info], digest=digest, **options)  # type: ignore[arg-type]
    return signing.attach(pe_image(), whole)


# ---- the seventeen bad images of a real 6.1.192


def test_the_table_names_the_images_that_are_made_here() -> None:
    assert len(MEASURED) == 17
    assert set(MEASURED) == set(signing.BAD_IMAGES)


@pytest.mark.parametrize("name", [name for name, errno in MEASURED.items() if errno is not None])
def test_a_bad_image_gives_the_errno_of_a_real_kernel(name: str) -> None:
    errno = MEASURED[name]
    assert errno is not None
    refused(signing.BAD_IMAGES[name](), errno)


def test_an_image_without_its_magic_is_refused_before_any_verification() -> None:
    assert MEASURED["nomagic"] is None
    with pytest.raises(KexecError) as error:
        image_probe(signing.BAD_IMAGES["nomagic"]())
    assert error.value.errno == EINVAL


def test_every_refusal_says_which_kernel_function_refused() -> None:
    steps = {
        "unsigned": "pefile_parse_binary",
        "rev1": "pefile_strip_sig_wrapper",
        "noauthenticode": "pkcs7_parse_message",
        "baddigest": "pkcs7_digest",
        "badsig": "pkcs1pad_verify",
        "stranger": "pkcs7_validate_trust_one",
        "tampered": "pefile_digest_pe",
    }
    for name, step in steps.items():
        assert refused(signing.BAD_IMAGES[name](), MEASURED[name] or 0).step == step


# ---- good images


def test_a_signed_image_is_verified() -> None:
    found = verify(good().data)
    assert found.digest == signing.authenticode_digest(pe_image())
    assert found.digest_algorithm == "sha256"
    assert [one.subject_text for one in found.signers] == ["kexecemu test signer"]
    assert found.trusted_by.certificate.subject_text == "kexecemu test CA"
    assert found.keyring == "test"
    assert found.signing_time == int(signing.SIGNED_AT.timestamp())


@pytest.mark.parametrize("digest", ["sha1", "sha224", "sha256", "sha384", "sha512"])
def test_every_digest_algorithm_that_linux_has_is_verified(digest: str) -> None:
    assert verify(signed(pe_image(), digest=digest)).digest_algorithm == digest


def test_sha3_is_verified_by_a_kernel_that_has_it_and_whose_parsers_know_it() -> None:
    image = signed(pe_image(), digest="sha3-256")
    crypto = CryptoModules(CryptoModules().hashes | {"sha3-256"}, algorithms=LINUX_6_12)
    assert verify(image, crypto=crypto).digest_algorithm == "sha3-256"
    refused(image, ENOPKG, crypto=CryptoModules(algorithms=LINUX_6_12))
    refused(image, ENOPKG)


def test_6_12_does_not_take_sha224() -> None:
    refused(signed(pe_image(), digest="sha224"), ENOPKG, crypto=CryptoModules(algorithms=LINUX_6_12))


def test_an_ecdsa_signature_is_verified() -> None:
    found = verify(signed(pe_image(), EC_SIGNER, "ec", key_algorithm="ecdsa-sha256"))
    assert found.signers[0].public_key.algorithm == "ecdsa-nist-p256"


def test_a_message_of_indefinite_lengths_is_verified() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    verify(with_content(content, outer=signing.indefinite))


def test_attributes_out_of_order_are_verified() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    verify(with_content(content, signed_attributes=sorted(signing.attributes(content), reverse=True)))


def test_a_signature_without_a_signing_time_is_verified() -> None:
    assert verify(signed(pe_image(), signed_at=None)).signing_time is None


def test_a_certificate_that_has_run_out_since_is_no_reason_to_refuse() -> None:
    old = signing.certificate(
        "old", "signer", "kexecemu test CA", "ca", serial=9, not_after=datetime(2021, 1, 1, tzinfo=UTC)
    )
    verify(signed(pe_image(), old, "signer", signed_at=datetime(2020, 6, 1, tzinfo=UTC)))
    verify(signed(pe_image(), old, "signer", signed_at=None))


# ---- other people's tools


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with an unsigned image, a signed one, the CA's and the signer's certificates, the signer's key."""
    for name, data in {
        "Image": pe_image([signing.Part(b".text", bytes(4096))], headers=0x1000),
        "signed": good().data,
        "ca.pem": signing.pem_of(CA),
        "signer.pem": signing.pem_of(SIGNER),
        "stranger.pem": signing.pem_of(STRANGER),
        "key.pem": (signing.DATA / "signer.key").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_what_sbsign_signs_is_verified(files: Path) -> None:
    done = run(
        files,
        tool("sbsign", "sbsigntool"),
        "--key",
        "key.pem",
        "--cert",
        "signer.pem",
        "--output",
        "out",
        "Image",
    )
    assert done.returncode == 0, done.stderr
    assert verify((files / "out").read_bytes()).signers[0].subject_text == "kexecemu test signer"
    refused((files / "out").read_bytes(), ENOKEY, ring(STRANGER))


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
def test_what_osslsigncode_signs_is_verified(files: Path, digest: str) -> None:
    osslsigncode = tool("osslsigncode", "osslsigncode")
    done = run(
        files,
        *(osslsigncode, "sign", "-h", digest, "-certs", "signer.pem", "-key", "key.pem"),
        *("-in", "Image", "-out", "out"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify((files / "out").read_bytes()).digest_algorithm == digest
    refused(signing.flip((files / "out").read_bytes(), 0x1800), EKEYREJECTED)


def test_sbverify_verifies_the_tests_own_image(files: Path) -> None:
    sbverify = tool("sbverify", "sbsigntool")
    assert run(files, sbverify, "--cert", "ca.pem", "signed").returncode == 0
    assert run(files, sbverify, "--cert", "stranger.pem", "signed").returncode != 0


def test_osslsigncode_verifies_the_tests_own_image(files: Path) -> None:
    osslsigncode = tool("osslsigncode", "osslsigncode")
    at = str(int(signing.SIGNED_AT.timestamp()))
    done = run(files, osslsigncode, "verify", "-time", at, "-CAfile", "ca.pem", "-in", "signed")
    assert "Signature verification: ok" in done.stdout, done.stdout + done.stderr


def test_openssl_verifies_the_tests_own_message(files: Path) -> None:
    (files / "message").write_bytes(good().data[good().message_offset :][: good().message_size])
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    (files / "content").write_bytes(signing.content_of(content))
    command = [tool("openssl", "openssl"), "smime", "-verify", "-inform", "DER", "-in", "message", "-binary"]
    command += ["-CAfile", "ca.pem", "-purpose", "any", "-content", "content", "-out", "out"]
    done = run(files, *command)
    assert done.returncode == 0, done.stderr
    assert (files / "out").read_bytes() == signing.content_of(content)


# ---- any flipped bit


def signed_offsets() -> set[int]:
    """All bytes of the good image that a signature covers, found without the code under test."""
    image, data = pe_image(), good().data
    offsets = set(range(len(image)))
    offsets -= set(range(signing.CHECKSUM_OFFSET, signing.CHECKSUM_OFFSET + 4))
    offsets -= set(range(signing.CERTIFICATE_ENTRY, signing.CERTIFICATE_ENTRY + 8))
    content = signing.indirect_data(signing.authenticode_digest(image))
    # Of the attributes' SET and of the content, what is inside the tag and the length.
    for value in (
        signing.content_of(content),
        b"".join(signing.attributes(content)),
        SIGNER.tbs_certificate_bytes,
        SIGNER.signature,
        data[good().message_offset + good().message_size - 256 :][:256],
    ):
        start = good().offset_of(value)
        offsets |= set(range(start, start + len(value)))
    return offsets


@pytest.mark.slow
def test_every_flipped_bit_in_the_signed_parts_is_refused() -> None:
    data = good().data
    protected = signed_offsets()
    accepted = []
    for offset in range(len(data)):
        for bit in range(8):
            try:
                verify(signing.flip(data, offset, 1 << bit))
            except KexecError:
                continue
            accepted.append(offset)
    assert not protected.intersection(accepted)
    # What is accepted: the checksum, parameters and lists of algorithms that nobody reads, padding; and 0x10 where a
    # SEQUENCE, 0x11 where a SET is expected.
    assert set(range(signing.CHECKSUM_OFFSET, signing.CHECKSUM_OFFSET + 4)) <= set(accepted)
    assert len(set(accepted)) <= 40


@given(st.integers(0, (1 << 20) * 8 - 1))
def test_any_flipped_bit_of_a_large_image_is_refused(bit: int) -> None:
    offset, mask = bit // 8, 1 << bit % 8
    if signing.CHECKSUM_OFFSET <= offset < signing.CHECKSUM_OFFSET + 4:
        return
    refused_any(signing.flip(large(), offset, mask))


def large() -> bytes:
    """A signed image of 1 MiB, and its certificates behind that."""
    if not _LARGE:
        part = signing.Part(b".text", bytes(range(256)) * 4080)
        image = pe_image(
            [part, signing.Part(b".data", bytes(0x100000 - 0x1000 - len(part.data)))], headers=0x1000
        )
        assert len(image) == 1 << 20
        _LARGE.append(signed(image))
        verify(_LARGE[0])
    return _LARGE[0]


_LARGE: list[bytes] = []


def refused_any(image: bytes) -> None:
    with pytest.raises(KexecError):
        verify(image)


@given(st.lists(st.tuples(st.integers(0, 1855), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
def test_any_damage_is_verified_or_an_errno(damage: list[tuple[int, bytes]]) -> None:
    data = good().data
    for offset, value in damage:
        data = signing.patch(data, offset, value)
    try:
        found = verify(data)
    except KexecError as error:
        assert error.errno in (
            EBADMSG,
            EINVAL,
            EKEYREJECTED,
            ELIBBAD,
            EMSGSIZE,
            ENODATA,
            ENOKEY,
            ENOPKG,
            ENOTSUPP,
        )
        return
    assert found.digest == signing.authenticode_digest(pe_image())


@given(st.binary(max_size=300))
def test_any_bytes_in_place_of_the_message_are_an_errno(message: bytes) -> None:
    refused_any(signing.attach(pe_image(), message))


# ---- the wrapper


def wrapped(length: int, body: bytes) -> bytes:
    """An image with a wrapper that says this length, and a table that has room for the body."""
    data = signing.attach(pe_image(), body)
    return signing.patch(data, len(pe_image()), struct.pack("<I", length))


@pytest.mark.parametrize(
    ("body", "errno"),
    [
        (b"", EKEYREJECTED),
        (b"\x30\x01\x00", EKEYREJECTED),
        (b"\x30\x83\x01\x00\x00\x00\x00\x00", EMSGSIZE),
        (b"\x30\xff\x00\x00", EMSGSIZE),
        (b"\x30\x82\x01\x00", ELIBBAD),
        (b"\x30\x81\xff\x00", ELIBBAD),
        (b"\x30\x7f\x00\x00", ELIBBAD),
        (b"\x02\x02\x00\x00", ELIBBAD),
        (b"\x30\x02\x05\x00", EBADMSG),
        (b"\x30\x80\x05\x00", EBADMSG),
        # Each form of a length, by one byte too short and exact.
        (b"\x30\x03\x05\x00", ELIBBAD),
        (b"\x30\x81\x80" + b"\x05\x00" * 63 + b"\x05", ELIBBAD),
        (b"\x30\x81\x80" + b"\x05\x00" * 64, EBADMSG),
        (b"\x30\x82\x00\x80" + b"\x05\x00" * 63 + b"\x05", ELIBBAD),
        (b"\x30\x82\x00\x80" + b"\x05\x00" * 64, EBADMSG),
        # What the decoder takes at most, and a byte more, there and not there.
        (b"\x30\x82\xff\xfb" + b"\x05" * 0xFFFB, EBADMSG),
        (b"\x30\x82\xff\xfc" + b"\x05" * 0xFFFC, EMSGSIZE),
        (b"\x30\x82\xff\xfc" + b"\x05" * 0xFFFB, ELIBBAD),
    ],
)
def test_what_the_wrapper_holds_must_look_like_pkcs7(body: bytes, errno: int) -> None:
    refused(signing.attach(pe_image(), body), errno)


def test_a_message_may_be_shorter_than_its_wrapper() -> None:
    message = signing.message(pe_image())
    verify(signing.attach(pe_image(), message + bytes(32)))


def test_other_kinds_of_certificates_are_not_supported() -> None:
    refused(signing.attach(pe_image(), signing.message(pe_image()), kind=0xEF0), ENOTSUPP)


def test_a_table_too_small_for_a_wrapper_is_refused() -> None:
    data = signing.patch(good().data, signing.CERTIFICATE_ENTRY + 4, struct.pack("<I", 7))
    assert refused(data, ELIBBAD).step == "pefile_strip_sig_wrapper"


def test_a_wrapper_shorter_than_itself_wraps_around_as_unsigned_numbers_do() -> None:
    message = signing.message(pe_image())
    verify(wrapped(4, message))
    refused(wrapped(8, message), EKEYREJECTED)
    # A real kernel would read on behind the file.
    refused(wrapped(4, b"\x30\x82\xff\x00"), ELIBBAD)


def test_a_message_of_more_than_64_kib_is_refused() -> None:
    many = [der_of(SIGNER)] * 84
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    info = signing.signer_info(SIGNER, "signer", signing.attributes(content), content)
    whole = signing.signed_data(content, many, [info], outer=signing.indefinite)
    assert len(whole) > 0xFFFF
    refused(signing.attach(pe_image(), whole), EMSGSIZE)


# ---- what is signed


def test_an_untrusted_image_that_is_tampered_with_is_untrusted_first() -> None:
    tampered = signing.flip(signed(pe_image(), STRANGER, "stranger"), 0x180)
    refused(tampered, ENOKEY)
    refused(tampered, EKEYREJECTED, ring(STRANGER))


def test_a_digest_of_another_length_than_its_algorithm_is_malformed() -> None:
    short = signing.authenticode_digest(pe_image())[:20]
    assert refused(with_content(signing.indirect_data(short)), EBADMSG).step == "pefile_digest_pe"


def test_a_message_about_something_else_is_malformed() -> None:
    digest = signing.authenticode_digest(pe_image())
    assert (
        refused(with_content(signing.indirect_data(digest, kind="unknown")), EBADMSG).step == "mscode_parse"
    )
    refused(with_content(signing.indirect_data(digest, "rsa")), ENOPKG)
    refused(with_content(signing.indirect_data(digest, "unknown")), EBADMSG)


def test_signed_data_that_is_not_authenticode_is_rejected() -> None:
    content = signing.der(0x04, b"just data")
    attributes = signing.attributes(content, content_type="data")
    whole = with_content(content, signed_attributes=attributes, content_type="data")
    assert refused(whole, EKEYREJECTED).step == "pkcs7_verify"


def test_a_message_without_content_has_no_data() -> None:
    info = signing.signer_info(SIGNER, "signer", signing.attributes(b"\x30\x00"), b"\x30\x00")
    whole = signing.signed_data(None, [der_of(SIGNER)], [info])
    refused(signing.attach(pe_image(), whole), ENODATA)


def test_a_message_digest_of_another_length_is_malformed() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    attributes = [
        signing.attribute("contentType", signing.oid(signing.OIDS["msIndirectData"])),
        signing.attribute("messageDigest", signing.der(0x04, bytes(20))),
    ]
    assert refused(with_content(content, signed_attributes=attributes), EBADMSG).step == "pkcs7_digest"


@pytest.mark.parametrize("year", [2019, 2041])
def test_a_signature_made_outside_of_the_certificates_validity_is_rejected(year: int) -> None:
    image = signed(pe_image(), signed_at=datetime(year, 1, 1, tzinfo=UTC))
    assert refused(image, EKEYREJECTED).step == "pkcs7_verify_one"


def test_the_validity_includes_its_ends() -> None:
    verify(signed(pe_image(), signed_at=signing.NOT_BEFORE))
    verify(signed(pe_image(), signed_at=signing.NOT_AFTER))


# ---- the signature's value


def with_signature(value: Callable[[bytes], bytes]) -> bytes:
    """The good image with another value of the signature."""
    data = good().data
    end = good().message_offset + good().message_size
    return signing.patch(data, end - 256, value(data[end - 256 : end]))


def padded(block: bytes) -> bytes:
    """The RSA value that comes to this block under the signer's key."""
    numbers = signing.private_key("signer").private_numbers()
    assert hasattr(numbers, "d")
    value = pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n)
    return value.to_bytes(256, "big")


SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


@pytest.mark.parametrize(
    ("block", "errno"),
    [
        # A digest that is another: the only thing that gives EKEYREJECTED.
        (b"\x00\x01" + b"\xff" * 202 + b"\x00" + SHA256_INFO + bytes(32), EKEYREJECTED),
        (b"\x00\x02" + b"\xff" * 202 + b"\x00" + SHA256_INFO + bytes(32), EBADMSG),
        (b"\x00\x01" + b"\xfe" * 202 + b"\x00" + SHA256_INFO + bytes(32), EBADMSG),
        (b"\x00\x01" + b"\xff" * 7 + b"\x00" + SHA256_INFO + bytes(227), EBADMSG),
        (b"\x00\x01" + b"\xff" * 254, EBADMSG),
        (b"\x00\x01" + b"\xff" * 206 + b"\x00" + b"\x30\x21" + bytes(45), EBADMSG),
        (b"\x01\x01" + b"\xff" * 202 + b"\x00" + SHA256_INFO + bytes(32), EINVAL),
    ],
)
def test_an_rsa_value_gives_the_errno_of_the_step_that_it_fails(block: bytes, errno: int) -> None:
    assert len(block) == 256
    error = refused(with_signature(lambda _: padded(block)), errno)
    assert error.step == "pkcs1pad_verify"


def test_an_rsa_value_that_is_not_below_the_modulus_is_invalid() -> None:
    refused(with_signature(lambda _: b"\xff" * 256), EINVAL)
    # A good value plus the modulus comes to the same block; for some signing times the sum has no more bytes.
    public = signing.private_key("signer").public_key().public_numbers()
    assert isinstance(public, rsa.RSAPublicNumbers)
    for second in range(200):
        image = signed(
            pe_image(), signed_at=signing.SIGNED_AT.replace(second=second % 60, minute=second // 60)
        )
        end = good().message_offset + good().message_size
        value = int.from_bytes(image[end - 256 : end], "big") + public.n
        if value.bit_length() <= 2048:
            verify(image)
            error = refused(signing.patch(image, end - 256, value.to_bytes(256, "big")), EINVAL)
            assert "not below the modulus" in error.reason
            return
    raise AssertionError("no signing time gives a value that is small enough")


def test_an_rsa_key_of_an_odd_length_cannot_be_used() -> None:
    odd = signing.certificate("odd", "odd", "kexecemu test CA", "ca", serial=15)
    assert refused(signed(pe_image(), odd, "odd"), EINVAL).step == "rsa_set_pub_key"


@pytest.mark.parametrize(("size", "step"), [(0, "rsa_get_e"), (257, "pkcs1pad_verify"), (258, "rsa_get_e")])
def test_an_rsa_exponent_may_be_as_long_as_the_modulus_and_no_longer(size: int, step: str) -> None:
    public = signing.private_key("signer").public_key().public_numbers()
    assert isinstance(public, rsa.RSAPublicNumbers)
    modulus, exponent = b"\0" + public.n.to_bytes(256, "big"), public.e.to_bytes(size, "big") if size else b""
    der = signing.der(0x30, signing.der(0x02, modulus), signing.der(0x02, exponent))
    value = Signature(SignatureAlgorithm("rsa", "sha256"), bytes(32), bytes(255) + b"\2")
    with pytest.raises(KexecError) as error:
        public_key_verify_signature(PublicKey("rsa", der, b""), value, CryptoModules())
    assert (error.value.errno, error.value.step) == (EINVAL, step)


def test_an_rsa_value_of_another_length_is_invalid() -> None:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    info = signing.signer_info(SIGNER, "signer", signing.attributes(content), content)
    value = info[-256:]
    longer = signing.der(0x30, signing.content_of(info)[:-260], signing.der(0x04, b"\0" + value))
    whole = signing.signed_data(content, [der_of(SIGNER)], [longer])
    refused(signing.attach(pe_image(), whole), EINVAL)


def ec_image(value: Callable[[bytes], bytes]) -> bytes:
    content = signing.indirect_data(signing.authenticode_digest(pe_image()))
    attributes = signing.attributes(content)
    info = signing.signer_info(EC_SIGNER, "ec", attributes, content, key_algorithm="ecdsa-sha256")
    old = signing.raw_sign("ec", signing.der(0x31, *attributes), "sha256")
    inner = signing.content_of(info)
    assert inner.endswith(old)
    head = inner[: -len(signing.der(0x04, old))]
    whole = signing.signed_data(
        content, [der_of(EC_SIGNER)], [signing.der(0x30, head, signing.der(0x04, value(old)))]
    )
    return signing.attach(pe_image(), whole)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda one: one.name)
def test_a_curves_order_is_the_first_number_that_is_no_private_key(curve: ec.EllipticCurve) -> None:
    order = CURVE_ORDERS[curve.key_size]
    ec.derive_private_key(order - 1, curve)
    with pytest.raises(ValueError):
        ec.derive_private_key(order, curve)


def test_an_ecdsa_value_gives_the_errno_of_the_step_that_it_fails() -> None:
    verify(ec_image(lambda old: old))
    refused(ec_image(lambda old: signing.flip(old, -1)), EKEYREJECTED)
    refused(ec_image(lambda _: b"no integers"), EBADMSG)
    zero, one = signing.der(0x02, b"\0"), signing.der(0x02, b"\1")
    for pair in ((zero, one), (one, zero)):
        refused(ec_image(lambda _, pair=pair: signing.der(0x30, *pair)), EBADMSG)
    for order, errno in ((CURVE_ORDERS[256], EBADMSG), (CURVE_ORDERS[256] - 1, EKEYREJECTED)):
        octets = signing.der(0x02, b"\0" + order.to_bytes(32, "big"))
        for pair in ((one, octets), (octets, one)):
            refused(ec_image(lambda _, pair=pair: signing.der(0x30, *pair)), errno)
    refused(ec_image(lambda _: signing.der(0x30, one, signing.der(0x02, b"\1" + bytes(32)))), EINVAL)
    refused(ec_image(lambda _: signing.der(0x30, one, signing.der(0x02))), EINVAL)


def test_an_ecdsa_value_may_be_in_all_that_the_decoder_takes_for_a_sequence() -> None:
    verify(ec_image(lambda old: b"\x10" + old[1:]))
    verify(ec_image(lambda old: b"\x30\x81" + old[1:]))
    verify(ec_image(lambda old: b"\x30\x80" + old[2:] + b"\0\0"))
    refused(ec_image(lambda old: b"\x10\x80" + old[2:] + b"\0\0"), EBADMSG)


def test_a_key_of_another_kind_than_the_signature_is_rejected() -> None:
    refused(signed(pe_image(), EC_SIGNER, "signer"), EKEYREJECTED)


def test_a_kernel_without_an_algorithm_says_so() -> None:
    image = signed(pe_image(), digest="sha512")
    assert refused(image, ENOPKG, crypto=CryptoModules(hashes=frozenset({"sha1", "sha256"}))).errno == ENOPKG
    ecdsa = signed(pe_image(), EC_SIGNER, "ec", key_algorithm="ecdsa-sha256")
    refused(ecdsa, ENOENT, crypto=CryptoModules(ecdsa=False))
