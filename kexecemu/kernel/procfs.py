"""What user space reads: /proc/iomem and the kexec files of /sys/kernel, as text that equals the kernel's."""

from __future__ import annotations

from collections.abc import Iterator

from kexecemu.kernel.boot.resources import Resource, system_ram
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.vmcoreinfo import note_size
from kexecemu.kernel.crash_size import crash_get_memory_size
from kexecemu.kernel.load.environment import sysfs_cpus

__all__ = ["proc_iomem", "sysfs"]

_CRASH_NOTE_SIZE = 424


def _lines(resources: list[Resource], depth: int = 0) -> Iterator[str]:
    """r_show(): two spaces a level, eight digits or more, inclusive ends."""
    for one in sorted(resources, key=lambda resource: resource.area.start):
        yield f"{'  ' * depth}{one.area.start:08x}-{one.area.last:08x} : {one.name}\n"
        yield from _lines(one.children, depth + 1)


def proc_iomem(state: KernelState) -> str:
    """/proc/iomem for root: RAM with what is in it, and the console's UART."""
    resources = system_ram(state)
    uart = state.board.uart.phys
    if state.console_phys == uart.start:
        name = f"pl011@{uart.start:x}" if state.acpi is None else "ARMH0011:00"
        device = f"{uart.start:x}.pl011" if state.acpi is None else name
        resources.append(Resource(uart, name, [Resource(uart, f"{device} {name}")]))
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
