"""From options to a kernel with a crash image loaded: the part that scenarios and the command line share."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kexecemu.arguments import contents, instance
from kexecemu.crash.kernel import Kernel
from kexecemu.data import PURGATORIES, fixture_path
from kexecemu.errors import InputError, KexecError, NothingReserved
from kexecemu.formats.image import has_magic
from kexecemu.formats.kernel_file import truncated
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.memory.crashkernel import tells_of_reservation, why_nothing
from kexecemu.limits import told
from kexecemu.linux.capture import DUMP_SLOT
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel, is_fetched
from kexecemu.linux.other_board import board_parameters
from kexecemu.machine.board import Board, parse_size
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.board import board_of, efi_map_of, filled_tree, iomem_of, tree_with_disk
from kexecemu.scenario.options import Setup, check_keys, check_modules, check_way
from kexecemu.scenario.padding import padded_initrd
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault
from kexecemu.stray.inject import inject

__all__ = [
    "Booted",
    "Listener",
    "Setup",
    "Truncated",
    "boot",
    "load_disturbed",
    "no_reservation",
    "prepare",
    "settle",
]

_FILLED = "RAM is put where the device tree leaves room for it: the board's firmware may put it elsewhere"
_OTHER_BOARD = (
    "devices of the board that are not emulated have registers that read as zero; a disk for the dump is added to its "
    "tree"
)

# Hears each chunk of the console as it is sent.
Listener = Callable[[bytes], object]


def _own_tree(setup: Setup, board: Board) -> bytes | None:
    """The device tree of a board that a real Linux finds a disk on; None where the kernel's usual one does."""
    if setup.capture != "linux":
        return None
    places = board.ram.banks, len(board.cpus), board.uart.base_phys
    return virt_device_tree(*places, virtio_slots=(DUMP_SLOT,), rtc=True, gic=board.gic.version)


def _padded(initrd: bytes | None, initrd_size: str | int, board: Board) -> bytes:
    if initrd is None:
        raise InputError("initrd_size: there is no initrd that it could be the size of")
    size = parse_size(initrd_size)
    ram = sum(bank.size for bank in board.ram.banks)
    if size >= ram:
        raise InputError(f"initrd_size is {size} bytes, but the machine has {ram} bytes of RAM in all")
    return padded_initrd(initrd, size)


def _files(setup: Setup) -> tuple[bytes, bytes | None, bytes | None]:
    """The crash kernel, its initrd and the device tree: read before anything runs, so that bad input costs no time."""
    linux = setup.capture == "linux"
    path = setup.kernel
    if linux or is_fetched(path):
        path = fetched_kernel(path)
    path = path or fixture_path("guests/capture-Image")
    image, initrd = contents(path, "kernel"), None
    if linux and setup.initrd is None:
        initrd = fetched_initrd(path, setup.modules)
    elif str(setup.initrd) != "none":
        initrd = contents(setup.initrd or fixture_path("guests/initrd.cpio"), "initrd")
    return image, initrd, contents(setup.dtb, "device tree") if setup.dtb else None


class NotModelled(UserWarning):
    """A real kernel would have done something else."""


class Truncated(UserWarning):
    """A file is cut off: neither kexec-tools nor a kernel finds out, and nor does this refuse it."""


@shown("setup", "kernel")
@dataclass(frozen=True)
class Booted:
    """A first kernel that is up, and what it is to load."""

    setup: Setup
    kernel: Kernel
    image: bytes
    initrd: bytes | None
    append: str

    def load(self) -> tuple[Kernel, Kimage]:
        """Load the crash image; KexecError when the load is refused."""
        kernel, setup = self.kernel, self.setup
        if kernel.crashk_res is None:
            raise NothingReserved(f"no crashkernel memory is reserved: {no_reservation(kernel)}")
        load = kernel.kexec_tools_load if setup.call == "kexec_load" else kernel.kexec_file_load
        try:
            loaded = load(self.image, self.initrd, self.append)
        except KexecError as error:
            raise _with_paths(error, setup) from error
        assert loaded is not None
        for words in self.file_warnings(loaded):
            warnings.warn(words, Truncated, stacklevel=2)
        return kernel, loaded

    def file_warnings(self, loaded: Kimage) -> list[str]:
        """What is wrong with the files that were loaded, and nobody minds: each in one line."""
        segment = loaded.segment("kernel")
        unpacked = bytes(segment.buf) if segment is not None else b""
        words = truncated(self.image if has_magic(self.image) else unpacked, self.setup.kernel)
        return [words] if words else []


def boot(setup: Setup, console: Listener | None = None) -> Booted:
    """Boot the first kernel. console hears what is printed, as it is printed. What it does not model is a warning.

    Raises InputError for files and options that cannot be used.
    """
    instance(setup, Setup, "setup")
    check_way(setup.way, setup.syscall)
    check_keys(setup.dm_crypt_keys, setup.syscall)
    check_modules(setup.modules, setup.initrd, setup.capture == "linux")
    taken = {name: getattr(setup, name) for name in ("protection", "purgatory", "rng_ready")}
    config = KernelConfig(setup.era, options=setup.config, check_way=setup.way, **taken)
    if setup.linux is not None:
        raise InputError("the first kernel is a real Linux: run and crash have those, this needs the model")
    image, initrd, dtb = _files(setup)
    efi_map, iomem = efi_map_of(setup), iomem_of(setup)
    says: list[str] = []
    if dtb is not None:
        given, dtb = dtb, filled_tree(setup, dtb)
        says += [told("firmware-ram", _FILLED)] if dtb is not given else []
    cmdline = setup.value("cmdline") if dtb is None else setup.cmdline
    disk = None
    if dtb is not None and setup.capture == "linux":
        dtb, disk = tree_with_disk(setup, dtb, efi_map, iomem)
    board = board_of(setup, dtb, efi_map, iomem, disk)
    if setup.initrd_size is not None:
        initrd = _padded(initrd, setup.initrd_size, board)
    if console is not None:
        board.uart.listeners.append(console)
    tree = _own_tree(setup, board) if dtb is None else dtb
    kernel = Kernel.boot(
        board, config, cmdline=cmdline, dtb=tree, seed=setup.seed, efi_map=efi_map, iomem=iomem
    )
    kernel.dm_crypt_keys = setup.dm_crypt_keys
    other = disk is not None and not disk.in_tree
    says += [told("other-devices", _OTHER_BOARD)] if other else []
    kernel.warned = (*kernel.not_modelled(), *says)
    for words in kernel.warned:
        warnings.warn(words, NotModelled, stacklevel=2)
    append = setup.value("append")
    if other and setup.append is None:
        append = f"{board_parameters(board.uart)} {append}"
    return Booted(setup, kernel, image, initrd, append)


def prepare(setup: Setup, console: Listener | None = None) -> tuple[Kernel, Kimage]:
    """boot(), and load the crash image. Raises InputError as that, KexecError when the load is refused."""
    return boot(setup, console).load()


def load_disturbed(
    setup: Setup, faults: Sequence[Fault], console: Listener | None = None
) -> tuple[Kernel, Kimage]:
    """prepare() with stray writes right before the segments are copied to where they belong.

    Where that is, and what would be there, is known from the same load without them.
    """
    other, _ = prepare(setup)
    try:
        booted = boot(setup, console)
        for fault in faults:
            inject(booted.kernel, fault, other.place(fault))
        kernel, image = booted.load()
        settle(kernel, lambda area: other.ram.read(area.start, area.size))
    finally:
        other.close()
    return kernel, image


def settle(kernel: Kernel, undisturbed: Callable[[PhysRange], bytes]) -> None:
    """What was written before the load counts by what the load has left of it, beside what it leaves undisturbed."""
    for number, one in enumerate(kernel.injections):
        area = PhysRange.of(one.phys, len(one.before))
        after = kernel.ram.read(area.start, area.size)
        before = undisturbed(area)
        over = one.changed and before == after
        kernel.injections[number] = replace(one, before=before, after=after, loaded_over=over)


def _with_paths(error: KexecError, setup: Setup) -> KexecError:
    """The same refusal, with the name of the file that it is about."""
    what, colon, rest = error.reason.partition(":")
    purgatory = setup.purgatory if setup.purgatory not in PURGATORIES else None
    path = {"kernel": setup.kernel, "initrd": setup.initrd, "purgatory": purgatory}.get(what)
    if not colon or path is None:
        return error
    return KexecError(error.errno or 0, error.step, f"{what} {path}:{rest}")


def no_reservation(kernel: Kernel) -> str:
    """Why a kernel has no crash memory, in its own words where it said any."""
    said = [line.split("] ", 1)[-1] for line in kernel.board.uart.text.splitlines()]
    words = [line for line in said if tells_of_reservation(line)]
    total = kernel.arch.memblock.phys_mem_size
    return why_nothing(kernel.config.release, kernel.boot_command_line, total, words)
