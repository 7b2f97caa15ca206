"""What of a machine or a command line a real kernel acts on and this model does not: said at run time."""

from kexecemu.formats.efi_map import EfiMap
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.cmdline import parameter, parameters
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.acpi import dt_is_stub, uses_acpi
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.efi_init import efi_parameters
from kexecemu.kernel.boot.tree_board import console_of, stdout_node
from kexecemu.limits import told

__all__ = ["not_modelled"]

# Parameters of the command line, and what they would do.
_PARAMETERS = {
    "cma_pernuma": "a CMA area for each node",
    "numa_cma": "a CMA area for a node",
    "crash_kexec_post_notifiers": "panic notifiers run before the crash kernel is started",
    "hugetlb_cma": "CMA areas for huge pages, which move the crash region",
    "kernelcore": "ZONE_MOVABLE",
    "memblock": "each allocation of the boot printed",
    "memtest": "memory that fails a test",
    "movablecore": "ZONE_MOVABLE",
    "reserve_mem": "named memory, which moves the crash region",
}
# Of a size that only their content says.
_TABLES = ("ESRT", "MOKvar", "TPMEventLog", "TPMFinalLog", "Unaccepted")
_PROTECTED = "memory for the hypervisor moves the crash region, but where kernels are started at EL1, as here"


def not_modelled(
    config: KernelConfig,
    cmdline: str,
    tree: Fdt,
    efi_map: EfiMap | None = None,
    *,
    memory_known: bool = False,
) -> list[str]:
    """What there is of it for a kernel with this command line on the board of this device tree, each in one line.

    efi_map is what UEFI says of its memory, where that is known; memory_known: from elsewhere.
    """
    found = [
        told("parameters", f"{name}= is not modelled: {what}")
        for name, what in _PARAMETERS.items()
        if parameter(cmdline, name) is not None
    ]
    if parameter(cmdline, "kvm-arm.mode") == "protected":
        found.append(told("parameters", f"kvm-arm.mode=protected is not modelled: {_PROTECTED}"))
    found += _handover(config, cmdline)
    if any("fake=" in value for value in parameters(cmdline, "numa")):
        words = "numa=fake= is not modelled: nodes that are none (Debian's kernels have none of it either)"
        found.append(told("NUMA", words))
    acpi = efi_map.acpi if efi_map is not None and uses_acpi(tree, cmdline, efi_map) else None
    if acpi is not None and not acpi.console:
        words = "ACPI: the log has no line about a PL011 in SPCR, and so there is no console"
        found.append(told("console", words))
    if acpi is not None and acpi.iort:
        found.append(
            told("ACPI", "ACPI: what IORT says of how far devices reach is not known: all memory is assumed")
        )
    if not dt_is_stub(tree) and console_of(tree) is None:
        words = f"no console: {_unknown_console(tree)}; the capture kernel's lines are not seen"
        found.append(told("console", words))
    found += _firmware(config, tree)
    if efi_map is not None and efi_map.cma and not _has_cma(config, cmdline):
        size = efi_map.cma >> 20
        words = (
            f"the log has a CMA area of {size} MiB, which moves the crash region, and this kernel has none"
        )
        found.append(told("UEFI", f"{words} (--config CMA_SIZE_MBYTES={size})"))
    return found if memory_known else found + _efi(tree, efi_map)


def _has_cma(config: KernelConfig, cmdline: str) -> bool:
    return config.number("CMA_SIZE_MBYTES") > 0 or parameter(cmdline, "cma") is not None


def _efi(tree: Fdt, efi_map: EfiMap | None) -> list[str]:
    """What is not known of a machine that UEFI starts."""
    numbers = efi_parameters(tree)
    if numbers is None:
        return []
    if efi_map is None:
        words = (
            "UEFI starts this machine: its memory map is not known (--efi-map), memory nodes are taken for it"
        )
        return [told("UEFI", words)]
    found = []
    said, there = (
        numbers["linux,uefi-mmap-size"] // numbers["linux,uefi-mmap-desc-size"],
        len(efi_map.descriptors),
    )
    if said != there:
        words = "lines are missing, or it is of another boot"
        found.append(f"the EFI memory map has {there} lines, and the device tree says {said}: {words}")
    if not efi_map.tables:
        found.append("what UEFI's tables reserve is not known: the log has no line with their addresses")
    taken = [name for name in _TABLES if name in efi_map.tables]
    if taken:
        found.append(f"what these tables of UEFI reserve is not modelled: {', '.join(taken)}")
    return [told("UEFI", words) for words in found]


def _firmware(config: KernelConfig, tree: Fdt) -> list[str]:
    """What firmware says in the tree, but memory."""
    sdei = tree.path_offset("/firmware/sdei")
    if sdei is None or not config.release.rules.stop_retries:
        return []
    return [told("SDEI", "SDEI is not modelled: a CPU that cannot be stopped is not stopped by it either")]


def _unknown_console(tree: Fdt) -> str:
    node = stdout_node(tree)
    if node is None:
        return "/chosen names none that is there (stdout-path)"
    kinds = tree.get_strings(node, "compatible") or ["a node without compatible"]
    return f"the device tree's is no UART that is emulated ({kinds[0]})"


def _handover(config: KernelConfig, cmdline: str) -> list[str]:
    """What is only nearly so of kexec handover."""
    if not config.enabled("KEXEC_HANDOVER"):
        asked = parameter(cmdline, "kho") is not None
        words = "kho= says nothing to a kernel without KEXEC_HANDOVER=y (--config)"
        return [told("KHO", words)] if asked else []
    early = parse_early_param(config, cmdline).kho
    if not early.enable:
        return []
    found = []
    if early.scale:
        found.append(
            "kho_scratch= in percent is of what memblock has given out, which is known only nearly here"
        )
    if config.release <= Era.V6_18:
        found.append("KHO: whether debugfs has finalized it is not modelled: it is taken as done")
    return [told("KHO", words) for words in found]
