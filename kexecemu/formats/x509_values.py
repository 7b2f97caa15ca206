"""Values of a certificate that need more than to be noted: names, times; and DER for what is written anew.

x509_fabricate_name() and x509_decode_time() of crypto/asymmetric_keys/x509_cert_parser.c.
"""

import calendar

from kexecemu.formats import asn1, oid
from kexecemu.formats.ber import Asn1Error

__all__ = ["NameSegments", "decode_time", "written"]

_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class NameSegments:
    """The segments of an X.500 name of which its short text is made."""

    _KINDS = (oid.COMMON_NAME, oid.ORGANIZATION_NAME, oid.EMAIL_ADDRESS)

    def __init__(self) -> None:
        self._found: dict[bytes, bytes] = {}

    def note(self, kind: bytes, value: bytes) -> None:
        """x509_extract_name_segment(): the last of a kind counts."""
        if kind in self._KINDS:
            self._found[kind] = value

    def fabricate(self) -> str:
        """x509_fabricate_name(): the text of what was noted since the last one.

        Organization and common name, unless the latter begins with the former; else an email address; else nothing.
        """
        common, organization, email = (self._found.get(kind, b"") for kind in self._KINDS)
        self._found = {}
        if common and organization and not _alike(common, organization):
            return _text(organization) + ": " + _text(common)
        return _text(common or organization or email)


def _alike(common: bytes, organization: bytes) -> bool:
    shared = min(len(common), len(organization)) >= 7 and common[:7] == organization[:7]
    return common.startswith(organization) or shared


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def decode_time(tag: int, text: bytes) -> int:
    """x509_decode_time(): seconds since 1970 of a UTCTime or a GeneralizedTime, both to the second and in UTC.

    Asn1Error for anything else, and for a GeneralizedTime in the years that UTCTime can tell.
    """
    lengths = {asn1.UTC_TIME: 13, asn1.GENERALIZED_TIME: 15}
    if lengths.get(tag) != len(text) or text[-1:] != b"Z" or not text[:-1].isdigit():
        raise Asn1Error(f"time: {text[:16]!r} is none that Linux reads")
    year = int(text[:-11])
    if tag == asn1.UTC_TIME:
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


def written(tag: int, content: bytes) -> bytes:
    """One value in DER."""
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
