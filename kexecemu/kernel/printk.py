"""printk(): the log in guest memory, where drgn, crash and makedumpfile look for it, and the console."""

from __future__ import annotations

import struct

from kexecemu.kernel.vmlinux import GuestKernel
from kexecemu.machine.pl011 import Pl011

__all__ = ["Printk"]

_DESC_FINALIZED = 2
_DESC_STATE_SHIFT = 62
_LOGLEVEL_INFO = 6


def _align_up(value: int, align: int) -> int:
    return -(-value // align) * align


class Printk:
    """Appends finalized records to struct printk_ringbuffer in guest RAM (kernel/printk/printk_ringbuffer.c, 5.10+).

    Nothing of the log is kept on the host; head and tail are read back from guest memory each time. When descriptors
    or text run out the oldest records are dropped, as in the kernel.
    """

    def __init__(self, guest: GuestKernel, uart: Pl011) -> None:
        self._guest = guest
        self._uart = uart
        layout = guest.vmlinux
        self._ring = guest.phys("printk_rb_static")
        self._desc_ring = self._ring + layout.offsetof("printk_ringbuffer", "desc_ring")
        self._text_ring = self._ring + layout.offsetof("printk_ringbuffer", "text_data_ring")

    def _u64(self, phys: int) -> int:
        return self._guest.ram.read_u64(phys)

    def log(self, text: str, ns: int, level: int = _LOGLEVEL_INFO) -> None:
        """Store and print one line; ns is its time stamp in nanoseconds of virtual time."""
        self._store(text.encode(), ns, level)
        stamp = f"[{ns // 1_000_000_000:5d}.{ns // 1000 % 1_000_000:06d}] "
        # A serial console gets a carriage return before each line feed (uart_console_write()).
        self._uart.transmit((stamp + text + "\r\n").encode())

    def _store(self, text: bytes, ns: int, level: int) -> None:
        guest, layout, ram = self._guest, self._guest.vmlinux, self._guest.ram
        desc_off = {
            name: layout.offsetof("prb_desc_ring", name) for name in ("count_bits", "head_id", "tail_id")
        }
        data_off = {
            name: layout.offsetof("prb_data_ring", name) for name in ("size_bits", "head_lpos", "tail_lpos")
        }
        count = 1 << (self._u64(self._desc_ring + desc_off["count_bits"]) & 0xFFFFFFFF)
        size = 1 << (self._u64(self._text_ring + data_off["size_bits"]) & 0xFFFFFFFF)
        number = self._next_record(desc_off["head_id"])
        head = self._u64(self._text_ring + data_off["head_lpos"])
        need = _align_up(8 + len(text), 8)
        # A block never wraps: it starts anew at the beginning of the buffer, and the pad belongs to it.
        begin = head
        position = head % size
        data_at = position
        if position + need > size:
            data_at = 0
            end = head - position + size + need
        else:
            end = head + need
        self._drop_old_text(end - size, data_off, desc_off, count, number)
        buffer = guest.phys("__log_buf")
        ram.write(buffer + data_at, struct.pack("<Q", self._id(number, count)) + text)
        index = number % count
        desc = guest.phys("_printk_rb_static_descs") + index * layout.sizeof("prb_desc")
        info = guest.phys("_printk_rb_static_infos") + index * layout.sizeof("printk_info")
        state = self._id(number, count) | _DESC_FINALIZED << _DESC_STATE_SHIFT
        ram.write(desc, struct.pack("<QQQ", state, begin, end))
        ram.write(info, struct.pack("<QQHBBI", number, ns, len(text), 0, level << 5, 0))
        ram.write_u64(self._desc_ring + desc_off["head_id"], self._id(number, count))
        if number >= count:
            ram.write_u64(self._desc_ring + desc_off["tail_id"], self._id(number - count + 1, count))
        ram.write_u64(self._text_ring + data_off["head_lpos"], end)

    def _next_record(self, head_off: int) -> int:
        """The number of the record to write: one past the ring's head, 0 while nothing was ever logged."""
        head_id = self._u64(self._desc_ring + head_off)
        first_state = self._u64(self._guest.phys("_printk_rb_static_descs"))
        return head_id + 1 if head_id or first_state >> _DESC_STATE_SHIFT else 0

    @staticmethod
    def _id(number: int, count: int) -> int:
        """The descriptor id of record `number`: ids only need to be consecutive modulo the state bits."""
        return number & ((1 << _DESC_STATE_SHIFT) - 1)

    def _drop_old_text(
        self, oldest_kept: int, data_off: dict[str, int], desc_off: dict[str, int], count: int, number: int
    ) -> None:
        """Advance the tails past records whose text is about to be overwritten."""
        layout, ram = self._guest.vmlinux, self._guest.ram
        descs = self._guest.phys("_printk_rb_static_descs")
        tail_lpos = self._u64(self._text_ring + data_off["tail_lpos"])
        tail_id = self._u64(self._desc_ring + desc_off["tail_id"])
        while tail_lpos < oldest_kept and tail_id < number:
            desc = descs + tail_id % count * layout.sizeof("prb_desc")
            tail_lpos = self._u64(desc + 16)
            tail_id += 1
        ram.write_u64(self._text_ring + data_off["tail_lpos"], tail_lpos)
        ram.write_u64(self._desc_ring + desc_off["tail_id"], tail_id)
