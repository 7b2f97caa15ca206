"""Where a campaign's fault hits: the bytes there right before the write, and what of them it changes, in pieces."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kexecemu.campaign.accesses import First
from kexecemu.campaign.areas import Places
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.hash_states import HashStates
from kexecemu.campaign.victim import Victim
from kexecemu.crash.damage import differing
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault, When
from kexecemu.stray.models import find_model

__all__ = ["Hit", "Hits", "cut"]


@shown()
@dataclass(frozen=True)
class Hit:
    """A fault's place, resolved: physical bytes, the segment's name ("" in none), what is there and is written."""

    fault: CampaignFault
    write: Fault
    area: PhysRange
    segment: str
    before: bytes
    data: bytes


@shown("hash")
class Hits:
    """Where faults hit a loaded image, and where in its hash's input that is."""

    def __init__(self, victim: Victim, places: Places) -> None:
        self._victim, self._golden, self._places = victim, victim.golden, places
        image = victim.image
        self.hash = self._hash_states()
        # Where one thing ends or another begins, as far as conclusions are concerned.
        areas = [*(segment.area for segment in image.segments), *image.sha_regions, *self._golden.early_check]
        areas += [one for one in (image.verdict_record, victim.page_tables) if one is not None]
        self._borders = sorted({edge for area in areas for edge in (area.start, area.end)})

    def _hash_states(self) -> HashStates:
        """Of nothing where nothing can be concluded: no purgatory, a foreign one that hashes in a way of its own."""
        golden, image = self._golden, self._victim.image
        if golden.purgatory is not None and image.sha_regions:
            states = HashStates(image.sha_regions, [golden.held(area) for area in image.sha_regions])
            if states.digest == image.digest:
                return states
        return HashStates([], [])

    def of(self, fault: CampaignFault) -> Hit:
        """Where it hits; InputError for a fault that is not in this machine."""
        model = find_model(fault.model)
        if not 0 <= fault.variant < model.variants:
            raise InputError(f"{fault.id}: {fault.model} has {model.variants} variants")
        area = self._places.reach(fault)
        before = self._memory(fault.moment, area)
        segment = self._victim.image.segment_at(area.start)
        write = fault.fault(area)
        return Hit(fault, write, area, segment.name if segment else "", before, write.data(before))

    def _memory(self, moment: When, area: PhysRange) -> bytes:
        """What memory holds there right before the write, of an undisturbed run. It is a guess where hashing or the
        capture kernel has come by until then, and nothing may be concluded from it."""
        if moment is When.DURING_LOAD:
            return self._victim.unloaded_memory(area)
        touched = moment is When.AFTER_LOAD and not self._victim.at_rest(area)
        if touched or not self._golden.region.covers(area):
            return self._victim.base_memory(area)
        return self._golden.held(area, at_entry=moment in (When.AFTER_CHECK, When.IN_CAPTURE))

    def is_known(self, hit: Hit) -> bool:
        """The bytes that the fault hits are what hit.before says: nobody has written to them just before."""
        if hit.fault.moment is When.IN_CAPTURE:
            return self._golden.in_capture.untouched(hit.area)
        # What is hashed stays what it was, or the digest would not be right; of all else that was touched who knows.
        return hit.fault.moment is not When.WHILE_HASHING or all(
            self._golden.in_check.untouched(one) or self.hash.place(one.start) is not None
            for one in cut([hit.area], self._borders)
        )

    def is_checked_early(self, area: PhysRange) -> bool:
        """It is hashed, and all that the crash path does with it is to have it hashed, by the purgatory, early."""
        golden, purgatory = self._golden, self._victim.image.segment("purgatory")
        if purgatory is None or self.hash.place_of(area) is None:
            return False
        began = golden.in_panic.first_read(purgatory.area)
        return golden.in_panic.of(area) is First.READ and 0 <= began < golden.in_panic.first_read(area)

    def changed(self, hit: Hit) -> list[PhysRange]:
        """The runs of bytes that the write changes, none of them in two segments or half in what is hashed."""
        start = hit.area.start
        runs = (PhysRange(start + first, start + end) for first, end in differing(hit.before, hit.data))
        return cut(runs, self._borders)


def cut(areas: Iterable[PhysRange], borders: Sequence[int]) -> list[PhysRange]:
    """The same bytes, in pieces that no border (ascending) lies within."""
    found = []
    for area in areas:
        inside = borders[bisect_right(borders, area.start) : bisect_left(borders, area.end)]
        found += [PhysRange(start, end) for start, end in pairwise([area.start, *inside, area.end])]
    return found
