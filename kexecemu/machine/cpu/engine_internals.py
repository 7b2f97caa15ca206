"""Four fields of Unicorn's own structs, which its interface does not show; each found, and proved by what it does.

A machine that runs an operating system is faster with them, and runs as well without. Nothing is taken for granted but
the order of the fields in Unicorn 2.1.4 (struct uc_struct in uc_priv.h, CPUState in hw/core/cpu.h): where that is not
so, or KEXECEMU_NO_INTERNALS=1 is set, there is a warning, and the steppers do with what the interface shows.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import warnings
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from unicorn.arm64_const import UC_ARM64_REG_PC
from unicorn.unicorn_const import UC_HOOK_INTR
from unicorn.unicorn_py3.unicorn import Uc

from kexecemu.errors import MachineError
from kexecemu.machine.cpu.engine import open_engine
from kexecemu.shown import shown

__all__ = ["Internals", "Offsets", "between_blocks_of", "internals_of", "offsets"]

_Found = TypeVar("_Found")

_NOP: Final = 0xD503201F
_BRK: Final = 0xD4200000
_LOOP: Final = (*[_NOP] * 9, 0x14000000)  # B to itself
_WORD: Final = struct.Struct("<I")
_STRUCT_SIZE: Final = 4096
"""Bytes of struct uc_struct that are searched."""
_CPU_SIZE: Final = 0x9000
"""Bytes of CPUState that are searched: a cache of 4096 pointers comes before what is sought."""

# CPUState: nr_cores and nr_threads (one each), a pointer, seven bools, cflags_next_tb (-1: none), interrupt_request.
_CPU_HEAD: Final = struct.Struct("<iiQ8xiI")
_INTERRUPT_REQUEST: Final = 28
# ... cluster_index (-1: none), halted, can_do_io, exception_index, the engine's address.
_CPU_TAIL: Final = struct.Struct("<iIIi4xQ")
"""From cluster_index on, which lies at an odd multiple of 4."""


@shown()
class Offsets(NamedTuple):
    """In bytes from the engine's address; cpu is where a pointer to CPUState lies, and cluster_index is in that."""

    counter: int
    limit: int
    no_exit_request: int
    cpu: int
    cluster_index: int


def _handle(uc: Uc) -> int:
    """The host address of the engine's struct."""
    handle = uc._uch.value
    assert handle is not None
    return handle


def between_blocks_of(uc: Uc) -> ctypes.c_uint8 | None:
    """Internals.between_blocks, for who needs no more; None, after a warning, where it is not found."""
    at = _sought(_no_exit_request)
    return None if at is None else ctypes.c_uint8.from_address(_handle(uc) + at)


def internals_of(uc: Uc) -> Internals | None:
    """The fields of an engine; None, after a warning, where they are not found."""
    return None if _sought(offsets) is None else Internals(uc)


def _sought(find: Callable[[], _Found]) -> _Found | None:
    if os.environ.get("KEXECEMU_NO_INTERNALS") == "1":
        reason = "KEXECEMU_NO_INTERNALS=1 is set"
    else:
        try:
            return find()
        except MachineError as error:
            reason = str(error)
    # The same words each time: Python shows them once.
    warnings.warn(
        f"an operating system runs more slowly than it could: {reason}", RuntimeWarning, stacklevel=1
    )
    return None


class Internals:
    """The fields of one engine, as ctypes objects to read and to write.

    done, limit: how many instructions the run under way has started if it counts (count=), and at how many it stops: it
    ends before the first instruction that would make done more than limit.

    between_blocks (no_exit_request), when code is translated: that code looks for a request to stop at its start only,
    not behind every access to memory and every counted instruction. It is faster, and a stop in its midst never
    happens: not by the count, and not by uc_emu_stop() from a hook either.

    halted: not 0 behind a run that a WFI has ended.

    variant (cluster_index, 0 to 255): translations are kept apart by it. Code of both sorts can be had, and chosen.

    interrupt_request: what QEMU would have an interrupt controller set; INTERRUPT_IRQ is taken by the CPU itself at the
    first boundary at which PSTATE.I is clear.
    """

    INTERRUPT_IRQ: Final = 2

    def __init__(self, uc: Uc) -> None:
        at, where = _handle(uc), offsets()
        cpu = ctypes.c_uint64.from_address(at + where.cpu).value
        self.done = ctypes.c_uint64.from_address(at + where.counter)
        self.limit = ctypes.c_uint64.from_address(at + where.limit)
        self.between_blocks = ctypes.c_uint8.from_address(at + where.no_exit_request)
        self.variant = ctypes.c_int32.from_address(cpu + where.cluster_index)
        self.halted = ctypes.c_uint32.from_address(cpu + where.cluster_index + 4)
        self.interrupt_request = ctypes.c_uint32.from_address(cpu + _INTERRUPT_REQUEST)


@functools.cache
def offsets() -> Offsets:
    """Where the fields are; MachineError where they are not found."""
    found = Offsets(*_counters(), _no_exit_request(), *_cpu())
    _prove_variants(found)
    return found


def _cannot(what: str) -> MachineError:
    return MachineError(f"this version of the engine keeps {what} where it is not found")


def _engine(*words: int) -> Uc:
    uc = open_engine()
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, b"".join(_WORD.pack(word) for word in words))
    return uc


def _counters() -> tuple[int, int]:
    """By a run whose counts are known."""
    limit, done = 0x5A1C3, 0x3B7
    uc = _engine(*[_NOP] * (done - 1), _BRK)
    found: list[tuple[int, int]] = []

    def look(uc: Uc, number: int, _: object) -> None:
        words = struct.unpack(f"<{_STRUCT_SIZE // 8}Q", ctypes.string_at(_handle(uc), _STRUCT_SIZE))
        if words.count(limit) == words.count(done) == 1:
            found.append((words.index(done) * 8, words.index(limit) * 8))
        uc.emu_stop()

    uc.hook_add(UC_HOOK_INTR, look)
    uc.emu_start(0, 0, count=limit)
    if not found:
        raise _cannot("its instruction count")
    return found[0]


@functools.cache
def _no_exit_request() -> int:
    """The third of four bools, hook_insert, first_tb, no_exit_request and init_done, with padding before a jmp_buf."""
    raw = ctypes.string_at(_handle(_engine()), _STRUCT_SIZE)
    places = [
        at + 2
        for at in range(0, _STRUCT_SIZE - 8, 8)
        if raw[at : at + 8] in (bytes([0, 0, 0, 1, 0, 0, 0, 0]), bytes([0, 1, 0, 1, 0, 0, 0, 0]))
    ]
    if len(places) != 1:
        raise _cannot("whether code may stop in its midst")
    stops = []
    for flag in (0, 1):
        uc = _engine(*_LOOP)
        ctypes.c_uint8.from_address(_handle(uc) + places[0]).value = flag
        uc.emu_start(0, 0, count=3)
        stops.append(uc.reg_read(UC_ARM64_REG_PC))
    if stops != [12, 36]:
        raise _cannot("whether code may stop in its midst")
    return places[0]


def _cpu() -> tuple[int, int]:
    """Where the pointer to CPUState is, and where that has its cluster_index."""
    uc = _engine()
    handle = _handle(uc)
    pointers = struct.unpack(f"<{_STRUCT_SIZE // 8}Q", ctypes.string_at(handle, _STRUCT_SIZE))
    back = struct.pack("<Q", handle)
    found: dict[int, tuple[int, int]] = {}
    for index, pointer in enumerate(pointers):
        raw = _peek(pointer, _CPU_SIZE) if pointer >> 12 and not pointer >> 47 else b""
        if len(raw) < _CPU_SIZE or _CPU_HEAD.unpack_from(raw)[:2] != (1, 1):
            continue
        if _CPU_HEAD.unpack_from(raw)[3] != -1:
            continue
        at = raw.find(back)
        while at >= 0:
            start = at - _CPU_TAIL.size + 8
            cluster, halted, can_do_io, _, _ = _CPU_TAIL.unpack_from(raw, start)
            if start % 8 == 4 and (cluster, halted, can_do_io) == (-1, 0, 1):
                found.setdefault(pointer, (index * 8, start))
            at = raw.find(back, at + 1)
    if len(found) != 1:
        raise _cannot("its CPU's state")
    return next(iter(found.values()))


def _peek(address: int, size: int) -> bytes:
    """Host memory, or nothing where there is none."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        try:
            return os.pread(memory.fileno(), size, address)
        except (OSError, OverflowError):
            return b""


def _prove_variants(where: Offsets) -> None:
    """The same code in another variant is translated anew, and stops in its midst, or does not."""
    uc = _engine(*_LOOP)
    at = _handle(uc)
    flag = ctypes.c_uint8.from_address(at + where.no_exit_request)
    variant = ctypes.c_int32.from_address(
        ctypes.c_uint64.from_address(at + where.cpu).value + where.cluster_index
    )
    stops = []
    for flag.value, variant.value in ((1, 1), (0, 0), (0, 1), (1, 0)):
        uc.emu_start(0, 0, count=3)
        stops.append(uc.reg_read(UC_ARM64_REG_PC))
    if stops != [36, 12, 36, 12]:
        raise _cannot("which translations are its CPU's")
