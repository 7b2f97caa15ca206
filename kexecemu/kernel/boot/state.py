"""What a running kernel is: its board, its image in guest memory, and what it has computed once.

What the CPU can see is guest memory and is nowhere else; kept here is what a kernel knows by having booted (memblock,
the reservation, the address space, the tables' builder), and the objects of the images that are loaded. What is done
to it is elsewhere: start_kernel.py boots it, kexec_file.py and kexec_load.py load, execution.py runs its code.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from kexecemu.errors import InputError, MachineError
from kexecemu.formats import elfrel
from kexecemu.formats.efi_map import EfiMap
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.iomem import Iomem
from kexecemu.kernel.base.address_space import AddressSpace, memstart_addr
from kexecemu.kernel.base.cmdline import COMMAND_LINE_SIZE
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel, Vmlinux
from kexecemu.kernel.boot import firmware
from kexecemu.kernel.boot.acpi import acpi_of
from kexecemu.kernel.boot.cpus import CpuMasks
from kexecemu.kernel.boot.efi_init import efi_boot, efi_parameters, first_cmdline, first_memory, write_tables
from kexecemu.kernel.boot.free_area import FreeMemory
from kexecemu.kernel.boot.iomem import RunningMachine
from kexecemu.kernel.boot.loglevel import LogLevel, level_of
from kexecemu.kernel.boot.printk import Printk
from kexecemu.kernel.boot.setup_memory import IMAGE_MARKS, ArchSetup, TextLayout
from kexecemu.kernel.boot.slab_init import task_virt
from kexecemu.kernel.boot.tree_board import console_of
from kexecemu.kernel.boot.unmodelled import not_modelled
from kexecemu.kernel.boot.vmcoreinfo import VMCOREINFO_BYTES
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.memory.kho import KhoEarly, KhoScratch
from kexecemu.kernel.memory.memblock import Memblock, within_pages
from kexecemu.kernel.memory.paging import EarlyTables
from kexecemu.limits import told
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.devices.uart import KINDS
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["KernelState", "KexecState", "SignaturePolicy"]


class SignaturePolicy(Protocol):
    """What decides whether a kernel may be loaded: policy.KexecSignaturePolicy, or a test's own."""

    def check(self, image: bytes, log: Callable[[str], None]) -> None:
        """kimage_validate_signature(): return if it may be loaded, raise KexecError if not."""

    def check_kexec_load(self, log: Callable[[str], None]) -> None:
        """kexec_load_check(): the same of segments that nobody can verify."""


@shown()
@dataclass
class KexecState:
    """The variables behind the system calls.

    purgatory is the object inside the kernel, None for none; locked is __kexec_lock, held by a load under way;
    load_disabled the sysctl kernel.kexec_load_disabled; signature_policy None where CONFIG_KEXEC_SIG is off;
    dm_crypt_keys how many keys configfs names for the capture kernel (see KernelModel.dm_crypt_keys);
    crash_image and reboot_image what is loaded: the guest's kexec_crash_image and kexec_image as objects.
    """

    purgatory: elfrel.RelocatableObject | None = None
    locked: bool = False
    load_disabled: bool = False
    signature_policy: SignaturePolicy | None = None
    dm_crypt_keys: int = 0
    crash_image: Kimage | None = None
    reboot_image: Kimage | None = None


def _check_ram(board: Board, *areas: PhysRange) -> None:
    """InputError where what is said of a machine is of one with other RAM: these have to be in it."""
    for area in areas:
        if not any(bank.covers(area) for bank in board.ram.banks):
            raise InputError(f"the board has no RAM at {area}, where the machine has kernel and device tree")


class KernelState:
    """A first kernel on a board: in guest memory from the start, booted once setup_arch() has run."""

    def __init__(
        self,
        board: Board,
        config: KernelConfig,
        dtb: bytes,
        vmlinux: Vmlinux,
        purgatory: elfrel.RelocatableObject | None,
        seed: int,
        layout: TextLayout | None = None,
        efi_map: EfiMap | None = None,
        iomem: Iomem | None = None,
        same_cmdline: bool = True,
    ) -> None:
        """The boot loader's part: image and device tree get into RAM. purgatory is the object inside the kernel.

        layout is of a larger image, which memory setup takes for this one; efi_map is of a machine that UEFI starts.
        iomem is what a kernel says of the machine that was booted on it, with the same_cmdline or another one.
        """
        self.seed = seed
        self.random = Random(seed)
        self.board = board
        self.config = config
        self.ram = board.ram
        tree = Fdt(dtb)
        self.efi = efi_boot(tree, efi_map) if efi_map is not None else None
        """How UEFI has started it, None where the boot loader is another."""
        self.running: RunningMachine | None = None
        """What is known of the machine as it runs already, None for one that is switched on."""
        if iomem is not None:
            self.running = RunningMachine.of(iomem, config, tree, vmlinux.size, same=same_cmdline)
            places, layout = self.running.places, layout or self.running.layout
        elif self.efi is not None:
            places, layout = self.efi.places(vmlinux.size, len(dtb)), layout or self.efi.layout
        else:
            places = firmware.choose_places(board.ram, vmlinux.size, tree)
        self.dtb_phys = places.dtb_phys
        _check_ram(
            board, PhysRange.of(places.kernel_phys, vmlinux.size), PhysRange.of(self.dtb_phys, len(dtb))
        )
        if self.running is not None:
            memory = Memblock()
            self.running.apply(memory)
        else:
            memory = first_memory(tree, config, self.efi)
        memstart = memstart_addr(memory.start_of_dram, config.page_size)
        image = PhysRange.of(places.kernel_phys, vmlinux.size)
        if not any(area.covers(image) for area in memory.memory):
            # A real 7.3.4 says nothing at all.
            outside = "the first kernel lies outside of the memory that its tree leaves it"
            raise InputError(f"{outside}: it does not boot")
        initrd = firmware.initrd_range(tree)
        backed = initrd is None or any(bank.covers(initrd) for bank in board.ram.banks)
        if not backed and initrd is not None and initrd.start >= memory.start_of_dram:
            # Nor does a real 6.1 or 6.12: it is added to memory, and allocated from.
            outside = f"the first kernel's initrd at {initrd} is no RAM, but taken for some"
            raise InputError(f"{outside}: it does not boot")
        self.space = AddressSpace.of(
            config, memstart, vmlinux.virt("_text"), places.kernel_phys, vmlinux.size
        )
        self.guest = GuestKernel(vmlinux, board.ram, self.space)
        self.guest.load(config.release, board.conduit)
        self.layout = layout or TextLayout(*map(self.guest.phys, IMAGE_MARKS))
        board.ram.write(self.dtb_phys, dtb)
        by_uefi = efi_parameters(tree)
        if by_uefi is not None:
            write_tables(board.ram, by_uefi, efi_map)
        self.printk = Printk(self.guest, board.uart)
        self.early = EarlyTables(self.guest, config.page_size)
        self.kexec = KexecState(purgatory)
        self.warned: tuple[str, ...] = ()
        """What was said of it when it was set up: what is not modelled of the machine, and of how it came about."""
        self.cpus = CpuMasks((0,), 1)
        """Possible and present CPUs."""
        self.acpi = acpi_of(tree, first_cmdline(tree), efi_map, iomem)
        """What ACPI's tables say, None where the device tree describes the machine."""
        names = tree.get_strings(0, "model") or tree.get_strings(0, "compatible") or [""]
        self.machine_model = names[0]
        self.console = console_of(tree, self.acpi) if board.uart.kind else None
        """The console that its tree or ACPI names, None for none of a known kind, or none that can be reached."""
        self.panic_force_cpu: int | None = None
        """The CPU that panic_force_cpu= names, in an era that has it."""
        self.kho_early = KhoEarly()
        self.kho: KhoScratch | None = None
        """Scratch areas, None where kexec handover is off."""
        self._arch: ArchSetup | None = None
        self.resources = PhysRange(0, 0)
        """Physical addresses of what request_standard_resources() has allocated, empty before."""
        self._free_memory: FreeMemory | None = None

    @property
    def arch(self) -> ArchSetup:
        """What setup_arch() left; MachineError before it has run."""
        if self._arch is None:
            raise MachineError("the kernel has not booted yet")
        return self._arch

    @arch.setter
    def arch(self, arch: ArchSetup) -> None:
        self._arch = arch

    @property
    def free_memory(self) -> FreeMemory:
        """What mm_init() left; MachineError before it has run."""
        if self._free_memory is None:
            raise MachineError("the kernel has not booted yet")
        return self._free_memory

    @free_memory.setter
    def free_memory(self, free_memory: FreeMemory) -> None:
        self._free_memory = free_memory

    def task_virt(self, name: str) -> int:
        """The virtual address of a task of a booted kernel, by the name of its symbol."""
        return task_virt(self.guest, self.free_memory.slab, name)

    @property
    def tables(self) -> PageTables:
        """swapper_pg_dir."""
        return self.early.swapper

    @property
    def crashk_res(self) -> PhysRange | None:
        """The crash kernel's physical range, None when nothing is reserved."""
        return self.arch.reservation.crashk_res

    @property
    def crashk_low_res(self) -> PhysRange | None:
        """The low part of a high reservation, None when there is none."""
        return self.arch.reservation.crashk_low_res

    @property
    def crashk_cma_ranges(self) -> tuple[PhysRange, ...]:
        """What crashkernel=X,cma has reserved."""
        return self.arch.reservation.cma

    @property
    def total_ram_pages(self) -> int:
        """totalram_pages(): what memblock had left for the buddy allocator, and what KHO has given back."""
        page = self.config.page_size
        areas = [*self.arch.memblock.free_ranges(), *(self.kho.areas if self.kho else ())]
        return sum(area.size for area in within_pages(areas, page)) // page

    @property
    def image(self) -> Kimage | None:
        """kexec_crash_image."""
        return self.kexec.crash_image

    @property
    def console_phys(self) -> int:
        """Physical address of the console if that is a PL011 (else 0)."""
        return self.console.phys if self.console is not None and self.console.kind == "pl011" else 0

    @property
    def sink_phys(self) -> int:
        """Physical address of the console if a character that is stored there is printed (else 0)."""
        console = self.console
        known = console is not None and (console.kind == "pl011" or not KINDS[console.kind].data)
        return console.phys if console is not None and known else 0

    @property
    def initial_boot_params(self) -> bytes:
        """The device tree that this kernel was booted with, as it is in memory now."""
        size = struct.unpack(">I", self.ram.read(self.dtb_phys + 4, 4))[0]
        return self.ram.read(self.dtb_phys, size)

    @property
    def boot_command_line(self) -> str:
        """The command line that the kernel was booted with, as it is in its memory."""
        return self.guest.string(self.guest.vmlinux.virt("boot_command_line"), COMMAND_LINE_SIZE)

    def not_modelled(self) -> list[str]:
        """What of this machine and command line a real kernel acts on, each in one line."""
        tree, efi_map = Fdt(self.initial_boot_params), self.efi.map if self.efi is not None else None
        known = self.running is not None
        found = not_modelled(self.config, self.boot_command_line, tree, efi_map, memory_known=known)
        if self.cpus.spin_tables:
            words = "spin-table: stopped CPUs are off here, where real ones go on in the old kernel's memory"
            found.append(told("spin-tables", words))
        if self.cpus.gaps:
            words = "CPUs: a real kernel leaves out the numbers of nodes that it makes nothing of, and this does not"
            found.append(told("cpu-numbers", words))
        if not self.board.uart.kind and self.acpi is None and console_of(tree) is not None:
            words = "no console: the device tree has it in RAM, or where no CPU here reaches it"
            found.append(told("console", words))
        if self.running is not None and not self.running.same:
            words = "iomem is of a boot with another command line: the crash region is looked for in what that has left"
            found.append(told("iomem", words))
        if len(self.arch.nodes) > 1:
            words = "NUMA: in guest memory, and so in a dump, there is a single node with zones and lists of its own"
            found.append(told("NUMA", words))
        return found

    @property
    def redirected_from(self) -> int | None:
        """panic_redirect_cpu: the CPU that has handed its panic over to another one, and stands still."""
        if self.panic_force_cpu is None:
            return None
        return next((int(one.facts["cpu"] or 0) for one in self.board.timeline.of("panic_redirect")), None)

    @property
    def crashing_cpu(self) -> SystemCpu:
        """The CPU that goes through the crash, and leaves this kernel: the boot CPU, or to whom it was handed over."""
        index = None if self.redirected_from is None else self.panic_force_cpu
        return self.board.cpus[index or 0]

    @property
    def now_ns(self) -> int:
        """Virtual time since power on: one nanosecond an instruction, and the time that nobody ran through."""
        return self.board.instructions + self.board.idle * 10**9 // INSTRUCTIONS_PER_SECOND

    def log(self, text: str, level: LogLevel | None = None) -> None:
        """printk(): into the ring in guest memory and to the console; without a level the kernel's own for it."""
        self.printk.log(text, self.now_ns, level_of(text) if level is None else level)

    def say(self, kind: str, text: str, **facts: int | str | bool | None) -> None:
        """Record an event on the board's timeline."""
        self.board.timeline.record(kind, text, **facts)

    def vmcoreinfo(self) -> bytes:
        """vmcoreinfo_data as it is in guest memory."""
        phys = self.space.virt_to_phys(self.guest.read("vmcoreinfo_data"))
        return self.ram.read(phys, self.guest.read("vmcoreinfo_size"))

    def store_vmcoreinfo(self, text: bytes) -> None:
        """Set vmcoreinfo_data and vmcoreinfo_size in guest memory."""
        phys = self.space.virt_to_phys(self.guest.read("vmcoreinfo_data"))
        self.ram.write(phys, text.ljust(VMCOREINFO_BYTES, b"\0"))
        self.guest.write("vmcoreinfo_size", len(text))

    def crash_notes_phys(self, cpu: int) -> int:
        """per_cpu_ptr_to_phys(per_cpu_ptr(crash_notes, cpu))."""
        virt = self.guest.read("crash_notes") + self.guest.read("__per_cpu_offset", 8 * cpu)
        return self.space.virt_to_phys(virt % (1 << 64))

    def flush_tlb_kernel_range(self) -> None:
        """flush_tlb_kernel_range(): no CPU that is up translates by an entry that is not in the tables any more."""
        for cpu in self.board.cpus:
            if cpu.powered:
                cpu.flush_tlb()
