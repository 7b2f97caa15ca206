"""The core header and what it leads to: a real crash is described as the real kernel did, garbage refused."""

from __future__ import annotations

import random
import struct

import pytest
from stub_bench import DONE, DTB, NO_DUMP, run
from stub_crash import ELFCOREHDR, NOTES, REAL_VMCORE, cells, core, fdt, real_notes, sane_but, tree


def test_a_real_kernels_dump_is_described() -> None:
    result = run(memory=core())
    (cpu0, cpu1, info) = real_notes()
    pids = [struct.unpack_from("<I", note, 20 + 32)[0] for note in (cpu0, cpu1)]
    pcs = [struct.unpack_from("<Q", note, 20 + 112 + 32 * 8)[0] for note in (cpu0, cpu1)]
    info_lines = info[24:].rstrip(b"\0").decode().split("\n")
    (osrelease,) = [line for line in info_lines if line.startswith("OSRELEASE=")]
    (crashtime,) = [line for line in info_lines if line.startswith("CRASHTIME=")]
    assert result.lines == [
        "capture: started at 0x6a000000, EL1",
        "capture: entry contract ok",
        "capture: bootargs console=ttyAMA0 earlycon=pl011,0x9000000 nr_cpus=1 reset_devices irqpoll panic=5"
        " rdinit=/init",
        "capture: linux,usable-memory-range 0x6a000000-0x6fffffff",
        "capture: initrd 0x6a550000-0x6a7cd987",
        "capture: linux,elfcorehdr 0x6fff0000 size 0x1000",
        "capture: NOTE phys 0x40100000 virt 0x0 size 0x1a8",
        f"capture: cpu 0: pid {pids[0]} pc {pcs[0]:#x}",
        "capture: NOTE phys 0x40101000 virt 0x0 size 0x1a8",
        f"capture: cpu 1: pid {pids[1]} pc {pcs[1]:#x}",
        "capture: NOTE phys 0x40102000 virt 0x0 size 0x1024",
        f"capture: {osrelease}",
        f"capture: {crashtime}",
        "capture: LOAD phys 0x40200000 virt 0xffffa0a26e600000 size 0x550000",
        "capture: LOAD phys 0x40000000 virt 0xffff3380c0000000 size 0x2a000000",
        f"capture: vmcore of {0x553000 + 0x2A000000} bytes",
        "capture: done",
        "",
    ]
    assert result.end == "off"
    assert not result.wild and not result.unaligned and not result.aborts


def test_a_real_kernels_dump_is_in_the_record() -> None:
    record = run(memory=core()).record
    assert (record.magic, record.state, record.violations) == (b"CAPTURE1", DONE, 0)
    assert record.x == (DTB, 0, 0, 0)
    assert (record.current_el, record.daif, record.sctlr & 1) == (1, 0x3C0, 0)
    assert record.dtb_phys == DTB
    assert record.elfcorehdr == (ELFCOREHDR, 0x1000)
    assert record.initrd == (0x6A550000, 0x6A7CD988)
    assert record.usable == (0x6A000000, 0x6000000, 0, 0)
    assert (record.notes, record.loads) == (3, 2)


def test_the_size_of_the_vmcore_is_that_which_the_real_kernel_offered() -> None:
    """Its last program header says where the file ends."""
    last = struct.unpack_from("<IIQQQQQQ", REAL_VMCORE, 64 + 2 * 56)
    assert run(memory=core()).record.vmcore_bytes == last[2] + last[5]


@pytest.mark.parametrize(
    "ehdr",
    [
        sane_but(0, 0x7E),
        sane_but(3, 0),
        sane_but(4, 1),  # ELFCLASS32
        sane_but(6, 0),  # EI_VERSION
        sane_but(16, 2),  # ET_EXEC
        sane_but(18, 62),  # EM_X86_64
        sane_but(20, 0),  # e_version
        sane_but(52, 63),  # e_ehsize
        sane_but(54, 32),  # e_phentsize
        sane_but(56, 0),  # e_phnum
    ],
    ids=[
        "mag0",
        "mag3",
        "class",
        "ident version",
        "type",
        "machine",
        "version",
        "ehsize",
        "phentsize",
        "phnum",
    ],
)
def test_an_insane_core_header_is_refused_as_a_kernel_does(ehdr: bytes) -> None:
    result = run(memory=core(ehdr))
    assert "capture: Core image elf header is not sane" in result.lines
    assert result.lines[-2] == "capture: no dump possible"
    assert (result.end, result.record.state, result.record.loads) == ("off", NO_DUMP, 0)


def test_an_elf_class_or_data_that_no_kernel_checks_is_accepted() -> None:
    """parse_crash_elf64_headers() looks neither at EI_DATA nor at EI_OSABI."""
    assert run(memory=core(sane_but(7, 9))).record.state == DONE


def test_more_program_headers_than_room_are_refused() -> None:
    result = run(memory=core(sane_but(57, 1)))
    assert "capture: 261 program headers do not fit into 0x1000 bytes" in result.lines
    assert result.record.state == NO_DUMP


@pytest.mark.parametrize("phys", [0, 0x3FFFFFF0, 0x6FFFFFC8, 0x70000000, (1 << 64) - 8], ids=hex)
def test_a_core_header_that_is_not_in_memory_is_not_followed(phys: int) -> None:
    dtb = fdt(tree(chosen={"linux,elfcorehdr": cells(phys, 0x1000)}))
    result = run(dtb=dtb, memory=core())
    assert "capture: Core image elf header is not sane" in result.lines
    assert result.record.state == NO_DUMP
    assert not result.wild and not result.aborts


def test_a_cpu_that_left_no_registers_is_reported() -> None:
    cpu0, _, info = real_notes()
    result = run(memory=core(notes=[cpu0, b"", info]))
    assert "capture: notes 1: empty" in result.lines
    assert result.record.state == DONE


@pytest.mark.parametrize(
    ("note", "says"),
    [
        (
            struct.pack("<III", 5, 0xFFFFFFFF, 1) + b"CORE\0",
            "notes 0: one of 0x100000014 bytes exceeds its segment",
        ),
        (struct.pack("<III", 0xFFFFFFFF, 0, 1), "notes 0: one of 0x10000000c bytes exceeds its segment"),
    ],
)
def test_a_note_larger_than_its_segment_is_dropped(note: bytes, says: str) -> None:
    result = run(memory=core(notes=[note, *real_notes()[1:]]))
    assert f"capture: {says}" in result.lines
    assert result.record.state == DONE


def test_notes_that_are_not_in_memory_are_not_followed() -> None:
    memory = core()
    header = bytearray(memory[ELFCOREHDR])
    struct.pack_into("<Q", header, 64 + 8, 0xDEAD00000000)  # p_offset of the first PT_NOTE
    result = run(memory=memory | {ELFCOREHDR: bytes(header)})
    assert "capture: notes 0: 0x1a8 bytes at 0xdead00000000 are not memory" in result.lines
    assert result.record.state == DONE
    assert not result.wild and not result.aborts


@pytest.mark.parametrize("seed", range(40))
def test_garbage_in_the_core_header_and_notes_always_ends(seed: int) -> None:
    generator = random.Random(seed)
    memory = core()
    for phys, size in ((ELFCOREHDR, 64 + 5 * 56), (NOTES, 424), (NOTES + 0x2000, 64)):
        data = bytearray(memory[phys])
        for _ in range(1 + seed % 4):
            data[generator.randrange(size)] = generator.randrange(256)
        memory[phys] = bytes(data)
    result = run(memory=memory)
    assert (result.end, result.record.violations) == ("off", 0)
    assert result.record.state in (NO_DUMP, DONE)
    assert not result.wild and not result.unaligned and not result.aborts
