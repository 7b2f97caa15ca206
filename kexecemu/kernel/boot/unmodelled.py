"""What of a machine or a command line a real kernel acts on and this model does not: said at run time."""

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.cmdline import parameter
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.tree_board import console_of, stdout_node

__all__ = ["not_modelled"]

# Parameters of the command line, and what they would do.
_PARAMETERS = {
    "cma_pernuma": "a CMA area for each node",
    "crash_kexec_post_notifiers": "panic notifiers run before the crash kernel is started",
    "efi": "boards are described by a device tree",
    "hugetlb_cma": "CMA areas for huge pages, which move the crash region",
    "kernelcore": "ZONE_MOVABLE",
    "memblock": "each allocation of the boot printed",
    "memtest": "memory that fails a test",
    "movablecore": "ZONE_MOVABLE",
    "numa": "nodes",
    "reserve_mem": "named memory, which moves the crash region",
}
_PROTECTED = "memory for the hypervisor moves the crash region, but where kernels are started at EL1, as here"


def not_modelled(config: KernelConfig, cmdline: str, tree: Fdt) -> list[str]:
    """What there is of it for a kernel with this command line on the board of this device tree, each in one line."""
    found = [
        f"{name}= is not modelled: {what}"
        for name, what in _PARAMETERS.items()
        if parameter(cmdline, name) is not None
    ]
    if parameter(cmdline, "kvm-arm.mode") == "protected":
        found.append(f"kvm-arm.mode=protected is not modelled: {_PROTECTED}")
    found += _handover(config, cmdline)
    nodes = {tree.get_u32(one.offset, "numa-node-id") for one in tree.nodes()} - {None}
    if len(nodes) > 1:
        found.append(f"nodes are not modelled: the {len(nodes)} of the device tree are taken for one")
    if console_of(tree) is None:
        found.append(f"no console: {_unknown_console(tree)}; the capture kernel's lines are not seen")
    chosen = tree.path_offset("/chosen")
    if chosen is not None and tree.getprop(chosen, "linux,uefi-system-table") is not None:
        found.append("EFI is not modelled: memory is what the device tree's memory nodes say")
    return found


def _unknown_console(tree: Fdt) -> str:
    node = stdout_node(tree)
    if node is None:
        return "the device tree names none that it has"
    kinds = tree.get_strings(node, "compatible") or ["a node without compatible"]
    return f"the device tree's is no UART that is emulated ({kinds[0]})"


def _handover(config: KernelConfig, cmdline: str) -> list[str]:
    """What is only nearly so of kexec handover."""
    if not config.enabled("KEXEC_HANDOVER"):
        asked = parameter(cmdline, "kho") is not None
        return ["kho= says nothing to a kernel without KEXEC_HANDOVER=y (--config)"] if asked else []
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
    return found
