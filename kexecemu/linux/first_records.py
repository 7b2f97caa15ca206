"""What a real first kernel and its kexec-tools said of a load, read from the records on its console.

The init of linux/inits/first.sh prints them with kexecemu.records=console: each file between "first: record NAME"
and "first: end of NAME". `kexec -d` says where it put every segment, and which of them is which.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kexecemu.errors import InputError, KexecError, MachineError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = [
    "KexecSaid",
    "SaidHeader",
    "SaidSegment",
    "believed",
    "crash_kernel",
    "iomem",
    "last_words",
    "parse_kexec",
]
__all__ += ["split_records"]

_BEGIN, _END = "first: record ", "first: end of "
# A number that a guest says is one of 64 bits, or it says nothing.
_HEX = r"([0-9a-f]{1,16})(?![0-9a-f])"
_KERNEL_LINE = re.compile(r"^\[ *\d+\.\d{6}\] .*\n", re.MULTILINE)
_CALL = re.compile(
    rf"kexec_load: entry = 0x{_HEX} flags = (?:0x)?{_HEX}\s+nr_segments = ([0-9]{{1,2}})(?![0-9])"
)
_HEADER = re.compile(
    rf"[Hh]eader: p_type = ([0-9]{{1,10}}), p_offset = 0x{_HEX} p_paddr = 0x{_HEX} "
    rf"p_vaddr = 0x{_HEX} p_filesz = 0x{_HEX} p_memsz = 0x{_HEX}"
)
_SYMBOL = re.compile(rf"^sym: *(\S+) info: \S+ other: \S+ shndx: \S+ value: {_HEX} size: {_HEX}$")
_VALUE = re.compile(rf"^sym: *(\S+) value: {_HEX} addr: ")
_IOMEM = re.compile(rf"^( *){_HEX}-{_HEX} : (.*)$")


@shown()
@dataclass(frozen=True)
class SaidSegment:
    """One segment of the system call: bufsz bytes to physical mem, memsz bytes in all."""

    name: str
    mem: int
    memsz: int
    bufsz: int


@shown()
@dataclass(frozen=True)
class SaidHeader:
    """One program header of the elfcorehdr as kexec-tools says that it made it; size is p_memsz."""

    type: int
    phys: int
    virt: int
    size: int


@shown()
@dataclass(frozen=True)
class KexecSaid:
    """What `kexec -d -p` said: the call's entry (physical), its segments in order, and the core's headers.

    symbols are those of the purgatory that it happened to mention: physical address and size in bytes.
    """

    entry: int
    segments: list[SaidSegment]
    headers: list[SaidHeader]
    symbols: dict[str, PhysRange]


def split_records(console: str) -> dict[str, str]:
    """The records on a console (text with plain line ends), by file name; what the kernel printed meanwhile is out.

    dmesg.txt is made of such lines, and is kept whole.
    """
    records: dict[str, str] = {}
    name, lines = "", list[str]()
    for line in console.split("\n"):
        if line.startswith(_BEGIN):
            name, lines = line.removeprefix(_BEGIN), []
        elif name and line == _END + name:
            text = "".join(f"{one}\n" for one in lines)
            records[name] = text if name == "dmesg.txt" else _KERNEL_LINE.sub("", text)
            name = ""
        elif name:
            lines.append(line)
    return records


def _without_records(lines: Sequence[str]) -> list[str]:
    """What is said outside of whole records."""
    kept, name, begin = list[str](), "", 0
    for line in lines:
        if line.startswith(_BEGIN):
            name, begin = line.removeprefix(_BEGIN), len(kept)
        kept.append(line)
        if name and line == _END + name:
            del kept[begin:]
            name = ""
    return kept


@contextmanager
def believed() -> Iterator[None]:
    """Reading what a first Linux says of its load: what memory does not agree with is an InputError, in one line."""
    try:
        yield
    except InputError:
        raise
    except (MachineError, KexecError, ValueError, LookupError) as error:
        raise InputError(f"the first Linux has loaded no crash kernel as it says: {error}") from error


def last_words(console: str) -> str:
    """Why there is no load, in the words of whoever had the last: the kernel, kexec or init."""
    lines = [line for line in _without_records(console.splitlines()) if line.strip()]
    # Its end may not have been heard in full.
    panic = [line for line in lines if "Kernel panic" in line and "---[ end" not in line]
    if panic or not lines:
        return (panic or ["it said nothing"])[-1]
    if not lines[-1].startswith("first: end: kexec failed"):
        return lines[-1]
    up = max((number for number, line in enumerate(lines) if line.startswith("first: Linux ")), default=-1)
    refused = [line for line in lines[:up] if "crashkernel" in line and "command line" not in line]
    return "; ".join([*refused[-1:], *lines[up + 1 :][-4:]])


def parse_kexec(text: str) -> KexecSaid:
    """Read what `kexec -d -p` printed. InputError when it does not say what was loaded, as without -d."""
    call = _CALL.search(text)
    if call is None:
        raise InputError("kexec did not say what it loaded: the record of `kexec -d` has no kexec_load line")
    entry = int(call[1], 16)
    rows = [_segment_row(text[call.end() :], number) for number in range(int(call[3]))]
    names = _names(text, entry, rows)
    return KexecSaid(
        entry,
        [SaidSegment(names[mem], mem, memsz, bufsz) for mem, memsz, bufsz in rows],
        [
            SaidHeader(int(found[1]), int(found[3], 16), int(found[4], 16), int(found[6], 16))
            for found in _HEADER.finditer(text)
        ],
        _symbols(text),
    )


def _segment_row(text: str, number: int) -> tuple[int, int, int]:
    """(mem, memsz, bufsz) of segment[number]."""
    values = []
    for key in ("mem", "memsz", "bufsz"):
        found = re.search(rf"segment\[{number}\]\.{key} *= 0x{_HEX}", text)
        if found is None:
            raise InputError(f"kexec did not say segment[{number}].{key}")
        values.append(int(found[1], 16))
    return values[0], values[1], values[2]


def _names(text: str, entry: int, rows: Sequence[tuple[int, int, int]]) -> dict[int, str]:
    """Names by physical address: each is said somewhere, but the purgatory's, which is where the entry is."""
    said = {
        "kernel": rf"kernel_segment: +{_HEX}",
        "elfcorehdr": rf"elfcorehdr 0x{_HEX}-",
        "initrd": rf"initrd: +base {_HEX},",
        "dtb": rf"dtb: +base {_HEX},",
    }
    names = {int(found[1], 16): name for name, pattern in said.items() if (found := re.search(pattern, text))}
    # The kernel's segment begins text_offset behind the place that is said.
    offset = re.search(rf"text_offset: +{_HEX}", text)
    if offset is not None and int(offset[1], 16):
        names = {at + int(offset[1], 16) * (name == "kernel"): name for at, name in names.items()}
    for mem, memsz, _ in rows:
        if mem not in names and mem <= entry < mem + memsz:
            names[mem] = "purgatory"
    unknown = [f"{mem:#x}" for mem, _, _ in rows if mem not in names]
    if unknown:
        raise InputError(f"kexec did not say what its segment at {', '.join(unknown)} is")
    return names


def _symbols(text: str) -> dict[str, PhysRange]:
    """Symbols come as pairs of lines, with their size in the first and their place in the second."""
    found: dict[str, PhysRange] = {}
    size, name = 0, ""
    for line in text.splitlines():
        if match := _SYMBOL.match(line):
            name, size = match[1], int(match[3], 16)
        elif (match := _VALUE.match(line)) and match[1] == name and size:
            found.setdefault(name, PhysRange.of(int(match[2], 16), size))
    return found


def iomem(text: str) -> list[tuple[int, PhysRange, str]]:
    """/proc/iomem as (depth, physical range, name), in its order; a line with no such range is none."""
    return [
        (len(found[1]) // 2, PhysRange(start, last + 1), found[4])
        for line in text.splitlines()
        if (found := _IOMEM.match(line)) and (start := int(found[2], 16)) <= (last := int(found[3], 16))
    ]


def crash_kernel(text: str) -> tuple[PhysRange | None, PhysRange | None]:
    """(crashk_res, crashk_low_res) in /proc/iomem: where there are two, the lower one is the low part."""
    areas = sorted(area for _, area, name in iomem(text) if name == "Crash kernel")
    return areas[-1] if areas else None, areas[0] if len(areas) > 1 else None
