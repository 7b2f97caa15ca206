"""What user space reads: /proc/iomem and the kexec files of /sys/kernel, as text that equals the kernel's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.vmcoreinfo import note_size
from kexecemu.kernel.crash_size import crash_get_memory_size
from kexecemu.kernel.load.environment import sysfs_cpus
from kexecemu.kernel.memory.memblock import across_pages
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["proc_iomem", "sysfs"]

_CRASH_NOTE_SIZE = 424


@dataclass
class _Resource:
    area: PhysRange
    name: str
    children: list[_Resource] = field(default_factory=list)


def _lines(resources: list[_Resource], depth: int = 0) -> Iterator[str]:
    """r_show(): two spaces a level, eight digits or more, inclusive ends."""
    for one in sorted(resources, key=lambda resource: resource.area.start):
        yield f"{'  ' * depth}{one.area.start:08x}-{one.area.last:08x} : {one.name}\n"
        yield from _lines(one.children, depth + 1)


def _system_ram(state: KernelState) -> list[_Resource]:
    """request_standard_resources() and reserve_memblock_reserved_regions()."""
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
    fixed += [(area, "Crash kernel") for area in (reservation.crashk_low_res, reservation.crashk_res) if area]
    fixed += [(area, "System RAM") for area in reservation.released]
    regions = []
    for area in state.arch.system_ram:
        region = _Resource(area, "System RAM")
        region.children = [_Resource(part, name) for part, name in fixed if area.covers(part)]
        regions.append(region)
    regions += [_Resource(area, "reserved") for area in across_pages(memblock.nomap_memory(), page)]
    for region in regions:
        area, taken = region.area, [child.area for child in region.children]
        for reserved in memblock.reserved:
            whole = PhysRange(reserved.start // page * page, -(-reserved.end // page) * page)
            if whole.overlaps(area):
                inside = PhysRange(max(whole.start, area.start), min(whole.end, area.end))
                parts = subtract([inside], taken)  # reserve_region_with_split()
                region.children += [_Resource(part, "reserved") for part in parts]
                taken += parts
    return regions


def proc_iomem(state: KernelState) -> str:
    """/proc/iomem for root: RAM with what is in it, and the console's UART."""
    resources = _system_ram(state)
    uart = state.board.uart.phys
    if state.console_phys == uart.start:
        name = f"pl011@{uart.start:x}"
        resources.append(_Resource(uart, name, [_Resource(uart, f"{uart.start:x}.pl011 {name}")]))
    return "".join(_lines(resources))


def sysfs(state: KernelState) -> dict[str, str]:
    """The files that kexec-tools reads, by path: /sys/kernel/kexec_*, vmcoreinfo, crash_notes of each CPU."""
    guest = state.guest
    note_phys = state.space.virt_to_phys(guest.read("vmcoreinfo_note"))
    files = {
        "/sys/kernel/kexec_crash_loaded": f"{int(state.image is not None)}\n",
        "/sys/kernel/kexec_crash_size": f"{crash_get_memory_size(state)}\n",
        "/sys/kernel/kexec_loaded": f"{int(state.kexec.reboot_image is not None)}\n",
        "/sys/kernel/vmcoreinfo": f"{note_phys:#018x} {note_size(state.config.page_size):x}\n",
        "/proc/sys/kernel/kexec_load_disabled": f"{int(state.kexec.load_disabled)}\n",
    }
    if state.config.release.rules.sysfs_kexec:
        ranges = "".join(f"{area.start:08x}-{area.last:08x}\n" for area in state.crashk_cma_ranges)
        files["/sys/kernel/kexec_crash_cma_ranges"] = ranges
        for name in ("loaded", "crash_loaded", "crash_size", "crash_cma_ranges"):
            files[f"/sys/kernel/kexec/{name}"] = files[f"/sys/kernel/kexec_{name}"]
    for cpu in range(sysfs_cpus(state)):
        folder = f"/sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/crash_notes"] = f"{state.crash_notes_phys(cpu):x}\n"
        files[f"{folder}/crash_notes_size"] = f"{_CRASH_NOTE_SIZE}\n"
    return files
