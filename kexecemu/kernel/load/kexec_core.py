"""Finding room for segments and control pages, and checking the result (kernel/kexec_core.c, kexec_file.c)."""

from collections.abc import Callable, Sequence
from errno import EADDRNOTAVAIL, EINVAL, ENOMEM

from kexecemu.errors import KexecError
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.image.kimage import KEXEC_SEGMENT_MAX, Kimage, Segment
from kexecemu.machine.ranges import PhysRange

__all__ = ["Random", "add_buffer", "alloc_crash_control_pages", "find_hole", "sanity_check_segment_list"]

_ULONG_MAX = (1 << 64) - 1
_USHRT_MAX = 65535

Random = Callable[[], int]
"""get_random_u16(), where kexec_buf.random is set."""


def _conflict(start: int, last: int, taken: Sequence[Segment]) -> Segment | None:
    """kimage_is_destination_range(): the first segment that [start, last] meets."""
    return next((one for one in taken if last > one.mem and start < one.mem + one.memsz), None)


def _random_range_start(start: int, end: int, random: Random | None) -> int:
    """kexec_random_range_start(): so many 65535ths of the way from start to end (inclusive) ahead."""
    return start + (end - start) // _USHRT_MAX * random() if random is not None else start


def find_hole(
    region: PhysRange,
    taken: Sequence[Segment],
    size: int,
    align: int,
    *,
    top_down: bool,
    era: Era | None = None,
    page_size: int = 4096,
    buf_min: int = 0,
    buf_max: int = _ULONG_MAX,
    random: Random | None = None,
) -> int | None:
    """Find room for one segment inside a region, as kexec_locate_mem_hole() does.

    size and align are in bytes and whole pages; buf_min and buf_max (inclusive) bound the physical addresses.
    era is the kernel's that searches: None for another program, which has none of its quirks.
    With random the search begins that far ahead, from above too, where it may begin with the region's end behind it.
    Returns the segment's first physical address, or None when no hole is large enough.
    """
    if region.size < size or region.last < buf_min or region.start > buf_max:
        return None
    if top_down:
        # Before the fix the start is end - size with an inclusive end, so the region's last page is never used;
        # later kernels add the 1. A real 6.1.192 put its purgatory at 6fffc000-6fffefff of a region to 6fffffff.
        last = min(region.last, buf_max)
        start = last - size + (0 if era is not None and era.rules.top_down_skips_last_page else 1)
        start = _random_range_start(start, last, random)
        while True:
            start &= ~(align - 1)
            if start < region.start or start < buf_min:
                return None
            clash = _conflict(start, start + size - 1, taken)
            if clash is None:
                return start
            # The kernel goes down page by page; every page until here meets the same segment.
            start = min(start - page_size, clash.mem - size)
    start = _random_range_start(max(region.start, buf_min), region.last, random)
    while True:
        start = align_up(start, align)
        last = start + size - 1
        if last > region.last or last > buf_max:
            return None
        clash = _conflict(start, last, taken)
        if clash is None:
            return start
        start = max(start + page_size, clash.mem + clash.memsz)


def _largest_hole(region: PhysRange, taken: Sequence[Segment], buf_min: int) -> int:
    """The size in bytes of the largest piece of the region above buf_min that no segment covers (for messages)."""
    edges = sorted((one.mem, one.mem + one.memsz) for one in taken)
    position, largest = max(region.start, buf_min), 0
    for start, end in edges:
        largest = max(largest, start - position)
        position = max(position, end)
    return max(largest, region.end - position, 0)


def add_buffer(
    image: Kimage,
    name: str,
    buf: bytes | bytearray,
    memsz: int,
    align: int,
    buf_min: int = 0,
    *,
    region: PhysRange | None,
    era: Era,
    page_size: int,
    top_down: bool = True,
    buf_max: int = _ULONG_MAX,
    free_memory: Sequence[PhysRange] = (),
    scratch: Sequence[PhysRange] | None = None,
    contiguous: Callable[[int, int], int | None] | None = None,
    random: Random | None = None,
) -> Segment:
    """kexec_add_buffer(): give the buffer a place and append it as a segment.

    A crash image gets places in `region`, which is crashk_res, an ordinary one in `free_memory`: what memblock has not
    reserved, in ascending order (kexec_walk_memblock()); or with KHO only in `scratch`, in that order whichever way is
    searched then (kho_locate_mem_hole()). contiguous is asked first, where it is given: it has places in the CMA area
    (kexec_alloc_contig(), which asks neither for buf_min nor buf_max). Addresses are physical, sizes in bytes.
    With random the search begins at a random place of each region.
    Raises KexecError(EINVAL) for a 17th segment, KexecError(EADDRNOTAVAIL) when nothing is reserved or no hole fits.
    """
    step = "kexec_add_buffer"
    if len(image.segments) >= KEXEC_SEGMENT_MAX:
        raise KexecError(EINVAL, step, f"too many segments for {name}: {KEXEC_SEGMENT_MAX} at most")
    memsz = align_up(memsz, page_size)
    align = max(align, page_size)
    regions = list(reversed(free_memory) if top_down else free_memory) if scratch is None else list(scratch)
    if image.crash:
        if region is None:
            raise KexecError(EADDRNOTAVAIL, step, f"{name} has no place: no crashkernel memory is reserved")
        regions = [region]
    place = contiguous(memsz, align) if contiguous is not None else None
    if place is not None:
        image.segments.append(Segment(name, buf, place, memsz, cma=True))
        return image.segments[-1]
    limits = {"buf_min": buf_min, "buf_max": buf_max, "page_size": page_size}
    for one in regions:
        mem = find_hole(
            one, image.segments, memsz, align, top_down=top_down, era=era, random=random, **limits
        )
        if mem is not None:
            image.segments.append(Segment(name, buf, mem, memsz))
            return image.segments[-1]
    largest = max((_largest_hole(one, image.segments, buf_min) for one in regions), default=0)
    room = "free memory" if scratch is None else "KHO's scratch areas"
    what, where = ("crash image", f"crashkernel {region}") if image.crash else ("image", room)
    needs = f"{name} needs {memsz:#x} bytes aligned to {align:#x}"
    start = " (looked for from a random place on)" if random is not None else ""
    reason = f"{what} does not fit: {needs}{start}, largest hole in {where} is {largest:#x}"
    raise KexecError(EADDRNOTAVAIL, step, reason)


def sanity_check_segment_list(
    image: Kimage, crashk_res: PhysRange | None, total_ram_pages: int, page_size: int
) -> None:
    """sanity_check_segment_list() in the kernel's order; raises KexecError with its errno.

    total_ram_pages is totalram_pages(): the pages that the buddy allocator was given.
    """
    step = "sanity_check_segment_list"
    for one in image.segments:
        where = f"{one.name} at {one.mem:#x}+{one.memsz:#x}"
        if one.mem % page_size or (one.mem + one.memsz) % page_size:
            raise KexecError(EADDRNOTAVAIL, step, f"{where} is not page aligned")
        if one.mem + one.memsz > _ULONG_MAX:
            raise KexecError(EADDRNOTAVAIL, step, f"{where} wraps around")
    for index, one in enumerate(image.segments):
        for other in image.segments[:index]:
            if one.area.overlaps(other.area):
                raise KexecError(EINVAL, step, f"{one.name} overlaps {other.name}")
    for one in image.segments:
        if one.bufsz > one.memsz:
            sizes = f"is {one.bufsz:#x} bytes long but takes only {one.memsz:#x} in memory"
            raise KexecError(EINVAL, step, f"{one.name} {sizes}")
    pages = sum(-(-one.memsz // page_size) for one in image.segments)
    if pages > total_ram_pages // 2:
        raise KexecError(EINVAL, step, f"the image takes {pages} pages, more than half of all RAM")
    for one in image.segments if image.crash else ():
        if crashk_res is None or not crashk_res.covers(one.area):
            reason = f"{one.name} at {one.area} is not inside crashkernel {crashk_res}"
            raise KexecError(EADDRNOTAVAIL, step, reason)


def alloc_crash_control_pages(image: Kimage, crashk_res: PhysRange, size: int, why: str) -> PhysRange:
    """kimage_alloc_crash_control_pages(): the first hole of `size` bytes from image.control_page up.

    size is a power of two in bytes. Control pages are in the crash region but are no segments: nothing protects
    and nothing hashes them. Raises KexecError(ENOMEM) when the region is full.
    """
    start = align_up(image.control_page, size)
    while start + size - 1 <= crashk_res.last:
        clash = next((one for one in image.segments if one.area.overlaps(PhysRange.of(start, size))), None)
        if clash is None:
            page = PhysRange.of(start, size)
            image.control_page = page.end
            image.control_pages.append(page)
            return page
        start = align_up(clash.mem + clash.memsz, size)
    raise KexecError(ENOMEM, "kimage_alloc_control_pages", f"Could not allocate {why}")
