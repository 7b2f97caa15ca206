"""kexec-tools' own part of a load, up to the system call: what just fits, what does not, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from kernel_bench import MIB, arm64_image

from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.formats.fdt import Fdt, FdtEditor, reg64
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.digests import calculate_digest
from kexecemu.kernel.image.purgatory import parse_purgatory
from kexecemu.kernel.load.kexec_tools import CrashLoad, MachineView, prepare_crash_load
from kexecemu.machine.ranges import PhysRange

PAGE = 4096
REGION = PhysRange.of(0x50000000, 64 * MIB)
TREE = virt_device_tree([PhysRange.of(1 << 30, 512 * MIB)], 1, 0x9000000, cmdline="old")
PURGATORY: RelocatableObject = parse_purgatory(fixture_path("guests/kexec-tools-purgatory.ro").read_bytes())
VIEW = MachineView(REGION, TREE, bytes(1024), 0x9000000, PAGE)
KERNEL = arm64_image(MIB, image_size=MIB)


def prepared(
    view: MachineView = VIEW, kernel: bytes = KERNEL, initrd: bytes | None = b"initrd", cmdline: str = "new"
) -> CrashLoad:
    return prepare_crash_load(view, kernel, initrd, cmdline, PURGATORY)


def places(load: CrashLoad) -> dict[str, tuple[int, int]]:
    return {one.name: (one.mem, one.memsz) for one in load.segments}


def chosen(load: CrashLoad) -> dict[str, bytes]:
    (dtb,) = (one for one in load.segments if one.name == "dtb")
    tree = Fdt(bytes(dtb.buf))
    node = tree.path_offset("/chosen")
    assert node is not None
    return {one.name: bytes(one.value) for one in tree.properties(node)}


def refused(words: str, **arguments: object) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'kexec-tools: {words}')}$"):
        prepared(**arguments)  # type: ignore[arg-type]


def test_the_kernel_is_at_2_mib_and_the_rest_behind_it_in_the_order_of_the_calls() -> None:
    found = places(load := prepared())
    top = REGION.end - PAGE
    assert found["kernel"] == (REGION.start, MIB) and found["elfcorehdr"] == (top, PAGE)
    assert found["initrd"] == (REGION.start + MIB, PAGE)
    assert found["dtb"] == (REGION.start + MIB + PAGE, -(-len(TREE) // PAGE) * PAGE)
    assert found["purgatory"][0] == sum(found["dtb"])
    assert [one.mem for one in load.segments] == sorted(mem for mem, _ in found.values())
    assert (load.kernel_entry, load.dtb_phys) == (REGION.start, found["dtb"][0])
    assert load.purgatory.segment.mem <= load.entry < sum(found["purgatory"]) and load.said == ()
    assert (load.digest, load.regions) == calculate_digest(load.segments)


def test_a_region_that_begins_elsewhere_and_a_text_offset_move_the_kernel() -> None:
    view = replace(VIEW, crash_kernel=PhysRange(REGION.start + PAGE, REGION.end))
    kernel = arm64_image(MIB, image_size=MIB, text_offset=0x80000)
    assert places(prepared(view, kernel))["kernel"] == (REGION.start + 2 * MIB + 0x80000, MIB)


def test_a_kernel_as_large_as_the_room_below_the_core_header_fits_and_nothing_else_then() -> None:
    room = REGION.size - PAGE
    refused(
        f"could not find a free area of memory of {PAGE:#x} bytes for initrd in {REGION}",
        kernel=arm64_image(4096, image_size=room),
    )
    size = room + 1
    refused(
        f"the kernel of {size:#x} bytes does not fit in crashkernel {REGION} of {REGION.size:#x} bytes",
        kernel=arm64_image(4096, image_size=size),
    )


@pytest.mark.parametrize(("kernel", "initrd", "what"), [(b"", None, "kernel"), (KERNEL, b"", "initrd")])
def test_an_empty_file_cannot_be_read(kernel: bytes, initrd: bytes | None, what: str) -> None:
    refused(f"cannot read the {what}: the file is empty", kernel=kernel, initrd=initrd)


def test_of_a_command_line_2047_bytes_are_taken() -> None:
    for line in ("x" * 2047, "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 1023 + "x"):
        value = chosen(prepared(cmdline=line))["bootargs"]
        assert value == line.encode().ljust(2048, b"\0")
    for line in ("x" * 2048, "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 1024):
        refused("the command line is longer than 2047 characters", cmdline=line)


def padded(size: int) -> bytes:
    """The tree with a property of so many bytes, by a name with which what kexec-tools make is whole cells long."""
    editor = FdtEditor(TREE, len(TREE) + size + 256)
    editor.setprop(0, "padding1", bytes(size))
    editor.pack()
    return editor.to_bytes()


def test_a_device_tree_of_2_mib_is_taken_and_a_cell_more_is_not() -> None:
    def made(size: int) -> CrashLoad:
        return prepared(replace(VIEW, device_tree=padded(size)))

    def length(load: CrashLoad) -> int:
        return next(len(one.buf) for one in load.segments if one.name == "dtb")

    most = 2 * MIB - (length(made(4)) - 4)
    assert most % 4 == 0
    assert length(made(most)) == 2 * MIB
    with pytest.raises(InputError, match=r"^kexec-tools: the device tree is too large$"):
        made(most + 4)


def test_the_tree_says_where_everything_is() -> None:
    load = prepared()
    found, said = places(load), chosen(load)
    assert said["bootargs"] == b"new\0"
    assert said["linux,elfcorehdr"] == reg64(found["elfcorehdr"][0], 1024)
    assert said["linux,usable-memory-range"] == reg64(REGION.start, REGION.size)
    start = found["initrd"][0]
    assert (said["linux,initrd-start"], said["linux,initrd-end"]) == (reg64(start), reg64(start + 6))
    low = PhysRange.of(0x48000000, MIB)
    said = chosen(prepared(replace(VIEW, crash_kernel_low=low), initrd=None, cmdline=""))
    assert said["linux,usable-memory-range"] == reg64(REGION.start, REGION.size, low.start, low.size)
    assert said["bootargs"] == b"old\0" and "linux,initrd-start" not in said


@pytest.mark.parametrize(
    ("seed", "random", "becomes"),
    [(None, 7, None), (0, 7, 7), (0, None, 0), (5 << 32, 7, 7), (1, 7, "refused"), (1 << 31, 7, "refused")],
)
def test_a_seed_is_used_up_where_its_lower_half_is_0(
    seed: int | None, random: int | None, becomes: int | str | None
) -> None:
    tree = virt_device_tree([PhysRange.of(1 << 30, MIB)], 1, 0x9000000, kaslr_seed=seed)
    view = replace(VIEW, device_tree=tree, getrandom=None if random is None else lambda: random)
    if becomes == "refused":
        words = "kaslr-seed is not wiped to 0 (as by a kernel that was booted with nokaslr)"
        refused(words, view=view)
        return
    found = chosen(prepared(view)).get("kaslr-seed")
    assert found == (None if becomes is None else reg64(int(becomes)))


def test_what_is_behind_an_image_and_one_without_a_size_are_told_of() -> None:
    load = prepared(kernel=KERNEL + b"more")
    assert load.said == ("0x4 bytes behind the Image's image_size are left out",)
    assert places(load)["kernel"] == (REGION.start, MIB)
    old = prepared(kernel=arm64_image(MIB, image_size=0))
    assert places(old)["kernel"] == (REGION.start + 0x80000, 16 * MIB)
    assert old.said == ("the Image says no size: 16 MiB are taken for it, 0x80000 into 2 MiB",)


def test_with_larger_pages_every_segment_has_whole_ones() -> None:
    found = places(prepared(replace(VIEW, page_size=65536), kernel=arm64_image(4096, image_size=MIB + 1)))
    assert all(not mem % 65536 and not size % 65536 for mem, size in found.values())
    assert found["kernel"][1] == MIB + 65536
