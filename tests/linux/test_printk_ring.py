"""The log in a kernel's memory: of the model's, which real tools read, of rings made by hand, and of no ring."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.linux.printk_ring import LogRecord, kernel_log
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

BASE, SIZE = 0x40000000, 1 << 20
VIRT = 0xFFFF800008000000
IMAGE = PhysRange.of(BASE, SIZE)
FIRST = "Booting Linux on physical CPU 0x0000000000 [0x411fd070]"
MASK = (1 << 62) - 1


def moved(virt: int) -> int | None:
    return virt - VIRT + BASE if virt >= VIRT else None


def ring(
    texts: Sequence[str],
    *,
    count_bits: int = 7,
    bits: int = 5,
    info_size: int = 88,
    ids: int = 3,
    at: int = 0x1008,
    reserved: int | None = None,
) -> Ram:
    """Memory with a ring that these records were stored in, one after the other, as prb_reserve() does it."""
    ram, count, size = Ram([IMAGE]), 1 << count_bits, 1 << (count_bits + bits)
    descs, infos, data = 0x4000, 0x8000, 0x20000
    position, kept = -size % (1 << 64), []
    for seq, text in enumerate(texts):
        record, raw = (seq - count + 1) & MASK, text.encode()
        begin = after = 3  # EMPTY_LINE_LPOS
        if raw:
            need = -(-(8 + len(raw)) // 8) * 8
            begin, wraps = position, position // size != (position + need - 1) // size
            position = after = ((begin // size + 1) * size + need if wraps else begin + need) % (1 << 64)
            ram.write(BASE + data + begin % size, struct.pack("<Q", record))
            ram.write(BASE + data + (0 if wraps else begin % size), struct.pack("<Q", record) + raw)
        state = 0 if seq == reserved else 2
        desc = struct.pack("<QQQ", record | state << 62, begin, after)
        ram.write(BASE + descs + record % count * 24, desc)
        info = struct.pack("<QQHBBI", seq, seq * 1000000, len(raw), 0, 6 << 5 | 2, 0)
        ram.write(BASE + infos + record % count * info_size, info.ljust(info_size, b"\0"))
        kept.append(record)
    tail, head = kept[-count:][0], kept[-1]
    more = [struct.pack("<Q", head)] * (ids - 2)
    words = struct.pack("<QQQQQ", count_bits, VIRT + descs, VIRT + infos, head, tail) + b"".join(more)
    words += struct.pack("<QQQQ", count_bits + bits, VIRT + data, position, 0)
    ram.write(BASE + at, words)
    return ram


def texts_of(records: list[LogRecord]) -> list[str]:
    return [one.text for one in records]


@pytest.mark.parametrize("ids", [2, 3])
@pytest.mark.parametrize("info_size", [88, 112])
@pytest.mark.parametrize("bits", [5, 6, 7])
def test_the_last_records_are_found_whatever_the_layout(bits: int, info_size: int, ids: int) -> None:
    texts = [FIRST, *(f"line {number}" for number in range(1, 400))]
    ram = ring(texts, bits=bits, info_size=info_size, ids=ids)
    found = kernel_log(ram, IMAGE, moved)
    assert texts_of(found) == texts[-128:]
    assert [one.seq for one in found] == list(range(272, 400))
    assert (found[0].level, found[0].lines) == (6, ["[    0.272000] line 272"])


def test_before_the_mmu_is_on_the_first_words_say_where_things_are() -> None:
    texts = [FIRST, "second", "third"]
    assert texts_of(kernel_log(ring(texts), IMAGE, lambda virt: virt)) == texts
    assert texts_of(kernel_log(ring(texts), IMAGE, lambda virt: None)) == texts
    assert kernel_log(ring(["Other words", "second"]), IMAGE, lambda virt: virt) == []


def test_a_record_that_is_not_finished_is_left_out_and_one_without_text_is_empty() -> None:
    found = kernel_log(ring([FIRST, "torn", "", "last"], reserved=1), IMAGE, moved)
    assert [(one.seq, one.text) for one in found] == [(0, FIRST), (2, ""), (3, "last")]


def test_text_of_several_lines_has_a_time_in_front_of_each() -> None:
    (record,) = kernel_log(ring(["one\ntwo"]), IMAGE, moved)
    assert record.lines == ["[    0.000000] one", "[    0.000000] two"]


def test_the_ring_that_was_written_to_last_counts() -> None:
    """A kernel moves from the buffer it was built with to a larger one."""
    ram = ring([FIRST, "old"])
    other = ring([FIRST, "old", "new"])
    ram.write(BASE + 0x80000, other.read(BASE, 0x80000))
    for pointer in (8, 16, 56):
        at = BASE + 0x81008 + pointer
        ram.write_u64(at, ram.read_u64(at) + 0x80000)
    assert texts_of(kernel_log(ram, IMAGE, moved)) == [FIRST, "old", "new"]


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whatever_memory_holds_is_records_or_none(seed: int) -> None:
    """A ring with bits flipped all over: what is returned makes sense, and nothing is raised."""
    chance = random.Random(seed)
    ram = ring([FIRST, *(f"line {number}" for number in range(200))])
    places = [(0x1008, 96), (0x4000, 3072), (0x8000, 11264), (0x20000, 4096)]
    spans = [PhysRange.of(BASE + start, size) for start, size in places]
    for _ in range(chance.randrange(1, 6)):
        span = chance.choice(spans)
        at = chance.randrange(span.start, span.end)
        ram.write(at, bytes([ram.read(at, 1)[0] ^ 1 << chance.randrange(8)]))
    found = kernel_log(ram, IMAGE, moved)
    assert len(found) <= 128
    assert all(0 <= one.level <= 7 and one.ns >= 0 for one in found)


def test_random_memory_has_no_log() -> None:
    ram = Ram([IMAGE])
    ram.write(BASE, random.Random(3).randbytes(SIZE))
    assert kernel_log(ram, IMAGE, moved) == []


@pytest.mark.parametrize("era", ["6.1", "6.12"])
def test_the_log_of_the_model_is_what_its_console_says(era: str) -> None:
    """crash and drgn read the same ring; see tests/real."""
    with Board("256M") as board, Kernel.boot(board, KernelConfig(era), cmdline="crashkernel=64M") as kernel:
        found = kernel_log(board.ram, PhysRange.of(BASE, 256 << 20), board.boot_cpu.translate)
        lines = [line for one in found for line in one.lines]
        assert lines == [line.rstrip("\r") for line in kernel.board.uart.text.splitlines()]
        assert len(lines) > 5
