"""The object identifiers that matter in a signature, as Linux's registry (lib/oid_registry.c) knows them.

An identifier is kept as its encoded bytes and compared as such: two encodings of one number are two identifiers.
"""

from collections.abc import Mapping

__all__ = ["dotted", "encode", "is_registered"]


def encode(text: str) -> bytes:
    """The content octets of the identifier with this dotted name."""
    first, second, *rest = (int(arc) for arc in text.split("."))
    octets = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        octets += bytes(reversed(groups))
    return bytes(octets)


def dotted(identifier: bytes) -> str:
    """The dotted name, for messages; hexadecimal digits for bytes that are no identifier."""
    arcs: list[int] = []
    arc = 0
    for octet in identifier:
        arc = arc << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs or identifier[-1] & 0x80 or len(identifier) > 64:
        return identifier.hex() or "nothing"
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


RSA_ENCRYPTION = encode("1.2.840.113549.1.1.1")
EC_PUBLIC_KEY = encode("1.2.840.10045.2.1")

DATA = encode("1.2.840.113549.1.7.1")
SIGNED_DATA = encode("1.2.840.113549.1.7.2")

CONTENT_TYPE = encode("1.2.840.113549.1.9.3")
MESSAGE_DIGEST = encode("1.2.840.113549.1.9.4")
SIGNING_TIME = encode("1.2.840.113549.1.9.5")
SMIME_CAPABILITIES = encode("1.2.840.113549.1.9.15")
EMAIL_ADDRESS = encode("1.2.840.113549.1.9.1")

MS_INDIRECT_DATA = encode("1.3.6.1.4.1.311.2.1.4")
MS_STATEMENT_TYPE = encode("1.3.6.1.4.1.311.2.1.11")
MS_SP_OPUS_INFO = encode("1.3.6.1.4.1.311.2.1.12")
MS_PE_IMAGE_DATA = encode("1.3.6.1.4.1.311.2.1.15")
MS_INDIVIDUAL_SP_KEY_PURPOSE = encode("1.3.6.1.4.1.311.2.1.21")

COMMON_NAME = encode("2.5.4.3")
ORGANIZATION_NAME = encode("2.5.4.10")
SUBJECT_KEY_IDENTIFIER = encode("2.5.29.14")
AUTHORITY_KEY_IDENTIFIER = encode("2.5.29.35")

# Digest algorithms, by the names that hashlib and the kernel share.
HASHES: Mapping[bytes, str] = {
    encode("1.2.840.113549.2.4"): "md4",
    encode("1.2.840.113549.2.5"): "md5",
    encode("1.3.14.3.2.26"): "sha1",
    encode("2.16.840.1.101.3.4.2.1"): "sha256",
    encode("2.16.840.1.101.3.4.2.2"): "sha384",
    encode("2.16.840.1.101.3.4.2.3"): "sha512",
    encode("2.16.840.1.101.3.4.2.4"): "sha224",
}

# A digest and RSA, a digest and ECDSA, as certificates name them. md2 and md5 with RSA have numbers, but no support.
RSA_SIGNATURES: Mapping[bytes, str] = {
    encode("1.2.840.113549.1.1.3"): "md4",
    encode("1.2.840.113549.1.1.5"): "sha1",
    encode("1.2.840.113549.1.1.11"): "sha256",
    encode("1.2.840.113549.1.1.12"): "sha384",
    encode("1.2.840.113549.1.1.13"): "sha512",
    encode("1.2.840.113549.1.1.14"): "sha224",
}
ECDSA_SIGNATURES: Mapping[bytes, str] = {
    encode("1.2.840.10045.4.1"): "sha1",
    encode("1.2.840.10045.4.3.1"): "sha224",
    encode("1.2.840.10045.4.3.2"): "sha256",
    encode("1.2.840.10045.4.3.3"): "sha384",
    encode("1.2.840.10045.4.3.4"): "sha512",
}
CURVES: Mapping[bytes, str] = {
    encode("1.2.840.10045.3.1.1"): "ecdsa-nist-p192",
    encode("1.2.840.10045.3.1.7"): "ecdsa-nist-p256",
    encode("1.3.132.0.34"): "ecdsa-nist-p384",
}

# All that have a name here, and three that have none.
_REGISTERED = {named for named in globals().values() if isinstance(named, bytes)}
_REGISTERED |= {encode("1.2.840.113549.1.1.2"), encode("1.2.840.113549.2.2")}  # md2WithRSAEncryption, md2
_REGISTERED |= {encode("1.2.156.10197.1.401")}  # sm3


def is_registered(identifier: bytes) -> bool:
    """The kernel's registry has it. Of that list, those are here that could turn up where an algorithm belongs."""
    tables = (_REGISTERED, HASHES, RSA_SIGNATURES, ECDSA_SIGNATURES, CURVES)
    return any(identifier in table for table in tables)
