"""What an Authenticode signature signs: SpcIndirectDataContent, the digest of a PE file.

Read as Linux does (crypto/asymmetric_keys/mscode.asn1 and mscode_parser.c): the kind of file and its page hashes
are skipped over. That digest itself is made by kexecemu.formats.pe.
"""

from dataclasses import dataclass

from kexecemu.formats import ber, grammars, oid
from kexecemu.formats.algorithms import LINUX_6_1, Algorithms
from kexecemu.formats.ber import Asn1Error, BerFault, Element
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


def parse(data: bytes, algorithms: Algorithms = LINUX_6_1) -> IndirectData:
    """Read the content of an Authenticode message, tag and length included: mscode_parse().

    Asn1Error (a FormatError) if it is none: a digest algorithm that Linux's registry does not know is malformed, one
    that is known and none is unsupported.
    """
    context = _ParseContext(algorithms)
    ber.decode(grammars.MSCODE, context, data)
    return IndirectData(context.algorithm, context.digest)


class _ParseContext:
    """What the decoder's actions, here its methods, have noted."""

    def __init__(self, algorithms: Algorithms) -> None:
        self._algorithms = algorithms
        self.algorithm = ""
        self.digest = b""

    def mscode_note_content_type(self, value: Element) -> None:
        if value.content not in _CONTENT_TYPES:
            raise Asn1Error(f"Authenticode: content type {oid.dotted(value.content)} is no PE image")

    def mscode_note_digest_algo(self, value: Element) -> None:
        found, known = value.content, self._algorithms
        if found not in known.content_digests:
            fault = BerFault.UNSUPPORTED if found in known.registered else BerFault.MALFORMED
            text = f"Authenticode: {oid.dotted(found)} is no digest algorithm that is supported"
            raise Asn1Error(text, fault)
        self.algorithm = known.content_digests[found]

    def mscode_note_digest(self, value: Element) -> None:
        self.digest = value.content
