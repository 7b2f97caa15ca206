"""kexecemu linear-map: the first kernel's linear map as it would be built, and its price before and after 6.4."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from kexecemu.commands.options import JsonOption, flag, option
from kexecemu.commands.outputs import print_json
from kexecemu.commands.streams import say_line
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.kconfig import split_options
from kexecemu.kernel.image.kimage import Segment
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import RAM_BASE, check_bbm
from kexecemu.visible import lines_text

if TYPE_CHECKING:
    from kexecemu.kernel.linear_survey import LinearMapSurvey
    from kexecemu.kernel.memory.linear_price import LinearMapPrice

__all__ = ["EXAMPLES", "linear_map_command"]

EXAMPLES = """\
kexecemu linear-map --ram 4T --era 6.1 --cmdline 'crashkernel=256M rodata=on'
What base pages for the whole map cost a large server before 6.4.
kexecemu linear-map --loaded initrd=0x77150000+0x27e000 --ptdump
The map after a load that protects one segment, as the kernel dumps it.
"""

_CMDLINE = "The first kernel's command line, with crashkernel=."
_TEXT = "Physical range of the kernel's read-only text (default: the kernel that ships)."
_LOADED = "A segment, protected as after a load; repeatable."

_RAM_LIMIT = 1 << 48
_HOST_PAGE = 4096
_BYTES = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})([KMGTPEkmgtpe]?)")
_BEFORE, _AFTER = "6.1", "6.4"


def linear_map_command(
    ram: Annotated[str, flag("ram", text="RAM, for example 1G or 4T.")] = "1G",
    era: Annotated[str, flag("era")] = "6.4",
    cmdline: Annotated[str, flag("cmdline", text=_CMDLINE)] = "crashkernel=256M",
    protection: Annotated[str | None, flag("protection")] = None,
    config: Annotated[list[str] | None, flag("config")] = None,
    bbm: Annotated[int | None, flag("bbm", panel="The first kernel")] = None,
    text: Annotated[str | None, option("--text", _TEXT, "START-END", "The first kernel")] = None,
    loaded: Annotated[
        list[str] | None, option("--loaded", _LOADED, "NAME=PHYS+SIZE", "The crash kernel")
    ] = None,
    ptdump: Annotated[
        bool, option("--ptdump", "Print the map in the format of the kernel's own dump.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print the first kernel's linear map as it would be built, and what it costs; nothing is run."""
    from kexecemu.kernel.linear_survey import survey_linear_map

    if ptdump and json:
        raise InputError("--ptdump and --json exclude each other")
    if not cmdline.isascii():
        raise InputError(f"--cmdline {cmdline!r}: a kernel command line is ASCII")
    bank, level = _bank(ram), check_bbm(bbm or 0)
    kernel = KernelConfig(era, protection=protection, options=split_options(config or ()))
    text_range = None if text is None else _text_range(text)
    segments = [_segment(one) for one in loaded] if loaded else None
    asked = survey_linear_map(
        [bank], kernel, cmdline, text=text_range, loaded=segments, ptdump=ptdump, bbm=level
    )
    for words in asked.warnings:
        say_line(words)
    if asked.ptdump is not None:
        sys.stdout.write(asked.ptdump)
        return
    # Both sides as history had them, each with its own era's protection, whatever --protection says.
    sides = {
        name: survey_linear_map([bank], KernelConfig(name, options=kernel.options), cmdline, text=text_range)
        for name in (_BEFORE, _AFTER)
    }
    if json:
        print_json(_object(bank, level, asked, sides))
    else:
        sys.stdout.write(_account(bank, asked, sides))


# -- options ---------------------------------------------------------------------------------------------------


def _number(text: str, what: str) -> int:
    """A number as the kernel reads it: decimal, hex or octal, with a suffix; InputError for anything else."""
    from kexecemu.kernel.base.cmdline import memparse

    match = _BYTES.fullmatch(text.strip())
    digits, unit = match.groups() if match else ("", "")
    value, rest = memparse(digits + unit)
    # What has more than 64 bits would wrap around.
    if not match or rest or value // memparse(f"1{unit}")[0] != memparse(digits)[0]:
        example = "write for example 1G, 768M or 0x40000000"
        raise InputError(f"{what}: {text!r} is not a number of bytes ({example})")
    return value


def _bank(text: str) -> PhysRange:
    size = _number(text, "--ram")
    if not size or size % _HOST_PAGE:
        raise InputError(f"--ram {text}: not made of whole pages of {_HOST_PAGE:#x} bytes")
    if RAM_BASE + size > _RAM_LIMIT:
        raise InputError(f"--ram {text}: physical addresses have 48 bits, and RAM starts at {RAM_BASE:#x}")
    return PhysRange.of(RAM_BASE, size)


def _text_range(text: str) -> PhysRange:
    first, dash, last = text.partition("-")
    if not dash:
        raise InputError(f"--text {text!r}: write START-END, for example 0x40210000-0x405b0000")
    start, end = _number(first, "--text"), _number(last, "--text")
    # /proc/iomem and this program's own output have inclusive ends; the end of whole pages tells which it is.
    end += (end + 1) % _HOST_PAGE == 0
    if start >= end:
        raise InputError(f"--text {text!r}: ends before it starts")
    return PhysRange(start, end)


def _segment(text: str) -> Segment:
    name, equals, place = text.partition("=")
    phys, plus, size = place.partition("+")
    if not name or not equals or not plus:
        raise InputError(f"--loaded {text!r}: write NAME=PHYS+SIZE, for example initrd=0x77150000+0x27e000")
    segment = Segment(name, b"", _number(phys, f"--loaded {name}"), _number(size, f"--loaded {name}"))
    if not segment.memsz:
        raise InputError(f"--loaded {text!r}: a segment of no bytes")
    return segment


# -- what is printed -------------------------------------------------------------------------------------------


def _size(size: int) -> str:
    """4K, 64K, 2M, 1G: the largest unit that leaves a whole number."""
    unit = 0
    while size and size % 1024 == 0 and unit < 4:
        size, unit = size // 1024, unit + 1
    return f"{size}{('', 'K', 'M', 'G', 'T')[unit]}"


def _range(area: PhysRange | None) -> dict[str, int] | None:
    return {"start": area.start, "end": area.last} if area is not None else None


def _price(price: LinearMapPrice) -> dict[str, Any]:
    return {
        **{key: getattr(price, key) for key in ("table_pages", "table_bytes", "entries")},
        "blocks": {_size(size): count for size, count in price.leaves.items()},
        "contiguous": {_size(size): count for size, count in price.contiguous.items()},
    }


def _object(
    bank: PhysRange, bbm: int, asked: LinearMapSurvey, sides: Mapping[str, LinearMapSurvey]
) -> dict[str, Any]:
    """The --json object. Addresses are physical, as integers, with inclusive ends; sizes are in bytes."""
    load = asked.load
    return {
        "era": asked.config.release.value,
        "protection": asked.config.way.value,
        "bbm": bbm,
        "page_size": asked.config.page_size,
        "ram": bank.size,
        "text": _range(asked.text),
        "data": _range(asked.data),
        "data_alias": None if asked.data is None else _alias(asked),
        "crashkernel": _range(asked.reservation.crashk_res),
        "crashkernel_low": _range(asked.reservation.crashk_low_res),
        "messages": list(asked.messages),
        "reason": asked.reason,
        "notes": _notes(asked, sides),
        "warnings": list(asked.warnings),
        "method": asked.method,
        **_price(asked.price),
        "load": None if load is None else {"table_pages": load.table_pages, "entries": load.entries},
        "before": _price(sides[_BEFORE].price),
        "after": _price(sides[_AFTER].price),
    }


def _account(bank: PhysRange, asked: LinearMapSurvey, sides: Mapping[str, LinearMapSurvey]) -> str:
    """The map told to people."""
    config, reservation = asked.config, asked.reservation
    lines = [
        f"linear map of {_size(bank.size)} RAM at {bank}, {_size(config.page_size)} pages",
        f"kernel of the {config.release.value} era, protection {config.way.value}",
        "",
        f"how built     {asked.reason}",
        f"kernel text   {asked.text}, read-only alias",
        *([f"kernel data   {asked.data}, {_alias(asked)} alias"] if asked.data is not None else []),
        f"crashkernel   {_area(reservation.crashk_res)}",
    ]
    if reservation.crashk_low_res is not None:
        lines.append(f"  low part    {_area(reservation.crashk_low_res)}")
    lines += [f"kernel says   {message}" for message in asked.messages]
    if asked.load is not None:
        pages = f"{asked.load.table_pages:,} more table page{'' if asked.load.table_pages == 1 else 's'}"
        written = f"{asked.load.entries:,} entries written to protect the segments"
        lines.append(f"after a load  {written}, {pages}")
    before, after = sides[_BEFORE].price, sides[_AFTER].price
    columns = {"this kernel": asked.price, f"before ({_BEFORE})": before, f"after ({_AFTER})": after}
    lines += ["", *_table(columns), "", *_notes(asked, sides), _saving(sides), _METHODS[asked.method]]
    return lines_text(lines)


def _notes(asked: LinearMapSurvey, sides: Mapping[str, LinearMapSurvey]) -> list[str]:
    """What makes the two sides no measure of this kernel: rodata= of one command line, read with other words."""
    from kexecemu.kernel.base.cmdline import arguments
    from kexecemu.kernel.memory.linear_map import rodata_full, rodata_message, rodata_words

    side, cmdline = sides[_AFTER].config, asked.cmdline
    if rodata_full(asked.config, cmdline) == rodata_full(side, cmdline):
        return []
    found = [rodata_message(side, word) for word in arguments(cmdline, "rodata")]
    said = "".join(f" ({words})" for words in found if words is not None)
    return [
        "before 6.18 rodata=on was what noalias is now, and full what on is now: "
        f"{_BEFORE} and {_AFTER} have {rodata_words(side, cmdline)} here{said}"
    ]


def _alias(asked: LinearMapSurvey) -> str:
    from kexecemu.kernel.memory.linear_map import data_alias

    return data_alias(asked.config, asked.cmdline)


_METHODS = {
    "built": "counted in the page tables, built in guest memory",
    "formula": "reckoned by the exact formula: this is too much RAM to build its tables here",
}


def _area(area: PhysRange | None) -> str:
    return "none" if area is None else f"{area}, {_size(area.size)}"


def _table(columns: Mapping[str, LinearMapPrice]) -> list[str]:
    prices = list(columns.values())
    rows = [
        ("", list(columns)),
        ("table pages", [f"{one.table_pages:,}" for one in prices]),
        ("  bytes", [f"{one.table_bytes:,}" for one in prices]),
        ("entries", [f"{one.entries:,}" for one in prices]),
    ]
    for size in sorted({size for one in prices for size in one.leaves}):
        rows.append((f"{_size(size)} leaves", [f"{one.leaves.get(size, 0):,}" for one in prices]))
        if any(size in one.contiguous for one in prices):
            rows.append(("  contiguous", [f"{one.contiguous.get(size, 0):,}" for one in prices]))
    return [f"{label:<14}" + "".join(f"{cell:>18}" for cell in cells) for label, cells in rows]


def _saving(sides: Mapping[str, LinearMapSurvey]) -> str:
    """What the series saved on this machine, or why nothing."""
    before, after = sides[_BEFORE].price, sides[_AFTER].price
    saved = before.table_pages - after.table_pages
    if saved:
        less = before.table_bytes - after.table_bytes
        return f"the series saved {saved:,} table pages here ({less:,} bytes)"
    if set(after.leaves) == {sides[_AFTER].config.page_size}:
        return f"the series saved nothing here: after it, too, {sides[_AFTER].reason}"
    return "the series saved nothing here: the map is the same before and after it"
