"""The resources of RAM: what /proc/iomem lists, and the tree of struct resource in guest memory that it comes from.

Followed: request_standard_resources() and reserve_memblock_reserved_regions() of arch/arm64/kernel/setup.c, and
insert_crashkernel_resources() behind the reservation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kexecemu.errors import InputError
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.memory.memblock import across_pages
from kexecemu.machine.ranges import PhysRange, exact_size, subtract
from kexecemu.shown import shown

__all__ = ["Resource", "alloc_resources", "is_inserted", "publish_resources", "system_ram"]

_RESOURCE = struct.Struct("<QQQQQQQQ")  # start, end, name, flags, desc, parent, sibling, child
_MEM, _SYSTEM_RAM = 0x200, 0x1000200  # IORESOURCE_MEM, IORESOURCE_SYSTEM_RAM
_BUSY = 0x80000000
_NAMES = b"System RAM\0Kernel code\0Kernel data\0reserved\0"  # no longer than a resource
_NAME = 16  # offset of the name
_CRASH_KERNEL = 1  # IORES_DESC_CRASH_KERNEL
_SPARE = 32  # for what is reserved from then on, and crash memory that is given back


@shown()
@dataclass
class Resource:
    """A struct resource: physical addresses, a name, and what is in it."""

    area: PhysRange
    name: str
    children: list[Resource] = field(default_factory=list)


def is_inserted(state: KernelState, crash: PhysRange) -> bool:
    """insert_crashkernel_resources() asks whether the start is below the inclusive end: a single byte is left out."""
    return crash.size > 1 or not state.config.release.rules.generic_reservation


def system_ram(state: KernelState) -> list[Resource]:
    """RAM and what is in it; not sorted."""
    guest, memblock, page = state.guest, state.arch.memblock, state.config.page_size
    fixed = [
        # Kernel code is _stext (later _text) to __init_begin, kernel data _sdata to _end.
        (
            PhysRange(
                guest.phys("_text" if state.config.release.rules.text_alias_starts_at_text else "_stext"),
                guest.phys("__init_begin"),
            ),
            "Kernel code",
        ),
        (PhysRange(guest.phys("_sdata"), guest.phys("_end")), "Kernel data"),
    ]
    reservation = state.arch.reservation
    crash = (reservation.crashk_low_res, reservation.crashk_res)
    fixed += [(area, "Crash kernel") for area in crash if area is not None and is_inserted(state, area)]
    fixed += [(area, "System RAM") for area in reservation.released]
    regions = []
    for area in state.arch.system_ram:
        region = Resource(area, "System RAM")
        region.children = [Resource(part, name) for part, name in fixed if area.covers(part)]
        regions.append(region)
    regions += [Resource(area, "reserved") for area in across_pages(memblock.nomap_memory(), page)]
    for region in regions:
        area, taken = region.area, [child.area for child in region.children]
        for reserved in memblock.reserved:
            whole = PhysRange(reserved.start // page * page, -(-reserved.end // page) * page)
            if whole.overlaps(area):
                inside = PhysRange(max(whole.start, area.start), min(whole.end, area.end))
                parts = subtract([inside], taken)  # reserve_region_with_split()
                region.children += [Resource(part, "reserved") for part in parts]
                taken += parts
    return regions


def _placed(state: KernelState, resources: Sequence[Resource]) -> Iterator[tuple[Resource, int]]:
    """Each with its virtual address, from the root down: a crash region's is in the image, others' are allocated."""
    reservation = state.arch.reservation
    static = {reservation.crashk_res: "crashk_res", reservation.crashk_low_res: "crashk_low_res"}
    at = state.space.linear_virt(state.resources.start) + _RESOURCE.size

    def place(some: Sequence[Resource]) -> Iterator[tuple[Resource, int]]:
        nonlocal at
        for one in some:
            if one.name == "Crash kernel":
                yield one, state.guest.vmlinux.virt(static[one.area])
            else:
                yield one, at
                at += _RESOURCE.size
            yield from place(one.children)

    yield from place(resources)


def _count(resources: Sequence[Resource]) -> int:
    return sum(1 + _count(one.children) for one in resources)


def _publish_tree(state: KernelState) -> None:
    """iomem_resource and all below it."""
    guest, space = state.guest, state.space
    top = system_ram(state)
    virts = {id(one): virt for one, virt in _placed(state, top)}

    def link(some: Sequence[Resource], parent_virt: int) -> int:
        """Write them with what is in them, sorted; the first one's address."""
        ordered = sorted(some, key=lambda one: one.area.start)
        following = [*(virts[id(one)] for one in ordered[1:]), 0]
        for one, sibling in zip(ordered, following, strict=False):
            virt = virts[id(one)]
            if one.name == "Crash kernel":
                name, desc = int.from_bytes(guest.read_virt(virt + _NAME, 8), "little"), _CRASH_KERNEL
            else:
                name = space.linear_virt(state.resources.start) + _NAMES.index(one.name.encode() + b"\0")
                desc = 0
            # What must not be mapped is nobody's, and so not busy.
            busy = 0 if one.name == "reserved" and parent_virt == root_virt else _BUSY
            flags = (_MEM if one.name == "reserved" else _SYSTEM_RAM) | busy
            links = (parent_virt, sibling, link(one.children, virt))
            content = _RESOURCE.pack(one.area.start, one.area.last, name, flags, desc, *links)
            state.ram.write(space.virt_to_phys(virt), content)
        return virts[id(ordered[0])] if ordered else 0

    root_virt = guest.vmlinux.virt("iomem_resource")
    guest.write("iomem_resource", link(top, root_virt), guest.vmlinux.offsetof("resource", "child"))


def alloc_resources(state: KernelState) -> None:
    """Memory for all of the tree but the crash kernel's, and for their names; InputError where there is none."""
    size = (1 + _count(system_ram(state)) + _SPARE) * _RESOURCE.size
    phys = state.arch.memblock.phys_alloc_range(size, _RESOURCE.size)
    if not phys:
        raise InputError("RAM is too small for the list of its resources")
    state.ram.fill(phys, size)
    state.ram.write(phys, _NAMES)
    state.resources = PhysRange.of(phys, size)


def publish_resources(state: KernelState) -> None:
    """crashk_res and crashk_low_res (inclusive ends, 0 for none) and the tree that they are in, in guest memory."""
    guest, reservation = state.guest, state.arch.reservation
    for name, area in (
        ("crashk_res", reservation.crashk_res),
        ("crashk_low_res", reservation.crashk_low_res),
    ):
        ends = {"start": area.start if area else 0, "end": area.last if area else 0}
        for member, value in (ends | dict.fromkeys(("parent", "sibling", "child"), 0)).items():
            guest.write(name, value, guest.vmlinux.offsetof("resource", member))
    _publish_tree(state)
    area = reservation.crashk_res
    if area is not None:
        words = f"crashkernel reserved at {area} ({exact_size(area.size)})"
        state.say("crashkernel", words, start_phys=area.start, end_phys=area.last)
