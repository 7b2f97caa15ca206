#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A purgatory with a map of its own, one that is entered with the MMU on, or hashing in machine_kexec()? One table.

    python tests/benchmarks/bench_ways.py
    python tests/benchmarks/bench_ways.py --every-word      a bit in each word of the code that checks; minutes

Each row is one fault, or 32 of a kind, under each way: real guest code runs, on a machine of its own for each fault.
What decides in a way is hit in the same place: who checks, what it compares with, what it hashes, which map it reads
through. Then what each costs. Writes are by DMA, after the load unless said, so that no page table has a say.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kexecemu.campaign.accesses import recorded
from kexecemu.commands.purgatory_build import describe_build
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.purgatory_check import Reply, judge_reply
from kexecemu.crash.running import run_purgatory
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.guests.purgatory import OPTIONS, code_lines
from kexecemu.kernel.base.config import KernelConfig, Way
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, When

TOP = Path(__file__).resolve().parents[2]
BITS = 32
STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD, LARGER_INITRD = 0x4000, 0x24000
SOURCES = {
    Way.TRANS_PGD: ("fixtures/ways/*.[cS]",),
    Way.MACHINE_KEXEC: ("fixtures/minikernel/image_check.c", "fixtures/minikernel/lib_sha256.c"),
}
"""What is a way's own; SHA-256 itself, which a kernel has, is not counted. The purgatory's: see own_lines()."""
HASHES = (
    "image_intact",
    "phys_to_virt",
    "dcache_clean_inval_poc",
    "sha256_matches",
    "sha256_init",
    "sha256_update",
    "sha256_blocks",
    "sha256_final",
)
"""The first kernel's functions by which machine-kexec hashes."""

ITSELF_DAMAGED = "purgatory: itself damaged", "struct kimage has been damaged"
"""What those say that keep no record: a refusal that is right, although every byte of the image may be as loaded."""

Faults = tuple[Fault, ...]


@dataclass(frozen=True)
class Loaded:
    """One machine with an image loaded."""

    way: Way
    kernel: Kernel
    image: Kimage

    def symbol(self, name: str) -> int | None:
        """The physical address of a purgatory's symbol, None without it."""
        table = self.image.purgatory.symbol_table() if self.image.purgatory is not None else {}
        return table[name][0] if name in table else None

    def kimage(self, *members: str) -> int:
        """The physical address of a member of struct kimage: its own, or one of its structures' in turn."""
        layout, at = self.kernel.guest.vmlinux, self.kernel.guest.phys("crash_kimage_storage")
        for structure, member in zip(("kimage", "kimage_arch"), members, strict=False):
            at += layout.offsetof(structure, member)
        return at


def load(way: Way, initrd: int = INITRD, **options: str) -> Loaded:
    """The same machine under a way."""
    config = KernelConfig("6.4", check_way=way, options=options)
    kernel = Kernel.boot(Board("512M"), config, cmdline="crashkernel=64M rodata=off")
    image = kernel.kexec_file_load(STUB, Random(1).randbytes(initrd), "console=ttyAMA0 nr_cpus=1")
    assert image is not None
    return Loaded(way, kernel, image)


def reply(way: Way, faults: Sequence[Fault]) -> Reply:
    """Inject, panic, follow to the end."""
    kernel = load(way).kernel
    for fault in faults:
        kernel.inject(fault)
    end = kernel.panic()
    kernel.close()
    if any(words in end.console for words in ITSELF_DAMAGED):
        return Reply.CAUGHT
    return judge_reply(bool(faults), end.outcome, end.damage, end.purgatory, end.capture)


def dma(at: int | str, data: bytes, when: When = When.AFTER_LOAD) -> Faults:
    return (Fault(hex(at) if isinstance(at, int) else at, write=data, by=By.DMA, when=when),)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & (1 << 64) - 1)


def spread(places: Sequence[int]) -> list[int]:
    """BITS of them, evenly."""
    return [places[(2 * each + 1) * len(places) // (2 * BITS)] for each in range(BITS)]


def flips(one: Loaded, words: Iterable[int], *more: Fault) -> list[Faults]:
    """One bit in each of these words, a different one each time: 11 and 32 have no factor in common."""
    made = []
    for number, phys in enumerate(words):
        value = one.kernel.ram.read_u32(phys) ^ 1 << (11 * number + 3) % 32
        made.append((*dma(phys, struct.pack("<I", value)), *more))
    return made


def code(one: Loaded) -> list[int]:
    """The words of the code that checks; zeros, which fill gaps, are none."""
    ram, virt = one.kernel.ram, one.kernel.guest.vmlinux.elf.symbols
    if one.image.purgatory is None:
        ends = {name: min(at for at in virt.values() if at > virt[name]) for name in HASHES}
        areas = [PhysRange.of(one.kernel.guest.phys(name), ends[name] - virt[name]) for name in HASHES]
    else:
        obj = one.kernel.kexec.purgatory
        assert obj is not None
        text = next(section for section in obj.sections if section.name == ".text")
        areas = [PhysRange.of(one.image.purgatory.entry, text.size)]
    return [word for area in areas for word in range(area.start, area.end, 4) if ram.read_u32(word)]


def own_tables(one: Loaded) -> list[int]:
    """The physical addresses of the descriptors of the check's own map, as they are after the load.

    Of a purgatory that makes them itself there are none yet: the words where it is going to put them.
    """
    ram = one.kernel.ram
    if one.image.table_pages:
        words = [at for page in one.image.table_pages for at in range(page.start, page.end, 8)]
        return [at for at in words if ram.read_u64(at)]
    at = one.symbol("table_area")
    return list(range(at, at + 6 * 4096, 8)) if at is not None else []


def linear_map(one: Loaded) -> list[int]:
    """The physical addresses of the leaves by which the first kernel's linear map reaches what is hashed."""
    found = set()
    for region in one.image.sha_regions:
        for phys in range(region.start, region.end, 4096):
            walk = one.kernel.board.boot_cpu.walk(one.kernel.space.linear_virt(phys))
            assert walk is not None
            found.add(walk.steps[-1][1])
    return sorted(found)


def rows(one: Loaded) -> Iterator[tuple[str, list[Faults]]]:
    """Each row with the faults of each of its runs; none: it does not apply."""
    ram, image = one.kernel.ram, one.image
    kernel, initrd, tree, core = map(image.segment, ("kernel", "initrd", "dtb", "elfcorehdr"))
    assert kernel is not None and initrd is not None and tree is not None and core is not None

    def inverted(phys: int) -> bytes:
        return struct.pack("<I", ram.read_u32(phys) ^ 0xFFFFFFFF)

    word = inverted(initrd.mem + 0x1000)
    stray = dma(initrd.mem + 0x1000, word)

    def own(
        symbol: str, member: tuple[str, ...], value: Callable[[int], bytes], offset: int = 0
    ) -> list[Faults]:
        """The variable of the purgatory, or the one of the first kernel that has its part."""
        at = one.symbol(symbol) if image.purgatory is not None else one.kimage(*member)
        return [] if at is None else [dma(at + offset, value(at + offset))]

    yield "nothing", [()]
    yield "kernel, first word", [dma(kernel.mem, inverted(kernel.mem))]
    yield "kernel, last byte", [dma(kernel.mem + kernel.bufsz - 4, inverted(kernel.mem + kernel.bufsz - 4))]
    yield "initrd, a word", [stray]
    yield "device tree, a word", [dma(tree.mem + 0x40, inverted(tree.mem + 0x40))]
    yield "elfcorehdr, a word", [dma(core.mem + 0x40, inverted(core.mem + 0x40))]
    yield "initrd, a word, at the jump", [dma(initrd.mem + 0x1000, word, When.AT_JUMP)]
    yield "initrd, a word, after the check", [dma(initrd.mem + 0x1000, word, When.AFTER_CHECK)]
    yield f"the code that checks, {BITS} bits", flips(one, spread(code(one)))
    yield "  and a word of the initrd", flips(one, spread(code(one)), *stray)
    tables = own_tables(one)
    yield f"page tables of its own, {BITS} bits", flips(one, spread(tables)) if tables else []
    yield f"the kernel's linear map there, {BITS} bits", flips(one, spread(linear_map(one)))
    digest = own(
        "purgatory_sha256_digest", ("arch", "image_digest"), lambda at: bytes([ram.read(at, 1)[0] ^ 0xFF])
    )
    yield "stored digest, a byte", digest
    size = 24 if image.purgatory is None else 8  # of struct kexec_segment: buf, bufsz, mem, memsz
    yield "first region's size = 0", own("purgatory_sha_regions", ("segment",), lambda at: bytes(8), size)
    place = 16 if image.purgatory is None else 0
    yield (
        "first region's address = 0xdeadbeef",
        own("purgatory_sha_regions", ("segment",), lambda at: u64(0xDEADBEEF), place),
    )
    yield (
        "kernel's entry + 0x1000",
        own("purgatory_kernel_entry", ("start",), lambda at: u64(ram.read_u64(at) + 0x1000)),
    )
    yield "image->start + 0x1000", [dma(one.kimage("start"), u64(image.start + 0x1000))]
    yield "image->arch.dtb_mem + 0x1000", [dma(one.kimage("arch", "dtb_mem"), u64(image.dtb_mem + 0x1000))]
    at = one.symbol("purgatory_policy")
    yield "check switched off, and initrd", [] if at is None else [(*dma(at, u64(4)), *stray)]


def lines_of(patterns: Iterable[str]) -> int:
    """Lines of code, neither blank nor of comments."""
    total = 0
    for pattern in patterns:
        for path in sorted(one for one in TOP.glob(pattern) if not one.name.startswith("sha256")):
            text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
            total += sum(bool(re.sub(r"//.*", "", line).strip()) for line in text.splitlines())
    return total


def own_lines() -> int:
    """Of a purgatory with all options, as the table of purgatories counts them (.ci/outputs.py)."""
    every = describe_build(tuple(OPTIONS), purgatory_path("default").read_bytes())["code_lines"]
    sha256 = ("sha256.c", "sha256.h", "sha256-k.h")
    return int(every) - sum(code_lines((TOP / "purgatory" / name).read_text()) for name in sha256)


@dataclass(frozen=True)
class Cost:
    """Instructions of the boot CPU from the panic to the capture kernel, and of these behind the last byte hashed.

    hashed is in bytes.
    """

    instructions: int
    behind: int
    hashed: int


def cost(way: Way, initrd: int, **options: str) -> Cost:
    """What an undisturbed check costs."""
    one = load(way, initrd, **options)
    cpu, region = one.kernel.board.boot_cpu, one.kernel.crashk_res
    assert region is not None
    before = cpu.instructions
    with recorded(cpu, region) as accesses:
        one.kernel.crash()
        if one.image.purgatory is not None:
            run_purgatory(one.kernel, one.image)
    last = max(accesses.last_read(area) for area in one.image.sha_regions)
    hashed = sum(area.size for area in one.image.sha_regions)
    return Cost(cpu.instructions - before, cpu.instructions - last, hashed)


def costs(way: Way) -> Iterator[tuple[str, str]]:
    """What each way costs, in rows of the table."""
    scalar = {"KEXEC_PURGATORY_CRYPTO": "n"} if way is Way.PURGATORY else {}
    small, large = cost(way, INITRD, **scalar), cost(way, LARGER_INITRD, **scalar)
    per_byte = (large.instructions - small.instructions) / (large.hashed - small.hashed)
    yield "instructions a byte, in C", f"{per_byte:.2f}"
    if way is Way.PURGATORY:
        fast, faster = cost(way, LARGER_INITRD), cost(way, INITRD)
        with_crypto = (fast.instructions - faster.instructions) / (fast.hashed - faster.hashed)
    yield "  with SHA-2 instructions", f"{with_crypto:.2f}" if way is Way.PURGATORY else "-"
    yield "panic to kernel, without the hash", f"{small.instructions - small.hashed * per_byte:,.0f}"
    yield "last byte hashed to kernel", f"{small.behind:,}"
    one = load(way)
    segment = one.image.segment("purgatory")
    yield "crash region, bytes", f"{segment.memsz if segment is not None else 0:,}"
    yield "  and tables made at the load", f"{sum(page.size for page in one.image.table_pages):,}"
    yield "code that checks, bytes", f"{4 * len(code(one)):,}"
    yield "lines of code but SHA-256", f"{own_lines() if way is Way.PURGATORY else lines_of(SOURCES[way]):,}"


def every_word() -> list[list[str]]:
    """What becomes of a damaged initrd when one bit is wrong in each word of the code that checks, one at a time."""
    counted = []
    for way in Way:
        one = load(way)
        initrd = one.image.segment("initrd")
        assert initrd is not None
        word = struct.pack("<I", one.kernel.ram.read_u32(initrd.mem + 0x1000) ^ 0xFFFFFFFF)
        runs = flips(one, code(one), *dma(initrd.mem + 0x1000, word))
        counted.append(Counter(reply(way, faults).value for faults in runs))
        print(f"{way.value} done", file=sys.stderr)
    lines = [["words", *(f"{sum(one.values()):,}" for one in counted)]]
    return lines + [
        [word.value, *(f"{one[word.value]:,}" for one in counted)]
        for word in Reply
        if any(one[word.value] for one in counted)
    ]


def rows_of_all() -> list[list[str]]:
    """The table: replies, then costs."""
    table: dict[str, list[str]] = {}
    counted: dict[str, list[Counter[str]]] = {}
    for way in Way:
        for row, runs in rows(load(way)):
            found = [reply(way, faults).value for faults in runs]
            many = row.strip().endswith("bits") or row.startswith(" ")
            if many:
                counted.setdefault(row, []).append(Counter(found))
            table.setdefault(row, []).append("" if many else found[0] if found else "-")
        for name, value in costs(way):
            table.setdefault(name, []).append(value)
        print(f"{way.value} done", file=sys.stderr)
    lines = []
    for row, cells in table.items():
        lines.append([row, *cells])
        for word in Reply if row in counted else ():
            numbers = [str(one[word.value]) if one else "-" for one in counted[row]]
            if any(number not in "0-" for number in numbers):
                lines.append([f"    {word.value}", *numbers])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Three ways of checking a crash image, side by side.")
    parser.add_argument("--every-word", action="store_true", help="damage each word of the code that checks")
    found = every_word() if parser.parse_args().every_word else rows_of_all()
    lines = [["", *(way.value for way in Way)], *found]
    widths = [max(len(line[at]) for line in lines) for at in range(4)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
