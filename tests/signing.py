"""Signed arm64 Images for tests: certificates, Authenticode messages and PE files, the same bytes each time.

The keys lie in tests/data/signature; they are public, and only good for tests. Everything is built from the formats'
definitions and with cryptography, not with the code under test. `signed(pe_image())` is a good Image; the keyword
arguments and `BAD_IMAGES` make the bad ones.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

DATA = Path(__file__).parent / "data" / "signature"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(2040, 1, 1, tzinfo=UTC)
SIGNED_AT = datetime(2026, 11, 24, 12, 30, 59, tzinfo=UTC)
HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha3-256": hashes.SHA3_256(),
}


@cache
def private_key(name: str) -> PrivateKey:
    """A test key by its file's name: ca, intermediate, signer, stranger (RSA, 2048 bits), odd (1280), ec (P-256)."""
    key = serialization.load_pem_private_key((DATA / f"{name}.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    return key


# ---- DER


def der(tag: int, *parts: bytes) -> bytes:
    """One DER value."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def indefinite(tag: int, *parts: bytes) -> bytes:
    """One BER value of indefinite length."""
    return bytes([tag, 0x80]) + b"".join(parts) + b"\0\0"


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER, encoded by cryptography."""
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(dotted), "xx")])
    encoded = name.public_bytes()  # SEQUENCE { SET { SEQUENCE { OID, value } } }
    return encoded[6 : 8 + encoded[7]]


SEQUENCE, SET, OCTETS, NULL, INTEGER, UTC_TIME = 0x30, 0x31, 0x04, b"\x05\x00", 0x02, 0x17
OIDS = {
    "sha1": "1.3.14.3.2.26",
    "sha224": "2.16.840.1.101.3.4.2.4",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
    "sha3-256": "2.16.840.1.101.3.4.2.8",
    "rsa": "1.2.840.113549.1.1.1",
    "ecdsa-sha256": "1.2.840.10045.4.3.2",
    "data": "1.2.840.113549.1.7.1",
    "signedData": "1.2.840.113549.1.7.2",
    "envelopedData": "1.2.840.113549.1.7.3",
    "contentType": "1.2.840.113549.1.9.3",
    "messageDigest": "1.2.840.113549.1.9.4",
    "signingTime": "1.2.840.113549.1.9.5",
    "msIndirectData": "1.3.6.1.4.1.311.2.1.4",
    "msPeImageData": "1.3.6.1.4.1.311.2.1.15",
    "msIndividualSPKeyPurpose": "1.3.6.1.4.1.311.2.1.21",
    "unknown": "1.3.6.1.4.1.311.2.1.123",
}


def algorithm(name: str) -> bytes:
    """An AlgorithmIdentifier."""
    return der(SEQUENCE, oid(OIDS[name]), NULL)


# ---- certificates


def name(common_name: str) -> x509.Name:
    """An X.500 name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str,
    key: str,
    issuer: str,
    issuer_key: str,
    *,
    serial: int,
    ca: bool = False,
    skid: bool = True,
    akid: x509.AuthorityKeyIdentifier | bool = True,
    not_before: datetime = NOT_BEFORE,
    not_after: datetime = NOT_AFTER,
    digest: str = "sha256",
) -> x509.Certificate:
    """A certificate; akid True names the issuer's key, False names nothing."""
    public, signing = private_key(key).public_key(), private_key(issuer_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if skid:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if akid is True:
        akid = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    if akid:
        builder = builder.add_extension(akid, critical=False)
    if isinstance(signing, ec.EllipticCurvePrivateKey):
        return builder.sign(signing, HASHES[digest], ecdsa_deterministic=True)
    return builder.sign(signing, HASHES[digest])


def der_of(one: x509.Certificate) -> bytes:
    """A certificate in DER."""
    return one.public_bytes(serialization.Encoding.DER)


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


CA = certificate("kexecemu test CA", "ca", "kexecemu test CA", "ca", serial=0x1000, ca=True)
SIGNER = certificate("kexecemu test signer", "signer", "kexecemu test CA", "ca", serial=0x2000)
STRANGER = certificate("stranger", "stranger", "stranger", "stranger", serial=0x3000)
INTERMEDIATE = certificate(
    "kexecemu test intermediate", "intermediate", "kexecemu test CA", "ca", serial=0x4000, ca=True
)
LEAF = certificate(
    "kexecemu test leaf", "signer", "kexecemu test intermediate", "intermediate", serial=0x5000
)
EC_SIGNER = certificate("kexecemu EC signer", "ec", "kexecemu test CA", "ca", serial=0x6000)


def version_1(original: x509.Certificate, issuer_key: str) -> bytes:
    """The certificate once more without version and extensions, signed anew: all that X.509 version 1 has."""
    tbs = original.tbs_certificate_bytes
    fields, at = [], 4  # behind the header of a SEQUENCE of more than 255 bytes
    assert tbs[1] == 0x82
    while at < len(tbs):
        length, header = tbs[at + 1], 2
        if length & 0x80:
            header += length & 0x7F
            length = int.from_bytes(tbs[at + 2 : at + header], "big")
        fields.append(tbs[at : at + header + length])
        at += header + length
    body = der(SEQUENCE, *(one for one in fields if one[0] not in (0xA0, 0xA3)))
    key = private_key(issuer_key)
    assert isinstance(key, rsa.RSAPrivateKey)
    signature = key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    signed_with = der(SEQUENCE, oid("1.2.840.113549.1.1.11"), NULL)
    return der(SEQUENCE, body, signed_with, der(0x03, b"\0", signature))


# ---- PE files


@dataclass(frozen=True)
class Part:
    """A section: its name, and its bytes."""

    name: bytes
    data: bytes


PARTS = (Part(b".text", bytes(range(64))), Part(b".data", b"kexecemu" * 4))
PE_OFFSET = 0x40
OPTIONAL_OFFSET = PE_OFFSET + 24
CHECKSUM_OFFSET = OPTIONAL_OFFSET + 64
CERTIFICATE_ENTRY = OPTIONAL_OFFSET + 112 + 4 * 8


def pe_image(parts: Sequence[Part] = PARTS, *, headers: int = 0x180, reverse_headers: bool = False) -> bytes:
    """An arm64 Image with the headers of an EFI application, its sections in a row; no table of certificates.

    reverse_headers: the section headers come in the opposite order of the sections.
    """
    table, body = [], b""
    for part in parts:
        offset = headers + len(body)
        table.append(
            struct.pack(
                "<8sIIIIIIHHI",
                part.name,
                len(part.data),
                offset,
                len(part.data),
                offset,
                0,
                0,
                0,
                0,
                0x60000020,
            )
        )
        body += part.data
    if reverse_headers:
        table.reverse()
    size = headers + len(body)
    image_header = struct.pack(
        "<2sHIQQQQQQ4sI",
        b"MZ",
        0x91FF,
        0x14000000,
        0,
        (size + 0xFFFF) & ~0xFFFF,
        0xA,
        0,
        0,
        0,
        b"ARM\x64",
        PE_OFFSET,
    )
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0xAA64, len(parts), 0, 0, 0, 112 + 6 * 8, 0x206)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        0x20B,
        2,
        20,
        len(body),
        0,
        0,
        headers,
        headers,
        0,
        16,
        16,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        size,
        headers,
        0,
        10,
        0,
        0,
        0,
        0,
        0,
        0,
        6,
    )
    head = image_header + coff + optional + bytes(6 * 8) + b"".join(table)
    assert len(optional) == 112 and len(head) <= headers
    return head.ljust(headers, b"\0") + body


def authenticode_digest(image: bytes, digest: str = "sha256") -> bytes:
    """The digest of an image of pe_image() that is not signed yet: all but two fields of the headers."""
    rest = image[CHECKSUM_OFFSET + 4 : CERTIFICATE_ENTRY] + image[CERTIFICATE_ENTRY + 8 :]
    return hashlib.new(digest.replace("-", "_"), image[:CHECKSUM_OFFSET] + rest).digest()


def attach(image: bytes, message: bytes, *, revision: int = 0x200, kind: int = 2) -> bytes:
    """Append a table of certificates with one message, and enter it into the headers."""
    length = 8 + len(message)
    table = struct.pack("<IHH", length, revision, kind) + message
    table = table.ljust((length + 7) & ~7, b"\0")
    entry = struct.pack("<II", len(image), len(table))
    return image[:CERTIFICATE_ENTRY] + entry + image[CERTIFICATE_ENTRY + 8 :] + table


# ---- messages


def indirect_data(digest: bytes, name: str = "sha256", kind: str = "msPeImageData") -> bytes:
    """SpcIndirectDataContent."""
    pe_data = der(SEQUENCE, der(0x03, b"\0"), der(0xA0, der(0xA2, der(0x80))))
    return der(
        SEQUENCE,
        der(SEQUENCE, oid(OIDS[kind]), pe_data),
        der(SEQUENCE, algorithm(name), der(OCTETS, digest)),
    )


def content_of(value: bytes) -> bytes:
    """A DER value without its tag and length."""
    return value[2:] if value[1] < 0x80 else value[2 + (value[1] & 0x7F) :]


def utc_time(moment: datetime) -> bytes:
    """UTCTime."""
    return der(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())


def attribute(name: str, *values: bytes) -> bytes:
    """One signed attribute."""
    return der(SEQUENCE, oid(OIDS[name]), der(SET, *values))


def attributes(
    content: bytes,
    digest: str = "sha256",
    content_type: str = "msIndirectData",
    signed_at: datetime | None = SIGNED_AT,
) -> list[bytes]:
    """The usual signed attributes about a content."""
    found = [
        attribute("contentType", oid(OIDS[content_type])),
        attribute(
            "messageDigest", der(OCTETS, hashlib.new(digest.replace("-", "_"), content_of(content)).digest())
        ),
    ]
    if signed_at is not None:
        found.append(attribute("signingTime", utc_time(signed_at)))
    return sorted(found)


def raw_sign(key: str, data: bytes, digest: str) -> bytes:
    """A signature's value."""
    private = private_key(key)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(data, ec.ECDSA(HASHES[digest], deterministic_signing=True))
    return private.sign(data, padding.PKCS1v15(), HASHES[digest])


def signer_info(
    certificate_of: x509.Certificate,
    key: str,
    signed_attributes: Sequence[bytes] | None,
    content: bytes,
    *,
    digest: str = "sha256",
    version: int = 1,
    key_algorithm: str = "rsa",
    signer_id: bytes | None = None,
) -> bytes:
    """A SignerInfo, with the signature over the attributes, or over the content if there are none."""
    if signer_id is None:
        serial = certificate_of.serial_number
        signer_id = der(
            SEQUENCE,
            certificate_of.issuer.public_bytes(),
            der(INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
        )
    if signed_attributes is None:
        kept, signature = b"", raw_sign(key, content_of(content), digest)
    else:
        kept = der(0xA0, *signed_attributes)
        signature = raw_sign(key, der(SET, *signed_attributes), digest)
    return der(
        SEQUENCE,
        der(INTEGER, bytes([version])),
        signer_id,
        algorithm(digest),
        kept,
        algorithm(key_algorithm),
        der(OCTETS, signature),
    )


def signed_data(
    content: bytes | None,
    certificates: Sequence[bytes],
    signers: Sequence[bytes],
    *,
    content_type: str = "msIndirectData",
    version: int = 1,
    digest: str = "sha256",
    outer: Callable[..., bytes] = der,
) -> bytes:
    """A whole message; outer writes its four outermost values, indefinite() for instance."""
    inner = outer(
        SEQUENCE,
        der(INTEGER, bytes([version])),
        der(SET, algorithm(digest)),
        der(SEQUENCE, oid(OIDS[content_type]), b"" if content is None else der(0xA0, content)),
        outer(0xA0, *certificates) if certificates else b"",
        der(SET, *signers),
    )
    return outer(SEQUENCE, oid(OIDS["signedData"]), outer(0xA0, inner))


def message(
    image: bytes,
    signer: x509.Certificate = SIGNER,
    key: str = "signer",
    *,
    certificates: Sequence[bytes] | None = None,
    digest: str = "sha256",
    signed_at: datetime | None = SIGNED_AT,
    key_algorithm: str = "rsa",
) -> bytes:
    """The message that signs an image; certificates are those that it carries, the signer's alone by default."""
    content = indirect_data(authenticode_digest(image, digest), digest)
    info = signer_info(
        signer,
        key,
        attributes(content, digest, signed_at=signed_at),
        content,
        digest=digest,
        key_algorithm=key_algorithm,
    )
    carried = [der_of(signer)] if certificates is None else certificates
    return signed_data(content, carried, [info], digest=digest)


def signed(image: bytes, *arguments: object, **options: object) -> bytes:
    """An image with its signature; arguments and options are those of message()."""
    return attach(image, message(image, *arguments, **options))  # type: ignore[arg-type]


# ---- the seventeen bad images


def flip(data: bytes, offset: int, mask: int = 1) -> bytes:
    """The same bytes with some bits of one inverted; a negative offset counts from the end."""
    changed = bytearray(data)
    changed[offset] ^= mask
    return bytes(changed)


def patch(data: bytes, offset: int, value: bytes) -> bytes:
    """The same bytes with some replaced."""
    return data[:offset] + value + data[offset + len(value) :]


@dataclass(frozen=True)
class Signed:
    """A good image, and where its parts lie."""

    data: bytes
    unsigned_size: int

    @property
    def message_offset(self) -> int:
        """Where the PKCS#7 message begins."""
        return self.unsigned_size + 8

    @property
    def message_size(self) -> int:
        """Its length in bytes."""
        return struct.unpack_from("<I", self.data, self.unsigned_size)[0] - 8

    def offset_of(self, value: bytes) -> int:
        """Where these bytes lie in the message; they must be there once."""
        assert self.data.count(value, self.message_offset) == 1
        return self.data.index(value, self.message_offset)


@cache
def good() -> Signed:
    """A good image."""
    image = pe_image()
    return Signed(signed(image), len(image))


def _unknown_content_type() -> bytes:
    wanted, other = oid(OIDS["msIndirectData"]), oid(OIDS["unknown"])
    # The OID of contentInfo is the first of two in the message; the other is a signed attribute.
    at = good().data.index(wanted, good().message_offset)
    assert len(wanted) == len(other)
    return patch(good().data, at, other)


BAD_IMAGES: dict[str, Callable[[], bytes]] = {
    "unsigned": pe_image,
    "stranger": lambda: signed(pe_image(), STRANGER, "stranger"),
    "tampered": lambda: flip(good().data, good().unsigned_size - 1),
    # The signature's value is the last of the message.
    "badsig": lambda: flip(good().data, good().message_offset + good().message_size - 1),
    "notpkcs7": lambda: patch(good().data, good().message_offset, b"\x31"),
    "rev1": lambda: patch(good().data, good().unsigned_size + 4, struct.pack("<H", 0x100)),
    "nodir": lambda: patch(good().data, CERTIFICATE_ENTRY, bytes(8)),
    "baddigest": lambda: flip(good().data, good().offset_of(authenticode_digest(pe_image()))),
    "biglen": lambda: patch(
        good().data, good().unsigned_size, struct.pack("<I", good().message_size + 8 + 0x47)
    ),
    "noauthenticode": _unknown_content_type,
    "short": lambda: good().data[:-0x40],
    "nomz": lambda: patch(good().data, 0, b"NZ"),
    "nomagic": lambda: patch(good().data, 56, b"ARM\x65"),
    "nope": lambda: patch(good().data, PE_OFFSET, b"PF"),
    "trailing": lambda: good().data + bytes(0x40),
    "v1nosk": lambda: signed(pe_image(), SIGNER, "signer", certificates=[version_1(SIGNER, "ca")]),
    # A signer that names its authority, which is not trusted: as Debian's kernel is to a kernel without Debian's CA.
    "debian": lambda: signed(
        pe_image(),
        certificate("somebody's signer", "signer", "somebody's CA", "stranger", serial=0x7000),
        "signer",
    ),
}
