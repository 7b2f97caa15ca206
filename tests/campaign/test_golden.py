"""The golden gate: a machine that does not do the same twice, or whose crash ends in no dump, makes no campaign."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stray_faults import SCENARIOS, scenario, start
from unicorn.arm64_const import UC_ARM64_REG_Q31

from kexecemu.campaign import golden
from kexecemu.campaign.accesses import Accesses, recorded
from kexecemu.campaign.fault import Ended
from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Verdict, VerdictFlags, VerdictState
from kexecemu.data import fixture_path
from kexecemu.errors import InputError, MachineError
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Timeline
from kexecemu.stray.fault import When


def disturbed(monkeypatch: pytest.MonkeyPatch, disturb: object) -> None:
    """Let the hooks on the run that is recorded have an effect on it."""

    @contextmanager
    def recording(cpu: Cpu, region: PhysRange) -> Iterator[Accesses]:
        with recorded(cpu, region) as accesses:
            disturb(cpu, region)  # type: ignore[operator]
            yield accesses

    monkeypatch.setattr(golden, "recorded", recording)


def byte_of_memory(cpu: Cpu, region: PhysRange) -> None:
    cpu.ram.write(region.end - 0x200001, b"\1")


def time(cpu: Cpu, region: PhysRange) -> None:
    cpu.counter.state.total += 1


@pytest.mark.parametrize(
    ("disturb", "words"),
    [(byte_of_memory, "memory"), (time, "instructions")],
    ids=["a byte of memory", "time"],
)
def test_hooks_with_an_effect_are_noticed(
    monkeypatch: pytest.MonkeyPatch, disturb: object, words: str
) -> None:
    disturbed(monkeypatch, disturb)
    with pytest.raises(MachineError, match=f"the recorded run is not the plain one: .*{words}.* differ"):
        start(scenario())


@pytest.mark.parametrize("name", ["x28", "q31", "TPIDRRO_EL0"])
def test_a_register_that_only_the_recorded_run_changes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def disturb(cpu: Cpu, region: PhysRange) -> None:
        if name == "x28":
            cpu.set_x(28, cpu.x(28) ^ 1)
        elif name == "q31":
            cpu.uc.reg_write(UC_ARM64_REG_Q31, 1 << 77)
        else:
            cpu.set_sysreg(name, cpu.sysreg(name) ^ 0x10)

    disturbed(monkeypatch, disturb)
    with pytest.raises(MachineError, match="the recorded run is not the plain one"):
        start(scenario(purgatory="none"))


def test_a_register_of_another_cpu_is_noticed_too() -> None:
    engine = start(scenario())
    other = engine.kernel.board.cpus[1]
    before = golden._state(engine.kernel, engine.victim.snapshots)
    other.set_x(28, other.x(28) ^ 1)
    after = golden._state(engine.kernel, engine.victim.snapshots)
    assert golden._difference(before, after) == "registers differ"
    engine.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_machine_s_golden_run_ends_in_a_dump(name: str) -> None:
    engine = start(SCENARIOS[name])
    run = engine.golden
    assert run.end.outcome == "captured"
    assert run.region == engine.kernel.crashk_res
    assert len(run.memory) == len(run.entry_memory) == run.region.size
    assert run.capture.instructions > 1000
    assert (run.purgatory is None) == (engine.image.purgatory is None)
    engine.close()


def test_a_scenario_that_ends_in_no_dump_is_refused_with_the_reason(tmp_path: Path) -> None:
    """A capture kernel that looks like the stub and is none: its dump is never read."""
    image = bytearray(fixture_path("guests/capture-Image").read_bytes())
    entry = image.index(b"CAPTURE1") + 256
    image[entry:] = b"\0" * (len(image) - entry)
    (tmp_path / "Image").write_bytes(image)
    with pytest.raises(MachineError, match=re.escape("the undisturbed run does not end in a dump: ")):
        start(scenario(load={"kernel": str(tmp_path / "Image")}))


def test_a_machine_without_a_crash_region_is_refused() -> None:
    with pytest.raises(InputError):
        start(scenario(kernel={"cmdline": "quiet"}))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("flags", [None, VerdictFlags(0), VerdictFlags.REPAIRED, ~VerdictFlags.REPAIRED])
def test_what_is_kept_of_an_end_says_whether_a_kernel_was_started_over_what_was_mended(
    captured: bool, flags: VerdictFlags | None
) -> None:
    verdict = None if flags is None else Verdict(VerdictState.MISMATCH, 0, b"", b"", flags)
    purgatory = PurgatoryRun(PurgatoryEnd.KERNEL, 0, 9, verdict)
    capture = CaptureRun(CaptureEnd.DONE, 0, 9, None) if captured else None
    end = End(
        Outcome.DETECTED,
        "why",
        [],
        [],
        "",
        Timeline(lambda: 0),
        9,
        purgatory,
        capture,
        None,
        Dump.WRONG,
        "how",
    )
    mended = (flags is not None and VerdictFlags.REPAIRED in flags) if captured else None
    assert golden.ended(end) == Ended("detected", "wrong", "how", flags is not None, mended)


def test_a_panic_that_is_handed_to_another_cpu_is_no_campaign_s() -> None:
    with pytest.raises(InputError, match="panic_force_cpu=: a campaign knows what the boot CPU does"):
        start(
            scenario(
                kernel={"cmdline": "crashkernel=8M panic_force_cpu=1", "era": "7.3"},
                machine={"ram": "64M", "cpus": 2},
            )
        )


def test_a_run_that_never_comes_to_a_moment_makes_no_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "crash", lambda kernel, passed: iter([(When.AFTER_LOAD, 0)]))
    with pytest.raises(MachineError, match="the recorded run does not come to at-jump"):
        start(scenario())


def test_what_the_golden_run_keeps_of_memory_is_by_address_in_the_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start(scenario())
    try:
        run = engine.golden
        initrd = engine.image.segment("initrd")
        assert initrd is not None
        for area in (
            initrd.area,
            PhysRange.of(run.region.start, 8),
            PhysRange(run.region.end - 8, run.region.end),
        ):
            at = area.start - run.region.start
            assert run.held(area) == run.memory[at : at + area.size] and len(run.held(area)) == area.size
            assert run.held(area, at_entry=True) == run.entry_memory[at : at + area.size]
        assert run.held(initrd.area) == initrd.content()
        engine.victim.snapshots.restore(run.entry)
        now = engine.kernel.ram.read(run.region.start, run.region.size)
        assert now == run.entry_memory != run.memory
        assert run.early_check == [] and run.check_began > 0
        passed = run.while_hashing(7)
        assert (passed.damage, passed.step, passed.purgatory, passed.left) == ([], 7, None, run.passed.left)
        assert run.at_jump().crashed is run.passed.crashed and run.at_jump(crashed=False).crashed is None
        assert run.passed.hashing == run.purgatory.instructions > 0  # type: ignore[union-attr]
    finally:
        engine.close()
