"""The fault space: all faults that a campaign draws from, each with its number, and how many there are.

It is cut into strata, of one area, model, writer and moment each. In a stratum every byte of the area, every variant
of the model and every number of the moment make one fault, so that sizes are exact and nothing is ever listed.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kexecemu.campaign.areas import Area, Places
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.plan import plan_of
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.model import KernelModel
from kexecemu.scenario.schema import Scenario
from kexecemu.shown import shown
from kexecemu.stray.fault import By, When, can_write
from kexecemu.stray.models import Model

__all__ = ["Space", "SpaceRow", "Stratum", "space_of"]


@shown()
@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the space: its faults are those from number `first` on, `size` of them.

    steps are the numbers that the moment comes with, (0,) for one without.
    """

    area: Area
    model: Model
    by: By
    moment: When
    steps: tuple[int, ...]
    first: int

    @property
    def size(self) -> int:
        """How many faults: bytes times variants times steps."""
        return self.area.phys.size * self.model.variants * len(self.steps)

    def fault(self, number: int) -> CampaignFault:
        """The fault that is `number` from the stratum's first."""
        number, step = divmod(number, len(self.steps))
        byte, variant = divmod(number, self.model.variants)
        offset = self.area.phys.start - self.area.base_phys + byte
        area, model = self.area.name, self.model.name
        return CampaignFault(self.by, model, variant, area, offset, self.moment, self.steps[step])

    def number(self, fault: CampaignFault) -> int | None:
        """What fault() makes the fault of; None when it is of another stratum."""
        byte, variants = self.area.base_phys + fault.offset - self.area.phys.start, self.model.variants
        key = self.area.name, self.model.name, self.by, self.moment
        if key != (fault.base, fault.model, fault.by, fault.moment) or fault.at not in self.steps:
            return None
        if not (0 <= byte < self.area.phys.size and 0 <= fault.variant < variants):
            return None
        return (byte * variants + fault.variant) * len(self.steps) + self.steps.index(fault.at)


@shown()
class SpaceRow(NamedTuple):
    """A line of the table of the space: one stratum. bytes * variants * steps is size."""

    where: str
    kind: str
    model: str
    by: str
    moment: str
    bytes: int
    variants: int
    steps: int
    size: int


@shown("size", "strata")
class Space:
    """Faults by number, from 0 to size - 1; fault() and index() undo each other.

    places says where on the board each lies; None for a space that was made without one.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        models: Sequence[Model],
        writers: Sequence[By],
        moments: Sequence[tuple[When, int]],
        places: Places | None = None,
    ) -> None:
        """areas must not overlap and nothing be there twice. Pairs of writer and moment that cannot be are left out.

        Raises InputError when nothing is left.
        """
        self.places = places
        self.strata: list[Stratum] = []
        kinds = dict.fromkeys(moment for moment, _ in moments)
        steps = {kind: tuple(at for moment, at in moments if moment is kind) for kind in kinds}
        first = 0
        for area in areas:
            for model in models:
                for by in writers:
                    for moment, numbers in steps.items():
                        stratum = Stratum(area, model, by, moment, numbers, first)
                        if can_write(by, moment) and stratum.size:
                            self.strata.append(stratum)
                            first += stratum.size
        if not first:
            raise InputError("campaign: there is no fault in such a space")
        self.size = first
        self._firsts = [one.first for one in self.strata]

    def stratum(self, index: int) -> Stratum:
        """The stratum of the fault of that number; IndexError when there is none."""
        if not 0 <= index < self.size:
            raise IndexError(f"no fault {index}: there are {self.size}")
        return self.strata[bisect_right(self._firsts, index) - 1]

    def fault(self, index: int) -> CampaignFault:
        """The fault of that number; IndexError when there is none."""
        stratum = self.stratum(index)
        return stratum.fault(index - stratum.first)

    def index(self, fault: CampaignFault) -> int:
        """The number of a fault; InputError when it is not in this space."""
        for stratum in self.strata:
            number = stratum.number(fault)
            if number is not None:
                return stratum.first + number
        raise InputError(f"fault {fault.id} is not in the campaign's space")

    def describe(self) -> list[SpaceRow]:
        """The table of the space, a line for each stratum, in the order of the numbers."""

        def row(one: Stratum) -> SpaceRow:
            area, variants, steps = one.area, one.model.variants, len(one.steps)
            words = area.name, area.kind.value, one.model.name, one.by.value, one.moment.value
            return SpaceRow(*words, area.phys.size, variants, steps, one.size)

        return [row(one) for one in self.strata]


def space_of(scenario: Scenario, kernel: KernelModel, image: Kimage) -> Space:
    """The space that a scenario's [campaign] asks for, over the image that its kernel has loaded.

    Raises InputError that names the key for what is not there or makes no sense.
    """
    plan = plan_of(scenario)
    assert kernel.crashk_res is not None
    if By.LATE_CPU in plan.writers and len(kernel.board.cpus) < 2:
        raise InputError("campaign.by: a late-cpu is a second one: this machine has one CPU")
    places = Places(kernel.crashk_res, image, kernel.ram.banks, checked=image.digest is not None)
    return Space(places.areas(plan.where), plan.models, plan.writers, plan.moments, places)
