"""One Unicorn engine set up as an AArch64 CPU at EL1, and the facts about Unicorn 2.1.4 that this needs.

Everything here was measured; tests/machine/test_engine.py holds a test for each fact, so that an upgrade of
Unicorn that changes one is noticed there and not in a scenario.

What the emulated CPU does not do, so that no result may rest on it: caches (everything is coherent, whatever the
attributes); alignment faults on Device memory, which all memory is while the MMU is off; faults of SP alignment and of
trapped floating point; an external abort on a table walk (a table outside RAM reads as zeros: a translation fault);
CNTKCTL_EL1's refusal of the counters to EL0; timer interrupts; debug exceptions other than BRK. LSE atomics, PAC and
PAN do not exist: the CPU is a Cortex-A57.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unicorn import arm64_const as uc64
from unicorn import unicorn_const as const
from unicorn.unicorn_py3.arch.arm64 import UcAArch64, UcRegCP64
from unicorn.unicorn_py3.unicorn import Uc, UcContext, uclib

from kexecemu.errors import MachineError
from kexecemu.interrupt import runs_guest
from kexecemu.machine.cpu.counter import BlockCounter
from kexecemu.machine.cpu.sysregs import SYSREGS
from kexecemu.machine.memory.mmio import MmioDevice
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["CpuEngine", "Syndrome"]

# NS and HCE (else HVC is undefined) and RW. Without RW here and in HCR_EL2, Unicorn walks EL1's tables as
# AArch32.
SCR_EL3 = 1 | 1 << 8 | 1 << 10
HCR_EL2 = 1 << 31
TCR_EPD0, TCR_EPD1 = 1 << 7, 1 << 23
SCTLR_M = 1

PHYS_END = 1 << 64
_TRANSLATIONS = 256 << 20  # bytes for translated code: several times what a Linux that boots needs
_BESIDES = 64 << 20  # and for what else the engine takes
_RWX = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC  # as it maps them

_emu_start = uclib.uc_emu_start
_WHERE = (ctypes.c_int * 2)(uc64.UC_ARM64_REG_PC, uc64.UC_ARM64_REG_PSTATE)


@shown()
class Syndrome(NamedTuple):
    """What the CPU noted about the last exception."""

    esr: int
    far: int


class _ExceptionState(ctypes.Structure):
    """CPUARMState.exception inside a saved context."""

    _fields_ = (
        ("syndrome", ctypes.c_uint32),
        ("fsr", ctypes.c_uint32),
        ("vaddress", ctypes.c_uint64),
        ("target_el", ctypes.c_uint32),
    )


def open_engine() -> UcAArch64:
    """A bare engine of the kind that all CPUs are. Raises MachineError where there is no room for it."""
    try:
        mmap.mmap(-1, _TRANSLATIONS + _BESIDES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, _RWX).close()
    except (OSError, ValueError) as error:
        needed = (_TRANSLATIONS + _BESIDES) >> 20
        raise MachineError(f"the host has no {needed} MiB of address space for an engine: {error}") from error
    uc = UcAArch64(const.UC_ARCH_ARM64, const.UC_MODE_ARM, cpu=uc64.UC_CPU_ARM64_A57)
    # Of itself it asks for a GiB of address space. Where it gets none it ends the process, which is why we ask before.
    uc.ctl_set_tcg_buffer_size(_TRANSLATIONS)
    # With no exit address at all, nothing is looked up once a run has ended. With one, Unicorn fetches from
    # it when a run ends, and where that does not translate, the exception overwrites the syndrome that we are
    # after.
    uc.ctl_exits_enabled(True)
    return uc


def _context_address(context: UcContext) -> int:
    address = ctypes.cast(context.context, ctypes.c_void_p).value
    assert address is not None
    return address


def _nothing() -> None:
    """Nobody wants to hear of it."""


@functools.cache
def syndrome_offset() -> int:
    """Where a saved context keeps the last syndrome; found by running a BRK whose syndrome is known."""
    uc = open_engine()
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, (0xD4200000 | 0x5A5A << 5).to_bytes(4, "little"))
    uc.hook_add(const.UC_HOOK_INTR, lambda uc, number, _: uc.emu_stop())
    uc.emu_start(0, 0)
    context = uc.context_save()
    raw = ctypes.string_at(_context_address(context), context.size)
    mark = (0xF2005A5A).to_bytes(4, "little")
    if raw.count(mark) != 1:
        raise MachineError(
            f"the engine keeps an exception's syndrome in {raw.count(mark)} places, expected one"
        )
    return raw.index(mark)


@shown("counter", "aborting")
class CpuEngine:
    """A Unicorn engine with the board's RAM and devices mapped and its block counter hooked."""

    def __init__(self, ram: Ram, devices: Sequence[MmioDevice]) -> None:
        self.uc = open_engine()
        self._handle = self.uc._uch
        self._value = ctypes.c_uint64()
        self._where = (ctypes.c_uint64 * 2)()
        at = ctypes.addressof(self._where)
        self._where_pointers = (ctypes.c_void_p * 2)(at, at + 8)
        self._sysregs: dict[str, UcRegCP64] = {}
        self._ram = ram  # keeps the mapping alive as long as the engine may touch it
        for bank in ram.mapped:
            self.uc.mem_map_ptr(bank.phys.start, bank.phys.size, const.UC_PROT_ALL, bank.host_address)
        for device in devices:
            self._map_device(device)
        self.counter = BlockCounter(self.uc)
        # A memory hook over RAM would put every store on the engine's slow path, so these lie around it.
        unmapped = (
            const.UC_HOOK_MEM_READ_UNMAPPED
            | const.UC_HOOK_MEM_WRITE_UNMAPPED
            | const.UC_HOOK_MEM_FETCH_UNMAPPED
        )
        for gap in subtract([PhysRange(0, PHYS_END)], ram.banks):
            self.uc.hook_add(unmapped, self._on_unmapped, begin=gap.start, end=gap.last)
        self.unmapped_phys = 0
        """The physical address of the last access to nothing."""
        self.between_blocks = False
        """Set where code is translated that stops between blocks only, see Internals."""
        self.on_access: Callable[[], object] = _nothing
        """Called behind each load and store of a device's register."""
        self.on_abort: Callable[[], object] | None = None
        """Called when the rest of a block is aborted, see _abort()."""
        self.aborting = False
        self.write_sysreg("SCR_EL3", SCR_EL3)
        self.write_sysreg("HCR_EL2", HCR_EL2)
        self._pristine = self.uc.context_save()
        self._scratch = self.uc.context_save()
        self._at_abort = self.uc.context_save()
        self._exception = _ExceptionState.from_address(_context_address(self._scratch) + syndrome_offset())

    def close(self) -> None:
        """Let go of the engine's memory now; it must not be used afterwards."""
        # The callbacks that the binding keeps refer back to the engine: without this it would stay until the
        # garbage collector comes by.
        self.uc._callbacks.clear()
        self.uc._mmio_callbacks.clear()

    def _map_device(self, device: MmioDevice) -> None:
        # The callbacks must not stop the engine: the store would run again. They only touch the device.
        def load(uc: Uc, offset: int, size: int, _: object) -> int:
            value = device.read(offset, size)
            self.on_access()
            return value

        def store(uc: Uc, offset: int, size: int, value: int, _: object) -> None:
            device.write(offset, size, value)
            self.on_access()

        self.uc.mmio_map(device.phys.start, device.phys.size, load, None, store, None)

    def _on_unmapped(self, uc: Uc, access: int, phys: int, size: int, value: int, _: object) -> bool:
        if not self.aborting:
            self.unmapped_phys = phys
        if access == const.UC_MEM_WRITE_UNMAPPED and self.between_blocks and not self.aborting:
            self._abort()
        return False

    def _abort(self) -> None:
        """A store to nothing, in code that looks for a stop in none but its first place: the engine goes on behind it.

        What is left of the block must leave no trace. Registers are put back when the run has ended, and for memory
        there is no translation any more: the next access of any kind ends the block.
        """
        self.aborting = True
        self.uc.context_update(self._at_abort)
        self.write_sysreg("TCR_EL1", self.read_sysreg("TCR_EL1") | TCR_EPD0 | TCR_EPD1)
        self.write_sysreg("SCTLR_EL1", self.read_sysreg("SCTLR_EL1") | SCTLR_M)
        self.flush_tlb()
        if self.on_abort is not None:
            self.on_abort()

    def reset(self) -> None:
        """Put all registers back to their reset values and forget all translations."""
        self.uc.context_restore(self._pristine)
        self.flush_tlb()
        self.flush_code()

    def save(self) -> UcContext:
        """All registers, for restore()."""
        return self.uc.context_save()

    def restore(self, context: UcContext) -> None:
        """Put all registers back; cached address translations are dropped, translated code is not."""
        self.uc.context_restore(context)
        self.flush_tlb()

    def where(self) -> tuple[int, int]:
        """PC and PSTATE, in one call: what is asked for after each of many short runs."""
        uclib.uc_reg_read_batch(self._handle, _WHERE, self._where_pointers, 2)
        return self._where[0], self._where[1] & 0xFFFFFFFF

    def _interrupt(self, error: BaseException) -> None:
        """Ctrl-C, or another signal, while Python code runs that the engine has called."""
        self.uc._hook_exception = error  # type: ignore[assignment]
        self.uc.emu_stop()

    @runs_guest(_interrupt)
    def run(self, count: int = 0) -> int:
        """Run from PC until something ends it (counter, exception, WFI, error); the Unicorn error number, or 0.

        count, if not 0, is the engine's own limit of instructions: exact, and slow (a hook on every instruction).
        Whatever a device's Python code raised is raised here.
        """
        # The binding's own emu_start() costs more than a short run.
        error = _emu_start(self._handle, self.get(uc64.UC_ARM64_REG_PC), 0, 0, count)
        if self.aborting:
            self.restore(self._at_abort)
            self.aborting = False
        raised = self.uc._hook_exception
        if raised is not None:
            self.uc._hook_exception = None
            raise raised
        return int(error)

    def syndrome(self) -> Syndrome:
        """The last exception's ESR and FAR as the CPU would have set them; valid right after run()."""
        self.uc.context_update(self._scratch)
        return Syndrome(self._exception.syndrome, self._exception.vaddress)

    @property
    def exception_context(self) -> tuple[int, int]:
        """Host addresses for a native hook: a context to save into, and where its exception state lies in that."""
        return _context_address(self._scratch), ctypes.addressof(self._exception)

    def flush_code(self) -> None:
        """Drop translated code: needed after anybody but this engine's own guest may have written code."""
        self.uc.ctl_flush_tb()

    def drop_code(self, virt: int, size: int) -> None:
        """Drop the code translated from [virt, virt + size), as it is mapped now; nothing if it is not."""
        self.uc.ctl_remove_cache(virt, virt + size)

    def drop_code_phys(self, pages_phys: Sequence[int], size: int) -> None:
        """Drop the code translated from so many bytes at each of these physical addresses, wherever it is mapped."""
        if not pages_phys:
            return
        # The engine takes virtual addresses, which it translates as a fetch: without the MMU they are physical.
        sctlr = self.read_sysreg("SCTLR_EL1")
        self.write_sysreg("SCTLR_EL1", sctlr & ~SCTLR_M)
        for phys in pages_phys:
            self.uc.ctl_remove_cache(phys, phys + size)
        self.write_sysreg("SCTLR_EL1", sctlr)
        self.flush_tlb()

    def flush_tlb(self) -> None:
        """Drop all cached address translations, as TLBI VMALLE1 does."""
        self.uc.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE)

    # The binding's own register access looks for the value's type on every call, which costs more than all the
    # rest of delivering an exception.

    def get(self, register: int) -> int:
        """A 64-bit register by its UC_ARM64_REG_ number."""
        if uclib.uc_reg_read(self._handle, register, ctypes.byref(self._value)):
            raise MachineError(f"the engine has no register number {register}")
        return self._value.value

    def put(self, register: int, value: int) -> None:
        """Set a 64-bit register by its UC_ARM64_REG_ number."""
        self._value.value = value
        if uclib.uc_reg_write(self._handle, register, ctypes.byref(self._value)):
            raise MachineError(f"the engine has no register number {register}")

    def _sysreg(self, name: str) -> UcRegCP64:
        found = self._sysregs.get(name)
        if found is None:
            if name not in SYSREGS:
                raise MachineError(f"no system register {name!r} is known")
            op0, op1, crn, crm, op2 = SYSREGS[name]
            found = self._sysregs[name] = UcRegCP64(crn, crm, op0, op1, op2, 0)
        return found

    def read_sysreg(self, name: str) -> int:
        """A system register by its architectural name."""
        register = self._sysreg(name)
        if uclib.uc_reg_read(self._handle, uc64.UC_ARM64_REG_CP_REG, ctypes.byref(register)):
            raise MachineError(f"the engine cannot read {name}")
        return int(register.val)

    def write_sysreg(self, name: str, value: int) -> None:
        """Set a system register by its architectural name. Also makes the engine look at PSTATE anew."""
        register = self._sysreg(name)
        register.val = value
        if uclib.uc_reg_write(self._handle, uc64.UC_ARM64_REG_CP_REG, ctypes.byref(register)):
            raise MachineError(f"the engine cannot write {name}")
