"""What setup_arch() allocates between the linear map and the CMA area: small, but it decides where crash memory begins.

Followed: drivers/of/fdt.c and base.c; the nodes' data comes next, in numa.py. Sizes of structures are those of Debian's
kernels, by their BTF; a kernel that is configured otherwise is some hundred bytes off.
"""

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock

__all__ = ["create_idmap", "unflatten_device_tree"]

_DEVICE_NODE, _ALIAS_PROP = 208, 40  # sizeof, on all of them
_SKIPPED_ALIASES = ("name", "phandle", "linux,phandle")


def create_idmap(config: KernelConfig, memblock: Memblock) -> None:
    """create_idmap(): tables for the identity map, while they are none of the image's own."""
    for _ in range(config.release.rules.idmap_tables):
        memblock.phys_alloc_range(config.page_size, config.page_size)


def unflatten_device_tree(config: KernelConfig, tree: Fdt, memblock: Memblock) -> None:
    """unflatten_device_tree(): the nodes, and of_alias_scan()'s entries."""
    size = _nodes_size(tree, config.release.rules.of_property_size)
    memblock.phys_alloc_range(align_up(size, 4) + 4, 8)
    aliases = tree.path_offset("/aliases")
    if aliases is None:
        return
    for one in tree.properties(aliases):
        stem = one.name.rstrip("0123456789") or one.name[:1]
        path = one.value.split(b"\0")[0].decode("utf-8", "backslashreplace")
        if one.name in _SKIPPED_ALIASES or stem == one.name or tree.path_offset(path) is None:
            continue
        memblock.phys_alloc_range(_ALIAS_PROP + len(stem) + 1, 8)


def _nodes_size(tree: Fdt, property_size: int) -> int:
    """unflatten_dt_nodes() as it first runs, to find how much it needs."""
    total = 0
    for node in tree.nodes():
        total = align_up(total, 8) + _DEVICE_NODE + len(node.name.encode()) + 1
        names = [one.name for one in tree.properties(node.offset)]
        total = align_up(total, 8) + len(names) * property_size
        if "name" not in names:  # it gets one, of the part before the @
            unit = node.name.rpartition("@")
            total += property_size + len((unit[0] if unit[1] else node.name).encode()) + 1
    return total
