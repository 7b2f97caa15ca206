"""What a real first kernel has loaded by kexec_file_load, found in its memory.

Of that call nobody says anything: kexec-tools hands over files, and whether the kernel has messages for it is a matter
of its release, its options and a flag. But memory has it: the device tree that of_kexec_alloc_and_setup_fdt() made,
known by its magic number, names the elfcorehdr and the initrd, and the kernel is its file's bytes at a place that
image_load() chooses. A kernel that has a purgatory has it in its Image (first_purgatory.py).
"""

from kexecemu.errors import FormatError, KexecError, MachineError
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.formats.fdt_blob import FDT_MAGIC
from kexecemu.formats.fdt_read import Fdt
from kexecemu.formats.image import parse as parse_header
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.load.devtree import elfcorehdr_area
from kexecemu.linux.first_purgatory import find_purgatory, hashed_regions
from kexecemu.linux.first_records import KexecSaid, SaidHeader, SaidSegment
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["find_load"]

_MIN_KIMG_ALIGN = 2 << 20


def find_load(
    ram: Ram, region: PhysRange, kernel: bytes, page_size: int, purgatory: RelocatableObject | None = None
) -> KexecSaid:
    """As kexec-tools would have said it: entry and segments (physical), and the headers of the core.

    kernel is the file that was loaded, region is crashk_res, page_size the first kernel's, and purgatory what that
    kernel has built in: it must then have been loaded. Raises MachineError where the region holds no such load.
    """
    memory = ram.read(region.start, region.size)
    tree_at, tree, core = _device_tree(memory, region, page_size)
    header = parse_header(kernel)
    kernel_at = -region.start % _MIN_KIMG_ALIGN + header.text_offset
    while kernel_at < len(memory) and not memory.startswith(kernel, kernel_at):
        kernel_at += _MIN_KIMG_ALIGN
    if kernel_at >= len(memory):
        raise MachineError(
            f"kexec_file_load: the crash region {region} does not hold the kernel that was loaded"
        )

    def segment(name: str, mem: int, bufsz: int, memsz: int | None = None) -> SaidSegment:
        return SaidSegment(name, mem, align_up(memsz or bufsz, page_size), bufsz)

    entry = region.start + kernel_at
    segments = [
        segment("kernel", entry, len(kernel), header.image_size),
        segment("elfcorehdr", core.start, core.size),
    ]
    chosen = tree.path_offset("/chosen") or 0
    start, end = (tree.get_u64(chosen, f"linux,initrd-{which}") for which in ("start", "end"))
    if start is not None and end is not None:
        segments.append(segment("initrd", start, end - start))
    segments.append(segment("dtb", region.start + tree_at, tree.totalsize))
    try:
        loads = parse_core_header(ram.read(core.start, core.size)).program_headers
    except FormatError as error:
        raise MachineError(f"kexec_file_load: the elfcorehdr at {core}: {error}") from error
    headers = [SaidHeader(one.type, one.paddr, one.vaddr, one.memsz) for one in loads]
    if purgatory is None:
        return KexecSaid(entry, segments, headers, {})
    found = _purgatory(ram, region, purgatory, page_size)
    order = [area.start for area in hashed_regions(found)]
    # IMA's list of measurements: there is nothing else that it could be.
    known = [one.mem for one in segments]
    others = [one for one in hashed_regions(found) if one.start not in known]
    segments += [segment("ima", one.start, one.size) for one in others]
    segments.sort(key=lambda one: order.index(one.mem) if one.mem in order else len(order))
    own = found.segment
    segments.append(SaidSegment("purgatory", own.mem, own.memsz, own.bufsz))
    symbols = {name: PhysRange.of(at, size) for name, (at, size) in found.symbol_table().items() if size}
    return KexecSaid(found.entry, segments, headers, symbols)


def _purgatory(ram: Ram, region: PhysRange, obj: RelocatableObject, page_size: int) -> LoadedPurgatory:
    try:
        found = find_purgatory(ram, region, obj, page_size)
    except KexecError as error:
        raise MachineError(f"kexec_file_load: the purgatory in the Image: {error.reason}") from error
    if found is None:
        raise MachineError(
            f"kexec_file_load: the crash region {region} does not hold the purgatory of the Image"
        )
    return found


def _device_tree(memory: bytes, region: PhysRange, page_size: int) -> tuple[int, Fdt, PhysRange]:
    """(offset in the region, tree, elfcorehdr) of the one whose elfcorehdr is in the region, too."""
    magic = FDT_MAGIC.to_bytes(4, "big")
    for at in range(0, len(memory), page_size):
        if not memory.startswith(magic, at):
            continue
        try:
            size = int.from_bytes(memory[at + 4 : at + 8], "big")
            tree = Fdt(memory[at : at + size])
            core = elfcorehdr_area(tree)
        except FormatError:
            continue
        if core is not None and region.covers(core):
            return at, tree, core
    raise MachineError(f"kexec_file_load: the crash region {region} holds no device tree with an elfcorehdr")
