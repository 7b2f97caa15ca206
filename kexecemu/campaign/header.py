"""What a campaign is: everything that decides its table, and what people want to know of it besides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import msgspec

from kexecemu.shown import shown

__all__ = ["Header"]

_IDENTITY = "version protection purgatory seed faults sampler population config_hash"


@shown()
@dataclass(frozen=True)
class Header:
    """What a campaign is. Two with the same identity have the same table when they are done.

    strata are those of the fault space in order: where, kind, model, by, moment, size; areas its places: name, phys
    start, phys end, kind. scenario is how the user named it, options what they gave to change it, source its text,
    name its sentence: they are for people.
    """

    version: str
    config_hash: str
    protection: str
    purgatory: str
    seed: int
    faults: int
    population: int
    sampler: str
    name: str = ""
    options: str = ""
    scenario: str = ""
    source: str = ""
    strata: tuple[tuple[str, str, str, str, str, int], ...] = ()
    areas: tuple[tuple[str, int, int, str], ...] = ()

    # The parts of the identity, those that say most to people first.
    IDENTITY: ClassVar[tuple[str, ...]] = tuple(_IDENTITY.split())

    def differences(self, other: Header, keys: Sequence[str] = IDENTITY) -> list[str]:
        """Which parts of the identity differ, in words: [] for the same campaign."""
        wrong = [key for key in keys if getattr(self, key) != getattr(other, key)]
        return [f"{key} is {getattr(self, key)!r}, not {getattr(other, key)!r}" for key in wrong]

    @property
    def stratified(self) -> bool:
        """Whether the strata were drawn from each for itself, so that faults stand for different parts of the whole."""
        return self.sampler.endswith("stratified")

    def as_items(self) -> list[tuple[str, str]]:
        """The fields as keys and JSON, to be stored."""
        return [(key, json.dumps(value)) for key, value in asdict(self).items()]

    @classmethod
    def from_items(cls, items: Iterable[tuple[str, str]]) -> Header:
        """What as_items() gave."""
        return msgspec.convert({key: json.loads(value) for key, value in items}, cls)
