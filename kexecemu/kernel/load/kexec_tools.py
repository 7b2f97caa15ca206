"""What kexec-tools does in user space before it calls kexec_load(): files, places, device tree, core header, digest.

Followed: kexec/arch/arm64 and kexec/kexec.c of kexec-tools 2.0.25, as `kexec -c -p -d` printed it on real machines, and
kexec-pe-zboot.c of 2.0.29.
The kernel has no part in this: segments, purgatory and digest are made here, and the kernel copies what it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kexecemu.errors import FormatError, InputError
from kexecemu.formats import elfrel
from kexecemu.formats.fdt import FdtEditor
from kexecemu.formats.image import has_magic
from kexecemu.formats.image import parse as parse_header
from kexecemu.formats.kernel_file import (
    NO_MAGIC,
    VMLINUX,
    is_gzip,
    kernel_file,
    unpack_gzip,
    unpack_uimage,
    zboot,
)
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.kernel.boot.firmware import MAX_FDT_SIZE, chosen_node
from kexecemu.kernel.image.digests import calculate_digest
from kexecemu.kernel.image.kimage import Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.load.kexec_core import find_hole
from kexecemu.kernel.load.purgatory_setup import set_kexec_tools_digest, set_kexec_tools_places
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CrashLoad", "MachineView", "prepare_crash_load"]

_KERNEL_ALIGN = 2 << 20
_CORE_HEADER_ALIGN = 1024
_COMMAND_LINE_MAX = 2047
_UNPACKED_MAX = 1 << 30

# arm64_process_image_header(): what is taken for true of kernels up to 3.16, whose header says no size.
_OLD_TEXT_OFFSET = 0x80000
_OLD_IMAGE_SIZE = 16 << 20


@shown()
@dataclass(frozen=True)
class MachineView:
    """What user space can see of the running system, in /proc/iomem, /sys and /proc/kallsyms.

    crash_kernel is "Crash kernel" in /proc/iomem (physical), crash_kernel_low the lower one of two; device_tree is
    /sys/firmware/fdt; core_header builds the ELF core header from crash_notes, vmcoreinfo and "System RAM"; sink_phys
    is what --serial= leads to (0: none). getrandom gives 64 random bits; None is a kernel whose random numbers are not
    ready.
    """

    crash_kernel: PhysRange
    device_tree: bytes
    core_header: bytes
    sink_phys: int
    page_size: int
    getrandom: Callable[[], int] | None = None
    crash_kernel_low: PhysRange | None = None


@shown()
@dataclass(frozen=True)
class CrashLoad:
    """The arguments of kexec_load() that user space arrives at: the purgatory's entry and the sorted segments.

    said is what there was to say of the kernel's file, in words.
    """

    entry: int
    segments: list[Segment]
    purgatory: LoadedPurgatory
    kernel_entry: int
    dtb_phys: int
    digest: bytes
    regions: list[PhysRange] = field(default_factory=list)
    said: tuple[str, ...] = ()


class _Segments:
    """struct kexec_info: segments so far, and locate_hole() in the crash region."""

    def __init__(self, view: MachineView) -> None:
        self.region, self.page = view.crash_kernel, view.page_size
        self.taken: list[Segment] = []

    def add(
        self, name: str, buf: bytes | bytearray, memsz: int, hole_min: int, top_down: bool = False
    ) -> Segment:
        """add_buffer(): the first hole from hole_min up, or the last one of the region, in whole pages."""
        size = align_up(memsz, self.page)
        # locate_hole() has none of the kernel's quirk: it uses a region to its last page.
        mem = find_hole(
            self.region,
            self.taken,
            size,
            self.page,
            top_down=top_down,
            page_size=self.page,
            buf_min=hole_min,
        )
        if mem is None:
            wanted = f"a free area of memory of {size:#x} bytes for {name}"
            raise InputError(f"kexec-tools: could not find {wanted} in {self.region}")
        self.taken.append(Segment(name, buf, mem, size))
        return self.taken[-1]


def prepare_crash_load(
    view: MachineView, kernel: bytes, initrd: bytes | None, cmdline: str, purgatory: elfrel.RelocatableObject
) -> CrashLoad:
    """`kexec -c -p`: everything up to the system call.

    Raises InputError with kexec-tools' reason for files that it refuses or that do not fit, KexecError for a
    purgatory that cannot be linked or lacks kexec-tools' symbols.
    """
    said: list[str] = []
    for file, what in ((kernel, "kernel"), (initrd, "initrd")):
        if file is not None and not file:
            raise InputError(f"kexec-tools: cannot read the {what}: the file is empty")
    kernel = _unpack(kernel, said)
    if len(to_bytes(cmdline)) > _COMMAND_LINE_MAX:
        raise InputError(f"kexec-tools: the command line is longer than {_COMMAND_LINE_MAX} characters")
    header = parse_header(kernel)
    region = view.crash_kernel
    segments = _Segments(view)
    size, text_offset = header.image_size, header.text_offset
    if not size:
        size, text_offset = _OLD_IMAGE_SIZE, _OLD_TEXT_OFFSET
        said.append(f"the Image says no size: {size >> 20} MiB are taken for it, {text_offset:#x} into 2 MiB")
    kernel_mem = align_up(region.start, _KERNEL_ALIGN) + text_offset
    memsz = align_up(size, view.page_size)
    if len(kernel) > size:
        said.append(f"{len(kernel) - size:#x} bytes behind the Image's image_size are left out")
    core = segments.add("elfcorehdr", view.core_header, len(view.core_header), region.start, top_down=True)
    segments.taken.append(Segment("kernel", kernel[:size], kernel_mem, memsz))
    if kernel_mem + size > core.mem:
        raise InputError(
            f"kexec-tools: the kernel of {size:#x} bytes does not fit in crashkernel {region} of {region.size:#x} bytes"
        )
    hole_min = kernel_mem + size
    placed = segments.add("initrd", initrd, len(initrd), hole_min) if initrd is not None else None
    dtb = _second_device_tree(view, cmdline, core, placed)
    if len(dtb) > MAX_FDT_SIZE:
        raise InputError("kexec-tools: the device tree is too large")
    tree = segments.add("dtb", dtb, len(dtb), hole_min)
    loaded = LoadedPurgatory(
        purgatory, lambda buf, memsz, align: segments.add("purgatory", buf, memsz, hole_min)
    )
    set_kexec_tools_places(loaded, sink_phys=view.sink_phys, kernel_phys=kernel_mem, dtb_phys=tree.mem)
    ordered = sorted(segments.taken, key=lambda segment: segment.mem)
    # update_purgatory() goes through the sorted list: another order than the kernel's own digest has.
    digest, regions = calculate_digest(ordered)
    set_kexec_tools_digest(loaded, regions, digest)
    return CrashLoad(loaded.entry, ordered, loaded, kernel_mem, tree.mem, digest, regions, tuple(said))


def _unpack(data: bytes, said: list[str]) -> bytes:
    """slurp_decompress_file(), and the probes of file_type[]: the Image in a file."""
    inner, packed = data, zboot(data)
    try:
        if is_gzip(data):
            inner, cut_off = unpack_gzip(data, _UNPACKED_MAX)
            more = ", and there the file is cut off" if cut_off else ""
            said.append(f"the kernel is unpacked (gzip): {len(inner):#x} bytes{more}")
        elif packed is not None and packed.compression == "gzip":
            payload = data[packed.offset : packed.offset + packed.size]
            if len(payload) < packed.size:
                raise FormatError("zboot: the file is cut off")
            inner = unpack_gzip(payload, _UNPACKED_MAX).data
            words = "kexec-tools 2.0.27 or later does that; 2.0.25 refuses it"
            said.append(f"the kernel is unpacked (zboot, gzip): {len(inner):#x} bytes; {words}")
        carried = unpack_uimage(inner, _UNPACKED_MAX)
        if carried is not None:
            inner = carried
            said.append(f"the kernel is unpacked (uImage): {len(inner):#x} bytes")
    except FormatError as error:
        raise InputError(f"kexec-tools: {error}") from error
    found = kernel_file(inner)
    if found == VMLINUX:
        raise InputError("kexec-tools: kdump is not supported on arm64 for an ELF file, as vmlinux is")
    if has_magic(inner):
        return inner
    what = f": {found}" if found is not None else f" (no arm64 Image: {NO_MAGIC})"
    raise InputError(f"kexec-tools: cannot determine the file type of the kernel{what}")


def core_header_size(headers: int) -> int:
    """How many bytes crash_create_elf64_headers() takes for so many program headers: a multiple of 1024."""
    return align_up(64 + 56 * headers, _CORE_HEADER_ALIGN)


def _second_device_tree(view: MachineView, cmdline: str, core: Segment, initrd: Segment | None) -> bytes:
    """setup_2nd_dtb(): the running kernel's tree with /chosen changed; no memory reservations are added."""
    try:
        tree = FdtEditor(view.device_tree, len(view.device_tree) + len(cmdline) + 0x1000)
        chosen = chosen_node(tree)
        if cmdline:  # set_bootargs() leaves the running kernel's own where there is nothing to set
            # dtb_set_property() rounds every value up to whole cells.
            bootargs = to_bytes(cmdline) + b"\0"
            tree.setprop(chosen, "bootargs", bootargs.ljust(align_up(len(bootargs), 4), b"\0"))
        _renew_kaslr_seed(view, tree, chosen)
        # The exact length of the header here, not whole pages as in the kernel's tree.
        _set_ranges(tree, chosen, "linux,elfcorehdr", [(core.mem, core.bufsz)])
        areas = [area for area in (view.crash_kernel, view.crash_kernel_low) if area is not None]
        _set_ranges(tree, chosen, "linux,usable-memory-range", [(one.start, one.size) for one in areas])
        if initrd is not None:  # dtb_set_initrd(): 64 bits each
            tree.setprop_u64(chosen, "linux,initrd-start", initrd.mem)
            tree.setprop_u64(chosen, "linux,initrd-end", initrd.mem + initrd.bufsz)
        tree.pack()
        return tree.to_bytes()
    except FormatError as error:
        raise InputError(f"kexec-tools: {error}") from error


def _set_ranges(tree: FdtEditor, chosen: int, name: str, ranges: Sequence[tuple[int, int]]) -> None:
    """fdt_setprop_ranges(): where the property is there already, as in a kdump kernel's tree, it keeps its place."""
    if tree.getprop(chosen, name) is not None:
        tree.setprop(chosen, name, b"")
    for phys, size in ranges:
        tree.appendprop_addrrange(0, chosen, name, phys, size)


def _renew_kaslr_seed(view: MachineView, tree: FdtEditor, chosen: int) -> None:
    """A seed that the running kernel has used up becomes another one; 0, without random numbers, is no KASLR."""
    seed = tree.get_u64(chosen, "kaslr-seed")
    if seed is None:
        return
    if seed & 0xFFFFFFFF:  # it looks at an int of it
        raise InputError(
            "kexec-tools: kaslr-seed is not wiped to 0 (as by a kernel that was booted with nokaslr)"
        )
    tree.setprop_u64(chosen, "kaslr-seed", view.getrandom() if view.getrandom is not None else 0)
