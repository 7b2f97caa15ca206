"""Loading a crash image as user space does it, by either system call, with an account on the timeline."""

from pathlib import Path

from kexecemu.arguments import contents, integer, text
from kexecemu.data import PURGATORIES, fixture_path, purgatory_path
from kexecemu.errors import InputError
from kexecemu.files import read_file
from kexecemu.formats import elfrel
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.elfrel import object_or_embedded
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.kernel.base.config import KernelConfig, Way
from kexecemu.kernel.boot.firmware import MAX_FDT_SIZE
from kexecemu.kernel.boot.resources import is_inserted
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image.kimage import KEXEC_FILE_NO_INITRAMFS, Kimage
from kexecemu.kernel.image.purgatory import parse_purgatory
from kexecemu.kernel.load import environment, kexec_file
from kexecemu.kernel.load.files import FileOrBytes, OpenFile
from kexecemu.kernel.load.kexec_load import KexecLoadArguments, kexec_load
from kexecemu.kernel.load.kexec_tools import MachineView, core_header_size, prepare_crash_load
from kexecemu.machine.timeline import Timeline
from kexecemu.suggest import did_you_mean

__all__ = ["kexec_file_load", "kexec_tools_load", "kexec_tools_purgatory", "purgatory_object", "tell_image"]


def _read_purgatory(named: str | Path) -> elfrel.RelocatableObject:
    path = purgatory_path(str(named)) if str(named) in PURGATORIES else Path(named)
    try:
        data = read_file(path)
    except OSError as error:
        like = did_you_mean(path.name, (*PURGATORIES, "none"))
        raise InputError(f"purgatory {path}: {error.strerror or error}{like}") from error
    return parse_purgatory(object_or_embedded(data), str(path))


def purgatory_object(config: KernelConfig) -> elfrel.RelocatableObject | None:
    """The purgatory inside the kernel that the configuration names, None for none.

    Raises InputError when its file cannot be read, KexecError(ENOEXEC) when it is no object for aarch64.
    """
    wanted = config.purgatory
    if wanted in (None, False, "none") or config.check_way is Way.MACHINE_KEXEC:
        return None
    if config.check_way is Way.TRANS_PGD and wanted in (True, "default"):
        return _read_purgatory(str(fixture_path("guests/mmu-on-purgatory.ro")))
    return _read_purgatory("default" if wanted is True else str(wanted))


def kexec_tools_purgatory(config: KernelConfig) -> elfrel.RelocatableObject:
    """The purgatory of user space: a stand-in with kexec-tools' interface, or the object that the caller names."""
    wanted = config.purgatory
    if wanted in (None, False, "none", True, "default"):
        return _read_purgatory(fixture_path("guests/kexec-tools-purgatory.ro"))
    return _read_purgatory(str(wanted))


def kexec_file_load(
    state: KernelState,
    image_file: FileOrBytes | str | Path,
    initrd: FileOrBytes | str | Path,
    cmdline: str | bytes | None,
    flags: int,
    *,
    capable: bool,
) -> Kimage | None:
    """kexec_file_load(2) as user space calls it; a str command line gets its NUL, an empty one too; None is no length.

    Files are bytes, paths, or open with all that may be wrong with that. Without an initrd KEXEC_FILE_NO_INITRAMFS is
    added, as kexec-tools does. Raises InputError for what no system call can be made of, KexecError for what it
    refuses; returns the image (None after an unload). A failed load leaves no crash kernel at all.
    """
    integer(flags, "flags")
    if cmdline is not None and not isinstance(cmdline, bytes):
        cmdline = to_bytes(text(cmdline, "cmdline")) + b"\0"
    if initrd is None:
        flags |= KEXEC_FILE_NO_INITRAMFS
    # A path is opened here, as user space does.
    kernel, ramdisk = (
        file if file is None or isinstance(file, OpenFile) else contents(file, what)
        for file, what in ((image_file, "kernel"), (initrd, "initrd"))
    )
    image = kexec_file.load(state, kernel, ramdisk, cmdline, flags, capable=capable)
    if image is not None:
        _tell_loaded(state, image, "kexec_file_load")
    return image


def kexec_tools_load(
    state: KernelState, image_file: bytes | str | Path, initrd: bytes | str | Path | None, cmdline: str
) -> Kimage:
    """`kexec -c -p`: kexec-tools prepares everything in user space, and kexec_load(2) copies it.

    Raises InputError for what kexec-tools refuses, KexecError for what the kernel does.
    """
    image_file = contents(image_file, "kernel")
    initrd = contents(initrd, "initrd") if initrd is not None else None
    text(cmdline, "cmdline")
    region = state.crashk_res
    if region is None or not is_inserted(state, region):
        raise InputError("kexec-tools: memory for crashkernel is not reserved")
    core_header = environment.kexec_tools_elf_headers(state)
    headers = len(parse_core_header(core_header).program_headers)
    view = MachineView(
        crash_kernel=region,
        device_tree=state.initial_boot_params,
        core_header=core_header[: core_header_size(headers)],
        sink_phys=state.sink_phys,
        page_size=state.config.page_size,
        crash_kernel_low=state.crashk_low_res,
        getrandom=(lambda: state.random.getrandbits(64)) if state.config.rng_ready else None,
    )
    prepared = prepare_crash_load(view, image_file, initrd, cmdline, kexec_tools_purgatory(state.config))
    for words in prepared.said:
        state.say("kexec-tools", f"kexec-tools: {words}")
    image = kexec_load(state, KexecLoadArguments(prepared.entry, prepared.segments), known=prepared)
    assert image is not None
    _tell_loaded(state, image, "kexec_load")
    return image


def tell_image(timeline: Timeline, image: Kimage, call: str, *, by: str, unchecked: str) -> None:
    """A loaded image in the account of a run: by which call, in words too, and in words why it has no digest."""
    for segment in image.segments:
        sizes = {"memsz": segment.memsz, "bufsz": segment.bufsz}
        words = f"{segment.name}: {segment.bufsz:#x} bytes at {segment.area} ({segment.memsz:#x} in memory)"
        timeline.record("segment", words, segment=segment.name, mem_phys=segment.mem, **sizes)
    digest = f"digest {image.digest.hex()}" if image.digest else unchecked
    what = "crash image" if image.crash else "image"
    words, found = f"{by}: {what} loaded, entry {image.start:#x}", image.digest
    found_hex = found.hex() if found else None
    timeline.record("loaded", f"{words}, {digest}", call=call, entry_phys=image.start, digest=found_hex)


def _tell_loaded(state: KernelState, image: Kimage, call: str) -> None:
    tell_image(state.board.timeline, image, call, by=call, unchecked="no purgatory and so no digest")
    tree = image.segment("dtb")
    if tree is not None and tree.bufsz > MAX_FDT_SIZE:
        size = f"{tree.bufsz:#x} bytes, more than {MAX_FDT_SIZE:#x}"
        state.say("dtb", f"the crash kernel's device tree has {size}: no kernel boots with it")
    protected = environment.protected(state)
    if protected:
        way, areas = state.config.way.value, ", ".join(map(str, protected))
        words = f"protection {way}: {areas} cannot be written through the linear map"
        state.say("protect", words, protection=way)
