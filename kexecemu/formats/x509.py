"""X.509 certificates as Linux reads them (crypto/asymmetric_keys/x509_cert_parser.c).

cryptography's parser is not used for this: it refuses certificates that Linux takes, and the names by which Linux
looks keys up are made of a certificate's raw bytes. Loading the public key, and the names that people read, are
cryptography's part.

What Linux 6.1 does not look at is not looked at here either: key usage, basic constraints, policies, and today's date.
"""

import calendar
import warnings
from dataclasses import dataclass, field

from cryptography import x509

from kexecemu.formats import ber, oid
from kexecemu.formats.ber import Asn1Error, BerFault, Element, Reader
from kexecemu.shown import shown

__all__ = ["Certificate", "PublicKey", "SignatureAlgorithm", "decode_time", "parse", "take_name"]

_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class SignatureAlgorithm:
    """How something is signed: "rsa" or "ecdsa", with a digest of this name."""

    key: str
    hash: str


@shown()
@dataclass(frozen=True)
class PublicKey:
    """A public key: "rsa" or the kernel's name of an elliptic curve, the key itself, and its SubjectPublicKeyInfo."""

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
        except (
            Exception
        ):  # a version or a name that Linux does not look at: ValueError, TypeError, InvalidVersion ...
            return self.subject_text, self.issuer_text


def parse(data: bytes) -> Certificate:
    """Read one certificate, in BER. Asn1Error (a FormatError) for any other bytes, its fault as Linux would have it."""
    outer = Reader(data, "certificate").enter(ber.SEQUENCE, "certificate")
    signed_part = outer.take(ber.SEQUENCE)
    tbs = Reader(signed_part.content, "certificate")
    if version := tbs.optional(ber.context(0)):
        Reader(version.content, "certificate version").take(ber.INTEGER)
    serial = tbs.take(ber.INTEGER).content
    algorithm_oid, _ = tbs.algorithm("certificate's signature algorithm")
    algorithm = _signature_algorithm(algorithm_oid)
    issuer, issuer_text = take_name(tbs, "issuer")
    validity = tbs.enter(ber.SEQUENCE, "validity")
    not_before, not_after = decode_time(validity.any()), decode_time(validity.any())
    validity.finish()
    subject, subject_text = take_name(tbs, "subject")
    public_key = _public_key(tbs.take(ber.SEQUENCE))
    tbs.optional(ber.context(1, constructed=False))
    tbs.optional(ber.context(2, constructed=False))
    key_names = _extensions(tbs.optional(ber.context(3)))
    tbs.finish()
    outer_oid, _ = outer.algorithm("certificate's signature algorithm")
    signature = outer.take(ber.BIT_STRING)
    if outer_oid != algorithm_oid:
        raise outer.fail("two signature algorithms that differ", BerFault.UNEXPECTED)
    outer.finish()
    return Certificate(
        encoded=data,
        signed_part=signed_part.encoded,
        serial=serial,
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        algorithm=algorithm,
        signature=_bit_string(signature, "certificate's signature"),
        public_key=public_key,
        issuer_text=issuer_text,
        subject_text=subject_text,
        **key_names,
    )


def _signature_algorithm(identifier: bytes) -> SignatureAlgorithm:
    for key, signatures in (("rsa", oid.RSA_SIGNATURES), ("ecdsa", oid.ECDSA_SIGNATURES)):
        if identifier in signatures:
            return SignatureAlgorithm(key, signatures[identifier])
    raise Asn1Error(
        f"certificate: signature algorithm {oid.dotted(identifier)} is not supported", BerFault.UNSUPPORTED
    )


def _public_key(info: Element) -> PublicKey:
    reader = Reader(info.content, "public key")
    identifier, parameters = reader.algorithm("public key algorithm")
    value = reader.take(ber.BIT_STRING)
    if identifier == oid.RSA_ENCRYPTION:
        algorithm = "rsa"
    elif identifier == oid.EC_PUBLIC_KEY:
        curve = Reader(parameters.encoded if parameters else b"", "curve").take(ber.OBJECT_IDENTIFIER).content
        if curve not in oid.CURVES:
            raise reader.fail(f"curve {oid.dotted(curve)} is not supported", BerFault.UNSUPPORTED)
        algorithm = oid.CURVES[curve]
    else:
        raise reader.fail(f"algorithm {oid.dotted(identifier)} is not supported", BerFault.UNSUPPORTED)
    reader.finish()
    return PublicKey(algorithm, _bit_string(value, "public key"), info.encoded)


def _bit_string(element: Element, what: str) -> bytes:
    """The bytes of a BIT STRING, which must have no unused bits."""
    if element.content[:1] != b"\0":
        raise Asn1Error(f"{what}: not whole bytes")
    return element.content[1:]


def _extensions(element: Element | None) -> dict[str, bytes | None]:
    """The two extensions that name keys, as Certificate has them; all others are skipped, critical or not."""
    skid = authority = None
    if element is not None:
        outer = Reader(element.content, "extensions")
        extensions = outer.enter(ber.SEQUENCE, "extensions")
        outer.finish()
        while not extensions.at_end:
            extension = extensions.enter(ber.SEQUENCE, "extension")
            identifier = extension.take(ber.OBJECT_IDENTIFIER).content
            extension.optional(ber.BOOLEAN)
            value = extension.take(ber.OCTET_STRING).content
            extension.finish()
            if identifier == oid.SUBJECT_KEY_IDENTIFIER:
                # One octet of length only, and no second one of its kind, as x509_process_extension() has it.
                malformed = len(value) < 3 or (value[0], value[1]) != (ber.OCTET_STRING, len(value) - 2)
                if skid is not None or malformed:
                    raise Asn1Error("subjectKeyIdentifier: malformed or repeated")
                skid = value[2:]
            elif identifier == oid.AUTHORITY_KEY_IDENTIFIER:
                authority = value
    authority_id, authority_skid = (None, None) if authority is None else _authority(authority)
    return {"skid": skid, "authority_id": authority_id, "authority_skid": authority_skid}


def _authority(value: bytes) -> tuple[bytes | None, bytes | None]:
    """authority_id and authority_skid."""
    what = "authorityKeyIdentifier"
    reader = Reader(value, what).enter(ber.SEQUENCE, what)
    skid = reader.optional(ber.context(0, constructed=False))
    names = reader.optional(ber.context(1))
    issuer = _directory_name(names) if names else None
    serial = reader.optional(ber.context(2, constructed=False))
    reader.finish()
    # A serial number without an issuer names nothing.
    return serial.content + issuer if issuer and serial else None, skid.content if skid else None


def _directory_name(names: Element) -> bytes | None:
    """The last X.500 name among GeneralNames: its content octets."""
    reader = Reader(names.content, "authorityCertIssuer")
    issuer = None
    while not reader.at_end:
        if name := reader.optional(ber.context(4)):
            issuer, _ = take_name(Reader(name.content, "directoryName"), "directoryName")
        else:
            reader.any()
    return issuer


def take_name(reader: Reader, what: str) -> tuple[bytes, str]:
    """An X.500 name: its content octets, and the short text that x509_fabricate_name() makes of it.

    Organization and common name, unless the latter begins with the former; else an email address; else nothing.
    Asn1Error if it is no name.
    """
    content = reader.take(ber.SEQUENCE).content
    names = Reader(content, what)
    found: dict[bytes, str] = {}
    while not names.at_end:
        relative = names.enter(ber.SET, what)
        while not relative.at_end:
            assertion = relative.enter(ber.SEQUENCE, what)
            identifier = assertion.take(ber.OBJECT_IDENTIFIER).content
            found[identifier] = assertion.any().content.decode("utf-8", "replace")
            assertion.finish()
    common, organization = found.get(oid.COMMON_NAME, ""), found.get(oid.ORGANIZATION_NAME, "")
    if common and organization:
        alike = common.startswith(organization) or (
            len(common) >= 7 and len(organization) >= 7 and common[:7] == organization[:7]
        )
        return content, common if alike else f"{organization}: {common}"
    return content, common or organization or found.get(oid.EMAIL_ADDRESS, "")


def decode_time(element: Element) -> int:
    """x509_decode_time(): seconds since 1970 of a UTCTime or a GeneralizedTime, both to the second and in UTC.

    Asn1Error for anything else, and for a GeneralizedTime in the years that UTCTime can tell.
    """
    lengths = {ber.UTC_TIME: 13, ber.GENERALIZED_TIME: 15}
    text = element.content
    if lengths.get(element.tag) != len(text) or text[-1:] != b"Z" or not text[:-1].isdigit():
        raise Asn1Error(f"time: {text[:16]!r} is none that Linux reads")
    year = int(text[:-11])
    if element.tag == ber.UTC_TIME:
        year += 1900 if year >= 50 else 2000
    elif 1950 <= year <= 2049:
        raise Asn1Error(f"time: year {year} in a GeneralizedTime")
    month, day, hour, minute, second = (
        int(text[at : at + 2]) for at in range(len(text) - 11, len(text) - 1, 2)
    )
    days = _MONTH_DAYS[month - 1] + (month == 2 and calendar.isleap(year)) if 1 <= month <= 12 else 0
    # 24:00:00 is tomorrow's midnight, and a leap second is a second.
    if year < 1970 or not 1 <= day <= days or hour > 24 or minute > 59 or second > 60:
        raise Asn1Error(f"time: {text!r} is none")
    return calendar.timegm((year, month, day, hour, minute, second))
