"""A machine as it runs already: memory, and what is where in it, by its /proc/iomem.

It says what a kernel made of the machine, whatever told it of that. It does not say who has taken what: only the crash
region is known to be that of the same command line, and for another one it is looked for anew.
"""

from dataclasses import dataclass
from pathlib import Path

from kexecemu.arguments import contents
from kexecemu.errors import FormatError, InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.iomem import Iomem, parse_iomem
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.firmware import BootPlaces
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.memory.crashkernel import CrashReservation
from kexecemu.kernel.memory.memblock import Memblock, merge
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["RunningMachine", "image_layout", "iomem_ram", "read_iomem"]

_SEGMENT_ALIGN = 64 << 10  # of the image's parts, and of what UEFI allocates for a tree
_PAGE, _INITRD_LEAST = 4096, 1 << 20


def read_iomem(file: Iomem | bytes | str | Path) -> Iomem:
    """The file, given as bytes or by its path; InputError that names the path."""
    if isinstance(file, Iomem):
        return file
    try:
        return parse_iomem(contents(file, "iomem").decode("utf-8", "replace"))
    except FormatError as error:
        raise InputError(f"iomem{'' if isinstance(file, bytes) else f' {file}'}: {error}") from error


def iomem_ram(iomem: Iomem) -> list[PhysRange]:
    """The RAM of a board with it: no-map memory counts where it lies next to what is used."""
    near = [
        one
        for one in iomem.nomap
        if any(one.start <= ram.end and ram.start <= one.end for ram in iomem.system_ram)
    ]
    return merge([*iomem.system_ram, *near])


def image_layout(era: Era, code: PhysRange, data: PhysRange) -> TextLayout:
    """Where a real image has its parts, by "Kernel code" and "Kernel data": those begin with _stext in earlier eras."""
    text = code.start - (0 if era.rules.text_alias_starts_at_text else _SEGMENT_ALIGN)
    return TextLayout(text, text + _SEGMENT_ALIGN, code.end, data.end, data.start, data.end)


@shown()
@dataclass(frozen=True)
class RunningMachine:
    """What /proc/iomem says, and the tree and the era of the kernel that said it; same: with the same command line."""

    iomem: Iomem
    layout: TextLayout
    places: BootPlaces
    same: bool

    @classmethod
    def of(cls, iomem: Iomem, config: KernelConfig, tree: Fdt, size: int, *, same: bool) -> "RunningMachine":
        """InputError where a kernel of `size` bytes is not what was running, or the tree lies nowhere."""
        layout = image_layout(config.release, iomem.code, iomem.data)
        text = layout.text
        if text < 0 or layout.end - text < size:
            raise InputError(
                f"iomem: a kernel at {text:#x}-{layout.end - 1:#x} is smaller than the model's, of {size:#x}"
            )
        if not any(ram.covers(PhysRange(text, layout.end)) for ram in iomem.system_ram):
            raise InputError(f"iomem: the kernel at {text:#x}-{layout.end - 1:#x} is outside of System RAM")
        return cls(iomem, layout, BootPlaces(text, _tree_phys(iomem, tree.totalsize)), same)

    def apply(self, memblock: Memblock) -> None:
        """Its memory in place of what memblock had, and the crash region taken, where that is known."""
        memblock.memory = []
        for area in (*self.iomem.system_ram, *self.iomem.nomap):
            memblock.add(area)
        for area in self.iomem.nomap:
            memblock.mark_nomap(area)
        for area in self.iomem.crash if self.same else ():
            memblock.reserve(area)

    @property
    def initrd(self) -> PhysRange | None:
        """What looks like an initrd that UEFI was asked for: it begins as that allocates, and ends anywhere."""
        found = [
            area
            for area in self.iomem.reserved
            if area.size >= _INITRD_LEAST
            and not area.start % _SEGMENT_ALIGN
            and area.end % _SEGMENT_ALIGN
            and self.places.dtb_phys not in area
        ]
        return max(found, key=lambda area: area.size, default=None)

    @property
    def reservation(self) -> CrashReservation | None:
        """The crash region, None where it is to be looked for; the low part of two is the lower one."""
        if not self.same:
            return None
        crash = self.iomem.crash
        low = crash[0] if len(crash) > 1 else None
        return CrashReservation(crash[-1] if crash else None, low)


def _tree_phys(iomem: Iomem, size: int) -> int:
    """Where the tree is: what is reserved ends with it, or it is alone there."""
    pages = align_up(size, _PAGE)
    fit = [area for area in iomem.reserved if area.size >= pages and not (area.end - pages) % _SEGMENT_ALIGN]
    if not fit:
        raise InputError(
            f"iomem: nothing that is reserved has a place for the device tree of {size:#x} bytes"
        )
    return min(fit, key=lambda area: (area.size, -area.start)).end - pages
