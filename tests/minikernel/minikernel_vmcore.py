# SPDX-License-Identifier: GPL-2.0-or-later
"""The least of a vmcore: notes from the guest's own crash_notes, its text and its RAM."""

from __future__ import annotations

import struct
from pathlib import Path

from elftools.elf.elffile import ELFFile
from minikernel_cpu import Cpu
from minikernel_guest import KIMAGE_VADDR, PAGE_OFFSET, RAM_PHYS, RAM_SIZE, Guest

PAGE = 4096


def note(name: bytes, kind: int, description: bytes) -> bytes:
    """One ELF note."""
    parts = (name + b"\0", description)
    return struct.pack("<3I", len(parts[0]), len(parts[1]), kind) + b"".join(
        part + bytes(-len(part) % 4) for part in parts
    )


def crash_save_cpu(guest: Guest, cpu: Cpu) -> None:
    """Write the NT_PRSTATUS note of a CPU into its crash_notes."""
    regs, index = cpu.x(0), cpu.x(1)
    task = cpu.current
    status = bytearray(392)
    struct.pack_into("<I", status, 32, guest.u32(task + guest.member("task_struct", "pid")))
    status[112 : 112 + 272] = guest.ram.read(guest.phys(regs), 272)
    address = guest.per_cpu(guest.u64("crash_notes"), index)
    guest.ram.write(guest.phys(address), note(b"CORE", 1, bytes(status)))


def log(guest: Guest, text: str) -> None:
    """Append a record to the printk ring as prb_reserve() and prb_commit() do; the text never wraps."""
    ring = guest.virt("printk_rb_static")
    text_ring = ring + guest.member("printk_ringbuffer", "text_data_ring")
    head_id_at = ring + guest.member("prb_desc_ring", "head_id")
    head_lpos_at = text_ring + guest.member("prb_data_ring", "head_lpos")
    number = guest.u64(head_id_at) + 1 & (1 << 62) - 1
    index = number % 128
    begin = guest.u64(head_lpos_at)
    data = text.encode()
    end = begin + 8 + len(data) + 7 & ~7 & (1 << 64) - 1
    block = guest.u64(text_ring + guest.member("prb_data_ring", "data")) + begin % (1 << 14)
    guest.set_u64(block, number)
    guest.ram.write(guest.phys(block + 8), data)
    info = guest.u64(ring + guest.member("prb_desc_ring", "infos")) + 88 * index
    sequence = guest.u64(info) + 128 if index == 0 or guest.u64(info) else index
    guest.set_u64(info, sequence)
    guest.set_u64(info + 8, len(guest.calls) * 1_000_000)
    guest.ram.write(guest.phys(info + 16), struct.pack("<H", len(data)))
    descriptor = guest.u64(ring + guest.member("prb_desc_ring", "descs")) + 24 * index
    guest.set_u64(descriptor, number | 2 << 62)
    guest.set_u64(descriptor + 8, begin)
    guest.set_u64(descriptor + 16, end)
    guest.set_u64(head_id_at, number)
    guest.set_u64(head_lpos_at, end)


def vmcoreinfo(guest: Guest) -> str:
    """What drgn wants to know."""
    with guest.vmlinux.open("rb") as file:
        build_id = next(
            entry["n_desc"]
            for segment in ELFFile(file).iter_segments("PT_NOTE")
            for entry in segment.iter_notes()
            if entry["n_type"] == "NT_GNU_BUILD_ID"
        )
    voffset = KIMAGE_VADDR - guest.image_phys
    return (
        f"OSRELEASE=6.1.0-kexecemu\nBUILD-ID={build_id}\nPAGESIZE=4096\n"
        f"SYMBOL(swapper_pg_dir)={guest.virt('swapper_pg_dir'):x}\nSYMBOL(_stext)={guest.virt('_stext'):x}\n"
        f"NUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)={voffset:#x}\nNUMBER(PHYS_OFFSET)={RAM_PHYS:#x}\n"
        "NUMBER(TCR_EL1_T1SZ)=0x10\nKERNELOFFSET=0\nCRASHTIME=1\n"
    )


def switch_to(guest: Guest, name: str) -> None:
    """Let the boot CPU's run queue say that it runs this task, as a scheduler does."""
    on_cpu, state = (guest.member("task_struct", member) for member in ("on_cpu", "__state"))
    task = guest.virt(name)
    guest.set_u32(guest.virt("init_task") + on_cpu, 0)
    guest.set_u32(task + on_cpu, 1)
    guest.set_u32(task + state, 0)
    guest.set_u64(guest.per_cpu("runqueues", 0) + guest.member("rq", "curr"), task)


def crashed_guest(guest: Guest, path: Path) -> Guest:
    """Boot `guest`, crash it by sysrq from the shell, and write what it left as a vmcore."""
    format_printk = guest.handlers["_printk"]

    def printk(cpu: Cpu) -> None:
        before = len(guest.console)
        format_printk(cpu)
        log(guest, guest.console[before:].rstrip("\n"))

    guest.handlers["_printk"] = printk
    guest.handlers["crash_save_cpu"] = lambda cpu: crash_save_cpu(guest, cpu)
    assert guest.boot() == "idle"
    guest.load_crash_image()
    switch_to(guest, "task_bash")
    assert guest.call("write_sysrq_trigger") == "capture"
    write_vmcore(guest, path)
    return guest


def write_vmcore(guest: Guest, path: Path) -> None:
    """Write the guest's memory as /proc/vmcore would show it."""
    notes = b""
    for index in guest.cpus:
        address = guest.per_cpu(guest.u64("crash_notes"), index)
        notes += guest.ram.read(guest.phys(address), 412)
    notes += note(b"VMCOREINFO", 0, vmcoreinfo(guest).encode())
    text_size = guest.virt("_end") - KIMAGE_VADDR
    loads = ((KIMAGE_VADDR, guest.image_phys, text_size), (PAGE_OFFSET, RAM_PHYS, RAM_SIZE))
    headers = struct.pack("<IIQQQQQQ", 4, 0, PAGE, 0, 0, len(notes), len(notes), 0)
    offset = 2 * PAGE
    for virt, phys, size in loads:
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset, virt, phys, size, size, 0)
        offset += size
    identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
    ehdr = identity + struct.pack("<HHIQQQIHHHHHH", 4, 183, 1, 0, 64, 0, 0, 64, 56, 1 + len(loads), 0, 0, 0)
    with path.open("wb") as file:
        file.write((ehdr + headers).ljust(PAGE, b"\0") + notes.ljust(PAGE, b"\0"))
        for _virt, phys, size in loads:
            file.write(guest.ram.read(phys, size))
