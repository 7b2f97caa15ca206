"""X.509 certificates as Linux reads them (crypto/asymmetric_keys/x509_cert_parser.c).

cryptography's parser is not used for this: it refuses certificates that Linux takes, and the names by which Linux
looks keys up are made of a certificate's raw bytes. Loading the public key, and the names that people read, are
cryptography's part.

What Linux does not look at is not looked at here either: policies, unknown critical extensions, and today's date; key
usage and basic constraints must be well-formed since 6.4, and that is all.
"""

import warnings
from dataclasses import dataclass, field

from cryptography import x509

from kexecemu.formats import asn1, ber, grammars, oid
from kexecemu.formats.algorithms import LINUX_6_1, Algorithms, SignatureAlgorithm
from kexecemu.formats.ber import Asn1Error, BerFault, Element
from kexecemu.formats.x509_values import NameSegments, decode_time, written
from kexecemu.shown import shown

__all__ = ["Certificate", "PublicKey", "parse"]


@shown()
@dataclass(frozen=True)
class PublicKey:
    """A public key: "rsa" or the kernel's name of its kind, the key itself, and both as SubjectPublicKeyInfo in DER.

    The latter is written anew, of what the kernel takes out of the certificate's.
    """

    algorithm: str
    key: bytes
    encoded: bytes = field(repr=False)


@shown()
@dataclass(frozen=True)
class Certificate:
    """One certificate.

    serial, issuer and subject are the raw content octets; the times are seconds since 1970. skid is its
    subjectKeyIdentifier; authority_id (serial and issuer) and authority_skid are what its authorityKeyIdentifier
    says of the certificate that it was signed with. Each of the three may be missing.
    """

    encoded: bytes = field(repr=False)
    signed_part: bytes = field(repr=False)
    serial: bytes
    issuer: bytes
    subject: bytes
    not_before: int
    not_after: int
    algorithm: SignatureAlgorithm
    signature: bytes = field(repr=False)
    public_key: PublicKey
    issuer_text: str
    subject_text: str
    skid: bytes | None
    authority_id: bytes | None
    authority_skid: bytes | None

    @property
    def id(self) -> bytes:
        """The first name by which the key is looked up: serial number and issuer."""
        return self.serial + self.issuer

    @property
    def description(self) -> str:
        """The key's description in a keyring, as "Loaded X.509 cert '...'" prints it."""
        return f"{self.subject_text}: {(self.skid or self.serial).hex()}"

    @property
    def subject_name(self) -> str:
        """The subject in full (RFC 4514); the kernel's short text where cryptography cannot read the certificate."""
        return self._names()[0]

    @property
    def issuer_name(self) -> str:
        """The issuer, likewise."""
        return self._names()[1]

    def _names(self) -> tuple[str, str]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of certificates that are odd and readable
                read = x509.load_der_x509_certificate(self.encoded)
                return read.subject.rfc4514_string(), read.issuer.rfc4514_string()
        except Exception:  # of many kinds: it refuses what Linux does not look at, a version of 5 for one
            return self.subject_text, self.issuer_text


def parse(data: bytes, algorithms: Algorithms = LINUX_6_1, behind: bytes = b"") -> Certificate:
    """Read one certificate, in BER: x509_cert_parse(), but for its own signature, if it signed itself.

    behind is what the kernel, which counts two octets too many, reads behind the last one of a certificate of
    indefinite length in a message. Asn1Error (a FormatError) for any other bytes, its fault as Linux would have it.
    """
    context = _ParseContext(algorithms)
    ber.decode(grammars.X509, context, data + behind)
    if context.authority is not None:
        ber.decode(algorithms.authority, context, context.authority)
    return context.certificate(data)


class _ParseContext:
    """struct x509_parse_context: what the decoder's actions, here its methods, have noted."""

    def __init__(self, algorithms: Algorithms) -> None:
        self._algorithms = algorithms
        self._last_oid = b""
        self._names = NameSegments()
        self._noted: dict[str, bytes] = {}
        self._times: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._signature_oid = b""
        self._parameters = b""
        self._key: PublicKey | None = None
        self._akid_issuer: bytes | None = None
        self.authority: bytes | None = None

    def certificate(self, data: bytes) -> Certificate:
        """What was read; the grammar has let nothing through that lacks something."""
        noted, key = self._noted, self._key
        assert key is not None
        return Certificate(
            encoded=data,
            signed_part=noted["signed part"],
            serial=noted["serial"],
            issuer=noted["issuer"],
            subject=noted["subject"],
            not_before=self._times["not before"],
            not_after=self._times["not after"],
            algorithm=self._algorithms.signatures[self._signature_oid],
            signature=noted["signature"],
            public_key=key,
            issuer_text=self._texts["issuer"],
            subject_text=self._texts["subject"],
            skid=noted.get("skid"),
            authority_id=noted.get("authority id"),
            authority_skid=noted.get("authority skid"),
        )

    def x509_note_oid(self, value: Element) -> None:
        self._last_oid = value.content

    def x509_note_tbs_certificate(self, value: Element) -> None:
        self._noted["signed part"] = value.encoded

    def x509_note_serial(self, value: Element) -> None:
        self._noted["serial"] = value.content

    def x509_note_sig_algo(self, value: Element) -> None:
        if self._last_oid not in self._algorithms.signatures:
            raise _unsupported("signature algorithm", self._last_oid)
        self._signature_oid = self._last_oid

    def x509_note_signature(self, value: Element) -> None:
        if self._last_oid != self._signature_oid:
            raise Asn1Error("certificate: two signature algorithms that differ", BerFault.UNEXPECTED)
        self._noted["signature"] = _bit_string(value, "certificate's signature")

    def x509_extract_name_segment(self, value: Element) -> None:
        self._names.note(self._last_oid, value.content)

    def x509_note_issuer(self, value: Element) -> None:
        self._noted["issuer"], self._texts["issuer"] = value.content, self._names.fabricate()

    def x509_note_subject(self, value: Element) -> None:
        self._noted["subject"], self._texts["subject"] = value.content, self._names.fabricate()

    def x509_note_not_before(self, value: Element) -> None:
        self._times["not before"] = decode_time(value.tag, value.content)

    def x509_note_not_after(self, value: Element) -> None:
        self._times["not after"] = decode_time(value.tag, value.content)

    def x509_note_params(self, value: Element) -> None:
        # An AlgorithmIdentifier comes three times; that of the key comes between the subject and the key.
        if "subject" in self._noted and self._key is None:
            self._parameters = value.encoded

    def x509_extract_key_data(self, value: Element) -> None:
        known, parameters = self._algorithms, b"\x05\x00"
        if self._last_oid in known.public_keys:
            algorithm = known.public_keys[self._last_oid]
        elif self._last_oid == oid.EC_PUBLIC_KEY:
            algorithm, parameters = self._curve(), self._parameters
        else:
            raise _unsupported("public key algorithm", self._last_oid)
        key = _bit_string(value, "public key")
        kind = written(asn1.OBJECT_IDENTIFIER, self._last_oid) + parameters
        info = written(asn1.SEQUENCE, kind) + written(asn1.BIT_STRING, b"\0" + key)
        self._key = PublicKey(algorithm, key, written(asn1.SEQUENCE, info))

    def _curve(self) -> str:
        """parse_OID(): the parameters must be an identifier with one octet of length."""
        given = self._parameters
        if len(given) < 3 or (given[0], given[1]) != (asn1.OBJECT_IDENTIFIER, len(given) - 2):
            raise Asn1Error("public key: its curve is not named")
        if given[2:] not in self._algorithms.curves:
            raise _unsupported("curve", given[2:])
        return self._algorithms.curves[given[2:]]

    def x509_process_extension(self, value: Element) -> None:
        content = value.content
        if self._last_oid == oid.SUBJECT_KEY_IDENTIFIER:
            # One octet of length only, and no second one of its kind.
            malformed = len(content) < 3 or (content[0], content[1]) != (asn1.OCTET_STRING, len(content) - 2)
            if "skid" in self._noted or malformed:
                raise Asn1Error("subjectKeyIdentifier: malformed or repeated")
            self._noted["skid"] = content[2:]
        elif self._last_oid == oid.AUTHORITY_KEY_IDENTIFIER:
            self.authority = content
        elif self._algorithms.reads_usage and self._last_oid == oid.KEY_USAGE:
            if len(content) < 4 or content[0] != asn1.BIT_STRING or content[2] >= 8:
                raise Asn1Error("keyUsage: malformed")
        elif self._algorithms.reads_usage and self._last_oid == oid.BASIC_CONSTRAINTS:
            _check_basic_constraints(content)

    def x509_akid_note_kid(self, value: Element) -> None:
        self._noted["authority skid"] = value.content

    def x509_akid_note_name(self, value: Element) -> None:
        self._akid_issuer = value.content  # the last of several

    def x509_akid_note_serial(self, value: Element) -> None:
        if self._akid_issuer is not None:  # a serial number without an issuer names nothing
            self._noted["authority id"] = value.content + self._akid_issuer


def _check_basic_constraints(content: bytes) -> None:
    """Empty, or true as DER writes it; what follows is not looked at."""
    if len(content) < 2 or (content[0], content[1]) != (asn1.SEQUENCE, len(content) - 2):
        raise Asn1Error("basicConstraints: malformed")
    if content[1] and content[2:5] != bytes([asn1.BOOLEAN, 1, 0xFF]):
        raise Asn1Error("basicConstraints: neither empty nor a CA's")


def _unsupported(what: str, identifier: bytes) -> Asn1Error:
    return Asn1Error(f"certificate: {what} {oid.dotted(identifier)} is not supported", BerFault.UNSUPPORTED)


def _bit_string(value: Element, what: str) -> bytes:
    """The bytes of a BIT STRING, which must have no unused bits."""
    content = value.content
    if content[:1] != b"\0":
        raise Asn1Error(f"{what}: not whole bytes")
    return content[1:]
