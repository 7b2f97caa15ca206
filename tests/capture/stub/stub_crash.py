"""A crash to look at: what a real kernel left, and the core header and device trees made around it.

The data comes from a Linux 6.1.192 that crashed in QEMU (768 MiB, crashkernel 0x6a000000-0x6fffffff):
the device tree its kexec_file_load made for the capture kernel, and the head of the /proc/vmcore that the
capture kernel offered. What the stub says is compared with those, not with what the stub's author expected.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stub_bench import RAM, RAM_SIZE, UART, real

ELFCOREHDR = 0x6FFF0000
NOTES = 0x40100000  # where the crashed kernel would have its crash_notes
REAL_VMCORE = real("vmcore-first12K-6.1.192.bin.gz")


@dataclass(frozen=True)
class Load:
    """A PT_LOAD of the core header."""

    phys: int
    virt: int
    size: int


# As /proc/vmcore of that kernel lists them.
REAL_LOADS = (
    Load(0x40200000, 0xFFFFA0A26E600000, 0x550000),
    Load(0x40000000, 0xFFFF3380C0000000, 0x2A000000),
)
EHDR = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
    "<HHIQQQIHHHHHH", 4, 183, 1, 0, 64, 0, 0, 64, 56, 5, 0, 0, 0
)


def sane_but(offset: int, value: int) -> bytes:
    header = bytearray(EHDR)
    header[offset] = value
    return bytes(header)


def phdr(kind: int, phys: int, virt: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 0, phys, virt, phys, size, size, 0)


def real_notes() -> list[bytes]:
    """The notes of the crashed kernel, taken apart again: two CPUs and the vmcoreinfo."""
    data, notes = REAL_VMCORE[0x1000:0x20D0], []
    while data:
        namesz, descsz = struct.unpack_from("<II", data)
        size = 12 + (namesz + 3 & ~3) + (descsz + 3 & ~3)
        notes.append(data[:size])
        data = data[size:]
    assert len(notes) == 3
    return notes


def core(
    ehdr: bytes = EHDR, notes: list[bytes] | None = None, loads: tuple[Load, ...] = REAL_LOADS
) -> dict[int, bytes]:
    """The core header as crash_prepare_elf64_headers() makes it, and the notes it points at."""
    memory, headers = {}, b""
    for index, note in enumerate(real_notes() if notes is None else notes):
        size = 424 if index < 2 else 4132  # sizeof(note_buf_t), VMCOREINFO_NOTE_SIZE
        memory[NOTES + index * 0x1000] = note.ljust(size, b"\0")
        headers += phdr(4, NOTES + index * 0x1000, 0, size)
    for load in loads:
        headers += phdr(1, load.phys, load.virt, load.size)
    memory[ELFCOREHDR] = (ehdr + headers).ljust(4096, b"\0")
    return memory


def fdt(nodes: dict[str, dict[str, bytes]]) -> bytes:
    """A device tree blob of properties by path; parents before children."""
    structs, strings, open_path = b"", b"", None
    for path, properties in nodes.items():
        parts = [part for part in path.split("/") if part]
        if open_path is not None:
            structs += struct.pack(">I", 2) * (len(open_path) - len(parts) + 1)
        name = (parts[-1] if parts else "").encode() + b"\0"
        structs += struct.pack(">I", 1) + name.ljust(len(name) + 3 & ~3, b"\0")
        for key, value in properties.items():
            structs += struct.pack(">III", 3, len(value), len(strings)) + value.ljust(
                len(value) + 3 & ~3, b"\0"
            )
            strings += key.encode() + b"\0"
        open_path = parts
    structs += struct.pack(">I", 2) * (len(open_path or ()) + 1) + struct.pack(">I", 9)
    reserve = bytes(16)
    at = 40 + len(reserve)
    total = at + len(structs) + len(strings)
    return (
        struct.pack(
            ">10I", 0xD00DFEED, total, at, at + len(structs), 40, 17, 16, 0, len(strings), len(structs)
        )
        + reserve
        + structs
        + strings
    )


def cells(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def tree(**changes: dict[str, bytes] | None) -> dict[str, dict[str, bytes]]:
    """A small board; change or drop (None) the nodes root, chosen, memory, uart, psci, bus."""
    nodes = {
        "root": ("/", {"#address-cells": b"\0\0\0\2", "#size-cells": b"\0\0\0\2"}),
        "chosen": (
            "/chosen",
            {
                "bootargs": b"console=ttyAMA0\0",
                "linux,usable-memory-range": cells(0x6A000000, 0x6000000),
                "linux,elfcorehdr": cells(ELFCOREHDR, 0x1000),
            },
        ),
        "memory": ("/memory@40000000", {"device_type": b"memory\0", "reg": cells(RAM, RAM_SIZE)}),
        "psci": ("/psci", {"compatible": b"arm,psci-1.0\0", "method": b"hvc\0"}),
        "aliases": ("/aliases", {"serial0": b"/serial@9000000\0"}),
        "uart": (
            "/serial@9000000",
            {"compatible": b"arm,pl011\0arm,primecell\0", "reg": cells(UART, 0x1000)},
        ),
    }
    result = {}
    for key, (path, properties) in nodes.items():
        change = changes.get(key, {})
        if change is not None:
            result[path] = {k: v for k, v in (properties | change).items() if v != b"-"}
    return result
