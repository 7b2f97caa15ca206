"""/proc/iomem as root reads it: RAM, what no-map memory there is, where the kernel lies and where crash memory does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from kexecemu.errors import FormatError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import brief, shown

__all__ = ["Iomem", "parse_iomem"]

_LINE = re.compile(r"^( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) : (.*)$")


@shown()
@dataclass(frozen=True)
class Iomem:
    """What it says of memory, all physical and ascending.

    system_ram and nomap are the regions at the top; code and data the kernel's, crash the crash kernel's areas, and
    reserved what else is taken inside RAM. acpi_console is where the first PL011 of ACPI is, 0 for none.
    """

    system_ram: tuple[PhysRange, ...]
    nomap: tuple[PhysRange, ...]
    code: PhysRange
    data: PhysRange
    crash: tuple[PhysRange, ...]
    reserved: tuple[PhysRange, ...]
    acpi_console: int = 0


def parse_iomem(text: str) -> Iomem:
    """FormatError for a line that is none of it, by its number, and for a file without RAM or without a kernel."""
    found: dict[tuple[bool, str], list[PhysRange]] = {}
    some, within = False, list[PhysRange]()
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None:
            if line.strip():
                raise FormatError(f"line {number} is none of /proc/iomem: {brief(line, room=80)}")
            continue
        start, last = int(match[2], 16), int(match[3], 16)
        if last < start:
            raise FormatError(f"line {number} ends before it begins: {brief(line, room=80)}")
        some = some or last > 0
        depth = len(match[1]) // 2
        within[depth:] = [PhysRange(start, last + 1)]
        if depth and not (len(within) > depth and within[depth - 1].covers(within[depth])):
            raise FormatError(
                f"line {number} is not inside of the one that it is below: {brief(line, room=80)}"
            )
        found.setdefault((not match[1], match[4]), []).append(PhysRange(start, last + 1))
    if found and not some:
        raise FormatError("all addresses are 0: /proc/iomem shows them to root alone")

    def areas(top: bool, name: str) -> tuple[PhysRange, ...]:
        return tuple(sorted(found.get((top, name), [])))

    system_ram, code, data = (
        areas(True, "System RAM"),
        areas(False, "Kernel code"),
        areas(False, "Kernel data"),
    )
    if not system_ram:
        raise FormatError('no line with "System RAM"')
    for what, some_areas in (("Kernel code", code), ("Kernel data", data)):
        if len(some_areas) != 1:
            raise FormatError(
                f'{len(some_areas)} lines with "{what}" inside of System RAM, where one is wanted'
            )
    if code[0].end > data[0].start:
        raise FormatError("Kernel data begins before Kernel code ends")
    if any(one.overlaps(two) for one, two in pairwise(system_ram)):
        raise FormatError("lines of System RAM overlap")
    crash = areas(False, "Crash kernel")
    if len(crash) > 2:
        raise FormatError(f'{len(crash)} lines with "Crash kernel", where two are the most')
    console = areas(True, "ARMH0011:00")
    taken = areas(True, "reserved"), code[0], data[0], crash, areas(False, "reserved")
    return Iomem(system_ram, *taken, console[0].start if console else 0)
