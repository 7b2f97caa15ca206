"""What the purgatory does after a mismatch, at every exception level, with caches on and off, by both ways to hash.

Two regions of a few pages, one word of the second one stamped. Whatever is done then: the MMU is off, nobody's
register has changed, and no access was one that Device memory refuses.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from unicorn import UC_HOOK_CODE, Uc
from unicorn.arm64_const import UC_ARM64_REG_X1, UC_ARM64_REG_X30

from tests.purgatory.conftest import (
    CPTR_TRAPS,
    DTB,
    EMULATED_MODES,
    EXCP_HVC,
    EXCP_SMC,
    KERNEL_ENTRY,
    PURGATORY,
    RAM,
    Bench,
    El,
    Mode,
    Region,
    Run,
    load,
    sctlr_of,
)

FIRST, SECOND, TABLE, COPY, CHOSEN, CALLER = (
    RAM + 0x10000, RAM + 0x20000, RAM + 0x30000, RAM + 0x40000, DTB + 0x104, RAM + 0x100000
)  # fmt: skip
STAMPED = 0x1234  # in the second region: its page 1
MATCH, MISMATCH, TRAPPED = 2, 3, 4
MMU_ON, CRYPTO, SELF_CHECKED, AT_EL2, REPAIRED, EARLY = (1 << bit for bit in range(6))
SYSTEM_OFF, SYSTEM_RESET = 0x84000008, 0x84000009


class Policy(enum.IntEnum):
    """enum purgatory_policy."""

    STOP = 0
    RESET = 1
    OFF = 2
    RETURN = 3
    BOOT_ANYWAY = 4
    REPAIR = 5


def bytes_of(name: str, size: int) -> bytes:
    """Bytes that depend on the name alone."""
    return hashlib.shake_128(name.encode()).digest(size)


@dataclass
class Case:
    """Two regions as loaded, and everything that a loader can say about them."""

    bench: Bench
    mode: Mode
    first: bytes = field(default_factory=lambda: bytes_of("first", 0x2000))
    second: bytes = field(default_factory=lambda: bytes_of("second", 0x3000))
    table: bool = True
    conduit: int = 1

    @property
    def regions(self) -> list[Region]:
        table = [(TABLE, len(self.page_digests))] if self.table else []
        return [(FIRST, len(self.first)), (SECOND, len(self.second)), *table]

    @property
    def page_digests(self) -> bytes:
        pages = [
            part[at : at + 4096] for part in (self.first, self.second) for at in range(0, len(part), 4096)
        ]
        return b"".join(hashlib.sha256(page).digest() for page in pages).ljust(4096, b"\0")

    def run(self, policy: Policy, damage: dict[int, bytes] | None = None, **more: object) -> Run:
        """Load, stamp on what `damage` says (physical address to bytes), and enter."""
        parts = [self.first, self.second, *([self.page_digests] if self.table else [])]
        for (phys, _), part in zip(self.regions, parts, strict=True):
            self.bench.put(phys, part)
        self.bench.put(COPY, self.first + self.second)
        self.bench.put(CALLER, bytes(16))
        self.bench.put(DTB, bytes(0x1000))
        for phys, written in (damage or {}).items():
            self.bench.put(phys, written)
        symbols = {
            "purgatory_policy": struct.pack("<Q", policy),
            "purgatory_psci_conduit": struct.pack("<Q", self.conduit),
            "purgatory_dtb": struct.pack("<Q", DTB),
            "purgatory_region_digests": b"".join(hashlib.sha256(p).digest() for p in parts).ljust(512, b"\0"),
            "purgatory_page_digests": struct.pack("<Q", TABLE if self.table else 0),
            "purgatory_copy": struct.pack("<Q", COPY if policy is Policy.REPAIR else 0),
            "purgatory_chosen": struct.pack("<Q", CHOSEN),
            "purgatory_self_digest": b"",
            **more.pop("symbols", {}),  # type: ignore[dict-item]
        }
        also = [(CHOSEN, 152)]
        if policy is Policy.REPAIR:
            also += [(COPY, 0x5000), *self.regions]
        return self.bench.run(
            self.regions,
            hashlib.sha256(b"".join(parts)).digest(),
            mode=self.mode,
            symbols=symbols,
            also=also,
            ends=(CALLER,),
            **more,  # type: ignore[arg-type]
        )


@pytest.fixture(params=EMULATED_MODES, ids=str)
def case(purgatory_ro: Path, request: pytest.FixtureRequest) -> Case:
    """The purgatory in each of its modes; the conduit that firmware has at that level."""
    mode: Mode = request.param
    return Case(Bench(load(purgatory_ro, PURGATORY), PURGATORY), mode, conduit=1 if mode.el is El.EL1 else 2)


def assert_left_as_found(run: Run, mode: Mode) -> None:
    """MMU and caches off, traps, vectors and vector registers as they were, no access that silicon would refuse."""
    assert run.sctlr & 0x1005 == 0
    if run.pc in (KERNEL_ENTRY, CALLER):
        assert run.system["vbar"] == 0
    assert run.system["cptr"] == (CPTR_TRAPS if mode.el is El.EL2 else 0x33FF)
    assert run.system["cpacr"] == 0
    assert run.vectors == [0xF00D << 100 | index for index in range(32)]
    assert not run.unaligned
    assert not run.foreign


def expected_flags(mode: Mode) -> int:
    """What the record says about how it checked."""
    return (
        (MMU_ON if mode.mmu else 0)
        | (CRYPTO if mode.crypto else 0)
        | (AT_EL2 if mode.el is not El.EL1 else 0)
        | SELF_CHECKED
    )


# What it says that it does.
SAID = {
    Policy.STOP: "stopped",
    Policy.RESET: "resetting",
    Policy.OFF: "switching off",
    Policy.RETURN: "returning",
    Policy.BOOT_ANYWAY: "booting anyway",
    Policy.REPAIR: "repaired from the copy",
}
STAMP = {SECOND + STAMPED: b"\xde\xad\xbe\xef"}


def test_a_good_image_starts_whatever_the_policy(case: Case) -> None:
    run = case.run(Policy.STOP)
    assert (run.pc, run.verdict.state, run.verdict.flags) == (KERNEL_ENTRY, MATCH, expected_flags(case.mode))
    assert [run.registers[f"x{i}"] for i in range(4)] == [DTB, 0, 0, 0]
    assert_left_as_found(run, case.mode)


def test_it_hashes_with_the_mmu_on_or_off_and_by_the_instructions_that_it_says(case: Case) -> None:
    """Read at the moment when the first block is hashed, from the CPU and not from the purgatory's own record."""
    seen: dict[str, int] = {}
    symbols = case.bench.loaded.symbols

    def watch(uc: Uc) -> None:
        for name in ("digest_update", "sha256_ce_blocks"):
            at = symbols[name][0]
            uc.hook_add(UC_HOOK_CODE, note, begin=at, end=at, user_data=name)

    def note(uc: Uc, _address: int, _size: int, name: str) -> None:
        if uc.reg_read(UC_ARM64_REG_X1) == FIRST:  # their argument `data`
            seen[name] = sctlr_of(uc, case.mode.el) & 0x1005

    assert case.run(Policy.STOP, before=watch).verdict.state == MATCH
    on = 0x1005 if case.mode.mmu else 0
    assert seen == {"digest_update": on} | ({"sha256_ce_blocks": on} if case.mode.crypto else {})


@pytest.mark.parametrize("policy", Policy, ids=lambda policy: policy.name)
def test_a_stamped_word_is_located_and_the_policy_followed(case: Case, policy: Policy) -> None:
    run = case.run(policy, STAMP, before=from_caller)
    assert run.verdict.state == MISMATCH
    repaired = REPAIRED if policy is Policy.REPAIR else 0
    assert run.verdict.flags == expected_flags(case.mode) | repaired
    assert (run.verdict.damaged, run.verdict.damaged_pages) == (1 << 1, 1)
    assert run.verdict.damage == [(SECOND + 0x1000, 0x1000)]
    text = run.console.decode()
    assert f"damaged: region 1, {SECOND + 0x1000:#x}-{SECOND + 0x1FFF:#x}" in text
    page = case.second[0x1000:0x2000]
    stamped = page[:0x234] + b"\xde\xad\xbe\xef" + page[0x238:]
    for what, content in (("expected", page), ("found   ", stamped)):
        line = f"page {what} {hashlib.sha256(content).hexdigest()}"
        assert (line in text) == (policy is not Policy.REPAIR)
    whole = case.first + case.second[:0x1000] + stamped + case.second[0x2000:] + case.page_digests
    assert run.verdict.found == hashlib.sha256(whole).digest()
    assert_left_as_found(run, case.mode)

    assert [line.removeprefix("purgatory: ") for line in text.splitlines() if line[11:] in SAID.values()] == [
        SAID[policy], *(["stopped"] if policy in (Policy.RESET, Policy.OFF) else []),
    ]  # fmt: skip
    stop = case.bench.loaded.symbols["purgatory_stop"][0]
    call = EXCP_HVC if case.conduit == 1 else EXCP_SMC
    if policy is Policy.STOP:
        assert (run.pc, run.calls) == (stop, [])
    elif policy in (Policy.RESET, Policy.OFF):
        # This firmware refuses, and then there is nothing but to stop.
        assert run.calls == [(call, SYSTEM_RESET if policy is Policy.RESET else SYSTEM_OFF)]
        assert run.pc == stop
    elif policy is Policy.RETURN:
        assert (run.pc, run.registers["x0"]) == (CALLER, 1)
        assert [run.registers[f"x{i}"] for i in range(19, 30)] == [0xBAD0000 + i for i in range(19, 30)]
        assert run.registers["sp"] == 0xBAD
    else:
        assert run.pc == KERNEL_ENTRY
        assert [run.registers[f"x{i}"] for i in range(4)] == [DTB, 0, 0, 0]
        version, state, flags, damaged, ranges, pages, *cells = struct.unpack(">38I", run.memory(CHOSEN, 152))
        assert (version, state, damaged, ranges, pages) == (2, MISMATCH, 2, 1, 1)
        assert flags == run.verdict.flags
        assert cells[:4] == [0, SECOND + 0x1000, 0, 0x1000]
    now = run.memory(SECOND, 0x3000)
    if policy is Policy.REPAIR:
        assert now == case.second
    else:
        assert now[STAMPED : STAMPED + 4] == b"\xde\xad\xbe\xef"


def from_caller(uc: Uc) -> None:
    """Called, not jumped to: there is somebody to return to."""
    uc.reg_write(UC_ARM64_REG_X30, CALLER)


@pytest.mark.parametrize("stamped", [False, True], ids=["good", "stamped"])
def test_the_early_check_answers_its_caller_and_leaves_no_trace(case: Case, stamped: bool) -> None:
    run = case.run(Policy.BOOT_ANYWAY, STAMP if stamped else {}, before=from_caller, start="purgatory_check")
    assert (run.pc, run.registers["x0"]) == (CALLER, int(stamped))
    assert run.verdict.state == (MISMATCH if stamped else MATCH)
    assert run.verdict.flags == expected_flags(case.mode) | EARLY
    assert [run.registers[f"x{i}"] for i in range(19, 30)] == [0xBAD0000 + i for i in range(19, 30)]
    assert run.registers["sp"] == 0xBAD
    assert run.memory(CHOSEN, 152) == bytes(152)
    assert_left_as_found(run, case.mode)


def test_without_a_table_the_region_is_named_with_both_digests(case: Case) -> None:
    case.table = False
    run = case.run(Policy.STOP, STAMP)
    assert run.verdict.damage == [(SECOND, 0x3000)]
    found = bytearray(case.second)
    found[STAMPED : STAMPED + 4] = b"\xde\xad\xbe\xef"
    text = run.console.decode()
    assert f"purgatory:   expected {hashlib.sha256(case.second).hexdigest()}" in text
    assert f"purgatory:   found    {hashlib.sha256(found).hexdigest()}" in text
    assert_left_as_found(run, case.mode)


def test_without_a_table_a_region_is_repaired_as_a_whole(case: Case) -> None:
    case.table = False
    run = case.run(Policy.REPAIR, STAMP)
    assert (run.pc, run.memory(SECOND, 0x3000)) == (KERNEL_ENTRY, case.second)
    assert run.verdict.flags & REPAIRED


def test_a_copy_that_is_damaged_in_the_same_page_repairs_nothing(case: Case) -> None:
    run = case.run(Policy.REPAIR, {**STAMP, COPY + 0x2000 + 0x1FF8: b"\xff"})
    assert run.pc == case.bench.loaded.symbols["purgatory_stop"][0]
    assert run.verdict.state == MISMATCH
    assert not run.verdict.flags & REPAIRED
    assert run.memory(SECOND + STAMPED, 4) == b"\xde\xad\xbe\xef"


def test_a_damaged_table_is_named_and_not_believed(case: Case) -> None:
    run = case.run(Policy.STOP, {TABLE + 5: b"\xff"})
    assert (run.verdict.damaged, run.verdict.damage) == (1 << 2, [(TABLE, 4096)])
    assert run.verdict.damaged_pages == 0


def test_a_purgatory_that_is_damaged_itself_boots_nothing_whatever_the_policy(case: Case) -> None:
    for policy in (Policy.BOOT_ANYWAY, Policy.REPAIR):
        run = case.run(policy, symbols={"purgatory_self_digest": bytes(31) + b"\x01"})
        assert (run.verdict.state, run.verdict.damaged) == (MISMATCH, 1 << 16)
        assert run.pc == case.bench.loaded.symbols["purgatory_stop"][0]


def test_another_device_tree_than_the_loaded_one_is_refused(case: Case) -> None:
    run = case.run(Policy.STOP, symbols={"purgatory_dtb": struct.pack("<Q", DTB + 0x1000)})
    assert (run.verdict.state, run.verdict.damaged) == (MISMATCH, 1 << 17)
    assert "x0 is not the device tree" in run.console.decode()


@pytest.fixture
def plain_case(purgatory_ro: Path) -> Case:
    """As it comes: EL1, caches on, SHA-2 instructions."""
    return Case(Bench(load(purgatory_ro, PURGATORY), PURGATORY), Mode())


def test_an_exception_is_reported_instead_of_hanging(plain_case: Case) -> None:
    for mode in EMULATED_MODES:
        case = replace(plain_case, mode=mode, bench=Bench(plain_case.bench.loaded, PURGATORY))
        at = case.bench.loaded.symbols["purgatory"][0] + 0x10

        def stamp(uc: Uc, at: int = at) -> None:
            uc.mem_write(at, bytes(4))

        run = case.run(Policy.STOP, before=stamp)
        assert run.pc == case.bench.loaded.symbols["purgatory_stop"][0]
        assert run.verdict.state == TRAPPED
        assert b"purgatory: exception, ESR " in run.console
        assert_left_as_found_but_traps(run)


def assert_left_as_found_but_traps(run: Run) -> None:
    """After an exception nothing is running that would care for vectors; memory is what matters."""
    assert run.sctlr & 0x1005 == 0
    assert not run.foreign


def test_any_changed_byte_of_the_symbols_is_found_by_the_self_digest(plain_case: Case) -> None:
    """Regions, digests, addresses, policy: none of them is used before it is known to be what was loaded."""
    loaded = plain_case.bench.loaded
    first = loaded.symbols["purgatory_sha_regions"][0]
    last = loaded.symbols["purgatory_self_digest"][0] + 32
    uart = loaded.symbols["purgatory_uart_base"]
    policy = loaded.symbols["purgatory_policy"]
    for phys in [*range(first, last, 7), *range(*(policy[0], sum(policy)))]:
        if uart[0] <= phys < sum(uart):
            continue  # a report to nowhere: it is the verdict that counts, and the bench has no device there

        def stamp(uc: Uc, phys: int = phys) -> None:
            byte = uc.mem_read(phys, 1)[0]
            uc.mem_write(phys, bytes([byte ^ 1 << phys % 8]))

        case = replace(plain_case, bench=Bench(loaded, PURGATORY), table=False)
        run = case.run(Policy.STOP, before=stamp)
        assert (run.verdict.state, run.verdict.damaged & 1 << 16) == (MISMATCH, 1 << 16), hex(phys - first)
