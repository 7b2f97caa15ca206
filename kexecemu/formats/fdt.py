"""Flattened device trees, byte for byte as libfdt 1.6 would leave them.

Four files: fdt_blob checks the bytes, fdt_read reads nodes and properties, fdt_edit changes a tree in place,
fdt_build makes a new one. The exact bytes matter: a kernel edits the device tree that it was booted with and
hands the result, strings in the order in which libfdt happened to append them, to the kernel that it loads,
and digests are taken over that.
"""

from __future__ import annotations

from kexecemu.formats.fdt_blob import MemReserve
from kexecemu.formats.fdt_build import NodeSpec, build, cells, join_cells, reg64
from kexecemu.formats.fdt_edit import FdtEditor
from kexecemu.formats.fdt_read import Fdt

__all__ = ["Fdt", "FdtEditor", "MemReserve", "NodeSpec", "build", "cells", "join_cells", "reg64"]
