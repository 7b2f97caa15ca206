"""A stray write that a CPU of a running Linux executes: a store through the kernel's linear map, wherever it stands.

The CPU is stopped at a boundary in kernel mode. It is sent through two instructions that Linux has itself, a store and
a return, with the address and the value in x0 and x1, and goes on where it was; Linux does not notice. Where the page
tables forbid the store, the exception enters Linux's own vectors, and an oops is what comes of it.
"""

from __future__ import annotations

import struct

from kexecemu.errors import InputError, MachineError
from kexecemu.formats.elfcore import PT_LOAD
from kexecemu.machine.exceptions import GuestFault
from kexecemu.machine.system_cpu import SystemCpu
from kexecemu.scenario.first_linux_records import KexecSaid, iomem

__all__ = ["GuestStore"]

_RET = 0xD65F03C0
_STORES = {1: 0x39000001, 2: 0x79000001, 4: 0xB9000001, 8: 0xF9000001}
"""strb w1, [x0]; strh w1, [x0]; str w1, [x0]; str x1, [x0]: by width in bytes."""


class GuestStore:
    """Stores by one CPU of a machine that has loaded a crash kernel.

    said has the virtual addresses of the linear map and of the kernel's text, from the core's headers; resources is
    /proc/iomem. That they are right is checked before each store, by the tables that the CPU walks.
    """

    def __init__(self, cpu: SystemCpu, said: KexecSaid, resources: str) -> None:
        self.cpu = cpu
        self._loads = [header for header in said.headers if header.type == PT_LOAD]
        self._code = next((area for _, area, name in iomem(resources) if name == "Kernel code"), None)

    def store(self, phys: int, data: bytes, width: int) -> GuestFault | None:
        """Store data at a physical address, width bytes at a time; the exception that ended it, or None.

        Raises InputError when the CPU is not in kernel mode or the kernel has no such instructions.
        """
        step = width if phys % width == 0 and len(data) % width == 0 else 1
        for at in range(0, len(data), step):
            virt = self._linear_virt(phys + at)
            fault = self._store_once(virt, int.from_bytes(data[at : at + step], "little"), step)
            if fault is not None:
                return fault
        return None

    def _store_once(self, virt: int, value: int, width: int) -> GuestFault | None:
        cpu = self.cpu
        if cpu.pstate >> 2 & 3 != 1:
            raise InputError('the CPU is not in kernel mode, where it could store astray: use by = "dma"')
        where = self._instructions(width)
        saved = {number: cpu.x(number) for number in (0, 1, 30)}
        back, pstate = cpu.pc, cpu.pstate
        cpu.set_x(0, virt)
        cpu.set_x(1, value)
        cpu.set_x(30, back)
        cpu.pc = where
        when = cpu.now
        cpu.advance(when + 1)
        if cpu.pc != back:
            # The machine has entered Linux's vectors, as a CPU does, and stands at a boundary in there.
            if cpu.sysreg("ELR_EL1") != where or cpu.pc >> 11 != cpu.sysreg("VBAR_EL1") >> 11:
                raise MachineError(f"a store did not come back to {back:#x}: the CPU is at {cpu.pc:#x}")
            return GuestFault(
                cpu.index, when, "sync", cpu.sysreg("ESR_EL1"), cpu.sysreg("FAR_EL1"), where, 1, pstate
            )
        for number, old in saved.items():
            cpu.set_x(number, old)
        return None

    def _linear_virt(self, phys: int) -> int:
        """__phys_to_virt(), by the core's last header: all but the kernel's own are of the linear map."""
        load = self._loads[-1]
        virt = load.virt + phys - load.phys & (1 << 64) - 1
        # The page tables may have no entry for a page of the crash region, but they have the region's neighbours.
        for other in self._loads[1:]:
            there = load.virt + other.phys - load.phys & (1 << 64) - 1
            if self.cpu.translate(there) != other.phys:
                raise InputError(
                    'the linear map is not where kexec-tools says: a CPU cannot store, use by = "dma"'
                )
        return virt

    def _instructions(self, width: int) -> int:
        """The virtual address of a store of that width and a return behind it, in the kernel's text."""
        text = self._loads[0]
        if self._code is None:
            raise InputError("/proc/iomem names no kernel code")
        pair = struct.pack("<II", _STORES[width], _RET)
        code = self.cpu.ram.read(self._code.start, self._code.size)
        at = code.find(pair)
        while at % 4 and at >= 0:
            at = code.find(pair, at + 1)
        if at < 0:
            raise InputError(f"the kernel has no store of {width} bytes that returns: choose another width")
        phys = self._code.start + at
        virt = text.virt + phys - text.phys & (1 << 64) - 1
        if self.cpu.code_phys(virt) != phys:
            raise MachineError(f"the kernel's text is not at {virt:#x}")
        return virt
