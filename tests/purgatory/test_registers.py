"""Every system register that is read or written, in order, at each level, on CPUs old and new."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from unicorn import arm64_const as arm64

from tests.purgatory.conftest import DTB, KERNEL_ENTRY, PURGATORY, RAM, El
from tests.purgatory.registers import SP_EL0, SP_OWN, Cpu, Event, registers
from tests.purgatory.test_core import CORE
from tests.purgatory.test_policies import CALLER, CRYPTO, TRAPPED, Policy, bytes_of

# Bits that have to be 1, and A: see el.h. Written out here so that a slip there is one.
SCTLR_OFF = {El.EL1: 0x30D00802, El.EL2: 0x30C50832, El.VHE: 0x30D00802}
SPOILT, LENGTH = RAM + 0x10000, 0x1040


@pytest.fixture(params=El, ids=lambda el: el.name)
def el(request: pytest.FixtureRequest) -> El:
    el: El = request.param
    return el


def cpu_of(path: Path, el: El, spoilt: bool = False, **more: object) -> Cpu:
    """One region, whose digest is what it should be or not."""
    features = {name: more.pop(name) for name in ("gcs", "tcr2", "sme", "sha2") if name in more}
    data = bytes_of("region", LENGTH)
    symbols = {"purgatory_uart_base": bytes(8), **more.pop("symbols", {})}  # type: ignore[dict-item]
    # The kernel says so to whoever loads.
    symbols["purgatory_gcs"] = struct.pack("<Q", features.get("gcs", True))
    if path != CORE:
        symbols["purgatory_sme"] = struct.pack("<Q", features.get("sme", True))
    cpu = Cpu(
        path,
        el,
        registers(el, **features),  # type: ignore[arg-type]
        [(SPOILT, LENGTH)],
        bytes(32) if spoilt else hashlib.sha256(data).digest(),
        symbols,
    )
    cpu.uc.mem_write(SPOILT, data)
    return cpu


def at_entry(cpu: Cpu) -> list[Event]:
    """What is written before anything else is done."""
    suffix = cpu.suffix
    vectors = cpu.bench.loaded.symbols["purgatory_vectors"][0]
    both = [("tcr2" + suffix, 0), ("gcscr" + suffix, 0)]
    return [
        ("sctlr" + suffix, SCTLR_OFF[cpu.el]),
        ("vbar" + suffix, vectors),
        *[one for one in both if one[0] in cpu.registers],
    ]


@pytest.mark.parametrize("sme", [True, False], ids=["sme", ""])
@pytest.mark.parametrize("tcr2", [True, False], ids=["tcr2", ""])
@pytest.mark.parametrize("gcs", [True, False], ids=["gcs", ""])
def test_a_check_sets_what_it_depends_on_and_gives_it_back(
    purgatory_ro: Path, el: El, gcs: bool, tcr2: bool, sme: bool
) -> None:
    cpu = cpu_of(purgatory_ro, el, gcs=gcs, tcr2=tcr2, sme=sme)
    found, suffix = dict(cpu.registers), cpu.suffix
    assert cpu.enter("purgatory_start") == KERNEL_ENTRY
    # FP, SIMD and, where there is one, the streaming unit do not trap.
    fp = "cptr_el2" if el is El.EL2 else "cpacr_el1"
    clear, put = (
        ((1 << 10 | (1 << 12 if sme else 0)), 0) if el is El.EL2 else (0, 3 << 20 | (3 << 24 if sme else 0))
    )
    off = SCTLR_OFF[el]
    tables = cpu.bench.loaded.symbols["table_area"]
    (top,) = {value for name, value in cpu.writes() if name == "ttbr0" + suffix} - {found["ttbr0" + suffix]}
    assert tables[0] <= top < sum(tables) and top % 4096 == 0
    walks = 16 | 1 << 8 | 1 << 10 | 3 << 12
    tcr = walks | (1 << 31 | 1 << 23 | 5 << 16 if el is El.EL2 else 1 << 23 | 2 << 30 | 5 << 32)
    expected = [
        *at_entry(cpu),
        (fp, found[fp] & ~clear | put),
        *[(name + suffix, value) for name, value in (("mair", 0xFF), ("tcr", tcr), ("ttbr0", top))],
        ("sctlr" + suffix, off | 0x1005),
        ("sctlr" + suffix, off),
        *[(name + suffix, found[name + suffix]) for name in ("mair", "tcr", "ttbr0")],
        (fp, found[fp]),
        ("vbar" + suffix, found["vbar" + suffix]),
        ("sctlr" + suffix, found["sctlr" + suffix]),
    ]
    assert cpu.writes() == expected
    changed = {name for name in found if cpu.registers[name] != found[name]}
    assert changed == {name + suffix for name, there in (("gcscr", gcs), ("tcr2", tcr2)) if there}
    assert [name for name, _ in cpu.events].count("smstop sm") == sme
    assert [cpu.x(number) for number in range(4)] == [DTB, 0, 0, 0]


def steps(cpu: Cpu) -> list[str]:
    """System instructions in order, those by lines as one; without names of levels."""
    names = [name.removesuffix(cpu.suffix) for name, _ in cpu.events if name not in ("store", "call")]
    return [name for at, name in enumerate(names) if not name.startswith("dc ") or names[at - 1] != name]


@pytest.mark.parametrize("sme", [True, False], ids=["sme", ""])
def test_each_step_stands_where_the_architecture_wants_it(purgatory_ro: Path, el: El, sme: bool) -> None:
    """The whole way of a good image; a barrier that is missing is seen on silicon only."""
    cpu = cpu_of(purgatory_ro, el, sme=sme)
    cpu.enter("purgatory_start")
    fp = "cptr" if el is El.EL2 else "cpacr"
    tlbi = "tlbi vmalle1" if el is El.EL1 else "tlbi alle2"
    clean, drop = (["dmb sy", line, "dsb sy"] for line in ("dc civac", "dc ivac"))
    assert steps(cpu) == [
        "spsel 1", "sctlr", "vbar", "tcr2", "isb", "gcscr", "isb", *clean, "ic iallu", "dsb nsh", "isb",
        fp, "isb", *(["smstop sm"] if sme else []),
        *clean,  # where the tables will be
        *clean,  # sixteen regions, one of them not empty
        *drop, tlbi, "ic iallu", "dsb nsh", "mair", "tcr", "ttbr0", "isb", "sctlr", "isb",
        *clean, "isb", "sctlr", "isb", "mair", "tcr", "ttbr0", "isb", tlbi, "dsb nsh", "isb", *clean,
        fp, "isb",
        "ic iallu", "dsb nsh", "vbar", "sctlr", "isb",
    ]  # fmt: skip


def test_the_map_is_as_wide_as_the_cpu_and_its_granule_allow(purgatory_ro: Path, el: El) -> None:
    """48 bits are all that 4 KiB pages have; TGran4 says with 0 and 1 that there are such pages, with 15 that not."""
    cpu = cpu_of(purgatory_ro, el)
    cpu.go(cpu.at("purgatory_start"), cpu.at("caches_prepare"))
    for granule in (0, 1, 2, 15):
        for pa_range in range(8):
            cpu.registers["mmfr0"] = pa_range | granule << 28 | 0xF << 24 | 0xF << 32
            cpu.set_x(0, 0)
            cpu.set_x(30, CALLER)
            assert cpu.go(cpu.at("caches_prepare"), CALLER) == CALLER
            (prepared,) = struct.unpack("<I", cpu.get("mmu_prepared"))
            assert prepared == (granule <= 1)
            if prepared:
                tcr = struct.unpack("<4Q", cpu.get("new"))[1]
                assert tcr >> (16 if el is El.EL2 else 32) & 7 == min(pa_range, 5)


def test_what_is_hashed_can_only_be_read_meanwhile(purgatory_ro: Path, el: El) -> None:
    cpu = cpu_of(purgatory_ro, el)
    at = cpu.at("sha256_ce_blocks")
    while cpu.enter("purgatory_start", at) != at or cpu.x(1) != SPOILT:
        pass
    table = cpu.registers["ttbr0" + cpu.suffix]
    for level in range(4):
        index = SPOILT >> 39 - 9 * level & 511
        (entry,) = struct.unpack("<Q", cpu.uc.mem_read(table + 8 * index, 8))
        table = entry & 0x0000FFFFFFFFF000
    assert table == SPOILT and entry & 1 << 7


def test_the_core_sets_and_gives_back_the_same_but_for_the_map_and_fp(el: El) -> None:
    for gcs in (False, True):
        cpu = cpu_of(CORE, el, gcs=gcs, tcr2=not gcs)
        found, suffix = dict(cpu.registers), cpu.suffix
        assert cpu.enter("purgatory_start") == KERNEL_ENTRY
        back = [(name + suffix, found[name + suffix]) for name in ("vbar", "sctlr")]
        vectors = cpu.bench.loaded.symbols["purgatory_start"][0]
        assert cpu.writes() == [*at_entry(cpu), *back] and vectors % 2048 == 0


def test_before_the_state_is_known_nothing_is_stored_and_nothing_is_called(
    purgatory_ro: Path, el: El
) -> None:
    for path in (purgatory_ro, CORE):
        cpu = cpu_of(path, el)
        cpu.enter("purgatory_start")
        first = next(at for at, (name, _) in enumerate(cpu.events) if name in ("store", "call"))
        own = [name for name, _ in at_entry(cpu)]
        assert [name for name, _ in cpu.events[:first]] == ["spsel 1", *own[:-1], "isb", own[-1], "isb"]
        # Then what is in caches of ourselves goes to memory, all of it, and only then is anything stored or run.
        store = next(at for at, (name, _) in enumerate(cpu.events) if name == "store")
        names = [name for name, _ in cpu.events[first + 1 : store]]
        lines = names.count("dc civac")
        end = cpu.at("purgatory_data_end")
        assert names == ["dmb sy", *["dc civac"] * lines, "dsb sy", "ic iallu", "dsb nsh", "isb"]
        assert [value for name, value in cpu.events[first + 1 : store] if name == "dc civac"] == list(
            range(PURGATORY, end, 64)
        )


def test_what_comes_next_is_fetched_anew_and_entered_with_its_state(purgatory_ro: Path, el: El) -> None:
    for path in (purgatory_ro, CORE):
        cpu = cpu_of(path, el)
        cpu.enter("purgatory_start")
        assert [name for name, _ in cpu.events[-5:]] == [
            "ic iallu", "dsb nsh", "vbar" + cpu.suffix, "sctlr" + cpu.suffix, "isb",
        ]  # fmt: skip


def test_gcs_is_touched_where_the_cpu_has_it_and_the_kernel_uses_it(purgatory_ro: Path, el: El) -> None:
    """Firmware of a kernel that does not may trap it; and a stray word does not bring what is not there."""
    for path in (purgatory_ro, CORE):
        for used in (0, 1, 1 << 63):
            for there in (0, 1, 15):
                cpu = cpu_of(path, el, gcs=bool(used and there))
                cpu.registers["pfr1"] = cpu.registers["pfr1"] & ~(0xF << 44) | there << 44
                cpu.set("purgatory_gcs", used)
                assert cpu.enter("purgatory_start") == KERNEL_ENTRY
                assert (("gcscr" + cpu.suffix, 0) in cpu.events) == bool(used and there)


@pytest.mark.parametrize("missing", ["gcs", "tcr2", "nothing"])
@pytest.mark.parametrize("spoilt", [False, True], ids=["good", "spoilt"])
def test_the_early_check_gives_back_every_register(
    purgatory_ro: Path, el: El, spoilt: bool, missing: str
) -> None:
    cpu = cpu_of(purgatory_ro, el, spoilt, sme=False, **{missing: False} if missing != "nothing" else {})
    found = dict(cpu.registers)
    cpu.set_x(30, CALLER)
    given = [0xBAD0001 + 2 * number for number in range(30)]  # odd: none of them is the SPSel that is in use
    for number, value in enumerate(given):
        cpu.set_x(number, value)
    assert cpu.go(cpu.at("purgatory_check"), CALLER) == CALLER
    assert cpu.x(0) == spoilt
    assert cpu.registers == found
    assert [cpu.x(number) for number in range(18, 30)] == given[18:]
    assert cpu.events[-1][0] == "isb"
    assert_stacks(cpu)


def assert_stacks(cpu: Cpu) -> None:
    """Both as they were, and the one in use."""
    assert cpu.uc.reg_read(arm64.UC_ARM64_REG_PSTATE) & 0xF == 4
    assert cpu.uc.reg_read(arm64.UC_ARM64_REG_SP) == SP_EL0
    # msr spsel, #1; mov x0, sp
    cpu.uc.mem_write(RAM + 0x100, struct.pack("<2I", 0xD50041BF, 0x910003E0))
    cpu.uc.emu_start(RAM + 0x100, 0, count=2)
    assert cpu.x(0) == SP_OWN


@pytest.mark.parametrize(
    ("sha2", "sve", "sme"),
    [(True, False, False), (False, False, False), (True, True, False), (True, False, True)],
)
@pytest.mark.parametrize("early", [False, True], ids=["", "early"])
def test_the_instructions_are_used_where_they_are_and_where_registers_can_be_given_back(
    purgatory_ro: Path, el: El, early: bool, sha2: bool, sve: bool, sme: bool
) -> None:
    """SVE's registers are longer than what is saved, streaming mode does not come back: early, it does without."""
    cpu = cpu_of(purgatory_ro, el, sha2=sha2, sme=sme)
    cpu.registers["pfr0"] = 1 << 32 if sve else 0xFFFFFFFFFFFFFFFF & ~(0xF << 32)
    cpu.registers["pfr1"] |= 0xF << 28
    vectors = [0xF00D << 100 | number for number in range(32)]
    for number, value in enumerate(vectors):
        cpu.uc.reg_write(getattr(arm64, f"UC_ARM64_REG_Q{number}"), value)
    cpu.set_x(30, CALLER)
    cpu.go(cpu.at("purgatory_check" if early else "purgatory_start"), CALLER)
    used = bool(struct.unpack_from("<I", cpu.get("purgatory_verdict"), 88)[0] & CRYPTO)
    assert used == (sha2 and not (early and (sve or sme)))
    assert [cpu.uc.reg_read(getattr(arm64, f"UC_ARM64_REG_Q{number}")) for number in range(32)] == vectors


# -- exceptions --------------------------------------------------------------------------------------------------------

VECTORS = {"synchronous": 0x200, "IRQ": 0x280, "FIQ": 0x300, "SError": 0x380}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_an_exception_of_any_kind_is_recorded_with_the_registers_of_its_level(
    purgatory_ro: Path, el: El, vector: int
) -> None:
    cpu = cpu_of(purgatory_ro, el, symbols={"purgatory_policy": struct.pack("<Q", Policy.BOOT_ANYWAY)})
    found, suffix = dict(cpu.registers), cpu.suffix
    start, at = cpu.at("purgatory_vectors"), cpu.at("sha256_ce_blocks")
    assert cpu.enter("purgatory_start", at) == at  # the map is on, and the stack in use
    before = len(cpu.events)
    cpu.uc.reg_write(arm64.UC_ARM64_REG_SP, 0xDEAD0)  # whatever it was that went wrong
    assert cpu.go(start + vector) == KERNEL_ENTRY
    kept = cpu.get("purgatory_verdict")
    assert struct.unpack_from("<I", kept, 12)[0] == TRAPPED
    assert struct.unpack_from("<3Q", kept, 104) == tuple(
        found[name + suffix] for name in ("esr", "elr", "far")
    )
    events = cpu.events[before:]
    store = next(index for index, (name, _) in enumerate(events) if name == "store")
    assert events[:3] == [("isb", 0), ("sctlr" + suffix, SCTLR_OFF[el]), ("isb", 0)]
    cleaned = [value for name, value in events[:store] if name == "dc civac"]
    assert cleaned == list(range(cpu.at("purgatory_data"), cpu.at("purgatory_data_end"), 64))
    # And everything is as it was found.
    assert {name for name in found if cpu.registers[name] != found[name]} <= {
        "gcscr" + suffix,
        "tcr2" + suffix,
    }
    assert [cpu.x(number) for number in range(4)] == [DTB, 0, 0, 0]


def test_exceptions_upon_exceptions_end(purgatory_ro: Path, el: El) -> None:
    """The second one says nothing, the third one stops: that of an early check returns."""
    for early in (False, True):
        cpu = cpu_of(purgatory_ro, el, sme=False)
        found = dict(cpu.registers)
        start, at = cpu.at("purgatory_vectors") + 0x200, cpu.at("record_trap")
        cpu.set_x(30, CALLER)
        assert cpu.go(cpu.at("purgatory_check" if early else "purgatory_start"), cpu.at("sha256_ce_blocks"))
        for _ in range(2):
            assert cpu.go(start, at) == at
        assert cpu.get("console_stuck") != bytes(4)
        end = cpu.go(start, CALLER)
        assert end == (CALLER if early else cpu.at("purgatory_stop"))
        if early:
            assert cpu.x(0) == 1
            assert {name for name in found if cpu.registers[name] != found[name]} == set()
            assert_stacks(cpu)


# -- caches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log2_words", [0, 2, 4, 5])
def test_a_range_is_cleaned_by_lines_of_any_size_from_the_one_it_begins_in(
    purgatory_ro: Path, log2_words: int
) -> None:
    line = 4 << log2_words
    for path in (purgatory_ro, CORE):
        for begin, end in ((0, 0), (0, 1), (3, line), (line - 1, line + 1), (line, 4 * line), (8, 8), (9, 8)):
            cpu = cpu_of(path, El.EL1)
            cpu.registers["ctr_el0"] = 0xFFFFFFFF & ~(0xF << 16) | log2_words << 16
            cpu.set_x(0, SPOILT + begin)
            cpu.set_x(1, SPOILT + end)
            cpu.set_x(30, CALLER)
            assert cpu.go(cpu.at("dcache_clean_inval_poc"), CALLER) == CALLER
            lines = range(SPOILT + begin - begin % line, SPOILT + end, line)
            assert cpu.events == [("dmb sy", 0), *[("dc civac", one) for one in lines], ("dsb sy", 0)]
