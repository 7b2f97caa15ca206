"""The fixed set of faults: which bytes of memory each writes, where the code is, and what does not apply."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.purgatory_check import RUNS, Case, cases, code_areas, more_cases
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, When

BASE, STACK = 0x40010000, 0x40018000
# Addresses, sizes of the file and in memory.
PLACES = {
    "kernel": (0x40000000, 0x2468, 0x3000),
    "elfcorehdr": (0x40004000, 0x400, 0x1000),
    "initrd": (0x40006000, 0x1800, 0x2000),
    "dtb": (0x40009000, 0x300, 0x1000),
    "purgatory": (BASE, 0x800, 0x1000),
}
NAMES = {  # by what both kinds have
    "kernel": ("purgatory_sha_regions", "purgatory_sha256_digest", "purgatory_kernel_entry", "purgatory_dtb",
               "purgatory_uart_base", "purgatory_policy"),
    "kexec-tools": ("sha256_regions", "sha256_digest", "arm64_kernel_entry", "arm64_dtb_addr", "arm64_sink",
                    "skip_checks"),
}  # fmt: skip
AT = (0x200, 0x300, 0x340, 0x348, 0x350, 0x358)
OWN = {"purgatory_self_digest": 0x360, "purgatory": 0x100}
ENTRY, DTB = 0x40000100, 0x40009000


def memory() -> Ram:
    ram = Ram([PhysRange.of(0x40000000, 0x20000)])
    ram.write(0x40000000, bytes(one % 251 for one in range(0x20000)))
    return ram


def image(bufsz: int = PLACES["kernel"][1]) -> Kimage:
    sizes = {name: (bufsz if name == "kernel" else size) for name, (_, size, _) in PLACES.items()}
    segments = [Segment(name, bytes(sizes[name]), mem, room) for name, (mem, _, room) in PLACES.items()]
    return Kimage(0, segments, kernel_entry=ENTRY, dtb_mem=DTB)


def loaded(interface: str, without: str = "") -> Any:
    symbols = dict(zip(NAMES[interface], AT, strict=True)) | OWN
    symbols.pop(without, None)
    return SimpleNamespace(
        entry=BASE + 0x20,
        symbols=symbols,
        has_symbol=symbols.__contains__,
        symbol_phys=lambda name: BASE + symbols[name],
    )


def section(index: int, addr: int, size: int, flags: int = 6) -> Any:
    return SimpleNamespace(index=index, addr=addr, size=size, flags=flags)


def relocatable(marks: list[tuple[int, int, str]], start: bool = True, entry: int = 0) -> Any:
    """An object of three sections, the second with its code; start: purgatory_start is 0x20 bytes into it."""
    symbols = [SimpleNamespace(shndx=at, value=value, name=name) for at, value, name in marks]
    found = SimpleNamespace(shndx=2, value=0x20) if start else None
    sections = [section(1, 0, 0x1000, 2), section(2, 0x1000, 0x200), section(3, 0x1200, 0x200)]
    return SimpleNamespace(
        sections=sections, symbols=symbols, entry=entry, global_symbol={"purgatory_start": found}.get
    )


def places(fault: Fault, ram: Ram, interface: str) -> tuple[int, bytes]:
    """Where a fault writes, and what is there then."""
    base, _, offset = fault.at.partition("+")
    if base == "crashkernel-free":
        phys = 0x4000C000
    elif base.startswith("purgatory:"):
        phys = loaded(interface).symbol_phys(base.removeprefix("purgatory:"))
    else:
        phys = PLACES[base][0] if base in PLACES else int(base, 0)
    phys += int(offset or "0", 0)
    return phys, fault.data(ram.read(phys, fault.length))


def inverted(ram: Ram, phys: int, size: int = 4) -> tuple[int, bytes]:
    return phys, bytes(one ^ 0xFF for one in ram.read(phys, size))


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


KERNEL, CORE, INITRD, TREE = (PLACES[name][0] for name in ("kernel", "elfcorehdr", "initrd", "dtb"))


@pytest.mark.parametrize("interface", NAMES)
def test_each_row_writes_what_its_name_says(interface: str) -> None:
    ram = memory()
    regions, digest, entry, tree, console, switch = (BASE + at for at in AT)
    word = inverted(ram, INITRD + 0x1000)
    expected: dict[str, list[tuple[int, bytes]]] = {
        "nothing": [],
        "kernel, first word": [inverted(ram, KERNEL)],
        "kernel, a bit in the middle": [(KERNEL + 0x1234, bytes([ram.read(KERNEL + 0x1234, 1)[0] ^ 16]))],
        "kernel, last byte": [inverted(ram, KERNEL + 0x2467, 1)],
        "initrd, a word": [word],
        "device tree, a word": [inverted(ram, TREE + 0x40)],
        "elfcorehdr, a word": [inverted(ram, CORE + 0x40)],
        "stored digest, a byte": [inverted(ram, digest, 1)],
        "regions[0].len = 0": [(regions + 8, bytes(8))],
        "regions[0].start = 0xdeadbeef": [(regions, u64(0xDEADBEEF))],
        "regions[0].len = 0xdeadbeef": [(regions + 8, u64(0xDEADBEEF))],
        "kernel's entry + 0x1000": [(entry, u64(ENTRY + 0x1000))],
        "device tree's address + 0x1000": [(tree, u64(DTB + 0x1000))],
        "console's address = 0xdeadbeef": [(console, u64(0xDEADBEEF))],
        "check switched off, and initrd": [(switch, b"\4"), word],
        "stack": [(STACK - 64, b"\xa5" * 64)],
        "free memory": [(0x4000D000, b"\xa5" * 8)],
        "initrd, the same value": [(INITRD + 0x1000, ram.read(INITRD + 0x1000, 4))],
        # More of them:
        "kernel, its magic number": [inverted(ram, KERNEL + 56)],
        "kernel, behind its file": [(KERNEL + 0x2FF8, b"\xa5" * 8)],
        "initrd, last byte": [inverted(ram, INITRD + 0x17FF, 1)],
        "device tree, its magic number": [inverted(ram, TREE)],
        "device tree, its size": [(TREE + 4, bytes(4))],
        "elfcorehdr, number of headers": [(CORE + 56, bytes(2))],
        "kernel and initrd, a word each": [inverted(ram, KERNEL + 0x2000), word],
        "stored digest, zeros": [(digest, bytes(32))],
        "regions[0] and [1] exchanged": [(regions, ram.read(regions + 16, 16) + ram.read(regions, 16))],
        "regions[1].len = 0": [(regions + 24, bytes(8))],
        "kernel's entry = 0": [(entry, bytes(8))],
        "its own digest, zeros": [(BASE + 0x360, bytes(32))],
        "initrd, a word, at the jump": [word],
        "initrd, a word, after the check": [word],
        "code that says yes, and initrd": [(BASE + 0x100, bytes.fromhex("000080d2c0035fd6")), word],
    }
    whole = cases(ram, image(), relocatable([]), loaded(interface), interface, STACK)
    rows = [*whole, *more_cases(ram, image(), loaded(interface), interface)]
    assert sum(len(row.runs) for row in whole) == RUNS and len(rows) == len(expected) + 1
    found = {
        row.name: [places(one, ram, interface) for one in row.runs[0]] for row in rows if len(row.runs) == 1
    }
    assert found == expected
    assert all(one.by is By.DMA for row in rows for run in row.runs for one in run)
    late = {row.name: {one.when for run in row.runs for one in run} for row in rows}
    assert late.pop("initrd, a word, at the jump") == {When.AT_JUMP}
    assert late.pop("initrd, a word, after the check") == {When.AFTER_CHECK}
    assert set.union(*late.values()) == {When.AFTER_LOAD} and not any(row.absent for row in rows)


@pytest.mark.parametrize("size", [0x80, 0x81, 0x84, 0x200, 0x1FF])
def test_each_bit_is_inverted_once_in_the_middle_of_each_32nd_of_the_code(size: int) -> None:
    ram = memory()
    obj = relocatable([(2, 0, "$x"), (2, size, "$d")])
    (row,) = (one for one in cases(ram, image(), obj, loaded("kernel"), "kernel", STACK) if len(one.runs) > 1)
    assert (row.name, len(row.runs)) == ("purgatory's code, 32 bits", 32)
    bits = []
    for number, (one,) in enumerate(row.runs):
        phys, data = places(one, ram, "kernel")
        assert phys == BASE + 4 * math.floor((number + Fraction(1, 2)) * (size // 4) / 32)
        bits.append(int.from_bytes(data, "little") ^ ram.read_u32(phys))
    assert sorted(bits) == [1 << bit for bit in range(32)]
    assert bits[:3] == [1 << 3, 1 << 14, 1 << 25]


@pytest.mark.parametrize(
    ("marks", "areas"),
    [
        ([], [(0, 0x200)]),
        ([(2, 0, "$x"), (2, 0x80, "memcpy"), (2, 0x100, "$d")], [(0, 0x100)]),
        ([(2, 0x100, "$d.7"), (2, 0, "$x.1"), (2, 0x180, "$x")], [(0, 0x100), (0x180, 0x200)]),
        ([(2, 0x10, "$d"), (2, 0x10, "$x"), (2, 0x20, "$d")], [(0x10, 0x20)]),
        ([(3, 0, "$x"), (2, 0x40, "x$x"), (1, 0, "$d")], [(0, 0x200)]),  # none of them is of this section
        ([(2, 0x1FC, "$x")], [(0x1FC, 0x200)]),
        ([(2, 0x200, "$x"), (2, 0, "$d")], [(0, 0x200)]),  # no code at all: then all of it
    ],
)
def test_code_is_what_the_marks_of_its_section_say_and_all_of_that_without_any(
    marks: list[tuple[int, int, str]], areas: list[tuple[int, int]]
) -> None:
    expected = [PhysRange(BASE + start, BASE + end) for start, end in areas]
    assert code_areas(relocatable(marks), loaded("kernel")) == expected


@pytest.mark.parametrize(("entry", "base"), [(0x1000, 0x20), (0x11FF, 0x20 - 0x1FF), (0x1200, 0x20)])
def test_without_its_name_the_section_is_the_one_of_code_that_the_entry_is_in(entry: int, base: int) -> None:
    obj = relocatable([], start=False, entry=entry)
    assert code_areas(obj, loaded("kernel")) == [PhysRange.of(BASE + base, 0x200)]
    obj.sections[1].flags = 2
    if entry < 0x1200:
        with pytest.raises(StopIteration):
            code_areas(obj, loaded("kernel"))


def row(rows: list[Case], name: str) -> Case:
    return next(one for one in rows if one.name == name)


@pytest.mark.parametrize("interface", NAMES)
def test_a_row_whose_symbol_is_not_there_does_not_apply_and_says_why(interface: str) -> None:
    ram, names = memory(), NAMES[interface]
    everything = more_cases(ram, image(), loaded(interface), interface)
    for name in (names[0], names[2], "purgatory_self_digest", "purgatory"):
        rows = more_cases(ram, image(), loaded(interface, without=name), interface)
        absent = [one for one in rows if not one.runs]
        assert absent and {one.absent for one in absent} == {f"it has no symbol {name}"}
        assert [one for one in everything if one.name not in {gone.name for gone in absent}] == [
            one for one in rows if one.runs
        ]


def test_a_stack_that_is_not_known_and_a_file_that_fills_its_segment_are_said() -> None:
    ram, args = memory(), (relocatable([]), loaded("kernel"), "kernel")
    stack = row(cases(ram, image(), *args, None), "stack")
    assert stack == Case(
        "stack", (), "where its stack is, is not known: no purgatory_stack_top, and SP is elsewhere"
    )
    for bufsz in (0x2FF8, 0x2FF9):
        found = row(more_cases(ram, image(bufsz), *args[1:]), "kernel, behind its file")
        assert found.absent == ("its file fills the segment" if bufsz > 0x2FF8 else "")
        assert len(found.runs) == (bufsz == 0x2FF8)
