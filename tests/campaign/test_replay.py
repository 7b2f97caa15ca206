"""A fault once more: the same outcome, a trace of who ran, and the store caught in the act."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from stray_faults import fault, scenario, start
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_MEM_WRITE

from kexecemu.campaign import replay
from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.replay import Culprit, Replay, replay_in
from kexecemu.errors import InputError
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.read import read_scenario

STORED = "cpu.byte.5.initrd+100.after-load"


@pytest.fixture(scope="module")
def engine() -> Iterator[FaultDecider]:
    engine = start(scenario())
    yield engine
    engine.close()


def again(engine: FaultDecider, token: str, *, trace: bool = False, culprit: bool = False) -> Replay:
    return replay_in(engine, fault(token), trace=trace, culprit=culprit)


@pytest.mark.parametrize(
    "token",
    [
        STORED,
        "dma.word64.9.kernel+40.after-check",
        "dma.bit-flip.1.purgatory+2c70.after-load",
        "cpu.stuck-at-0.0.crashkernel-free+0.after-load",
    ],
)
def test_a_replay_agrees_with_the_campaign_and_ends_in_the_outcome_s_event(
    engine: FaultDecider, token: str
) -> None:
    plain = again(engine, token)
    assert plain.agrees and plain.outcome == engine.run(fault(token)).outcome
    assert plain.events[-1].kind == "outcome" and plain.events[-1].facts["outcome"] == plain.outcome
    assert "Kernel panic - not syncing" in plain.console
    assert not plain.trace and not plain.culprits
    watched = again(engine, token, trace=True, culprit=True)
    assert (watched.outcome, watched.console) == (plain.outcome, plain.console)
    assert watched.events == plain.events


def test_the_culprit_is_the_very_store_instruction(engine: FaultDecider) -> None:
    found = again(engine, STORED, culprit=True).culprits
    assert len(found) == 1
    one = found[0]
    assert (one.who, one.phys) == ("cpu0", engine.area(fault(STORED)).start)
    assert one.symbol.startswith("stray_write+0x")
    vmlinux = engine.kernel.guest.vmlinux
    with Path(vmlinux.path).open("rb") as stream:
        elf = ELFFile(stream)
        load = next(
            segment
            for segment in elf.iter_segments("PT_LOAD")
            if segment["p_vaddr"] <= one.pc_virt < segment["p_vaddr"] + segment["p_filesz"]
        )
        word = load.data()[one.pc_virt - load["p_vaddr"] :][:4]
        symbol = elf.get_section_by_name(".symtab").get_symbol_by_name("stray_write")[0]
        assert symbol["st_value"] <= one.pc_virt < symbol["st_value"] + symbol["st_size"]
    instruction = next(capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(word, one.pc_virt))
    assert instruction.mnemonic == "strb"
    assert one.instruction == f"{instruction.mnemonic} {instruction.op_str}"
    assert f"`{one.instruction}` at {one.pc_virt:#x}" in str(one)


def test_the_culprit_s_source_line_is_the_one_that_addr2line_says(engine: FaultDecider) -> None:
    tool = shutil.which("aarch64-linux-gnu-addr2line") or shutil.which("addr2line")
    if tool is None:
        pytest.skip("no addr2line")
    one = again(engine, STORED, culprit=True).culprits[0]
    path = engine.kernel.guest.vmlinux.path
    line = (
        subprocess.run(
            [tool, "-e", str(path), f"{one.pc_virt:#x}"], capture_output=True, text=True, check=True
        )
        .stdout.split(" (")[0]
        .strip()
    )
    assert one.source == f"{Path(line.rsplit(':', 1)[0]).name}:{line.rsplit(':', 1)[1]}"


@pytest.mark.parametrize(
    ("variant", "mnemonic", "stores"), [("0", "strb", 1), ("1", "str", 1), ("2", "str", 1)]
)
def test_a_store_is_as_wide_as_it_can_be(
    engine: FaultDecider, variant: str, mnemonic: str, stores: int
) -> None:
    found = again(engine, f"cpu.stuck-at-1.{variant}.initrd+100.after-load", culprit=True).culprits
    assert [one.instruction.split()[0] for one in found] == [mnemonic] * stores


def test_every_store_of_a_long_write_is_caught_in_order(engine: FaultDecider) -> None:
    found = again(engine, "cpu.memset.3.initrd+100.after-load", culprit=True).culprits
    start_phys = engine.area(fault("cpu.memset.3.initrd+100.after-load")).start
    assert [one.phys for one in found] == [start_phys + 8 * number for number in range(8)]
    assert [one.when for one in found] == sorted(one.when for one in found)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("dma.byte.5.initrd+100.after-load", "a bus master wrote"),
        ("dma.bit-flip.3.initrd+1a2b.hashing-128", "a bus master wrote"),
    ],
)
def test_what_no_cpu_of_the_run_stored_is_told_as_such(engine: FaultDecider, token: str, words: str) -> None:
    found = again(engine, token, culprit=True).culprits
    assert len(found) == 1 and not found[0].instruction
    assert str(found[0]).startswith(words) and "no instruction did" in str(found[0])
    assert found[0].when > 0


@pytest.mark.parametrize(
    ("by", "who"), [("cpu", "cpu0 stored"), ("alias", "cpu0 stored"), ("dma", "a bus master wrote")]
)
def test_before_the_load_the_named_writer_is_the_culprit_and_nobody_is_traced(
    engine: FaultDecider, by: str, who: str
) -> None:
    run = again(engine, f"{by}.bit-flip.3.initrd+100.during-load", trace=True, culprit=True)
    (found,) = run.culprits
    assert str(found).startswith(f"{who} at {found.phys:#x}") and not found.instruction
    assert ("past every CPU" in str(found)) is (by == "dma")
    assert run.trace == [
        "nobody is traced: a write before the load has a machine of its own, which nothing watches"
    ]


def test_without_a_purgatory_no_fault_is_while_it_hashes() -> None:
    engine = start(scenario(purgatory="none"))
    try:
        with pytest.raises(InputError, match="nothing is hashed without a purgatory"):
            again(engine, "dma.bit-flip.1.initrd+0.hashing-12")
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("token", "who"),
    [
        ("alias.byte.5.initrd+100.after-load", "cpu0"),
        ("alias.byte.5.initrd+100.during-panic", "cpu0"),
        ("cpu.byte.5.initrd+100.during-panic", "cpu0"),
        ("late-cpu.byte.5.initrd+100.during-panic", "cpu1"),
        ("late-cpu.byte.5.initrd+100.hashing-128", "cpu1"),
    ],
)
def test_every_writer_but_a_bus_master_is_a_cpu_that_executes_a_store(
    engine: FaultDecider, token: str, who: str
) -> None:
    run = again(engine, token, culprit=True)
    (found,) = run.culprits
    assert found.who == who and found.instruction.startswith("strb")
    (event,) = [one for one in run.events if one.kind == "fault"]
    assert event.facts["by"] == token.split(".")[0] and event.when <= found.when + 100


def test_a_store_that_is_refused_has_no_culprit_among_the_stores() -> None:
    engine = start(scenario(protection="pte"))
    try:
        one = again(engine, STORED, culprit=True)
        assert one.outcome == "prevented" and one.agrees and not one.culprits
    finally:
        engine.close()


def test_the_purgatory_is_a_culprit_where_it_writes_over_the_damage(engine: FaultDecider) -> None:
    purgatory, checker = engine.image.segment("purgatory"), engine.image.purgatory
    assert purgatory is not None and checker is not None
    stack, size = checker.symbol_table()["purgatory_stack"]
    token = f"dma.byte.5.purgatory+{stack + size - 8 - purgatory.mem:x}.after-load"
    found = again(engine, token, culprit=True).culprits
    assert found[0].who == "a bus master"
    assert any(one.symbol.startswith("purgatory:") and one.instruction.startswith("st") for one in found[1:])


@pytest.mark.parametrize("byte", [0, 3, 7])
def test_a_store_that_begins_before_the_damage_and_reaches_into_it_is_caught(
    engine: FaultDecider, byte: int
) -> None:
    purgatory, checker = engine.image.segment("purgatory"), engine.image.purgatory
    assert purgatory is not None and checker is not None
    stack, size = checker.symbol_table()["purgatory_stack"]
    at = stack + size - 8 + byte
    found = again(engine, f"dma.byte.5.purgatory+{at - purgatory.mem:x}.after-load", culprit=True).culprits
    stores = [one for one in found if one.instruction]
    assert {one.phys for one in stores} == {stack + size - 8}
    assert all(one.symbol.startswith("purgatory:") for one in stores)


def test_a_trace_says_who_ran_from_when_on(engine: FaultDecider) -> None:
    lines = again(engine, STORED, trace=True).trace
    entries = [re.match(r" *([\d,]+)  (\S+) +0x([0-9a-f]+)\Z", line) for line in lines]
    times = [int(entry[1].replace(",", "")) for entry in entries if entry]
    assert times == sorted(times) and len(times) > 20
    names = [entry[2] for entry in entries if entry]
    order = [
        "stray_write",
        "panic",
        "machine_kexec",
        "purgatory:purgatory_start",
        "purgatory:sha256_blocks",  # of its digest over itself, before anything else
    ]
    at = [next(index for index, name in enumerate(names) if name.startswith(one)) for one in order]
    assert at == sorted(at)
    # Neighbours, not those on both sides of what is left out.
    assert all(one[2] != other[2] for one, other in pairwise(entries) if one and other)
    last = lines[lines.index("the last instructions:") + 1 :]
    assert last and all(re.match(r"  0x[0-9a-f]+  \S+", line) for line in last)
    assert "purgatory:" in last[-1]


def test_a_trace_names_the_capture_kernel_and_whatever_else_of_the_image_runs(engine: FaultDecider) -> None:
    lines = again(engine, "dma.word64.9.initrd+40.after-check", trace=True).trace
    last = lines[lines.index("the last instructions:") + 1 :]
    assert last and all(re.search(r" kernel\+0x[0-9a-f]+", line) for line in last)


def test_a_long_trace_leaves_its_middle_out(engine: FaultDecider, monkeypatch: pytest.MonkeyPatch) -> None:
    def changes() -> list[str]:
        lines = again(engine, STORED, trace=True).trace
        return lines[: lines.index("the last instructions:")]

    short = changes()
    monkeypatch.setattr(replay, "_LINES", 10**6)
    whole = changes()
    assert len(whole) > 1000 and not any("left out" in line for line in whole)
    left = f"{'':14}  ... {len(whole) - 800:,} changes of function are left out ..."
    assert short == [*whole[:400], left, *whole[-400:]]
    monkeypatch.setattr(replay, "_LINES", (len(whole) + 1) // 2)  # both halves and nothing between
    assert changes() == whole
    monkeypatch.setattr(replay, "_LINES", (len(whole) - 1) // 2)
    assert sum("left out" in line for line in changes()) == 1


def test_the_last_eight_blocks_are_shown_instruction_by_instruction(
    engine: FaultDecider, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[tuple[bytes, int]] = []

    class Cs(capstone.Cs):  # type: ignore[misc]
        def disasm(self, code: bytes, offset: int, count: int = 0) -> object:
            blocks.append((code, offset))
            return super().disasm(code, offset, count)

    monkeypatch.setattr(capstone, "Cs", Cs)
    lines = again(engine, STORED, trace=True).trace
    last = lines[lines.index("the last instructions:") + 1 :]
    assert len(blocks) == 8 and len(last) == sum(len(code) // 4 for code, _ in blocks)
    expected = [at + offset for code, at in blocks for offset in range(0, len(code), 4)]
    assert [int(line.split()[0], 16) for line in last] == expected
    assert all(code == engine.kernel.ram.read(at, len(code)) for code, at in blocks)


def test_replaying_leaves_no_hook_behind(engine: FaultDecider) -> None:
    first = again(engine, STORED, trace=True, culprit=True)
    count = len(first.culprits)
    engine.run(fault(STORED))
    assert len(first.culprits) == count
    assert again(engine, STORED, culprit=True).culprits == first.culprits


def test_a_scenario_file_and_a_token_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        'schema = 1\nname = "small"\n[machine]\nram = "64M"\n[kernel]\ncmdline = "crashkernel=8M"\n'
    )
    engine = FaultDecider(read_scenario(path), tmp_path)
    one = again(engine, STORED, culprit=True)
    engine.close()
    assert one.agrees and one.outcome == "detected"
    assert one.culprits[0].symbol.startswith("stray_write")


def test_a_culprit_without_a_source_line_is_told_without() -> None:
    one = Culprit("cpu1", 5, 0x1000, 0x2000, "str x0, [x1]", "memcpy+0x4")
    assert str(one) == "cpu1 stored at 0x1000 by `str x0, [x1]` at 0x2000, memcpy+0x4"


def test_a_culprit_is_told_by_what_is_known_of_it() -> None:
    assert Culprit("cpu0", 5, 0x10) == Culprit("cpu0", 5, 0x10, 0, "", "", "")
    assert (
        str(Culprit("cpu0", 5, 0x10))
        == "cpu0 stored at 0x10 before the load, where no instruction is watched"
    )
    assert (
        str(Culprit("a bus master", 5, 0x10))
        == "a bus master wrote at 0x10, past every CPU: no instruction did"
    )
    known = Culprit("cpu1", 5, 0x10, 0x20, "str x0, [x1]", "memcpy+0x4", "memcpy.S:9")
    assert str(known) == "cpu1 stored at 0x10 by `str x0, [x1]` at 0x20, memcpy+0x4 (memcpy.S:9)"


def test_code_of_the_first_kernel_has_one_name_with_its_mmu_on_and_off(engine: FaultDecider) -> None:
    names, guest = replay._Names(engine), engine.kernel.guest
    for symbol in ("_text", "panic", "stray_write"):
        virt, phys = guest.vmlinux.virt(symbol), guest.phys(symbol)
        assert names._virt(virt) == names._virt(phys) == virt
        assert names.name(phys + 4) == names.name(virt + 4) and names.name(virt + 4).endswith("+0x4")
        assert names.function(phys + 4) == names.function(virt) == names.name(virt).partition("+")[0]
        assert names.source(phys) == names.source(virt)
    assert names._virt(guest.area.end) == 0 and names.name(0x10) == "0x10" and names.source(0x10) == ""


def test_a_hook_hears_code_that_was_translated_before_and_nothing_behind_its_end() -> None:
    board = Board("16M")
    cpu, heard = board.boot_cpu, list[int]()
    board.ram.write(
        0x40000000, struct.pack("<3I", 0xD2800020, 0xF9000041, 0xD503207F)
    )  # mov x0, #1; str x1, [x2]; wfi
    cpu.reset(0x40000000)

    def once() -> int:
        before = len(heard)
        cpu.pc = 0x40000000
        cpu.set_x(2, 0x40001000)
        cpu.run(limit=100)
        return len(heard) - before

    assert once() == 0
    with replay.hooked(cpu, UC_HOOK_BLOCK, lambda uc, virt, size, _: heard.append(virt)):
        assert once() > 0
    assert once() == 0
    for at, times in ((0x40001000, 1), (0x40000FF8, 0), (0x40001008, 0)):
        area = PhysRange.of(at, 8)
        with replay.hooked(cpu, UC_HOOK_MEM_WRITE, lambda *words: heard.append(words[2]), area):
            assert once() == times
    assert once() == 0
    board.close()
