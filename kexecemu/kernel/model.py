"""The first kernel as an object: boot it on a board, load a crash image, write where one should not, panic.

The methods follow the life of a kernel from top to bottom. What the CPU can see is guest memory; what is kept here is
what a kernel computes once (memblock, the reservation, the address space, the tables' builder).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Self

from kexecemu.arguments import contents, instance, integer, text
from kexecemu.errors import FormatError, InputError, MachineError
from kexecemu.formats import elfrel
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel import firmware, syscalls
from kexecemu.kernel.address_space import AddressSpace, memstart_addr
from kexecemu.kernel.boot import ArchSetup
from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.crashkernel import CrashReservation
from kexecemu.kernel.environment import KexecEnvironment
from kexecemu.kernel.execution import CALL_LIMIT, SYSRQ_MESSAGE, Execution
from kexecemu.kernel.files import OpenFile
from kexecemu.kernel.host_calls import HOST_CALLS
from kexecemu.kernel.kexec_file import KexecFile
from kexecemu.kernel.kimage import (
    KEXEC_FILE_ON_CRASH,
    Kimage,
)
from kexecemu.kernel.paging import EarlyTables
from kexecemu.kernel.printk import Printk
from kexecemu.kernel.purgatory_guard import early_check_limit
from kexecemu.kernel.start_kernel import publish_resources
from kexecemu.kernel.syscalls import purgatory_object
from kexecemu.kernel.virt_board import virt_device_tree
from kexecemu.kernel.vmcoreinfo import VMCOREINFO_BYTES
from kexecemu.kernel.vmlinux import GuestKernel, Vmlinux, load_vmlinux
from kexecemu.machine.board import Board
from kexecemu.machine.cpu import Cpu, Stop, StopKind
from kexecemu.machine.mmu import PageTables
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Kernel"]

_NR_CPUS = 64


@shown(
    "crashk_res",
    "crashk_low_res",
    "protected",
    "dtb_phys",
    era=lambda kernel: kernel.config.release,
    protection=lambda kernel: kernel.config.way,
    purgatory=lambda kernel: kernel.config.purgatory,
    segments=lambda kernel: kernel.image.segments if kernel.image is not None else None,
    board=lambda kernel: kernel.board,
)
class Kernel:
    """A booted first kernel. Use Kernel.boot()."""

    def __init__(
        self,
        board: Board,
        config: KernelConfig,
        dtb: bytes,
        vmlinux: Vmlinux,
        purgatory: elfrel.RelocatableObject | None,
        seed: int,
    ) -> None:
        self.random = Random(seed)
        self.board = board
        self.config = config
        self.ram = board.ram
        tree = Fdt(dtb)
        places = firmware.choose_places(board.ram, vmlinux.size, tree)
        self.dtb_phys = places.dtb_phys
        self.space = AddressSpace(
            memstart_addr(board.ram.banks[0].start, config.page_size),
            vmlinux.virt("_text"),
            places.kernel_phys,
            vmlinux.size,
        )
        self.guest = GuestKernel(vmlinux, board.ram, self.space)
        self.guest.load()
        board.ram.write(self.dtb_phys, dtb)
        self.printk = Printk(self.guest, board.uart)
        self.early = EarlyTables(self.guest, config.page_size)
        self.environment = KexecEnvironment(self)
        self.kexec = KexecFile(self.environment, purgatory)
        # A tree without /cpus still has the CPU that reads it.
        self.affinities = (firmware.cpu_affinities(tree) or [0])[: len(board.cpus)]
        self.machine_model = self._model_name(tree)
        self._console_phys = firmware.console_phys(tree)
        self._arch: ArchSetup | None = None
        self.cpus_stopped = False  # crash_smp_send_stop() has been called
        self._over: str | None = None  # what has ended this kernel
        self._execution = Execution(board, self.guest, self._host_functions())

    def _host_functions(self) -> dict[int, Callable[[Cpu], None]]:
        """Where the CPU stops for the model to think."""
        host: dict[int, Callable[[Cpu], None]] = {
            self.guest.vmlinux.virt(name): partial(function, self) for name, function in HOST_CALLS.items()
        }
        # The one that is called before the MMU is on, at its physical address.
        early = "__create_page_tables"
        host[self.guest.phys(early)] = host[self.guest.vmlinux.virt(early)]
        return host

    # -- boot ----------------------------------------------------------------------------------------------------

    @classmethod
    def boot(
        cls,
        board: Board,
        config: KernelConfig | None = None,
        *,
        cmdline: str | None = "crashkernel=256M",
        dtb: bytes | str | Path | None = None,
        seed: int = 0,
    ) -> Self:
        """Boot the model kernel on a board and return it idle.

        cmdline is the first kernel's command line; None takes the one in dtb. dtb describes the board, as bytes or by
        its path (default: the board's own tree). seed feeds the kernel's random numbers, once config.rng_ready. Leaving
        a with block closes the board.

        Raises InputError when the pieces do not fit together or another kernel has run on the board,
        KexecError(ENOEXEC) when config.purgatory is no usable object.
        """
        instance(board, Board, "board")
        config = KernelConfig() if config is None else instance(config, KernelConfig, "config")
        integer(seed, "seed")
        if cmdline is not None:
            text(cmdline, "cmdline")
        if board.ram.closed:
            raise InputError("the board is closed: a kernel needs another one")
        if board.instructions or any(cpu.powered for cpu in board.cpus):
            raise InputError("a kernel runs on this board already: each needs a board of its own")
        if dtb is not None:
            dtb = contents(dtb, "device tree")
        else:
            dtb = virt_device_tree(
                board.ram.banks, len(board.cpus), board.uart.phys.start, gic=board.gic.version
            )
        try:
            if cmdline is not None:
                dtb = firmware.set_bootargs(dtb, cmdline)
            described = firmware.memory_ranges(Fdt(dtb))
        except FormatError as error:
            raise InputError(f"device tree: {error}") from error
        if not described:
            raise InputError("device tree: no memory node")
        if len(board.cpus) > _NR_CPUS:
            raise InputError(f"the model kernel runs on at most {_NR_CPUS} CPUs, not {len(board.cpus)}")
        kernel = cls(board, config, dtb, load_vmlinux(), purgatory_object(config), seed)
        kernel._start()
        return kernel

    def _start(self) -> None:
        boot_cpu = self.board.boot_cpu
        boot_cpu.reset(self.guest.phys("primary_entry"), x0=self.dtb_phys)
        self.say(
            "boot",
            f"the boot loader starts the kernel at {self.guest.phys('primary_entry'):#x}, device tree at "
            f"{self.dtb_phys:#x}",
            entry_phys=self.guest.phys("primary_entry"),
            dtb_phys=self.dtb_phys,
        )
        stop = self.run(boot_cpu, limit=CALL_LIMIT)
        if stop.kind is not StopKind.IDLE:
            raise MachineError(f"the first kernel did not come up: {stop}")
        self.say(
            "booted",
            f"the first kernel is idle on {len(self.board.cpus)} CPU"
            f"{'s' if len(self.board.cpus) > 1 else ''}; linear map: {self.arch.plan.reason}",
            table_pages=len(self.tables.tables),
        )

    @staticmethod
    def _model_name(tree: Fdt) -> str:
        names = tree.get_strings(0, "model")
        return names[0] if names else "unknown"

    def set_crashk_res(self, reservation: CrashReservation, freed: PhysRange) -> None:
        """A part of the crash region goes back to the system (kexec_crash_size); guest memory and memblock follow."""
        self.arch = replace(self.arch, reservation=reservation)
        self.arch.memblock.free(freed)
        publish_resources(self)

    def close(self) -> None:
        """Close the board: the host's memory is given back, and the kernel is gone."""
        self.board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the rest of the kernel asks ------------------------------------------------------------------------

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
    def console_phys(self) -> int:
        """Physical address of the console's PL011 (0: none)."""
        return self._console_phys

    @property
    def image(self) -> Kimage | None:
        """kexec_crash_image."""
        return self.kexec.crash_image

    @property
    def protected(self) -> list[PhysRange]:
        """Physical ranges that stray writes through the linear map cannot change now."""
        return list(self.environment.protected)

    @property
    def initial_boot_params(self) -> bytes:
        """The device tree that this kernel was booted with, as it is in memory now."""
        size = struct.unpack(">I", self.ram.read(self.dtb_phys + 4, 4))[0]
        return self.ram.read(self.dtb_phys, size)

    @property
    def now_ns(self) -> int:
        """Virtual time since power on: one nanosecond an instruction."""
        return self.board.instructions

    @property
    def safecopy_phys(self) -> int:
        """Physical address of the crash image's copy of vmcoreinfo, 0 without an image."""
        return self.image.vmcoreinfo_safecopy if self.image else 0

    def log(self, text: str) -> None:
        """printk(): into the ring in guest memory and to the console."""
        self.printk.log(text, self.now_ns)

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

    def check_alive(self, wanted: str) -> None:
        """Raise InputError, in words that say for what, once this kernel has crashed or was left by kexec."""
        if self._over is not None:
            raise InputError(f"{wanted}: the kernel {self._over}; boot another on a board of its own")

    # -- kexec ---------------------------------------------------------------------------------------------------

    def kexec_file_load(
        self,
        kernel: OpenFile | bytes | str | Path | None,
        initrd: OpenFile | bytes | str | Path | None = None,
        cmdline: str | bytes | None = None,
        flags: int = KEXEC_FILE_ON_CRASH,
        *,
        capable: bool = True,
    ) -> Kimage | None:
        """kexec_file_load(2) as user space calls it, files as such, by path or open; see syscalls.kexec_file_load()."""
        self.check_alive("kexec_file_load")
        return syscalls.kexec_file_load(self, kernel, initrd, cmdline, flags, capable=capable)

    def kexec_tools_load(
        self, kernel: bytes | str | Path, initrd: bytes | str | Path | None = None, cmdline: str = ""
    ) -> Kimage:
        """`kexec -c -p`: kexec-tools prepares everything in user space and calls kexec_load(2)."""
        self.check_alive("kexec_load")
        return syscalls.kexec_tools_load(self, self.environment, kernel, initrd, cmdline)

    # -- running guest code --------------------------------------------------------------------------------------

    def run(self, cpu: Cpu, until: Collection[int] = (), limit: int | None = None) -> Stop:
        """Run a CPU of this kernel until something other than a host function stops it; see Execution.run()."""
        return self._execution.run(cpu, until, limit)

    def stray_write_virt(self, virt: int, data: bytes, width: int = 1) -> bool:
        """A stray write by the CPU at a kernel virtual address; False when it faulted. See Execution.stray_write()."""
        self._execution.crash_allowance = early_check_limit(self.image)
        return self._execution.stray_write(virt, data, width)

    @property
    def dying(self) -> bool:
        """An oops was fatal (panic_on_oops), and no CPU runs anything but the crash path any more."""
        return self._execution.dying

    def reboot(self) -> Stop:
        """kexec into the image that was loaded without KEXEC_FILE_ON_CRASH; see Execution.kexec()."""
        self.check_alive("reboot")
        image = self.kexec.reboot_image
        if image is None:
            raise InputError("no image is loaded for a reboot: kexec_file_load() one with flags=0")
        self._over = "has been left by kexec"
        self.say("reboot", "reboot by kexec")
        page = range(image.control_code_page, image.control_code_page + self.config.page_size)
        stop = self._execution.kexec(page)
        if stop.kind is StopKind.LEFT:
            self.say("jump", f"the relocation code jumps to {stop.pc:#x}, MMU off", pc_phys=stop.pc)
        return stop

    def crash(self, message: str = SYSRQ_MESSAGE) -> Stop:
        """Panic, up to the first instruction outside this kernel; see Execution.crash()."""
        self.check_alive("panic")
        text(message, "message")
        self._over = "has crashed"
        if self.dying:
            self.say("panic", "the oops is fatal: the crash has begun already", message="")
        else:
            self.say("panic", f"panic: {message}", message=message)
        self._execution.crash_allowance = early_check_limit(self.image)
        stop = self._execution.crash(message)
        if stop.kind is StopKind.LEFT:
            self.say("jump", f"machine_kexec() jumps to {stop.pc:#x}, MMU off", pc_phys=stop.pc)
        else:
            self._tell_refusal()
        return stop

    def forget_crash(self) -> None:
        """The machine has gone back to before its crash."""
        self.cpus_stopped = False
        self._over = None
        self._execution.forget_crash()

    def resume(self) -> Stop:
        """Go on where the purgatory has returned to; see Execution.resume()."""
        stop = self._execution.resume()
        self._tell_refusal()
        return stop

    @property
    def refusal(self) -> str | None:
        """Why the dying kernel has not started the crash image that is loaded; None where that was not its choice."""
        vmlinux, why_virt = self.guest.vmlinux, self.guest.read("kdump_refusal")
        if self.image is None or not vmlinux.virt("_text") <= why_virt < vmlinux.virt("_end"):
            return None  # 0, or stamped on
        return self.guest.string(why_virt)

    def _tell_refusal(self) -> None:
        why = self.refusal
        if why is not None:
            self.say("refused", f"the first kernel gives kdump up: {why}", why=why)
