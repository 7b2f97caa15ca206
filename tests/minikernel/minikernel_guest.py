# SPDX-License-Identifier: GPL-2.0-or-later
"""The minikernel on engines and nothing else: what the model does for it is done here in the simplest way.

Independent of kexecemu on purpose: what fails here is the guest's fault.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import struct
from collections.abc import Callable
from pathlib import Path

from elftools.elf.elffile import ELFFile
from minikernel_cpu import PSCI_CPU_OFF, PSCI_CPU_ON, Cpu
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
        self.phys, self.size = RAM_PHYS, RAM_SIZE
        self.memory = mmap.mmap(-1, RAM_SIZE)
        self._buffer = (ctypes.c_char * RAM_SIZE).from_buffer(self.memory)
        self.host_address = ctypes.addressof(self._buffer)

    def read(self, phys: int, length: int) -> bytes:
        return self.memory[phys - RAM_PHYS : phys - RAM_PHYS + length]

    def write(self, phys: int, data: bytes) -> None:
        self.memory[phys - RAM_PHYS : phys - RAM_PHYS + len(data)] = data


class Guest:
    """The minikernel in RAM, and the least that the model must do for it."""

    def __init__(self, vmlinux: Path = VMLINUX, cpus: int = 1, image_phys: int = IMAGE_PHYS) -> None:
        self.vmlinux = vmlinux
        self.elf = Elf(vmlinux)
        self.image_phys = image_phys
        self.entry_phys = ENTRY_PHYS
        self.layout = json.loads(vmlinux.with_name("vmlinux.layout.json").read_text())
        self.ram = Ram()
        self.cpus: dict[int, Cpu] = {}
        self.present = cpus
        self.powered_on = (0, 0)
        self.psci_result = 0
        self.failure: BaseException | None = None
        self.calls: list[tuple[int, str, tuple[int, ...]]] = []
        self.console = ""
        self.psci_calls: list[tuple[int, ...]] = []
        self.handlers: dict[str, Callable[[Cpu], None]] = {
            "__create_page_tables": self._create_page_tables,
            "setup_arch": self._setup_arch,
            "wait_for_cpu_running": self._wait_for_cpu_running,
            "_printk": self._printk,
            "crash_smp_send_stop": self._crash_smp_send_stop,
        }
        self.names = {self.virt(name): name for name in self.layout["host_functions"]}
        for paddr, _vaddr, data, _memsz in self.elf.loads:
            self.ram.write(self.image_phys + paddr, data)
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
        return (
            virt - KIMAGE_VADDR + self.image_phys if virt >= KIMAGE_VADDR else virt - PAGE_OFFSET + RAM_PHYS
        )

    def kernel_virt(self, phys: int) -> int:
        return phys - self.image_phys + KIMAGE_VADDR

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

    def per_cpu(self, where: int | str, cpu: int) -> int:
        virt = self.virt(where) if isinstance(where, str) else where
        return virt + self.u64(self.virt("__per_cpu_offset") + 8 * cpu) & (1 << 64) - 1

    # Running

    def boot(self) -> str:
        self.boot_cpu.set_x(0, DTB_PHYS)
        return self.boot_cpu.run(self.image_phys)

    def call(self, name: str, *arguments: int, task: str = "task_bash") -> str:
        """Call a C function on the boot CPU, as a task; returns what stopped it."""
        uc = self.boot_cpu.uc
        stack = self.u64(self.virt(task) + self.member("task_struct", "stack"))
        uc.reg_write(arm64.UC_ARM64_REG_SP, stack + 16384)
        uc.reg_write(arm64.UC_ARM64_REG_SP_EL0, self.virt(task))
        for number, value in (*enumerate(arguments), (29, 0), (30, self.virt("host_return"))):
            self.boot_cpu.set_x(number, value)
        return self.boot_cpu.run(self.virt(name))

    def called(self) -> list[str]:
        return [name for _cpu, name, _arguments in self.calls]

    def load_crash_image(self) -> None:
        """Make the kernel believe that a crash image is loaded."""
        image = self.virt("crash_kimage_storage")
        self.set_u64(image + self.member("kimage", "head"), 4)  # IND_DONE
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
        cpu.set_x(0, self.psci_result)
        if self.psci_result == 0:
            self._new_cpu(mpidr).set_x(0, context)
            self.powered_on = (mpidr, entry)

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
            *((pmd_image + 8 * (64 + n), (self.image_phys + (n << 21)) | block) for n in range(2)),
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

    def _wait_for_cpu_running(self, _cpu: Cpu) -> None:
        mpidr, entry = self.powered_on
        assert self.cpus[mpidr].run(entry) == "idle"

    def _printk(self, cpu: Cpu) -> None:
        arguments = iter(cpu.x(n) for n in (1, 2, 3))
        text = ""
        rest = re.sub(r"^\x01[0-7]", "", self.string(cpu.x(0)))
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
