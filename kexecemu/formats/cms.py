"""A signed message: SignedData of PKCS#7 and CMS, as Linux reads it (crypto/asymmetric_keys/pkcs7_parser.c).

What is read here is only checked as far as the kernel's parser checks it; whether any signature holds is the
concern of kexecemu.kernel.signature.pkcs7. The checks come in the order of the bytes, as there: the first one that
fails decides the errno. Only the self-signatures of certificates, which that parser verifies on its way, come later
here, so that a message with a bad one of those *and* a malformed end shows the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kexecemu.formats import ber, oid, x509
from kexecemu.formats.ber import Asn1Error, BerFault, Element, Reader
from kexecemu.formats.x509 import Certificate, SignatureAlgorithm
from kexecemu.shown import shown

__all__ = ["SignedData", "SignerInfo", "parse"]


@shown()
@dataclass(frozen=True)
class SignerInfo:
    """One signer's block.

    signer_id is serial number and issuer of its certificate, or, by_skid, its subjectKeyIdentifier. attributes is
    what is digested for the signature: the signed attributes as the SET that they stand for, None without any.
    signing_time is in seconds since 1970.
    """

    signer_id: bytes
    by_skid: bool
    algorithm: SignatureAlgorithm
    signature: bytes = field(repr=False)
    attributes: bytes | None = field(repr=False)
    message_digest: bytes | None
    signing_time: int | None


@shown()
@dataclass(frozen=True)
class SignedData:
    """A message. content is the signed value as it lies in the file, None where the message carries none."""

    content_type: bytes
    content: Element | None = field(repr=False)
    certificates: Sequence[Certificate]
    signers: Sequence[SignerInfo]


def parse(data: bytes) -> SignedData:
    """Read a whole message: pkcs7_parse_message(). Bytes behind it are ignored, as there.

    Asn1Error (a FormatError) for anything else; its fault tells a malformed message from one that Linux does not
    support or does not want.
    """
    outer = Reader(data, "signature").enter(ber.SEQUENCE, "signature")
    kind = outer.take(ber.OBJECT_IDENTIFIER).content
    if kind != oid.SIGNED_DATA:
        raise outer.fail(f"content type {oid.dotted(kind)} is not signedData", BerFault.UNEXPECTED)
    explicit = outer.optional(ber.context(0))
    if explicit is None:
        raise outer.fail("no signer", BerFault.UNEXPECTED)
    wrapped = Reader(explicit.content, "signature")
    message = wrapped.enter(ber.SEQUENCE, "SignedData")
    version = _version(message, "SignedData")
    digest_algorithms = _take_set(message, "digestAlgorithms")
    while not digest_algorithms.at_end:
        digest_algorithms.algorithm("digestAlgorithms")
    content_type, content = _content(message)
    certificates = _certificates(message)
    if (crls := message.optional(ber.context(1), ber.context(3))) and crls.content:
        # The grammar says of itself that its revocation lists may be wrong: it takes them for certificates.
        raise message.fail("revocation lists cannot be read")
    infos = _take_set(message, "signerInfos")
    signers = []
    while not infos.at_end:
        signers.append(_signer(infos.enter(ber.SEQUENCE, "SignerInfo"), version, content_type))
    message.finish()
    wrapped.finish()
    outer.finish()
    if not signers:
        raise message.fail("no signer", BerFault.UNEXPECTED)
    if len({signer.attributes is None for signer in signers}) > 1:
        raise message.fail("signed attributes with one signer and none with another", BerFault.UNEXPECTED)
    return SignedData(content_type, content, certificates, signers)


def _version(reader: Reader, what: str) -> int:
    version = reader.take(ber.INTEGER).content
    if version not in (b"\x01", b"\x03"):
        raise Asn1Error(f"{what}: version {version.hex()} is not supported", BerFault.UNEXPECTED)
    return version[0]


def _take_set(message: Reader, what: str) -> Reader:
    found = message.optional(ber.SET, ber.SEQUENCE) or message.take(ber.SET)
    return Reader(found.content, what)


def _content(message: Reader) -> tuple[bytes, Element | None]:
    info = message.enter(ber.SEQUENCE, "contentInfo")
    content_type = info.take(ber.OBJECT_IDENTIFIER).content
    content = None
    if explicit := info.optional(ber.context(0)):
        inner = Reader(explicit.content, "content")
        content = inner.any()
        inner.finish()
    info.finish()
    if content_type not in (oid.DATA, oid.MS_INDIRECT_DATA):
        raise info.fail(f"data type {oid.dotted(content_type)} is not supported", BerFault.UNEXPECTED)
    return content_type, content


def _certificates(message: Reader) -> list[Certificate]:
    found = message.optional(ber.context(0), ber.context(2))
    if found is None:
        return []
    reader = Reader(found.content, "certificates")
    certificates = []
    while not reader.at_end:
        element = reader.any()
        if element.tag != ber.SEQUENCE:
            raise reader.fail(f"tag {element.tag:#04x} is no certificate")
        certificates.append(x509.parse(element.encoded))
    return certificates


def _signer(info: Reader, message_version: int, content_type: bytes) -> SignerInfo:
    version = _version(info, "SignerInfo")
    if version != message_version:
        raise info.fail(f"version {version} in a message of version {message_version}")
    signer_id, by_skid = _signer_id(info, by_skid=version == 3)
    hash_oid, _ = info.algorithm("digestAlgorithm")
    if hash_oid not in oid.HASHES:
        raise info.fail(f"digest algorithm {oid.dotted(hash_oid)} is not supported", BerFault.UNSUPPORTED)
    attributes = _Attributes(info, content_type)
    key_oid, _ = info.algorithm("digestEncryptionAlgorithm")
    if key_oid == oid.RSA_ENCRYPTION:
        key = "rsa"
    elif key_oid in oid.ECDSA_SIGNATURES:
        key = "ecdsa"
    else:
        raise info.fail(f"key algorithm {oid.dotted(key_oid)} is not supported", BerFault.UNSUPPORTED)
    signature = info.take(ber.OCTET_STRING).content
    info.optional(ber.context(1), ber.context(3))  # unsigned attributes
    info.finish()
    if content_type == oid.MS_INDIRECT_DATA and attributes.encoded is None:
        raise info.fail("Authenticode without signed attributes")
    algorithm = SignatureAlgorithm(key, oid.HASHES[hash_oid])
    signed = (attributes.encoded, attributes.message_digest, attributes.signing_time)
    return SignerInfo(signer_id, by_skid, algorithm, signature, *signed)


def _signer_id(info: Reader, *, by_skid: bool) -> tuple[bytes, bool]:
    """How the signer's certificate is named. The version decides which of the two is used, not what is there."""
    skid = serial = issuer = b""
    if found := info.optional(ber.context(0, constructed=False)):
        skid = found.content
    else:
        name = info.enter(ber.SEQUENCE, "issuerAndSerialNumber")
        issuer, _ = x509.take_name(name, "issuer")
        serial = name.take(ber.INTEGER).content
        name.finish()
    return (skid, True) if by_skid else (serial + issuer, False)


class _Attributes:
    """The signed attributes of one signer."""

    _AUTHENTICODE_ONLY = frozenset({oid.SMIME_CAPABILITIES, oid.MS_SP_OPUS_INFO, oid.MS_STATEMENT_TYPE})
    # No more than one value each, and only once.
    _SINGLE = _AUTHENTICODE_ONLY | {oid.CONTENT_TYPE, oid.SIGNING_TIME, oid.MESSAGE_DIGEST}

    def __init__(self, info: Reader, content_type: bytes) -> None:
        self.encoded: bytes | None = None
        self.message_digest: bytes | None = None
        self.signing_time: int | None = None
        self._content_type = content_type
        self._seen: set[bytes] = set()
        if found := info.optional(ber.context(0)):
            self._read(Reader(found.content, "signed attributes"))
            if not {oid.CONTENT_TYPE, oid.MESSAGE_DIGEST} <= self._seen:
                raise info.fail("signed attributes without contentType or messageDigest")
            # Signed as the SET OF that the tag [0] stands for [RFC 2315, 9.3].
            self.encoded = bytes([ber.SET]) + found.header[1:] + found.content
        elif found := info.optional(ber.context(2)):
            self._read(Reader(found.content, "signed attributes").enter(ber.SEQUENCE, "signed attributes"))

    def _read(self, attributes: Reader) -> None:
        while not attributes.at_end:
            attribute = attributes.enter(ber.SEQUENCE, "signed attribute")
            identifier = attribute.take(ber.OBJECT_IDENTIFIER).content
            values = attribute.enter(ber.SET, "signed attribute")
            attribute.finish()
            while not values.at_end:
                self._note(identifier, values.any(), values)

    def _note(self, identifier: bytes, value: Element, reader: Reader) -> None:
        if identifier not in self._SINGLE:
            return
        if identifier in self._seen:
            raise reader.fail(f"{oid.dotted(identifier)} is repeated", BerFault.FORBIDDEN)
        self._seen.add(identifier)
        if identifier == oid.CONTENT_TYPE and value.content != self._content_type:
            raise reader.fail("contentType differs from the message's")
        if identifier == oid.SIGNING_TIME:
            self.signing_time = x509.decode_time(value)
        if identifier == oid.MESSAGE_DIGEST:
            if value.tag != ber.OCTET_STRING:
                raise reader.fail("messageDigest is no OCTET STRING")
            self.message_digest = value.content
        if identifier in self._AUTHENTICODE_ONLY and self._content_type != oid.MS_INDIRECT_DATA:
            raise reader.fail(f"{oid.dotted(identifier)} outside of Authenticode", BerFault.FORBIDDEN)
