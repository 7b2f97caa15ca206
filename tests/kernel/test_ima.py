"""IMA's list of measurements for the next kernel: in which images it is, where, and who fills it when."""

from __future__ import annotations

import hashlib

import pytest
from kernel_bench import GIB, IMAGE, INITRD, MIB, arm64_image, boot, small

from kexecemu.crash.damage import find_damage
from kexecemu.formats.fdt import Fdt, FdtEditor, MemReserve, reg64
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import IMA, KEXEC_FILE_ON_CRASH, Kimage
from kexecemu.kernel.load.ima import measurement_list
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

ON = {"IMA_KEXEC": "y"}


def load(kernel: KernelModel, flags: int = KEXEC_FILE_ON_CRASH, image: bytes = IMAGE) -> Kimage:
    loaded = kernel.kexec_file_load(image, INITRD, "panic=5", flags=flags)
    assert loaded is not None
    return loaded


def told(kernel: KernelModel, image: Kimage) -> tuple[bytes | None, list[MemReserve]]:
    """What the next kernel's device tree says of a list: the property, and all reservations."""
    dtb = image.segment("dtb")
    assert dtb is not None
    tree = Fdt(bytes(dtb.buf))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    return tree.getprop(chosen, "linux,ima-kexec-buffer"), tree.mem_reservations()


@pytest.mark.parametrize("era", ["6.1", "6.4"])
def test_before_6_16_a_crash_image_begins_with_the_list_and_its_digest_too(era: str) -> None:
    kernel = small(era, options=ON)
    image = load(kernel)
    first = image.segments[0]
    assert first.name == IMA and kernel.ram.read(first.mem, first.memsz) == first.content()
    assert image.sha_regions[0] == first.area and image.kernel_entry == image.segments[1].mem
    assert (
        image.digest
        == hashlib.sha256(
            b"".join(kernel.ram.read(one.start, one.size) for one in image.sha_regions)
        ).digest()
    )
    property_, reserved = told(kernel, image)
    assert property_ == reg64(first.mem, first.memsz)
    assert reserved[-1] == MemReserve(first.mem, first.memsz)


def test_since_then_a_crash_image_has_none() -> None:
    kernel = small("6.12", options=ON)
    image = load(kernel)
    assert image.segment(IMA) is None and told(kernel, image)[0] is None


def test_an_ordinary_image_s_list_is_reserved_at_the_load_filled_at_the_reboot_and_in_no_digest() -> None:
    kernel = boot("6.12", "crashkernel=64M", ram="512M", options=ON)
    image = load(kernel, flags=0)
    first = image.segments[0]
    assert first.name == IMA and first.bufsz == 0
    assert first.area not in image.sha_regions and len(image.sha_regions) == 3
    kernel.reboot()
    assert kernel.ram.read(first.mem, first.memsz) == measurement_list().ljust(first.memsz, b"\0")
    assert find_damage(kernel.ram, image, purgatory=False) == []


def test_in_6_1_it_is_filled_at_the_load_of_an_ordinary_image_as_well() -> None:
    kernel = boot("6.1", "crashkernel=64M", ram="512M", options=ON)
    image = load(kernel, flags=0)
    assert image.sha_regions[0] == image.segments[0].area and image.segments[0].buf == measurement_list()
    kernel.reboot()
    assert find_damage(kernel.ram, image, purgatory=False) == []


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize(
    ("options", "gone"), [({}, False), ({"IMA": "n"}, False), ({"IMA": "y"}, True), (ON, True)]
)
def test_an_older_kernel_s_list_is_taken_out_of_the_tree_where_ima_is_built_in(
    era: str, options: dict[str, str], gone: bool
) -> None:
    banks = (PhysRange.of(GIB, 256 * MIB),)
    tree = FdtEditor(virt_device_tree(banks, 1, 0x9000000, cmdline="crashkernel=64M"), 1 << 16)
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    old = reg64(0x47000000, 0x5000)
    tree.setprop(chosen, "linux,ima-kexec-buffer", old)
    tree.add_mem_rsv(0x47000000, 0x5000)
    kernel = boot(era, None, ram=list(banks), dtb=tree.to_bytes(), options=options)
    property_, reserved = told(kernel, load(kernel))
    assert (property_ == old, MemReserve(0x47000000, 0x5000) in reserved) == (not gone, not gone)


def test_without_the_option_nothing_is_added() -> None:
    kernel = small("6.1")
    assert load(kernel).segment(IMA) is None


def test_table_and_copy_describe_the_list_too_whatever_the_kernel_s_offset() -> None:
    tables = {"KEXEC_PURGATORY_PAGE_DIGESTS": "y", "KEXEC_PURGATORY_COPY": "y"}
    kernel = small("6.1", options=ON | tables)
    image = load(kernel, image=arm64_image(0x4000, text_offset=0x80000, image_size=0x10000))
    described = [one for one in image.segments if one.name not in ("purgatory", "copy", "page-digests")]
    copy, table = image.segment("copy"), image.segment("page-digests")
    assert copy is not None and table is not None and described[0].name == IMA
    assert bytes(copy.buf) == b"".join(one.content() for one in described)
    assert len(table.buf) == sum(one.memsz for one in described) // 4096 * 32


def test_a_list_that_finds_no_room_is_left_out_and_the_kernel_says_so() -> None:
    kernel = boot("6.1", None, ram="256M", options=ON)
    with pytest.raises(Exception, match="no crashkernel memory is reserved"):
        load(kernel)
    assert "ima: Error passing over kexec measurement buffer." in kernel.board.uart.text


@pytest.mark.parametrize(
    ("era", "extra", "page", "memsz"),
    [
        # The list itself takes some hundred bytes.
        ("6.12", "0", 4096, 0x1000),
        ("7.3", "0", 4096, 0x1000),
        ("7.3", "4", 4096, 0x2000),
        ("7.3", "40", 4096, 0xB000),
        ("6.16", "40", 4096, 0xB000),
        ("7.3", "40", 65536, 0x10000),
        ("7.3", "0", 65536, 0x10000),
    ],
)
def test_room_for_more_is_half_a_page_or_what_the_kernel_was_built_with(
    era: str, extra: str, page: int, memsz: int
) -> None:
    options = {**ON, "IMA_KEXEC_EXTRA_MEMORY_KB": extra, f"ARM64_{page >> 10}K_PAGES": "y"}
    kernel = boot(era, "crashkernel=64M", ram="1G", options=options)
    first = load(kernel, flags=0).segments[0]
    free = [one for one in kernel.arch.memblock.free_ranges() if one.size >= memsz]
    assert (first.name, first.memsz) == (IMA, memsz)
    # From the top of free memory, in whole pages.
    assert first.mem == (free[-1].end - memsz) & -page
