"""The kernel command line: memparse(), early parameters and the grammar of crashkernel=.

Followed: lib/cmdline.c and kernel/crash_core.c (6.1), kernel/crash_reserve.c (6.12).
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from errno import EINVAL, ENOENT

from kexecemu.shown import shown

__all__ = ["COMMAND_LINE_SIZE", "CrashkernelOption", "arguments", "get_option", "kstrtoint", "memparse"]
__all__ += ["is_one_line", "kaslr_disabled", "parameter", "parameters"]
__all__ += ["parse_crashkernel_option", "strtobool", "to_bytes", "words"]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?")
_INTEGER_DIGITS = 1000
_HEX_DIGIT = re.compile("(?:0[xX])?[0-9a-fA-F]")
_SHIFTS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_U64 = (1 << 64) - 1
_BLOCK = 1000
_WORD = re.compile(r'(?:"[^"]*(?:"|$)|[^ \t\n\v\f\r"])+')
_RAM_ROUNDING = 128 << 20
_NAME = "crashkernel="
_PREFIX = "crashkernel: "

Warn = Callable[[str], None]


COMMAND_LINE_SIZE = 2048
"""What the kernel has room for, the NUL included; what is longer is cut."""


def to_bytes(cmdline: str) -> bytes:
    """A command line as user space passes it: UTF-8, and bytes that are none as Python's arguments carry them."""
    return cmdline.encode("utf-8", "surrogateescape")


def _simple_strtoull(text: str) -> tuple[int, str]:
    """simple_strtoull(text, 0): a number (decimal, 0x hex or 0 octal) modulo 2^64, and the rest; 0 for none."""
    match = _NUMBER.match(text)
    digits = match.group() if match else ""
    value = 0
    if digits:
        hexadecimal = digits[:2] in ("0x", "0X")
        # As many digits as there are; Python itself reads no more than 4,300.
        if hexadecimal or digits[0] == "0":
            value = int(digits, 16 if hexadecimal else 8)
        else:
            value = int(digits[:_BLOCK])
            for at in range(_BLOCK, len(digits), _BLOCK):
                block = digits[at : at + _BLOCK]
                value = (value * 10 ** len(block) + int(block)) & _U64
    return value & _U64, text[len(digits) :]


def memparse(text: str) -> tuple[int, str]:
    """Read a number (decimal, 0x hex or 0 octal) with an optional K, M, G, T, P or E; return it in bytes and the rest.

    Nothing readable gives (0, text), as memparse() leaves its end pointer at the start. A suffix alone is readable:
    it is looked for where the number ends, whether there was one or not, so that crashkernel=M asks for 0 bytes.
    """
    value, rest = _simple_strtoull(text)
    if rest and (shift := _SHIFTS.get(rest[0].lower())) is not None:
        value, rest = value << shift, rest[1:]
    return value & _U64, rest


def get_option(text: str) -> int | None:
    """get_option(): the number at the start, with a minus or without, in 32 bits; None for none."""
    digits = text.removeprefix("-")
    value, rest = _simple_strtoull(digits)
    if rest == digits:
        return None
    value = (-value if digits != text else value) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def strtobool(text: str) -> bool | None:
    """strtobool(): y, Y, 1 and on, n, N, 0 and off, by their first letters; None for anything else."""
    key = text[:2].lower() if text[:1] in ("o", "O") else text[:1].lower()
    return {"y": True, "1": True, "on": True, "n": False, "0": False, "of": False}.get(key)


def kstrtoint(text: str) -> int | None:
    """kstrtoint(text, 0): a whole number with a sign, decimal, hex or octal, in 32 bits; None for anything else."""
    match = _INTEGER.fullmatch(text)
    if match is None or len(text) > _INTEGER_DIGITS:
        return None
    digits = match[2]
    value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    value = -value if match[1] == "-" else value
    return value if -1 << 31 <= value < 1 << 31 else None


def words(cmdline: str) -> Iterator[tuple[str, str | None]]:
    """parse_args(): each word's name, with _ for -, which are the same, and its value, None where there is no =.

    It ends at a bare --, what follows is init's. Blanks in quotes part nothing, and quotes around a word or a value are
    none of it (next_arg()).
    """
    for match in _WORD.finditer(cmdline):
        word = match[0].removeprefix('"')
        equals = word.find("=", 1)
        if word != match[0] or (equals > 0 and word.startswith('"', equals + 1)):
            word = word.removesuffix('"')
        name, value = (word, None) if equals < 0 else (word[:equals], word[equals + 1 :].removeprefix('"'))
        if name == "--" and value is None:
            return
        yield name.replace("-", "_"), value


def is_one_line(cmdline: str) -> bool:
    """Printable ASCII: what a boot loader can hand over, and an init that reads a line of it can read."""
    return cmdline.isascii() and cmdline.isprintable()


def kaslr_disabled(cmdline: str, fields: Collection[str]) -> bool:
    """kaslr_disabled_cmdline(): nokaslr, or the field of the software feature that it stands for; the last one counts.

    fields is what that is called. arch/arm64/kernel/pi/idreg-override.c has a grammar of its own: blanks part in quotes
    as well, and a value is one hex digit.
    """
    disabled = False
    for word in cmdline.split():
        if word == "--":
            break
        name, equals, value = word.replace("-", "_").partition("=")
        if not equals and name == "nokaslr":
            disabled = True
        elif name in fields and _HEX_DIGIT.fullmatch(value):
            disabled = int(value, 16) != 0
    return disabled


def arguments(cmdline: str, name: str) -> list[str | None]:
    """What parse_args() gives the handler of each `name=value` on the command line in order, None for a bare `name`."""
    return [value for key, value in words(cmdline) if key == name.replace("-", "_")]


def parameters(cmdline: str, name: str) -> list[str]:
    """The values of all `name=value` on the command line in order, "" for a bare `name`."""
    return [value or "" for value in arguments(cmdline, name)]


def parameter(cmdline: str, name: str) -> str | None:
    """The value of the last `name=value` on the command line, "" for a bare `name`, None if it is not there."""
    found = parameters(cmdline, name)
    return found[-1] if found else None


@shown()
@dataclass(frozen=True)
class CrashkernelOption:
    """One parsed crashkernel= option: bytes, a physical base (0: anywhere), or an errno (positive) in `error`.

    The size is set before what follows it is looked at: it may be there where there is an error, too.
    """

    size: int = 0
    base: int = 0
    error: int = 0


def _last_option(cmdline: str, suffix: str | None, suffixes: tuple[str, ...]) -> str | None:
    """get_last_crashkernel(): the last option with this suffix; without one, the last that has none."""
    found = None
    at = cmdline.find(_NAME)
    while at >= 0:
        word = cmdline[at:].split(" ", 1)[0]
        matches = word.endswith(suffix) if suffix else not word.endswith(suffixes)
        if matches:
            found = cmdline[at + len(_NAME) :]
        at = cmdline.find(_NAME, at + 1)
    return found


class _Unreadable(Exception):
    """Why an option cannot be read, in the kernel's words, and the size that was read by then, in bytes."""

    def __init__(self, why: str, size: int = 0, prefix: str = _PREFIX) -> None:
        super().__init__(prefix + why)
        self.size = size


def _number(text: str, otherwise: str = "Memory value expected", prefix: str = _PREFIX) -> tuple[int, str]:
    value, rest = memparse(text)
    if rest == text:
        raise _Unreadable(otherwise, prefix=prefix)
    return value, rest


def _behind(text: str, sign: str) -> str:
    if text[:1] != sign:
        raise _Unreadable(f"'{sign}' expected")
    return text[1:]


def _parse_ranges(text: str, system_ram: int, warn: Warn, prefixes: tuple[str, str]) -> CrashkernelOption:
    """parse_crashkernel_mem(): start-[end]:size[,...][@offset]; the first range that holds system_ram wins."""
    # Firmware keeps some RAM for itself; rounding lets users write 4G where they see 3.9G.
    system_ram = -(-system_ram // _RAM_ROUNDING) * _RAM_ROUNDING
    rest, size, more = text, 0, True
    while more:
        start, rest = _number(rest)
        rest, end = _behind(rest, "-"), _U64
        if rest[:1] != ":":
            end, rest = _number(rest)
            if end <= start:
                raise _Unreadable("end <= start")
        this_size, rest = _number(_behind(rest, ":"), prefix=prefixes[0])
        if this_size >= system_ram:
            raise _Unreadable("invalid size")
        if start <= system_ram < end:
            size = this_size
            break
        more, rest = rest[:1] == ",", rest[1:]
    if not size:
        warn("crashkernel size resulted in zero bytes")
        return CrashkernelOption()
    offset = re.match(r"[^ @]*@", rest)
    if not offset:
        return CrashkernelOption(size)
    return CrashkernelOption(
        size, _number(rest[offset.end() :], "Memory value expected after '@'", prefixes[1])[0]
    )


def _parse_plain(text: str, suffix: str) -> CrashkernelOption:
    """parse_crashkernel_simple() and parse_crashkernel_suffix(): size[@offset], or size,high or size,low."""
    size, rest = _number(text, "memory value expected")
    if not suffix and rest[:1] == "@":
        return CrashkernelOption(size, memparse(rest[1:])[0])
    tail = rest.removeprefix(suffix)
    if not rest.startswith(suffix) or tail[:1] not in (" ", ""):
        raise _Unreadable(f"unrecognized char: {tail[0]}", size)
    return CrashkernelOption(size)


def parse_crashkernel_option(
    cmdline: str,
    system_ram: int,
    suffix: str | None = None,
    warn: Warn = lambda text: None,
    *,
    suffixes: tuple[str, ...] = (",high", ",low"),
    prefixes: tuple[str, str] = (_PREFIX, _PREFIX),
) -> CrashkernelOption:
    """__parse_crashkernel(): read the last crashkernel= option of the kind that `suffix` (",high", ",low") names.

    system_ram is in bytes, suffixes are what the kernel knows, prefixes what it puts before two of the warnings about
    a list of ranges (no size, no offset). error is ENOENT when there is no such option, EINVAL
    when it cannot be read; warn gets the kernel's warning.
    """
    text = _last_option(cmdline, suffix, suffixes)
    if text is None:
        return CrashkernelOption(error=ENOENT)
    try:
        if not suffix and ":" in text.split(" ", 1)[0]:
            return _parse_ranges(text, system_ram, warn, prefixes)
        return _parse_plain(text, suffix or "")
    except _Unreadable as why:
        warn(str(why))
        return CrashkernelOption(why.size, error=EINVAL)
