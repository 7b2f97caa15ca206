"""Core headers, notes and /proc/vmcore, against a real kernel's bytes and pyelftools."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from prstatus import parse_prstatus

from kexecemu.errors import FormatError
from kexecemu.formats import elfcore, elfnote
from kexecemu.formats.elf import PT_LOAD, PT_NOTE, ProgramHeader
from kexecemu.formats.elfcore import PF_RWX, LoadRange, VmcoreLayout, build_elfcorehdr
from kexecemu.formats.elfnote import Note
from kexecemu.machine.ranges import PhysRange

Real = Callable[[str], bytes]


def _memory(notes: dict[int, bytes]) -> Callable[[int, int], bytes]:
    return lambda phys, length: notes[phys].ljust(length, b"\xee")


def _real_layout(real: Real) -> VmcoreLayout:
    """The notes as they lay in the first kernel's memory: each in its buffer, a zero header behind."""
    notes = real("vmcore.head")[0x1000:]
    cpu = 12 + 8 + 392
    memory = {
        0x69F8BC00: notes[:cpu] + bytes(12),
        0x69F9DC00: notes[cpu : 2 * cpu] + bytes(12),
        0x40976000: notes[2 * cpu : 0x10D0] + bytes(12),
    }
    return VmcoreLayout(real("elf-segment.bin"), _memory(memory))


def test_the_real_elfcorehdr_is_read_and_built_again(real: Real) -> None:
    segment = real("elf-segment.bin")
    headers = elfcore.parse_core_header(segment).program_headers
    assert [h.type for h in headers] == [PT_NOTE] * 3 + [PT_LOAD] * 2
    assert headers[3].vaddr == 0xFFFFA7289B400000
    assert build_elfcorehdr(headers, size=4096) == segment


def test_the_real_vmcore_begins_as_laid_out_here(real: Real) -> None:
    layout = _real_layout(real)
    assert layout.header + layout.notes == real("vmcore.head")
    assert layout.loads == [
        LoadRange(0x3000, 0x40200000, 0x550000),
        LoadRange(0x553000, 0x40000000, 0x2A000000),
    ]
    assert layout.size == 0x553000 + 0x2A000000
    assert layout.dropped_notes == 0


def test_the_real_notes_are_read_and_packed_again(real: Real) -> None:
    data = real("vmcore.head")[0x1000:0x20D0]
    notes = list(elfnote.iterate_notes(data))
    assert [(n.name, n.type, len(n.desc)) for n in notes] == [
        ("CORE", 1, 392),
        ("CORE", 1, 392),
        ("VMCOREINFO", 0, 0xD7E),
    ]
    assert b"".join(n.pack() for n in notes) == data
    assert notes[2].desc.startswith(b"OSRELEASE=6.1.192-kexecemu-ref\n")


def test_the_real_registers_are_read_and_packed_again(real: Real) -> None:
    first = next(elfnote.iterate_notes(real("vmcore.head")[0x1000:]))
    status = parse_prstatus(first.desc)
    # PID 1, the shell that wrote to /proc/sysrq-trigger, in __crash_kexec at EL1 with interrupts off.
    assert status.pid == 1
    assert status.regs[31] == 0xFFFF2026808A7A80
    assert status.regs[33] == 0x400000C5
    assert elfnote.crash_note(status.pid, status.regs) == first.pack() + bytes(12)
    assert len(elfnote.crash_note(status.pid, status.regs)) == elfnote.CRASH_NOTE_BYTES == 424


def test_the_second_real_vmcore_s_program_headers_are_those_that_readelf_printed(real: Real) -> None:
    text = (Path(__file__).parents[1] / "data/linux-6.1.192/kaslr-vmcore-readelf.txt").read_text()
    number = r"\s+0x([0-9a-f]+)"
    theirs = re.findall(rf"^  (NOTE|LOAD){number * 5}", text, re.MULTILINE)
    ours = elfcore.parse_core_header(real("kaslr-vmcore.head")).program_headers
    assert len(theirs) == 3
    assert [(h.type, h.offset, h.vaddr, h.paddr, h.filesz, h.memsz) for h in ours] == [
        ({"NOTE": PT_NOTE, "LOAD": PT_LOAD}[kind], *(int(value, 16) for value in values))
        for kind, *values in theirs
    ]


def test_the_vmcoreinfo_note_has_the_size_that_sysfs_shows() -> None:
    note = elfnote.vmcoreinfo_note(b"OSRELEASE=6.1\n")
    assert len(note) == elfnote.VMCOREINFO_NOTE_SIZE == 0x1024
    assert list(elfnote.iterate_notes(note)) == [Note("VMCOREINFO", 0, b"OSRELEASE=6.1\n")]
    with pytest.raises(ValueError, match="4097 bytes"):
        elfnote.vmcoreinfo_note(bytes(4097))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "elf header not found"),
        (4, 1, "not sane: EI_CLASS at offset 0x4"),
        (6, 0, "not sane: EI_VERSION"),
        (0x10, 3, "not sane: e_type"),
        (0x12, 62, "not sane: e_machine"),
        (0x14, 2, "not sane: e_version"),
        (0x34, 52, "not sane: e_ehsize"),
        (0x36, 32, "not sane: e_phentsize"),
        (0x38, 0, "not sane: e_phnum"),
        (0x38, 73, "73 program headers at 0x40 are truncated"),
    ],
)
def test_a_header_that_the_kernel_refuses_is_refused(
    real: Real, offset: int, value: int, message: str
) -> None:
    data = bytearray(real("elf-segment.bin"))
    data[offset] = value
    with pytest.raises(FormatError, match=message):
        elfcore.parse_core_header(data)


@pytest.mark.parametrize("offset", [5, 0x18, 0x20, 0x28, 0x30, 0x3A, 0x3C])
def test_a_field_that_the_kernel_does_not_look_at_may_hold_anything(real: Real, offset: int) -> None:
    data = bytearray(real("elf-segment.bin"))
    good = elfcore.parse_core_header(data)
    data[offset] ^= 0xFF
    assert elfcore.parse_core_header(data) == good


def _note_header(phys: int, size: int) -> ProgramHeader:
    return ProgramHeader(PT_NOTE, 0, phys, 0, phys, size, size)


def _load_header(phys: int, size: int) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, PF_RWX, phys, 0xFFFF000000000000 | phys, phys, size, size)


def test_a_range_that_is_not_whole_pages_is_widened_and_keeps_its_offset_in_the_page() -> None:
    core = build_elfcorehdr([_note_header(0, 12), _load_header(0x40000800, 0x1000)])
    layout = VmcoreLayout(core, _memory({0: bytes(12)}))
    assert layout.loads == [LoadRange(0x1000, 0x40000000, 0x2000)]
    assert layout.program_headers[1].offset == 0x1800
    assert layout.program_headers[1].memsz == 0x1000


def test_a_note_that_exceeds_its_buffer_is_dropped_with_those_behind_it() -> None:
    """Only that buffer's: a damaged note of one CPU does not cost those of the others."""
    good = Note("CORE", 1, b"abcd").pack()
    long = struct.pack("<III", 5, 4096, 1) + b"CORE\0\0\0\0"
    core = build_elfcorehdr([_note_header(0, 100), _note_header(1, 100)])
    layout = VmcoreLayout(core, _memory({0: good + long + good, 1: good + bytes(12)}))
    assert layout.notes == (good + good).ljust(4096, b"\0")
    assert layout.dropped_notes == 1
    assert layout.program_headers == (ProgramHeader(PT_NOTE, 0, 0x1000, 0, 0, 2 * len(good), 2 * len(good)),)


def test_a_note_that_fills_its_buffer_exactly_is_kept() -> None:
    note = Note("CORE", 1, b"abcd").pack()
    layout = VmcoreLayout(build_elfcorehdr([_note_header(0, len(note))]), _memory({0: note}))
    assert layout.notes == note.ljust(4096, b"\0")
    assert layout.dropped_notes == 0


def test_an_empty_note_buffer_leaves_no_trace() -> None:
    layout = VmcoreLayout(build_elfcorehdr([_note_header(0, 424)]), _memory({0: bytes(424)}))
    assert layout.notes == b"" and layout.size == 0x1000


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([_load_header(0, 4096)], "no PT_NOTE"),
        ([_note_header(0, 5 << 20)], "no memory"),
        ([_note_header(0, 12), _load_header((1 << 64) - 4096, 8192)], "wraps around"),
    ],
)
def test_no_vmcore_is_made_of_a_header_that_makes_no_sense(
    headers: list[ProgramHeader], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        VmcoreLayout(build_elfcorehdr(headers), _memory({0: bytes(12)}))


def _write(path: Path, ram: bytes) -> VmcoreLayout:
    note = elfnote.crash_note(7, range(34))
    core = build_elfcorehdr(
        [_note_header(0, len(note)), _load_header(0x1000, 0x1800), _load_header(0x4000, 0x4000)]
    )
    layout = VmcoreLayout(core, lambda phys, length: note)

    def data_ranges(within: PhysRange) -> Iterator[PhysRange]:
        for page in range(within.start, within.end, 4096):
            if any(ram[page : page + 4096]):
                yield PhysRange.of(page, 4096)

    elfcore.write_vmcore(
        path, layout, lambda phys, length: memoryview(ram)[phys : phys + length], data_ranges
    )
    return layout


def test_a_written_core_holds_memory_where_its_headers_say(tmp_path: Path) -> None:
    ram = bytearray(1 + place % 251 for place in range(0x8000))
    ram[0x5000:0x7000] = bytes(0x2000)
    ram[0x1000:0x1004] = b"head"
    ram[0x7FFC:] = b"tail"
    path = tmp_path / "vmcore"
    layout = _write(path, bytes(ram))
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_CORE" and elf["e_machine"] == "EM_AARCH64"
        loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        for segment in loads:
            phys = segment["p_paddr"]
            assert segment.data() == ram[phys : phys + segment["p_memsz"]]
        notes = [n for s in elf.iter_segments() if s["p_type"] == "PT_NOTE" for n in s.iter_notes()]
    assert [(n["n_name"], n["n_type"]) for n in notes] == [("CORE", "NT_PRSTATUS")]
    assert path.stat().st_size == layout.size
    assert os.listdir(tmp_path) == ["vmcore"]


def test_memory_without_data_takes_no_room_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    note = bytes(12)
    core = build_elfcorehdr([_note_header(0, 12), _load_header(1 << 30, 1 << 30)])
    layout = VmcoreLayout(core, lambda phys, length: note)
    elfcore.write_vmcore(path, layout, lambda phys, length: bytes(length), lambda within: iter(()))
    assert path.stat().st_size == (1 << 30) + 4096
    assert path.stat().st_blocks * 512 < 1 << 20


def test_a_core_that_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(b"old")
    layout = VmcoreLayout(
        build_elfcorehdr([_note_header(0, 12), _load_header(0, 4096)]), lambda phys, length: bytes(length)
    )

    def broken(phys: int, length: int) -> bytes:
        raise RuntimeError("no such RAM")

    with pytest.raises(RuntimeError, match="no such RAM"):
        elfcore.write_vmcore(path, layout, broken, lambda within: iter([within]))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["vmcore"]


@given(st.binary(max_size=200))
def test_any_bytes_give_notes_or_a_format_error(data: bytes) -> None:
    try:
        notes = list(elfnote.iterate_notes(data))
    except FormatError:
        return
    assert sum(len(n.pack()) for n in notes) <= len(data) + 3


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="latin-1", exclude_characters="\0")), st.binary()), max_size=5
    )
)
def test_notes_that_are_packed_are_read_back(parts: list[tuple[str, bytes]]) -> None:
    notes = [Note(name, kind, desc) for kind, (name, desc) in enumerate(parts)]
    assert list(elfnote.iterate_notes(b"".join(n.pack() for n in notes))) == notes


@given(st.lists(st.tuples(st.integers(0, 0x160), st.integers(0, 255)), max_size=6), st.binary(max_size=64))
def test_any_damage_to_the_real_header_gives_a_layout_or_a_format_error(
    real: Real, damage: list[tuple[int, int]], memory: bytes
) -> None:
    data = bytearray(real("elf-segment.bin"))
    for place, value in damage:
        data[place] = value
    try:
        layout = VmcoreLayout(data, lambda phys, length: memory.ljust(length, b"\0")[:length])
    except FormatError:
        return
    assert layout.size == len(layout.header) + len(layout.notes) + sum(load.size for load in layout.loads)
    assert elfcore.parse_core_header(layout.header).program_headers == layout.program_headers


@pytest.mark.parametrize("count", [33, 35])
def test_another_number_of_registers_is_our_own_mistake(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} registers"):
        elfnote.crash_note(0, range(count))


def test_a_header_that_does_not_fit_in_its_segment_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="120 bytes of core header"):
        build_elfcorehdr([_note_header(0, 12)], size=64)
