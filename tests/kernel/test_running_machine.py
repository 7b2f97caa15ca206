"""What is made of a machine that runs already, by its /proc/iomem: memory, and where kernel, tree and initrd are."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, build
from kexecemu.formats.iomem import Iomem, parse_iomem
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.iomem import RunningMachine, image_layout, iomem_ram, read_iomem
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZE = 2 * MIB  # of the model's kernel
TEXT = """40000000-7fffffff : System RAM
  40210000-403effff : Kernel code
  40400000-404fffff : Kernel data
  48000000-48000fff : reserved
"""
FOUND = parse_iomem(TEXT)
TREE = Fdt(build({"compatible": "x"}))


def running(found: Iomem, era: str = "6.1", size: int = SIZE, *, same: bool = True) -> RunningMachine:
    return RunningMachine.of(found, KernelConfig(era), TREE, size, same=same)


def reserved(*areas: tuple[int, int]) -> Iomem:
    return replace(FOUND, reserved=tuple(PhysRange(start, end) for start, end in areas))


def test_kernel_code_begins_with_stext_and_later_with_text() -> None:
    code, data = FOUND.code, FOUND.data
    for era, text in ((Era.V6_1, 0x40200000), (Era.V7_3, 0x40210000)):
        rest = (code.end, data.end, data.start, data.end)
        assert image_layout(era, code, data) == TextLayout(text, text + 64 * KIB, *rest)


def test_a_kernel_is_one_that_is_as_large_as_the_model_s_and_lies_in_ram() -> None:
    whole = 0x40500000 - 0x40200000
    assert running(FOUND, size=whole).places.kernel_phys == 0x40200000
    words = f"iomem: a kernel at 0x40200000-0x404fffff is smaller than the model's, of {whole + 1:#x}"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        running(FOUND, size=whole + 1)
    at_zero = replace(
        FOUND, system_ram=(PhysRange(0, GIB),), code=PhysRange(64 * KIB, MIB), data=PhysRange(MIB, 4 * MIB)
    )
    assert running(at_zero).layout.text == 0
    with pytest.raises(InputError, match="is smaller"):
        running(replace(at_zero, code=PhysRange(64 * KIB - 1, MIB)))
    # With _text, which "Kernel code" leaves out before 6.2.
    for start, is_one in ((0x40200000, True), (0x40200001, False)):
        parts = PhysRange(start, 0x40500000), PhysRange(GIB * 2, GIB * 3)
        found = replace(FOUND, system_ram=parts)
        if is_one:
            assert running(found).layout.end == 0x40500000
            continue
        with pytest.raises(
            InputError, match=r"^iomem: the kernel at 0x40200000-0x404fffff is outside of System RAM$"
        ):
            running(found)


def test_no_map_memory_is_ram_where_it_touches_what_is_used() -> None:
    ram = (PhysRange(GIB, 2 * GIB), PhysRange(3 * GIB, 4 * GIB))
    touching = [(GIB - 1, GIB), (2 * GIB, 2 * GIB + MIB), (3 * GIB - MIB, 3 * GIB), (4 * GIB, 5 * GIB)]
    apart = [(0, GIB - 2), (2 * GIB + 2 * MIB, 3 * GIB - 2 * MIB), (5 * GIB + 1, 6 * GIB)]
    nomap = tuple(PhysRange(*one) for one in sorted([*touching, *apart]))
    found = replace(FOUND, system_ram=ram, nomap=nomap)
    assert iomem_ram(found) == [PhysRange(GIB - 1, 2 * GIB + MIB), PhysRange(3 * GIB - MIB, 5 * GIB)]


def test_its_memory_takes_the_place_of_the_tree_s_and_the_crash_region_only_for_the_same_command_line() -> (
    None
):
    nomap, crash = (
        PhysRange(2 * GIB, 2 * GIB + MIB),
        (PhysRange(0x50000000, 0x54000000), PhysRange(0x70000000, 0x78000000)),
    )
    found = replace(FOUND, nomap=(nomap,), crash=crash)
    for same in (True, False):
        memory = Memblock()
        memory.add(PhysRange(0, GIB // 2))
        memory.add(PhysRange((1 << 64) - MIB, 1 << 64))
        machine = running(found, same=same)
        machine.apply(memory)
        assert memory.regions() == [*FOUND.system_ram, nomap]
        assert memory.nomap_memory() == [nomap]
        assert memory.reserved == (list(crash) if same else [])
        reservation = machine.reservation
        assert (reservation is not None) is same
        if reservation is not None:
            assert (reservation.crashk_low_res, reservation.crashk_res) == crash
    one = running(replace(found, crash=crash[:1])).reservation
    assert one is not None and (one.crashk_res, one.crashk_low_res) == (crash[0], None)
    none = running(replace(found, crash=())).reservation
    assert none is not None and (none.crashk_res, none.crashk_low_res) == (None, None)


@pytest.mark.parametrize(
    ("areas", "phys"),
    [
        ([(0x48000000, 0x48001000)], 0x48000000),  # exactly its pages
        ([(0x48000000, 0x48020000)], None),
        ([(0x48000000, 0x48011000)], 0x48010000),  # what is reserved before it touches
        (
            [(0x48000000, 0x48001000), (0x49000000, 0x49001000)],
            0x49000000,
        ),  # the higher of two that are alike
        ([(0x48010000, 0x48011000), (0x49000000, 0x49011000)], 0x48010000),  # one that is alone before others
        ([(0x48000000, 0x48000FFF)], None),
        ([], None),
    ],
)
def test_the_tree_is_where_what_is_reserved_ends_with_its_pages_at_64_kib(
    areas: list[tuple[int, int]], phys: int | None
) -> None:
    assert TREE.totalsize <= 4096
    if phys is not None:
        assert running(reserved(*areas)).places.dtb_phys == phys
        return
    words = f"iomem: nothing that is reserved has a place for the device tree of {TREE.totalsize:#x} bytes"
    with pytest.raises(InputError, match=f"^{words}$"):
        running(reserved(*areas))


@pytest.mark.parametrize(
    ("areas", "initrd"),
    [
        ([(0x50000000, 0x50100000)], None),  # an end as of an allocation
        ([(0x50000000, 0x50100800)], 0),
        ([(0x50000000, 0x500FFFFF)], None),  # less than 1 MiB
        ([(0x4FFF1000, 0x500FF001)], None),  # not begun as UEFI does
        ([(0x50000000, 0x50200800), (0x51000000, 0x51300800)], 1),  # the largest
        ([(0x50000000, 0x50300800), (0x51000000, 0x51200800)], 0),
        ([(0x47F00000, 0x48001000)], None),  # has the tree
        ([], None),
    ],
)
def test_an_initrd_is_the_largest_that_begins_as_uefi_allocates_and_ends_anywhere(
    areas: list[tuple[int, int]], initrd: int | None
) -> None:
    machine = running(reserved(*areas, (0x48000000, 0x48001000)))
    if any(start < 0x48000000 for start, _ in areas):
        machine = running(reserved(*areas))
        assert machine.places.dtb_phys == 0x48000000
    assert machine.initrd == (None if initrd is None else PhysRange(*areas[initrd]))


def test_what_is_wrong_with_the_file_is_said_with_its_name_where_it_has_one(tmp_path: object) -> None:
    assert read_iomem(FOUND) is FOUND and read_iomem(TEXT.encode()) == FOUND
    with pytest.raises(InputError, match=r"^iomem: no line with \"System RAM\"$"):
        read_iomem(b"")
    path = f"{tmp_path}/iomem"
    with open(path, "wb") as file:
        file.write(b"\xff\n")
    with pytest.raises(InputError, match=f"^iomem {path}: line 1 is none of /proc/iomem"):
        read_iomem(path)
