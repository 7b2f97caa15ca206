"""Which CPUs a kernel has: those of the device tree, but for what the command line keeps out.

Followed: of_get_next_cpu_node() of drivers/of/cpu.c, smp_init_cpus() and smp_prepare_cpus() of arch/arm64/kernel/smp.c,
and the parameters of kernel/smp.c.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.cmdline import get_option, parameters, words
from kexecemu.machine import virt
from kexecemu.machine.psci import AFFINITY_MASK
from kexecemu.shown import shown

__all__ = ["NR_CPUS", "CpuMasks", "board_affinities", "cpu_affinities", "cpu_count", "smp_init_cpus"]

NR_CPUS = 64
"""The guest kernel's, and nr_cpu_ids while early parameters are read."""
_BOOT_CPU = 0  # MPIDR affinity of the CPU that a board starts with


_U64 = 1 << 64

_METHODS = ("psci", "spin-table")

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class CpuMasks:
    """cpu_logical_map of the possible CPUs (MPIDR affinities, by number); how many are present, and started at most.

    spin_tables is smp_spin_tables: there are secondary CPUs which, once in the kernel, cannot be put out of it.
    gaps: a real kernel leaves out numbers, of CPUs whose nodes are of no use, where here there is none left out.
    """

    affinities: tuple[int, ...]
    present: int
    max_cpus: int = NR_CPUS
    spin_tables: bool = False
    gaps: bool = False


class _Node(NamedTuple):
    """A CPU's node: its MPIDR affinity, whether it says that the CPU has failed, its name and its enable-method.

    parked: it says where a CPU of a spin table waits.
    """

    affinity: int
    failed: bool
    name: str
    method: str | None
    parked: bool = False


def _cpu_nodes(tree: Fdt) -> Iterator[_Node]:
    """In the order of their nodes."""
    cpus = tree.path_offset("/cpus")
    if cpus is None:
        return
    counts = (tree.get_u32(node, "#address-cells") for node in (cpus, 0))
    width = 4 * next((one for one in counts if one is not None), 1)
    for node in tree.subnodes(cpus):
        kind = tree.getprop(node.offset, "device_type") or b""
        if node.name.partition("@")[0] == "cpu" or kind.split(b"\0")[0] == b"cpu":
            status = (tree.getprop(node.offset, "status") or b"").split(b"\0")[0]
            failed = status == b"fail" or status.startswith(b"fail-")
            reg = tree.getprop(node.offset, "reg") or b""
            hwid = int.from_bytes(reg[:width], "big") % _U64 if 0 < width <= len(reg) else _U64 - 1
            method = tree.get_strings(node.offset, "enable-method")
            parked = len(tree.getprop(node.offset, "cpu-release-addr") or b"") >= 8
            yield _Node(hwid, failed, node.name, method[0] if method else None, parked)


def cpu_count(tree: Fdt) -> int:
    """How many CPUs the board has, whatever is wrong with them; a tree without /cpus has the one that reads it."""
    return sum(1 for _ in _cpu_nodes(tree)) or 1


def board_affinities(tree: Fdt, count: int) -> list[int]:
    """The MPIDR affinities of so many CPUs of a board, first the one that firmware starts: 0.0.0.0, or the first."""
    nodes = list(_cpu_nodes(tree))
    known = [one.affinity for one in nodes if one.affinity & ~AFFINITY_MASK == 0]
    boot = _BOOT_CPU if _BOOT_CPU in known or not known else known[0]
    good = [one.affinity for one in nodes if not one.failed and one.affinity in known]
    # What no node tells of is somewhere else.
    return list(dict.fromkeys([boot, *good, *known, *range(count)]))[:count]


def _logical_map(tree: Fdt, boot: int, log: Print) -> tuple[list[int | None], bool]:
    """of_parse_and_init_cpus(): affinities by number, and bootcpu_valid.

    None is a number that a node was counted for of which nothing is made.
    """
    found: list[int | None] = [boot]
    valid = False
    for one in _cpu_nodes(tree):
        if one.failed:
            continue
        if one.affinity & ~AFFINITY_MASK:
            found.append(None)
        elif one.affinity in found[1:]:
            log(f"/cpus/{one.name}: duplicate cpu reg properties in the DT")
            found.append(None)
        elif one.affinity == boot and valid:
            log(f"/cpus/{one.name}: duplicate boot cpu reg property in DT")
            found.append(None)
        elif one.affinity == boot:
            valid = True
        else:
            found.append(one.affinity)
    return found, valid


def cpu_affinities(tree: Fdt, boot: int = _BOOT_CPU) -> list[int]:
    """cpu_logical_map as the tree has it, the boot CPU first; only that one where the tree has it not."""
    found, valid = _logical_map(tree, boot, lambda words: None)
    return [one for one in found if one is not None] if valid else [boot]


def smp_init_cpus(
    tree: Fdt | None, cmdline: str, powered: int, log: Print, boot: int = _BOOT_CPU
) -> CpuMasks:
    """Possible and present CPUs by tree and command line, of the `powered` that there are; log gets what is said.

    Without a tree they are those of ACPI's MADT, which are all that there are. boot is the boot CPU's affinity.
    """
    described: list[int | None] = [virt.affinity(index) for index in range(powered)]
    nodes, valid = dict[int, _Node](), True
    if tree is not None:
        described, valid = _logical_map(tree, boot, log)
        nodes = {one.affinity: one for one in reversed(list(_cpu_nodes(tree)))}
    limits = (get_option(asked) for asked in parameters(cmdline, "nr_cpus"))
    nr_cpus = min((one for one in limits if one is not None and one > 0), default=len(described))
    if len(described) > nr_cpus:
        words = f"exceeds configured maximum of {nr_cpus} - clipping"
        log(f"Number of cores ({len(described)}) {words}")
    if not valid:
        log("missing boot CPU MPIDR, not enabling secondaries")
    there = [
        None if one is not None and one != boot and not _is_enabled(nodes.get(one), number, log) else one
        for number, one in enumerate(described[:nr_cpus] if valid else [boot])
    ]
    affinities = [one for one in there if one is not None][:powered]
    gaps = None in there[: len(affinities)]
    most = _setup_max_cpus(cmdline)
    spin = len(affinities) > 1 and nodes.get(boot, _NOBODY).method != "psci"
    # With none to be started the secondary CPUs are not even present.
    present, spin = len(affinities) if most else 1, spin and tree is not None
    return CpuMasks(tuple(affinities), present, most or 1, spin, gaps)


_NOBODY = _Node(0, failed=False, name="", method=None)


def _is_enabled(node: _Node | None, number: int, log: Print) -> bool:
    """smp_cpu_setup(): whether the kernel knows how to start a secondary CPU."""
    if node is not None and node.method == "spin-table" and not node.parked:
        log(f"CPU {number}: missing or invalid cpu-release-addr property")
        return False
    if node is None or node.method in _METHODS:
        return True
    if node.method is None:
        log(f"/cpus/{node.name}: missing enable-method property")
    else:
        log(f"Unsupported enable-method: {node.method}")
    return False


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
