"""The eras of arm64's kexec, oldest first: the one table of what changed when, which every rule that changed asks."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, total_ordering
from typing import Any, Self

from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["Era", "Rules"]


@shown()
@dataclass(frozen=True)
class Rules:
    """What is not the same in every era; the defaults are what the oldest one does.

    protects_by_pte            arch_kexec_protect_crashkres() exists (dropped by 0d124e96051b)
    early_reservation          crashkernel= is reserved before the linear map where there are no DMA zones, and decides
                               how that is built (504cae453f82)
    generic_reservation        reserve_crashkernel_generic() is used (fdc268232dbb)
    counts_low_region          crash_get_memory_size() adds crashk_low_res (6.5)
    top_down_skips_last_page   locate_mem_hole_top_down() starts at end - size with an inclusive end
    text_alias_starts_at_text  the read-only alias of the kernel text in the linear map starts at _text, not at _stext
    ima_in_crash_images        ima_add_kexec_buffer() adds its segment to crash images too
    ima_filled_at_reboot       that segment is reserved at the load and filled at the reboot, and no digest covers it
    file_load_flags            KEXEC_FILE_FLAGS: UNLOAD 1, ON_CRASH 2, NO_INITRAMFS 4; 6.8 added DEBUG 8
    """

    protects_by_pte: bool = True
    early_reservation: bool = True
    generic_reservation: bool = False
    counts_low_region: bool = False
    top_down_skips_last_page: bool = True
    text_alias_starts_at_text: bool = False
    ima_in_crash_images: bool = True
    ima_filled_at_reboot: bool = False
    file_load_flags: int = 0x7


@total_ordering
class Era(enum.Enum):
    """A stretch of arm64 history with the same rules; the value is the release that stands for it.

    A new era is one entry, behind those before it: its value, the first release that belongs to it, a sentence for
    people, and the rules that have changed. What it does not mention is as in the era before it.
    """

    V6_1 = (
        "6.1",
        (0, 0),
        "before the series of April 2023: the loaded segments lose PTE_VALID, and crashkernel= may force the whole "
        "linear map down to base pages",
    )
    V6_4 = (
        "6.4",
        (6, 4),
        "right after the series (commits 0d124e96051b, 04a2a7af3d97, 504cae453f82): no protection, late reservation",
        {"protects_by_pte": False, "early_reservation": False},
    )
    V6_12 = (
        "6.12",
        (6, 7),
        "the generic reservation of 6.7 (commit fdc268232dbb) with fallbacks and a default low size",
        {
            "generic_reservation": True,
            "counts_low_region": True,
            "top_down_skips_last_page": False,
            "text_alias_starts_at_text": True,
            # Upstream since 6.16, and in the stable 6.12: so 6.12.117, and 7.3.
            "ima_in_crash_images": False,
            "ima_filled_at_reboot": True,
            "file_load_flags": 0xF,
        },
    )

    since: tuple[int, int]
    meaning: str
    changed: Mapping[str, Any]

    def __new__(
        cls, value: str, since: tuple[int, int], meaning: str, changed: Mapping[str, Any] | None = None
    ) -> Self:
        """One entry of the table."""
        era = object.__new__(cls)
        era._value_ = value
        era.since, era.meaning, era.changed = since, meaning, changed or {}
        return era

    def __lt__(self, other: object) -> bool:
        """Is it older?"""
        return self.since < other.since if isinstance(other, Era) else NotImplemented

    @property
    def rules(self) -> Rules:
        """Every rule as this era has it."""
        return _rules(self)

    @classmethod
    def of_release(cls, release: str) -> Era:
        """The era that a kernel belongs to by what uname -r says of it; InputError for what is no release."""
        found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", release)
        if found is None:
            raise InputError(f"{release!r} is no release of Linux")
        version = int(found[1]), int(found[2])
        return max(era for era in cls if era.since <= version)


@cache
def _rules(era: Era) -> Rules:
    before = [one for one in Era if one < era]
    return replace(_rules(max(before)) if before else Rules(), **era.changed)
