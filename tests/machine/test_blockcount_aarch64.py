"""The aarch64 build of blockcount.c, run as guest code, does what the build for this host does."""

from __future__ import annotations

import ctypes

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import arm64_const
from unicorn.arm64_const import (
    UC_ARM64_REG_PC,
    UC_ARM64_REG_PSTATE,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_SP_EL1,
    UC_ARM64_REG_VBAR_EL1,
    UC_ARM64_REG_X3,
    UC_ARM64_REG_XZR,
)

from kexecemu.machine.cpu.blockcount import LINE_MARKS, BlockCount, BlockStop, library_path
from kexecemu.machine.cpu.stop import CpuStopKind

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
    ({"why": BlockStop.INTERRUPT}, 0x40000000, 8),
]


def fields(state: BlockCount) -> dict[str, int]:
    """Everything but the pointers, which differ by nature."""
    values = {
        name: getattr(state, name)
        for name, kind in BlockCount._fields_
        if kind is not ctypes.c_void_p and name != "filter"
    }
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
        state.stops, state.emu_stop = STOPS, RETURNS
        state.reg_write = state.reg_write or RETURNS
        guest.ram.write(STATE, bytes(state))
        guest.ram.write(STOPS, b"".join(virt.to_bytes(8, "little") for virt in STOP_ADDRESSES))
        cpu = guest.cpu
        cpu.reset(symbols[function])
        for number, value in enumerate((0, *arguments, STATE)):
            cpu.set_x(number, value)
        cpu.set_x(30, a64.CODE)
        cpu.sp = 0x40180000
        stop = cpu.run(deliver=False)
        assert stop.kind is CpuStopKind.IDLE, stop
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
    assert bool(stopped) is (host_state.why != BlockStop.NOTHING)


def test_an_interrupt_is_noted(call):
    state = call("blockcount_interrupt", fresh_state(), 11)
    assert (state.why, state.interrupt) == (BlockStop.INTERRUPT, 11)


# -- what a system adds: the functions, with the engine's side of them stubbed alike in guest code and in Python -------

RECORD = 0x40103000  # phys of what the stubs were called with
REGISTERS = 0x40104000  # phys of the values of registers, by their numbers
STUBS = 0x40106000
ARGUMENT = 0x40107000  # phys of a struct cp_reg or struct exception
MARKS = 0x40300000
TIMER_VALUE = 0x1234

VBAR = 0xFFFF800008010800
SYNDROME, FAR = 0x96000047, 0xFFFF00001234


class CpReg(ctypes.Structure):
    """struct cp_reg."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("crn", "crm", "op0", "op1", "op2")),
        ("val", ctypes.c_uint64),
    )


class ExceptionState(ctypes.Structure):
    """struct exception."""

    _fields_ = (
        ("syndrome", ctypes.c_uint32),
        ("fsr", ctypes.c_uint32),
        ("vaddress", ctypes.c_uint64),
        ("target_el", ctypes.c_uint32),
    )


class Outcome:
    """What a call did: its result, the struct, the marks set, and what it called."""

    def __init__(self, result: int, state: BlockCount, marks: bytes, record: list[int]) -> None:
        self.result = result
        self.state = state
        self.fields = fields(state)
        self.marks = {number for number, mark in enumerate(marks) if mark}
        self.record = record

    def same(self) -> tuple[object, ...]:
        return self.result, self.fields, self.marks, self.record


def registers(**values: int) -> list[int]:
    """By number: what a register holds is told by the number, but for those named."""
    words = [0x5A000000 | number for number in range(400)]
    words[UC_ARM64_REG_VBAR_EL1] = VBAR
    for name, value in values.items():
        words[getattr(arm64_const, f"UC_ARM64_REG_{name.upper()}")] = value
    return words


def on_host(function: str, before: dict[str, int], values: list[int], arguments: list[object]) -> Outcome:
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError:
        pytest.skip("no native counter for this host")
    record: list[int] = []
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64

    def read(uc, register, value):
        value[0] = values[register]
        return 0

    def write(uc, register, value):
        record.extend((register, value[0]))
        return 0

    def batch(uc, numbers, pointers, count):
        for n in range(count):
            record.extend((numbers[n] & 0xFFFFFFFF, pointers[n][0]))
        return 0

    def timer(crm, op2, write, value):
        record.extend((crm, op2, write, value))
        return TIMER_VALUE

    u64_p = ctypes.POINTER(u64)
    callbacks = {
        "emu_stop": ctypes.CFUNCTYPE(ctypes.c_int, pointer)(lambda uc: 0),
        "context_save": ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer)(lambda uc, context: 0),
        "reg_read": ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_int, u64_p)(read),
        "reg_write": ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_int, u64_p)(write),
        "reg_write_batch": ctypes.CFUNCTYPE(
            ctypes.c_int, pointer, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(u64_p), ctypes.c_int
        )(batch),
        "timer": ctypes.CFUNCTYPE(u64, u32, u32, u32, u64)(timer),
    }
    exception = ExceptionState(SYNDROME, 0, FAR, 1)
    marks = (ctypes.c_uint8 * LINE_MARKS)()
    state = fresh_state(**before)
    for name, callback in callbacks.items():
        setattr(state, name, ctypes.cast(callback, pointer).value)
    state.marks, state.exception = ctypes.addressof(marks), ctypes.addressof(exception)
    for mark in MARKED:
        marks[mark] = 1
    passed = [ctypes.byref(each) if isinstance(each, CpReg) else u64(each) for each in arguments]
    call = library[function]
    call.restype = u32 if function in RETURNING else None
    result = call(pointer(0), *passed, ctypes.byref(state))
    return Outcome(result or 0, state, bytes(marks), record)


RETURNING = ("blockcount_mrs", "blockcount_msr", "blockcount_sys")
MARKED = (0x40, 0x41)  # lines that have run


@pytest.fixture
def on_guest(call, guest, a64):
    """The same with the aarch64 build."""
    at = {}
    next_stub = STUBS

    def stub(name: str, *words: int | list[int]) -> None:
        nonlocal next_stub
        at[name] = next_stub
        next_stub = guest.words(next_stub, *words)

    # x9 in RECORD's first word is where the record goes on.
    append = [*a64.mov(10, RECORD), a64.load(9, 10)]
    keep = a64.store(9, 10)
    stub("reg_read", a64.mov(9, REGISTERS), 0xF8617924, 0xF9000044, a64.movz(0, 0), a64.RET)
    # str x1, [x9], #8; ldr x7, [x2]; str x7, [x9], #8
    stub("reg_write", append, 0xF8008521, 0xF9400047, 0xF8008527, keep, a64.movz(0, 0), a64.RET)
    # ldr w5, [x1], #4; ldr x6, [x2], #8; ldr x7, [x6]; str x5, [x9], #8; str x7, [x9], #8; sub x3, x3, #1
    loop = [0xB8404425, 0xF8408446, 0xF94000C7, 0xF8008525, 0xF8008527, a64.sub(3, 3, 1), a64.cbnz(3, -24)]
    stub("reg_write_batch", append, 0x2A0303E3, loop, keep, a64.movz(0, 0), a64.RET)
    # str x0, x1, x2, x3, each to [x9], #8, the upper halves of the first three cleared
    words = [each for n in range(3) for each in (0x2A0003E0 | n << 16 | n, 0xF8008520 | n)]
    stub("timer", append, words, 0xF8008523, keep, a64.movz(0, TIMER_VALUE), a64.RET)
    at["context_save"] = RETURNS

    def run(function: str, before: dict[str, int], values: list[int], arguments: list[object]) -> Outcome:
        state = fresh_state(**before)
        for name, phys in at.items():
            setattr(state, name, phys)
        state.marks, state.exception = MARKS, ARGUMENT
        guest.ram.write(MARKS, bytes(LINE_MARKS))
        for mark in MARKED:
            guest.ram.write(MARKS + mark, b"\1")
        guest.ram.write(REGISTERS, b"".join(value.to_bytes(8, "little") for value in values))
        guest.ram.write_u64(RECORD, RECORD + 8)
        guest.ram.write(ARGUMENT, bytes(ExceptionState(SYNDROME, 0, FAR, 1)))
        passed = []
        for each in arguments:
            if isinstance(each, CpReg):
                guest.ram.write(ARGUMENT + 64, bytes(each))
                each = ARGUMENT + 64
            passed.append(each)
        after = call(function, state, *passed)
        end = guest.ram.read_u64(RECORD)
        record = [guest.ram.read_u64(at) for at in range(RECORD + 8, end, 8)]
        result = guest.cpu.x(0) & 0xFFFFFFFF if function in RETURNING else 0
        return Outcome(result, after, guest.ram.read(MARKS, LINE_MARKS), record)

    return run


MASKED, OPEN, OPEN_AT_EL0, ON_SP_EL0 = 0x3C5, 0x345, 0x340, 0x3C4
BLOCK = 0x40000000
PAST_HALF = {"total": 100, "block": BLOCK, "block_size": 40}  # of which PC, at BLOCK + 16, has 6 yet to do
AT = {"pc": BLOCK + 16}


def named(op0: int, op1: int, crn: int, crm: int, op2: int, value: int = 0) -> CpReg:
    return CpReg(crn, crm, op0, op1, op2, value)


def system_block(before, virt, size, **values):
    return "blockcount_system_block", before, values, [virt, size]


def interrupt(before, number, **values):
    return (
        "blockcount_interrupt",
        {"system": 1, "entered": (1 << 64) - 1, **PAST_HALF, **before},
        values | AT,
        [number],
    )


KERNEL = 0xFFFF000000001000
MAINTAINED = {"user_ran": 1}
SYSTEM_CASES = [
    system_block({}, BLOCK, 64),
    system_block({}, BLOCK + 32, 64),
    system_block({}, BLOCK + 60, 512),
    system_block({}, 0xFFFF800008FFFFC0, 4),
    system_block({"total": 5, "deadline": 5}, BLOCK, 8),
    system_block({"total": 4, "deadline": 5}, BLOCK, 8),
    system_block({}, BLOCK + 2, 8),
    system_block({"irq": 1}, BLOCK, 8, pstate=OPEN),
    system_block({"irq": 1}, BLOCK, 8, pstate=MASKED),
    system_block({"irq": 1, "first": 1}, BLOCK, 8, pstate=OPEN),
    system_block({"irq": 1, "stale": 1}, BLOCK, 8, pstate=MASKED),
    system_block({"irq": 1, "stale": 1, "first": 1}, BLOCK, 8, pstate=OPEN),
    system_block({"stale": 2}, BLOCK, 8),
    *(
        interrupt({}, number, pstate=pstate)
        for number in (1, 2, 3, 4, 7, 11, 13)
        for pstate in (MASKED, OPEN, OPEN_AT_EL0, ON_SP_EL0, 0xF0400345)
    ),
    # With a GICv3 what is undefined at EL1 is Python's.
    *(
        interrupt({"id_aa64pfr0": 1 << 24}, number, pstate=pstate)
        for number in (1, 2, 4)
        for pstate in (MASKED, OPEN, OPEN_AT_EL0, ON_SP_EL0)
    ),
    *(
        ("blockcount_mrs", {**PAST_HALF, "system": 1, "id_aa64pfr0": pfr0}, AT, [register, named(*key)])
        for pfr0 in (0, 1 << 24 | 0x22)
        for register in (UC_ARM64_REG_X3, UC_ARM64_REG_XZR)
        for key in ((3, 0, 0, 4, 0), (3, 0, 0, 4, 1), (3, 0, 0, 5, 0), (3, 1, 0, 4, 0), (2, 0, 0, 4, 0))
    ),
    interrupt({"system": 0}, 2, pstate=MASKED),
    interrupt({"entered": 94}, 1, pstate=MASKED),
    interrupt({"entered": 100}, 1, pstate=MASKED),
    interrupt({"settled_page": 7}, 2, pstate=OPEN_AT_EL0),
    *(
        (f"blockcount_{function}", {**PAST_HALF, "system": system, "elsewhere": 1000}, AT, [register, named(*key)])
        for function in ("mrs", "msr")
        for system in (0, 1)
        for register in (UC_ARM64_REG_X3, UC_ARM64_REG_XZR)
        for key in (
            (3, 3, 14, 0, 0), (3, 3, 14, 0, 1), (3, 3, 14, 0, 2), (3, 3, 14, 0, 5), (3, 3, 14, 2, 0, 9),
            (3, 3, 14, 2, 1, 1), (3, 3, 14, 3, 2, 1 << 40), (3, 3, 14, 3, 3), (3, 0, 14, 1, 0),
            (3, 3, 13, 2, 0), (2, 3, 14, 3, 1), (3, 4, 14, 3, 1),
        )
        if function == "mrs" or system
    ),
    *(
        ("blockcount_sys", before, {}, [0, named(1, *key)])
        for before in (
            {}, MAINTAINED, {**MAINTAINED, "settled_page": KERNEL}, {"nr_stale": 63}, {"nr_stale": 64},
            {**MAINTAINED, "nr_stale_pages": 64}, {"stale": 1},
        )
        for key in (
            (0, 7, 1, 0), (0, 7, 5, 0), (3, 7, 5, 1, 0x1040), (3, 7, 5, 1, 0x107C), (3, 7, 5, 1, 0x1080),
            (3, 7, 10, 1, 0x1040),
            (3, 7, 5, 1, KERNEL + 0x40), (3, 7, 5, 1, KERNEL + 0x84), (0, 8, 3, 0), (0, 8, 7, 0), (0, 8, 3, 1),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("function,before,values,arguments", SYSTEM_CASES)
def test_of_a_system_too_the_two_builds_agree(on_guest, function, before, values, arguments):
    host = on_host(function, before, registers(**values), arguments)
    assert on_guest(function, before, registers(**values), arguments).same() == host.same()


def test_a_block_marks_every_line_that_it_touches(on_guest):
    outcome = on_guest("blockcount_system_block", {}, registers(), [BLOCK + 0x7C, 0x88])
    assert outcome.marks - set(MARKED) == {1, 2, 3, 4}
    assert outcome.state.total == 0x22


def test_an_exception_goes_to_the_vector_for_where_it_came_from(on_guest):
    for pstate, offset in ((MASKED, 0x200), (ON_SP_EL0, 0), (OPEN_AT_EL0, 0x400)):
        outcome = on_guest(*interrupt({}, 2, pstate=pstate)[:2], registers(pstate=pstate, **AT), [2])
        written = dict(zip(outcome.record[::2], outcome.record[1::2], strict=True))
        assert written[UC_ARM64_REG_PC] == VBAR + offset
        assert written[UC_ARM64_REG_PSTATE] == 0x3C5
        if pstate != MASKED:
            assert written[UC_ARM64_REG_SP] == 0x5A000000 | UC_ARM64_REG_SP_EL1
        assert outcome.state.total == 94, "what was yet to come of the block has not retired"
