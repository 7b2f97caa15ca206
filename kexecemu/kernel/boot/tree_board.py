"""The board that a device tree describes, as far as one can be made of it: console, PSCI, interrupt controller.

Followed: of_alias_scan() and of_console_check() of drivers/of/base.c, psci_dt_init() of drivers/firmware/psci/psci.c,
the drivers' tables of compatible strings.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.formats.efi_map import AcpiLog
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.fdt_memory import is_available
from kexecemu.kernel.boot.of_address import reg_phys, with_parents
from kexecemu.machine import virt
from kexecemu.machine.devices.pl011 import Pl011
from kexecemu.machine.devices.uart import KINDS, PrintingUart, Uart
from kexecemu.machine.ranges import PhysRange

__all__ = ["TreeConsole", "console_of", "gic_node", "gic_phys", "psci_conduit", "stdout_node"]
__all__ += ["timer_ppis", "uart_of"]

_PL011 = ("arm,pl011", "arm,sbsa-uart")
_PAGE = 4096
_TIMER = ("arm,armv8-timer", "arm,armv7-timer")
_PSCI = ("arm,psci-1.0", "arm,psci-0.2", "arm,psci")
_GICS = {
    2: ("arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic", "arm,cortex-a9-gic", "qcom,msm-qgic2"),
    3: ("arm,gic-v3",),
}
_GIC_SECOND = {2: virt.GIC_CPU_INTERFACE, 3: virt.GIC_REDISTRIBUTORS}


class TreeConsole(NamedTuple):
    """A console of a known kind: its physical address, and its registers' distance as a power of two of bytes."""

    kind: str
    phys: int
    shift: int | None = None


def stdout_node(tree: Fdt) -> int | None:
    """The node that /chosen says is the console, by its path or an alias, options behind a colon; None for none."""
    chosen = tree.path_offset("/chosen")
    if chosen is None:
        return None
    for name in ("stdout-path", "linux,stdout-path"):
        value = tree.get_strings(chosen, name)
        if value and value[0]:
            return tree.path_offset(value[0].split(":", 1)[0])
    return None


def _is_any(tree: Fdt, node: int, compatible: tuple[str, ...]) -> bool:
    found = tree.get_strings(node, "compatible") or []
    return any(one in compatible for one in found)


def _console_at(tree: Fdt, path: tuple[int, ...]) -> TreeConsole | None:
    """What a node is as a console."""
    node = path[-1]
    kind = next((name for name, how in KINDS.items() if _is_any(tree, node, how.compatible)), None)
    kind = "pl011" if _is_any(tree, node, _PL011) else kind
    if kind is None:
        return None
    try:
        area, shift = reg_phys(tree, path), tree.get_u32(node, "reg-shift")
    except FormatError:
        return None
    if area is None or area.start % 4 or (shift or 0) > 4 or not is_available(tree, node):
        return None
    # Drivers whose registers are words apart do not ask.
    return TreeConsole(kind, area.start, None if kind != "pl011" and KINDS[kind].shift else shift)


def console_of(tree: Fdt, acpi: AcpiLog | None = None) -> TreeConsole | None:
    """The console: what /chosen names, if it is of a known kind; else, where it names nothing, the first PL011.

    Where ACPI describes the machine it is SPCR's.
    """
    if acpi is not None:
        return TreeConsole("pl011", acpi.console) if acpi.console else None
    wanted = stdout_node(tree)
    for path in with_parents(tree):
        if wanted is None and not (_is_any(tree, path[-1], _PL011) and is_available(tree, path[-1])):
            continue
        if wanted is None or path[-1] == wanted:
            found = _console_at(tree, path)
            if found is not None or wanted is not None:
                return found
    return None


def uart_of(console: TreeConsole | None, banks: Sequence[PhysRange]) -> Uart:
    """A board's UART for it; one that guest code does not reach for none, and for one in RAM or beyond 44 bits."""
    if console is None:
        return Uart()
    if console.kind == "pl011":
        uart: Uart = Pl011(console.phys) if console.phys % _PAGE == 0 else Uart()
    else:
        uart = PrintingUart(console.kind, console.phys, console.shift)
    out_of_reach = uart.phys.end > virt.PHYS_LIMIT or any(bank.overlaps(uart.phys) for bank in banks)
    return Uart() if out_of_reach else uart


def psci_conduit(tree: Fdt) -> str | None:
    """ "hvc" or "smc", as the PSCI node says; None where there is none."""
    for path in with_parents(tree):
        if _is_any(tree, path[-1], _PSCI) and is_available(tree, path[-1]):
            method = tree.get_strings(path[-1], "method")
            return method[0] if method and method[0] in ("hvc", "smc") else None
    return None


def _controllers(tree: Fdt) -> Iterator[tuple[int, tuple[int, ...]]]:
    for path in with_parents(tree):
        for version, compatible in _GICS.items():
            if _is_any(tree, path[-1], compatible) and is_available(tree, path[-1]):
                yield version, path


def timer_ppis(tree: Fdt) -> tuple[int, int] | None:
    """The interrupts of the CPUs' physical (non-secure) and virtual timer; None where the tree has not both as PPIs.

    Followed: arch_timer_of_init() of drivers/clocksource/arm_arch_timer.c.
    """
    gic, node = (
        gic_node(tree),
        next((one.offset for one in tree.nodes() if _is_any(tree, one.offset, _TIMER)), None),
    )
    if gic is None or node is None:
        return None
    try:
        width, found = tree.get_u32(gic, "#interrupt-cells"), tree.get_cells(node, "interrupts") or []
    except FormatError:
        return None
    if width is None or not 3 <= width <= 4:
        return None
    names = tree.get_strings(node, "interrupt-names") or ["sec-phys", "phys", "virt"]
    each = {name: found[at * width : at * width + 2] for at, name in enumerate(names)}
    (kind, first), (other, second) = (each.get(name) or [0, 0] for name in ("phys", "virt"))
    most = virt.FIRST_SPI - virt.FIRST_PPI
    if (kind, other) != (1, 1) or first >= most or second >= most or first == second:
        return None
    return virt.FIRST_PPI + first, virt.FIRST_PPI + second


def gic_node(tree: Fdt) -> int | None:
    """The node of the board's interrupt controller, of a kind that is emulated."""
    return next((path[-1] for _, path in _controllers(tree)), None)


def gic_phys(tree: Fdt) -> tuple[int, tuple[PhysRange, PhysRange] | None]:
    """The version of the board's interrupt controller, and where its registers are; None where that is not known.

    That is the distributor, and of a GICv2 the CPU interface, of a GICv3 the first redistributor. A board without any
    has a GICv2.
    """
    for version, path in _controllers(tree):
        try:
            first, second = (reg_phys(tree, path, index) for index in (0, 1))
        except FormatError:
            return version, None
        if first is None or second is None or first.start % _PAGE or second.start % _PAGE:
            return version, None
        most = _GIC_SECOND[version].size
        # A GIC-400's distributor has a page, and the CPU interface is right behind it.
        areas = [
            PhysRange.of(one.start, max(min(one.size // _PAGE * _PAGE, limit), _PAGE))
            for one, limit in ((first, virt.GIC_DISTRIBUTOR.size), (second, most))
        ]
        return version, None if areas[0].overlaps(areas[1]) else (areas[0], areas[1])
    return 2, None
