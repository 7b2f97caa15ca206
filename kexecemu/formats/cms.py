"""A signed message: SignedData of PKCS#7 and CMS, as Linux reads it (crypto/asymmetric_keys/pkcs7_parser.c).

What is read here is only checked as far as the kernel's parser checks it; whether any signature holds is the
concern of kexecemu.kernel.signature.pkcs7. The checks come in the order of the bytes, as there: the first one that
fails decides the errno.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kexecemu.formats import asn1, ber, grammars, oid, x509
from kexecemu.formats.algorithms import LINUX_6_1, Algorithms, SignatureAlgorithm
from kexecemu.formats.ber import Asn1Error, BerFault, Element
from kexecemu.formats.x509 import Certificate
from kexecemu.formats.x509_values import decode_time
from kexecemu.shown import shown

__all__ = ["SignedContent", "SignedData", "SignerInfo", "parse"]


@shown()
class SignedContent(NamedTuple):
    """The signed value: what is digested of it, and all of it as in the file."""

    content: bytes
    encoded: bytes


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
    """A message. content is None where the message carries none."""

    content_type: bytes
    content: SignedContent | None = field(repr=False)
    certificates: Sequence[Certificate]
    signers: Sequence[SignerInfo]


def parse(
    data: bytes,
    algorithms: Algorithms = LINUX_6_1,
    on_certificate: Callable[[Certificate], None] = lambda certificate: None,
) -> SignedData:
    """Read a whole message: pkcs7_parse_message(). Bytes behind it are ignored, as there.

    on_certificate is called for each certificate when it has been read, those in revocation lists included: whatever
    it raises, the kernel would find before it reads on. Asn1Error (a FormatError) for anything else; its fault tells a
    malformed message from one that Linux does not support or does not want.
    """
    context = _ParseContext(algorithms, on_certificate)
    ber.decode(grammars.PKCS7, context, data)
    return context.message()


def _fail(text: str, fault: BerFault = BerFault.MALFORMED) -> Asn1Error:
    return Asn1Error(f"signature: {text}", fault)


class _Signer:
    """struct pkcs7_signed_info, while it is being read."""

    def __init__(self) -> None:
        self.hash = ""
        self.key = ""
        self.signature = b""
        self.attributes: bytes | None = None
        self.message_digest: bytes | None = None
        self.signing_time: int | None = None
        self.seen: set[bytes] = set()


_AUTHENTICODE_ONLY = frozenset({oid.SMIME_CAPABILITIES, oid.MS_SP_OPUS_INFO, oid.MS_STATEMENT_TYPE})
# No more than one value each, and only once.
_SINGLE = _AUTHENTICODE_ONLY | {oid.CONTENT_TYPE, oid.SIGNING_TIME, oid.MESSAGE_DIGEST}


class _ParseContext:
    """struct pkcs7_parse_context: what the decoder's actions, here its methods, have noted.

    What names a signer is kept from one signer to the next, as there: one of version 3 without a key identifier goes by
    that of the signer before it.
    """

    def __init__(self, algorithms: Algorithms, on_certificate: Callable[[Certificate], None]) -> None:
        self._algorithms = algorithms
        self._on_certificate = on_certificate
        self._last_oid = b""
        self._version = 0
        self._content_type = b""
        self._content: SignedContent | None = None
        self._read: list[Certificate] = []
        self._certificates: list[Certificate] = []
        self._signer = _Signer()
        self._signers: list[SignerInfo] = []
        self._by_skid = False
        self._serial = self._issuer = self._skid = b""

    def message(self) -> SignedData:
        """What was read: the end of pkcs7_parse_message(), with pkcs7_check_authattrs()."""
        if not self._signers:
            raise _fail("no signer", BerFault.UNEXPECTED)
        if len({signer.attributes is None for signer in self._signers}) > 1:
            raise _fail("signed attributes with one signer and none with another", BerFault.UNEXPECTED)
        signers = list(map(_without_digest, self._signers))
        return SignedData(self._content_type, self._content, self._certificates, signers)

    def pkcs7_note_oid(self, value: Element) -> None:
        self._last_oid = value.content

    def pkcs7_check_content_type(self, value: Element) -> None:
        if self._last_oid != oid.SIGNED_DATA:
            raise _fail(f"content type {oid.dotted(self._last_oid)} is not signedData", BerFault.UNEXPECTED)

    def pkcs7_note_signeddata_version(self, value: Element) -> None:
        self._version = _version(value, "SignedData")

    def pkcs7_note_content(self, value: Element) -> None:
        if self._last_oid not in (oid.DATA, oid.MS_INDIRECT_DATA):
            raise _fail(f"data type {oid.dotted(self._last_oid)} is not supported", BerFault.UNEXPECTED)
        self._content_type = self._last_oid

    def pkcs7_note_data(self, value: Element) -> None:
        self._content = SignedContent(value.content, value.encoded)

    def pkcs7_extract_cert(self, value: Element) -> None:
        if value.tag != asn1.SEQUENCE:
            raise _fail(f"tag {value.tag:#04x} is no certificate")
        # The end-of-contents octets are in the content already, and are added once more.
        behind = value.data[value.end : value.end + 2] if value.data[value.at + 1] == 0x80 else b""
        certificate = x509.parse(value.encoded, self._algorithms, behind)
        self._on_certificate(certificate)
        self._read.append(certificate)

    def pkcs7_note_certificate_list(self, value: Element) -> None:
        # What is read later, in revocation lists, is dropped.
        self._certificates, self._read = self._read, []

    def pkcs7_note_signerinfo_version(self, value: Element) -> None:
        version = _version(value, "SignerInfo")
        if version != self._version:
            raise _fail(f"SignerInfo: version {version} in a message of version {self._version}")
        self._by_skid = version == 3

    def pkcs7_sig_note_issuer(self, value: Element) -> None:
        self._issuer = value.content

    def pkcs7_sig_note_serial(self, value: Element) -> None:
        self._serial = value.content

    def pkcs7_sig_note_skid(self, value: Element) -> None:
        self._skid = value.content

    def pkcs7_sig_note_digest_algo(self, value: Element) -> None:
        found = self._last_oid
        if found not in self._algorithms.digests:
            raise _fail(f"digest algorithm {oid.dotted(found)} is not supported", BerFault.UNSUPPORTED)
        self._signer.hash = self._algorithms.digests[found]

    def pkcs7_sig_note_pkey_algo(self, value: Element) -> None:
        found = self._last_oid
        if found not in self._algorithms.signer_keys:
            raise _fail(f"key algorithm {oid.dotted(found)} is not supported", BerFault.UNSUPPORTED)
        self._signer.key = self._algorithms.signer_keys[found]

    def pkcs7_sig_note_signature(self, value: Element) -> None:
        self._signer.signature = value.content

    def pkcs7_sig_note_authenticated_attr(self, value: Element) -> None:
        signer, identifier = self._signer, self._last_oid
        if identifier not in _SINGLE:
            return
        if identifier in signer.seen:
            raise _fail(f"signed attribute {oid.dotted(identifier)} is repeated", BerFault.FORBIDDEN)
        signer.seen.add(identifier)
        if identifier == oid.CONTENT_TYPE and value.content != self._content_type:
            raise _fail("the attribute contentType differs from the message's")
        if identifier == oid.SIGNING_TIME:
            signer.signing_time = decode_time(value.tag, value.content)
        if identifier == oid.MESSAGE_DIGEST:
            if value.tag != asn1.OCTET_STRING:
                raise _fail("messageDigest is no OCTET STRING")
            signer.message_digest = value.content
        if identifier in _AUTHENTICODE_ONLY and self._content_type != oid.MS_INDIRECT_DATA:
            text = f"signed attribute {oid.dotted(identifier)} outside of Authenticode"
            raise _fail(text, BerFault.FORBIDDEN)

    def pkcs7_sig_note_set_of_authattrs(self, value: Element) -> None:
        if not {oid.CONTENT_TYPE, oid.MESSAGE_DIGEST} <= self._signer.seen:
            raise _fail("signed attributes without contentType or messageDigest")
        # Signed as the SET OF that the tag [0] stands for [RFC 2315, 9.3].
        self._signer.attributes = bytes([asn1.SET]) + value.encoded[1:]

    def pkcs7_note_signed_info(self, value: Element) -> None:
        signer, self._signer = self._signer, _Signer()
        if self._content_type == oid.MS_INDIRECT_DATA and signer.attributes is None:
            raise _fail("Authenticode without signed attributes")
        signer_id = self._skid if self._by_skid else self._serial + self._issuer
        algorithm = SignatureAlgorithm(signer.key, signer.hash)
        signed = (signer.attributes, signer.message_digest, signer.signing_time)
        self._signers.append(SignerInfo(signer_id, self._by_skid, algorithm, signer.signature, *signed))


def _version(value: Element, what: str) -> int:
    version = value.content
    if version not in (b"\x01", b"\x03"):
        raise _fail(f"{what}: version {version.hex()} is not supported", BerFault.UNEXPECTED)
    return version[0]


def _without_digest(signer: SignerInfo) -> SignerInfo:
    """ML-DSA signs the content itself, unless there are attributes (7.3)."""
    if signer.attributes is None and signer.algorithm.key.startswith("mldsa"):
        return replace(signer, algorithm=SignatureAlgorithm(signer.algorithm.key, "none"))
    return signer
