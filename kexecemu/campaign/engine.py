"""What comes of a fault: by a conclusion where one is safe, by running the machine where none is.

A conclusion needs a fact from the undisturbed run (golden.py) that the fault cannot have changed:
  the bytes were there already                    nothing changed: the undisturbed run
  the page tables refuse the store                memory is intact; what the exception leads to is run once
  hashed bytes changed that are still to be read  the digest differs (hash_states.py); what that leads to is run once
  bytes that nothing reads from then on           both runs are the same; only memory differs
  bytes written before anything reads them        likewise
Everything else is run to its end, faults in the purgatory's code, data and stack always.

A conclusion covers the dump as well. Where the rest of the run is the undisturbed one, so is its dump: nothing that
a dump is made of lies in the crash region but the core header, which the capture kernel reads to the last byte that
counts. Where the purgatory objects and stops there is none. Where it objects and boots all the same, what becomes of
the dump depends on what was hit, so that nothing is concluded, unless it has mended all that was.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from kexecemu.campaign.accesses import First
from kexecemu.campaign.fault import CampaignFault, Decided, Ended, How
from kexecemu.campaign.golden import golden_run
from kexecemu.campaign.hash_states import HashStates
from kexecemu.campaign.space import Space, space_of
from kexecemu.campaign.victim import Victim
from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import taken_by_stub
from kexecemu.crash.outcome import Outcome, judge
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Segment
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.setup import prepare
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, When
from kexecemu.stray.models import find_model

__all__ = ["FaultDecider"]

_MARGIN = 4096
"""Bytes around the place where hashing stands within which nothing is concluded."""


_LONGEST_BLOCK = 1024
"""Instructions; no block of the engine's is as long."""


class _Hashed(NamedTuple):
    """A segment that is hashed throughout: where it is in memory, its size, and where in the hash's input it begins."""

    phys: int
    size: int
    place: int


@dataclass(frozen=True)
class _Place:
    """Where a fault hits, resolved."""

    fault: CampaignFault
    write: Fault
    area: PhysRange
    segment: str
    before: bytes
    data: bytes


@shown("config_hash", "space")
class FaultDecider:
    """One scenario, loaded once. decide() and run() give the same whatever they were asked before."""

    def __init__(self, scenario: Scenario, folder: Path, seed: int | None = None) -> None:
        """Boots, loads and makes the golden run. InputError for what cannot be a campaign, MachineError if it fails."""
        if scenario.fault:
            raise InputError("a campaign's scenario has no faults of its own: take [[fault]] out")
        setup = scenario_setup(scenario, folder, seed)
        if setup.capture == "linux":
            raise InputError("a campaign follows the capture stub, not a Linux: that takes seconds a fault")
        kernel, image = prepare(setup)
        self.kernel, self.image = kernel, image
        self.victim = Victim(kernel, image, setup)
        self.golden = golden_run(kernel, image, self.victim.snapshots)
        self.victim.golden = self.golden
        self.space: Space = space_of(scenario, kernel, image)
        assert self.space.places is not None
        self._places = self.space.places
        self.config_hash = self._config_hash(scenario, setup.seed)
        self._hash = self._hash_states()
        self._known: dict[tuple[str, ...], Ended] = {}
        self._borders = self._find_borders()
        self._quick = self._quick_places()

    def close(self) -> None:
        """Give the machine back."""
        self.victim.snapshots.close()
        self.kernel.board.close()

    def _config_hash(self, scenario: Scenario, seed: int) -> str:
        """Of everything that a result depends on: the scenario, the seed, and the image's bytes at their places."""
        digest = hashlib.sha256(msgspec.json.encode(scenario))
        digest.update(f" seed {seed} start {self.image.start:#x}".encode())
        for segment in self.image.segments:
            digest.update(f" {segment.name} {segment.mem:#x} {segment.memsz:#x} ".encode())
            digest.update(hashlib.sha256(segment.buf).digest())
        return digest.hexdigest()

    def _hash_states(self) -> HashStates | None:
        image, golden = self.image, self.golden
        if golden.purgatory is None or not image.sha_regions:
            return None
        region = golden.region
        contents = [
            golden.memory[area.start - region.start : area.end - region.start] for area in image.sha_regions
        ]
        states = HashStates(image.sha_regions, contents)
        if states.digest != image.digest:
            # Nothing can be concluded then: another way of hashing, a foreign purgatory with one of its own.
            return None
        return states

    # -- where and what --------------------------------------------------------------------------------------------

    def _place(self, fault: CampaignFault) -> _Place:
        model = find_model(fault.model)
        if not 0 <= fault.variant < model.variants:
            raise InputError(f"{fault.id}: {fault.model} has {model.variants} variants")
        area = self._places.reach(fault)
        before = self._memory(fault.moment, area)
        segment = self.image.segment_at(area.start)
        write = fault.fault(area)
        return _Place(fault, write, area, segment.name if segment else "", before, write.data(before))

    def _memory(self, moment: When, area: PhysRange) -> bytes:
        """What memory holds there right before the write, of an undisturbed run. It is a guess where hashing or the
        capture kernel has come by until then, and nothing may be concluded from it."""
        golden = self.golden
        if moment is When.DURING_LOAD:
            return self.victim.unloaded_memory(area)
        if not golden.region.covers(area):
            return self.victim.base_memory(area)
        if moment is When.AFTER_LOAD and not self.victim.at_rest(area):
            return self.victim.base_memory(area)
        late = moment in (When.AFTER_CHECK, When.IN_CAPTURE)
        memory = golden.entry_memory if late else golden.memory
        start = area.start - golden.region.start
        return memory[start : start + area.size]

    def _find_borders(self) -> list[int]:
        """Where one thing ends or another begins, as far as conclusions are concerned, ascending."""
        areas = [segment.area for segment in self.image.segments]
        areas += [*self.image.sha_regions, *self.golden.early_check]
        areas += [one for one in (self.image.verdict_record, self.victim.page_tables) if one is not None]
        return sorted({edge for area in areas for edge in (area.start, area.end)})

    # -- the common case ---------------------------------------------------------------------------------------------

    def _quick_places(self) -> dict[str, _Hashed]:
        """Segments that are hashed from end to end, by name, for _decide_hashed()."""
        if self._hash is None:
            return {}
        quick = {}
        for segment in self.image.segments:
            if not (self.victim.at_rest(segment.area) or self._is_checked_early(segment.area)):
                continue
            first = self._hash.place(segment.mem)
            last = self._hash.place(segment.area.last)
            if first is not None and last == first + segment.memsz - 1:
                quick[segment.name] = _Hashed(segment.mem, segment.memsz, first)
        return quick

    def _decide_hashed(self, fault: CampaignFault) -> Decided | None:
        """A small write before the check into what is hashed throughout: _conclude() without its generality."""
        hashed = self._quick.get(fault.base)
        if hashed is None or fault.moment not in (When.AFTER_LOAD, When.DURING_PANIC):
            return None
        model = find_model(fault.model)
        length = model.length(fault.variant)
        offset = fault.offset
        if length > 64 or offset + length > hashed.size or not 0 <= fault.variant < model.variants:
            return None
        phys = hashed.phys + offset
        if fault.by in (By.CPU, By.LATE_CPU):
            allowed = self.victim.store_allowed
            if not allowed(phys >> 12) or not allowed((phys + length - 1) >> 12):
                return None
        assert self._hash is not None
        before = self._hash.input[hashed.place + offset : hashed.place + offset + length]
        data = model.data(fault.variant, before)
        if data == before or not self._hash.differs(hashed.place + offset, data):
            return None
        ended = self._known.get((self._objection(fault), fault.base))
        if ended is None or ended.mended is False:
            return None
        return _decided(fault, ended, How.HASH, fault.base, phys)

    # -- conclusions ------------------------------------------------------------------------------------------------

    def decide(self, fault: CampaignFault) -> Decided:
        """What comes of a fault, by the cheapest way that is safe. InputError for one that is not in this machine."""
        quick = self._decide_hashed(fault)
        if quick is not None:
            return quick
        place = self._place(fault)
        concluded = self._conclude(place)
        if concluded is None:
            return self._finish(place, self.victim.run(place.write, place.area, late=True), How.RUN)
        return self._finish(place, *concluded)

    def run(self, fault: CampaignFault) -> Decided:
        """The same, always in full emulation from the load on."""
        place = self._place(fault)
        return self._finish(place, self.victim.run(place.write, place.area, late=False), How.RUN)

    def area(self, fault: CampaignFault) -> PhysRange:
        """The physical bytes that a fault writes. InputError for one that is not in this machine."""
        return self._places.reach(fault)

    @staticmethod
    def _finish(place: _Place, ended: Ended, how: How) -> Decided:
        return _decided(place.fault, ended, how, place.segment, place.area.start)

    def _conclude(self, place: _Place) -> tuple[Ended, How] | None:
        golden, fault = self.golden, place.fault
        if not golden.region.covers(place.area):
            return None  # the first kernel's memory: it lives there
        if fault.moment is When.DURING_LOAD:
            return self._conclude_during_load(place)
        if not self.victim.reached(fault.moment, fault.at):
            return None  # and it never happens
        if fault.by in (By.CPU, By.LATE_CPU):
            allowed = self.victim.stores_allowed(place.area)
            if not any(allowed):
                return self._once(("refused", fault.by, fault.moment), place), How.REFUSED
            if not all(allowed):
                return None
        if not self._is_known(place):
            return None
        changed = self._changed(place)
        if not changed:
            return self._once(("same-value", fault.by, fault.moment), place), How.SAME_VALUE
        if fault.moment is When.AFTER_LOAD and not (
            all(map(self.victim.at_rest, changed)) or all(map(self._is_checked_early, changed))
        ):
            return None
        if fault.moment in (When.AFTER_LOAD, When.DURING_PANIC, When.WHILE_HASHING):
            return self._conclude_before_check(place, changed)
        if fault.moment is When.AFTER_CHECK:
            return self._conclude_in_capture(changed)
        if fault.moment is When.IN_CAPTURE and all(golden.in_capture.untouched(one) for one in changed):
            return self._as_undisturbed(Outcome.LATENT), How.UNREAD
        return None

    def _is_known(self, place: _Place) -> bool:
        """The bytes that the fault hits are what place.before says: nobody has written to them just before."""
        golden, area, moment = self.golden, place.area, place.fault.moment
        if moment is When.IN_CAPTURE:
            return golden.in_capture.untouched(area)
        if moment is not When.WHILE_HASHING:
            return True
        # What is hashed stays what it was, or the digest would not be right; of all else that was touched who knows.
        return all(
            golden.in_check.untouched(one)
            or (self._hash is not None and self._hash.place(one.start) is not None)
            for one in cut([area], self._borders)
        )

    def _changed(self, place: _Place) -> list[PhysRange]:
        """The runs of bytes that the write changes, none of them in two segments or half in what is hashed."""
        return cut(_changed(place), self._borders)

    def _conclude_during_load(self, place: _Place) -> tuple[Ended, How] | None:
        """A write before the segments are copied to where they belong: nothing protects them yet, and nothing need."""
        changed = self._changed(place)
        if not changed:
            return self._as_undisturbed(Outcome.MASKED), How.SAME_VALUE
        if any(segment.area.covers(place.area) for segment in self.image.segments):
            return self._as_undisturbed(Outcome.MASKED), How.OVERWRITTEN
        golden = self.golden
        if any(segment.area.overlaps(place.area) for segment in self.image.segments):
            return None
        touched = (golden.in_panic, golden.in_check, golden.in_capture)
        # A control page is written by the load as well.
        rewritten = any(page.overlaps(place.area) for page in self.image.control_pages)
        if not rewritten and all(accesses.untouched(one) for accesses in touched for one in changed):
            return self._as_undisturbed(Outcome.LATENT), How.UNREAD
        return None

    def _conclude_before_check(self, place: _Place, changed: list[PhysRange]) -> tuple[Ended, How] | None:
        golden = self.golden
        purgatory = self.image.segment("purgatory")
        if purgatory is not None and any(one.overlaps(purgatory.area) for one in changed):
            # What is rewritten before it is read is gone; in anything else of the purgatory lie the misses.
            early = place.fault.moment is not When.WHILE_HASHING
            scratch = self.victim.page_tables
            if scratch is not None and all(scratch.covers(one) for one in changed):
                if early and all(golden.in_check.of(one) == First.WRITTEN_FIRST for one in changed):
                    return self._unnoticed(changed, How.OVERWRITTEN)
                # Every table is cleared before it is linked: a page that nobody came near is none, and the MMU, whose
                # reads nobody records, does not come there either.
                if all(golden.in_check.untouched(_whole_pages(one)) for one in changed):
                    return self._conclude_in_capture(changed)
            return None
        hashed = [
            one for one in changed if self._hash is not None and self._hash.place(one.start) is not None
        ]
        if golden.purgatory is not None and not all(
            golden.in_check.untouched(one) for one in changed if one not in hashed
        ):
            return None
        if not hashed:
            return self._conclude_in_capture(changed)
        assert self._hash is not None
        if place.fault.moment is When.WHILE_HASHING:
            seen = self._still_to_be_read(place.fault.at, hashed)
            if seen is None:
                return None
            if not seen:
                return self._conclude_in_capture(changed)
        for one in hashed:
            start = self._hash.place(one.start)
            end = self._hash.place(one.last)
            if start is None or end is None or end - start != one.size - 1:
                return None
            offset = one.start - place.area.start
            if self._hash.differs(start, place.data[offset : offset + one.size]):
                segment = self.image.segment_at(one.start)
                kind = (self._objection(place.fault), segment.name if segment else "")
                ended = self._once(kind, place)
                if ended.mended is False or (ended.mended and not self._is_all_in(segment, changed)):
                    return None
                return ended, How.HASH
        return None

    @staticmethod
    def _is_all_in(segment: Segment | None, changed: list[PhysRange]) -> bool:
        """Nothing else came to harm, above all not what a purgatory mends with."""
        return segment is not None and all(segment.area.covers(one) for one in changed)

    def _is_checked_early(self, area: PhysRange) -> bool:
        """It is hashed, and all that the crash path does with it is to have it hashed, by the purgatory, early."""
        golden, purgatory = self.golden, self.image.segment("purgatory")
        if self._hash is None or purgatory is None or not golden.early_check:
            return False
        start, end = self._hash.place(area.start), self._hash.place(area.last)
        if start is None or end is None or end - start != area.size - 1:
            return False
        began = golden.in_panic.first_read(purgatory.area)
        return golden.in_panic.of(area) is First.READ and 0 <= began < golden.in_panic.first_read(area)

    def _objection(self, fault: CampaignFault) -> str:
        """What is run once for all damage to a segment's hashed bytes: the check at the end, or an early one."""
        early = self.golden.early_check and fault.moment is When.AFTER_LOAD
        return "mismatch found early" if early else "mismatch"

    def _still_to_be_read(self, at: int, hashed: list[PhysRange]) -> bool | None:
        """While the purgatory hashes: all of it is yet to be read, nothing of it will be, or None for neither."""
        when = self.victim.instructions_at(at)
        begin = self.golden.check_began
        region = self.golden.region
        widened = [
            PhysRange(max(one.start - _MARGIN, region.start), min(one.end + _MARGIN, region.end))
            for one in hashed
        ]
        last = [self.golden.in_check.last_read(one) - begin for one in widened]
        first = [self.golden.in_check.first_read(one) - begin for one in widened]
        # Blocks are counted as they begin, and the write waits for the next one.
        if all(time > when + _LONGEST_BLOCK for time in first):
            return True
        return False if all(time < when for time in last) else None

    def _conclude_in_capture(self, changed: list[PhysRange]) -> tuple[Ended, How] | None:
        seen = First.NOTHING
        for one in changed:
            seen |= self.golden.in_capture.of(one)
        if seen & First.READ:
            return None
        return self._unnoticed(changed, How.OVERWRITTEN if seen else How.UNREAD)

    def _unnoticed(self, changed: list[PhysRange], how: How) -> tuple[Ended, How] | None:
        """The undisturbed run with other bytes in memory, as judge() sees it."""
        golden = self.golden
        # What find_damage() does not look at: the verdict's place, and what an early check has used.
        own = golden.early_check + ([record] if (record := self.image.verdict_record) is not None else [])
        damage = [
            Damage(segment.name, one.start - segment.mem, one.size)
            for one in changed
            if (segment := self.image.segment_at(one.start)) is not None
            and not any(area.covers(one) for area in own)
        ]
        if damage:
            found = judge(self.kernel.ram, [], damage, golden.purgatory, golden.capture)
            return replace(self._as_undisturbed(found), dump_reason=taken_by_stub(damage)), how
        # Whether what is overwritten ends as it was is for memory to say.
        return (self._as_undisturbed(Outcome.LATENT), how) if how is How.UNREAD else None

    def _as_undisturbed(self, outcome: Outcome) -> Ended:
        """The undisturbed run and its dump, whatever else is in memory that nothing reads."""
        return replace(self.golden.end, outcome=outcome.value)

    def _once(self, kind: tuple[str, ...], place: _Place) -> Ended:
        """What all faults of a kind end in: what the first one of it does, which is run."""
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = self.victim.run(place.write, place.area, late=False)
        return known


def _decided(fault: CampaignFault, ended: Ended, how: How, segment: str, phys: int) -> Decided:
    return Decided(
        fault, ended.outcome, how, segment, phys, "", ended.dump, ended.dump_reason, ended.reported
    )


def _whole_pages(area: PhysRange) -> PhysRange:
    return PhysRange(area.start & ~0xFFF, (area.last | 0xFFF) + 1)


def cut(areas: Iterable[PhysRange], borders: Sequence[int]) -> list[PhysRange]:
    """The same bytes, in pieces that no border (ascending) lies within."""
    found = []
    for area in areas:
        inside = borders[bisect_right(borders, area.start) : bisect_left(borders, area.end)]
        edges = [area.start, *inside, area.end]
        found += [PhysRange(start, end) for start, end in pairwise(edges)]
    return found


def _changed(place: _Place) -> list[PhysRange]:
    """The runs of bytes that the write changes."""
    found: list[PhysRange] = []
    start: int | None = None
    for index, (old, new) in enumerate(zip(place.before, place.data, strict=True)):
        if old != new and start is None:
            start = index
        elif old == new and start is not None:
            found.append(PhysRange(place.area.start + start, place.area.start + index))
            start = None
    if start is not None:
        found.append(PhysRange(place.area.start + start, place.area.end))
    return found
