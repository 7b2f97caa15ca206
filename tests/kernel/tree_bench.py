"""Device trees made to be read by the model kernel, and what it made of their memory."""

from __future__ import annotations

import io
import re

from elftools.elf.elffile import ELFFile
from kernel_bench import GIB

from kexecemu.formats.fdt import FdtEditor, cells
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.ranges import PhysRange

BANK = PhysRange.of(GIB, GIB)
Node = tuple[str, dict[str, bytes]]
NOMAP = {"no-map": b""}


def tree(
    *nodes: Node,
    memreserve: tuple[int, int] | None = None,
    parent: dict[str, bytes] | None = None,
    bank: PhysRange = BANK,
) -> bytes:
    """The board's tree with these nodes in /reserved-memory, in that order."""
    editor = FdtEditor(virt_device_tree([bank], 1, 0x9000000), 32768)
    top = editor.add_subnode(0, "reserved-memory")
    two = cells(2)
    for name, value in (parent or {"ranges": b"", "#size-cells": two, "#address-cells": two}).items():
        editor.setprop(top, name, value)
    for name, properties in reversed(nodes):  # the last one that is added stands first
        node = editor.add_subnode(top, name)
        for key, value in properties.items():
            editor.setprop(node, key, value)
    if memreserve is not None:
        editor.add_mem_rsv(*memreserve)
    editor.pack()
    return editor.to_bytes()


def said(kernel: KernelModel) -> list[str]:
    lines = (line.partition("] ")[2] for line in kernel.board.uart.text.splitlines())
    return [line for line in lines if re.search("eserved mem|^cma:|crashkernel res|OVERLAP|overlaps", line)]


def ram(kernel: KernelModel) -> list[str]:
    return re.findall(r"^(\S+) : (?:System RAM|reserved)$", proc_iomem(kernel), re.M)


def loads_of(core: bytes) -> list[tuple[int, int]]:
    headers = [
        one.header for one in ELFFile(io.BytesIO(core)).iter_segments() if one.header.p_type == "PT_LOAD"
    ]
    return [(one.p_paddr, one.p_memsz) for one in headers[1:]]


def memory_tree(*nodes: Node, chosen: dict[str, bytes] | None = None) -> bytes:
    """The board's tree with these memory nodes instead of its own; each gets its device_type."""
    editor = FdtEditor(virt_device_tree([BANK], 1, 0x9000000), 32768)
    own = editor.path_offset(f"/memory@{BANK.start:x}")
    assert own is not None
    editor.setprop(own, "device_type", b"elsewhere\0")
    for name, properties in reversed(nodes):
        node = editor.add_subnode(0, name)
        for key, value in {"device_type": b"memory\0", **properties}.items():
            editor.setprop(node, key, value)
    at = editor.path_offset("/chosen")
    assert at is not None
    for key, value in (chosen or {}).items():
        editor.setprop(at, key, value)
    editor.pack()
    return editor.to_bytes()
