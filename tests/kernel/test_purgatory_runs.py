"""The model beside ten loads and crashes of real kernels with a purgatory, 6.1.192 and 6.12.117.

The purgatory's object was not kept, only its segment as it was loaded: so the object that the model links is that
segment with zeros where the loader had set symbols, and has to end as the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kernel_bench import MIB, arm64_image, boot, real

from kexecemu.formats.fdt import Fdt, FdtEditor
from kexecemu.kernel.image.kimage import IMA, Kimage
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "purgatory-runs"
RUNS: dict[str, dict[str, Any]] = json.loads((DATA / "runs.json").read_text())
CMDLINE = "console=ttyAMA0 nr_cpus=1 reset_devices irqpoll panic=5 rdinit=/init"

SIZES = {
    "purgatory_sha_regions": 256,
    "purgatory_sha256_digest": 32,
    "purgatory_kernel_entry": 8,
    "purgatory_uart_base": 8,
}
"""What the kernel's generic code and the smallest of loaders set; the rest stays zero in most of the runs."""
MORE_SIZES = {
    "purgatory_dtb": 8,
    "purgatory_policy": 8,
    "purgatory_psci_conduit": 8,
    "purgatory_no_mmu": 8,
    "purgatory_no_crypto": 8,
    "purgatory_chosen": 8,
    "purgatory_region_digests": 512,
    "purgatory_self_digest": 32,
}
TOLD_ALL = ("board-initrd", "f-initrd")
DIGESTS = ("purgatory_sha256_digest", "purgatory_region_digests", "purgatory_self_digest")


def packed(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def sizes_of(run: str) -> dict[str, int]:
    return SIZES | (MORE_SIZES if run in TOLD_ALL else {})


def offset(run: str, symbol: str) -> int:
    """Where in the purgatory's segment a symbol lies."""
    return int(RUNS[run]["symbols"][symbol]) - RUNS[run]["segments"]["purg"][0]


def purgatory_object(run: str) -> bytes:
    """An ELF object of one section, and a bss up to the segment's size, with the symbols that the loader has set."""
    _, bufsz, memsz = RUNS[run]["segments"]["purg"]
    code = bytearray(packed(f"{run}.purgatory").ljust(bufsz, b"\0"))
    names, symbols = b"\0", bytes(24)
    for name, size in {"purgatory_start": 0, **sizes_of(run)}.items():
        at = offset(run, name)
        code[at : at + size] = bytes(size)
        symbols += struct.pack("<IBBHQQ", len(names), 0x11 if size else 0x12, 0, 1, at, size)
        names += name.encode() + b"\0"
    bodies = [b"", bytes(code), b"", symbols, names]
    heads = [
        (0, 0, 0, 0, 0, 0),
        (1, 7, 0, 0, 16, 0),
        (8, 3, 0, 0, 16, 0),
        (2, 0, 4, 1, 8, 24),
        (3, 0, 0, 0, 1, 0),
    ]
    sizes = [0, len(code), memsz - bufsz, len(symbols), len(names)]
    at, table = 64, b""
    for (kind, flags, link, info, align, entsize), body, size in zip(heads, bodies, sizes, strict=True):
        table += struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, at, size, link, info, align, entsize)
        at += len(body)
    header = struct.pack("<HHIQQQIHHHHHH", 1, 183, 1, 0, 0, at, 0, 64, 0, 0, 64, 5, 4)
    return b"\x7fELF\2\1\1".ljust(16, b"\0") + header + b"".join(bodies) + table


def first_tree(run: str) -> bytes:
    """The tree that the first kernel was booted with.

    QEMU leaves whatever lay in its buffer in the byte of padding behind stdout-path, and the kernel passes it on: it is
    as in the tree that came of it.
    """
    if run == "board-initrd":
        return packed("board-initrd.first.dtb")
    tree = FdtEditor(packed("max.first.dtb") if run in ("612-max", "612f-19") else real("main.dtb"))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    tree.setprop(chosen, "bootargs", RUNS[run]["cmdline"].encode() + b"\0")
    path = tree.get_property(chosen, "stdout-path")
    assert path is not None and len(path.value) == 15
    if (DATA / f"{run}.dtb.gz").exists():
        loaded = packed(f"{run}.dtb")
        there = loaded.index(path.value, Fdt(loaded).off_dt_struct)
        tree.data[tree.off_dt_struct + path.offset + 12 + 15] = loaded[there + 15]
    return tree.to_bytes()


def seeds_of(run: str) -> tuple[int, bytes] | None:
    """What the real kernel's random numbers were; all 0 where a tree with some was not kept."""
    if not run.startswith("612"):
        return None
    if run != "612":
        return 0, bytes(128)
    tree = Fdt(packed("612.dtb"))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    kaslr, rng = tree.getprop(chosen, "kaslr-seed"), tree.getprop(chosen, "rng-seed")
    assert kaslr is not None and rng is not None
    return int.from_bytes(kaslr, "big"), rng


@dataclass(frozen=True)
class Loaded:
    run: str
    kernel: KernelModel
    image: Kimage

    @property
    def facts(self) -> dict[str, Any]:
        return RUNS[self.run]


@cache
def load(run: str, folder: Path) -> Loaded:
    """The model after the same load; kernel and initrd are of the same sizes, and zeros."""
    facts = RUNS[run]
    options = {"ZONE_DMA": "n"} if run == "proof" else {}
    options |= {"IMA_KEXEC": "y"} if run.startswith("ima") else {}
    options |= {"KEXEC_PURGATORY_CHOSEN": "y"} if run in TOLD_ALL else {}
    purgatory = folder / f"{run}.ro"
    purgatory.write_bytes(purgatory_object(run))
    kernel = boot(
        "6.1" if facts["release"] == "6.1.192" else "6.12",
        None,
        ram=[PhysRange.of(0x40000000, 768 * MIB)],
        cpus=2,
        dtb=first_tree(run),
        options=options,
        purgatory=purgatory,
        seeds=seeds_of(run),
    )
    _, bufsz, memsz = facts["segments"]["kernel"]
    image = kernel.kexec_file_load(
        arm64_image(bufsz, image_size=memsz), bytes(facts["segments"]["initrd"][1]), CMDLINE
    )
    assert image is not None
    return Loaded(run, kernel, image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("purgatories")


@pytest.fixture(params=sorted(RUNS))
def loaded(request: pytest.FixtureRequest, folder: Path) -> Loaded:
    return load(request.param, folder)


def with_run(*runs: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loaded", runs, indirect=True)


def test_segments_entry_and_regions_are_the_real_kernel_s(loaded: Loaded) -> None:
    facts, image = loaded.facts, loaded.image
    names = {"elf": "elfcorehdr", "purg": "purgatory"}
    real_places = {names.get(name, name): tuple(place) for name, place in facts["segments"].items()}
    ours = {one.name: (one.mem, one.bufsz, one.memsz) for one in image.segments if one.name != IMA}
    assert ours == real_places
    assert image.start == facts["entry"]
    assert [(one.start, one.size) for one in image.sha_regions] == [tuple(one) for one in facts["regions"]]


def test_every_byte_of_the_purgatory_is_but_for_digests_of_what_was_not_kept(loaded: Loaded) -> None:
    run, (mem, _, memsz) = loaded.run, loaded.facts["segments"]["purg"]
    expected = bytearray(packed(f"{run}.purgatory").ljust(memsz, b"\0"))
    ours = bytearray(loaded.kernel.ram.read(mem, memsz))
    for name in DIGESTS:
        if name in sizes_of(run):
            at = slice(offset(run, name), offset(run, name) + sizes_of(run)[name])
            expected[at] = ours[at] = bytes(sizes_of(run)[name])
    if run == "f-initrd":  # its loader asked SMCCC 1.1, which that QEMU has not; the model reads /psci
        at = slice(offset(run, "purgatory_psci_conduit"), offset(run, "purgatory_psci_conduit") + 8)
        assert (expected[at], ours[at]) == (bytes(8), struct.pack("<Q", 1))
        ours[at] = bytes(8)
    assert ours == expected


@with_run("612", "board-initrd", "clean", "ima-entry0", "ima-good", "proof")
def test_the_device_tree_is_the_real_one_byte_for_byte_seeds_and_ima_s_buffer_included(
    loaded: Loaded,
) -> None:
    mem, _, memsz = loaded.facts["segments"]["dtb"]
    ours = loaded.kernel.ram.read(mem, memsz)
    assert ours == packed(f"{loaded.run}.dtb").ljust(memsz, b"\0")
    each = loaded.facts["each"]
    assert not each or hashlib.sha256(ours).hexdigest() == each[hex(mem)]


@with_run("ima-entry0", "ima-good")
def test_ima_s_list_is_the_first_region_with_the_real_one_s_digest(loaded: Loaded) -> None:
    area = loaded.image.sha_regions[0]
    assert loaded.image.segments[0].name == IMA and loaded.image.segments[0].bufsz == 0x6F
    content = loaded.kernel.ram.read(area.start, area.size)
    assert hashlib.sha256(content).hexdigest() == loaded.facts["each"][hex(area.start)]
    assert loaded.image.kernel_entry == loaded.image.sha_regions[1].start


@with_run("f-initrd")
def test_what_the_self_digest_covers_is_what_a_real_loader_covered(loaded: Loaded) -> None:
    """By hashing the real segment up to where the model's loader stops."""
    segment, image = packed("f-initrd.purgatory"), loaded.image
    assert image.purgatory is not None
    start, end = (
        image.purgatory.symbol_offset(name) for name in ("purgatory_start", "purgatory_self_digest")
    )
    assert hashlib.sha256(segment[start:end]).digest() == segment[end : end + 32]
    assert hashlib.sha256(image.purgatory.buf[start:end]).digest() == image.purgatory.buf[end : end + 32]


def registers(cpu: Cpu) -> dict[str, int]:
    return {f"x{number}": cpu.x(number) for number in range(31)} | {"sp": cpu.sp, "pc": cpu.pc}


EL_AND_DAIF = 0x3CF
OF_THE_FIRST_KERNEL = {"x6", "x7", "x11", "x12", *(f"x{number}" for number in range(16, 29))}
"""TCR, TTBR0, VBAR and SP of the kernel that died, and what its crash path happened to leave in the others."""
OF_THE_DIGEST = {f"x{number}" for number in (*range(6, 15), 29)}
"""Where the smaller purgatory's compiled code ends with parts of the digest, which is of another kernel here."""


@with_run("612", "clean", "proof")
def test_the_registers_at_both_entries_are_the_real_ones(loaded: Loaded) -> None:
    facts, kernel, cpu = loaded.facts, loaded.kernel, loaded.kernel.board.boot_cpu
    assert kernel.crash().kind is CpuStopKind.LEFT
    ours, theirs = registers(cpu), facts["purgatory_entry"]
    for name in ("x0", "x1", "x2", "x3", "x4", "x8", "x12", "pc"):
        assert ours[name] == theirs[name], name
    assert cpu.pstate & EL_AND_DAIF == theirs["cpsr"] & EL_AND_DAIF
    stop = cpu.run(stops={loaded.image.kernel_entry}, limit=500_000_000)
    assert stop.kind is CpuStopKind.BREAKPOINT and "digests match" in kernel.board.uart.text
    ours, theirs = registers(cpu), facts["kernel_entry"]
    other = {name for name in ours if ours[name] != theirs[name]}
    assert other <= OF_THE_FIRST_KERNEL | (OF_THE_DIGEST if loaded.run == "proof" else set())
    assert cpu.pstate & EL_AND_DAIF == theirs["cpsr"] & EL_AND_DAIF
