"""Which CPUs a kernel has: those of the device tree, but for what the command line keeps out.

Followed: of_get_next_cpu_node() of drivers/of/cpu.c, smp_init_cpus() and smp_prepare_cpus() of arch/arm64/kernel/smp.c,
and the parameters of kernel/smp.c.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.cmdline import get_option, parameters, words
from kexecemu.machine import virt
from kexecemu.shown import shown

__all__ = ["CpuMasks", "cpu_affinities", "cpu_count", "smp_init_cpus"]

_BOOT_CPU = 0  # MPIDR affinity of the CPU that a board starts with


@shown()
@dataclass(frozen=True)
class CpuMasks:
    """cpu_logical_map of the possible CPUs (MPIDR affinities, by number), and how many of them are present."""

    affinities: tuple[int, ...]
    present: int


def _cpu_nodes(tree: Fdt) -> Iterator[tuple[int, bool]]:
    """(MPIDR affinity, whether the node says that the CPU has failed), in the order of their nodes."""
    cpus = tree.path_offset("/cpus")
    if cpus is None:
        return
    for node in tree.subnodes(cpus):
        kind = tree.getprop(node.offset, "device_type") or b""
        if node.name.partition("@")[0] == "cpu" or kind.split(b"\0")[0] == b"cpu":
            status = (tree.getprop(node.offset, "status") or b"").split(b"\0")[0]
            failed = status == b"fail" or status.startswith(b"fail-")
            reg = tree.getprop(node.offset, "reg") or b""
            yield int.from_bytes(reg[: len(reg) & -4], "big") % (1 << 64), failed


def cpu_count(tree: Fdt) -> int:
    """How many CPUs the board has, whatever is wrong with them; a tree without /cpus has the one that reads it."""
    return sum(1 for _ in _cpu_nodes(tree)) or 1


def cpu_affinities(tree: Fdt) -> list[int]:
    """of_parse_and_init_cpus(): what becomes of cpu_logical_map, the boot CPU first; only that one if it has failed."""
    nodes = list(_cpu_nodes(tree))
    good = list(dict.fromkeys(affinity for affinity, failed in nodes if not failed))
    if _BOOT_CPU in good:
        return [_BOOT_CPU, *(one for one in good if one != _BOOT_CPU)]
    return [_BOOT_CPU] if not good or (_BOOT_CPU, True) in nodes else good


def smp_init_cpus(tree: Fdt | None, cmdline: str, powered: int, log: Callable[[str], None]) -> CpuMasks:
    """Possible and present CPUs by tree and command line, of the `powered` that there are; log gets what is said.

    Without a tree they are those of ACPI's MADT, which are all that there are.
    """
    described = [virt.affinity(index) for index in range(powered)] if tree is None else cpu_affinities(tree)
    affinities = described[:powered]
    if tree is not None and (_BOOT_CPU, True) in _cpu_nodes(tree):
        log("missing boot CPU MPIDR, not enabling secondaries")
    limits = (get_option(asked) for asked in parameters(cmdline, "nr_cpus"))
    nr_cpus = min((one for one in limits if one is not None and one > 0), default=len(affinities))
    if len(affinities) > nr_cpus:
        words = f"exceeds configured maximum of {nr_cpus} - clipping"
        log(f"Number of cores ({len(affinities)}) {words}")
        affinities = affinities[:nr_cpus]
    return CpuMasks(tuple(affinities), 1 if _nosmp(cmdline) else len(affinities))


def _nosmp(cmdline: str) -> bool:
    """Whether "nosmp" or "maxcpus=0" leaves the secondary CPUs where they are: what is said last counts."""
    most = -1
    for name, value in words(cmdline):
        if name == "nosmp":
            most = 0
        elif name == "maxcpus":
            asked = get_option(value or "")
            most = most if asked is None else asked
    return most == 0
