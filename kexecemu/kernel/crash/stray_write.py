"""The guest's stray_write(): its arguments, and a CPU that is sent into it (fixtures/minikernel/stray_write.c)."""

from collections.abc import Iterator
from contextlib import contextmanager

from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.machine.cpu.cpu import Cpu

__all__ = ["StrayPiece", "in_stray_write", "stray_pieces"]

_BUFFER_SIZE = 4096
_FRAME_SIZE = 256
"""Bytes below SP that stray_write() may use: more than its frame record."""

StrayPiece = tuple[int, int, int, int]
"""stray_write()'s arguments: virtual addresses of destination and source, bytes, and the width of a store."""


def stray_pieces(guest: GuestKernel, virt: int, data: bytes, width: int) -> Iterator[StrayPiece]:
    """The calls of stray_write() that store data at a kernel virtual address, width bytes at a time.

    What they are to store is in the guest's buffer while each is made; behind that it holds what it held.
    """
    for at in range(0, len(data), _BUFFER_SIZE):
        piece = data[at : at + _BUFFER_SIZE]
        call = virt + at, guest.vmlinux.virt("stray_buffer"), len(piece), width
        buffer = guest.phys("stray_buffer")
        held = guest.ram.read(buffer, _BUFFER_SIZE)
        guest.ram.write(buffer, piece)
        try:
            yield call
        finally:
            _put_back(guest, buffer, held, call)


@contextmanager
def in_stray_write(cpu: Cpu, guest: GuestKernel, call: StrayPiece) -> Iterator[None]:
    """A CPU of the kernel at stray_write()'s first instruction, from which it returns to host_return.

    Behind it the stack is what it was, unless an exception handler stands there; the CPU's registers are its owner's
    business.
    """
    top, bottom = cpu.sp, guest.space.virt_to_phys(cpu.sp) - _FRAME_SIZE
    held = guest.ram.read(bottom, _FRAME_SIZE)
    for number, value in enumerate(call):
        cpu.set_x(number, value)
    cpu.set_x(30, guest.vmlinux.virt("host_return"))
    cpu.pc = guest.vmlinux.virt("stray_write")
    yield
    if top - cpu.sp <= _FRAME_SIZE:
        _put_back(guest, bottom, held, call)


def _put_back(guest: GuestKernel, phys: int, held: bytes, call: StrayPiece) -> None:
    """Memory is what it was, unless the very store was to go there."""
    if not -call[2] < guest.space.virt_to_phys(call[0]) - phys < len(held):
        guest.ram.write(phys, held)
