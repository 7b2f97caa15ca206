"""The GICv3 against QEMU's: registers in memory over qtest, system registers by a guest that QEMU runs.

Where the two are known to differ, the tests keep away; each place says why.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from machine.system_guest import OFF, Words, flat, mov, str_post
from qtest import Qtest

from kexecemu.machine.devices.gic3 import Gic3

GICD, GICR, SGI = 0x08000000, 0x080A0000, 0x080B0000
GIC = "/machine/unattached/device[%d]"
MACHINE = "virt,gic-version=3,its=off"
CPUS = 2
ACCESSES = 4000
INTERRUPTS = [0, 1, 5, 15, 16, 27, 29, 31, 32, 33, 40, 63, 64, 100, 287]
PRIORITIES = [0, 0x10, 0x40, 0x41, 0x47, 0x80, 0xA0, 0xF0, 0xFF]
SETS = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380]


def device(gic: Gic3, phys: int):
    """The device at an address, and the offset in it."""
    for each in (gic.distributor, gic.redistributors):
        if phys in each.phys:
            return each, phys - each.phys.start
    raise AssertionError(hex(phys))


class Pair:
    """Both controllers, with two CPUs, always given the same."""

    def __init__(self, qemu: Qtest) -> None:
        self.qemu = qemu
        self.gic = Gic3(CPUS, lambda cpu, level: None)
        self.log: list[str] = []

    def read(self, phys: int, size: int = 4, but: int = 0) -> int:
        """The bits of `but` are not compared."""
        ours_device, offset = device(self.gic, phys)
        theirs, ours = self.qemu.read(phys, size) & ~but, ours_device.read(offset, size) & ~but
        self.log.append(f"read {phys:#x} size {size}: {ours:#x} {theirs:#x}")
        assert ours == theirs, "\n".join(self.log[-20:])
        return ours

    def write(self, phys: int, value: int, size: int = 4) -> None:
        self.log.append(f"write {phys:#x} size {size}: {value:#x}")
        self.qemu.write(phys, value, size)
        ours, offset = device(self.gic, phys)
        ours.write(offset, size, value)

    def drive(self, intid: int, level: bool) -> None:
        self.log.append(f"drive {intid} {level}")
        # QEMU's inputs are the SPIs first, then each CPU's own.
        number = intid - 32 if intid >= 32 else 256 + intid
        self.qemu.drive(GIC % CPUS, number, level)
        self.gic.set_level(intid, level)


def open_qemu() -> Qtest:
    return Qtest("-machine", MACHINE, "-smp", str(CPUS))


def test_the_registers_read_after_reset_as_in_qemu():
    with open_qemu() as qemu:
        pair = Pair(qemu)
        # QEMU before 8.0 says 32 interrupts less than it has; and it has LPIs without an ITS.
        pair.read(GICD + 4, but=0x1F | 1 << 17)
        for offset in (0, 8, *range(0x80, 0x520, 4), *range(0x800, 0x920, 4), *range(0xC00, 0xC48, 4)):
            pair.read(GICD + offset)
        for offset in (*range(0xD00, 0xD24, 4), *range(0x6100, 0x6900, 4), *range(0xFFD0, 0x10000, 4)):
            pair.read(GICD + offset)
        pair.read(GICD + 0x6100, 8)
        for frame in (GICR, GICR + 0x20000):
            for offset in (4, 0xC, 0x10, 0x14, *range(0xFFD0, 0x10000, 4)):
                pair.read(frame + offset)
            # How LPIs are enabled, and that there are some.
            pair.read(frame, but=2)
            pair.read(frame + 8, but=1)
            pair.read(frame + 8, 8, but=1)
            for offset in (*range(0x80, 0x400, 0x80), *range(0x400, 0x420, 4), 0xC00, 0xC04, 0xD00):
                pair.read(frame + 0x10000 + offset)


def test_registers_keep_of_all_ones_what_qemu_s_keep():
    with open_qemu() as qemu:
        pair = Pair(qemu)
        # Not the security that is disabled: QEMU would let it be enabled again.
        pair.write(GICD, 0x53)
        for offset in (
            4,
            8,
            *range(0x80, 0xA4, 4),
            0x104,
            0x120,
            0x204,
            0x304,
            0x41C,
            0x420,
            0xC00,
            0xC04,
            0xC08,
        ):
            pair.write(GICD + offset, 0xFFFFFFFF)
        # QEMU keeps bit 31, though it sends no interrupt to any one of several CPUs, and the reserved ones too.
        pair.write(GICD + 0x6100, 0x0000000100000001, 8)
        pair.write(GICD + 0x6108, 0x00FFFFFF)
        pair.write(GICD + 0x610C, 0xFF)
        for offset in (0, 8, *range(0x80, 0x440, 4), *range(0xC00, 0xC48, 4), *range(0x60F0, 0x6120, 4)):
            pair.read(GICD + offset)
        for offset in (4, 8, 0xC, 0x14):
            pair.write(GICR + offset, 0xFFFFFFFF)
            pair.read(GICR + offset, but=offset == 8)
        pair.write(GICR + 0x14, 0)
        pair.read(GICR + 0x14)
        for offset in (0x80, 0x100, 0x200, 0x300, *range(0x400, 0x420, 4), 0xC00, 0xC04, 0xD00):
            pair.write(SGI + offset, 0xFFFFFFFF)
        for offset in (*SETS, *range(0x400, 0x420, 4), 0xC00, 0xC04, 0xD00):
            pair.read(SGI + offset)
            pair.read(SGI + 0x20000 + offset)


@pytest.mark.parametrize("seed", range(2))
def test_random_accesses_do_what_they_do_in_qemu(seed: int):
    rng = random.Random(seed)
    with open_qemu() as qemu:
        pair = Pair(qemu)
        pair.write(GICD, 3)
        for _ in range(ACCESSES):
            intid = rng.choice(INTERRUPTS)
            frame = GICD if intid >= 32 else SGI
            word = intid // 32 * 4
            match rng.randrange(12):
                case 0 | 1 | 2:
                    pair.drive(max(intid, 16), rng.random() < 0.5)
                case 3:
                    pair.write(frame + 0x400 + intid, rng.choice(PRIORITIES), 1)
                case 4:
                    pair.write(frame + 0x400 + intid // 4 * 4, rng.getrandbits(32))
                case 5 | 6:
                    pair.write(frame + rng.choice(SETS) + word, rng.getrandbits(32))
                case 7:
                    pair.write(frame + 0xC00 + intid // 16 * 4, rng.getrandbits(32))
                case 8:
                    if intid >= 32:
                        pair.write(GICD + 0x6000 + intid * 8, rng.randrange(3), 8)
                case 9:
                    pair.read(frame + 0x400 + intid, 1)
                    pair.read(frame + 0xC00 + intid // 16 * 4)
                    pair.read(GICD + 0x6000 + max(intid, 32) * 8, 8)
                case _:
                    pair.read(frame + rng.choice(SETS) + word)


# -- system registers -------------------------------------------------------------------------------------------------

CODE, RESULTS, UART = 0x40110000, 0x40200000, 0x09000000
_ICC = {
    "PMR": (4, 6, 0), "IAR0": (12, 8, 0), "EOIR0": (12, 8, 1), "HPPIR0": (12, 8, 2), "BPR0": (12, 8, 3),
    "AP0R0": (12, 8, 4), "AP1R0": (12, 9, 0), "DIR": (12, 11, 1), "RPR": (12, 11, 3), "SGI1R": (12, 11, 5),
    "SGI0R": (12, 11, 7), "IAR1": (12, 12, 0), "EOIR1": (12, 12, 1), "HPPIR1": (12, 12, 2), "BPR1": (12, 12, 3),
    "CTLR": (12, 12, 4), "SRE": (12, 12, 5), "IGRPEN0": (12, 12, 6), "IGRPEN1": (12, 12, 7),
}  # fmt: skip
ICC = {name: crn << 7 | crm << 3 | op2 for name, (crn, crm, op2) in _ICC.items()}
MSR, MRS, ISR_EL1 = 0xD5180000, 0xD5380000, 0xD538C100
SHOWN = ("RPR", "HPPIR1", "HPPIR0", "AP1R0", "AP0R0", "CTLR", "PMR", "BPR1", "BPR0", "IGRPEN1", "SRE")


class Twin:
    """Our controller, with one CPU, and the guest that does the same to QEMU's and keeps what it reads."""

    def __init__(self) -> None:
        self.gic = Gic3(1, lambda cpu, level: None)
        self.icc = self.gic.cpu_interface(0)
        self.code: list[Words] = [mov(28, RESULTS)]
        self.ours: list[int] = []
        self.steps: list[str] = []
        self.signals = 0

    def _note(self, step: str, value: int) -> None:
        self.steps.append(step)
        self.ours.append(value)
        # The same with the level of the IRQ signal.
        self.code += [str_post(1, 28), ISR_EL1 | 1, str_post(1, 28)]
        self.ours.append(self.gic.interfaces[0].output << 7)
        self.signals += self.gic.interfaces[0].output

    def read(self, name: str) -> int:
        value = self.icc.read_sysreg(ICC[name])
        assert value is not None, name
        self.code.append(MRS | ICC[name] << 5 | 1)
        self._note(f"read {name}", value)
        return value

    def write(self, name: str, value: int) -> None:
        assert self.icc.write_sysreg(ICC[name], value), name
        self.code += [mov(1, value), MSR | ICC[name] << 5 | 1, 0xD5033FDF, mov(1, 0)]
        self._note(f"write {name} {value:#x}", 0)

    def store(self, phys: int, value: int, size: int = 4) -> None:
        ours, offset = device(self.gic, phys)
        ours.write(offset, size, value)
        store = {1: 0x39000000, 4: 0xB9000000}[size]
        self.code += [mov(1, value), mov(2, phys), store | 2 << 5 | 1, 0xD5033F9F, mov(1, 0)]
        self._note(f"store {phys:#x} {value:#x}", 0)


def run_in_qemu(code: list[Words], results: int, folder: Path) -> list[int]:
    """Run it at EL1 and fetch the results through the UART."""
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        pytest.skip("qemu-system-aarch64 is not installed")
    # ldrb w1, [x3], #1; str w1, [x2]; sub x4, x4, #1; cbnz x4
    loop = [0x38401461, 0xB9000041, 0xD1000484, 0xB5FFFFA4]
    words = flat(*code, mov(2, UART), mov(3, RESULTS), mov(4, results * 8), loop, OFF)
    program, output = folder / "program", folder / "output"
    program.write_bytes(struct.pack(f"<{len(words)}I", *words))
    assert CODE + 4 * len(words) < RESULTS
    command = [
        qemu,
        "-machine",
        MACHINE,
        "-cpu",
        "cortex-a57",
        "-m",
        "64M",
        "-nodefaults",
        "-display",
        "none",
    ]
    command += ["-device", f"loader,file={program},addr={CODE:#x},force-raw=on"]
    command += ["-device", f"loader,addr={CODE:#x},cpu-num=0", "-serial", f"file:{output}"]
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
    raw = output.read_bytes()
    assert len(raw) == results * 8
    return list(struct.unpack(f"<{results}Q", raw))


def random_step(twin: Twin, rng: random.Random, taken: list[tuple[int, int]]) -> None:
    """What a driver does, and some things that it should not."""
    intid = rng.choice(INTERRUPTS)
    frame = GICD if intid >= 32 else SGI
    word = intid // 32 * 4
    match rng.randrange(20):
        case 0 | 1 | 2:
            twin.store(frame + 0x200 + word, 1 << intid % 32)
        case 3 | 4 | 5:
            group = int(rng.random() < 0.7)
            value = twin.read(f"IAR{group}")
            if value < 1020:
                taken.append((group, value))
        case 6 | 7 if taken:
            group, value = taken.pop()
            twin.write(f"EOIR{group}", value)
        case 8:
            twin.write(f"EOIR{rng.randrange(2)}", rng.choice([intid, 1023, 5000]))
        case 9:
            twin.store(frame + 0x400 + intid, rng.choice(PRIORITIES), 1)
        case 10:
            twin.store(frame + rng.choice([0x100, 0x100, 0x180]) + word, rng.getrandbits(32))
        case 11:
            twin.store(frame + rng.choice([0x280, 0x300, 0x380]) + word, 1 << intid % 32)
        case 12:
            twin.store(frame + 0x80 + word, rng.getrandbits(32))
        case 13:
            to = rng.choice([1, 1, 2, 1 << 40, 1 << 16 | 1, 1 << 32 | 1, 1 << 44 | 1, 1 << 48 | 1])
            twin.write(rng.choice(["SGI1R", "SGI1R", "SGI0R"]), to | rng.randrange(16) << 24)
        case 14:
            twin.write("PMR", rng.choice([0xFF, 0xF0, 0x80, 0x40, 0x4F]))
        case 15:
            twin.write(rng.choice(["BPR0", "BPR1"]), rng.randrange(8))
        case 16:
            twin.write("CTLR", rng.randrange(4))
        case 17:
            twin.write("DIR", intid)
        case 18:
            match rng.randrange(6):
                case 0:
                    twin.store(GICD, rng.choice([1, 2, 3, 3]))
                case 1:
                    twin.write(rng.choice(["IGRPEN0", "IGRPEN1"]), int(rng.random() < 0.8))
                case 2:
                    twin.write(rng.choice(["AP0R0", "AP1R0"]), rng.choice([0, 0, 1 << 20]))
                case 3:
                    twin.write("SRE", 0)
        case _:
            twin.read(rng.choice(SHOWN))


@pytest.mark.parametrize("seed", range(6))
def test_system_registers_do_what_they_do_in_qemu(seed: int, tmp_path: Path):
    rng = random.Random(seed)
    twin = Twin()
    for name in SHOWN:
        twin.read(name)
    for name, value in (("SRE", 7), ("PMR", 0xF0), ("IGRPEN0", 1), ("IGRPEN1", 1)):
        twin.write(name, value)
    twin.store(GICD, 3)
    # Group 1 for the most part, and all enabled.
    for frame, offset in ((SGI, 0), (GICD, 4), (GICD, 8), (GICD, 0xC), (GICD, 0x20)):
        twin.store(frame + 0x80 + offset, 0xFFFFFFFF)
        twin.store(frame + 0x100 + offset, 0xFFFFFFFF)
    taken: list[tuple[int, int]] = []
    for _ in range(2000):
        random_step(twin, rng, taken)
    theirs = run_in_qemu(twin.code, len(twin.ours), tmp_path)
    # FIQ, which is wired to nothing here.
    theirs = [value & ~(1 << 6) if n % 2 else value for n, value in enumerate(theirs)]
    for n, (one, other) in enumerate(zip(twin.ours, theirs, strict=True)):
        what = "signal" if n % 2 else "value"
        assert one == other, f"{what}: ours {one:#x}, QEMU's {other:#x}, at\n" + "\n".join(
            f"{step}: {twin.ours[2 * at]:#x} {theirs[2 * at]:#x}, signal {twin.ours[2 * at + 1]:#x}"
            for at, step in list(enumerate(twin.steps))[max(0, n // 2 - 15) : n // 2 + 1]
        )
    assert twin.signals > 100, "hardly anything happened"
