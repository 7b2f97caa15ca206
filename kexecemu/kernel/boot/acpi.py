"""ACPI: a machine without a device tree of its own, of which the boot log says what there is.

Followed: acpi_boot_table_init() of arch/arm64/kernel/acpi.c. The tables themselves are not there: CPUs, NUMA nodes and
the console are what a log says of MADT, SRAT and SPCR.
"""

from kexecemu.formats.efi_map import AcpiLog, EfiMap
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.iomem import Iomem
from kexecemu.kernel.base.cmdline import parameters

__all__ = ["acpi_of", "dt_is_stub", "uses_acpi"]


def dt_is_stub(tree: Fdt) -> bool:
    """dt_is_stub(): there is nothing but /chosen, and Xen's node."""
    for node in tree.subnodes(0):
        xen = node.name == "hypervisor" and "xen,xen" in (tree.get_strings(node.offset, "compatible") or [])
        if node.name != "chosen" and not xen:
            return False
    return True


def uses_acpi(tree: Fdt, cmdline: str, efi_map: EfiMap | None) -> bool:
    """acpi_disabled, the other way round: there are tables, and the tree or the command line leaves it to them."""
    if efi_map is None or not {"ACPI 2.0", "ACPI"} & efi_map.tables.keys():
        return False
    asked = [value for value in parameters(cmdline, "acpi") if value is not None]
    if "off" in asked:
        return False
    return dt_is_stub(tree) or any(value in ("on", "force") for value in asked)


def acpi_of(tree: Fdt, cmdline: str, efi_map: EfiMap | None, iomem: Iomem | None) -> AcpiLog | None:
    """What is known of ACPI's tables, by the boot log or /proc/iomem; None where the tree describes the machine."""
    if efi_map is not None and uses_acpi(tree, cmdline, efi_map):
        return efi_map.acpi
    if iomem is not None and dt_is_stub(tree):
        return AcpiLog(console=iomem.acpi_console)
    return None
