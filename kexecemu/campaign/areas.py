"""Where a stray write may go: the areas of a loaded crash image, and what the base of a fault's name stands for."""

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kexecemu.campaign.fault import CampaignFault
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown
from kexecemu.stray.models import find_model
from kexecemu.suggest import there_are

__all__ = ["EDGE", "WHERE", "Area", "Kind", "Places"]

EDGE = 8  # bytes on either side of what an off-by-one should have hit: up to one 64-bit word away
WHERE = ("segments", "crashkernel-free", "edges", "crashkernel")  # words of [campaign] where, beside segments

_REGION, _FREE = "crashkernel", "crashkernel-free"


class Kind(enum.StrEnum):
    """What becomes of an area's bytes."""

    HASHED = "hashed"  # of a segment, and covered by the image's digest
    UNHASHED = "unhashed"  # of a segment, and not: nobody hashes, or this part is left out
    PURGATORY = "purgatory"  # of the purgatory itself: code, table, digest, stack
    CONTROL = "control"  # of a control page, or of vmcoreinfo's copy, in the crash region but in no segment
    FREE = "free"  # of the crash region, in use by nothing before the capture kernel
    EDGE = "edge"  # just outside: where an off-by-one lands


@shown()
@dataclass(frozen=True, slots=True)
class Area:
    """A stretch of physical memory, all of one kind.

    name is the base that its faults are named by, and base_phys where that begins: an area may be a part of what its
    name stands for.
    """

    name: str
    phys: PhysRange
    kind: Kind
    base_phys: int


@shown("region", "names")
class Places:
    """What the names of places stand for, for one loaded image; all physical.

    Besides the segments, crashkernel and crashkernel-free (its largest part that is in use by nothing), below-NAME and
    above-NAME are the EDGE bytes just before and just after a segment or the crash region, as far as there is RAM.
    """

    def __init__(
        self, region: PhysRange, image: Kimage, banks: Sequence[PhysRange], *, checked: bool = True
    ) -> None:
        """region is crashk_res, banks the RAM; checked says that sha_regions are hashed before it starts."""
        self.region = region
        self._image = image
        self._banks = banks
        self._hashed = image.sha_regions if checked else []
        used = [segment.area for segment in image.segments] + image.control_pages
        self._unused = subtract([region], used)
        self._areas: dict[str, PhysRange] = {one.name: one.area for one in image.segments}
        self._areas[_REGION] = region
        if self._unused:
            self._areas[_FREE] = max(self._unused, key=lambda area: area.size)
        # The region's first, which a segment at its end may share.
        for name in (_REGION, *(one.name for one in image.segments)):
            self._add_edges(name, self._areas[name])

    def _add_edges(self, name: str, area: PhysRange) -> None:
        bank = next((one for one in self._banks if one.covers(area)), area)
        below = PhysRange(max(area.start - EDGE, bank.start), area.start)
        above = PhysRange(area.end, min(area.end + EDGE, bank.end))
        if below.size:
            self._areas[f"below-{name}"] = below
        if above.size:
            self._areas[f"above-{name}"] = above

    @property
    def names(self) -> list[str]:
        """Every name that a fault's base can have here."""
        return list(self._areas)

    def area(self, name: str) -> PhysRange:
        """The physical range that a base stands for; InputError that lists them when there is no such one."""
        try:
            return self._areas[name]
        except KeyError:
            raise InputError(f"no place {name!r} in this image{there_are(name, self._areas)}") from None

    def reach(self, fault: CampaignFault) -> PhysRange:
        """The physical range that a fault writes to; InputError when it lies outside of its base or is of no model.

        It may run over the end of its base into what comes next; at the end of RAM it is cut off.
        """
        area = self.area(fault.base)
        if fault.offset >= area.size:
            raise InputError(f"fault {fault.id}: {fault.base} has only {area.size:#x} bytes")
        start = area.start + fault.offset
        length = find_model(fault.model).length(fault.variant)
        bank = next(one for one in self._banks if start in one)
        return PhysRange(start, min(start + length, bank.end))

    def areas(self, where: Iterable[str]) -> list[Area]:
        """The areas that the words of [campaign] where stand for, in one order whatever the words' order.

        No byte is in two of them: an edge that lies in another chosen area counts there. Raises InputError for a word
        that stands for nothing here.
        """
        words = set(where)
        segments = [one.name for one in self._image.segments]
        for word in sorted(words - set(WHERE)):
            if word not in segments:
                known = there_are(word, [*segments, *WHERE])
                raise InputError(f"campaign.where: no segment {word!r}{known}")
        whole = _REGION in words
        taken: list[PhysRange] = []
        found: list[Area] = []

        def take(name: str, pieces: Iterable[tuple[PhysRange, Kind]]) -> None:
            for phys, kind in pieces:
                for rest in subtract([phys], taken):
                    found.append(Area(name, rest, kind, self.area(name).start))
                    taken.append(rest)

        for name in segments:
            if whole or name in words or "segments" in words:
                take(name, self._pieces(name))
        if _FREE in self._areas and (whole or _FREE in words):
            take(_FREE, [(self._areas[_FREE], Kind.FREE)])
        if whole:
            take(_REGION, [(page, Kind.CONTROL) for page in self._image.control_pages])
            take(_REGION, [(part, Kind.FREE) for part in self._unused])
        if "edges" in words:
            for name, area in self._areas.items():
                if name.startswith(("below-", "above-")):
                    take(name, [(area, Kind.EDGE)])
        return found

    def _pieces(self, name: str) -> Iterator[tuple[PhysRange, Kind]]:
        """A segment by what becomes of its bytes."""
        area = self.area(name)
        if name == "purgatory":
            yield area, Kind.PURGATORY
        else:
            unhashed = subtract([area], self._hashed)
            pieces = [(one, Kind.UNHASHED) for one in unhashed]
            pieces += [(one, Kind.HASHED) for one in subtract([area], unhashed)]
            yield from sorted(pieces)
