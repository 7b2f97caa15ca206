"""The elfcorehdr segment, against the bytes that a real kernel prepared."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kexecemu.formats.elf import PT_LOAD, PT_NOTE
from kexecemu.formats.elfcore import VmcoreLayout, parse_core_header
from kexecemu.formats.elfnote import Note
from kexecemu.kernel.load.elfcorehdr import prepare_elf_headers
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "linux-6.1.192"
RAM = PhysRange(0x40000000, 0x70000000)
CRASHK_RES = PhysRange(0x6A000000, 0x70000000)


def _real(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def _prepare(**changes: object) -> bytes:
    arguments: dict[str, object] = {
        "crash_notes": [(0x69F8BC00, 424), (0x69F9DC00, 424)],
        "vmcoreinfo_note": (0x40976000, 0x1024),
        "kernel_text": (0xFFFFA7289B400000, 0x40200000, 0x550000),
        "memory": [RAM],
        "exclude": [CRASHK_RES],
        "linear_virt": lambda phys: phys - 0x40000000 + 0xFFFF202680000000,
        "possible_cpus": 2,
    }
    return prepare_elf_headers(**(arguments | changes))  # type: ignore[arg-type]


def test_the_real_kernel_s_elfcorehdr_is_reproduced_byte_for_byte() -> None:
    """Addresses from that run's /proc/kallsyms, /proc/iomem, sysfs crash_notes and vmcoreinfo."""
    assert _prepare() == _real("elf-segment.bin")


def test_another_real_vmcore_begins_with_the_headers_that_follow_from_this() -> None:
    """From the elfcorehdr to /proc/vmcore, with the notes as they are in that vmcore."""
    real = _real("kaslr-vmcore.head")
    cpu = len(Note("CORE", 1, bytes(392)).pack())
    notes = real[0x1000:0x20D0]
    buffers = {0: notes[:cpu], 512: notes[cpu : 2 * cpu], 4096: notes[2 * cpu :]}
    segment = _prepare(
        crash_notes=[(0, 424), (512, 424)],
        vmcoreinfo_note=(4096, 4132),
        kernel_text=(0xFFFFA0A26E600000, 0x40200000, 0x550000),
        linear_virt=lambda phys: phys - 0x40000000 + 0xFFFF3380C0000000,
    )
    layout = VmcoreLayout(segment, lambda phys, length: buffers[phys].ljust(length, b"\0"))
    assert layout.header + layout.notes == real


def test_crash_memory_in_the_middle_splits_a_range() -> None:
    """As a kernel with crashkernel=,high has it: high memory at the end, low memory inside."""
    segment = _prepare(
        memory=[RAM, PhysRange(0x80000000, 0x100000000)],
        exclude=[PhysRange(0xF0000000, 0x100000000), PhysRange(0x50000000, 0x58000000)],
    )
    loads = [h for h in parse_core_header(segment).program_headers if h.type == PT_LOAD]
    assert [(h.paddr, h.paddr + h.memsz) for h in loads[1:]] == [
        (0x40000000, 0x50000000),
        (0x58000000, 0x70000000),
        (0x80000000, 0xF0000000),
    ]
    assert all(h.offset == h.paddr and h.filesz == h.memsz and h.flags == 7 for h in loads)


@pytest.mark.parametrize(("possible", "size"), [(2, 4096), (69, 4096), (70, 8192), (512, 32768)])
def test_the_segment_has_room_for_every_possible_cpu(possible: int, size: int) -> None:
    """64 + (possible + 1 + 1 range + 1 text) * 56 bytes, in whole pages; headers for present CPUs only."""
    segment = _prepare(possible_cpus=possible)
    assert len(segment) == size
    assert sum(h.type == PT_NOTE for h in parse_core_header(segment).program_headers) == 3
