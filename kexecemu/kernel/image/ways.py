"""The rivals of a purgatory with a map of its own (--way): what the first kernel does at the load for each.

machine-kexec needs no purgatory: machine_kexec() hashes the segments through the linear map. purgatory-trans-pgd has
one that is entered with the MMU on, over tables that the load makes in pages of the crash region, as the kernel does
for the relocation of an ordinary image (trans_pgd_idmap_page(), trans_pgd_create_copy()). The code that runs is the
guest's: fixtures/minikernel/image_check.c, fixtures/ways.
"""

import hashlib
import struct
from collections.abc import Callable

from kexecemu.errors import InputError
from kexecemu.formats import elfrel
from kexecemu.kernel.base.config import KernelConfig, Protection, Way
from kexecemu.kernel.image.digests import calculate_digest
from kexecemu.kernel.image.kimage import KEXEC_SEGMENT_MAX, Kimage, pack_segments
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_KERNEL_ROX, PROT_DEVICE
from kexecemu.machine.memory.descriptors import PXN, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["check_limit", "check_way", "keep_digest", "make_map"]

# Instructions for each byte that the dying kernel hashes: the C takes 30.
_PER_BYTE = 100


def check_way(config: KernelConfig, purgatory: elfrel.RelocatableObject | None) -> None:
    """InputError for a way that cannot be: memory that is not mapped to be hashed, a purgatory of another kind."""
    hidden = config.way in (Protection.PTE, Protection.BBML2)
    if config.check_way is Way.MACHINE_KEXEC and hidden:
        word = config.way.value
        raise InputError(
            f"way machine-kexec: with protection {word} the segments are not mapped when it would hash"
        )
    if purgatory is None:
        return
    on = purgatory.global_symbol("purgatory_mmu_is_on") is not None
    if config.check_way is Way.TRANS_PGD and not on:
        raise InputError("way purgatory-trans-pgd: this purgatory cannot be entered with the MMU on")
    if config.check_way is Way.PURGATORY and on:
        raise InputError(
            "way purgatory: this purgatory is to be entered with the MMU on, and that is another way"
        )


def keep_digest(image: Kimage) -> None:
    """For machine-kexec: the digest over all segments goes to struct kimage, in the first kernel's own memory.

    And one over those of its members by which the image is found and started.
    """
    image.digest, image.sha_regions = calculate_digest(image.segments)
    own = struct.pack("<QQ", image.start, len(image.segments))
    own += pack_segments(image.segments).ljust(KEXEC_SEGMENT_MAX * 32, b"\0")
    own += struct.pack("<Q", image.dtb_mem) + image.digest
    image.arch_members = {"image_digest": image.digest, "kimage_digest": hashlib.sha256(own).digest()}


def make_map(
    image: Kimage, ram: Ram, fmt: TableFormat, page: Callable[[], PhysRange], uart: PhysRange | None
) -> None:
    """For purgatory-trans-pgd: an identity map of what the purgatory reads and is.

    page() gives another page of the crash region for a table. Regions are read-only, and what the purgatory may write
    is not executable, where pages are small enough to part that. uart is the console's page. The tables are no segment:
    no digest covers them.
    """
    assert image.purgatory is not None

    def table() -> int:
        area = page()
        ram.fill(area.start, area.size)
        image.table_pages.append(area)
        return area.start

    tables = PageTables(ram, fmt, table(), table)

    def add(area: PhysRange, attributes: int) -> None:
        tables.map(area.start, area.start, area.size, attributes, blocks=True, contiguous=False)

    for region in image.sha_regions:
        add(region, PAGE_KERNEL_RO)
    segment = image.purgatory.segment
    written = segment.mem + len(image.purgatory.buf)
    if written % fmt.granule.size:
        add(segment.area, PAGE_KERNEL & ~PXN)
    else:
        add(PhysRange(segment.mem, written), PAGE_KERNEL_ROX)
        add(PhysRange(written, segment.area.end), PAGE_KERNEL)
    if uart is not None:
        add(uart, PROT_DEVICE)
    image.arch_members = {"ttbr0": tables.root_phys}


def check_limit(image: Kimage | None) -> int:
    """Instructions that the dying kernel's own check of an image may take before it counts as hung; 0 without one."""
    checks = image is not None and "image_digest" in image.arch_members
    return _PER_BYTE * sum(one.memsz for one in image.segments) if image is not None and checks else 0
