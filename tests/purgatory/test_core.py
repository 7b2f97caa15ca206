"""core.ro: what every arm64 kernel could take. It starts what is as it was loaded, and stops for all else."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64

from kexecemu.guests.purgatory import code_lines
from tests.purgatory.conftest import (
    DTB,
    KERNEL_ENTRY,
    PURGATORY,
    RAM,
    RAM_SIZE,
    TOP,
    Bench,
    El,
    Mode,
    Region,
    Run,
    load,
)
from tests.purgatory.test_policies import bytes_of

# Another one in its place is tried by tests/mutation/purgatory.py.
CORE = Path(os.environ.get("KEXECEMU_TEST_CORE", TOP / "purgatory" / "core.ro"))
OWN = ("el.h", "entry.S", "purgatory.c", "purgatory.h", "types.h", "purgatory.lds")
FIRST, SECOND = (RAM + 0x10000, 0x2000), (RAM + 0x20001, 0x1235)
PAGE = 4096


@pytest.fixture(params=[El.EL1, El.EL2], ids=lambda el: el.name)
def el(request: pytest.FixtureRequest) -> El:
    el: El = request.param
    return el


def enter(
    el: El,
    damage: dict[int, bytes] | None = None,
    *,
    regions: list[Region] | None = None,
    entry: int = KERNEL_ENTRY,
    symbols: dict[str, bytes] | None = None,
    before: Callable[[Uc], None] | None = None,
) -> tuple[str, Run]:
    """Two regions, and a digest of itself; where it stands in the end: kernel, stop or exception."""
    bench = Bench(load(CORE, PURGATORY), PURGATORY, mode=Mode(el, mmu=False, crypto=False))
    parts = [bytes_of(str(phys), size) for phys, size in (FIRST, SECOND)]
    for (phys, _), part in zip((FIRST, SECOND), parts, strict=True):
        bench.put(phys, part)
    for phys, written in (damage or {}).items():
        bench.put(phys, written)
    found = bench.loaded.symbols
    given = {"purgatory_dtb": struct.pack("<Q", DTB), "purgatory_self_digest": b"", **(symbols or {})}
    run = bench.run(
        [FIRST, SECOND] if regions is None else regions,
        hashlib.sha256(b"".join(parts)).digest(),
        entry=entry,
        symbols=given,
        before=before,
        ends=(found["purgatory_exception"][0],),
    )
    places = {
        KERNEL_ENTRY: "kernel",
        found["purgatory_stop"][0]: "stop",
        found["purgatory_exception"][0]: "exception",
    }
    assert run.console == b"" and run.unaligned == [] and run.foreign == []
    return places[run.pc], run


def test_what_is_as_it_was_loaded_is_started_by_the_boot_protocol(el: El) -> None:
    where, run = enter(el)
    assert where == "kernel"
    assert [run.registers[f"x{number}"] for number in range(4)] == [DTB, 0, 0, 0]
    assert run.sctlr & 0x1005 == 0 and run.system["vbar"] == 0


@pytest.mark.parametrize("phys", [FIRST[0], FIRST[0] + 0x1FFF, SECOND[0], sum(SECOND) - 1])
def test_any_changed_byte_of_a_region_stops(el: El, phys: int) -> None:
    whole = {start: bytes_of(str(start), size) for start, size in (FIRST, SECOND)}
    ((start, data),) = ((start, data) for start, data in whole.items() if 0 <= phys - start < len(data))
    assert enter(el, {phys: bytes([data[phys - start] ^ 1])})[0] == "stop"


@pytest.mark.parametrize(
    "region",
    [(PURGATORY, 16), (PURGATORY - 8, 16), ((1 << 64) - PAGE, 2 * PAGE), (1 << 52, 8)],
    ids=["ourselves", "into us", "wraps", "no memory"],
)
def test_a_region_that_cannot_have_been_loaded_is_not_read_and_stops(el: El, region: Region) -> None:
    assert enter(el, regions=[region], symbols={"purgatory_self_digest": bytes(32)})[0] == "stop"


def test_another_device_tree_stops_and_none_that_is_named_is_not_compared(el: El) -> None:
    assert enter(el, symbols={"purgatory_dtb": struct.pack("<Q", DTB + 8)})[0] == "stop"
    assert enter(el, symbols={"purgatory_dtb": bytes(8)})[0] == "kernel"


def test_without_an_entry_it_stops(el: El) -> None:
    assert enter(el, entry=0)[0] == "stop"


def test_any_changed_byte_of_its_symbols_stops(el: El) -> None:
    loaded = load(CORE, PURGATORY)
    first = loaded.symbols["purgatory_sha_regions"][0]
    for phys in range(first, sum(loaded.symbols["purgatory_self_digest"]), 5):

        def stamp(uc: Uc, phys: int = phys) -> None:
            uc.mem_write(phys, bytes([uc.mem_read(phys, 1)[0] ^ 1 << phys % 8]))

        assert enter(el, before=stamp)[0] == "stop", hex(phys - first)


def test_an_exception_stops_elsewhere(el: El) -> None:
    at = load(CORE, PURGATORY).symbols["regions_match"][0]

    def stamp(uc: Uc) -> None:
        uc.mem_write(at, bytes(4))

    where, run = enter(el, before=stamp, symbols={"purgatory_self_digest": bytes(32)})
    assert where == "exception"
    assert run.sctlr & 0x1005 == 0


def test_where_it_stops_it_stays_whatever_wakes_the_cpu() -> None:
    """A masked interrupt ends a WFI, and what comes then is the same WFI: at the stop, and at each of four vectors."""
    loaded = load(CORE, PURGATORY)
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(RAM, RAM_SIZE)
    uc.mem_write(PURGATORY, loaded.image)
    vectors = loaded.symbols["purgatory_exception"][0]
    for at in (loaded.symbols["purgatory_stop"][0], *range(vectors, vectors + 0x200, 0x80)):
        assert bytes(uc.mem_read(at, 4)) == struct.pack("<I", 0xD503207F), hex(at)  # wfi
        uc.emu_start(at + 4, 0, count=1)
        assert uc.reg_read(arm64.UC_ARM64_REG_PC) == at


def test_it_is_small_and_has_nothing_in_bss() -> None:
    """Without SHA-256, which in a kernel is lib/crypto's. No page tables, no padding to a page."""
    assert sum(code_lines((TOP / "purgatory" / name).read_text()) for name in OWN) < 450
    elf = ELFFile.load_from_path(str(CORE))
    assert elf.get_section_by_name(".bss")["sh_size"] == 0
    loaded = load(CORE, PURGATORY)
    assert loaded.memsz == len(loaded.image) < 8192
    assert Path(CORE).stat().st_size < 16384


def test_code_lines_are_counted_without_blanks_and_comments() -> None:
    assert (
        code_lines("/* one\n * two */\n\nint a; // three\n// four\n\tb: ret /* five */\n#define C 1\n") == 3
    )
    assert code_lines('x = "http://y";\n') == 1
