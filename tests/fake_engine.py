"""An engine that decides by arithmetic, for the tests of what is around it; its scenario's name says what goes wrong.

Words of the name: kill=N, raise=N, lie=N, half=N and odd=N are about faults at offset N of the segment that begins at
0x1000: deciding it kills the process, raises, says what a run does not bear out (half: of the dump alone), or has an
exception that cannot be sent to another process. die: making an engine kills the process; refuse: it raises; other:
its hash is not as elsewhere. slow=N: deciding takes N milliseconds. nothing-decided: everything is run.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from kexecemu.campaign.areas import Area, Kind
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.space import Space
from kexecemu.errors import BusError, MachineError
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.schema import CampaignTable, Scenario
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import MODELS

AREAS = (
    Area("kernel", PhysRange(0x1000, 0x9000), Kind.HASHED, 0x1000),
    Area("initrd", PhysRange(0x10000, 0x11000), Kind.HASHED, 0x10000),
    Area("purgatory", PhysRange(0x20000, 0x20100), Kind.PURGATORY, 0x20000),
    Area("crashkernel-free", PhysRange(0x30000, 0x50000), Kind.FREE, 0x30000),
)
HASHED_OUTCOMES = ("detected",) * 6 + ("silent", "masked")


class FakeEngine:
    """Outcomes from a hash of the fault's name."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.words = dict(word.partition("=")[::2] for word in scenario.name.split())
        if "die" in self.words and os.getpid() != int(self.words["die"] or 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if "refuse" in self.words:
            raise MachineError("the golden runs differ")
        self.protection = scenario.kernel.protection or "none"
        self.purgatory = str(scenario.kernel.purgatory)
        self.space = Space(
            AREAS,
            [MODELS["bit-flip"], MODELS["byte"]],
            [By.CPU, By.DMA],
            [(When.AFTER_LOAD, 0), (When.WHILE_HASHING, 128)],
        )
        text = f"{scenario.kernel} {scenario.campaign} {self.words}"
        if "other" in self.words:
            text += f" {os.getpid()}"
        self.config_hash = hashlib.sha256(text.encode()).hexdigest()
        self.broken = False

    def decide(self, fault: CampaignFault) -> Decided:
        if self.broken:
            raise RuntimeError("the machine is used after it failed")
        if "slow" in self.words:
            time.sleep(int(self.words["slow"]) / 1000)
        if self._is("kill", fault):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is("raise", fault):
            self.broken = True
            raise RuntimeError(f"no such\nthing at {fault.offset:#x}")
        if self._is("odd", fault):
            raise BusError(fault.offset, 1)
        return self._decided(fault, "nothing-decided" in self.words)

    def run(self, fault: CampaignFault) -> Decided:
        known = self._decided(fault, True)
        if self._is("lie", fault):
            return Decided(fault, "hung", How.RUN, known.segment, known.phys)
        return replace(known, dump="wrong") if self._is("half", fault) else known

    def close(self) -> None:
        pass

    def _is(self, word: str, fault: CampaignFault) -> bool:
        return word in self.words and fault.base == "kernel" and fault.offset == int(self.words[word], 16)

    def _decided(self, fault: CampaignFault, run: bool) -> Decided:
        area = next(area for area in AREAS if area.name == fault.base)
        draw = hashlib.sha256(fault.id.encode()).digest()
        phys = area.phys.start + fault.offset
        if self.protection == "pte" and fault.by is By.CPU:
            outcome, how = "prevented", How.REFUSED
        elif area.kind is Kind.FREE:
            outcome, how = "latent", How.UNREAD
        elif area.kind is Kind.PURGATORY:
            outcome, how = ("detected", "trapped", "misboot", "hung")[draw[0] % 4], How.RUN
        elif self.purgatory == "none":
            outcome, how = "silent", How.UNREAD
        else:
            outcome, how = HASHED_OUTCOMES[draw[0] % len(HASHED_OUTCOMES)], How.HASH
        segment = "" if area.kind is Kind.FREE else area.name
        dump = "true" if outcome in ("prevented", "masked", "latent") else "none"
        if outcome == "silent":
            dump = ("true", "wrong")[draw[1] % 2]
        reported = outcome == "detected" or (outcome == "trapped" and draw[1] % 2 == 0)
        return Decided(
            fault, outcome, How.RUN if run else how, segment, phys, "", dump, f"{dump}, says a hash", reported
        )


def make(scenario: Scenario, folder: Path) -> FakeEngine:
    """What a campaign calls in each of its processes."""
    return FakeEngine(scenario, folder)


def scenario(name: str = "a fake campaign", sampling: str = "uniform", **kernel: object) -> Scenario:
    """A scenario of that name; kernel is its [kernel] table."""
    import msgspec

    table = CampaignTable(sampling=sampling)  # type: ignore[arg-type]
    plain = Scenario(schema=1, name=name, campaign=table)
    return msgspec.structs.replace(plain, kernel=msgspec.structs.replace(plain.kernel, **kernel))
