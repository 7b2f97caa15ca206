"""memblock: the boot-time allocator, memory and reservations as sorted ranges (mm/memblock.c)."""

from kexecemu.kernel.base.address_space import align_up
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["SMP_CACHE_BYTES", "Memblock", "across_pages", "merge", "within_pages"]

SMP_CACHE_BYTES = 64

_NOLEAKTRACE = 1  # MEMBLOCK_ALLOC_NOLEAKTRACE: a limit of one byte is taken for a word that means none
_ANYWHERE = 1 << 64
_FIRST_PAGE = 4096  # memblock never hands out page 0: its address means failure


def merge(ranges: list[PhysRange]) -> list[PhysRange]:
    """Sorted, with touching and overlapping ranges joined."""
    joined: list[PhysRange] = []
    for one in sorted(ranges):
        if not one.size:
            continue
        if joined and one.start <= joined[-1].end:
            joined[-1] = PhysRange(joined[-1].start, max(joined[-1].end, one.end))
        else:
            joined.append(one)
    return joined


def _split(ranges: list[PhysRange], marked: list[PhysRange]) -> list[PhysRange]:
    """The same bytes, in pieces that are all marked or not at all."""
    if not marked:
        return ranges
    others = subtract(ranges, marked)
    return sorted(others + subtract(ranges, others))


def within_pages(ranges: list[PhysRange], page: int) -> list[PhysRange]:
    """Of each range the whole pages inside, as for_each_mem_pfn_range() has them; page is in bytes."""
    inside = ((align_up(one.start, page), one.end // page * page) for one in ranges)
    return [PhysRange(start, end) for start, end in inside if start < end]


def across_pages(ranges: list[PhysRange], page: int) -> list[PhysRange]:
    """The pages that the ranges have a byte in, each once, in pieces as before; ranges ascend."""
    found: list[PhysRange] = []
    for one in ranges:
        start, end = one.start // page * page, align_up(one.end, page)
        start = max(start, found[-1].end) if found else start
        if start < end:
            found.append(PhysRange(start, end))
    return found


@shown("memory", "reserved", "nomap", "hotplug")
class Memblock:
    """Physical memory as the kernel sees it before the buddy allocator lives.

    memory is all RAM, reserved what is taken, nomap the part of memory that the linear map must skip for now, hotplug
    what firmware may take away again. Memory of different marks is in different regions, and nothing is allocated
    across their borders. Nothing is in whole pages but what callers make so.
    """

    def __init__(self) -> None:
        self.memory: list[PhysRange] = []
        self.reserved: list[PhysRange] = []
        self.nomap: list[PhysRange] = []
        self._found: list[PhysRange] = []
        self.hotplug: list[PhysRange] = []
        self.nodes: list[tuple[PhysRange, int]] = []
        """Which memory is of which NUMA node; empty where all of it is the only one's."""
        self.movable_node = False
        """movable_node_is_enabled(): nothing is allocated in hotplug memory."""

    def add(self, area: PhysRange) -> None:
        """memblock_add(): there is RAM at these physical addresses."""
        self.memory = merge([*self.memory, area])

    def remove(self, area: PhysRange) -> None:
        """memblock_remove(): forget RAM at these physical addresses."""
        self.memory = subtract(self.memory, [area])

    def reserve(self, area: PhysRange) -> None:
        """memblock_reserve(): nobody may be given these physical addresses."""
        self._found.append(area)
        self._reserve(area)

    def _reserve(self, area: PhysRange) -> None:
        self.reserved = merge([*self.reserved, area])

    def is_region_reserved(self, area: PhysRange) -> bool:
        """memblock_is_region_reserved(): is a byte of it taken?"""
        return any(one.overlaps(area) for one in self.reserved)

    def free(self, area: PhysRange) -> None:
        """memblock_phys_free(): undo a reservation."""
        self.reserved = subtract(self.reserved, [area])

    def mark_nomap(self, area: PhysRange) -> None:
        """memblock_mark_nomap(): leave this RAM out of for_each_mem_range()."""
        self.nomap = merge([*self.nomap, area])

    def clear_nomap(self, area: PhysRange) -> None:
        """memblock_clear_nomap()."""
        self.nomap = subtract(self.nomap, [area])

    def mark_hotplug(self, area: PhysRange) -> None:
        """memblock_mark_hotplug(): this RAM may be taken away."""
        self.hotplug = merge([*self.hotplug, area])

    def clear_hotplug(self) -> None:
        """memblock_clear_hotplug() for all of it."""
        self.hotplug = []

    def set_node(self, area: PhysRange, node: int) -> None:
        """memblock_set_node(): these physical addresses are the node's, whoever had them."""
        ranges: dict[int, list[PhysRange]] = {node: [area]}
        for one, number in self.nodes:
            ranges.setdefault(number, []).extend(subtract([one], [] if number == node else [area]))
        self.nodes = sorted((one, number) for number, some in ranges.items() for one in merge(some))

    def clear_nodes(self) -> None:
        """memblock_set_node() to none, for all of it."""
        self.nodes = []

    def node_of(self, phys: int) -> int | None:
        """The node of a physical address, None where it is nobody's."""
        return next((number for area, number in self.nodes if phys in area), None)

    def _by_nodes(self, ranges: list[PhysRange]) -> list[PhysRange]:
        """Regions of two nodes are two."""
        for area, _ in self.nodes:
            outside = subtract(ranges, [area])
            ranges = sorted(outside + subtract(ranges, outside))
        return ranges

    @property
    def phys_mem_size(self) -> int:
        """memblock_phys_mem_size(): all RAM, in bytes."""
        return sum(area.size for area in self.memory)

    @property
    def start_of_dram(self) -> int:
        """memblock_start_of_DRAM(): the first physical address of RAM."""
        return self.memory[0].start

    @property
    def end_of_dram(self) -> int:
        """memblock_end_of_DRAM(): one past the last physical address of RAM."""
        return self.memory[-1].end

    def kern_size(self, limit: int) -> int:
        """memblock_reserved_kern_size(): bytes below `limit` that were given out, and not only found to be taken."""
        given = subtract(self.reserved, self._found)
        return sum(min(area.end, limit) - area.start for area in given if area.start <= limit)

    def mappable(self) -> list[PhysRange]:
        """for_each_mem_range(): the regions of memory that are not marked nomap."""
        return self._by_nodes(_split(subtract(self.memory, self.nomap), self.hotplug))

    def nomap_memory(self) -> list[PhysRange]:
        """Memory that is marked nomap: regions of their own in memblock.memory."""
        inside = subtract(self.memory, subtract(self.memory, self.nomap))
        return self._by_nodes(_split(inside, self.hotplug))

    def regions(self) -> list[PhysRange]:
        """for_each_mem_region(): all memory, ascending."""
        return sorted(self.mappable() + self.nomap_memory())

    def free_ranges(self, node: int | None = None) -> list[PhysRange]:
        """for_each_free_mem_range(): memory neither reserved nor nomap, ascending; of a node if one is given."""
        skipped = self.hotplug if self.movable_node else []
        found = subtract(self.mappable(), [*self.reserved, *skipped])
        return found if node is None else [one for one in found if self.node_of(one.start) == node]

    def phys_alloc_range(
        self,
        size: int,
        align: int,
        start: int = 0,
        end: int = 0,
        *,
        node: int | None = None,
        exact: bool = False,
    ) -> int:
        """memblock_alloc_range_nid(): reserve `size` bytes below `end` (0: anywhere), the highest that fit.

        align is a power of two in bytes. node is the NUMA node that has them, or where there is no room on it and exact
        does not forbid it, any (None: any at once). Returns the physical address, or 0 when nothing fits.
        """
        if node is not None and not exact:
            on_it = self.phys_alloc_range(size, align, start, end, node=node, exact=True)
            return on_it or self.phys_alloc_range(size, align, start, end)
        start = max(start, _FIRST_PAGE)
        end = end if end > _NOLEAKTRACE else _ANYWHERE
        for area in reversed(self.free_ranges(node)):
            low, high = max(area.start, start), min(area.end, end)
            if high < low or high - low < size:
                continue
            candidate = (high - size) & ~(align - 1)
            if candidate >= low:
                self._reserve(PhysRange.of(candidate, size))
                return candidate
        return 0

    def phys_alloc_range_bottom_up(
        self, size: int, align: int, start: int, end: int, node: int | None = None
    ) -> int:
        """As phys_alloc_range(), the lowest that fit; on the node if one is given."""
        start, end = max(start, _FIRST_PAGE), end if end > _NOLEAKTRACE else _ANYWHERE
        for area in self.free_ranges(node):
            candidate = align_up(max(area.start, start), align)
            if candidate < min(area.end, end) and candidate + size <= min(area.end, end):
                self._reserve(PhysRange.of(candidate, size))
                return candidate
        return 0

    def phys_alloc_pages(self, count: int, page_size: int) -> int:
        """As `count` calls of phys_alloc_range(page_size, page_size), all at once; returns how many succeeded.

        The highest free pages go whatever the order in which they are asked for, so terabytes of page tables need
        not be allocated one by one.
        """
        left = count
        for area in reversed(self.free_ranges()):
            first = -(-max(area.start, _FIRST_PAGE) // page_size) * page_size
            end = area.end // page_size * page_size
            taken = min(left, max(0, end - first) // page_size)
            self._reserve(PhysRange(end - taken * page_size, end))
            left -= taken
            if not left:
                break
        return count - left
