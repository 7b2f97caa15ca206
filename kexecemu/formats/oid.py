"""Object identifiers: how they are encoded, and those that matter in a signature (lib/oid_registry.c).

An identifier is kept as its encoded bytes and compared as such: two encodings of one number are two identifiers.
Which algorithms a kernel knows depends on its release: kexecemu.formats.algorithms.
"""

__all__ = ["dotted", "encode"]


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
KEY_USAGE = encode("2.5.29.15")
BASIC_CONSTRAINTS = encode("2.5.29.19")
AUTHORITY_KEY_IDENTIFIER = encode("2.5.29.35")
