"""The log that a kernel keeps in its memory, whether its console ever showed it: struct printk_ringbuffer.

Found for any kernel from 5.10 on, without its symbols: the structure lies in the kernel's own image, and its two sizes
and three pointers look like nothing else. Followed: kernel/printk/printk_ringbuffer.[ch] and printk.c.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kexecemu.errors import BusError
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["LogRecord", "Translate", "kernel_log"]

# The physical address of a virtual one, as the CPU has it now; None where it has none.
Translate = Callable[[int], int | None]

# prb_desc_ring: count_bits, descs, infos, two or three ids (three since 5.18); prb_data_ring: size_bits, data.
_RING = re.compile(
    rb"(?=([\x05-\x18]\0{7}.{6}\xff\xff.{6}\xff\xff(.{16}|.{24})[\x0a-\x1d]\0{7}.{6}\xff\xff.{16}))",
    re.DOTALL,
)
_HEAD = struct.Struct("<QQQQQ")  # count_bits, descs, infos, head_id, tail_id
_DATA = struct.Struct("<QQQQ")  # size_bits, data, head_lpos, tail_lpos
_DESC = struct.Struct("<QQQ")  # state_var, text_blk_lpos.begin and .next
_INFO = struct.Struct("<QQHBB")  # seq, ts_nsec, text_len, facility, flags and level
_INFO_SIZES = (88, 112, 96, 104, 120)  # of the usual, with CONFIG_PRINTK_EXECUTION_CTX, and of what may come
_ID_MASK = (1 << 62) - 1
_COMMITTED, _FINALIZED = 1, 2
_AVERAGE_BITS = range(3, 9)  # of text for a record: PRB_AVGBITS is 5
_NO_TEXT = 1  # FAILED_LPOS, EMPTY_LINE_LPOS: odd positions
_CHUNK = 16 << 20
_OVERLAP = 256
# What any arm64 kernel says first. Until its buffer is full, its data begins right before these words.
_FIRST_WORDS = b"Booting Linux on physical CPU 0x0"


@shown()
@dataclass(frozen=True)
class LogRecord:
    """One record: its number, its time in nanoseconds, its level (0 to 7) and its text, of one line or several."""

    seq: int
    ns: int
    level: int
    text: str

    @property
    def lines(self) -> list[str]:
        """As a console shows it."""
        stamp = f"[{self.ns // 1_000_000_000:5d}.{self.ns // 1000 % 1_000_000:06d}] "
        return [stamp + line for line in self.text.split("\n")]


class _Ring(NamedTuple):
    """Addresses are physical but for the base, which is what the pointer in the structure says (virt)."""

    entries: int
    descs: int
    infos: int
    head_id: int
    tail_id: int
    size: int
    data: int


def kernel_log(ram: Ram, image: PhysRange, translate: Translate) -> list[LogRecord]:
    """The records of the kernel whose image, with its data and bss, lies there (physical); oldest first.

    [] where there is no ring, or none that makes sense: memory may hold anything. Where there are two, of the buffer
    that a kernel begins with and of a larger one, it is the one that was written to last.
    """
    found: list[LogRecord] = []
    for ring in _rings(ram, image, translate):
        records = _records(ram, ring)
        if records and (not found or records[-1].seq > found[-1].seq):
            found = records
    return found


def _rings(ram: Ram, image: PhysRange, translate: Translate) -> Iterator[_Ring]:
    firsts: list[int] | None = None
    for start, data in _pieces(ram, image):
        for match in _RING.finditer(data):
            if (start + match.start()) % 8:
                continue
            count_bits, descs, infos, head_id, tail_id = _HEAD.unpack_from(match[1])
            size_bits, text, _, _ = _DATA.unpack_from(match[1], 24 + len(match[2]))
            if size_bits - count_bits not in _AVERAGE_BITS:
                continue
            if firsts is None:
                firsts = list(_first_words(ram, image))
            for moved in (translate, *(_by_first(text, first) for first in firsts)):
                places = [phys for one in (descs, infos, text) if (phys := moved(one)) is not None]
                if len(places) == 3:
                    own_descs, own_infos, own_text = places
                    yield _Ring(
                        1 << count_bits, own_descs, own_infos, head_id, tail_id, 1 << size_bits, own_text
                    )


def _by_first(text: int, first: int) -> Translate:
    """Where things of an image are whose buffer (virt) begins at first (physical): all of it is moved by the same."""
    return lambda virt: virt - text + first


def _first_words(ram: Ram, image: PhysRange) -> Iterator[int]:
    """Where a buffer may begin: 8 bytes of id before what a kernel says first."""
    for start, data in _pieces(ram, image):
        at = data.find(_FIRST_WORDS)
        while at >= 0:
            if (start + at) % 8 == 0:
                yield start + at - 8
            at = data.find(_FIRST_WORDS, at + 1)


def _pieces(ram: Ram, image: PhysRange) -> Iterator[tuple[int, bytes]]:
    """What was ever touched of a range, in pieces that overlap."""
    for area in ram.data_ranges(image):
        for start in range(area.start, area.end, _CHUNK):
            yield start, ram.read(start, min(_CHUNK + _OVERLAP, area.end - start))


def _records(ram: Ram, ring: _Ring) -> list[LogRecord]:
    """What a ring holds; [] where it is none."""
    number = (ring.head_id - ring.tail_id & _ID_MASK) + 1
    if number > ring.entries:
        return []
    try:
        ids = [ring.tail_id + one & _ID_MASK for one in range(number)]
        descs = {one: _desc(ram, ring, one) for one in ids}
        held = [one for one in ids if descs[one][0]]
        size = next((size for size in _INFO_SIZES if _in_sequence(ram, ring, held, size)), None)
        if size is None:
            return []
        return [_record(ram, ring, one, descs[one][1], size) for one in held]
    except BusError:
        return []


def _desc(ram: Ram, ring: _Ring, record: int) -> tuple[bool, int]:
    """Whether a descriptor has the record of this id, and where its text begins."""
    state, begin, _ = _DESC.unpack(ram.read(ring.descs + record % ring.entries * _DESC.size, _DESC.size))
    return state & _ID_MASK == record and state >> 62 in (_COMMITTED, _FINALIZED), begin


def _info(ram: Ram, ring: _Ring, record: int, size: int) -> tuple[int, int, int, int, int]:
    seq, ns, length, facility, flags = _INFO.unpack(
        ram.read(ring.infos + record % ring.entries * size, _INFO.size)
    )
    return seq, ns, length, facility, flags


def _in_sequence(ram: Ram, ring: _Ring, held: list[int], size: int) -> bool:
    """Whether records are numbered as their ids are, were an entry of infos so large."""
    seqs = [_info(ram, ring, one, size)[0] for one in held]
    return bool(held) and all(
        seq - seqs[0] == one - held[0] & _ID_MASK for seq, one in zip(seqs, held, strict=True)
    )


def _record(ram: Ram, ring: _Ring, record: int, begin: int, size: int) -> LogRecord:
    seq, ns, length, _, flags = _info(ram, ring, record, size)
    text = b""
    if not begin & _NO_TEXT and length:
        # A block that would pass the end of the buffer has its id there, and begins with it once more at the start.
        for at in (begin % ring.size, 0):
            if at + 8 + length <= ring.size and ram.read_u64(ring.data + at) & _ID_MASK == record:
                text = ram.read(ring.data + at + 8, length)
                break
    return LogRecord(seq, ns, flags >> 5, text.decode(errors="replace"))
