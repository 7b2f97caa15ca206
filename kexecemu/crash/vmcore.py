"""The dump: /proc/vmcore as the capture kernel would show it, from the crashed machine's memory."""

import os
import re
from dataclasses import dataclass

from kexecemu.arguments import path as path_of
from kexecemu.crash.stages import CaptureEnd, CaptureRun
from kexecemu.errors import BusError, FormatError
from kexecemu.formats.elfcore import VmcoreLayout, write_vmcore
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.load.devtree import elfcorehdr_area
from kexecemu.linux.capture import DiskVmcore
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Vmcore", "vmcore_of"]


@shown()
@dataclass(frozen=True)
class Vmcore:
    """The dump of a board, found the way a capture kernel finds it.

    dtb_phys is where the capture kernel's device tree lies; its linux,elfcorehdr leads to the core header. elfcorehdr
    is where a capture kernel has found that already, physical: what becomes of the tree afterwards is nothing to it.
    note_align is how it aligns the notes (VmcoreLayout).
    """

    board: Board
    dtb_phys: int
    elfcorehdr: PhysRange | None = None
    note_align: int = 0

    def layout(self) -> VmcoreLayout:
        """Header, notes and the place of every load; FormatError where a kernel would give no /proc/vmcore."""
        try:
            return self._layout()
        except BusError as error:
            raise FormatError(f"dump: device tree or core header lead out of RAM ({error})") from error

    def _layout(self) -> VmcoreLayout:
        ram = self.board.ram
        area = self.elfcorehdr
        if area is None:
            size = int.from_bytes(ram.read(self.dtb_phys + 4, 4), "big")
            tree = Fdt(ram.read(self.dtb_phys, size))
            area = elfcorehdr_area(tree)
            if area is None:
                raise FormatError("dump: no linux,elfcorehdr in the device tree")
        return VmcoreLayout(ram.read(area.start, area.size), ram.read, self.note_align)

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the dump to a file, sparse and atomically; returns its size in bytes. FormatError as layout() has it.

        What the core header takes for RAM and is none reads as zeros.
        """
        path = path_of(path, "path")
        layout = self.layout()
        write_vmcore(path, layout, self.board.ram.view, self.board.ram.data_ranges)
        return layout.size


def vmcore_of(board: Board, image: Kimage, capture: CaptureRun) -> Vmcore | DiskVmcore | None:
    """The dump that a capture kernel came to, None where it came to none."""
    if capture.linux is not None:
        return capture.linux.vmcore
    align = _note_align(image.vmcoreinfo)
    if capture.end is CaptureEnd.DONE and capture.record is not None:
        return Vmcore(board, image.dtb_mem, capture.record.elfcorehdr, align)
    return Vmcore(board, image.dtb_mem, None, align) if capture.end is CaptureEnd.ENTERED else None


def _note_align(vmcoreinfo: bytes) -> int:
    """How a capture kernel of the same release as the first one aligns the notes."""
    found = re.match(rb"OSRELEASE=(\S+)", vmcoreinfo)
    return Era.of_release(found[1].decode()).rules.vmcore_note_align if found else 0
