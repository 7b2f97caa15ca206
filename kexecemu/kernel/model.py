"""The first kernel as an object: boot it on a board, load a crash image, write where one should not, panic.

The methods follow the life of a kernel from top to bottom. What it is, is its state (state.py); what is done to it
has a file for each stage.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from errno import EFAULT
from functools import cached_property
from pathlib import Path
from typing import Self

from kexecemu.arguments import contents, instance, integer, text
from kexecemu.errors import BusError, FormatError, InputError, KexecError, MachineError
from kexecemu.formats.efi_map import EfiMap
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.iomem import Iomem
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import guest_vmlinux
from kexecemu.kernel.boot import firmware
from kexecemu.kernel.boot.cpus import NR_CPUS
from kexecemu.kernel.boot.efi_init import first_cmdline, read_efi_map
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.boot.iomem import read_iomem
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.crash.execution import CALL_LIMIT, REFUSALS, SYSRQ_MESSAGE, Execution
from kexecemu.kernel.crash.stray_store import WRITERS, store
from kexecemu.kernel.image.kimage import IND_DONE, KEXEC_FILE_ON_CRASH, Kimage
from kexecemu.kernel.load import environment, ima, syscalls
from kexecemu.kernel.load.dm_crypt import check_dm_crypt_keys
from kexecemu.kernel.load.files import OpenFile
from kexecemu.kernel.load.syscalls import purgatory_object
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["KernelModel"]

_ENDS = {"panic": "has crashed", "reboot": "has been left by kexec"}
"""What ends a kernel, by the event of the board's timeline that tells it: a machine put back to before is alive."""


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
class KernelModel(KernelState):
    """A booted first kernel. Use KernelModel.boot()."""

    @cached_property
    def _execution(self) -> Execution:
        return Execution(self)

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
        layout: TextLayout | None = None,
        efi_map: EfiMap | bytes | str | Path | None = None,
        iomem: Iomem | bytes | str | Path | None = None,
    ) -> Self:
        """Boot the model kernel on a board and return it idle.

        cmdline is the first kernel's command line; None takes the one in dtb. dtb describes the board, as bytes or by
        its path (default: the board's own tree). seed feeds the kernel's random numbers, once config.rng_ready. layout
        is that of another kernel's image, whose memory is set up as if it were in the place of the model's smaller one.
        efi_map is the boot log of a machine with that tree that was started by UEFI, with what efi=debug prints, as
        bytes, by its path or parsed: memory is then what it says, and not what the tree does.
        iomem is /proc/iomem of a kernel of this era that runs on it, for root, in the same ways: memory is what it says
        and so is the crash region, where the command line is that of dtb.
        Leaving a with block closes the board.

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
        found = None if efi_map is None else read_efi_map(efi_map)
        running = None if iomem is None else read_iomem(iomem)
        if running is not None and (found is not None or dtb is None):
            raise InputError("iomem goes with a device tree, and in place of an EFI memory map")
        given = _device_tree(board, None, dtb, required=found is None and running is None)
        tree = _device_tree(board, cmdline, given, required=False)
        same = first_cmdline(Fdt(given)) == first_cmdline(Fdt(tree))
        if len(board.cpus) > NR_CPUS:
            raise InputError(f"the model kernel runs on at most {NR_CPUS} CPUs, not {len(board.cpus)}")
        pieces = board, config, tree, guest_vmlinux(config), purgatory_object(config), seed, layout
        kernel = cls(*pieces, found, running, same)
        kernel._start()
        return kernel

    def _start(self) -> None:
        boot_cpu = self.board.boot_cpu
        boot_cpu.reset(self.guest.phys("primary_entry"), x0=self.dtb_phys)
        entry, tree = self.guest.phys("primary_entry"), self.dtb_phys
        words = f"the boot loader starts the kernel at {entry:#x}, device tree at {tree:#x}"
        self.say("boot", words, entry_phys=entry, dtb_phys=tree)
        stop = self.run(boot_cpu, limit=CALL_LIMIT)
        if stop.kind is not CpuStopKind.IDLE:
            raise MachineError(f"the first kernel did not come up: {stop}")
        running = sum(cpu.powered for cpu in self.board.cpus)
        cpus = f"{running} CPU{'s' if running > 1 else ''}"
        words = f"the first kernel is idle on {cpus}; linear map: {self.arch.plan.reason}"
        self.say("booted", words, table_pages=len(self.tables.tables))

    def close(self) -> None:
        """Close the board: the host's memory is given back, and the kernel is gone."""
        self.board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def protected(self) -> list[PhysRange]:
        """Physical ranges that stray writes through the linear map cannot change now, as the page tables say."""
        return environment.protected(self)

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        return self.config.page_size

    @property
    def kernel_area(self) -> PhysRange:
        """Where its image lies, physical."""
        return self.guest.area

    @property
    def over(self) -> str | None:
        """What has ended this kernel, in words; None while it lives."""
        return next((_ENDS[event.kind] for event in self.board.timeline if event.kind in _ENDS), None)

    def check_alive(self, wanted: str) -> None:
        """Raise InputError, in words that say for what, once this kernel has crashed or was left by kexec."""
        over = self.over
        if over is not None:
            raise InputError(f"{wanted}: the kernel {over}; boot another on a board of its own")

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
        with _own_data("kexec_file_load"):
            return syscalls.kexec_file_load(self, kernel, initrd, cmdline, flags, capable=capable)

    def kexec_tools_load(
        self, kernel: bytes | str | Path, initrd: bytes | str | Path | None = None, cmdline: str = ""
    ) -> Kimage:
        """`kexec -c -p`: kexec-tools prepares everything in user space and calls kexec_load(2)."""
        self.check_alive("kexec_load")
        with _own_data("kexec_load"):
            return syscalls.kexec_tools_load(self, kernel, initrd, cmdline)

    @property
    def dm_crypt_keys(self) -> int:
        """How many keys configfs has for the next crash image by kexec_file_load(); InputError for too many."""
        return self.kexec.dm_crypt_keys

    @dm_crypt_keys.setter
    def dm_crypt_keys(self, count: int) -> None:
        self.kexec.dm_crypt_keys = check_dm_crypt_keys(count, self.config.release)

    # -- running guest code --------------------------------------------------------------------------------------

    def run(self, cpu: Cpu, until: Collection[int] = (), limit: int | None = None) -> CpuStop:
        """Run a CPU of this kernel until something other than a host function stops it; see Execution.run()."""
        return self._execution.run(cpu, until, limit)

    def stray_write_virt(self, virt: int, data: bytes, width: int = 1) -> bool:
        """A stray write by the CPU at a kernel virtual address; False when it faulted. See Execution.stray_write()."""
        return self._execution.stray_write(virt, data, width)

    def store(self, phys: int, data: bytes, width: int = 1, *, by: str = "cpu") -> GuestException | None:
        """A stray store at a physical address that a CPU executes, whoever can: see stray_store.py.

        by is "cpu", "alias" or "late-cpu", width 1, 2, 4 or 8 bytes. Returns the exception that ended it, None where it
        went through. Works while the kernel lives, between begin_crash() and finish_crash(), and by a late CPU after
        that; InputError where no such CPU runs the first kernel.
        """
        if by not in WRITERS:
            raise InputError(f"a stray store is made by {', '.join(WRITERS)}, not by {by!r}")
        if width not in (1, 2, 4, 8):
            raise InputError(f"a store is 1, 2, 4 or 8 bytes wide, not {width!r}")
        alive = self.over is None and not self.dying
        return store(self, self._execution, phys, data, width, by, alive=alive)

    @property
    def dying(self) -> bool:
        """No CPU runs anything but the crash path: an oops was fatal (panic_on_oops), or met the panic itself."""
        return self._execution.at_crash_end if self.over is None else not self._execution.in_panic

    @property
    def about_to_leave(self) -> bool:
        """begin_crash() came to its end: the MMU is still on, and the next thing is the jump."""
        return self._execution.in_panic

    def reboot(self) -> CpuStop:
        """kexec into the image that was loaded without KEXEC_FILE_ON_CRASH; see Execution.kexec()."""
        self.check_alive("reboot")
        image = self.kexec.reboot_image
        if image is None:
            raise InputError("no image is loaded for a reboot: kexec_file_load() one with flags=0")
        self.say("reboot", "reboot by kexec")
        ima.update_kexec_buffer(self, image)
        page = range(image.control_code_page, image.control_code_page + self.config.page_size)
        stop = self._execution.kexec(None if image.head & IND_DONE else page)
        if stop.kind is CpuStopKind.LEFT:
            who = "machine_kexec()" if image.head & IND_DONE else "the relocation code"
            self.say("jump", f"{who} jumps to {stop.pc:#x}, MMU off", pc_phys=stop.pc)
        return stop

    def crash(self, message: str = SYSRQ_MESSAGE) -> CpuStop:
        """Panic, up to the first instruction outside this kernel: begin_crash() and finish_crash()."""
        return self.finish_crash(self.begin_crash(message))

    def begin_crash(self, message: str = SYSRQ_MESSAGE) -> CpuStop:
        """Panic, up to the last moment with the MMU on, where the boot CPU can still store; see Execution."""
        self.check_alive("panic")
        text(message, "message")
        if self.dying:
            self.say("panic", "the oops is fatal: the crash has begun already", message="")
        else:
            self.say("panic", f"panic: {message}", message=message)
        return self._execution.begin_crash(message)

    def finish_crash(self, stop: CpuStop) -> CpuStop:
        """From where begin_crash() ended, up to the first instruction outside this kernel; see Execution."""
        stop = self._execution.finish_crash(stop)
        if stop.kind is CpuStopKind.LEFT:
            mmu = "on" if self.crashing_cpu.sysreg("SCTLR_EL1") & 1 else "off"
            self.say("jump", f"machine_kexec() jumps to {stop.pc:#x}, MMU {mmu}", pc_phys=stop.pc)
        else:
            self._tell_refusal()
        return stop

    def resume(self) -> CpuStop:
        """Go on where the purgatory has returned to; see Execution.resume()."""
        stop = self._execution.resume()
        self._tell_refusal()
        return stop

    @property
    def refusal(self) -> str | None:
        """Why the dying kernel has not started the crash image that is loaded; None where that was not its choice.

        A pointer alone is not believed, a stray write may have made it: it has to be to one of the kernel's own
        reasons, and the kernel says on its console that it gives up.
        """
        why = self.guest.vmlinux.string(self.guest.read("kdump_refusal"))
        given_up = self.image is not None and why in REFUSALS and ", giving up kdump" in self.board.uart.text
        return why if given_up else None

    def _tell_refusal(self) -> None:
        why = self.refusal
        if why is not None:
            self.say("refused", f"the first kernel gives kdump up: {why}", why=why)


@contextmanager
def _own_data(call: str) -> Iterator[None]:
    """A load that finds the kernel's own data stamped on, so that it leads out of RAM: KexecError(EFAULT)."""
    try:
        yield
    except BusError as error:
        raise KexecError(EFAULT, call, f"the first kernel's own data is damaged: {error}") from error


def _device_tree(
    board: Board, cmdline: str | None, dtb: bytes | str | Path | None, *, required: bool
) -> bytes:
    """What the boot loader hands over; InputError for what describes no machine: memory is required or not."""
    if dtb is not None:
        dtb = contents(dtb, "device tree")
    else:
        dtb = virt_device_tree(board.ram.banks, len(board.cpus), board.uart.phys.start, gic=board.gic.version)
    try:
        if cmdline is not None:
            dtb = firmware.set_bootargs(dtb, cmdline)
        described = memory_ranges(Fdt(dtb))
    except FormatError as error:
        raise InputError(f"device tree: {error}") from error
    if required and not described:
        raise InputError("device tree: no memory node")
    return dtb
