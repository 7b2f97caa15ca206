"""Where a capture kernel's memory went, by lines that Debian's kernels printed and by the pages that were touched."""

from __future__ import annotations

import pytest

from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.sizing.memory import Memory, memory_of

M = 1 << 20
REGION = PhysRange.of(0x40000000, 16 * M)

# As Debian's 6.1 and 7.3 printed them in crash memory, with CMA put where this memory is.
OF_6_1 = """\
[    0.000000] cma: Reserved 4 MiB at 0x0000000040800000 on node -1
[    0.000000] software IO TLB: mapped [mem 0x000000006ad00000-0x000000006ae00000] (1MB)
[    0.000000] Memory: 15176K/114688K available (12096K kernel code, 2022K rwdata, 7824K rodata, 4608K init, 588K bss, \
33976K reserved, 65536K cma-reserved)
[    0.602373] Freeing initrd memory: 1960K
[    0.963665] Mem-Info:
[    0.963709] active_anon:0 inactive_anon:480 isolated_anon:0
 slab_reclaimable:1020 slab_unreclaimable:2011
"""
OF_7_3 = """\
[    0.000000] cma: Reserved 4 MiB at 0x0000000040800000
[    0.000000] software IO TLB: mapped [mem 0x000000007fa9c000-0x000000007fadc000] (0MB)
[    0.173627] Memory: 142220K/262144K available (17472K kernel code, 5038K rwdata, 15592K rodata, 2560K init, \
836K bss, 51240K reserved, 65536K cma-reserved)
[    1.546603] Freeing initrd memory: 1876K
"""


@pytest.fixture
def ram() -> Ram:
    return Ram([REGION, PhysRange.of(0x80000000, 4 * M)])


def test_what_a_kernel_says_is_read_of_old_and_new_lines(ram: Ram) -> None:
    old, new = (memory_of(log, ram, [REGION]) for log in (OF_6_1, OF_7_3))
    assert (old.total, old.available, old.reserved) == (114688 << 10, 15176 << 10, 33976 << 10)
    assert old.kernel == (12096 + 2022 + 7824 + 4608 + 588) << 10
    assert old.rest == old.reserved - old.kernel
    assert (old.swiotlb, old.initrd, old.slab) == (1 * M, 1960 << 10, (1020 + 2011) * 4096)
    assert (new.total, new.available, new.reserved) == (262144 << 10, 142220 << 10, 51240 << 10)
    assert (new.swiotlb, new.initrd, new.slab) == (0x40000, 1876 << 10, None)
    assert memory_of(OF_6_1, ram, [REGION], page_size=65536).slab == (1020 + 2011) * 65536


def test_what_was_never_touched_is_unused_but_for_cma(ram: Ram) -> None:
    ram.write(REGION.start, b"kernel")
    ram.write(REGION.start + 8 * M, b"in CMA")
    ram.write(REGION.start + 12 * M - 1, b"one byte of it, and one behind it")
    ram.write(0x80000000, b"not ours")
    found = memory_of(OF_7_3, ram, [REGION])
    assert (found.cma, found.cma_unused) == (4 * M, 4 * M - 2 * 4096)
    assert found.unused == 12 * M - 2 * 4096
    both = memory_of(OF_7_3, ram, [REGION, PhysRange.of(0x80000000, 4 * M)])
    assert both.unused == found.unused + 4 * M - 4096


def test_cma_that_is_not_in_the_memory_is_not_its_own(ram: Ram) -> None:
    """The lines of the first kernel, or of one that was stamped on."""
    for address in ("0x00000000f8000000", "0x0000000040d00000"):
        found = memory_of(f"cma: Reserved 4 MiB at {address}", ram, [REGION])
        assert (found.cma, found.cma_unused, found.unused) == (0, 0, 16 * M)


def test_a_silent_kernel_leaves_what_it_touched(ram: Ram) -> None:
    ram.write(REGION.start, b"x")
    assert memory_of("", ram, [REGION]) == Memory(16 * M - 4096)
    assert memory_of("", ram, [REGION]).rest is None


def test_of_lines_that_come_twice_the_last_counts(ram: Ram) -> None:
    log = "Freeing initrd memory: 8K\nFreeing initrd memory: 12K\n"
    assert memory_of(log, ram, [REGION]).initrd == 12 << 10


def test_a_buffer_that_ends_before_it_begins_is_none(ram: Ram) -> None:
    assert memory_of("software IO TLB: mapped [mem 0x2000-0x1000] (0MB)", ram, [REGION]).swiotlb == 0
