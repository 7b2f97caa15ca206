"""Scenarios for campaigns that a test can run a thousand times, and faults drawn from where it hurts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

import msgspec

from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import MOMENTS, CampaignFault
from kexecemu.campaign.plan import can_write
from kexecemu.data import fixture_path
from kexecemu.scenario.schema import Scenario
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import MODELS

KEXEC_TOOLS = str(fixture_path("guests/kexec-tools-purgatory.ro"))

# KEXEC_PURGATORY_ options of everything that ships.
OPTIONS: dict[str, dict[str, str]] = {
    "as it ships": {},
    "without MMU": {"MMU": "n"},
    "without SHA-2 instructions": {"CRYPTO": "n"},
    "neither": {"MMU": "n", "CRYPTO": "n"},
    "reset": {"POLICY": "reset"},
    "off": {"POLICY": "off"},
    "return": {"POLICY": "return"},
    "boot": {"POLICY": "boot"},
    "repair": {"POLICY": "repair", "COPY": "y"},
    "copy": {"COPY": "y"},
    "page digests": {"PAGE_DIGESTS": "y"},
    "chosen": {"CHOSEN": "y"},
    "guard": {"GUARD": "y"},
    "early check": {"EARLY_CHECK": "y"},
    "everything": {
        "POLICY": "repair",
        "COPY": "y",
        "PAGE_DIGESTS": "y",
        "CHOSEN": "y",
        "GUARD": "y",
        "EARLY_CHECK": "y",
    },
}


def scenario(
    options: Mapping[str, str] | None = None,
    *,
    protection: str = "none",
    purgatory: str = "default",
    cpus: int = 2,
    syscall: str = "kexec_file_load",
    way: str = "purgatory",
    **tables: object,
) -> Scenario:
    """A small machine with the image that ships, about 150 KiB."""
    config = {f"KEXEC_PURGATORY_{name}": value for name, value in (options or {}).items()}
    return msgspec.convert(
        {
            "schema": 1,
            "name": "stray faults",
            "machine": {"ram": "64M", "cpus": cpus},
            "kernel": {
                "cmdline": "crashkernel=8M",
                "protection": protection,
                "purgatory": purgatory,
                "config": config,
            },
            "load": {"syscall": syscall, "way": way},
            **tables,
        },
        Scenario,
    )


SCENARIOS: dict[str, Scenario] = {
    **{name: scenario(options) for name, options in OPTIONS.items()},
    "no purgatory": scenario(purgatory="none"),
    "kexec-tools' purgatory": scenario(purgatory=KEXEC_TOOLS),
    "kexec_load": scenario(syscall="kexec_load"),
    "machine-kexec": scenario(way="machine-kexec"),
    "purgatory-trans-pgd": scenario(way="purgatory-trans-pgd"),
    "purgatory-trans-pgd, pte": scenario(way="purgatory-trans-pgd", protection="pte"),
    "pte": scenario(protection="pte"),
    "readonly": scenario(protection="readonly"),
    "readonly, guard": scenario({"GUARD": "y"}, protection="readonly"),
    "bbml2": scenario(protection="bbml2"),
    "pte, no purgatory": scenario(protection="pte", purgatory="none"),
    "one CPU": scenario(cpus=1),
    "four CPUs": scenario(cpus=4),
}


def start(one: Scenario) -> FaultDecider:
    """An engine for a scenario of this file; it is for the caller to close."""
    return FaultDecider(one, Path())


def fault(token: str) -> CampaignFault:
    return CampaignFault.parse(token)


class Marksman:
    """Draws faults: half of them at ends of things, at what runs, reads or writes, and in the purgatory's own data."""

    def __init__(self, engine: FaultDecider, random: Random) -> None:
        assert engine.space.places is not None
        self._engine, self._places, self._random = engine, engine.space.places, random
        checker = engine.image.purgatory
        self._symbols = list(checker.symbol_table().values()) if checker is not None else []

    def fault(self) -> CampaignFault:
        random, engine = self._random, self._engine
        writers = [one for one in By if one is not By.LATE_CPU or len(engine.kernel.board.cpus) > 1]
        moments = [one for one in MOMENTS if one is not When.DURING_LOAD]
        if engine.golden.purgatory is None:
            moments.remove(When.WHILE_HASHING)
        while True:
            by, moment = random.choice(writers), random.choice(moments)
            if can_write(by, moment):
                break
        at = 0
        if moment is When.WHILE_HASHING:
            at = random.choice([0, 1, 255, 256, random.randrange(257)])
        elif moment is When.IN_CAPTURE:
            at = random.choice([0, 1, 10**9, random.randrange(engine.golden.capture.instructions + 50)])
        model = random.choice(list(MODELS.values()))
        base, offset = self._place()
        return CampaignFault(by, model.name, random.randrange(model.variants), base, offset, moment, at)

    def _place(self) -> tuple[str, int]:
        random, golden = self._random, self._engine.golden
        region = self._places.region
        kind = random.randrange(5)
        if kind == 0:
            name = random.choice(self._places.names)
            size = self._places.area(name).size
            near = random.randrange(min(size, 64))
            return name, random.choice([random.randrange(size), near, size - 1 - near])
        phys = random.randrange(region.start, region.end)
        if kind == 1 and self._symbols:
            start, size = random.choice(self._symbols)
            phys = start + random.randrange(-8, max(size, 1))
        elif kind == 2:
            areas = [*self._engine.image.control_pages, *self._engine.image.sha_regions]
            if self._engine.image.verdict_record is not None:
                areas.append(self._engine.image.verdict_record)
            one = random.choice(areas)
            phys = random.choice([one.start, one.end, random.randrange(one.start, one.end)])
            phys += random.randrange(-16, 8)
        elif kind == 3:
            accesses = random.choice([golden.in_panic, golden.in_check, golden.in_capture])
            touched = accesses.touched()
            if touched:
                one = random.choice(touched)
                phys = random.choice([one.start, one.last, random.randrange(one.start, one.end)])
        else:
            one = random.choice(self._engine.image.segments).area
            phys = random.randrange(one.start, one.end)
        return "crashkernel", min(max(phys, region.start), region.last) - region.start
