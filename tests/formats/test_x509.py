"""Certificates as Linux reads them, against cryptography's parser on this machine's certificates and on made ones."""

from __future__ import annotations

import calendar
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import signing
from cryptography import x509 as reference
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import asn1, oid, x509
from kexecemu.formats.algorithms import LINUX_6_12
from kexecemu.formats.ber import Asn1Error, BerFault
from kexecemu.formats.x509_values import NameSegments, decode_time, written

MADE = {
    "ca": signing.CA,
    "signer": signing.SIGNER,
    "leaf": signing.LEAF,
    "ec": signing.EC_SIGNER,
    "far": signing.certificate(
        "far", "ec", "far", "ec", serial=1 << 150, not_after=datetime(2060, 2, 29, 23, 59, 59, tzinfo=UTC)
    ),
    "old": signing.certificate(
        "old", "ca", "x", "ca", serial=255, not_before=datetime(1999, 12, 31, tzinfo=UTC)
    ),
}


def compare(read: x509.Certificate, wanted: reference.Certificate) -> None:
    assert int.from_bytes(read.serial, "big", signed=True) == wanted.serial_number
    assert read.issuer == signing.content_of(wanted.issuer.public_bytes())
    assert read.subject == signing.content_of(wanted.subject.public_bytes())
    assert read.not_before == wanted.not_valid_before_utc.timestamp()
    assert read.not_after == wanted.not_valid_after_utc.timestamp()
    assert read.signed_part == wanted.tbs_certificate_bytes
    assert read.signature == wanted.signature
    assert wanted.signature_hash_algorithm is not None
    assert read.algorithm.hash == wanted.signature_hash_algorithm.name
    spki = wanted.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert read.public_key.encoded == spki
    skid = akid = authority_id = None
    for extension in wanted.extensions:
        if isinstance(extension.value, reference.SubjectKeyIdentifier):
            skid = extension.value.digest
        if isinstance(extension.value, reference.AuthorityKeyIdentifier):
            akid = extension.value.key_identifier
            authority_id = extension.value.authority_cert_serial_number
    assert read.skid == skid
    assert read.authority_skid == akid
    assert (read.authority_id is None) is (authority_id is None)


@pytest.mark.parametrize("name", MADE)
def test_made_certificates_read_as_cryptography_reads_them(name: str) -> None:
    compare(x509.parse(signing.der_of(MADE[name])), MADE[name])


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_this_machines_certificates_read_as_cryptography_reads_them() -> None:
    path = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if not Path(path).is_file():
        pytest.skip("no bundle of certificates on this machine (Debian: ca-certificates)")
    compared = 0
    for wanted in reference.load_pem_x509_certificates(Path(path).read_bytes()):
        try:
            read = x509.parse(signing.der_of(wanted))
        except Asn1Error as error:
            # Linux 6.1 has no Ed25519, no P-521 and no RSA-PSS, and holds years to the right kind of time [RFC 5280,
            # 4.1.2.5], which cryptography does not; all others must have been read.
            assert error.fault is BerFault.UNSUPPORTED or "GeneralizedTime" in str(error)
            continue
        compare(read, wanted)
        compared += 1
    assert compared > 20


def test_a_certificate_of_version_1_has_no_key_identifiers() -> None:
    read = x509.parse(signing.version_1(signing.SIGNER, "ca"))
    assert (read.skid, read.authority_skid, read.authority_id) == (None, None, None)
    assert read.id == x509.parse(signing.der_of(signing.SIGNER)).id


def test_an_authority_may_be_named_by_issuer_and_serial_number() -> None:
    akid = reference.AuthorityKeyIdentifier(
        None, [reference.DNSName("ca"), reference.DirectoryName(signing.CA.subject)], 0x1000
    )
    made = signing.certificate("s", "signer", "kexecemu test CA", "ca", serial=5, akid=akid)
    read = x509.parse(signing.der_of(made), LINUX_6_12)
    assert read.authority_skid is None
    assert read.authority_id == x509.parse(signing.der_of(signing.CA)).id


def test_6_1_reads_no_name_but_an_x500_name_in_an_authority_key_identifier() -> None:
    # Its grammar has all tags of GeneralName explicit, as only that of directoryName is.
    for name, ok in ((reference.DirectoryName(signing.CA.subject), True), (reference.DNSName("ca"), False)):
        akid = reference.AuthorityKeyIdentifier(None, [name], 0x1000)
        made = signing.certificate("s", "signer", "kexecemu test CA", "ca", serial=5, akid=akid)
        if ok:
            assert x509.parse(signing.der_of(made)).authority_id == x509.parse(signing.der_of(signing.CA)).id
            continue
        with pytest.raises(Asn1Error, match="authorityKeyIdentifier: tag 0x16 expected"):
            x509.parse(signing.der_of(made))


def test_a_serial_number_without_an_issuer_names_no_authority() -> None:
    akid = signing.der(0x30, signing.der(0x82, b"\x10\x00"))
    extension = reference.UnrecognizedExtension(reference.ObjectIdentifier("2.5.29.35"), akid)
    made = reference.CertificateBuilder(
        signing.name("ca"), signing.name("s"), signing.private_key("signer").public_key(), 5
    )
    made = made.not_valid_before(signing.NOT_BEFORE).not_valid_after(signing.NOT_AFTER)
    made = made.add_extension(extension, critical=False)
    one = made.sign(signing.private_key("ca"), signing.HASHES["sha256"])
    assert x509.parse(signing.der_of(one)).authority_id is None


def test_bit_strings_must_be_whole_bytes() -> None:
    data = signing.der_of(signing.SIGNER)
    assert data[-261:-256] == b"\x03\x82\x01\x01\x00"
    with pytest.raises(Asn1Error, match="certificate's signature: not whole bytes"):
        x509.parse(signing.patch(data, len(data) - 257, b"\x01"))


def test_a_subject_key_identifier_must_be_one_octet_string() -> None:
    data = signing.der_of(signing.SIGNER)
    skid = x509.parse(data).skid
    assert skid is not None
    at = data.index(b"\x04\x16\x04\x14" + skid) + 2
    for header in (b"\x04\x13", b"\x04\x15", b"\x03\x14"):
        with pytest.raises(Asn1Error, match="subjectKeyIdentifier"):
            x509.parse(signing.patch(data, at, header))


@pytest.mark.parametrize(
    ("identifier", "content"),
    [
        ("2.5.29.15", b"\x03\x02\x05"),
        ("2.5.29.15", b"\x04\x02\x05\xa0"),
        ("2.5.29.15", b"\x03\x02\x08\xa0"),
        ("2.5.29.19", b"\x30"),
        ("2.5.29.19", b"\x10\x00"),
        ("2.5.29.19", b"\x30\x01"),
        ("2.5.29.19", b"\x30\x03\x01\x01\x01"),
    ],
)
def test_what_a_key_may_be_used_for_must_be_well_formed_but_not_to_6_1(
    identifier: str, content: bytes
) -> None:
    extension = reference.UnrecognizedExtension(reference.ObjectIdentifier(identifier), content)
    made = reference.CertificateBuilder(
        signing.name("ca"), signing.name("s"), signing.private_key("signer").public_key(), 5
    )
    made = made.not_valid_before(signing.NOT_BEFORE).not_valid_after(signing.NOT_AFTER)
    data = signing.der_of(
        made.add_extension(extension, critical=True).sign(signing.private_key("ca"), signing.HASHES["sha256"])
    )
    assert x509.parse(data).serial == b"\x05"
    with pytest.raises(Asn1Error, match=r"malformed|neither empty nor a CA's") as error:
        x509.parse(data, LINUX_6_12)
    assert error.value.fault is BerFault.MALFORMED


def test_the_key_is_described_as_in_the_kernels_log() -> None:
    # 6.1.192: "Loaded X.509 cert 'kexecemu test CA: d21e...'", a name and the subjectKeyIdentifier.
    read = x509.parse(signing.der_of(signing.CA))
    assert read.skid is not None
    assert read.description == f"kexecemu test CA: {read.skid.hex()}"
    assert read.subject_name == "CN=kexecemu test CA"


def test_an_unknown_key_algorithm_is_told_from_a_malformed_certificate() -> None:
    rsa, other = (signing.oid(one)[2:] for one in ("1.2.840.113549.1.1.1", "1.2.840.113549.1.1.9"))
    data = signing.der_of(signing.SIGNER)
    assert data.count(rsa) == 1
    with pytest.raises(Asn1Error, match=r"1\.2\.840\.113549\.1\.1\.9 is not supported") as error:
        x509.parse(data.replace(rsa, other))
    assert error.value.fault is BerFault.UNSUPPORTED


def test_two_signature_algorithms_must_agree() -> None:
    sha256, sha384 = (signing.oid(one)[2:] for one in ("1.2.840.113549.1.1.11", "1.2.840.113549.1.1.12"))
    data = signing.der_of(signing.SIGNER)
    first = data.index(sha256)
    with pytest.raises(Asn1Error, match="differ") as error:
        x509.parse(signing.patch(data, first, sha384))
    assert error.value.fault is BerFault.UNEXPECTED


@pytest.mark.parametrize(
    ("tag", "text", "wanted"),
    [
        (asn1.UTC_TIME, b"261124123059Z", datetime(2026, 11, 24, 12, 30, 59, tzinfo=UTC)),
        (asn1.UTC_TIME, b"700101000000Z", datetime(1970, 1, 1, tzinfo=UTC)),
        (asn1.UTC_TIME, b"491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (asn1.UTC_TIME, b"000229000000Z", datetime(2000, 2, 29, tzinfo=UTC)),
        (asn1.GENERALIZED_TIME, b"20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),
        (asn1.GENERALIZED_TIME, b"99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (asn1.UTC_TIME, b"261231240000Z", datetime(2027, 1, 1, tzinfo=UTC)),
        (asn1.UTC_TIME, b"161231235960Z", datetime(2017, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_are_seconds_since_1970(tag: int, text: bytes, wanted: datetime) -> None:
    assert decode_time(tag, text) == calendar.timegm(wanted.timetuple())


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (asn1.UTC_TIME, b"2611241230Z"),
        (asn1.UTC_TIME, b"261124123059+"),
        (asn1.UTC_TIME, b"26112412305 Z"),
        (asn1.UTC_TIME, b"260229000000Z"),
        (asn1.UTC_TIME, b"261324000000Z"),
        (asn1.UTC_TIME, b"260024000000Z"),
        (asn1.UTC_TIME, b"261100000000Z"),
        (asn1.UTC_TIME, b"261124250000Z"),
        (asn1.UTC_TIME, b"261124006000Z"),
        (asn1.UTC_TIME, b"261124000061Z"),
        (asn1.UTC_TIME, b"500101000000Z"),
        (asn1.GENERALIZED_TIME, b"20261124123059Z"),
        (asn1.GENERALIZED_TIME, b"21000229000000Z"),
        (asn1.OCTET_STRING, b"261124123059Z"),
    ],
)
def test_times_that_linux_does_not_read_are_malformed(tag: int, text: bytes) -> None:
    with pytest.raises(Asn1Error) as error:
        decode_time(tag, text)
    assert error.value.fault is BerFault.MALFORMED


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"2.5.4.3": "CN"}, "CN"),
        ({"2.5.4.10": "Org"}, "Org"),
        ({"1.2.840.113549.1.9.1": "a@b"}, "a@b"),
        ({"2.5.4.10": "Org", "2.5.4.3": "Name"}, "Org: Name"),
        ({"2.5.4.10": "Debian", "2.5.4.3": "Debian CA"}, "Debian CA"),
        ({"2.5.4.10": "Company Ltd", "2.5.4.3": "Company CA"}, "Company CA"),
        ({"2.5.4.6": "DE"}, ""),
    ],
)
def test_names_are_shortened_as_the_kernel_does(found: dict[str, str], text: str) -> None:
    segments = NameSegments()
    for kind, value in found.items():
        segments.note(oid.encode(kind), value.encode())
    assert segments.fabricate() == text
    assert segments.fabricate() == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        x509.parse(data)


@given(
    st.sampled_from(sorted(MADE)),
    st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=2)), min_size=1, max_size=4),
)
@example("ca", [(12, b"\x01")])  # a version that there is not
def test_any_damage_is_a_certificate_or_a_format_error(name: str, damage: list[tuple[int, bytes]]) -> None:
    data = signing.der_of(MADE[name])
    for offset, value in damage:
        data = signing.patch(data, offset, value)
    try:
        read = x509.parse(data)
    except FormatError:
        return
    assert isinstance(read.subject_name, str)
    assert isinstance(read.issuer_name, str)
    assert read.signed_part in data


@given(st.lists(st.integers(0, 1 << 70), max_size=8), st.integers(0, 2), st.integers(0, 39))
def test_identifiers_are_encoded_as_cryptography_does_and_back(
    rest: list[int], first: int, second: int
) -> None:
    text = ".".join(map(str, (first, second, *rest, 5)))
    try:
        wanted = signing.oid(text)
    except ValueError:  # cryptography has a limit of its own
        return
    assert written(asn1.OBJECT_IDENTIFIER, oid.encode(text)) == wanted
    assert oid.dotted(oid.encode(text)) == text
