"""Counts the instructions that one engine executes and stops it exactly; natively where possible.

Unicorn's own count= puts a hook on every instruction, and its timeout= and asynchronous stops can run the
last load or store twice. A hook at the start of each translated block does neither: it adds the block's
length, and when the run must end it asks for the stop before the block has begun. blockcount.c is that hook
compiled ahead for both host architectures; where it cannot be loaded (or KEXECEMU_NO_NATIVE=1 is set)
PythonHooks do the same, slower by a factor of about fifty.
"""

import ctypes
from collections.abc import Collection
from typing import Any

from unicorn.arm64_const import UC_ARM64_INS_MRS
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_INSN, UC_HOOK_INTR
from unicorn.unicorn_py3.unicorn import Uc, uclib

from kexecemu.errors import MachineError
from kexecemu.machine.cpu.blockcount import FILTER_BITS, NO_DEADLINE, BlockCount, BlockStop, load_library
from kexecemu.machine.cpu.python_hooks import PythonHooks
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["BlockCounter", "function_address"]

ANYWHERE = (0, (1 << 64) - 1)


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
        self._stop_array: ctypes.Array[ctypes.c_uint64] | None = None
        self.library = library = load_library()
        self.native = library is not None
        self.python: PythonHooks | None = None
        """The hooks where they are not compiled."""
        if library is None:
            self.python = PythonHooks(uc, self.state)
        else:
            self.block_hook = self.hook(UC_HOOK_BLOCK, library.blockcount_block)
            self.hook(UC_HOOK_INTR, library.blockcount_interrupt)
            self.hook(UC_HOOK_INSN, library.blockcount_mrs, UC_ARM64_INS_MRS)

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
            if self.python is not None:
                self.python.stops = wanted
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
        self.state.why = BlockStop.NOTHING

    @property
    def why(self) -> BlockStop:
        """What ended the last stretch."""
        return BlockStop(self.state.why)

    def uncount_from(self, pc_virt: int) -> None:
        """Take back the instructions from pc_virt on to the end of the last block: they have not retired."""
        into = pc_virt - self.state.block
        if 0 <= into < self.state.block_size:
            self.state.total -= (self.state.block_size - into) // 4
            # The block is settled now; a second exception before the next block must not take it back again.
            self.state.block_size = into
