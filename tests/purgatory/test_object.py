"""purgatory.ro as an object: what a loader that only knows the kernel's rules finds in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from kexecemu.data import purgatory_path

# What a careful loader applies, see "ELF for the Arm 64-bit Architecture": no GOT, no TLS, nothing dynamic.
LOADABLE = {257, 258, 260, 261, *range(263, 270), *range(273, 281), 282, 283, 284, 285, 286, 299}

SYMBOLS = {
    "purgatory_sha_regions": 256,
    "purgatory_sha256_digest": 32,
    "purgatory_kernel_entry": 8,
    "purgatory_uart_base": 8,
    "purgatory_dtb": 8,
    "purgatory_policy": 8,
    "purgatory_psci_conduit": 8,
    "purgatory_no_mmu": 8,
    "purgatory_no_crypto": 8,
    "purgatory_sme": 8,
    "purgatory_region_digests": 512,
    "purgatory_page_digests": 8,
    "purgatory_copy": 8,
    "purgatory_chosen": 8,
    "purgatory_self_digest": 32,
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
    assert found["st_value"] % 8 == 0


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
        ".rodata.str",
        ".kexec-purgatory",
        ".data",
        ".bss",
    }
    assert not [s.name for s in elf.iter_sections() if s.name.startswith((".debug", ".eh_frame"))]


def test_it_takes_less_than_16_kib_without_the_page_tables(elf: ELFFile, purgatory_ro: Path) -> None:
    """As kexec_purgatory_setup_kbuf() measures it; .bss holds the page tables and nothing else.

    gcc's code is a little longer, and that is a page more.
    """
    size = 0
    for section in elf.iter_sections():
        if section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section["sh_type"] == "SHT_PROGBITS":
            size += -size % section["sh_addralign"] + section["sh_size"]
    assert size < (16 if purgatory_ro == purgatory_path() else 20) * 1024
    (bss,) = (i for i, s in enumerate(elf.iter_sections()) if s.name == ".bss")
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
    assert [s.name for s in symbols if s["st_shndx"] == bss and s["st_size"]] == ["table_area"]


def test_the_self_digest_is_the_last_thing_that_is_only_read(elf: ELFFile) -> None:
    """Everything before it, from purgatory_start on, is what it covers: code, constants, symbols."""
    found = symbol(elf, "purgatory_self_digest")
    section = elf.get_section(found["st_shndx"])
    assert found["st_value"] + 32 == section["sh_size"]
    names = [s.name for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC]
    assert names[0] == ".text"
    assert names[names.index(".kexec-purgatory") + 1 :] == [".data", ".bss"]


def test_the_verdict_record_is_recognised_before_anything_ran(elf: ELFFile) -> None:
    found = symbol(elf, "purgatory_verdict")
    section = elf.get_section(found["st_shndx"])
    assert (section.name, section["sh_addralign"], found["st_value"]) == (".data", 4096, 0)
    data = section.data()[: found["st_size"]]
    assert data == b"PURGVRDT" + (2).to_bytes(4, "little") + bytes(found["st_size"] - 12)


# Where an instruction of the kind is meant: the code that switches FP and SIMD on itself, and puts them back.
SIMD_FUNCTIONS = ("fpsimd_save", "fpsimd_restore", "sha256_ce_blocks")


def test_every_instruction_can_run_with_the_mmu_off(elf: ELFFile) -> None:
    """No FP or SIMD register where it is not meant, no exclusive or atomic access, no zeroing by DC ZVA.

    Unicorn would execute all of those without complaint, so this is read from the code.
    """
    code = elf.get_section_by_name(".text").data()
    instructions = list(Cs(CS_ARCH_ARM64, CS_MODE_ARM).disasm(code, 0))
    simd = [
        range(f["st_value"], f["st_value"] + f["st_size"]) for f in (symbol(elf, n) for n in SIMD_FUNCTIONS)
    ]
    assert sum(i.size for i in instructions) > len(code) * 0.9, "most of .text is no instruction"
    for i in instructions:
        if not any(i.address in function for function in simd):
            assert not re.search(r"\b[qdvhsb]\d+\b", i.op_str), f"{i.mnemonic} {i.op_str}"
        assert not re.match(r"(ld|st)a?xr|cas|swp|ld(add|clr|set|eor)|svc|brk", i.mnemonic), i.mnemonic
        assert "zva" not in i.op_str


# MSR of what changes how the instructions behind it are done, by (op0, op1, CRn, CRm, op2) as it is encoded.
CONTROLS = {
    "sctlr_el1": (3, 0, 1, 0, 0),
    "sctlr_el2": (3, 4, 1, 0, 0),
    "cpacr_el1": (3, 0, 1, 0, 2),
    "cptr_el2": (3, 4, 1, 1, 2),
    "gcscr_el1": (3, 0, 2, 5, 0),
    "gcscr_el2": (3, 4, 2, 5, 0),
    "tcr2_el1": (3, 0, 2, 0, 3),
    "tcr2_el2": (3, 4, 2, 0, 3),
    "vbar_el1": (3, 0, 12, 0, 0),
    "vbar_el2": (3, 4, 12, 0, 0),
}
ISB = 0xD5033FDF


def test_what_a_system_register_changes_is_so_before_it_is_relied_on(elf: ELFFile) -> None:
    """An ISB behind each write, before memory or a vector is touched, anything is called, or the caller goes on.

    An emulator does without.
    """
    code = elf.get_section_by_name(".text").data()
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code), 4)]
    controls = {
        0xD5000000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5: name
        for name, (op0, op1, crn, crm, op2) in CONTROLS.items()
    }
    written = set()
    for start, word in enumerate(words):
        if word & ~31 not in controls:
            continue
        written.add(controls[word & ~31])
        at = start + 1
        while (word := words[at]) != ISB:
            if word >> 26 == 0b000101:  # b: on there
                at += (word & 0x3FFFFFF) - (word >> 25 & 1) * (1 << 26)
                continue
            system = word >> 22 == 0b1101010100  # mrs, msr
            # cbz, cbnz, tbz, tbnz, b.cond: both ways end alike
            skip = word >> 26 & 0x1F == 0b01101 or word >> 24 == 0b01010100
            plain = (
                word >> 26 & 7 == 0b100 or word >> 25 & 7 == 0b101
            )  # arithmetic, of constants and of registers
            assert system or skip or plain, (
                f"{controls[words[start] & ~31]} at {4 * start:#x}: {word:08x} before an isb"
            )
            at += 1
    assert written == set(CONTROLS)


def test_the_stack_has_room_for_the_deepest_call(elf: ELFFile) -> None:
    """All frames together fit, though no path goes through all; what recurses does so ten times at most."""
    code = elf.get_section_by_name(".text").data()
    text = "\n".join(f"{i.mnemonic} {i.op_str}" for i in Cs(CS_ARCH_ARM64, CS_MODE_ARM).disasm(code, 0))
    frames = [int(size, 0) for size in re.findall(r"(?:sub sp, sp, #|sp, #-)(\w+)(?:\]!)?$", text, re.M)]
    assert 0 < sum(frames) < 3 * 1024, sum(frames)
    assert symbol(elf, "purgatory_stack")["st_size"] == 2048
