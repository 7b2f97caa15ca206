"""Linking a purgatory: against linkers, and against everything that is no purgatory."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
from errno import EINVAL, ENOEXEC, ENOMEM
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.data import purgatory_path
from kexecemu.errors import KexecError
from kexecemu.kernel.image.kimage import Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory, parse_purgatory

SMALL = Path(__file__).parents[1] / "data/kernel/purgatory-small.ro.gz"
OBJECT = gzip.decompress(SMALL.read_bytes())
ELF = ELFFile(BytesIO(OBJECT))
BASE = 0x6FFFC000  # where a real 6.1 kernel put a purgatory of three pages
SHDR_SIZE, SYM_SIZE, RELA_SIZE = 64, 24, 24

LLD = [sys.executable, "-m", "ziglang", "ld.lld"] if find_spec("ziglang") else None
BFD = ["aarch64-linux-gnu-ld"] if shutil.which("aarch64-linux-gnu-ld") else None


def load(data: bytes = OBJECT, base: int = BASE) -> LoadedPurgatory:
    def place(buf: bytearray, memsz: int, align: int) -> Segment:
        return Segment("purgatory", buf, base, -(-memsz // 4096) * 4096)

    return LoadedPurgatory(parse_purgatory(data), place)


def refused(data: bytes) -> KexecError:
    with pytest.raises(KexecError) as refusal:
        load(data).set_symbol("purgatory_sha_regions", bytes(256))
    return refusal.value


def section_index(name: str) -> int:
    return next(index for index, one in enumerate(ELF.iter_sections()) if one.name == name)


def symbol_index(name: str) -> int:
    symbols = ELF.get_section_by_name(".symtab").iter_symbols()
    return next(index for index, one in enumerate(symbols) if one.name == name)


def patched(offset: int, data: bytes) -> bytes:
    return OBJECT[:offset] + data + OBJECT[offset + len(data) :]


def shdr(name: str, field: int, value: int, size: int = 8) -> bytes:
    """The object with one field (at byte `field`) of a section's header changed."""
    return patched(ELF["e_shoff"] + section_index(name) * SHDR_SIZE + field, value.to_bytes(size, "little"))


def sym(name: str, field: int, data: bytes) -> bytes:
    """The object with some bytes of a symbol table entry changed."""
    table = ELF.get_section_by_name(".symtab")
    return patched(table["sh_offset"] + symbol_index(name) * SYM_SIZE + field, data)


def rela(field: int, data: bytes, entry: int = 0) -> bytes:
    return patched(ELF.get_section_by_name(".rela.text")["sh_offset"] + entry * RELA_SIZE + field, data)


SH_TYPE, SH_FLAGS, SH_SIZE, SH_LINK, SH_INFO, SH_ALIGN = 4, 8, 32, 40, 44, 48
ST_INFO, ST_SHNDX, ST_VALUE, ST_SIZE = 4, 6, 8, 16
R_OFFSET, R_TYPE, R_SYMBOL, R_ADDEND = 0, 8, 12, 16


# -- linking ---------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    "data", [pytest.param(OBJECT, id="small"), pytest.param(purgatory_path().read_bytes(), id="shipped")]
)
@pytest.mark.parametrize("base", [BASE, 0x7EBFC000, 0x1_4000_0000, 0x123_4560_3000])
@pytest.mark.parametrize(
    "linker",
    [
        pytest.param(LLD, id="lld", marks=pytest.mark.skipif(not LLD, reason="needs ziglang's ld.lld")),
        pytest.param(BFD, id="bfd", marks=pytest.mark.skipif(not BFD, reason="needs aarch64-linux-gnu-ld")),
    ],
)
def test_the_model_links_what_a_linker_links(
    linker: list[str], base: int, data: bytes, tmp_path: Path
) -> None:
    """Same sections at the same addresses, told by a linker script: the same bytes, symbols and entry."""
    loaded = load(data, base)
    alloc = [one for one in ELFFile(BytesIO(data)).iter_sections() if one["sh_flags"] & 2]
    ordered = [one for one in alloc if one["sh_type"] != "SHT_NOBITS"]
    ordered += [one for one in alloc if one["sh_type"] == "SHT_NOBITS"]
    body = "".join(f"  {one.name} : {{ *({one.name}) }}\n" for one in ordered)
    script = tmp_path / "script.lds"
    script.write_text(
        f"ENTRY(purgatory_start)\nSECTIONS {{\n  . = {base:#x};\n{body}  /DISCARD/ : {{ *(.comment .note*) }}\n}}\n"
    )
    output, source = tmp_path / "linked", tmp_path / "purgatory.ro"
    source.write_bytes(data)
    subprocess.run(
        [*linker, "-o", str(output), "-T", str(script), "-z", "max-page-size=4096", str(source)],
        check=True,
        capture_output=True,
    )
    with output.open("rb") as file:
        linked = ELFFile(file)
        assert linked["e_entry"] == loaded.entry
        for section in linked.iter_sections():
            if not section["sh_flags"] & 2 or section["sh_type"] == "SHT_NOBITS":
                continue
            at = section["sh_addr"] - base
            assert section.data() == bytes(loaded.buf[at : at + section["sh_size"]]), section.name
        table = loaded.symbol_table()
        found = 0
        for symbol in linked.get_section_by_name(".symtab").iter_symbols():
            if symbol.name in table:
                found += 1
                assert table[symbol.name] == (symbol["st_value"], symbol["st_size"]), symbol.name
        assert found == len(table) >= 15


def test_the_entry_is_purgatory_start() -> None:
    loaded = load()
    assert loaded.entry == loaded.symbol_phys("purgatory_start") == BASE


def test_bss_follows_the_buffer_and_only_takes_memory() -> None:
    loaded = load()
    bss, stack_size = loaded.symbol_table()["purgatory_stack"]
    assert bss == BASE + -(-len(loaded.buf) // 16) * 16 and stack_size == 4096
    assert len(loaded.buf) < bss + stack_size - BASE <= loaded.segment.memsz


def test_where_a_purgatory_is_asked_to_go_is_what_it_is_linked_for() -> None:
    asked: list[tuple[int, int, int]] = []

    def place(buf: bytearray, memsz: int, align: int) -> Segment:
        asked.append((len(buf), memsz, align))
        return Segment("purgatory", buf, BASE + 0x10000, 0x3000)

    loaded = LoadedPurgatory(parse_purgatory(OBJECT), place)
    assert asked == [(len(loaded.buf), len(loaded.buf) + 4096, 16)]
    assert loaded.entry == BASE + 0x10000


# -- symbols ---------------------------------------------------------------------------------------------------


def test_setting_a_symbol_changes_its_bytes_in_the_buffer_and_nothing_else() -> None:
    loaded, untouched = load(), load()
    loaded.set_symbol("purgatory_sha256_digest", b"\xa5" * 32)
    at = loaded.symbol_phys("purgatory_sha256_digest") - BASE
    expected = bytearray(untouched.buf)
    expected[at : at + 32] = b"\xa5" * 32
    assert loaded.buf == expected != untouched.buf


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("purgatory_sha_region", 256, "symbol purgatory_sha_region does not exist"),
        ("sha256_transform", 2220, "does not exist"),  # a local symbol is none
        (
            "purgatory_sha256_digest",
            31,
            "symbol purgatory_sha256_digest size mismatch: expected 31 actual 32",
        ),
        ("purgatory_kernel_entry", 4, "size mismatch: expected 4 actual 8"),
    ],
)
def test_a_symbol_that_is_missing_or_has_another_size_cannot_be_set(name: str, size: int, words: str) -> None:
    loaded = load()
    before = bytes(loaded.buf)
    with pytest.raises(KexecError) as refusal:
        loaded.set_symbol(name, bytes(size))
    assert refusal.value.errno == EINVAL and words in refusal.value.reason
    assert loaded.buf == before


def test_the_address_of_a_missing_symbol_is_an_error_and_not_zero() -> None:
    with pytest.raises(KexecError) as refusal:
        load().symbol_phys("nothing")
    assert refusal.value.errno == EINVAL
    assert load().has_symbol("purgatory") and not load().has_symbol("nothing")


# -- objects that are no purgatory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "errno", "words"),
    [
        (b"", ENOEXEC, "too short for an ELF header"),
        (OBJECT[:40], ENOEXEC, "too short for an ELF header"),
        (OBJECT[: len(OBJECT) // 2], ENOEXEC, "truncated"),
        (b"\0" + OBJECT[1:], ENOEXEC, "no ELF magic"),
        (patched(4, b"\x01"), ENOEXEC, "not 64-bit little endian"),
        (patched(5, b"\x02"), ENOEXEC, "not 64-bit little endian"),
        (patched(16, b"\x02\0"), ENOEXEC, "ELF type 2"),
        (patched(18, b"\x3e\0"), ENOEXEC, "ELF machine 62"),
        (rela(R_TYPE, struct.pack("<I", 311)), ENOEXEC, "Unknown rela relocation: 311"),
        (rela(R_TYPE, struct.pack("<I", 9999)), ENOEXEC, "Unknown rela relocation: 9999"),
        (rela(R_SYMBOL, struct.pack("<I", 9999)), ENOEXEC, "no symbol number 9999"),
        (rela(R_OFFSET, struct.pack("<Q", 0x1078)), ENOEXEC, "outside its section"),
        (rela(R_OFFSET, struct.pack("<Q", 1 << 63)), ENOEXEC, "outside its section"),
        (rela(R_ADDEND, struct.pack("<q", 1 << 40)), ENOEXEC, "overflow in relocation type"),
        (sym("console_puts", ST_SHNDX, b"\0\0"), ENOEXEC, "Undefined symbol: console_puts"),
        (sym("console_puts", ST_SHNDX, b"\xf2\xff"), ENOEXEC, "symbol 'console_puts' in common section"),
        (sym("console_puts", ST_SHNDX, b"\x64\0"), ENOEXEC, "Invalid section 100 for symbol console_puts"),
        (shdr(".rela.text", SH_INFO, 99, 4), ENOEXEC, "relocation section has no target"),
        (shdr(".rela.text", SH_LINK, 99, 4), ENOEXEC, "relocation section has no target"),
        (shdr(".rela.text", SH_TYPE, 9, 4), ENOEXEC, "REL relocation unsupported."),
        (shdr(".text", SH_FLAGS, 2), ENOEXEC, "no purgatory_start in executable code"),
        (sym("purgatory_sha_regions", ST_SIZE, struct.pack("<Q", 128)), EINVAL, "expected 256 actual 128"),
        (
            sym("purgatory_sha_regions", ST_INFO, b"\x01"),
            EINVAL,
            "symbol purgatory_sha_regions does not exist",
        ),
        (
            sym("purgatory_sha_regions", ST_SHNDX, section_index(".bss").to_bytes(2, "little")),
            EINVAL,
            "symbol purgatory_sha_regions is in a bss section. Cannot set",
        ),
        (
            sym("purgatory_sha_regions", ST_VALUE, struct.pack("<Q", 0x10000)),
            EINVAL,
            "lies outside its section",
        ),
        (shdr(".bss", SH_ALIGN, 1 << 40), ENOMEM, "purgatory"),
        (shdr(".rodata", SH_ALIGN, 1 << 62), ENOMEM, "purgatory"),
    ],
)
def test_an_object_that_is_no_purgatory_is_refused_with_the_kernel_s_errno(
    data: bytes, errno: int, words: str
) -> None:
    error = refused(data)
    assert (error.errno, words in error.reason) == (errno, True), error


def test_an_object_with_nothing_to_load_is_refused() -> None:
    data = OBJECT
    for name in (".text", ".bss", ".kexec-purgatory", ".rodata.str1.1", ".rodata"):
        offset = ELF["e_shoff"] + section_index(name) * SHDR_SIZE + SH_FLAGS
        data = data[:offset] + bytes(8) + data[offset + 8 :]
    assert refused(data).errno == EINVAL


def test_e_entry_serves_where_there_is_no_purgatory_start() -> None:
    """The way of kernels before the symbol was looked for: the entry that ld -e left in the header."""
    data = bytearray(sym("purgatory_start", ST_INFO, b"\x02"))  # local now
    data[24:32] = struct.pack("<Q", 0x34)  # e_entry: `purgatory`
    assert load(bytes(data)).entry == BASE + 0x34


def test_a_relocation_of_a_section_that_is_not_loaded_is_left_alone() -> None:
    data = bytearray(OBJECT)
    at = ELF["e_shoff"] + section_index(".rela.text") * SHDR_SIZE + SH_INFO
    data[at : at + 4] = struct.pack("<I", section_index(".comment"))
    text = ELF.get_section_by_name(".text")
    assert load(bytes(data)).buf[: text["sh_size"]] == text.data()


@given(st.lists(st.tuples(st.integers(0, len(OBJECT) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_to_the_object_does_anything_but_load_or_refuse(damage: list[tuple[int, int]]) -> None:
    data = bytearray(OBJECT)
    for offset, byte in damage:
        data[offset] = byte
    _load_or_refuse(bytes(data))


HEADERS = range(ELF["e_shoff"], len(OBJECT))
TABLES = range(ELF.get_section_by_name(".rela.text")["sh_offset"], ELF["e_shoff"])


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 63), st.sampled_from(HEADERS), st.sampled_from(TABLES)),
            st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_damage_to_headers_and_tables_does_anything_but_load_or_refuse(
    damage: list[tuple[int, int]],
) -> None:
    data = bytearray(OBJECT)
    for offset, byte in damage:
        data[offset] = byte
    _load_or_refuse(bytes(data))


@given(st.integers(0, len(OBJECT)))
def test_no_truncated_object_is_loaded_as_if_it_were_whole(length: int) -> None:
    if length < len(OBJECT):
        assert refused(OBJECT[:length]).errno == ENOEXEC


def test_a_null_section_that_claims_to_be_loaded_is_no_part_of_the_buffer() -> None:
    data = bytearray(shdr(".rodata", SH_TYPE, 0, 4))
    data[ELF["e_shoff"] + section_index(".rela.text") * SHDR_SIZE + SH_INFO] = section_index(".comment")
    asked: list[int] = []

    def place(buf: bytearray, memsz: int, align: int) -> Segment:
        asked.append(len(buf))
        return Segment("purgatory", buf, BASE, 0x3000)

    loaded = LoadedPurgatory(parse_purgatory(bytes(data)), place)
    assert asked == [len(loaded.buf)] and len(loaded.buf) < len(load().buf) - 0x100 + 16


def _load_or_refuse(data: bytes) -> None:
    try:
        loaded = load(data)
        loaded.set_symbol("purgatory_sha_regions", bytes(256))
        loaded.set_symbol("purgatory_sha256_digest", bytes(32))
        loaded.symbol_table()
    except KexecError as error:
        assert error.errno in (EINVAL, ENOEXEC, ENOMEM)
    else:
        assert len(loaded.buf) <= loaded.segment.memsz
