"""The stub as a file: an arm64 Image with a record behind its header, the same from every compiler."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from stub_bench import DTB, GUESTS, IMAGE, KERNEL, REAL_DTB, SYMBOLS, TOP, run, symbols_of
from stub_crash import core, real_notes, sane_but


def test_the_image_header_is_that_of_an_arm64_image() -> None:
    code0, code1, text_offset, image_size, flags = struct.unpack_from("<IIQQQ", IMAGE)
    assert code0 >> 26 == 0b000101  # an unconditional branch
    assert (code1, text_offset, IMAGE[0x38:0x3C], IMAGE[0x3C:0x40]) == (0, 0, b"ARM\x64", bytes(4))
    assert flags == 8  # little endian, page size unspecified, anywhere in memory
    assert image_size % 0x10000 == 0
    assert image_size == SYMBOLS["_end"] >= len(IMAGE)
    assert code0 & 0x3FFFFFF == SYMBOLS["primary_entry"] // 4


def test_the_record_lies_behind_the_header_and_says_not_run() -> None:
    assert SYMBOLS["capture_record"] == 0x40
    assert IMAGE[0x40:0xE0] == b"CAPTURE1" + bytes(152)


def test_flat_image_and_elf_are_the_same_bytes() -> None:
    elf = ELFFile.load_from_path(str(GUESTS / "capture.elf"))
    for section in elf.iter_sections():
        if section["sh_flags"] & 2 and section["sh_type"] != "SHT_NOBITS":
            start = section["sh_addr"]
            assert IMAGE[start : start + section["sh_size"]] == section.data()
    assert elf.has_dwarf_info()


def build(out: Path, compiler: str) -> Path:
    """The stub built from its source into `out`; returns the folder with the guests."""
    command = [sys.executable, "fixtures/build.py", "--compiler", compiler, "--out", str(out), "capture"]
    subprocess.run(command, cwd=TOP, check=True)
    return out / "fixtures" / "guests"


def test_no_relocation_depends_on_where_the_image_lies(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    elf = ELFFile.load_from_path(str(build(tmp_path, "zig") / "capture.o"))
    absolute = []
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_RELA" and elf.get_section(section["sh_info"])["sh_flags"] & 2:
            symtab = elf.get_section(section["sh_link"])
            for relocation in section.iter_relocations():
                if relocation["r_info_type"] not in (273, 274, 279, 280, 282, 283):  # PC-relative
                    absolute.append(
                        (relocation["r_offset"], symtab.get_symbol(relocation["r_info_sym"]).name)
                    )
    # A size is the same everywhere; the linker script makes it absolute.
    assert absolute == [(0x10, "_image_size")]


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None, reason="aarch64-linux-gnu-gcc is not installed"
)
def test_gccs_build_says_the_same(tmp_path: Path) -> None:
    guests = build(tmp_path, "gcc")
    image, symbols = (guests / "capture-Image").read_bytes(), symbols_of(guests / "capture.elf")
    for memory in (core(), core(sane_but(4, 1)), core(notes=real_notes()[:1])):
        ours, gccs = run(memory=memory), run(memory=memory, image=image, symbols=symbols)
        assert (gccs.console, gccs.end, gccs.record) == (ours.console, ours.end, ours.record)
        assert not gccs.wild and not gccs.unaligned


QEMU = shutil.which("qemu-system-aarch64")


@pytest.mark.real
@pytest.mark.skipif(QEMU is None, reason="qemu-system-aarch64 is not installed")
@pytest.mark.parametrize("el", [1, 2])
def test_qemu_says_the_same_with_alignment_checking(tmp_path: Path, el: int) -> None:
    """The machine that the real device tree describes; at EL1 unaligned accesses are made to fault."""
    start = 0x6B000000
    code = [0xD2800000 | (DTB >> 16 & 0xFFFF) << 5 | 1 << 21]  # movz x0, #DTB >> 16, lsl #16
    if el == 1:
        code += [0xD5381009, 0xB27F0129, 0xD5181009, 0xD5033FDF]  # SCTLR_EL1.A = 1; isb
    code.append(0x14000000 | (KERNEL - start - 4 * len(code)) >> 2 & 0x3FFFFFF)  # b KERNEL
    # With EL2 in use, QEMU's PSCI listens to smc; both words are three letters.
    dtb = REAL_DTB.replace(b"hvc\0", b"smc\0") if el == 2 else REAL_DTB
    files = {KERNEL: IMAGE, DTB: dtb, start: struct.pack(f"<{len(code)}I", *code), **core()}
    machine = "virt,virtualization=on" if el == 2 else "virt"
    command = [str(QEMU), "-M", machine, "-cpu", "cortex-a57", "-m", "768M", "-display", "none"]
    command += [
        "-nic",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
        "-device",
        f"loader,addr={start:#x},cpu-num=0",
    ]
    for phys, content in files.items():
        path = tmp_path / f"{phys:x}"
        path.write_bytes(content)
        command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30)
    assert done.stdout.decode() == run(memory=core()).console.replace("EL1", f"EL{el}")
