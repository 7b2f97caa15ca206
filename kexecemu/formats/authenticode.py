"""What an Authenticode signature signs: SpcIndirectDataContent, the digest of a PE file.

Read as Linux does (crypto/asymmetric_keys/mscode.asn1 and mscode_parser.c): the kind of file and its page hashes
are skipped over. That digest itself is made by kexecemu.formats.pe.
"""

from dataclasses import dataclass

from kexecemu.formats import ber, oid
from kexecemu.formats.ber import BerFault, Reader
from kexecemu.shown import shown

__all__ = ["IndirectData", "parse"]

# pesign once wrote the second where the first belongs, and Linux takes both.
_CONTENT_TYPES = (oid.MS_PE_IMAGE_DATA, oid.MS_INDIVIDUAL_SP_KEY_PURPOSE)


@shown()
@dataclass(frozen=True)
class IndirectData:
    """The digest of the PE file that is being vouched for, and the name of its algorithm."""

    algorithm: str
    digest: bytes


def parse(data: bytes) -> IndirectData:
    """Read the content of an Authenticode message, tag and length included. Asn1Error (a FormatError) if it is none.

    A digest algorithm that Linux's registry does not know is malformed, one that is known and none is unsupported.
    """
    outer = Reader(data, "Authenticode").enter(ber.SEQUENCE, "SpcIndirectDataContent")
    kind = outer.enter(ber.SEQUENCE, "SpcAttributeTypeAndOptionalValue")
    content_type = kind.take(ber.OBJECT_IDENTIFIER).content
    if content_type not in _CONTENT_TYPES:
        raise kind.fail(f"content type {oid.dotted(content_type)} is no PE image")
    kind.any()
    kind.finish()
    info = outer.enter(ber.SEQUENCE, "DigestInfo")
    algorithm = info.enter(ber.SEQUENCE, "digestAlgorithm")
    hash_oid = algorithm.take(ber.OBJECT_IDENTIFIER).content
    if hash_oid not in oid.HASHES:
        fault = BerFault.UNSUPPORTED if oid.is_registered(hash_oid) else BerFault.MALFORMED
        raise algorithm.fail(f"{oid.dotted(hash_oid)} is no digest algorithm that is supported", fault)
    if not algorithm.at_end:
        algorithm.any()
    algorithm.finish()
    digest = info.take(ber.OCTET_STRING).content
    info.finish()
    outer.finish()
    return IndirectData(oid.HASHES[hash_oid], digest)
