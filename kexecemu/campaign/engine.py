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

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from kexecemu.campaign.accesses import First
from kexecemu.campaign.fault import CampaignFault, Decided, Ended, How
from kexecemu.campaign.hit import Hit, Hits
from kexecemu.campaign.space import Space, space_of
from kexecemu.campaign.victim import Victim
from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import taken_by_stub
from kexecemu.crash.outcome import Outcome, judge
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.setup import prepare
from kexecemu.shown import shown
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import find_model

__all__ = ["FaultDecider"]

_MARGIN = 4096
"""Bytes around the place where hashing stands within which nothing is concluded."""

_LONGEST_BLOCK = 1024
"""Instructions; no block of the engine's is as long."""

_STORES = (By.CPU, By.LATE_CPU)
"""Writers whom the linear map's page tables may refuse."""

_Conclusion = tuple[Ended, How] | None


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
        self.kernel, self.image = prepare(setup)
        self.victim = Victim(self.kernel, self.image, setup)
        self.golden = self.victim.golden
        self.space: Space = space_of(scenario, self.kernel, self.image)
        assert self.space.places is not None
        self._places = self.space.places
        self.config_hash = self._config_hash(scenario, setup.seed)
        self._hits = Hits(self.victim, self._places)
        self._hash = self._hits.hash
        self._known: dict[tuple[str, ...], Ended] = {}
        # Segments that are hashed from end to end, by name, with their place in the hash's input.
        self._quick = {
            segment.name: (segment, place)
            for segment in self.image.segments
            if (place := self._hash.place_of(segment.area)) is not None
            and (self.victim.at_rest(segment.area) or self._hits.is_checked_early(segment.area))
        }

    def close(self) -> None:
        """Give the machine back."""
        self.kernel.board.close()

    def _config_hash(self, scenario: Scenario, seed: int) -> str:
        """Of everything that a result depends on: the scenario, the seed, and the image's bytes at their places."""
        try:
            digest = hashlib.sha256(msgspec.json.encode(scenario))
        except UnicodeEncodeError as error:
            raise InputError(f"a campaign's options are text: {error.object!r} is no UTF-8") from error
        digest.update(f" seed {seed} start {self.image.start:#x}".encode())
        for segment in self.image.segments:
            digest.update(f" {segment.name} {segment.mem:#x} {segment.memsz:#x} ".encode())
            digest.update(hashlib.sha256(segment.buf).digest())
        return digest.hexdigest()

    def decide(self, fault: CampaignFault) -> Decided:
        """What comes of a fault, by the cheapest way that is safe. InputError for one that is not in this machine."""
        quick = self._decide_hashed(fault)
        if quick is not None:
            return quick
        hit = self._hits.of(fault)
        concluded = self._conclude(hit) or (self.victim.run(hit.write, hit.area, late=True), How.RUN)
        return _decided(fault, *concluded, hit.segment, hit.area.start)

    def run(self, fault: CampaignFault) -> Decided:
        """The same, always in full emulation from the load on."""
        hit = self._hits.of(fault)
        ended = self.victim.run(hit.write, hit.area, late=False)
        return _decided(fault, ended, How.RUN, hit.segment, hit.area.start)

    def area(self, fault: CampaignFault) -> PhysRange:
        """The physical bytes that a fault writes. InputError for one that is not in this machine."""
        return self._places.reach(fault)

    # -- conclusions ------------------------------------------------------------------------------------------------

    def _decide_hashed(self, fault: CampaignFault) -> Decided | None:
        """The common case, a small write before the check into what is hashed: _conclude() without its generality."""
        quick = self._quick.get(fault.base)
        if quick is None or fault.moment not in (When.AFTER_LOAD, When.DURING_PANIC):
            return None
        segment, place = quick
        model = find_model(fault.model)
        length = model.length(fault.variant)
        offset = fault.offset
        if length > 64 or offset + length > segment.memsz or not 0 <= fault.variant < model.variants:
            return None
        phys = segment.mem + offset
        # All pages of a segment are protected alike.
        if fault.by in _STORES and not self.victim.store_allowed(phys >> 12):
            return None
        place += offset
        before = self._hash.input[place : place + length]
        data = model.data(fault.variant, before)
        if data == before or not self._hash.differs(place, data):
            return None
        ended = self._known.get((self._objection(fault), fault.base))
        if ended is None or ended.mended is False:
            return None
        return _decided(fault, ended, How.HASH, fault.base, phys)

    def _conclude(self, hit: Hit) -> _Conclusion:
        golden, fault = self.golden, hit.fault
        if not golden.region.covers(hit.area):
            return None  # the first kernel's memory: it lives there
        if fault.moment is When.DURING_LOAD:
            return self._conclude_during_load(hit)
        if not self.victim.reached(fault.moment, fault.at):
            return None  # and it never happens
        if fault.by in _STORES:
            allowed = self.victim.stores_allowed(hit.area)
            if not any(allowed):
                return self._once(("refused", fault.by, fault.moment), hit), How.REFUSED
            if not all(allowed):
                return None
        if not self._hits.is_known(hit):
            return None
        changed = self._hits.changed(hit)
        if not changed:
            return self._once(("same-value", fault.by, fault.moment), hit), How.SAME_VALUE
        if fault.moment is When.AFTER_LOAD and not (
            all(map(self.victim.at_rest, changed)) or all(map(self._hits.is_checked_early, changed))
        ):
            return None
        if fault.moment in (When.AFTER_LOAD, When.DURING_PANIC, When.WHILE_HASHING):
            return self._conclude_before_check(hit, changed)
        if fault.moment is When.AFTER_CHECK:
            return self._conclude_in_capture(changed)
        if fault.moment is When.IN_CAPTURE and all(map(golden.in_capture.untouched, changed)):
            return self._as_undisturbed(Outcome.LATENT), How.UNREAD
        return None

    def _conclude_during_load(self, hit: Hit) -> _Conclusion:
        """A write before the segments are copied to where they belong: nothing protects them yet, and nothing need."""
        changed = self._hits.changed(hit)
        if not changed:
            return self._as_undisturbed(Outcome.MASKED), How.SAME_VALUE
        if any(segment.area.covers(hit.area) for segment in self.image.segments):
            return self._as_undisturbed(Outcome.MASKED), How.OVERWRITTEN
        # A control page is written by the load as well.
        written = [*(segment.area for segment in self.image.segments), *self.image.control_pages]
        if any(area.overlaps(hit.area) for area in written):
            return None
        golden = self.golden
        touched = (golden.in_panic, golden.in_check, golden.in_capture)
        if all(accesses.untouched(one) for accesses in touched for one in changed):
            return self._as_undisturbed(Outcome.LATENT), How.UNREAD
        return None

    def _conclude_before_check(self, hit: Hit, changed: list[PhysRange]) -> _Conclusion:
        purgatory = self.image.segment("purgatory")
        if purgatory is not None and any(one.overlaps(purgatory.area) for one in changed):
            return self._conclude_in_purgatory(changed)
        hashed = [one for one in changed if self._hash.place(one.start) is not None]
        others = [one for one in changed if one not in hashed]
        if self.golden.purgatory is not None and not all(map(self.golden.in_check.untouched, others)):
            return None
        if hashed and hit.fault.moment is When.WHILE_HASHING:
            seen = self._still_to_be_read(hit.fault.at, hashed)
            if seen is None:
                return None
            hashed = hashed if seen else []
        return self._conclude_by_hash(hit, hashed, changed) if hashed else self._conclude_in_capture(changed)

    def _conclude_in_purgatory(self, changed: list[PhysRange]) -> _Conclusion:
        """What is rewritten before it is read is gone; in anything else of the purgatory lie the misses."""
        scratch, in_check = self.victim.page_tables, self.golden.in_check
        if scratch is None or not all(scratch.covers(one) for one in changed):
            return None
        # While it hashes nothing comes here that the check has written: see Hits.is_known().
        if all(in_check.of(one) == First.WRITTEN_FIRST for one in changed):
            return self._unnoticed(changed, How.OVERWRITTEN)
        # Every table is cleared before it is linked: a page that nobody came near is none, and the MMU, whose reads
        # nobody records, does not come there either.
        pages = [PhysRange(one.start & ~0xFFF, (one.last | 0xFFF) + 1) for one in changed]
        return self._conclude_in_capture(changed) if all(map(in_check.untouched, pages)) else None

    def _conclude_by_hash(self, hit: Hit, hashed: list[PhysRange], changed: list[PhysRange]) -> _Conclusion:
        for one in hashed:
            start = self._hash.place_of(one)
            if start is None:
                return None
            offset = one.start - hit.area.start
            if self._hash.differs(start, hit.data[offset : offset + one.size]):
                segment = self.image.segment_at(one.start)
                kind = (self._objection(hit.fault), segment.name if segment else "")
                ended = self._once(kind, hit)
                # Mended, if nothing else came to harm, above all not what a purgatory mends with.
                alone = segment is not None and all(segment.area.covers(each) for each in changed)
                if ended.mended is False or (ended.mended and not alone):
                    return None
                return ended, How.HASH
        return None

    def _objection(self, fault: CampaignFault) -> str:
        """What is run once for all damage to a segment's hashed bytes: the check at the end, or an early one."""
        early = self.golden.early_check and fault.moment is When.AFTER_LOAD
        return "mismatch found early" if early else "mismatch"

    def _still_to_be_read(self, at: int, hashed: list[PhysRange]) -> bool | None:
        """While the purgatory hashes: all of it is yet to be read, nothing of it will be, or None for neither."""
        region, in_check = self.golden.region, self.golden.in_check
        when = self.golden.check_began + self.victim.instructions_at(at)
        low, high = region.start, region.end
        widened = [PhysRange(max(one.start - _MARGIN, low), min(one.end + _MARGIN, high)) for one in hashed]
        # Blocks are counted as they begin, and the write waits for the next one.
        if all(in_check.first_read(one) > when + _LONGEST_BLOCK for one in widened):
            return True
        return False if all(in_check.last_read(one) < when for one in widened) else None

    def _conclude_in_capture(self, changed: list[PhysRange]) -> _Conclusion:
        seen = First.NOTHING
        for one in changed:
            seen |= self.golden.in_capture.of(one)
        if seen & First.READ:
            return None
        return self._unnoticed(changed, How.OVERWRITTEN if seen else How.UNREAD)

    def _unnoticed(self, changed: list[PhysRange], how: How) -> _Conclusion:
        """The undisturbed run with other bytes in memory, as judge() sees it."""
        golden, record = self.golden, self.image.verdict_record
        # What find_damage() does not look at: the verdict's place, and what an early check has used.
        own = [*golden.early_check, *([record] if record is not None else [])]
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

    def _once(self, kind: tuple[str, ...], hit: Hit) -> Ended:
        """What all faults of a kind end in: what the first one of it does, which is run."""
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = self.victim.run(hit.write, hit.area, late=False)
        return known


def _decided(fault: CampaignFault, ended: Ended, how: How, segment: str, phys: int) -> Decided:
    return Decided(
        fault, ended.outcome, how, segment, phys, "", ended.dump, ended.dump_reason, ended.reported
    )
