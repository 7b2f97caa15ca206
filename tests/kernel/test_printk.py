"""The printk ring in guest memory, read as prb_read() and dump tools read it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import small

from kexecemu.kernel.model import KernelModel

FINALIZED = 2
WRAP = 1 << 64
IDS = 1 << 62


def records(kernel: KernelModel) -> list[tuple[int, int, str]]:
    """(seq, nanoseconds, text) of all records from tail_id to head_id, by the names in the guest's layout."""
    guest, layout = kernel.guest, kernel.guest.vmlinux

    def u64(symbol: str, *members: tuple[str, str]) -> int:
        return guest.read(symbol, sum(layout.offsetof(*member) for member in members))

    ring, data = ("printk_ringbuffer", "desc_ring"), ("printk_ringbuffer", "text_data_ring")
    count = 1 << (u64("printk_rb_static", ring, ("prb_desc_ring", "count_bits")) & 0xFFFFFFFF)
    size = 1 << (u64("printk_rb_static", data, ("prb_data_ring", "size_bits")) & 0xFFFFFFFF)
    descs, infos = (
        guest.space.virt_to_phys(u64("printk_rb_static", ring, ("prb_desc_ring", name)))
        for name in ("descs", "infos")
    )
    text_phys = guest.space.virt_to_phys(u64("printk_rb_static", data, ("prb_data_ring", "data")))
    tail, head = (u64("printk_rb_static", ring, ("prb_desc_ring", name)) for name in ("tail_id", "head_id"))
    found = []
    for step in range((head - tail) % IDS + 1):
        record = (tail + step) % IDS
        state, begin, following = struct.unpack("<3Q", guest.ram.read(descs + record % count * 24, 24))
        if state != record | FINALIZED << 62:
            continue
        seq, ns, length = struct.unpack("<QQH", guest.ram.read(infos + record % count * 88, 18))
        if begin == following == 1:
            found.append((seq, ns, ""))
            continue
        # get_data(): a block in one lap, or one whose text is at the start of the next.
        if begin // size == following // size and begin < following:
            at, room = begin % size, following - begin
        else:
            assert (begin + size) % WRAP // size == following // size
            at, room = 0, following % size
        identity = struct.unpack("<Q", guest.ram.read(text_phys + at, 8))[0]
        assert identity == record and length <= room - 8
        found.append((seq, ns, guest.ram.read(text_phys + at + 8, length).decode()))
    return found


def console_lines(kernel: KernelModel) -> list[str]:
    lines = kernel.board.uart.text.replace("\r", "").splitlines()
    return [line.split("] ", 1)[1] for line in lines if line.startswith("[")]


def test_the_boot_s_messages_are_all_in_the_ring_numbered_from_0() -> None:
    kernel = small()
    got = records(kernel)
    assert [text for _, _, text in got] == console_lines(kernel)
    assert [seq for seq, _, _ in got] == list(range(len(got)))
    assert [ns for _, ns, _ in got] == sorted(ns for _, ns, _ in got)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 56, 120, 248, 500])
def test_a_full_ring_keeps_the_newest_messages_whole_and_in_order(length: int) -> None:
    """Lengths that fill the text buffer to the last byte are among them: such a block goes to the start."""
    kernel = small()
    before = len(console_lines(kernel))
    lines = [f"{number:04}".ljust(length, "x")[:length] for number in range(700)]
    for line in lines:
        kernel.log(line)
    got = records(kernel)
    assert [text for _, _, text in got] == lines[-len(got) :]
    assert [seq for seq, _, _ in got] == list(range(before + 700 - len(got), before + 700))
    # As many as there are descriptors, or as the text buffer of 16 KiB has room for, but for the wrap's waste.
    block = 8 + -(-length // 8) * 8
    assert len(got) >= min(128, (1 << 14) // block - 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=200), st.integers(0, 9))
def test_whatever_is_logged_the_ring_is_consistent_and_ends_with_the_newest(
    lengths: list[int], salt: int
) -> None:
    kernel = _shared()
    texts = [chr(ord("a") + (number + salt) % 26) * length for number, length in enumerate(lengths)]
    for text in texts:
        kernel.log(text)
    got = records(kernel)
    numbers = [seq for seq, _, _ in got]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    kept = min(len(got), len(texts))
    assert kept > 0 and [text for _, _, text in got][-kept:] == texts[-kept:]


_KERNELS: list[KernelModel] = []


def _shared() -> KernelModel:
    if not _KERNELS:
        _KERNELS.append(small())
    return _KERNELS[0]


def test_a_message_too_long_for_the_ring_is_counted_as_failed_and_still_printed() -> None:
    kernel = small()
    kernel.log("x" * 100_000)
    kernel.log("after")
    assert [text for _, _, text in records(kernel)][-2:] == ["", "after"]
    assert (
        kernel.guest.read("printk_rb_static", kernel.guest.vmlinux.offsetof("printk_ringbuffer", "fail")) == 1
    )
    assert "x" * 100_000 in kernel.board.uart.text


@pytest.mark.parametrize("garbage", [b"\xff" * 88, b"\xef\xbe\xad\xde" * 22, bytes(88)])
@pytest.mark.parametrize("symbol", ["printk_rb_static", "_printk_rb_static_descs", "__log_buf"])
def test_a_ring_that_was_stamped_on_loses_messages_but_not_the_console(symbol: str, garbage: bytes) -> None:
    kernel = small()
    kernel.ram.write(kernel.guest.phys(symbol), garbage)
    for number in range(300):
        kernel.log(f"line {number}")
    assert console_lines(kernel)[-1] == "line 299"


def test_time_stamps_on_the_console_are_in_seconds_and_microseconds() -> None:
    kernel = small()
    kernel.printk.log("late", 12_345_678_900)
    assert kernel.board.uart.text.replace("\r", "").endswith("[   12.345678] late\n")
