"""Ordinary images in the CMA area: where they lie there, what is not moved then, and when no digest is kept."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import IMAGE, INITRD, MIB, arm64_image

from kexecemu.crash.damage import find_damage
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.kimage import IND_DONE, KEXEC_FILE_NO_CMA, Kimage
from kexecemu.kernel.load.contiguous import first_fit
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

NOTHING = hashlib.sha256(b"").digest()
PAGE = 4096


def booted(era: str = "7.3", cma: int = 64, ram: str = "1G", purgatory: bool = True, **more: str) -> Kernel:
    options = {"CMA_SIZE_MBYTES": str(cma), **more}
    config = KernelConfig(era, purgatory=purgatory, options=options)
    return Kernel.boot(Board(ram), config, cmdline="crashkernel=128M")


def load(kernel: Kernel, flags: int = 0, image: bytes = IMAGE, initrd: bytes = INITRD) -> Kimage:
    loaded = kernel.kexec_file_load(image, initrd, "panic=5", flags=flags)
    assert loaded is not None
    return loaded


# -- cma_alloc() -----------------------------------------------------------------------------------------------


@given(
    start=st.integers(0, 600).map(lambda number: number * PAGE),
    pages=st.integers(1, 1200),
    taken=st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 60)), max_size=5),
    count=st.integers(1, 400),
    order=st.integers(0, 10),
)
def test_the_first_fit_is_that_of_a_bitmap_gone_through_page_by_page(
    start: int, pages: int, taken: list[tuple[int, int]], count: int, order: int
) -> None:
    area = PhysRange.of(start, pages * PAGE)
    places = [PhysRange.of(start + at * PAGE, size * PAGE) for at, size in taken]
    used = {page for one in places for page in range(one.start, one.end, PAGE)}
    mask = (1 << min(order, 8)) * PAGE
    wanted = next(
        (
            at
            for at in range(area.start, area.end - count * PAGE + 1, PAGE)
            if at % mask == 0 and not any(at + number * PAGE in used for number in range(count))
        ),
        None,
    )
    assert first_fit(area, places, count * PAGE, PAGE << order, PAGE) == wanted


# -- images ----------------------------------------------------------------------------------------------------


# Linux 7.3.4 built with DMA_CMA=y, in QEMU's virt with 1 CPU: kexec_file_load() with KEXEC_FILE_DEBUG.
REAL = [
    ("512M", "crashkernel=128M", 0x5BD00000, 0x5BC20000, 0x5C300000),
    ("665M", "crashkernel=128M cma=6M", 0x68D00000, 0x68C20000, 0x69300000),
    ("3627M", "crashkernel=128M cma=6M", 0xFF900000, 0xFFE40000, 0xFFF00000),
    # Two pools of 1 MiB each, and then no room for the device tree.
    ("7G", "crashkernel=96M cma=6M", 0xFFA00000, 0xFFF40000, None),
]


@pytest.mark.parametrize(("ram", "cmdline", "kernel_at", "initrd_at", "dtb_at"), REAL)
def test_they_lie_where_a_real_kernel_put_them(
    ram: str, cmdline: str, kernel_at: int, initrd_at: int, dtb_at: int | None
) -> None:
    options = {"CMA_SIZE_MBYTES": "64", "HUGETLB_PAGE": "n", "NUMA": "n", "ARM64_VA_BITS": "48"}
    kernel = Kernel.boot(Board(ram), KernelConfig("7.3", purgatory=False, options=options), cmdline=cmdline)
    image = load(kernel, image=arm64_image(0x4CC808, image_size=0x540000), initrd=bytes(100000))
    found = {one.name: one.mem if one.cma else None for one in image.segments}
    assert found == {"kernel": kernel_at, "initrd": initrd_at, "dtb": dtb_at}
    assert (image.head == IND_DONE) is (dtb_at is not None)


def test_segments_are_put_behind_the_atomic_pool_at_256_pages_at_most_whatever_alignment_they_ask_for() -> (
    None
):
    kernel = booted(purgatory=False)
    area, image = kernel.arch.cma_area, load(kernel)
    assert area is not None and area.size == 64 * MIB
    # 128 KiB of the area are the atomic pool's; the kernel asks for 2 MiB, and gets 1. The initrd would fit between.
    places = {one.name: one.mem - area.start for one in image.segments}
    assert places == {"kernel": MIB, "initrd": 0x20000, "dtb": 2 * MIB} and all(
        one.cma for one in image.segments
    )


def test_one_that_would_end_where_another_begins_is_taken_for_in_its_way() -> None:
    """The check has an inclusive end and gets the byte behind: such a segment goes to free memory."""
    kernel = booted(purgatory=False)
    image = load(kernel, initrd=bytes(MIB - 0x20000))
    initrd = image.segment("initrd")
    assert initrd is not None and not initrd.cma and initrd.mem > image.segments[0].mem
    shorter = load(kernel, initrd=bytes(MIB - 0x20000 - PAGE)).segment("initrd")
    assert shorter is not None and shorter.cma


def test_another_image_is_beside_the_one_that_it_replaces() -> None:
    kernel = booted(purgatory=False)
    first, second, third = (load(kernel).segments[0].mem for _ in range(3))
    assert first == third != second


@pytest.mark.parametrize(
    ("era", "flags", "options"),
    [
        ("6.16", 0, {}),
        ("7.3", KEXEC_FILE_NO_CMA, {}),
        ("7.3", 2, {}),
        ("7.3", 0, {"CMA_SIZE_MBYTES": "0"}),
        ("7.3", 0, {"CMA": "n"}),
    ],
)
def test_before_6_17_by_flag_for_a_crash_and_without_an_area_it_is_as_ever(
    era: str, flags: int, options: dict[str, str]
) -> None:
    config = KernelConfig(era, options={"CMA_SIZE_MBYTES": "64", **options})
    kernel = Kernel.boot(Board("1G"), config, cmdline="crashkernel=128M")
    image = load(kernel, flags)
    assert not any(one.cma for one in image.segments) and image.digest != NOTHING


@pytest.mark.parametrize(("era", "checked"), [("7.3", False), ("7.0", True), ("6.17", True)])
@pytest.mark.parametrize("purgatory", [True, False])
def test_an_image_in_cma_alone_is_entered_without_being_moved_and_since_7_3_without_a_digest(
    era: str, checked: bool, purgatory: bool
) -> None:
    kernel = booted(era, purgatory=purgatory)
    image = load(kernel)
    assert image.head == IND_DONE and all(one.cma for one in image.segments)
    assert all(kernel.ram.read(one.mem, one.memsz) == one.content() for one in image.segments)
    if purgatory:
        assert (image.digest != NOTHING, bool(image.sha_regions)) == (checked, checked)
    end = kernel.reboot_by_kexec()
    assert end.kernel is not None and end.kernel.end is CaptureEnd.NO_DUMP
    if purgatory:
        assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.KERNEL


def test_an_image_that_fits_there_in_part_is_moved_in_part_and_has_its_digest() -> None:
    kernel = booted(cma=8)
    image = load(kernel, image=arm64_image(64, image_size=16 * MIB))
    assert {one.name: one.cma for one in image.segments} == {
        "kernel": False,
        "initrd": True,
        "dtb": True,
        "purgatory": True,
    }
    assert image.digest != NOTHING and len(image.sha_regions) == 3 and not image.head & IND_DONE
    kernel.reboot()
    assert find_damage(kernel.ram, image, purgatory=True) == []


def test_a_purgatory_still_finds_what_was_stamped_on_where_a_digest_is_kept() -> None:
    kernel = booted("7.0")
    image = load(kernel)
    initrd = image.segment("initrd")
    assert initrd is not None
    kernel.board.dma.write(initrd.mem + 5, b"\xee")
    end = kernel.reboot_by_kexec()
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.MISMATCH and end.kernel is None
