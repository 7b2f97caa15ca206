"""A stray write that a CPU of a running Linux executes: a store through the kernel's linear map, wherever it stands.

The CPU is stopped at a boundary in kernel mode. It is sent through two instructions that Linux has itself, a store and
a return, with the address and the value in x0 and x1, and goes on where it was; Linux does not notice. Where the page
tables forbid the store, the exception enters Linux's own vectors, and an oops is what comes of it.
"""

import struct

from kexecemu.errors import InputError, MachineError
from kexecemu.formats.elf import PT_LOAD
from kexecemu.linux.first_records import KexecSaid, iomem
from kexecemu.machine.cpu.exceptions import GuestException, Pstate
from kexecemu.machine.cpu.registers import BRANCH_TO_SELF
from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["GuestKernelMap", "hang", "store"]

_RET = 0xD65F03C0
_STORES = {1: 0x39000001, 2: 0x79000001, 4: 0xB9000001, 8: 0xF9000001}
"""strb w1, [x0]; strh w1, [x0]; str w1, [x0]; str x1, [x0]: by width in bytes."""

_PARK_LOOP = (0xD503205F, 0xD503207F, 0x17FFFFFE)
"""wfe; wfi; b .-8"""

_MASK64 = (1 << 64) - 1


class GuestKernelMap:
    """Where a Linux that has loaded a crash kernel has its text and its linear map, in virtual addresses.

    said has them in the core's headers; resources is /proc/iomem. That they are right is checked at each use, by the
    tables that the CPU walks.
    """

    def __init__(self, said: KexecSaid, resources: str) -> None:
        loads = [header for header in said.headers if header.type == PT_LOAD]
        if len(loads) < 2:
            raise InputError(
                f"kexec said {len(loads)} loads of the core: the kernel's text and RAM are two at least"
            )
        self._text, *self._linear = loads
        self._code = next((area for _, area, name in iomem(resources) if name == "Kernel code"), None)

    def linear_virt(self, cpu: SystemCpu, phys: int) -> int:
        """__phys_to_virt(). InputError where the CPU's tables say otherwise of the memory around the crash region."""
        load = self._linear[-1]
        # A page of the crash region may have no entry: that is what a protection is.
        for other in self._linear:
            if cpu.translate(load.virt + other.phys - load.phys & _MASK64) != other.phys:
                raise InputError("the linear map is not where kexec-tools says: a CPU cannot store, use DMA")
        return load.virt + phys - load.phys & _MASK64

    def code_virt(self, cpu: SystemCpu, *words: int) -> int | None:
        """Where the kernel's text has these instructions; None when it does not. InputError as linear_virt()."""
        if self._code is None:
            raise InputError("/proc/iomem names no kernel code")
        wanted = struct.pack(f"<{len(words)}I", *words)
        code = cpu.ram.read(self._code.start, self._code.size)
        at = code.find(wanted)
        while at % 4 and at >= 0:
            at = code.find(wanted, at + 1)
        if at < 0:
            return None
        phys = self._code.start + at
        virt = self._text.virt + phys - self._text.phys & _MASK64
        if cpu.code_phys(virt) != phys:
            raise InputError("the kernel's text is not where kexec-tools says")
        return virt


def store(
    cpu: SystemCpu, where: GuestKernelMap, phys: int, data: bytes, width: int, *, handled: bool = True
) -> GuestException | None:
    """Store data at a physical address, width bytes at a time; the exception that ended it, or None.

    Single bytes where address or length are no multiple of the width. handled leaves the CPU at the vector that an
    exception has entered; without it nothing of a handler runs, and the CPU is where it was. Raises InputError when it
    is not in kernel mode or the kernel has no such instructions.
    """
    kept = {name: cpu.sysreg(name) for name in ("ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1")}
    step = width if phys % width == 0 and len(data) % width == 0 else 1
    for at in range(0, len(data), step):
        virt = where.linear_virt(cpu, phys + at)
        general = {number: cpu.x(number) for number in (0, 1, 30)}
        back, pstate = cpu.pc, cpu.pstate
        fault = _store_once(cpu, where, virt, int.from_bytes(data[at : at + step], "little"), step)
        if fault is None or not handled:
            for number, old in general.items():
                cpu.set_x(number, old)
        if fault is not None and not handled:
            cpu.pc, cpu.pstate = back, pstate
            for name, value in kept.items():
                cpu.set_sysreg(name, value)
        if fault is not None:
            return fault
    return None


def _store_once(
    cpu: SystemCpu, where: GuestKernelMap, virt: int, value: int, width: int
) -> GuestException | None:
    if cpu.pstate & Pstate.EL_MASK == 0:
        raise InputError("the CPU is not in kernel mode, where it could store astray: use DMA")
    code = where.code_virt(cpu, _STORES[width], _RET)
    if code is None:
        raise InputError(f"the kernel has no store of {width} bytes that returns: choose another width")
    cpu.set_elsewhere()  # one that has waited while others ran knows only the time of then
    back, pstate, when = cpu.pc, cpu.pstate, cpu.now
    for number, content in ((0, virt), (1, value), (30, back)):
        cpu.set_x(number, content)
    cpu.pc = code
    cpu.advance(when + 1)
    if cpu.pc != back:
        # The machine has entered Linux's vectors, as a CPU does, and stands at a boundary in there.
        if cpu.sysreg("ELR_EL1") != code or cpu.pc >> 11 != cpu.sysreg("VBAR_EL1") >> 11:
            raise MachineError(f"a store did not come back to {back:#x}: the CPU is at {cpu.pc:#x}")
        esr, far = cpu.sysreg("ESR_EL1"), cpu.sysreg("FAR_EL1")
        return GuestException(cpu.index, when, "sync", esr, far, code, 1, pstate)
    return None


def hang(cpu: SystemCpu, where: GuestKernelMap) -> bool:
    """Send a CPU in kernel mode into an endless loop with interrupts masked; False if it cannot be.

    Like a driver that waits for its hardware for ever: it touches no memory, and hears nobody. The loop is one of
    Linux's own, that of cpu_park_loop() where it has it: one that only waits costs the host nothing.
    """
    if cpu.pstate & Pstate.EL_MASK == 0:
        return False
    virt = where.code_virt(cpu, *_PARK_LOOP) or where.code_virt(cpu, BRANCH_TO_SELF)
    if virt is None:
        return False
    cpu.pstate |= Pstate.DAIF
    cpu.pc = virt
    return True
