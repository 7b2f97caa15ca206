"""Counts the instructions that one engine executes and stops it exactly; natively where possible.

Unicorn's own count= puts a hook on every instruction, and its timeout= and asynchronous stops can run the
last load or store twice. A hook at the start of each translated block does neither: it adds the block's
length, and when the run must end it asks for the stop before the block has begun. blockcount.c is that hook
compiled ahead for both host architectures; where it cannot be loaded (or KEXECEMU_NO_NATIVE=1 is set) the
same is done in Python, slower by a factor of about fifty.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path
from typing import Any

from unicorn.arm64_const import UC_ARM64_INS_MRS, UC_ARM64_REG_PC, UC_ARM64_REG_XZR
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_INSN, UC_HOOK_INTR
from unicorn.unicorn_py3.arch.arm64 import CpReg
from unicorn.unicorn_py3.unicorn import Uc, uclib

from kexecemu.errors import MachineError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["BlockCounter", "Why", "library_path"]

FILTER_BITS = 4096
STALE_LINES = 64
LINE_MARKS = 1 << 18
LINE_SIZE = 64
"""Of the instruction cache, in bytes: what one IC IVAU is about (CTR_EL0.IminLine of a Cortex-A57)."""
INSTRUCTIONS_PER_TICK = 2
"""Of CNTPCT_EL0 and CNTVCT_EL0; CNTFRQ_EL0 says 62.5 MHz, so a CPU does 125 million instructions a second."""
INSTRUCTIONS_PER_SECOND = 62_500_000 * INSTRUCTIONS_PER_TICK
NO_DEADLINE = (1 << 64) - 1
ANYWHERE = (0, (1 << 64) - 1)


class Why(IntEnum):
    """What ended the engine's last run; `enum why` of blockcount.c."""

    NOTHING = 0
    STOP = 1
    LEFT = 2
    DEADLINE = 3
    MISALIGNED = 4
    INTERRUPT = 5
    IRQ = 6
    STALE = 7


class BlockCount(ctypes.Structure):
    """struct blockcount of blockcount.c, field by field."""

    _fields_ = (
        ("total", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("block", ctypes.c_uint64),
        ("block_size", ctypes.c_uint64),
        ("within", ctypes.c_uint64),
        ("within_size", ctypes.c_uint64),
        ("stops", ctypes.c_void_p),
        ("nr_stops", ctypes.c_uint64),
        ("emu_stop", ctypes.c_void_p),
        ("reg_write", ctypes.c_void_p),
        ("elsewhere", ctypes.c_uint64),
        ("why", ctypes.c_uint32),
        ("interrupt", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("system", ctypes.c_uint32),
        ("irq", ctypes.c_uint32),
        ("maintenance", ctypes.c_uint32),
        ("stale", ctypes.c_uint32),
        ("nr_stale", ctypes.c_uint32),
        ("nr_stale_pages", ctypes.c_uint32),
        ("user_ran", ctypes.c_uint32),
        ("settled_page", ctypes.c_uint64),
        ("stale_lines", ctypes.c_uint64 * STALE_LINES),
        ("stale_pages", ctypes.c_uint64 * STALE_LINES),
        ("marks", ctypes.c_void_p),
        ("entered", ctypes.c_uint64),
        ("exceptions", ctypes.c_uint64),
        ("reg_read", ctypes.c_void_p),
        ("reg_write_batch", ctypes.c_void_p),
        ("context_save", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("exception", ctypes.c_void_p),
        ("timer", ctypes.c_void_p),
        ("id_aa64pfr0", ctypes.c_uint64),
        ("filter", ctypes.c_uint64 * (FILTER_BITS // 64)),
    )


def library_path() -> Path:
    """Where the native hook for this host's architecture lies, whether or not it is there."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return Path(__file__).with_name(f"blockcount-{machine}.so")


def _load() -> ctypes.CDLL | None:
    """The native hook, or None where it is switched off, missing or not for this host."""
    if os.environ.get("KEXECEMU_NO_NATIVE") == "1":
        return None
    try:
        return ctypes.CDLL(str(library_path()))
    except OSError:
        return None


def function_address(function: Any) -> int:
    """Where a function of a loaded library, or a ctypes callback, is in the host's memory."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


@shown("total")
class BlockCounter:
    """The counter of one engine. All addresses are virtual; counts are instructions."""

    def __init__(self, uc: Uc) -> None:
        self._uc = uc
        self.state = BlockCount()
        self.state.deadline = NO_DEADLINE
        self.state.within, self.state.within_size = ANYWHERE
        self.state.emu_stop = function_address(uclib.uc_emu_stop)
        self.state.reg_write = function_address(uclib.uc_reg_write)
        self.state.reg_read = function_address(uclib.uc_reg_read)
        self._stops: frozenset[int] = frozenset()
        self._hooks: list[int] = []
        self._stop_array: ctypes.Array[ctypes.c_uint64] | None = None
        library = _load()
        self.library = library
        self.native = library is not None
        if library is not None:
            self._hooks.append(self.hook(UC_HOOK_BLOCK, library.blockcount_block))
            self.hook(UC_HOOK_INTR, library.blockcount_interrupt)
            self.hook(UC_HOOK_INSN, library.blockcount_mrs, UC_ARM64_INS_MRS)
        else:
            self._hooks += [
                uc.hook_add(UC_HOOK_BLOCK, self._on_block),
                uc.hook_add(UC_HOOK_INTR, self._on_interrupt),
                uc.hook_add(UC_HOOK_INSN, self._on_mrs, aux1=UC_ARM64_INS_MRS),
            ]

    def unhook(self) -> None:
        """Take away what counts, for somebody who counts in another way from now on."""
        for hook in self._hooks:
            self.unhook_one(hook)
        self._hooks.clear()

    def hook(
        self,
        kind: int,
        function: Any,
        *aux: int,
        at: int | None = None,
        within: PhysRange | None = None,
        data: ctypes.Structure | None = None,
    ) -> int:
        """Hook a native function with the state, or `data`, as its user data; the binding would put Python in between.

        aux is the instruction of a UC_HOOK_INSN; `at` a virtual address, `within` physical ones for a hook on memory,
        neither for everywhere. data must live as long as the hook. Returns the handle.
        """
        handle = ctypes.c_size_t()
        begin, end = (1, 0) if at is None else (at, at)  # begin after end: everywhere
        if within is not None:
            begin, end = within.start, within.last
        error = uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.cast(function, ctypes.c_void_p),
            ctypes.c_void_p(ctypes.addressof(self.state if data is None else data)),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *(ctypes.c_int(each) for each in aux),
        )
        if error:
            raise MachineError(f"the engine refused a hook (Unicorn error {error})")
        return handle.value

    def unhook_one(self, handle: int) -> None:
        """Take one hook away, whether it was hook()'s or the binding's."""
        if handle in self._uc._callbacks:
            self._uc.hook_del(handle)
        elif uclib.uc_hook_del(self._uc._uch, ctypes.c_size_t(handle)):
            raise MachineError("the engine would not let go of a hook")

    @property
    def total(self) -> int:
        """Instructions in all blocks started so far; another thread may read it while the engine runs."""
        return int(self.state.total)

    def arm(self, stops: Collection[int], within: range | None) -> None:
        """Set what the next runs stop at; the first block of the next one may start at a stop address."""
        wanted = frozenset(stops)
        state = self.state
        if wanted != self._stops:
            self._stops = wanted
            ordered = sorted(wanted)
            self._stop_array = (ctypes.c_uint64 * len(ordered))(*ordered)
            state.stops = ctypes.addressof(self._stop_array)
            state.nr_stops = len(ordered)
            ctypes.memset(ctypes.addressof(state) + BlockCount.filter.offset, 0, FILTER_BITS // 8)
            for virt in ordered:
                bit = (virt >> 2) % FILTER_BITS
                state.filter[bit // 64] |= 1 << bit % 64
        state.within, state.within_size = ANYWHERE if within is None else (within.start, len(within))
        state.first = 1

    def start(self, deadline: int) -> None:
        """Begin a stretch that ends when `total` is `deadline` or more."""
        self.state.deadline = deadline
        self.state.why = Why.NOTHING

    @property
    def why(self) -> Why:
        """What ended the last stretch."""
        return Why(self.state.why)

    def uncount_from(self, pc_virt: int) -> None:
        """Take back the instructions from pc_virt on to the end of the last block: they have not retired."""
        into = pc_virt - self.state.block
        if 0 <= into < self.state.block_size:
            self.state.total -= (self.state.block_size - into) // 4
            # The block is settled now; a second exception before the next block must not take it back again.
            self.state.block_size = into

    # The same hooks in Python. Keep them in step with blockcount.c, line by line.

    def _stop(self, why: Why) -> None:
        if self.state.why == Why.NOTHING:
            self.state.why = why
        self._uc.emu_stop()

    def _on_block(self, uc: Uc, virt: int, size: int, _: object) -> None:
        state = self.state
        first, state.first = state.first, 0
        if not 0 <= virt - state.within < state.within_size:
            self._stop(Why.LEFT)
        elif not first and virt in self._stops:
            self._stop(Why.STOP)
        elif state.total >= state.deadline:
            self._stop(Why.DEADLINE)
        elif virt & 3:
            self._stop(Why.MISALIGNED)
        else:
            state.block = virt
            state.block_size = size
            state.total += size // 4

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        self.state.interrupt = number
        self._stop(Why.INTERRUPT)

    def _on_mrs(self, uc: Uc, register: int, named: CpReg, _: object) -> int:
        state = self.state
        key = (named.op0, named.op1, named.crn, named.crm)
        if key == (3, 3, 14, 0) and named.op2 in (1, 2):
            to_come = state.block + state.block_size - uc.reg_read(UC_ARM64_REG_PC)
            value = (state.elsewhere + state.total - to_come // 4) // INSTRUCTIONS_PER_TICK
        elif key == (3, 0, 0, 4) and not named.op2 and state.id_aa64pfr0:
            value = state.id_aa64pfr0
        else:
            return 0
        if register != UC_ARM64_REG_XZR:
            uc.reg_write(register, value)
        return 1
