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

__all__ = ["NR_CPUS", "CpuMasks", "cpu_affinities", "cpu_count", "smp_init_cpus"]

NR_CPUS = 64
"""The guest kernel's, and nr_cpu_ids while early parameters are read."""
_BOOT_CPU = 0  # MPIDR affinity of the CPU that a board starts with


@shown()
@dataclass(frozen=True)
class CpuMasks:
    """cpu_logical_map of the possible CPUs (MPIDR affinities, by number); how many are present, and started at most."""

    affinities: tuple[int, ...]
    present: int
    max_cpus: int = NR_CPUS


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
    most = _setup_max_cpus(cmdline)
    # With none to be started the secondary CPUs are not even present.
    return CpuMasks(tuple(affinities), len(affinities) if most else 1, most or 1)


def _setup_max_cpus(cmdline: str) -> int:
    """setup_max_cpus: how many CPUs "nosmp" or "maxcpus=" leave to be started, the boot CPU among them, 0 for none.

    What is said last counts.
    """
    most = NR_CPUS
    for name, value in words(cmdline):
        if name == "nosmp":
            most = 0
        elif name == "maxcpus":
            asked = get_option(value or "")
            most = most if asked is None else min(asked % (1 << 32), NR_CPUS)
    return most
