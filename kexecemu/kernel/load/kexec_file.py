"""The system call: kexec_file_load(), in the kernel's order, each refusal with its errno (kernel/kexec_file.c).

load() does to a running kernel what the system call does; what is arm64's own in it is environment.py.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBUSY, EINVAL, ENOSYS, EPERM
from functools import partial

from kexecemu.errors import InputError, KexecError
from kexecemu.kernel.base.config import Way
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image import ways
from kexecemu.kernel.image.kimage import (
    DM_CRYPT_KEYS,
    IMA,
    KEXEC_FILE_DEBUG,
    KEXEC_FILE_NO_CMA,
    KEXEC_FILE_NO_INITRAMFS,
    KEXEC_FILE_ON_CRASH,
    KEXEC_FILE_UNLOAD,
    Kimage,
)
from kexecemu.kernel.image.purgatory_guard import check_guard, make_guard
from kexecemu.kernel.load import environment, ima
from kexecemu.kernel.load.contiguous import Contiguous, contiguous
from kexecemu.kernel.load.devtree import add_verdict_record
from kexecemu.kernel.load.dm_crypt import keys_header
from kexecemu.kernel.load.files import FileOrBytes, kernel_read_file
from kexecemu.kernel.load.kexec_core import alloc_crash_control_pages, sanity_check_segment_list
from kexecemu.kernel.load.kexec_image import CrashFiles, LoadContext, image_load, image_probe
from kexecemu.kernel.load.kho import chosen_properties, fill_kimage
from kexecemu.kernel.load.purgatory_setup import check_demands, set_up_purgatory, tables_text
from kexecemu.machine.ranges import PhysRange

__all__ = ["add_control_pages", "exchange", "load"]

Prepare = Callable[[], Kimage]


def load(
    state: KernelState,
    kernel: FileOrBytes,
    initrd: FileOrBytes,
    cmdline: bytes | None,
    flags: int,
    *,
    capable: bool = True,
) -> Kimage | None:
    """kexec_file_load(2). kernel and initrd are open files, or just their bytes (None: a bad descriptor).

    cmdline is what the caller passes, with its NUL; None or b"" is a length of 0 and deletes bootargs. capable
    is CAP_SYS_BOOT. Returns the image, None after an unload; raises KexecError with the syscall's errno.
    """
    step = "kexec_file_load"
    if not state.config.enabled("KEXEC_FILE"):
        raise KexecError(ENOSYS, step, "the kernel is built without CONFIG_KEXEC_FILE")
    if not capable or state.kexec.load_disabled:
        raise KexecError(EPERM, step, "needs CAP_SYS_BOOT, and kexec_load_disabled must be 0")
    if flags & ~state.config.release.rules.file_load_flags:
        raise KexecError(EINVAL, step, f"unknown flags {flags:#x}")
    change = exchange if flags & KEXEC_FILE_ON_CRASH else _exchange_reboot
    if flags & KEXEC_FILE_UNLOAD:
        return change(state, None)
    image = change(state, lambda: _prepare(state, kernel, initrd, cmdline, flags))
    if image is not None and flags & KEXEC_FILE_DEBUG:
        places = f"start:{image.start:#x} head:{image.head:#x}"
        state.log(f"kexec_file: kexec_file_load: type:{int(image.crash)}, {places} flags:{flags:#x}")
    return image


def exchange(state: KernelState, prepare: Prepare | None) -> Kimage | None:
    """The common part of both system calls for a crash image, under the lock; prepare is None for an unload.

    Raises KexecError(EBUSY) while another load is under way, and whatever prepare() raises.
    """
    with _locked(state):
        try:
            if state.kexec.crash_image is not None:
                environment.unprotect(state, state.kexec.crash_image)
            # The old image goes before the new one is known to be good: a failed reload leaves no crash kernel.
            _publish(state, None)
            if prepare is None:
                state.say("unload", "the crash image is unloaded")
                return None
            image = prepare()
            for segment in image.segments:
                # kimage_load_crash_segment(): the buffer, then zeros to memsz.
                state.ram.write(segment.mem, segment.buf)
                state.ram.fill(segment.mem + segment.bufsz, segment.memsz - segment.bufsz)
            _publish(state, image)
            return image
        finally:
            _protect(state)


@contextmanager
def _locked(state: KernelState) -> Iterator[None]:
    """Under __kexec_lock."""
    if state.kexec.locked:
        raise KexecError(EBUSY, "kexec_trylock", "another load is under way")
    state.kexec.locked = True
    try:
        yield
    finally:
        state.kexec.locked = False


def _protect(state: KernelState) -> None:
    """Protect what is loaded; an image that this kernel's linear map cannot protect is not left half protected."""
    if state.kexec.crash_image is None:
        return
    try:
        environment.protect(state, state.kexec.crash_image)
    except InputError:
        _publish(state, None)
        raise


def _machine_kexec_prepare(state: KernelState) -> None:
    """machine_kexec_prepare() of an ordinary image: EBUSY where CPUs cannot be put out of this kernel."""
    if state.cpus.spin_tables:
        state.log("Can't kexec: CPUs are stuck in the kernel.")
        raise KexecError(EBUSY, "machine_kexec_prepare", "CPUs are stuck in the kernel: they have no way off")


def _exchange_reboot(state: KernelState, prepare: Prepare | None) -> Kimage | None:
    """The common part for an ordinary image: the old one stays until the new one is complete."""
    with _locked(state):
        image = prepare() if prepare is not None else None
        if image is not None:
            _machine_kexec_prepare(state)
        relocation = environment.load_normal(state, image) if image is not None else None
        state.kexec.reboot_image = image
        environment.publish_reboot(state, image, relocation)
        return image


def _publish(state: KernelState, image: Kimage | None) -> None:
    state.kexec.crash_image = image
    environment.publish(state, image)


def _prepare(
    state: KernelState, kernel: FileOrBytes, initrd: FileOrBytes, cmdline: bytes | None, flags: int
) -> Kimage:
    """kimage_file_alloc_init(): everything up to the copy."""
    crashk_res = state.crashk_res
    image_file = kernel_read_file("kernel", kernel)
    image_probe(image_file)
    if state.kexec.signature_policy is not None:
        state.kexec.signature_policy.check(image_file, state.log)
    ramdisk = None if flags & KEXEC_FILE_NO_INITRAMFS else kernel_read_file("initrd", initrd)
    text = _command_line(cmdline)
    crash = bool(flags & KEXEC_FILE_ON_CRASH)
    image = Kimage(control_page=crashk_res.start if crashk_res and crash else 0, crash=crash)
    config, obj = state.config, state.kexec.purgatory
    ways.check_way(config, obj)
    if obj is not None:
        check_demands(obj, config)
        check_guard(config)
    chosen = obj is not None and config.enabled("KEXEC_PURGATORY_CHOSEN")
    in_cma = None if flags & KEXEC_FILE_NO_CMA else contiguous(state, image)
    ima.add_kexec_buffer(state, image, in_cma)
    measured = image.segment(IMA)
    if state.kho and not crash:
        fill_kimage(state, image)

    def make_dtb(initrd_area: PhysRange | None, core: PhysRange | None) -> bytes:
        keys = image.segment(DM_CRYPT_KEYS)
        tree = environment.next_device_tree(
            state,
            initrd_area,
            core,
            text,
            measured.area if measured else None,
            PhysRange.of(keys.mem, keys.bufsz) if keys else None,
            chosen_properties(state, image),
        )
        return add_verdict_record(tree) if chosen else tree

    headers = environment.elf_headers(state, state.crashk_cma_ranges) if crash else None
    keys = keys_header(state.kexec.dm_crypt_keys) if crash and state.kexec.dm_crypt_keys else None
    image_load(
        image, CrashFiles(image_file, ramdisk, headers, make_dtb, keys), _load_context(state, in_cma, flags)
    )
    sanity_check_segment_list(image, crashk_res, state.total_ram_pages, config.page_size)
    if crash:
        add_control_pages(state, image)
    if image.purgatory is not None:
        safe = state.kho is not None or all(one.cma for one in image.segments)
        unchecked = safe and not crash and config.release.rules.skips_checksum
        set_up_purgatory(image, image.purgatory, config, sink_phys=state.sink_phys, unchecked=unchecked)
        cost = tables_text(image)
        if crash:
            image.guard = make_guard(image, image.purgatory, config)
        if crash and config.check_way is Way.TRANS_PGD:
            ways.make_map(image, state.ram, state.tables.fmt, *_map_pages(state, image))
        if cost is not None:
            state.say("purgatory_tables", cost)
    elif crash and config.check_way is Way.MACHINE_KEXEC:
        ways.keep_digest(image)
    if flags & KEXEC_FILE_DEBUG:
        state.log(f"kexec_file: nr_segments = {len(image.segments)}")
    return image


def _map_pages(state: KernelState, image: Kimage) -> tuple[Callable[[], PhysRange], PhysRange | None]:
    """Where tables of a load's own find pages, and the page of the console's registers."""
    crashk_res, size = state.crashk_res, state.config.page_size
    assert crashk_res is not None
    uart = PhysRange.of(state.console_phys & -size, size) if state.console_phys else None
    return partial(alloc_crash_control_pages, image, crashk_res, size, "page tables"), uart


def _load_context(state: KernelState, in_cma: Contiguous | None, flags: int) -> LoadContext:
    config = state.config
    return LoadContext(
        era=config.release,
        page_size=config.page_size,
        crashk_res=state.crashk_res,
        purgatory=state.kexec.purgatory,
        uart_phys=state.console_phys,
        free_memory=tuple(state.arch.memblock.free_ranges()),
        page_digests=config.enabled("KEXEC_PURGATORY_PAGE_DIGESTS"),
        copy=config.enabled("KEXEC_PURGATORY_COPY"),
        mmfr0=state.board.boot_cpu.sysreg("ID_AA64MMFR0_EL1"),
        scratch=state.kho.areas if state.kho else None,
        contiguous=in_cma,
        debug=state.log if flags & KEXEC_FILE_DEBUG else None,
        # The seeds in the device tree are numbers of their own, and another load has the same places.
        random=partial(random.Random(state.seed).getrandbits, 16),
        garbage=config.release.rules.garbage_in_kexec_buf if config.enabled("KEXEC_BUF_GARBAGE") else (),
    )


def add_control_pages(state: KernelState, image: Kimage) -> None:
    """The pages of the crash region that are no segments: for the control code, and for the copy of vmcoreinfo."""
    crashk_res = state.crashk_res
    assert crashk_res is not None  # no segment could have been placed otherwise
    size = state.config.page_size  # KEXEC_CONTROL_PAGE_SIZE, 4 KiB, is no more in any
    image.control_code_page = alloc_crash_control_pages(image, crashk_res, size, "control_code_buffer").start
    safecopy = alloc_crash_control_pages(image, crashk_res, size, "vmcoreinfo copy buffer")
    image.vmcoreinfo_safecopy = safecopy.start
    image.vmcoreinfo = environment.copy_vmcoreinfo(state, safecopy)


def _command_line(cmdline: bytes | None) -> str | None:
    if not cmdline:
        return None
    if cmdline[-1] != 0:
        raise KexecError(EINVAL, "kimage_file_prepare_segments", "the command line does not end in NUL")
    return cmdline.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
