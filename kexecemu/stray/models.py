"""What a stray write writes: fault models, each a plain function with the paper or the kernel facility that it follows.

A model has so many variants, and the variant says everything: nothing here draws at random, so that a fault's name is
enough to write the same bytes again. An off-by-one is no model but a place: the edges of the fault space
(kexecemu.campaign.space), where the byte or word lies just outside of what it should have hit.
"""

import hashlib
from typing import NamedTuple

from kexecemu.errors import InputError
from kexecemu.shown import shown
from kexecemu.stray.contents import (
    LIST_POISON1,
    LIST_POISON2,
    POISON_END,
    POISON_FREE,
    POISON_INUSE,
    STRUCTURES,
    TELLING_WORDS32,
    TELLING_WORDS64,
    ascii_like,
    linear_pointer,
    pointer_like,
    structure_like,
)
from kexecemu.stray.model import MAX_LENGTH, MODELS, Model, model
from kexecemu.suggest import there_are

__all__ = ["MAX_LENGTH", "MODELS", "Model", "ModelRow", "find_model", "model_rows"]

HASHED_WORDS = 1 << 16  # stray values, beside the telling ones
HASHED_CONTENTS = 1 << 8  # contents of each kind and length

_SULLIVAN = "Sullivan and Chillarege, Software defects and their impact on system availability, FTCS 1991"
_RIO = "Chen and others, The Rio file cache: surviving operating system crashes, ASPLOS 1996"


@shown()
class ModelRow(NamedTuple):
    """A line of the list of models, for help texts and the documentation. shortest and longest are bytes written."""

    name: str
    variants: int
    shortest: int
    longest: int
    summary: str
    source: str


def find_model(name: str) -> Model:
    """The model of that name; InputError that lists them when there is none."""
    try:
        return MODELS[name]
    except KeyError:
        raise InputError(f"no fault model {name!r}{there_are(name, MODELS)}") from None


def model_rows() -> list[ModelRow]:
    """All models, in the order in which they stand here."""
    rows = []
    for one in MODELS.values():
        lengths = {one.length(variant) for variant in range(one.variants)}
        rows.append(ModelRow(one.name, one.variants, min(lengths), max(lengths), one.summary, one.source))
    return rows


def _hash(label: str, variant: int, length: int) -> bytes:
    """Bytes that look random and are the same for ever."""
    return hashlib.shake_128(f"kexecemu {label} {variant}".encode()).digest(length)


# -- single bits, bytes and words ----------------------------------------------------------------------------------


@model(
    8,
    1,
    width=1,
    source="Schroeder and others, DRAM errors in the wild, SIGMETRICS 2009; "
    "Kim and others, Flipping bits in memory without accessing them, ISCA 2014",
)
def bit_flip(variant: int, before: bytes) -> bytes:
    """One bit of a byte is inverted."""
    return bytes(one ^ (1 << variant) for one in before)


@model(255, 1, width=1, source=f"{_SULLIVAN}; Sangchoolie and others, One bit is (not) enough, DSN 2017")
def byte(variant: int, before: bytes) -> bytes:
    """A byte becomes any of the 255 others."""
    return bytes(one ^ (variant + 1) for one in before)


@model(
    len(TELLING_WORDS32) + HASHED_WORDS, 4, width=4, source=f"a store through a wild pointer, as in {_RIO}"
)
def word32(variant: int, before: bytes) -> bytes:
    """A stray 32-bit value is stored: one that means something to a kernel, or any other."""
    telling = len(TELLING_WORDS32)
    if variant < telling:
        return TELLING_WORDS32[variant].to_bytes(4, "little")
    return _hash("word32", variant - telling, 4)


@model(
    len(TELLING_WORDS64) + HASHED_WORDS, 8, width=8, source=f"a store through a wild pointer, as in {_RIO}"
)
def word64(variant: int, before: bytes) -> bytes:
    """A stray 64-bit value is stored: one that means something to a kernel, or any other."""
    telling = len(TELLING_WORDS64)
    if variant < telling:
        return TELLING_WORDS64[variant].to_bytes(8, "little")
    return _hash("word64", variant - telling, 8)


_STUCK_LENGTHS = (1, 4, 8)
_STUCK_SOURCE = "the stuck-at fault of IEC 61508-2; what the kernel's memtest= looks for (mm/memtest.c)"


def _stuck_length(variant: int) -> int:
    return _STUCK_LENGTHS[variant]


@model(len(_STUCK_LENGTHS), _stuck_length, width=1, source=_STUCK_SOURCE)
def stuck_at_0(variant: int, before: bytes) -> bytes:
    """All bits of a byte, a 32-bit or a 64-bit word become 0, and stay so, as nothing writes there again."""
    return bytes(_STUCK_LENGTHS[variant])


@model(len(_STUCK_LENGTHS), _stuck_length, width=1, source=_STUCK_SOURCE)
def stuck_at_1(variant: int, before: bytes) -> bytes:
    """All bits of a byte, a 32-bit or a 64-bit word become 1, and stay so, as nothing writes there again."""
    return b"\xff" * _STUCK_LENGTHS[variant]


# -- overruns --------------------------------------------------------------------------------------------------------

_MEMSET_VALUES = (
    0x00,
    0xFF,
    POISON_INUSE,
    POISON_FREE,
    0xAA,
    0xBB,
    0xCC,
)  # the last: PAGE_POISON, SLUB's red zones
_MEMSET_LENGTHS = tuple(8 << power for power in range(10))
_MEMCPY_LENGTHS = tuple(16 << power for power in range(9))


def _memset_length(variant: int) -> int:
    return _MEMSET_LENGTHS[variant % len(_MEMSET_LENGTHS)]


@model(
    len(_MEMSET_VALUES) * len(_MEMSET_LENGTHS),
    _memset_length,
    width=8,
    source="the values of include/linux/poison.h; LKDTM's SLAB_LINEAR_OVERFLOW",
)
def memset(variant: int, before: bytes) -> bytes:
    """A memset() of zeros, ones or a poison value runs over: 8 to 4096 bytes, by powers of two."""
    return bytes([_MEMSET_VALUES[variant // len(_MEMSET_LENGTHS)]]) * _memset_length(variant)


def _memcpy_length(variant: int) -> int:
    return _MEMCPY_LENGTHS[variant // HASHED_CONTENTS % len(_MEMCPY_LENGTHS)]


@model(
    2 * len(_MEMCPY_LENGTHS) * HASHED_CONTENTS,
    _memcpy_length,
    width=8,
    source=f"the copy overrun of {_RIO}; lengths as in {_SULLIVAN}",
)
def memcpy(variant: int, before: bytes) -> bytes:
    """A memcpy() runs over with pointers or with text: 16 to 4096 bytes, by powers of two."""
    content = pointer_like if variant < len(_MEMCPY_LENGTHS) * HASHED_CONTENTS else ascii_like
    length = _memcpy_length(variant)
    return content(_hash("memcpy", variant, length))


def _stamp_length(variant: int) -> int:
    return 8 * len(STRUCTURES[variant // HASHED_CONTENTS])


@model(
    len(STRUCTURES) * HASHED_CONTENTS,
    _stamp_length,
    width=8,
    source=f"the overlay of {_SULLIVAN}; addresses by Documentation/arch/arm64/memory.rst",
)
def stamp(variant: int, before: bytes) -> bytes:
    """A kernel structure lands elsewhere: a list_head, rcu_head, work_struct or page, or one as large as a task."""
    structure = STRUCTURES[variant // HASHED_CONTENTS]
    return structure_like(structure, _hash("stamp", variant, 8 * len(structure)))


# -- after a free ------------------------------------------------------------------------------------------------------

# Variants: poisoned objects, list_del(), end of the freelist, plain, hardened.
_LIST_DEL = len(_MEMSET_LENGTHS)
_FREELIST_END = _LIST_DEL + 1
_FREELIST = _FREELIST_END + 1
_FREELIST_HARDENED = _FREELIST + HASHED_CONTENTS


def _use_after_free_length(variant: int) -> int:
    if variant < _LIST_DEL:
        return _MEMSET_LENGTHS[variant]
    return 16 if variant == _LIST_DEL else 8


@model(
    _FREELIST_HARDENED + HASHED_CONTENTS,
    _use_after_free_length,
    width=8,
    source=f"mm/slub.c, list_del() and LKDTM's WRITE_AFTER_FREE; the premature free of {_RIO}",
)
def use_after_free(variant: int, before: bytes) -> bytes:
    """Memory in use is treated as free: SLUB's poison, list_del()'s poisoned pointers, or a freelist pointer."""
    if variant < _LIST_DEL:
        return bytes([POISON_FREE]) * (_MEMSET_LENGTHS[variant] - 1) + bytes([POISON_END])
    if variant == _LIST_DEL:
        return LIST_POISON1.to_bytes(8, "little") + LIST_POISON2.to_bytes(8, "little")
    if variant == _FREELIST_END:
        return bytes(8)
    word = _hash("freelist", variant, 8)
    # CONFIG_SLAB_FREELIST_HARDENED mixes a secret of each cache into the pointer: any value at all.
    return linear_pointer(word) if variant < _FREELIST_HARDENED else word
