"""Relocations at their limits, against what ld.lld and GNU ld make of the same object."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from errno import ENOEXEC
from pathlib import Path
from typing import NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.errors import KexecError
from kexecemu.formats import elfrel
from kexecemu.kernel.image.relocate import SUPPORTED_TYPES, relocate

# Far from both ends of the address space, so that every limit can be reached from here.
TEXT = 0x0000_5555_0000_0000
GNU_LD = shutil.which("aarch64-linux-gnu-ld")
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
ZIG = [sys.executable, "-m", "ziglang"]

K, M, G = 1 << 10, 1 << 20, 1 << 30


class Kind(NamedTuple):
    """A relocation type: the word it patches, what its value is relative to, and its inclusive limits."""

    number: int
    name: str
    word: int
    base: str  # "absolute", "place" or "page"
    low: int
    high: int
    step: int = 1
    size: int = 4
    checked: bool = True


BL, B, BEQ, TBZ, LDR_LIT, ADR, ADRP = (
    0x94000000,
    0x14000000,
    0x54000000,
    0x36000000,
    0x58000000,
    0x10000000,
    0x90000000,
)
ADD, LDRB, LDRH, LDRW, LDRX, LDRQ = 0x91000000, 0x39400000, 0x79400000, 0xB9400000, 0xF9400000, 0x3DC00000
MOVZ = (0xD2800000, 0xD2A00000, 0xD2C00000, 0xD2E00000)
MOVK = (0xF2800000, 0xF2A00000, 0xF2C00000)
TOP = (1 << 64) - 1

KINDS = [
    Kind(257, "ABS64", 0, "absolute", 0, TOP, size=8, checked=False),
    Kind(258, "ABS32", 0, "absolute", 0, 4 * G - 1),
    Kind(260, "PREL64", 0, "place", -(1 << 44), 1 << 44, size=8, checked=False),
    Kind(261, "PREL32", 0, "place", -2 * G, 2 * G - 1),
    Kind(263, "MOVW_UABS_G0", MOVZ[0], "absolute", 0, (1 << 16) - 1),
    Kind(264, "MOVW_UABS_G0_NC", MOVK[0], "absolute", 0, TOP, checked=False),
    Kind(265, "MOVW_UABS_G1", MOVZ[1], "absolute", 0, (1 << 32) - 1),
    Kind(266, "MOVW_UABS_G1_NC", MOVK[1], "absolute", 0, TOP, checked=False),
    Kind(267, "MOVW_UABS_G2", MOVZ[2], "absolute", 0, (1 << 48) - 1),
    Kind(268, "MOVW_UABS_G2_NC", MOVK[2], "absolute", 0, TOP, checked=False),
    Kind(269, "MOVW_UABS_G3", MOVZ[3], "absolute", 0, TOP, checked=False),
    Kind(273, "LD_PREL_LO19", LDR_LIT, "place", -M, M - 4, 4),
    Kind(274, "ADR_PREL_LO21", ADR, "place", -M, M - 1),
    Kind(275, "ADR_PREL_PG_HI21", ADRP, "page", -4 * G, 4 * G - 4 * K, 4 * K),
    Kind(276, "ADR_PREL_PG_HI21_NC", ADRP, "page", -4 * G, 4 * G - 4 * K, 4 * K, checked=False),
    Kind(277, "ADD_ABS_LO12_NC", ADD, "absolute", 0, TOP, checked=False),
    Kind(278, "LDST8_ABS_LO12_NC", LDRB, "absolute", 0, TOP, checked=False),
    Kind(279, "TSTBR14", TBZ, "place", -32 * K, 32 * K - 4, 4),
    Kind(280, "CONDBR19", BEQ, "place", -M, M - 4, 4),
    Kind(282, "JUMP26", B, "place", -128 * M, 128 * M - 4, 4),
    Kind(283, "CALL26", BL, "place", -128 * M, 128 * M - 4, 4),
    Kind(284, "LDST16_ABS_LO12_NC", LDRH, "absolute", 0, TOP - 1, 2, checked=False),
    Kind(285, "LDST32_ABS_LO12_NC", LDRW, "absolute", 0, TOP - 3, 4, checked=False),
    Kind(286, "LDST64_ABS_LO12_NC", LDRX, "absolute", 0, TOP - 7, 8, checked=False),
    Kind(299, "LDST128_ABS_LO12_NC", LDRQ, "absolute", 0, TOP - 15, 16, checked=False),
]
BY_NAME = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


class Case(NamedTuple):
    """One word to patch: at TEXT + 16 * its number in the list."""

    kind: Kind
    symbol: int
    addend: int

    def apply(self, word: int, place: int) -> bytes:
        data = bytearray(word.to_bytes(8, "little"))
        relocate(self.kind.number, data, 0, place, self.symbol, self.addend)
        return bytes(data)


def _case(kind: Kind, value: int, place: int, addend: int = 0) -> Case:
    """The case whose value, in the terms of the kind's limits, is `value`."""
    target = {"absolute": value, "place": place + value, "page": (place & ~0xFFF) + value + 0x123}[kind.base]
    return Case(kind, (target - addend) & TOP, addend)


def _place(number: int) -> int:
    return TEXT + 16 * number


def _good_cases() -> list[Case]:
    cases: list[Case] = []
    for kind in KINDS:
        middle = (kind.low + kind.high) // 3 & -kind.step
        for value in (
            kind.low,
            kind.low + kind.step,
            -0x7654 & -kind.step,
            0,
            0x7654 & -kind.step,
            middle,
            kind.high,
        ):
            if kind.low <= value <= kind.high:
                for addend in (0, 0x1230, -0x1230):
                    cases.append(_case(kind, value, _place(len(cases)), addend))
    return cases


def _assemble(cases: Sequence[Case], folder: Path, ones: bool) -> Path:
    lines = [".text", ".p2align 4"]
    for number, case in enumerate(cases):
        lines.append(f".reloc {16 * number}, R_AARCH64_{case.kind.name}, s{number} + {case.addend}")
        lines += [f".inst {_word(case.kind, ones):#x}"] + [".inst 0"] * 3
    source = folder / "cases.s"
    source.write_text("\n".join(lines) + "\n")
    command = [*ZIG, "cc", "-target", "aarch64-freestanding-none", "-c", "-o", "cases.o", "cases.s"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "cases.o"


def _word(kind: Kind, ones: bool) -> int:
    """The word before relocation; with every bit of its immediate set if `ones`."""
    if not ones or kind.word == 0:
        return kind.word
    data = bytearray(8)
    # Relocating with the value -1 sets exactly the field; for those that refuse it, the greatest that fits.
    value = -kind.step if kind.low < 0 else kind.high
    case = _case(kind, value, TEXT)
    relocate(kind.number, data, 0, TEXT, case.symbol, case.addend)
    return kind.word | int.from_bytes(data, "little")


def _link(linker: Sequence[str], obj: Path, cases: Sequence[Case]) -> subprocess.CompletedProcess[str]:
    symbols = [f"s{number} = {case.symbol:#x};" for number, case in enumerate(cases)]
    script = obj.with_name("script.lds")
    script.write_text(
        "\n".join(symbols)
        + f"\nSECTIONS {{ .text {TEXT:#x} : {{ *(.text) }} /DISCARD/ : {{ *(.note*) }} }}\n"
    )
    command = [*linker, "-o", "linked", "-T", script.name, obj.name]
    return subprocess.run(command, cwd=obj.parent, stderr=subprocess.PIPE, text=True, check=False)


def _linked_text(folder: Path) -> bytes:
    section = ELFFile(io.BytesIO((folder / "linked").read_bytes())).get_section_by_name(".text")
    assert section["sh_addr"] == TEXT
    data: bytes = section.data()
    return data


LLD = [*ZIG, "ld.lld", "--error-limit=0"]


@needs_zig
@pytest.mark.parametrize(
    ("linker", "ones"),
    [
        pytest.param(LLD, False, id="ld.lld"),
        pytest.param(
            [GNU_LD], True, id="GNU ld", marks=pytest.mark.skipif(GNU_LD is None, reason="no aarch64 GNU ld")
        ),
    ],
)
def test_every_type_gives_the_linker_s_bytes_up_to_its_limits(
    tmp_path: Path, linker: Sequence[str], ones: bool
) -> None:
    """With GNU ld the immediates are all ones beforehand: a linker clears them, and so must this."""
    cases = _good_cases()
    result = _link(linker, _assemble(cases, tmp_path, ones), cases)
    assert result.returncode == 0, result.stderr
    text = _linked_text(tmp_path)
    for number, case in enumerate(cases):
        found = case.apply(_word(case.kind, ones), _place(number))
        assert found[: case.kind.size] == text[16 * number :][: case.kind.size], case
        # A 4-byte word leaves its neighbour alone.
        assert found[4:] == bytes(4) or case.kind.size == 8


def _bad_cases() -> list[Case]:
    checked = [kind for kind in KINDS if kind.checked]
    values = [(kind, value) for kind in checked for value in (kind.low - kind.step, kind.high + kind.step)]
    return [_case(kind, value, _place(number)) for number, (kind, value) in enumerate(values)]


@needs_zig
def test_one_step_beyond_its_limits_every_checked_type_is_refused_here_and_by_ld_lld(tmp_path: Path) -> None:
    cases = _bad_cases()
    for number, case in enumerate(cases):
        with pytest.raises(
            KexecError, match=f"overflow in relocation type {case.kind.number} val 0x"
        ) as caught:
            case.apply(case.kind.word, _place(number))
        assert caught.value.errno == ENOEXEC
    result = _link(LLD, _assemble(cases, tmp_path, ones=False), cases)
    refused = {int(number) for number in re.findall(r"out of range.*references 's(\d+)'", result.stderr)}
    for number, case in enumerate(cases):
        # A linker puts a veneer where a branch cannot reach, and reads 32-bit words as signed or unsigned
        # alike.
        if case.kind.name not in ("JUMP26", "CALL26", "ABS32", "PREL32"):
            assert number in refused, case


@BY_NAME
def test_a_misaligned_value_is_refused_where_the_field_drops_its_low_bits(kind: Kind) -> None:
    case = _case(kind, 0x7001, TEXT)
    if kind.step in (1, 4 * K):
        case.apply(kind.word, TEXT)
    else:
        with pytest.raises(
            KexecError, match=f"misaligned value .* in relocation type {kind.number}"
        ) as caught:
            case.apply(kind.word, TEXT)
        assert caught.value.errno == ENOEXEC


@BY_NAME
def test_a_word_that_is_not_wholly_inside_its_section_is_refused(kind: Kind) -> None:
    case = _case(kind, 0, TEXT)
    for offset in (-4, 12 - kind.size + 1, 1 << 40):
        with pytest.raises(KexecError, match="is outside its section") as caught:
            relocate(kind.number, bytearray(12), offset, TEXT, case.symbol, case.addend)
        assert caught.value.errno == ENOEXEC


def test_every_supported_type_is_tested_here() -> None:
    assert {kind.number for kind in KINDS} | {0, 256} == SUPPORTED_TYPES


def test_sums_wrap_at_64_bits_as_the_kernel_s_do() -> None:
    data = bytearray(8)
    relocate(257, data, 0, 0, TOP, 2)
    assert data == (1).to_bytes(8, "little")
    relocate(261, data, 0, 8, 0, 0)
    assert data == b"\xf8\xff\xff\xff\0\0\0\0"


@pytest.mark.parametrize("number", [0, 256])
def test_the_relocation_that_does_nothing_does_nothing(number: int) -> None:
    data = bytearray(b"\xa5" * 8)
    relocate(number, data, 1 << 60, 0, 0x1234, 0x5678)
    assert data == b"\xa5" * 8


@pytest.mark.parametrize("number", [1, 259, 270, 311, 312, 313, 1027, 0xFFFFFFFF])
def test_an_unknown_type_is_refused_in_the_kernel_s_words(number: int) -> None:
    with pytest.raises(KexecError) as caught:
        relocate(number, bytearray(8), 0, 0, 0, 0)
    why = ": by a GOT, which is not there (compile with -fno-pic)" if 300 <= number <= 313 else ""
    assert str(caught.value) == (
        f"Unknown rela relocation: {number}{why} (ENOEXEC from arch_kexec_apply_relocations_add)"
    )


@needs_zig
def test_our_purgatory_is_relocated_as_ld_lld_links_it(tmp_path: Path) -> None:
    """The object that all of this is for: every allocated section's bytes at one address each."""
    path = Path(__file__).parents[2] / "purgatory/purgatory.ro"
    script = tmp_path / "flat.lds"
    obj = elfrel.parse(path.read_bytes())
    allocated = [s for s in obj.sections if s.flags & 2 and s.size]
    addresses = {s.index: 0x6FF00000 + 0x8000 * number for number, s in enumerate(allocated)}
    parts = [f"{s.name} {addresses[s.index]:#x} : {{ *({s.name}) }}" for s in allocated]
    script.write_text(f"SECTIONS {{ {' '.join(parts)} }}\n")
    command = [*ZIG, "ld.lld", "-e", "purgatory_start", "-T", str(script), "-o", "linked", str(path)]
    subprocess.run(command, cwd=tmp_path, check=True)
    linked = ELFFile(io.BytesIO((tmp_path / "linked").read_bytes()))
    applied = 0
    for index, relocations in obj.relocations.items():
        target = obj.sections[obj.sections[index].info]
        section = bytearray(target.data)
        symbols = obj.symbol_tables[obj.sections[index].link]
        start = addresses[target.index]
        for rela in relocations:
            symbol = symbols[rela.symbol]
            value = symbol.value + addresses[symbol.shndx]
            relocate(rela.type, section, rela.offset, start + rela.offset, value, rela.addend)
        applied += len(relocations)
        assert section == linked.get_section_by_name(target.name).data()
    assert applied > 0
