"""The digest over a loaded crash image, as kexec_calculate_store_digests() computes it (kernel/kexec_file.c)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from kexecemu.kernel.kimage import Segment
from kexecemu.machine.ranges import PhysRange

__all__ = ["calculate_digest", "pack_sha_regions"]

_ZEROS = bytes(1 << 16)
_SHA_REGIONS = 16  # KEXEC_SEGMENT_MAX entries, the purgatory's array has exactly this many


def calculate_digest(segments: Sequence[Segment]) -> tuple[bytes, list[PhysRange]]:
    """One running SHA-256 over all segments but the purgatory, in kimage order, and the regions it covers.

    What is hashed is the source buffer followed by zeros up to memsz, before anything is copied to memory: exactly
    what memory must hold later. There is no framing between segments. Returns (32 bytes, physical ranges).
    """
    digest = hashlib.sha256()
    regions: list[PhysRange] = []
    for segment in segments:
        if segment.name == "purgatory":
            continue  # it could not contain its own digest
        digest.update(segment.buf)
        left = segment.memsz - segment.bufsz
        while left > 0:
            digest.update(_ZEROS[: min(left, len(_ZEROS))])
            left -= len(_ZEROS)
        regions.append(segment.area)
    return digest.digest(), regions


def pack_sha_regions(regions: Sequence[PhysRange]) -> bytes:
    """struct kexec_sha_region purgatory_sha_regions[16]: {start, len} pairs of u64, unused entries zero."""
    packed = b"".join(struct.pack("<QQ", region.start, region.size) for region in regions)
    return packed.ljust(_SHA_REGIONS * 16, b"\0")
