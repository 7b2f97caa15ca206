"""Run the capture kernel stub in a plain Unicorn, and notice every access that it should not make."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc, UcError
from unicorn import arm64_const as arm64
from unicorn.unicorn_const import (
    UC_ERR_READ_UNMAPPED,
    UC_HOOK_BLOCK,
    UC_HOOK_CODE,
    UC_HOOK_INTR,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_READ_UNMAPPED,
    UC_HOOK_MEM_WRITE,
)

TOP = Path(__file__).resolve().parents[3]
GUESTS = TOP / "fixtures" / "guests"
RAM, RAM_SIZE = 0x40000000, 0x30000000
UART = 0x09000000
KERNEL = 0x6A000000
DTB = 0x6FE00000
EXCEPTION_HVC, EXCEPTION_DATA_ABORT = 11, 4
EXTERNAL_ABORT, ADDRESS_SIZE_FAULT = 0x96000010, 0x96000000  # ESR_EL1 of a data abort at EL1
SYSTEM_OFF = 0x84000008
NOT_RUN, ENTERED, VIOLATED, NO_DUMP, DONE, TRAPPED = range(6)
X0_UNALIGNED, X0_NO_DTB, X1_X3, MMU_ON, DAIF, BAD_EL, MISPLACED = (1 << bit for bit in range(7))
IMAGE = (GUESTS / "capture-Image").read_bytes()
DATA = TOP / "tests" / "data" / "capture"


def real(name: str) -> bytes:
    """One of the files a real kernel left."""
    return gzip.decompress((DATA / name).read_bytes())


REAL_DTB = real("capture-6.1.192.dtb.gz")


def symbols_of(elf: Path) -> dict[str, int]:
    """Offsets from the start of the image."""
    symtab = ELFFile.load_from_path(str(elf)).get_section_by_name(".symtab")
    return {symbol.name: symbol["st_value"] for symbol in symtab.iter_symbols()}


SYMBOLS = symbols_of(GUESTS / "capture.elf")


@dataclass(frozen=True)
class Record:
    """struct capture_record, read back."""

    magic: bytes
    state: int
    violations: int
    x: tuple[int, ...]
    current_el: int
    daif: int
    sctlr: int
    dtb_phys: int
    elfcorehdr: tuple[int, int]
    initrd: tuple[int, int]
    usable: tuple[int, ...]
    notes: int
    loads: int
    vmcore_bytes: int

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """From the 160 bytes at offset 0x40 of the image."""
        f = struct.unpack("<8sII16QIIQ", data)
        return cls(*f[:3], f[3:7], *f[7:11], (f[11], f[12]), (f[13], f[14]), f[15:19], *f[19:])


@dataclass
class Run:
    """How a run ended: 'off' (PSCI SYSTEM_OFF), 'stopped' (in capture_stop) or 'runaway'."""

    end: str
    record: Record
    console: str
    wild: list[tuple[int, int]] = field(default_factory=list)
    unaligned: list[tuple[int, int]] = field(default_factory=list)
    aborts: int = 0

    @property
    def lines(self) -> list[str]:
        return self.console.split("\r\n")


def run(
    *,
    dtb: bytes = REAL_DTB,
    memory: dict[int, bytes] | None = None,
    x0: int = DTB,
    x1_x3: tuple[int, int, int] = (0, 0, 0),
    kernel: int = KERNEL,
    image: bytes = IMAGE,
    symbols: dict[str, int] = SYMBOLS,
    prepare: Callable[[Uc], None] | None = None,
    limit: int = 20_000_000,
) -> Run:
    """Enter the stub as the boot protocol wants it, with deviations as told, and run it to its end."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(RAM, RAM_SIZE)
    uc.mem_write(kernel, b"\xa5" * 0x10000)
    uc.mem_write(kernel, image)
    uc.mem_write(DTB, dtb)
    for phys, data in (memory or {}).items():
        uc.mem_write(phys, data)

    output = bytearray()

    def uart_write(_uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
        assert size == 4
        if offset == 0:  # DR; elsewhere only when the device tree has the UART's address wrong
            output.append(value)

    uc.mmio_map(UART, 0x1000, lambda *_: 0, None, uart_write, None)

    result = Run("runaway", Record.parse(bytes(160)), "")
    budget = [limit]
    fault = [0]
    pending: list[int] = []  # the syndrome of an exception to deliver

    def on_access(uc: Uc, _access: int, address: int, size: int, _value: int, _data: object) -> None:
        if uc.reg_read(arm64.UC_ARM64_REG_PC) == kernel + symbols["probe_load"]:
            return  # the one load that may go anywhere
        if address % size:
            result.unaligned.append((address, size))
        in_ram = RAM <= address < RAM + RAM_SIZE
        if not in_ram and not UART <= address < UART + 0x1000:
            result.wild.append((address, size))

    def on_write(_uc: Uc, _access: int, address: int, size: int, _value: int, _data: object) -> None:
        if address % size:
            result.unaligned.append((address, size))
        if not kernel <= address < kernel + 0x10000 and not UART <= address < UART + 0x1000:
            result.wild.append((address, size))

    def on_block(uc: Uc, _address: int, size: int, _data: object) -> None:
        budget[0] -= size // 4
        if budget[0] < 0:
            uc.emu_stop()

    def on_exception(uc: Uc, number: int, _data: object) -> None:
        if number == EXCEPTION_DATA_ABORT:  # an address wider than the physical address space
            pending.append(ADDRESS_SIZE_FAULT)
            uc.emu_stop()
            return
        assert number == EXCEPTION_HVC, number
        assert uc.reg_read(arm64.UC_ARM64_REG_X0) & 0xFFFFFFFF == SYSTEM_OFF
        result.end = "off"
        uc.emu_stop()

    def on_stop(uc: Uc, *_: object) -> None:
        result.end = "stopped"
        uc.emu_stop()

    def on_unmapped(_uc: Uc, _access: int, address: int, _size: int, _value: int, _data: object) -> bool:
        fault[0] = address
        return False

    uc.hook_add(UC_HOOK_MEM_READ, on_access)
    uc.hook_add(UC_HOOK_MEM_WRITE, on_write)
    uc.hook_add(UC_HOOK_BLOCK, on_block)
    uc.hook_add(UC_HOOK_INTR, on_exception)
    uc.hook_add(UC_HOOK_MEM_READ_UNMAPPED, on_unmapped)
    stop = kernel + symbols["capture_stop"]
    uc.hook_add(UC_HOOK_CODE, on_stop, begin=stop, end=stop)

    for index in range(31):
        uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), 0xBAD0000 + index)
    uc.reg_write(arm64.UC_ARM64_REG_X0, x0)
    for index, value in enumerate(x1_x3, start=1):
        uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), value)
    uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)  # EL1h, DAIF masked
    # SCR_EL3.{NS,RW,HCE} and HCR_EL2.RW, without which EL1 is not AArch64 for the engine.
    uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (1, 1, 3, 6, 0, 0x501))
    uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (1, 1, 3, 4, 0, 1 << 31))
    if prepare:
        prepare(uc)

    pc = kernel
    while True:
        try:
            uc.emu_start(pc, 0)
        except UcError as error:
            assert error.errno == UC_ERR_READ_UNMAPPED
            pending.append(EXTERNAL_ABORT)
        if not pending:
            break
        # Unicorn delivers no exceptions: do what the CPU does.
        result.aborts += 1
        uc.reg_write(arm64.UC_ARM64_REG_ESR_EL1, pending.pop())
        uc.reg_write(arm64.UC_ARM64_REG_FAR_EL1, fault[0])
        uc.reg_write(arm64.UC_ARM64_REG_ELR_EL1, uc.reg_read(arm64.UC_ARM64_REG_PC))
        uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (4, 0, 3, 0, 0, 0x3C5))  # SPSR_EL1
        pc = uc.reg_read(arm64.UC_ARM64_REG_VBAR_EL1) + 0x200

    result.record = Record.parse(bytes(uc.mem_read(kernel + 0x40, 160)))
    result.console = output.decode("ascii")
    return result
