"""What a real first kernel starts with, how it gets into RAM (as by QEMU's boot loader), and who listens to it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.image import parse as parse_header
from kexecemu.kernel.base.cmdline import kaslr_disabled
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.firmware import choose_places
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.load.kexec_image import CORTEX_A57_MMFR0, has_granule
from kexecemu.linux.capture import DUMP_SLOT
from kexecemu.linux.initramfs import CAPTURE_CMDLINE, first_kernel_initramfs
from kexecemu.machine.board import Board
from kexecemu.machine.devices.uart import ConsoleLines
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["DEFAULT_CMDLINE", "DEFAULT_RAM", "WAITING", "ConsoleWatch", "LinuxSetup", "boot_linux"]
__all__ += ["first_cmdline", "first_initrd", "first_page_size", "kaslr_is_off"]

DEFAULT_RAM = "512M"
DEFAULT_CMDLINE = "crashkernel=192M"

WAITING = "first: waiting for a line"
"""What its init says when the crash kernel is loaded, and a line on the console would make it crash."""

_PAGE = 4096
_INITRD_OFFSET = 128 << 20  # as QEMU's boot loader, or half of a small RAM
_OPTIONS = {"kexec_load": ["--kexec-syscall", "-d"], "kexec_file_load": ["--kexec-file-syscall"]}
_OURS = "console=ttyAMA0 cryptomgr.notests kexecemu.wait=1 kexecemu.records=console"


@shown()
@dataclass(frozen=True)
class LinuxSetup:
    """What decides a run: the first kernel's Image, the crash kernel's with its initrd, and the programs for the init.

    kexec is kexec-tools' program, packages the folder with its libraries. cmdline is the first kernel's, append the
    crash kernel's. syscall is the call by which kexec-tools loads; few kernels are built with kexec_file_load, and of
    those only patched ones have a purgatory for it. checks False is kexec's --no-checks: its purgatory then hashes
    nothing. stuck_cpus hear no interrupt from the moment of the crash on. seed decides KASLR and random numbers of the
    first kernel.
    """

    image: bytes
    crash_image: bytes
    crash_initrd: bytes
    busybox: Path
    kexec: Path
    packages: Path
    ram: str | int = DEFAULT_RAM
    cpus: int = 1
    gic: int | None = None
    cmdline: str = DEFAULT_CMDLINE
    append: str = CAPTURE_CMDLINE
    syscall: str = "kexec_load"
    checks: bool = True
    stuck_cpus: tuple[int, ...] = ()
    seed: int = 0


class ConsoleWatch(ConsoleLines):
    """Stops the machine at a line on the console that has what it was told."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(self._hear)
        self.wanted: tuple[str, ...] = ()
        self.hit: str | None = None
        """The last line that was wanted."""
        self._stop = stop

    def _hear(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip("\r")
        if any(mark in text for mark in self.wanted):
            self.hit = text
            self._stop()


def boot_linux(board: Board, setup: LinuxSetup) -> bytes:
    """Everything into RAM, and the boot CPU at the kernel's entry; returns the device tree.

    InputError when RAM is too small for it or the CPU lacks its pages, and what first_kernel_initramfs() raises.
    """
    page = first_page_size(setup.image)
    if not has_granule(CORTEX_A57_MMFR0, page):
        pages = f"pages of {page >> 10} KiB, which the board's Cortex-A57 has not"
        raise InputError(f"the first Linux has {pages}: it would stop at its first instructions")
    initrd = first_initrd(setup)
    bank = board.ram.banks[0]
    place = PhysRange.of(bank.start + min(bank.size // 2, _INITRD_OFFSET) // _PAGE * _PAGE, len(initrd))
    dtb = _device_tree(board, setup, place)
    size = parse_header(setup.image).image_size or len(setup.image)
    places = choose_places(board.ram, size, Fdt(dtb))
    if not bank.covers(place) or place.overlaps(PhysRange.of(places.kernel_phys, size)):
        raise InputError(f"RAM of {bank.size:#x} bytes is too small for an initrd of {len(initrd):#x} bytes")
    for phys, data in ((places.kernel_phys, setup.image), (place.start, initrd), (places.dtb_phys, dtb)):
        board.ram.write(phys, data)
    board.boot_cpu.reset(places.kernel_phys, places.dtb_phys)
    kernel, tree = places.kernel_phys, places.dtb_phys
    words = f"the boot loader starts Linux at {kernel:#x}, initrd at {place}, device tree at {tree:#x}"
    board.timeline.record("boot", words, entry_phys=kernel, dtb_phys=tree)
    return dtb


def first_initrd(setup: LinuxSetup) -> bytes:
    """The first kernel's initramfs: it loads, waits for a line, and crashes. Errors as first_kernel_initramfs()."""
    return first_kernel_initramfs(
        busybox=setup.busybox,
        kexec=setup.kexec,
        packages=setup.packages,
        image=setup.crash_image,
        initrd=setup.crash_initrd,
        cmdline=setup.append,
        options=_OPTIONS[setup.syscall] + ([] if setup.checks else ["--no-checks"]),
    )


def first_cmdline(setup: LinuxSetup) -> str:
    """Its command line: the setup's, and what that init is told."""
    return f"{setup.cmdline} {_OURS}"


def kaslr_is_off(setup: LinuxSetup) -> bool:
    """Whether its command line turns KASLR off, in any release's words."""
    return kaslr_disabled(setup.cmdline, {one.rules.nokaslr_field for one in Era})


def first_page_size(image: bytes) -> int:
    """Of the kernel in an Image, in bytes, by its header: what it can leave of itself asks for /proc/kcore."""
    return parse_header(image).page_size or _PAGE


def _device_tree(board: Board, setup: LinuxSetup, initrd: PhysRange) -> bytes:
    seeds = random.Random(setup.seed)
    kaslr_seed, rng_seed = seeds.getrandbits(64), seeds.randbytes(32)
    return virt_device_tree(
        board.ram.banks,
        setup.cpus,
        board.uart.base_phys,
        cmdline=first_cmdline(setup),
        virtio_slots=(DUMP_SLOT,),
        rtc=True,
        initrd=initrd,
        # Linux leaves a seed that it does not use, and kexec-tools refuses to load where one is left.
        kaslr_seed=None if kaslr_is_off(setup) else kaslr_seed,
        rng_seed=rng_seed,
        gic=board.gic.version,
    )
