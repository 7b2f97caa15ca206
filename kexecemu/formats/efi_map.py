"""The UEFI memory map, as a kernel that was booted with efi=debug prints it and as firmware keeps it in memory.

Read are the lines of reserve_regions() in drivers/firmware/efi/efi-init.c, as efi_md_typeattr_format() makes them, and
that of efi_config_parse_tables() with the tables' addresses; of ACPI what says
which CPUs, nodes and console there are. Everything else of a boot log is passed over.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from kexecemu.errors import FormatError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import brief, shown

__all__ = ["DESCRIPTOR_SIZE", "EFI_PAGE", "AcpiLog", "EfiDescriptor", "EfiMap", "parse_efi_map"]

EFI_PAGE = 4096
DESCRIPTOR_SIZE = 48
"""The size of a descriptor as firmware says it: more than the 40 bytes that there are, lest anybody count on these."""

_TYPES = (
    "Reserved",
    "Loader Code",
    "Loader Data",
    "Boot Code",
    "Boot Data",
    "Runtime Code",
    "Runtime Data",
    "Conventional",
    "Unusable",
    "ACPI Reclaim",
    "ACPI Mem NVS",
    "MMIO",
    "MMIO Port",
    "PAL Code",
    "Persistent",
    "Unaccepted",
)
# The columns of a line, and the bits of EFI_MEMORY_*.
_ATTRIBUTES = {
    "RUN": 63,
    "HP": 20,
    "MR": 16,
    "CC": 19,
    "SP": 18,
    "NV": 15,
    "XP": 14,
    "RP": 13,
    "WP": 12,
    "RO": 17,
    "UCE": 4,
    "WB": 3,
    "WT": 2,
    "WC": 1,
    "UC": 0,
}
_PRINTK = re.compile(r"^(?:\S.{0,80}? kernel: )?(?:<\d+>)?(?:\[ *\d+\.\d+(?:\]|\s*\]))?(?:\[ *[TC]\d+\])? *")
_LINE = re.compile(r"efi:\s+(0x[0-9a-f]+)-(0x[0-9a-f]+) \[([^|\]]+)\|([^\]]*)\]\s*$")
_LIKE = re.compile(r"efi:\s+0x")
_TABLES = re.compile(r"efi: +((?:[A-Za-z][\w .]*=0x[0-9a-f]+ *)+)$")
_TABLE = re.compile(r"([A-Za-z][\w .]*?)=0x([0-9a-f]+)")
_BANNER = re.compile(r"efi: +(EFI v\d.*)$")
_MEMATTR = re.compile(r"efi: memattr: +0x")
_CPUS = re.compile(r"^(?:rcu: )?\s*RCU restricting CPUs from NR_CPUS=\d+ to nr_cpu_ids=(\d{1,6})\.$")
_SPCR = re.compile(r"^ACPI: SPCR: console: pl011,mmio(?:32)?,0x([0-9a-f]{1,16}),")
_DMI = re.compile(r"^DMI: (.+)$")
_SRAT = re.compile(r"^ACPI: SRAT: Node (\d{1,6}) PXM \d+ \[mem 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\]")
_CMA = re.compile(r"^cma: Reserved (\d{1,6}) MiB at ")
_IORT = re.compile(r"^ACPI: IORT 0x")
_SLIT = re.compile(r"^ACPI: SLIT 0x")
_FREED = re.compile(r"^Freeing initrd memory: (\d{1,9})K$")
_NOT_MAPPED = (1 << 64) - 1
_START = "Processing EFI memory map"


@shown()
@dataclass(frozen=True)
class EfiDescriptor:
    """One entry: a physical range, its type in the kernel's words ("type=..." for others), and EFI_MEMORY_* bits."""

    area: PhysRange
    kind: str
    attributes: int

    def has(self, *names: str) -> bool:
        """Whether it has one of these attributes, by their columns: "WB", "RUN"."""
        return any(self.attributes >> _ATTRIBUTES[name] & 1 for name in names)

    def line(self) -> str:
        """The kernel's line about it, behind "efi: "."""
        if self.attributes & ~sum(1 << bit for bit in _ATTRIBUTES.values()):
            columns = f"attr={self.attributes:#018x}"
        else:
            columns = "|".join(
                (name if self.has(name) else "").rjust(3 if name in ("RUN", "UCE") else 2)
                for name in _ATTRIBUTES
            )
        return f"  {self.area.start:#014x}-{self.area.last:#014x} [{self.kind:<12}|{columns}]"

    def pack(self) -> bytes:
        """An efi_memory_desc_t as in memory; its virtual address is that of firmware that has refused to be mapped."""
        number = _TYPES.index(self.kind) if self.kind in _TYPES else int(self.kind.partition("=")[2])
        virt, pages = _NOT_MAPPED if self.has("RUN") else 0, self.area.size // EFI_PAGE
        packed = struct.pack("<IIQQQQ", number, 0, self.area.start, virt, pages, self.attributes)
        return packed.ljust(DESCRIPTOR_SIZE, b"\0")


@shown()
@dataclass(frozen=True)
class AcpiLog:
    """What a boot log says of ACPI's tables.

    cpus is nr_cpu_ids, of MADT's CPUs (0: not said); console SPCR's UART, physical (0: none, or none that is a PL011);
    machine the line about DMI; nodes SRAT's memory with the numbers of its nodes; distances whether there is a SLIT;
    iort whether there is an IORT.
    """

    cpus: int = 0
    console: int = 0
    machine: str = ""
    nodes: tuple[tuple[int, PhysRange], ...] = ()
    distances: bool = False
    iort: bool = False


@shown()
@dataclass(frozen=True)
class EfiMap:
    """A memory map, in its order, and what the same log says of the firmware's tables.

    tables are physical addresses by name, in their order; banner is who made the firmware, "" where the log does not
    say it; memattr is how many entries the memory attributes table has, as far as the log has them. initrd_size is in
    bytes, in whole pages, 0 where the log does not say that it is freed, and so is cma, the size of the
    CMA area. acpi is what it says of ACPI.
    """

    descriptors: tuple[EfiDescriptor, ...]
    tables: Mapping[str, int] = field(default_factory=dict)
    banner: str = ""
    memattr: int = 0
    initrd_size: int = 0
    cma: int = 0
    acpi: AcpiLog = field(default_factory=AcpiLog)

    def of(self, *kinds: str) -> list[EfiDescriptor]:
        """The descriptors of these types."""
        return [one for one in self.descriptors if one.kind in kinds]

    def pack(self) -> bytes:
        """The map as in memory."""
        return b"".join(one.pack() for one in self.descriptors)


def parse_efi_map(text: str) -> EfiMap:
    """The first memory map in a boot log; FormatError for a bad line, by its number, and for a log without any."""
    found: list[EfiDescriptor] = []
    tables: dict[str, int] = {}
    said: list[str] = []
    banner, memattr, maps, initrd_size = "", 0, 0, 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = _PRINTK.sub("", raw.strip(), count=1)
        if match := _FREED.search(line):
            initrd_size = initrd_size or int(match[1]) << 10
        said.append(line)
        if "efi: " not in line:
            continue
        maps += _START in line
        if maps > 1:
            break  # another boot, as of the capture kernel
        memattr += bool(_MEMATTR.search(line))
        if match := _LINE.search(line):
            found.append(_descriptor(match, number))
        elif _LIKE.search(line):
            raise FormatError(f"line {number} is none of an EFI memory map: {brief(line, room=80)}")
        elif (match := _TABLES.search(line)) and not tables:
            tables = {name.strip(): int(phys, 16) for name, phys in _TABLE.findall(match[1])}
        elif (match := _BANNER.search(line)) and not banner:
            banner = match[1].rstrip()
    if not found:
        raise FormatError(
            "no line of an EFI memory map: a kernel prints it where its command line has efi=debug"
        )
    cma = next((int(match[1]) for line in said if (match := _CMA.search(line))), 0) << 20
    return EfiMap(tuple(found), tables, banner, memattr, initrd_size, cma, _acpi(said))


def _acpi(said: list[str]) -> AcpiLog:
    """What these lines say of ACPI, each thing once."""

    def first(pattern: re.Pattern[str]) -> str:
        return next((match[1] for line in said if (match := pattern.search(line))), "")

    areas = (match.groups() for line in said if (match := _SRAT.search(line)))
    nodes = tuple((int(node), int(start, 16), int(last, 16) + 1) for node, start, last in areas)
    return AcpiLog(
        cpus=int(first(_CPUS) or 0),
        console=int(first(_SPCR) or "0", 16),
        machine=first(_DMI),
        nodes=tuple((node, PhysRange(start, end)) for node, start, end in nodes if start < end),
        distances=any(_SLIT.search(line) for line in said),
        iort=any(_IORT.search(line) for line in said),
    )


def _descriptor(match: re.Match[str], number: int) -> EfiDescriptor:
    start, last, kind, columns = match.groups()
    first, end, kind = int(start, 16), int(last, 16) + 1, kind.strip()
    if first % EFI_PAGE or end % EFI_PAGE or first >= end or end > 1 << 64:
        raise FormatError(f"line {number}: {start}-{last} are no pages of {EFI_PAGE} bytes")
    if kind not in _TYPES and not re.fullmatch(r"type=\d{1,10}", kind):
        raise FormatError(f"line {number}: {brief(kind, room=40)} is no type of EFI memory")
    bits = 0
    if number_of := re.fullmatch(r"attr=0x([0-9a-f]{16})", columns):
        bits = int(number_of[1], 16)
    else:
        for name in filter(None, map(str.strip, columns.split("|"))):
            if name not in _ATTRIBUTES:
                raise FormatError(f"line {number}: {brief(name, room=40)} is no attribute of EFI memory")
            bits |= 1 << _ATTRIBUTES[name]
    return EfiDescriptor(PhysRange(first, end), kind, bits)
