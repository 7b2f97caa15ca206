"""The system call: kexec_file_load(), in the kernel's order, each refusal with its errno (kernel/kexec_file.c).

What the running kernel must lend to it (its memory, its device tree, its tables) is the protocol RunningKernel, so
that this file reads like the one it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EBUSY, EINVAL, ENOSYS, EPERM
from typing import Protocol

from kexecemu.errors import InputError, KexecError
from kexecemu.formats import elfrel
from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.devtree import add_verdict_record
from kexecemu.kernel.files import OpenFile, kernel_read_file
from kexecemu.kernel.kexec_core import alloc_crash_control_pages, sanity_check_segment_list
from kexecemu.kernel.kexec_image import CrashFiles, LoadContext, image_load, image_probe
from kexecemu.kernel.kimage import (
    KEXEC_FILE_NO_INITRAMFS,
    KEXEC_FILE_ON_CRASH,
    KEXEC_FILE_UNLOAD,
    Kimage,
)
from kexecemu.kernel.purgatory_guard import check_guard, make_guard
from kexecemu.kernel.purgatory_setup import check_demands, set_up_purgatory, tables_text
from kexecemu.machine.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["KexecFile", "RunningKernel", "add_control_pages"]

_KEXEC_CONTROL_PAGE_SIZE = 4096


class RunningKernel(Protocol):
    """What kexec_file_load() needs of the kernel that it runs in."""

    @property
    def config(self) -> KernelConfig:
        """The running kernel's build."""

    @property
    def ram(self) -> Ram:
        """Physical memory."""

    @property
    def crashk_res(self) -> PhysRange | None:
        """The physical range that is reserved for the crash kernel."""

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""

    @property
    def total_ram_pages(self) -> int:
        """totalram_pages()."""

    @property
    def console_phys(self) -> int:
        """Physical address of the PL011 that is the console, 0 for none."""

    def elf_headers(self) -> bytes:
        """prepare_elf_headers(): the core's header, whole pages."""

    @property
    def free_memory(self) -> Sequence[PhysRange]:
        """for_each_free_mem_range(): physical memory that memblock has not reserved, ascending."""

    def next_device_tree(
        self, initrd: PhysRange | None, elfcorehdr: PhysRange | None, cmdline: str | None
    ) -> bytes:
        """of_kexec_alloc_and_setup_fdt() and fdt_pack(); initrd is the exact range of its bytes.

        elfcorehdr is None for an ordinary image.
        """

    def load_normal(self, image: Kimage) -> None:
        """kimage_load_normal_segment() for all segments, and machine_kexec_post_load()."""

    def publish_reboot(self, image: Kimage | None) -> None:
        """The exchange of kexec_image in the kernel's own memory."""

    def copy_vmcoreinfo(self, safecopy: PhysRange) -> bytes:
        """crash_update_vmcoreinfo_safecopy(); returns the text."""

    def protect(self, image: Kimage) -> None:
        """arch_kexec_protect_crashkres()."""

    def unprotect(self, image: Kimage) -> None:
        """arch_kexec_unprotect_crashkres()."""

    def publish(self, image: Kimage | None) -> None:
        """The exchange of kexec_crash_image in the kernel's own memory."""

    def log(self, text: str) -> None:
        """printk()."""

    def say(self, kind: str, text: str, **facts: int | str | bool | None) -> None:
        """Record an event on the timeline."""


class SignaturePolicy(Protocol):
    """What decides whether a kernel may be loaded: kexecemu.kernel.policy.KexecSignaturePolicy, or a test's own."""

    def check(self, image: bytes, log: Callable[[str], None]) -> None:
        """kimage_validate_signature(): return if it may be loaded, raise KexecError if not."""


Prepare = Callable[[], Kimage]


@shown("crash_image", "reboot_image", "locked", "load_disabled")
class KexecFile:
    """The state behind the system calls: the lock, the images that are loaded."""

    def __init__(self, running: RunningKernel, purgatory: elfrel.RelocatableObject | None) -> None:
        self.running = running
        self._purgatory_object = purgatory
        self.locked = False  # __kexec_lock: held by a load under way
        self.load_disabled = False  # sysctl kernel.kexec_load_disabled
        self.signature_policy: SignaturePolicy | None = None  # None: CONFIG_KEXEC_SIG is off
        self.crash_image: Kimage | None = None
        self.reboot_image: Kimage | None = None

    def load(
        self,
        kernel: OpenFile | bytes | None,
        initrd: OpenFile | bytes | None,
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
        if not self.running.config.enabled("KEXEC_FILE"):
            raise KexecError(ENOSYS, step, "the kernel is built without CONFIG_KEXEC_FILE")
        if not capable or self.load_disabled:
            raise KexecError(EPERM, step, "needs CAP_SYS_BOOT, and kexec_load_disabled must be 0")
        if flags & ~self.running.config.release.rules.file_load_flags:
            raise KexecError(EINVAL, step, f"unknown flags {flags:#x}")
        exchange = self.exchange if flags & KEXEC_FILE_ON_CRASH else self.exchange_reboot
        if flags & KEXEC_FILE_UNLOAD:
            return exchange(None)
        return exchange(lambda: self._prepare(kernel, initrd, cmdline, flags))

    def exchange(self, prepare: Prepare | None) -> Kimage | None:
        """The common part of both system calls for a crash image, under the lock; prepare is None for an unload.

        Raises KexecError(EBUSY) while another load is under way, and whatever prepare() raises.
        """
        if self.locked:
            raise KexecError(EBUSY, "kexec_trylock", "another load is under way")
        self.locked = True
        try:
            if self.crash_image is not None:
                self.running.unprotect(self.crash_image)
            # The old image goes before the new one is known to be good: a failed reload leaves no crash kernel.
            self._publish(None)
            if prepare is None:
                self.running.say("unload", "the crash image is unloaded")
                return None
            image = prepare()
            for segment in image.segments:
                # kimage_load_crash_segment(): the buffer, then zeros to memsz.
                self.running.ram.write(segment.mem, segment.buf)
                self.running.ram.fill(segment.mem + segment.bufsz, segment.memsz - segment.bufsz)
            self._publish(image)
            return image
        finally:
            try:
                self._protect()
            finally:
                self.locked = False

    def _protect(self) -> None:
        """Protect what is loaded; an image that this kernel's linear map cannot protect is not left half protected."""
        if self.crash_image is None:
            return
        try:
            self.running.protect(self.crash_image)
        except InputError:
            self._publish(None)
            raise

    def exchange_reboot(self, prepare: Prepare | None) -> Kimage | None:
        """The common part for an ordinary image: the old one stays until the new one is complete."""
        if self.locked:
            raise KexecError(EBUSY, "kexec_trylock", "another load is under way")
        self.locked = True
        try:
            image = prepare() if prepare is not None else None
            if image is not None:
                self.running.load_normal(image)
            self.reboot_image = image
            self.running.publish_reboot(image)
            return image
        finally:
            self.locked = False

    def _publish(self, image: Kimage | None) -> None:
        self.crash_image = image
        self.running.publish(image)

    def _prepare(
        self,
        kernel: OpenFile | bytes | None,
        initrd: OpenFile | bytes | None,
        cmdline: bytes | None,
        flags: int,
    ) -> Kimage:
        """kimage_file_alloc_init(): everything up to the copy."""
        running = self.running
        crashk_res = running.crashk_res
        image_file = kernel_read_file("kernel", kernel)
        image_probe(image_file)
        if self.signature_policy is not None:
            self.signature_policy.check(image_file, running.log)
        ramdisk = None if flags & KEXEC_FILE_NO_INITRAMFS else kernel_read_file("initrd", initrd)
        text = _command_line(cmdline)
        crash = bool(flags & KEXEC_FILE_ON_CRASH)
        image = Kimage(control_page=crashk_res.start if crashk_res and crash else 0, crash=crash)
        config, obj = running.config, self._purgatory_object
        if obj is not None:
            check_demands(obj, config)
            check_guard(config)
        chosen = obj is not None and config.enabled("KEXEC_PURGATORY_CHOSEN")

        def make_dtb(initrd_area: PhysRange | None, core: PhysRange | None) -> bytes:
            tree = running.next_device_tree(initrd_area, core, text)
            return add_verdict_record(tree) if chosen else tree

        context = LoadContext(
            config.release,
            running.page_size,
            crashk_res,
            obj,
            running.console_phys,
            tuple(running.free_memory),
            config.enabled("KEXEC_PURGATORY_PAGE_DIGESTS"),
            config.enabled("KEXEC_PURGATORY_COPY"),
        )
        files = CrashFiles(
            image_file,
            ramdisk,
            running.elf_headers() if crash else None,
            make_dtb,
        )
        image_load(image, files, context)
        sanity_check_segment_list(image, crashk_res, running.total_ram_pages, running.page_size)
        if crash:
            add_control_pages(running, image)
        if image.purgatory is not None:
            set_up_purgatory(image, image.purgatory, config, sink_phys=running.console_phys)
            cost = tables_text(image)
            if crash:
                image.guard = make_guard(image, image.purgatory, config)
            if cost is not None:
                running.say("purgatory_tables", cost)
        return image


def add_control_pages(running: RunningKernel, image: Kimage) -> None:
    """The pages of the crash region that are no segments: for the control code, and for the copy of vmcoreinfo."""
    crashk_res = running.crashk_res
    assert crashk_res is not None  # no segment could have been placed otherwise
    size = max(_KEXEC_CONTROL_PAGE_SIZE, running.page_size)
    image.control_code_page = alloc_crash_control_pages(image, crashk_res, size, "control_code_buffer").start
    safecopy = alloc_crash_control_pages(image, crashk_res, running.page_size, "vmcoreinfo copy buffer")
    image.vmcoreinfo_safecopy = safecopy.start
    image.vmcoreinfo = running.copy_vmcoreinfo(safecopy)


def _command_line(cmdline: bytes | None) -> str | None:
    if not cmdline:
        return None
    if cmdline[-1] != 0:
        raise KexecError(EINVAL, "kimage_file_prepare_segments", "the command line does not end in NUL")
    return cmdline.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
