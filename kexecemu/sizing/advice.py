"""What the rows of a sweep say: which sizes work, which to take, and what is in the way where more is worse."""

from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.shown import shown
from kexecemu.sizing.run import NOT_LOADED, NOT_RESERVED, Row

__all__ = ["MARGIN", "Advice", "advice_of", "end_word", "size_word"]

MARGIN = 32 << 20
"""Bytes that should have been left: for drivers and devices that a board without them does not show."""


@shown()
@dataclass(frozen=True)
class Advice:
    """Sizes in bytes, None where there is none: the smallest that works, the one from which all that were tried work,

    and the one to take, which has the margin besides. words are for people, a line each.
    """

    smallest: int | None
    all_from: int | None
    take: int | None
    words: tuple[str, ...]


def end_word(row: Row) -> str:
    """What came of a size, in a word or two."""
    return "works" if row.works else row.end or row.outcome


def size_word(size: int) -> str:
    """A number of bytes as crashkernel= has it: 96M, or 33333K."""
    return f"{size >> 20}M" if size % (1 << 20) == 0 else f"{size >> 10}K"


def advice_of(rows: Sequence[Row], margin: int = MARGIN) -> Advice:
    """The advice; margin in bytes."""
    every = sorted((row for row in rows if not row.asked.more), key=lambda row: row.asked)
    plain = [row for row in every if row.outcome != NOT_RESERVED]
    good = [row for row in plain if row.works]
    if not good:
        return Advice(None, None, None, tuple(_nothing(every)))
    smallest = good[0].asked.size
    bad = [row.asked.size for row in plain if not row.works]
    steady = [row for row in good if row.asked.size > max(bad, default=0)]
    all_from = steady[0].asked.size if steady else None
    roomy = [row for row in steady if row.memory is not None and row.memory.unused >= margin]
    take = roomy[0] if roomy else None
    words = []
    if steady:
        words.append(f"from {size_word(all_from or 0)} on every size that was tried works")
    else:
        words.append("the largest size that was tried does not work: try larger ones (--to)")
    words += _holes(plain, smallest, all_from)
    words += _too_large(every)
    words += _what_ifs(rows)
    if take is not None and take.memory is not None:
        left = take.memory.unused >> 20
        words.append(f"take crashkernel={size_word(take.asked.size)}: {left}M of it were never used here")
        words.append(
            "what a run on this board does not have: the drivers of the machine's own devices and what they set aside, "
            f"and more work at the dump; that is what at least {size_word(margin)} are left for (--margin)"
        )
    elif steady and steady[0].memory is None:
        words.append("how much of them was used is not known: this capture kernel is no Linux")
    elif steady:
        words.append(
            f"none of them leaves {size_word(margin)} for the drivers of a real machine: try larger ones (--to)"
        )
    return Advice(smallest, all_from, take.asked.size if take else None, tuple(words))


def _nothing(plain: Sequence[Row]) -> list[str]:
    words = ["no size that was tried works"]
    if plain and all(row.outcome in (NOT_RESERVED, NOT_LOADED) for row in plain):
        words.append(f"the largest is {plain[-1].outcome}: {plain[-1].reason}")
    return words


def _too_large(every: Sequence[Row]) -> list[str]:
    refused = [row for row in every if row.outcome == NOT_RESERVED]
    return [f"{size_word(refused[0].asked.size)}: {refused[0].reason}"] if refused else []


def _holes(plain: Sequence[Row], smallest: int, all_from: int | None) -> list[str]:
    """Sizes that do not work though smaller ones do."""
    top = all_from if all_from is not None else plain[-1].asked.size + 1
    within = [row for row in plain if smallest < row.asked.size < top and not row.works]
    if not within:
        return []
    sizes = ", ".join(size_word(row.asked.size) for row in within)
    words = [f"{size_word(smallest)} works, and {sizes} {'does' if len(within) == 1 else 'do'} not"]
    taken = [row.memory.cma for row in within if row.memory is not None and row.memory.cma]
    if len(taken) == len(within):
        words.append(
            f"in each of them {size_word(max(taken))} are set aside for CMA (CONFIG_CMA_SIZE_MBYTES), which just fit, "
            "and what the kernel allocates for itself cannot lie there"
        )
    return words


def _what_ifs(rows: Sequence[Row]) -> list[str]:
    words = []
    for more in sorted({row.asked.more for row in rows if row.asked.more}):
        tried = sorted((row for row in rows if row.asked.more == more), key=lambda row: row.asked)
        good = [size_word(row.asked.size) for row in tried if row.works]
        bad = [size_word(row.asked.size) for row in tried if not row.works]
        said = [f"{', '.join(good)} work{'s' if len(good) == 1 else ''}"] if good else []
        said += [f"{', '.join(bad)} {'does' if len(bad) == 1 else 'do'} not"] if bad else []
        words.append(f"with {more} on the capture kernel's command line {' and '.join(said)}")
    return words
