"""The hooks of blockcount.c in Python, where the compiled ones cannot be loaded: alike, and some fifty times slower.

Nothing is used here but what Unicorn's interface shows, so these are also what is left where the engine is another one.
Keep them in step with blockcount.c. What is told apart there for speed only (code that has never run need not be
dropped, an exception need not come back to Python) is not told apart here.
"""

import ctypes
from collections.abc import Callable

from unicorn import arm64_const as uc64
from unicorn import unicorn_const as const
from unicorn.unicorn_py3.arch.arm64 import CpReg
from unicorn.unicorn_py3.unicorn import Uc

from kexecemu.machine.cpu import blockcount
from kexecemu.machine.cpu.blockcount import BlockCount, BlockStop
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.work import EXCEPTION, MAINTENANCE, charge

__all__ = ["PythonHooks"]

_PAGE = 0x1000
_PREFETCH = 3  # QEMU's EXCP_PREFETCH_ABORT


class PythonHooks:
    """The hooks of one engine; state is what the compiled ones would work on."""

    def __init__(self, uc: Uc, state: BlockCount) -> None:
        self._uc = uc
        self._state = state
        self.stops: frozenset[int] = frozenset()
        """Virtual addresses at which a block must not start."""
        self._timer: Callable[[int, int, int, int], int] | None = None
        self._hooks: list[int] = []
        self._hook(self._on_block)

    def _hook(self, on_block: Callable[[Uc, int, int, object], None]) -> None:
        self._hooks = [
            self._uc.hook_add(const.UC_HOOK_BLOCK, on_block),
            self._uc.hook_add(const.UC_HOOK_INTR, self._on_interrupt),
            self._uc.hook_add(const.UC_HOOK_INSN, self._on_mrs, aux1=uc64.UC_ARM64_INS_MRS),
        ]

    def unhook(self) -> None:
        """Take away what counts, for somebody who counts in another way from now on."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._hooks.clear()

    def serve_system(self, timer: Callable[[int, int, int, int], int]) -> None:
        """Serve an operating system from now on: timer(crm, op2, write, value) is the CPU's timers' registers."""
        self.unhook()
        self._timer = timer
        self._hook(self._on_system_block)
        self._uc.hook_add(const.UC_HOOK_INSN, self._on_msr, aux1=uc64.UC_ARM64_INS_MSR)
        self._uc.hook_add(const.UC_HOOK_INSN, self._on_sys, aux1=uc64.UC_ARM64_INS_SYS)

    def _stop(self, why: BlockStop) -> None:
        if not self._state.why:
            self._state.why = why
        self._uc.emu_stop()

    def _start_block(self, virt: int, size: int) -> None:
        state = self._state
        state.first = 0
        state.block = virt
        state.block_size = size
        state.total += size // 4

    def _on_block(self, uc: Uc, virt: int, size: int, _: object) -> None:
        state = self._state
        first, state.first = state.first, 0
        if not 0 <= virt - state.within < state.within_size:
            self._stop(BlockStop.LEFT)
        elif not first and virt in self.stops:
            self._stop(BlockStop.STOP)
        elif state.total >= state.deadline:
            self._stop(BlockStop.DEADLINE)
        elif virt & 3:
            self._stop(BlockStop.MISALIGNED)
        else:
            self._start_block(virt, size)

    def _on_system_block(self, uc: Uc, virt: int, size: int, _: object) -> None:
        state = self._state
        if state.total >= state.deadline:
            self._stop(BlockStop.DEADLINE)
        elif state.irq and not state.first and not uc.reg_read(uc64.UC_ARM64_REG_PSTATE) & Pstate.I:
            self._stop(BlockStop.IRQ)
        elif virt & 3:
            self._stop(BlockStop.MISALIGNED)
        elif state.stale:
            self._stop(BlockStop.STALE)
        else:
            self._start_block(virt, size)

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        self._state.interrupt = number
        misaligned = self._timer is not None and number == _PREFETCH and uc.reg_read(uc64.UC_ARM64_REG_PC) & 3
        self._stop(BlockStop.MISALIGNED if misaligned else BlockStop.INTERRUPT)

    def _on_mrs(self, uc: Uc, register: int, named: CpReg, _: object) -> int:
        state = self._state
        key = (named.op0, named.op1, named.crn, named.crm)
        if key == (3, 3, 14, 0) and named.op2 in (1, 2):
            value = state.ticks(uc.reg_read(uc64.UC_ARM64_REG_PC))
        elif _is_timer(named):
            # Without a system there are no timers; the engine's own would read the host's clock.
            value = self._timer(named.crm, named.op2, 0, 0) if self._timer is not None else 0
        elif key == (3, 0, 0, 4) and not named.op2 and state.id_aa64pfr0:
            value = state.id_aa64pfr0
        else:
            return 0
        if register != uc64.UC_ARM64_REG_XZR:
            uc.reg_write(register, value)
        return 1

    def _on_msr(self, uc: Uc, register: int, named: CpReg, _: object) -> int:
        if self._timer is not None and _is_timer(named):
            self._timer(named.crm, named.op2, 1, named.val)
        return 0

    def _on_sys(self, uc: Uc, register: int, named: CpReg, _: object) -> int:
        if named.crn == 7 and named.crm in (1, 5):
            self._invalidate(named)
        elif named.crn == 8:
            if named.crm == 3:
                self._state.maintenance |= blockcount.TLB
            charge(self._state, EXCEPTION)
        return 0

    def _invalidate(self, named: CpReg) -> None:
        state = self._state
        state.maintenance |= blockcount.CODE
        charge(state, MAINTENANCE)
        if named.op1 != 3:
            state.stale |= blockcount.STALE_ALL
            return
        self._note(state.stale_lines, "nr_stale", named.val // blockcount.LINE_SIZE * blockcount.LINE_SIZE)
        page = named.val // _PAGE * _PAGE
        if state.user_ran and named.val >> 63 and page != state.settled_page:
            state.settled_page = page
            self._note(state.stale_pages, "nr_stale_pages", page)

    def _note(self, places: ctypes.Array[ctypes.c_uint64], count: str, virt: int) -> None:
        """Add to a list of what is stale, which is everything once the list is full."""
        state = self._state
        noted = getattr(state, count)
        if noted < blockcount.STALE_LINES:
            places[noted] = virt
            setattr(state, count, noted + 1)
            state.stale |= blockcount.STALE_SOME
        else:
            state.stale |= blockcount.STALE_ALL


def _is_timer(named: CpReg) -> bool:
    return (named.op0, named.op1, named.crn) == (3, 3, 14) and named.crm in (2, 3) and named.op2 <= 2
