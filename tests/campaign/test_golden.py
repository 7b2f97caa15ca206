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
from kexecemu.data import fixture_path
from kexecemu.errors import InputError, MachineError
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.ranges import PhysRange


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
