# SPDX-License-Identifier: GPL-2.0-or-later
"""The minikernel on an engine and nothing else: what the model does for it is done here in the simplest way.

Independent of kexecemu on purpose: what fails here is the guest's fault.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_HOOK_INTR, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64

GUESTS = Path(__file__).parents[2] / "fixtures" / "guests"
VMLINUX = GUESTS / "vmlinux"

KIMAGE_VADDR = 0xFFFF800008000000
PAGE_OFFSET = 0xFFFF000000000000
RAM_PHYS = 0x40000000
RAM_SIZE = 64 << 20
IMAGE_PHYS = 0x40200000
TABLES_PHYS = 0x42000000
ENTRY_PHYS = 0x43000000
DTB_PHYS = 0x43400000

X = [arm64.UC_ARM64_REG_X0 + n for n in range(29)] + [arm64.UC_ARM64_REG_X29, arm64.UC_ARM64_REG_X30]
CP_REGS = {
    # crn, crm, op0, op1, op2
    "SCR_EL3": (1, 1, 3, 6, 0),
    "HCR_EL2": (1, 1, 3, 4, 0),
    "SCTLR_EL1": (1, 0, 3, 0, 0),
    "TTBR0_EL1": (2, 0, 3, 0, 0),
    "SPSR_EL1": (4, 0, 3, 0, 0),
    "VBAR_EL1": (12, 0, 3, 0, 0),
}
DATA_ABORT, PREFETCH_ABORT, UNDEFINED, BRK, HVC = 4, 3, 1, 7, 11
PSCI_CPU_OFF, PSCI_CPU_ON = 0x84000002, 0xC4000003


class Elf:
    """Symbols and contents of a vmlinux."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            elf = ELFFile(file)
            self.symbols = {
                s.name: s["st_value"] for s in elf.get_section_by_name(".symtab").iter_symbols() if s.name
            }
            self.loads = [
                (s["p_paddr"], s["p_vaddr"], s.data(), s["p_memsz"])
                for s in elf.iter_segments()
                if s["p_type"] == "PT_LOAD"
            ]


class Ram:
    """One buffer that all engines share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, RAM_SIZE)

    def read(self, phys: int, length: int) -> bytes:
        return self.memory[phys - RAM_PHYS : phys - RAM_PHYS + length]

    def write(self, phys: int, data: bytes) -> None:
        self.memory[phys - RAM_PHYS : phys - RAM_PHYS + len(data)] = data


class Cpu:
    """One engine: the registers that it needs at reset, exceptions delivered by hand."""

    def __init__(self, guest: Guest, index: int) -> None:
        import ctypes

        self.guest = guest
        self.index = index
        self.stopped = ""
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A57)
        buffer = (ctypes.c_char * RAM_SIZE).from_buffer(guest.ram.memory)
        self.uc.mem_map_ptr(RAM_PHYS, RAM_SIZE, 7, ctypes.addressof(buffer))
        self.set_cp("SCR_EL3", 0x501)
        self.set_cp("HCR_EL2", 1 << 31)
        self.uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)
        self.uc.reg_write(arm64.UC_ARM64_REG_VBAR_EL1, 0)
        self.uc.hook_add(UC_HOOK_INTR, self._interrupt)
        for virt in range(guest.virt("__host_text_start"), guest.virt("__host_text_end"), 16):
            for address in (virt, guest.phys(virt)):
                self.uc.hook_add(UC_HOOK_CODE, self._host_function, begin=address, end=address)
        self.uc.hook_add(UC_HOOK_CODE, self._capture_entry, begin=ENTRY_PHYS, end=ENTRY_PHYS)

    def x(self, number: int) -> int:
        return int(self.uc.reg_read(X[number]))

    def cp(self, name: str) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_CP_REG, CP_REGS[name]))

    def set_cp(self, name: str, value: int) -> None:
        self.uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*CP_REGS[name], value))

    @property
    def pstate(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_PSTATE))

    @property
    def pc(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_PC))

    def run(self, pc: int) -> str:
        """Run from `pc` until WFI ("idle"), a host function that stops, CPU_OFF or the capture kernel's entry."""
        self.stopped = "idle"
        self.uc.emu_start(pc, 0xFFFF_FFFF_FFFF_FFFC)
        if self.guest.failure is not None:
            raise self.guest.failure
        return self.stopped

    def stop(self, why: str) -> None:
        self.stopped = why
        self.uc.emu_stop()

    def deliver(self, offset: int, esr: int, far: int) -> None:
        """Take an exception from EL1h to EL1h."""
        spsr = self.pstate
        self.uc.reg_write(arm64.UC_ARM64_REG_ESR_EL1, esr)
        self.uc.reg_write(arm64.UC_ARM64_REG_FAR_EL1, far)
        self.uc.reg_write(arm64.UC_ARM64_REG_ELR_EL1, self.pc)
        self.uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)
        self.set_cp("SPSR_EL1", spsr)
        self.uc.reg_write(arm64.UC_ARM64_REG_PC, self.cp("VBAR_EL1") + offset)

    def take_irq(self) -> str:
        """An interrupt arrives while the CPU is idle."""
        assert not self.pstate & 0x80, "the idle loop has interrupts masked"
        self.deliver(0x280, 0, 0)
        return self.run(self.pc)

    def _interrupt(self, uc: Uc, number: int, _data: object) -> None:
        if number == HVC:
            self.guest.psci(self)
            return
        syndrome, _fsr, virt, _el = struct.unpack_from("<IIQI", bytes(uc.context_save()), syndrome_offset())
        # A fault that has no syndrome of its own is an undefined instruction.
        self.deliver(0x200, syndrome if number in (DATA_ABORT, PREFETCH_ABORT, BRK) else 0x02000000, virt)

    def _host_function(self, _uc: Uc, address: int, _size: int, _data: object) -> None:
        virt = address if address >= KIMAGE_VADDR else address - IMAGE_PHYS + KIMAGE_VADDR
        try:
            self.guest.host_function(self, self.guest.names[virt])
        except BaseException as error:
            self.guest.failure = error
            self.stop("failed")

    def _capture_entry(self, *_: object) -> None:
        self.stop("capture")


def syndrome_offset() -> int:
    """Where a saved context of this engine has the syndrome of the last exception."""
    if not _syndrome_offset:
        uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A57)
        uc.mem_map(0x1000, 0x1000)
        uc.mem_write(0x1000, struct.pack("<I", 0xD42B4B40))  # brk #0x5a5a
        uc.hook_add(UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
        uc.emu_start(0x1000, 0x2000, count=1)
        _syndrome_offset.append(bytes(uc.context_save()).index(struct.pack("<I", 0xF2005A5A)))
    return _syndrome_offset[0]


_syndrome_offset: list[int] = []


class Guest:
    """The minikernel in RAM, and the least that the model must do for it."""

    def __init__(self, vmlinux: Path = VMLINUX, cpus: int = 1) -> None:
        self.elf = Elf(vmlinux)
        self.layout = json.loads((GUESTS / "vmlinux.layout.json").read_text())
        self.ram = Ram()
        self.cpus: dict[int, Cpu] = {}
        self.present = cpus
        self.failure: BaseException | None = None
        self.calls: list[tuple[int, str, tuple[int, ...]]] = []
        self.console = ""
        self.psci_calls: list[tuple[int, ...]] = []
        self.handlers: dict[str, Callable[[Cpu], None]] = {
            "__create_page_tables": self._create_page_tables,
            "setup_arch": self._setup_arch,
            "_printk": self._printk,
            "crash_smp_send_stop": self._crash_smp_send_stop,
        }
        self.names = {self.virt(name): name for name in self.layout["host_functions"]}
        for paddr, _vaddr, data, _memsz in self.elf.loads:
            self.ram.write(IMAGE_PHYS + paddr, data)
        self.ram.write(ENTRY_PHYS, struct.pack("<I", 0x14000000))  # b .
        self.boot_cpu = self._new_cpu(0)

    def _new_cpu(self, index: int) -> Cpu:
        self.cpus[index] = Cpu(self, index)
        return self.cpus[index]

    # Addresses and memory

    def virt(self, name: str) -> int:
        return int(self.elf.symbols[name])

    def phys(self, where: int | str) -> int:
        virt = self.virt(where) if isinstance(where, str) else where
        return virt - KIMAGE_VADDR + IMAGE_PHYS if virt >= KIMAGE_VADDR else virt - PAGE_OFFSET + RAM_PHYS

    def member(self, struct_name: str, member: str) -> int:
        return int(self.layout["structs"][struct_name]["members"][member])

    def u64(self, where: int | str) -> int:
        return int.from_bytes(self.ram.read(self.phys(where), 8), "little")

    def u32(self, where: int | str) -> int:
        return int.from_bytes(self.ram.read(self.phys(where), 4), "little")

    def set_u64(self, where: int | str, value: int) -> None:
        self.ram.write(self.phys(where), struct.pack("<Q", value & (1 << 64) - 1))

    def set_u32(self, where: int | str, value: int) -> None:
        self.ram.write(self.phys(where), struct.pack("<I", value))

    def string(self, virt: int) -> str:
        return self.ram.read(self.phys(virt), 300).split(b"\0")[0].decode()

    def per_cpu(self, name: str, cpu: int) -> int:
        return self.virt(name) + self.u64(self.virt("__per_cpu_offset") + 8 * cpu) & (1 << 64) - 1

    # Running

    def boot(self) -> str:
        uc = self.boot_cpu.uc
        uc.reg_write(X[0], DTB_PHYS)
        return self.boot_cpu.run(IMAGE_PHYS)

    def call(self, name: str, *arguments: int, task: str = "task_bash") -> str:
        """Call a C function on the boot CPU, as a task; returns what stopped it."""
        uc = self.boot_cpu.uc
        stack = self.u64(self.virt(task) + self.member("task_struct", "stack"))
        uc.reg_write(arm64.UC_ARM64_REG_SP, stack + 16384)
        uc.reg_write(arm64.UC_ARM64_REG_SP_EL0, self.virt(task))
        uc.reg_write(X[29], 0)
        uc.reg_write(X[30], self.virt("host_return"))
        for number, value in enumerate(arguments):
            uc.reg_write(X[number], value)
        return self.boot_cpu.run(self.virt(name))

    def called(self) -> list[str]:
        return [name for _cpu, name, _arguments in self.calls]

    def load_crash_image(self) -> None:
        """Make the kernel believe that a crash image is loaded."""
        image = self.virt("crash_kimage_storage")
        self.set_u64(image + self.member("kimage", "start"), ENTRY_PHYS)
        dtb_mem = self.member("kimage", "arch") + self.member("kimage_arch", "dtb_mem")
        self.set_u64(image + dtb_mem, DTB_PHYS)
        self.set_u64("kexec_crash_image", image)

    def host_function(self, cpu: Cpu, name: str) -> None:
        self.calls.append((cpu.index, name, tuple(cpu.x(n) for n in range(4))))
        if name in ("host_return", "panic_no_kexec", "make_task_dead"):
            cpu.stop(name)
        elif name in self.handlers:
            self.handlers[name](cpu)

    def psci(self, cpu: Cpu) -> None:
        function, mpidr, entry, context = (cpu.x(n) for n in range(4))
        self.psci_calls.append((function, mpidr, entry, context))
        if function == PSCI_CPU_OFF:
            cpu.stop("off")
            return
        assert function == PSCI_CPU_ON
        started = self._new_cpu(mpidr)
        started.uc.reg_write(X[0], context)
        assert started.run(entry) == "idle"
        cpu.uc.reg_write(X[0], 0)

    # What the model does in host functions

    def _create_page_tables(self, _cpu: Cpu) -> None:
        """4 KiB granule, 48 bits: the identity map and the linear map by 1 GiB, the image by 2 MiB blocks."""
        block, table = 0x701, 3
        pud_idmap, pud_linear, pud_image, pmd_image = (TABLES_PHYS + 0x1000 * n for n in range(4))
        for phys, entry in (
            (self.phys("idmap_pg_dir"), pud_idmap | table),
            (pud_idmap + 8 * (RAM_PHYS >> 30), RAM_PHYS | block),
            (self.phys("swapper_pg_dir"), pud_linear | table),
            (pud_linear, RAM_PHYS | block),
            (self.phys("swapper_pg_dir") + 8 * (KIMAGE_VADDR >> 39 & 511), pud_image | table),
            (pud_image, pmd_image | table),
            *((pmd_image + 8 * (64 + n), (IMAGE_PHYS + (n << 21)) | block) for n in range(2)),
        ):
            self.ram.write(phys, struct.pack("<Q", entry))
        self.set_u64("init_mair_el1", 0xFF)
        self.set_u64("init_tcr_el1", 16 | 16 << 16 | 2 << 30 | 5 << 32)
        self.set_u64("init_sctlr_el1", 0x30500800 | 0x1005)
        self.set_u64("init_ttbr0_phys", self.phys("idmap_pg_dir"))
        self.set_u64("init_ttbr1_phys", self.phys("swapper_pg_dir"))

    def _setup_arch(self, cpu: Cpu) -> None:
        self.set_u64(cpu.x(0), self.virt("boot_command_line"))
        self.set_u64("memstart_addr", RAM_PHYS)
        for mask in ("__cpu_present_mask", "__cpu_possible_mask"):
            self.set_u64(mask, (1 << self.present) - 1)
        for index in range(self.present):
            self.set_u64(self.virt("cpu_logical_map") + 8 * index, index)

    def _printk(self, cpu: Cpu) -> None:
        arguments = iter(cpu.x(n) for n in (1, 2, 3))
        text = ""
        rest = self.string(cpu.x(0))
        while rest:
            before, percent, rest = rest.partition("%")
            text += before
            if not percent:
                break
            if rest.startswith("lx"):
                text, rest = text + f"{next(arguments):x}", rest[2:]
            elif rest.startswith("d"):
                text, rest = text + str(next(arguments) & 0xFFFFFFFF), rest[1:]
            else:
                assert rest.startswith("s"), f"a format that the model does not know: %{rest}"
                text, rest = text + self.string(next(arguments)), rest[1:]
        self.console += text

    def _crash_smp_send_stop(self, cpu: Cpu) -> None:
        others = [other for index, other in self.cpus.items() if index != cpu.index]
        self.set_u32("waiting_for_crash_ipi", len(others))
        for other in others:
            assert other.take_irq() == "off"


@pytest.fixture
def guest() -> Guest:
    """A minikernel that has booted on one CPU."""
    guest = Guest()
    assert guest.boot() == "idle"
    return guest


@pytest.fixture
def start_guest() -> Callable[..., Guest]:
    """Guest's constructor, for tests that want another number of CPUs or look at the boot itself."""

    def start(**options: Any) -> Guest:
        return Guest(**options)

    return start
