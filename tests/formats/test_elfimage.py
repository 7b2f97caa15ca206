"""ET_EXEC kernels, compared with what pyelftools reads of the same bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import elfimage

GUESTS = Path(__file__).parents[2] / "fixtures/guests"
VMLINUX = (GUESTS / "vmlinux").read_bytes()


@pytest.mark.parametrize("name", ["vmlinux", "capture.elf"])
def test_segments_are_those_that_pyelftools_reads(name: str) -> None:
    data = (GUESTS / name).read_bytes()
    theirs = [s for s in ELFFile(io.BytesIO(data)).iter_segments() if s["p_type"] == "PT_LOAD"]
    ours = elfimage.parse(data).segments
    assert theirs and len(ours) == len(theirs)
    for segment, other in zip(ours, theirs, strict=True):
        assert (segment.vaddr, segment.paddr) == (other["p_vaddr"], other["p_paddr"])
        assert (segment.offset, segment.filesz, segment.memsz) == (
            other["p_offset"],
            other["p_filesz"],
            other["p_memsz"],
        )
        assert segment.flags == other["p_flags"]
        assert segment.data == other.data()


def test_symbols_are_those_that_pyelftools_reads() -> None:
    table = ELFFile(io.BytesIO(VMLINUX)).get_section_by_name(".symtab")
    theirs = {
        s.name: s["st_value"]
        for s in table.iter_symbols()
        if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_shndx"] != "SHN_UNDEF"
    }
    ours = elfimage.parse(VMLINUX)
    assert len(theirs) > 50
    assert {name: ours.symbols[name] for name in theirs} == theirs
    assert ours.symbol_table["_text"].value == ours.symbols["_text"]
    assert not any(name.startswith("$") for name in ours.symbols)


def test_the_build_id_is_the_one_that_pyelftools_reads() -> None:
    sections = (s for s in ELFFile(io.BytesIO(VMLINUX)).iter_sections() if s["sh_type"] == "SHT_NOTE")
    theirs = [n["n_desc"] for s in sections for n in s.iter_notes() if n["n_type"] == "NT_GNU_BUILD_ID"]
    build_id = elfimage.parse(VMLINUX).build_id
    assert build_id is not None
    assert [build_id.hex()] == theirs


def test_a_kernel_without_a_build_id_has_none() -> None:
    assert elfimage.parse(VMLINUX.replace(b"GNU\0", b"XNU\0")).build_id is None


def test_the_entry_is_the_header_s() -> None:
    assert elfimage.parse(VMLINUX).entry == ELFFile(io.BytesIO(VMLINUX))["e_entry"]


def _patched(offset: int, fmt: str, value: int) -> bytes:
    data = bytearray(VMLINUX)
    struct.pack_into(fmt, data, offset, value)
    return bytes(data)


def _first_load() -> int:
    phoff, phnum = struct.unpack_from("<Q", VMLINUX, 0x20)[0], struct.unpack_from("<H", VMLINUX, 0x38)[0]
    return next(at for at in range(phoff, phoff + 56 * phnum, 56) if VMLINUX[at : at + 4] == b"\1\0\0\0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_patched(0x10, "<H", 1), "ELF type 1 at offset 0x10, not 2"),
        (_patched(0x36, "<H", 32), "program header size 32"),
        (_patched(0x38, "<H", 0xFFFF), "65535 program headers at 0x40 are truncated"),
        (_patched(_first_load() + 8, "<Q", 1 << 60), "is outside the file"),
        (_patched(_first_load() + 40, "<Q", 0), "bytes in the file and 0x0 in memory"),
    ],
)
def test_a_damaged_kernel_is_refused_with_what_and_where(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        elfimage.parse(data)


# Without DWARF the file is small enough to be damaged thousands of times.
SMALL = VMLINUX[:0x28] + bytes(8) + VMLINUX[0x30:0x3A] + bytes(6) + VMLINUX[0x40:0x2000]


@given(
    st.lists(st.tuples(st.integers(0, 0x400), st.integers(0, 255)), max_size=8), st.integers(0, len(SMALL))
)
def test_any_damage_gives_a_kernel_or_a_format_error(damage: list[tuple[int, int]], length: int) -> None:
    blob = bytearray(SMALL[:length])
    for place, value in damage:
        if place < length:
            blob[place] = value
    try:
        kernel = elfimage.parse(blob)
    except FormatError:
        return
    assert all(len(segment.data) == segment.filesz for segment in kernel.segments)
