"""What of a machine or a command line a real kernel acts on and this model does not: said at run time."""

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.cmdline import parameter
from kexecemu.kernel.boot.state import KernelState

__all__ = ["not_modelled"]

# Parameters of the command line, and what they would do.
_PARAMETERS = {
    "cma_pernuma": "a CMA area for each node",
    "crash_kexec_post_notifiers": "panic notifiers run before the crash kernel is started",
    "efi": "boards are described by a device tree",
    "hugetlb_cma": "CMA areas for huge pages, which move the crash region",
    "kernelcore": "ZONE_MOVABLE",
    "kho": "handover of memory to the next kernel",
    "kvm-arm.mode": "memory for a protected hypervisor, which moves the crash region",
    "memtest": "memory that fails a test",
    "movablecore": "ZONE_MOVABLE",
    "numa": "nodes",
    "reserve_mem": "named memory, which moves the crash region",
}


def not_modelled(state: KernelState) -> list[str]:
    """What there is of it, each in one line."""
    cmdline = state.guest.string(state.guest.vmlinux.virt("boot_command_line"), 2048)
    found = [
        f"{name}= is not modelled: {what}"
        for name, what in _PARAMETERS.items()
        if parameter(cmdline, name) is not None
    ]
    tree = Fdt(state.initial_boot_params)
    nodes = {tree.get_u32(one.offset, "numa-node-id") for one in tree.nodes()} - {None}
    if len(nodes) > 1:
        found.append(f"nodes are not modelled: the {len(nodes)} of the device tree are taken for one")
    chosen = tree.path_offset("/chosen")
    if chosen is not None and tree.getprop(chosen, "linux,uefi-system-table") is not None:
        found.append("EFI is not modelled: memory is what the device tree's memory nodes say")
    return found
