"""purgatory.ro as an object: what a loader that only knows the kernel's rules finds in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

# What a careful loader applies, see "ELF for the Arm 64-bit Architecture": no GOT, no TLS, nothing dynamic.
LOADABLE = {257, 258, 260, 261, *range(263, 270), *range(273, 281), 282, 283, 284, 285, 286, 299}

SYMBOLS = {
    "purgatory_sha_regions": 256,
    "purgatory_sha256_digest": 32,
    "purgatory_kernel_entry": 8,
    "purgatory_uart_base": 8,
    "purgatory_verdict": 88,
}


@pytest.fixture
def elf(purgatory_ro: Path) -> ELFFile:
    """The object, parsed."""
    return ELFFile.load_from_path(str(purgatory_ro))


def symbol(elf: ELFFile, name: str):  # type: ignore[no-untyped-def]
    """The one symbol of that name."""
    (found,) = elf.get_section_by_name(".symtab").get_symbol_by_name(name)
    return found


def test_it_is_a_relocatable_object_for_aarch64(elf: ELFFile) -> None:
    assert (elf["e_type"], elf["e_machine"], elf.elfclass) == ("ET_REL", "EM_AARCH64", 64)
    assert elf.little_endian


@pytest.mark.parametrize(("name", "size"), SYMBOLS.items())
def test_a_symbol_that_a_loader_sets_can_be_set(elf: ELFFile, name: str, size: int) -> None:
    """kexec_purgatory_get_set_symbol() wants it global, of the exact size, and not in a bss section."""
    found = symbol(elf, name)
    section = elf.get_section(found["st_shndx"])
    assert found["st_info"]["bind"] == "STB_GLOBAL"
    assert found["st_other"]["visibility"] == "STV_DEFAULT"
    assert found["st_size"] == size
    assert (section.name, section["sh_type"]) == (".kexec-purgatory", "SHT_PROGBITS")
    assert section["sh_flags"] & SH_FLAGS.SHF_WRITE
    assert found["st_value"] % 8 == 0 or size % 8


def test_the_entry_is_the_first_instruction_of_the_only_executable_section(elf: ELFFile) -> None:
    """A loader finds it by name, by e_entry or by being first: all three agree."""
    start = symbol(elf, "purgatory_start")
    executable = [s for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_EXECINSTR]
    assert [s.name for s in executable] == [".text"]
    assert elf.get_section(start["st_shndx"]).name == ".text"
    assert start["st_value"] == elf["e_entry"] == 0
    assert start["st_info"]["bind"] == "STB_GLOBAL"


def test_no_symbol_is_undefined_common_or_absolute(elf: ELFFile) -> None:
    for found in elf.get_section_by_name(".symtab").iter_symbols():
        if found.name and found["st_info"]["type"] != "STT_FILE":
            assert isinstance(found["st_shndx"], int), found.name


def test_the_complete_link_succeeded(gcc_build: Path) -> None:
    chk = ELFFile.load_from_path(str(gcc_build / "purgatory.chk"))
    assert chk["e_type"] == "ET_EXEC"


def test_only_recommended_relocations_are_used(elf: ELFFile) -> None:
    kinds = set()
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_RELA":
            kinds |= {relocation["r_info_type"] for relocation in section.iter_relocations()}
        assert section["sh_type"] != "SHT_REL"
    assert kinds <= LOADABLE
    # Those of a real kernel's purgatory of the tiny code model, and so what this one is documented to need.
    assert kinds == {273, 274, 283}


def test_nothing_is_allocated_that_only_a_debugger_or_unwinder_reads(elf: ELFFile) -> None:
    allocated = {s.name for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC and s["sh_size"]}
    assert {re.sub(r"\.str1\.\d", "", name) for name in allocated} == {
        ".text",
        ".rodata",
        ".kexec-purgatory",
        ".bss",
    }
    assert not [s.name for s in elf.iter_sections() if s.name.startswith((".debug", ".eh_frame"))]


def test_it_fits_into_three_pages_with_its_stack(elf: ELFFile) -> None:
    sections = [s for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC]
    assert sum(s["sh_size"] + s["sh_addralign"] for s in sections) < 12 * 1024


def test_the_verdict_record_is_recognised_before_anything_ran(elf: ELFFile) -> None:
    found = symbol(elf, "purgatory_verdict")
    data = elf.get_section(found["st_shndx"]).data()[found["st_value"] :][:88]
    assert data == b"PURGVRDT" + (1).to_bytes(4, "little") + bytes(76)


def test_every_instruction_can_run_with_the_mmu_off(elf: ELFFile) -> None:
    """No FP or SIMD register, no exclusive or atomic access, no cache maintenance by zeroing, no exception.

    Unicorn would execute all of those without complaint, so this is read from the code.
    """
    code = elf.get_section_by_name(".text").data()
    instructions = list(Cs(CS_ARCH_ARM64, CS_MODE_ARM).disasm(code, 0))
    assert sum(i.size for i in instructions) == len(code), "something in .text is no instruction"
    for i in instructions:
        assert not re.search(r"\b[qdvhsb]\d+\b", i.op_str), f"{i.mnemonic} {i.op_str}"
        assert not re.match(
            r"(ld|st)a?x|cas|swp|ld(add|clr|set|eor)|dc|ic|at|hvc|smc|svc|brk|msr", i.mnemonic
        )


def test_the_stack_has_room_for_the_deepest_call(elf: ELFFile) -> None:
    """All frames together fit twice; the one function that recurses does so for 10 digits at most."""
    code = elf.get_section_by_name(".text").data()
    text = "\n".join(f"{i.mnemonic} {i.op_str}" for i in Cs(CS_ARCH_ARM64, CS_MODE_ARM).disasm(code, 0))
    frames = [int(size, 0) for size in re.findall(r"(?:sub sp, sp, #|\[sp, #-)(\w+)(?:\]!)?$", text, re.M)]
    assert 0 < sum(frames) < 2048
    assert symbol(elf, "purgatory_stack")["st_size"] == 4096
