"""The arm64 Image loader: image_load() and load_other_segments() (kexec_image.c, machine_kexec_file.c)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EINVAL
from functools import partial

from kexecemu.errors import KexecError
from kexecemu.formats import elfrel
from kexecemu.formats.image import has_magic
from kexecemu.formats.image import parse as parse_header
from kexecemu.formats.kernel_file import NO_MAGIC, kernel_file
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.image.digests import described_segments, page_digests_size
from kexecemu.kernel.image.kimage import COPY, DM_CRYPT_KEYS, PAGE_DIGESTS, Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.load import devtree
from kexecemu.kernel.load.kexec_core import Random, add_buffer
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CORTEX_A57_MMFR0", "CrashFiles", "LoadContext", "has_granule", "image_load", "image_probe"]

_MIN_KIMG_ALIGN = 2 << 20
_ELFCOREHDR_ALIGN = 64 << 10
_DTB_ALIGN = 2 << 20
_1G = 1 << 30
_INITRD_WINDOW = 32 << 30

# Fields of ID_AA64MMFR0_EL1, and which of their values say "supported" (system_supports_4kb_granule() and its like).
_BIG_END = 8
_GRANULES = {4096: (28, range(8)), 16384: (20, range(1, 8)), 65536: (24, range(8))}
CORTEX_A57_MMFR0 = 0x1124


def has_granule(mmfr0: int, size: int) -> bool:
    """Whether a CPU with this ID_AA64MMFR0_EL1 has pages of `size` bytes."""
    at, supported = _GRANULES[size]
    return mmfr0 >> at & 15 in supported


@shown()
@dataclass(frozen=True)
class LoadContext:
    """What the loader needs of the running kernel: where it may place things, and how it builds the rest.

    uart_phys is the console's physical address for the purgatory's report (0: silent). free_memory is where an ordinary
    image may lie: physical ranges in ascending order; scratch where it has to with KHO, contiguous has places in the
    CMA area. page_digests and copy ask for these two segments, which only a purgatory has a use for: 0.8 % of the
    image, and as much as the image itself. mmfr0 is the CPU's ID_AA64MMFR0_EL1.
    debug hears what KEXEC_FILE_DEBUG has the kernel say of each segment.
    random is get_random_u16(), for what goes to a random place; garbage are the functions that have it on their stack
    that their segments do.
    """

    era: Era
    page_size: int
    crashk_res: PhysRange | None
    purgatory: elfrel.RelocatableObject | None
    uart_phys: int
    free_memory: tuple[PhysRange, ...] = ()
    page_digests: bool = False
    copy: bool = False
    mmfr0: int = CORTEX_A57_MMFR0
    scratch: tuple[PhysRange, ...] | None = None
    contiguous: Callable[[int, int], int | None] | None = None
    random: Random | None = None
    garbage: tuple[str, ...] = ()
    debug: Callable[[str], None] | None = None

    def supports_granule(self, size: int) -> bool:
        """Whether the CPU has pages of `size` bytes: by its register, and those that the running kernel has."""
        return size == self.page_size or has_granule(self.mmfr0, size)

    def supports_mixed_endian(self) -> bool:
        """system_supports_mixed_endian()."""
        return self.mmfr0 >> _BIG_END & 15 == 1


@shown()
@dataclass(frozen=True)
class CrashFiles:
    """The bytes to load.

    elfcorehdr is None for an ordinary image. make_dtb(initrd, elfcorehdr) builds the device tree once it is known where
    these two lie (physical; the initrd's range is its exact length; None without one). dm_crypt_keys are the keys for
    the capture kernel, None for none.
    """

    kernel: bytes
    initrd: bytes | None
    elfcorehdr: bytes | None
    make_dtb: Callable[[PhysRange | None, PhysRange | None], bytes]
    dm_crypt_keys: bytes | None = None


def image_probe(kernel: bytes) -> None:
    """image_probe(): arm64's only loader takes files that begin with an arm64 Image header; KexecError(EINVAL)."""
    why = f"{len(kernel)} bytes, a header alone takes 64" if len(kernel) < 64 else None
    if why is None and not has_magic(kernel):
        why = str(kernel_file(kernel) or NO_MAGIC)
    if why is not None:
        raise KexecError(EINVAL, "image_probe", f"kernel: not an arm64 Image: {why}")


class _Loader:
    """One attempt after another to place the kernel and everything behind it."""

    def __init__(self, image: Kimage, files: CrashFiles, context: LoadContext) -> None:
        self.image = image
        self.files = files
        self.context = context

        place = partial(add_buffer, image, region=context.crashk_res, free_memory=context.free_memory)
        place = partial(place, scratch=context.scratch, contiguous=context.contiguous)
        self.add = partial(place, era=context.era, page_size=context.page_size)

    def _random(self, function: str) -> Random | None:
        """What kexec_buf.random on that function's stack makes of its segments' places."""
        return self.context.random if function in self.context.garbage else None

    def say(self, words: str, segment: Segment | None) -> None:
        """kexec_dprintk(): where a segment went, which the words have {at} for, and its sizes."""
        if self.context.debug is not None and segment is not None:
            sizes = f"bufsz={segment.bufsz:#x} memsz={segment.memsz:#x}"
            self.context.debug(f"{words.format(at=f'at {segment.mem:#x}')} {sizes}")

    def _add_dm_crypt_keys(self, keys: bytes) -> None:
        """crash_load_dm_crypt_keys(): anywhere in the region, in front of the kernel too, where chance has it."""
        found = self.add(DM_CRYPT_KEYS, keys, len(keys), 4096, top_down=False, random=self.context.random)
        self.say("Loaded dm crypt keys to kexec_buffer", found)

    def _add_tables(self, text_offset: int, buf_min: int) -> None:
        """Room for the segments that repeat or describe those before them: they are filled when these are final."""
        # place() is going to take the offset off the kernel.
        described = described_segments(self.image.segments)
        sizes = [one.memsz - (text_offset if one.name == "kernel" else 0) for one in described]
        if self.context.copy:
            self.add(COPY, bytes(sum(sizes)), sum(sizes), 0, buf_min)
        if self.context.page_digests:
            size = page_digests_size(sizes)
            self.add(PAGE_DIGESTS, bytes(size), size, 0, buf_min)

    def load_other_segments(
        self, kernel_phys: int, kernel_size: int, text_offset: int
    ) -> LoadedPurgatory | None:
        """load_other_segments(): elfcorehdr, initrd, dtb, and last the purgatory with what is only for it.

        The purgatory comes last so that the others stay where a kernel without one puts them, and so that nothing
        need be undone when they do not fit.
        """
        files, context = self.files, self.context
        add = partial(self.add, random=self._random("load_other_segments"))
        buf_min = kernel_phys + kernel_size
        kept = len(self.image.segments)
        try:
            core = None
            if files.elfcorehdr is not None:
                size = len(files.elfcorehdr)
                core = add("elfcorehdr", files.elfcorehdr, size, _ELFCOREHDR_ALIGN, buf_min)
                self.say("kexec_file: Loaded elf core header {at}", core)
            if files.dm_crypt_keys is not None:
                self._add_dm_crypt_keys(files.dm_crypt_keys)
            initrd = None
            if files.initrd is not None:
                limit = (kernel_phys & ~(_1G - 1)) + _INITRD_WINDOW
                size = len(files.initrd)
                initrd = add("initrd", files.initrd, size, 0, buf_min, top_down=False, buf_max=limit)
            self.say("kexec_file: Loaded initrd {at}", initrd)
            initrd_area = PhysRange.of(initrd.mem, initrd.bufsz) if initrd else None
            # elf_headers_sz: not in whole pages where those are larger than 4 KiB.
            headers = PhysRange.of(core.mem, core.bufsz) if core else None
            dtb = files.make_dtb(initrd_area, headers)
            placed = add("dtb", dtb, len(dtb), _DTB_ALIGN, buf_min)
            self.image.dtb_mem, purgatory = placed.mem, None
            if context.purgatory is not None:
                self._add_tables(text_offset, buf_min)
                place = partial(self.add, "purgatory", buf_min=buf_min)
                purgatory = LoadedPurgatory(context.purgatory, place)
                self.say("kexec_file: Loaded purgatory {at}", purgatory.segment)
            self.say("kexec_file: Loaded dtb {at}", placed)
            return purgatory
        except KexecError:
            del self.image.segments[kept:]
            raise

    def place(self) -> tuple[Segment, LoadedPurgatory | None]:
        """The retry loop of image_load(): the next hole for the kernel when the rest does not fit behind it."""
        header = parse_header(self.files.kernel)
        if not header.image_size:
            raise KexecError(EINVAL, "image_load", "kernel: image_size is 0 in the Image header")
        if header.big_endian and not self.context.supports_mixed_endian():
            reason = (
                "kernel: a big-endian Image, and ID_AA64MMFR0_EL1.BigEnd says that this CPU cannot run it"
            )
            raise KexecError(EINVAL, "image_load", reason)
        if header.page_size and not self.context.supports_granule(header.page_size):
            size = header.page_size >> 10
            reason = f"kernel: it has pages of {size} KiB, and ID_AA64MMFR0_EL1.TGran{size} says that this CPU has none"
            raise KexecError(EINVAL, "image_load", reason)
        buf_min, random = 0, self._random("image_load")
        first_refusal: KexecError | None = None
        while True:
            try:
                size = header.image_size + header.text_offset
                kernel = self.add(
                    "kernel", self.files.kernel, size, _MIN_KIMG_ALIGN, buf_min, top_down=False, random=random
                )
            except KexecError as error:
                raise (first_refusal or error) from None
            try:
                purgatory = self.load_other_segments(kernel.mem, kernel.memsz, header.text_offset)
            except KexecError as error:
                if error.step == devtree.STEP:
                    # The loop tries one place after another, and returns what ends it: that there is no other one.
                    raise KexecError(EADDRNOTAVAIL, error.step, error.reason) from error
                if error.step != "kexec_add_buffer":
                    raise  # not for want of room: another place for the kernel would not mend it
                first_refusal = first_refusal or error
                self.image.segments.pop()
                buf_min = kernel.mem + kernel.memsz
                continue
            kernel.mem += header.text_offset
            kernel.memsz -= header.text_offset
            self.say("kexec_file(Image): Loaded kernel {at}", kernel)
            return kernel, purgatory


def image_load(image: Kimage, files: CrashFiles, context: LoadContext) -> None:
    """Place every segment of a crash image in `image`; set its entry and its purgatory.

    Raises KexecError with the errno and the kernel function that refused.
    """
    kernel, purgatory = _Loader(image, files, context).place()
    image.kernel_entry, image.purgatory = kernel.mem, purgatory
    if purgatory is None:
        image.start = kernel.mem
        return
    # image_load() sets image->start last and would overwrite the purgatory's entry: a port must not.
    image.start = purgatory.entry
    for name, value in (("purgatory_kernel_entry", kernel.mem), ("purgatory_uart_base", context.uart_phys)):
        if purgatory.has_symbol(name):
            purgatory.set_symbol(name, struct.pack("<Q", value))
