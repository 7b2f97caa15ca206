r"""Text of others, shown and never obeyed: what steers a terminal or deceives a reader becomes an escape.

A certificate's name, a guest's console, a scenario's sentence, a file's name or a symbol may hold anything: ESC[2J,
which clears a screen, OSC 52, which fills the clipboard, an override that turns text around. All that this program
prints goes through one of these: Visible stands for stdout and stderr, visible() makes pages and pytest's reports,
json_text() JSON. A newline and a tab stay, since the layout is ours; visible_line() is for what has to be one line.
"""

import codecs
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

__all__ = [
    "Visible",
    "json_text",
    "lines_text",
    "listener",
    "unguarded",
    "visible",
    "visible_line",
    "visible_streams",
    "visible_string",
]

# Unicode's Cc, Cf, Cs, Zl and Zp, what it says is not to be drawn (Default_Ignorable_Code_Point), and what XML forbids.
# Written out, so that the same text is shown the same by every Python, whichever Unicode it knows.
_HIDDEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    r"\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # no width, line and paragraph, overrides and isolates
    r"\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"  # tags
)
_ESCAPED = re.compile(f"[{_HIDDEN}]")
_ESCAPED_IN_LINE = re.compile(rf"[\n{_HIDDEN}]")


def visible(text: str) -> str:
    r"""The text with an escape for every character that cannot be seen: \x1b, \u202e, \U000e0041.

    A byte that is no UTF-8, which Python has as a lone surrogate, is shown as that byte. Twice is the same as once.
    """
    return _ESCAPED.sub(_escape, text)


def visible_string(quoted: str) -> str:
    r"""The same in a string of JSON or TOML, which read \u009b and no \x9b."""
    return _ESCAPED.sub(lambda match: _escape(match, "u00"), quoted)


def visible_line(text: str) -> str:
    r"""The same in one line: a newline too is an escape."""
    return _ESCAPED_IN_LINE.sub(_escape, text)


def lines_text(lines: Iterable[str]) -> str:
    """Lines as a text, each of which stays one: a name with a newline in it does not make a line of its own."""
    return "".join(f"{visible_line(line)}\n" for line in lines)


def _escape(match: re.Match[str], byte: str = "x") -> str:
    code = ord(match[0])
    if code == ord("\n"):
        return r"\n"
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape
        code -= 0xDC00
    return f"\\{byte}{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON, in ASCII, with every control character as JSON escapes it; DEL as well, which json leaves."""
    return visible_string(json.dumps(value, indent=indent))


class Visible:
    """A text stream before another one, which shows in it whatever is written here.

    It has no buffer, by which bytes would go around it. unguarded() gives the stream behind it to whoever makes control
    codes himself, for colours or a progress bar, and sees to the text between them.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write the text so that it can be seen; the length is that of what was asked for."""
        self.unguarded.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError("bytes would go around what makes them visible")
        return getattr(self.unguarded, name)


def unguarded(stream: TextIO) -> TextIO:
    """The stream behind a Visible one, for control codes of our own; any other as it is."""
    return stream.unguarded if isinstance(stream, Visible) else stream


@contextmanager
def visible_streams() -> Iterator[None]:
    """While it lasts nothing that cannot be seen reaches stdout or stderr, whoever prints."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, one and Visible(one)) for one in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def listener(raw: bool = False) -> Callable[[bytes], None]:
    """Who passes a guest's console on to stderr while it is printed; stdout is for the account of the run.

    What a terminal would obey is shown; the CR before a newline, which every console has, goes. raw leaves all.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    held = ""

    def hear(data: bytes) -> None:
        nonlocal held
        stream = unguarded(sys.stderr)
        if raw:
            stream.buffer.write(data)
        else:
            text = held + decode(data)
            held = "\r" if text.endswith("\r") else ""
            stream.write(visible(text.removesuffix("\r").replace("\r\n", "\n")))
        if b"\n" in data:
            stream.flush()

    return hear
