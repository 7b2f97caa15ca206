"""The guest's stray_write(): its arguments, and a CPU that is sent into it (fixtures/minikernel/stray_write.c)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kexecemu.kernel.vmlinux import GuestKernel
from kexecemu.machine.cpu import Cpu

__all__ = ["enter_stray_write", "stray_pieces"]

_BUFFER_SIZE = 4096


def stray_pieces(
    guest: GuestKernel, virt: int, data: bytes, width: int
) -> Iterator[tuple[int, int, int, int]]:
    """The arguments of the calls of stray_write() that store data at a kernel virtual address, width bytes at a time.

    What they are to store is in the guest's buffer while each is made; behind that it holds what it held.
    """
    buffer = guest.phys("stray_buffer")
    held = guest.ram.read(buffer, _BUFFER_SIZE)
    for at in range(0, len(data), _BUFFER_SIZE):
        piece = data[at : at + _BUFFER_SIZE]
        guest.ram.write(buffer, piece)
        try:
            yield virt + at, guest.vmlinux.virt("stray_buffer"), len(piece), width
        finally:
            # Not what has just been stored there.
            if not -len(piece) < guest.space.virt_to_phys(virt + at) - buffer < _BUFFER_SIZE:
                guest.ram.write(buffer, held)


def enter_stray_write(cpu: Cpu, guest: GuestKernel, arguments: Sequence[int]) -> None:
    """Put a CPU of the kernel at stray_write()'s first instruction, from which it returns to host_return."""
    for number, value in enumerate(arguments):
        cpu.set_x(number, value)
    cpu.set_x(30, guest.vmlinux.virt("host_return"))
    cpu.pc = guest.vmlinux.virt("stray_write")
