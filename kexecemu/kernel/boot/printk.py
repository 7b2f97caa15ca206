"""printk(): the log in guest memory, where drgn, crash and makedumpfile look for it, and the console."""

import struct
from contextlib import suppress

from kexecemu.errors import BusError
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.loglevel import LogLevel
from kexecemu.machine.devices.uart import Uart
from kexecemu.shown import shown

__all__ = ["Printk"]

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
_FINALIZED, _REUSABLE = 2, 3
_LOG_NEWLINE = 2
_FAILED_LPOS = 1
_U64 = (1 << 64) - 1
_DESC = struct.Struct("<QQQ")  # state_var, text_blk_lpos.begin and .next
_INFO = struct.Struct("<QQHBBI")  # seq, ts_nsec, text_len, facility, flags and level, caller_id


@shown()
class Printk:
    """Appends finalized records to struct printk_ringbuffer in guest RAM (kernel/printk/printk_ringbuffer.c of 6.1).

    Nothing of the log is kept on the host; heads and tails are read back from guest memory each time. Ids count
    modulo 2^62 and positions in the text modulo 2^64; both begin one lap below zero, so they wrap early.
    """

    def __init__(self, guest: GuestKernel, uart: Uart) -> None:
        self._ram = guest.ram
        self._uart = uart
        layout = guest.vmlinux

        def places(base: int, struct: str, *members: str) -> list[int]:
            return [base + layout.offsetof(struct, member) for member in members]

        ring = guest.phys("printk_rb_static")
        descs, text, self._fail_at = places(ring, "printk_ringbuffer", "desc_ring", "text_data_ring", "fail")
        ids = places(descs, "prb_desc_ring", "count_bits", "head_id", "tail_id", "last_finalized_id")
        self._count_bits_at, self._head_id_at, self._tail_id_at, self._finalized_id_at = ids
        positions = places(text, "prb_data_ring", "size_bits", "head_lpos", "tail_lpos")
        self._size_bits_at, self._head_lpos_at, self._tail_lpos_at = positions
        self._descs = guest.phys("_printk_rb_static_descs")
        self._infos = guest.phys("_printk_rb_static_infos")
        self._info_size = layout.sizeof("printk_info")
        self._buffer = guest.phys("__log_buf")

    def log(self, text: str, ns: int, level: LogLevel) -> None:
        """Store and print one record, of one line or several; ns is its time stamp in nanoseconds of virtual time."""
        # A stray write may have hit the ring itself: records get lost then, but the console still works.
        with suppress(BusError):
            self._store(text.encode(), ns, level)
        stamp = f"[{ns // 1_000_000_000:5d}.{ns // 1000 % 1_000_000:06d}] "
        # A serial console gets a carriage return before each line feed (uart_console_write()).
        self._uart.transmit("".join(f"{stamp}{line}\r\n" for line in text.split("\n")).encode())

    def _size(self, bits_at: int) -> int:
        # The mask only matters for a ring that was stamped on.
        return 1 << (self._ram.read_u32(bits_at) & 0x1F)

    def _store(self, text: bytes, ns: int, level: int) -> None:
        """prb_reserve() and prb_final_commit()."""
        ram, count = self._ram, self._size(self._count_bits_at)
        record = (ram.read_u64(self._head_id_at) + 1) & _ID_MASK
        before = (record - count) & _ID_MASK  # whose descriptor this one takes over
        if before == ram.read_u64(self._tail_id_at):
            self._make_reusable(before, count)
            ram.write_u64(self._tail_id_at, (before + 1) & _ID_MASK)
        ram.write_u64(self._head_id_at, record)
        index = record % count
        info_at = self._infos + index * self._info_size
        seq = ram.read_u64(info_at)
        # 0 means "never used", but for the first entry, which was set up one lap below 0.
        seq = index if seq == 0 and index else (seq + count) & _U64
        begin, end = self._alloc_text(text, record, count)
        length = 0 if begin == _FAILED_LPOS else len(text)
        ram.write(info_at, _INFO.pack(seq, ns, length, 0, level << 5 | _LOG_NEWLINE, 0))
        self._write_desc(record, count, _FINALIZED, begin, end)
        ram.write_u64(self._finalized_id_at, record)

    def _write_desc(self, record: int, count: int, state: int, begin: int, end: int) -> None:
        at = self._descs + record % count * _DESC.size
        self._ram.write(at, _DESC.pack(record | state << _STATE_SHIFT, begin, end))

    def _make_reusable(self, record: int, count: int) -> None:
        """desc_push_tail(): the oldest record goes, and its text with it."""
        at = self._descs + record % count * _DESC.size
        state, begin, end = _DESC.unpack(self._ram.read(at, _DESC.size))
        if state != record | _FINALIZED << _STATE_SHIFT:
            return
        self._write_desc(record, count, _REUSABLE, begin, end)
        if begin == self._ram.read_u64(self._tail_lpos_at):
            self._ram.write_u64(self._tail_lpos_at, end)

    def _alloc_text(self, text: bytes, record: int, count: int) -> tuple[int, int]:
        """data_alloc(): write the text and its id; returns the block's first and next position.

        A block that would reach or pass the end of the buffer has its id there and its text at the start.
        """
        ram, size = self._ram, self._size(self._size_bits_at)
        begin = ram.read_u64(self._head_lpos_at)
        need = -(-(8 + len(text)) // 8) * 8
        wraps = begin // size != (begin + need) // size
        end = ((begin // size + 1) * size + need if wraps else begin + need) & _U64
        if need > size // 2 or not self._push_tail((end - size) & _U64, size, count):
            ram.write_u64(self._fail_at, ram.read_u64(self._fail_at) + 1)
            return _FAILED_LPOS, _FAILED_LPOS
        ram.write_u64(self._head_lpos_at, end)
        identity = struct.pack("<Q", record)
        ram.write(self._buffer + begin % size, identity)
        ram.write(self._buffer + (0 if wraps else begin % size), identity + text)
        return begin, end

    def _push_tail(self, lpos: int, size: int, count: int) -> bool:
        """data_push_tail(): let go of the oldest text up to position lpos; False when the ring is inconsistent."""
        ram = self._ram
        for _ in range(count + 1):
            tail = ram.read_u64(self._tail_lpos_at)
            if not 0 < (lpos - tail) & _U64 <= size:
                return True
            record = ram.read_u64(self._buffer + tail % size)
            at = self._descs + record % count * _DESC.size
            state, begin, end = _DESC.unpack(ram.read(at, _DESC.size))
            if state & _ID_MASK != record or begin != tail:
                return False
            self._write_desc(record, count, _REUSABLE, begin, end)
            ram.write_u64(self._tail_lpos_at, end)
        return False
