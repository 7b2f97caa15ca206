"""The digest over a loaded crash image, as kexec_calculate_store_digests() computes it (kernel/kexec_file.c).

And finer ones, by which a purgatory can say what it is that changed: one for each region, one for each page.
"""

import hashlib
import struct
from collections.abc import Sequence

from kexecemu.kernel.image.kimage import COPY, IMA, PAGE_DIGESTS, Segment
from kexecemu.machine.ranges import PhysRange

__all__ = ["PURGATORY_PAGE_SIZE", "calculate_digest", "described_segments", "hashed_segments"]
__all__ += ["pack_sha_regions", "page_digests", "page_digests_size", "region_digests"]

PURGATORY_PAGE_SIZE = 4096
_SHA_REGIONS = 16  # KEXEC_SEGMENT_MAX entries, the purgatory's array has exactly this many
_DIGEST_SIZE = 32


def hashed_segments(segments: Sequence[Segment]) -> list[Segment]:
    """The regions: what the digest covers, in kimage order.

    The purgatory is not among them, which could not contain its own digest, and the second copy is not, which is
    there to be used only when the first one is damaged and then is judged by the first one's digest. Nor is a list of
    IMA's that is filled at the reboot only (check_ima_segment_index()).
    """
    return [one for one in segments if one.name not in ("purgatory", COPY) and (one.name != IMA or one.buf)]


def described_segments(segments: Sequence[Segment]) -> list[Segment]:
    """The regions but the table of page digests: what the table describes and the copy repeats."""
    return [one for one in hashed_segments(segments) if one.name != PAGE_DIGESTS]


def calculate_digest(segments: Sequence[Segment]) -> tuple[bytes, list[PhysRange]]:
    """One running SHA-256 over all segments but purgatory and copy, in kimage order, and the regions it covers.

    What is hashed is the source buffer followed by zeros up to memsz, before anything is copied to memory: exactly
    what memory must hold later. There is no framing between segments. Returns (32 bytes, physical ranges).
    """
    digest = hashlib.sha256()
    regions = hashed_segments(segments)
    for segment in regions:
        digest.update(segment.content())
    return digest.digest(), [segment.area for segment in regions]


def region_digests(regions: Sequence[Segment]) -> bytes:
    """u8 purgatory_region_digests[16][32]: the SHA-256 of each region by itself, unused entries zero."""
    packed = b"".join(hashlib.sha256(segment.content()).digest() for segment in regions)
    return packed.ljust(_SHA_REGIONS * _DIGEST_SIZE, b"\0")


def page_digests(segments: Sequence[Segment]) -> bytes:
    """The table of page digests: the SHA-256 of every 4096 bytes of every segment, in order, zeros included.

    Costs 32 bytes a page (0.8 % of the image) in the crash region, and the time to hash the image once more.
    """
    return b"".join(
        hashlib.sha256(content[at : at + PURGATORY_PAGE_SIZE]).digest()
        for content in (one.content() for one in segments)
        for at in range(0, len(content), PURGATORY_PAGE_SIZE)
    )


def page_digests_size(memsz: Sequence[int]) -> int:
    """How many bytes page_digests() takes for segments of so many bytes in memory; the last page may be a part."""
    return _DIGEST_SIZE * sum(-(-size // PURGATORY_PAGE_SIZE) for size in memsz)


def pack_sha_regions(regions: Sequence[PhysRange]) -> bytes:
    """struct kexec_sha_region purgatory_sha_regions[16]: {start, len} pairs of u64, unused entries zero."""
    packed = b"".join(struct.pack("<QQ", region.start, region.size) for region in regions)
    return packed.ljust(_SHA_REGIONS * 16, b"\0")
