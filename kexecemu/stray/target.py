"""Where a fault hits: names first, so that a scenario stays right when addresses move.

initrd+0x1000                            a segment (kernel, elfcorehdr, initrd, dtb, purgatory) and an offset
purgatory:purgatory_sha256_digest+4      a symbol of the loaded purgatory
vmlinux:crash_notes                      a symbol of the first kernel
crashkernel+0x1000                       from the start of the crash region
crashkernel-free+0x1000                  from the start of its largest part that nothing uses
0x7ea00010                               a physical address
"""

import re
from collections.abc import Callable

from kexecemu.arguments import number
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.stray.fault import Fault
from kexecemu.suggest import did_you_mean, there_are

__all__ = ["area_of", "resolve", "resolve_by"]

# A decimal number has no zeros in front: to some they would make it an octal one.
_DIGITS = r"0[xX][0-9a-fA-F]+|0|[1-9][0-9]*"
_TARGET = re.compile(rf"(?P<base>[A-Za-z_][\w:.-]*?)(?:[+](?P<offset>{_DIGITS}))?\Z", re.ASCII)
_NUMBER = re.compile(rf"(?:{_DIGITS})\Z")


def area_of(region: PhysRange, image: Kimage, base: str) -> PhysRange | None:
    """What the name of a segment, or of the crash region or its free part, stands for; None for any other."""
    if base == "crashkernel":
        return region
    if base == "crashkernel-free":
        used = [segment.area for segment in image.segments] + image.control_pages
        return max(subtract([region], used), key=lambda area: area.size)
    segment = image.segment(base)
    return segment.area if segment is not None else None


def _area(kernel: KernelModel, base: str) -> PhysRange:
    image = kernel.image
    if base.startswith("vmlinux:"):
        name = base.removeprefix("vmlinux:")
        if name not in kernel.guest.vmlinux.elf.symbols:
            like = did_you_mean(name, kernel.guest.vmlinux.elf.symbols)
            raise InputError(f"target {base}: the first kernel has no symbol {name}{like}")
        phys = kernel.guest.phys(name)
        if phys not in kernel.guest.area:
            raise InputError(f"target {base}: {name} is a number, not a place in the first kernel's image")
        return PhysRange(phys, kernel.guest.area.end)
    if image is None or kernel.crashk_res is None:
        raise InputError(f"target {base}: no crash image is loaded")
    found = area_of(kernel.crashk_res, image, base)
    if found is not None:
        return found
    if base.startswith("purgatory:"):
        if image.purgatory is None:
            raise InputError(f"target {base}: no purgatory is loaded")
        return image.purgatory.target(base)
    known = [*(one.name for one in image.segments), "crashkernel", "crashkernel-free"]
    raise InputError(
        f"target {base}: no such segment or symbol{there_are(base, known)}, "
        "purgatory:SYMBOL, vmlinux:SYMBOL and physical addresses"
    )


def resolve(kernel: KernelModel, fault: Fault) -> PhysRange:
    """The physical bytes that a fault writes.

    Raises InputError when there is no such target, or when the bytes would not fit into it. What a fault model writes
    may run over the end of its target into what comes next, and is cut off at the end of RAM.
    """
    return resolve_by(kernel.ram, lambda base: _area(kernel, base), fault)


def resolve_by(
    ram: Ram, area_of: Callable[[str], PhysRange], fault: Fault, called: str | None = None
) -> PhysRange:
    """The same, where area_of(name) knows the physical range that a name stands for.

    called is what such a range is called where it is not what the name says.
    """
    length = fault.length if fault.model is None else 1
    phys = _first_byte(ram, area_of, fault.at.strip(), length, called)
    bank = next(bank for bank in ram.banks if phys in bank)
    return PhysRange(phys, min(phys + fault.length, bank.end))


def _value(digits: str) -> int:
    return number(digits, "target", 16 if digits[:2] in ("0x", "0X") else 10)


def _first_byte(
    ram: Ram, area_of: Callable[[str], PhysRange], target: str, length: int, called: str | None
) -> int:
    if _NUMBER.match(target):
        phys = _value(target)
        if not any(bank.covers(PhysRange.of(phys, length)) for bank in ram.banks):
            raise InputError(f"target {target}: no RAM at physical {phys:#x}")
        return phys
    match = _TARGET.match(target)
    if not match:
        raise InputError(f"target {target!r} is neither NAME, NAME+OFFSET nor a physical address")
    area = area_of(match["base"])
    offset = _value(match["offset"] or "0")
    if offset + length > area.size:
        raise InputError(
            f"target {target}: {length} byte{'s' if length != 1 else ''} at offset {offset:#x} do not fit in the "
            f"{area.size:#x} bytes of {called or match['base']}"
        )
    return area.start + offset
