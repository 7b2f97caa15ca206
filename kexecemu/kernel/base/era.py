"""The eras of arm64's kexec, by the rules that hold in each."""

from __future__ import annotations

import enum
import re
from dataclasses import replace
from functools import cache, total_ordering
from typing import Self

from kexecemu.arguments import text
from kexecemu.errors import InputError
from kexecemu.kernel.base.changes import CHANGES, Rules
from kexecemu.suggest import did_you_mean

__all__ = ["Era", "parse_release", "where_so"]

# As a kernel is numbered: 6.12, 6.12.118, 6.12-rc3, 6.1.0-37-arm64. 6.04 and 6.x are none of these.
_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})([-.+~][!-~]*)?")


@total_ordering
class Era(enum.Enum):
    """A stretch of arm64 history; the value is the release that begins it, and what was so then is the era's.

    A new era is one entry, behind those before it: the release, and a sentence for people. What is so in it is in
    CHANGES; every release at which something changes is one. The first one stands for everything before it, too.
    """

    V6_1 = (
        "6.1",
        "before the series of April 2023: the loaded segments lose PTE_VALID, and crashkernel= may force the whole "
        "linear map down to base pages",
    )
    V6_2 = (
        "6.2",
        "the same, but crashkernel=X falls back to high memory, and 128 MiB of low memory go with it",
    )
    V6_3 = ("6.3", "as 6.2; /memreserve/ is looked at after /reserved-memory")
    V6_4 = (
        "6.4",
        "right after the series (commits 0d124e96051b, 04a2a7af3d97, 504cae453f82): no protection, late reservation",
    )
    V6_5 = ("6.5", "crashkernel=X,high falls back to low memory (6c4dcaddbd36)")
    V6_6 = ("6.6", "as 6.5")
    V6_7 = ("6.7", "the generic reservation (fdc268232dbb)")
    V6_8 = ("6.8", "with KEXEC_FILE_DEBUG")
    V6_9 = ("6.9", "built for 52 bits of address unless told otherwise")
    V6_10 = ("6.10", "as 6.9; page flags in another order")
    V6_11 = ("6.11", "as 6.10; a reservation that fails ends without DMA zones, too")
    V6_12 = ("6.12", "IMA's list as its stable releases have it")
    V6_13 = ("6.13", "as 6.12; a call trace says how it was come by")
    V6_14 = ("6.14", "as 6.13")
    V6_15 = ("6.15", "as 6.14; a dump of the stack says how the kernel is preempted")
    V6_16 = ("6.16", "whether a segment goes to a random place is left to the stack")
    V6_17 = (
        "6.17",
        "crashkernel=X,cma is skipped, flags to 0x3f; the kernel's own place is left to no chance",
    )
    V6_18 = ("6.18", "no place is left to chance; rodata=noalias is what on was")
    V6_19 = ("6.19", "with /sys/kernel/kexec/")
    V7_0 = ("7.0", "crash memory is reserved before the memory map, and so lies higher")
    V7_1 = ("7.1", "keys of dm-crypt are handed on")
    V7_2 = ("7.2", "the linear map's alias of the kernel's data is read-only")
    V7_3 = ("7.3", "crashkernel=X,cma is reserved (c12c63d05dfe); the alias of the kernel's data is invalid")

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """One entry of the table."""
        era = object.__new__(cls)
        era._value_, era.meaning = value, meaning
        return era

    def __lt__(self, other: object) -> bool:
        """Is it older?"""
        return self.since < other.since if isinstance(other, Era) else NotImplemented

    @property
    def since(self) -> tuple[int, int]:
        """The release that begins it."""
        return parse_release(self.value)

    @property
    def rules(self) -> Rules:
        """Every rule as this era has it."""
        return _rules(self.since)

    @classmethod
    def given(cls, value: str) -> Era:
        """The era that somebody asks for by name; InputError for one that there is not, and what would be one."""
        named = {era.value: era for era in cls}.get(text(value, "era"))
        if named is None:
            raise InputError(f"era {value!r} is {cls._why_none(value)}")
        return named

    @classmethod
    def _why_none(cls, value: str) -> str:
        known = [era.value for era in cls]
        version = _VERSION.fullmatch(value)
        if version is None:
            like = did_you_mean(value, known)
            return f"not modelled{like}; known are {', '.join(known)}"
        since = int(version[1]), int(version[2])
        if since < min(cls).since:
            return f"older than {min(cls).value}, the oldest that is modelled"
        if since > max(cls).since:
            return f"newer than {max(cls).value}, the newest that is modelled"
        line = max(era for era in cls if era.since <= since)
        if line.since == since:
            return f"a release of {line.value}, which is the era's name: write {line.value}"
        return f"not modelled: {min(era for era in cls if era > line).value} follows {line.value}"

    @classmethod
    def of_release(cls, release: str) -> Era:
        """The era that a kernel belongs to by what uname -r says of it.

        InputError for what is no release, and for one that is newer than all that is known here.
        """
        version = parse_release(release)
        if version > (newest := max(cls)).since:
            raise InputError(f"Linux {release} is newer than the newest that is known here, {newest.value}")
        return max((era for era in cls if era.since <= version), default=min(cls))


def where_so(rule: str) -> str:
    """Which releases have a rule that is false or empty at first, in words: "from 6.16 on, before 6.18"."""
    found, words = False, list[str]()
    for one in CHANGES:
        if one.rule == rule and bool(one.value) is not found:
            found = bool(one.value)
            release = ".".join(map(str, one.since))
            words.append(f"from {release} on" if found else f"before {release}")
    return ", ".join(words)


def parse_release(text: str) -> tuple[int, int]:
    """The first two numbers of a release of Linux; InputError for what is none."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text)
    if found is None:
        raise InputError(f"{text!r} is no release of Linux")
    return int(found[1]), int(found[2])


@cache
def _rules(release: tuple[int, int]) -> Rules:
    return replace(Rules(), **{one.rule: one.value for one in CHANGES if one.since <= release})
