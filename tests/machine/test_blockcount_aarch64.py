"""The aarch64 build of blockcount.c, run as guest code, does what the build for this host does."""

from __future__ import annotations

import ctypes

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.machine.counter import BlockCount, Why, library_path
from kexecemu.machine.cpu import StopKind

STATE = 0x40100000  # phys of the struct
STOPS = 0x40101000
RETURNS = 0x40102000  # code that only returns: uc_emu_stop and uc_reg_write
LIBRARY = 0x40200000
STOP_ADDRESSES = [0x40000000, 0x40004000, 0xFFFF800008000000]


def fresh_state(**fields: int) -> BlockCount:
    state = BlockCount()
    state.deadline = (1 << 64) - 1
    state.within_size = (1 << 64) - 1
    state.nr_stops = len(STOP_ADDRESSES)
    for virt in STOP_ADDRESSES:
        bit = (virt >> 2) % 4096
        state.filter[bit // 64] |= 1 << bit % 64
    for name, value in fields.items():
        setattr(state, name, value)
    return state


CASES = [
    # fields set before, block, size
    ({}, 0x40000040, 64),
    ({"total": 10, "block": 1, "block_size": 2}, 0x40000040, 64),
    ({}, 0x40000000, 8),
    ({}, 0xFFFF800008000000, 8),
    ({"first": 1}, 0x40000000, 8),
    ({}, 0x40008000, 8),  # its filter bit is set, but it is no stop
    ({"nr_stops": 0}, 0x40000000, 8),
    ({"total": 5, "deadline": 5}, 0x40000040, 8),
    ({"total": 4, "deadline": 5}, 0x40000040, 8),
    ({}, 0x40000042, 8),
    ({"within": 0x40000000, "within_size": 0x40}, 0x4000003C, 4),
    ({"within": 0x40000000, "within_size": 0x40}, 0x40000040, 4),
    ({"within": 0x40000000, "within_size": 0x40}, 0x3FFFFFFC, 4),
    ({"why": Why.INTERRUPT}, 0x40000000, 8),
]


def fields(state: BlockCount) -> dict[str, int]:
    """Everything but the pointers, which differ by nature."""
    pointers = ("stops", "emu_stop", "reg_write", "marks", "filter")
    values = {name: getattr(state, name) for name, _ in BlockCount._fields_ if name not in pointers}
    return {name: list(value) if isinstance(value, ctypes.Array) else value for name, value in values.items()}


@pytest.fixture
def call(guest, a64):
    """Calls a function of the aarch64 library in the guest."""
    with open(library_path().with_name("blockcount-aarch64.so"), "rb") as file:
        elf = ELFFile(file)
        for segment in elf.iter_segments("PT_LOAD"):
            guest.ram.write(LIBRARY + segment["p_vaddr"], segment.data())
        symbols = {s.name: LIBRARY + s["st_value"] for s in elf.get_section_by_name(".dynsym").iter_symbols()}
        assert not elf.get_section_by_name(".rela.dyn"), "relocations would have to be applied"
    guest.words(RETURNS, a64.RET)
    guest.words(a64.CODE, a64.WFI)

    def call(function: str, state: BlockCount, *arguments: int) -> BlockCount:
        state.stops, state.emu_stop, state.reg_write = STOPS, RETURNS, RETURNS
        guest.ram.write(STATE, bytes(state))
        guest.ram.write(STOPS, b"".join(virt.to_bytes(8, "little") for virt in STOP_ADDRESSES))
        cpu = guest.cpu
        cpu.reset(symbols[function])
        for number, value in enumerate((0, *arguments, STATE)):
            cpu.set_x(number, value)
        cpu.set_x(30, a64.CODE)
        cpu.sp = 0x40180000
        stop = cpu.run(deliver=False)
        assert stop.kind is StopKind.IDLE, stop
        return BlockCount.from_buffer_copy(guest.ram.read(STATE, ctypes.sizeof(BlockCount)))

    return call


@pytest.mark.parametrize("before,virt,size", CASES)
def test_block_by_block_the_two_builds_agree(call, before, virt, size):
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError:
        pytest.skip("no native counter for this host")
    guest_state = call("blockcount_block", fresh_state(**before), virt, size)
    host_state = fresh_state(**before)
    stops = (ctypes.c_uint64 * len(STOP_ADDRESSES))(*STOP_ADDRESSES)
    stopped = []
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda uc: stopped.append(uc) or 0)
    host_state.stops = ctypes.addressof(stops)
    host_state.emu_stop = ctypes.cast(callback, ctypes.c_void_p).value
    library.blockcount_block(
        ctypes.c_void_p(0), ctypes.c_uint64(virt), ctypes.c_uint32(size), ctypes.byref(host_state)
    )
    assert fields(guest_state) == fields(host_state)
    assert bool(stopped) is (host_state.why != Why.NOTHING)


def test_an_interrupt_is_noted(call):
    state = call("blockcount_interrupt", fresh_state(), 11)
    assert (state.why, state.interrupt) == (Why.INTERRUPT, 11)
