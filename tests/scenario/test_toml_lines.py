"""The line of a key, in every way in which TOML lets one write it; found by reading beginnings of the file."""

from __future__ import annotations

import tomllib
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.scenario.toml_lines import Path, at_line, line_of, validation_text

TEXT = """\
# a comment with fault = 1 in it
schema = 1
name = '''
[kernel]
era = "this is text"
'''
machine = { ram = "1G", cpus = 2 }
load.append = "x"   # dotted
load.initrd = "none"
"quoted key" = 1

[kernel]
era = "6.4"
config = { ZONE_DMA = "n",   KFENCE = "y" }

[[fault]]
at = "initrd"
write = "00"

[[fault]]   # the second
at = "dtb"
write = \"\"\"
00\"\"\"
when = "before-panic"

[expect]
console = [
    # in the middle of a value
    "one",

    "two",
]
outcome = "silent"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("schema",), 2),
        (("name",), 3),
        (("machine",), 7),
        (("machine", "cpus"), 7),
        (("load", "append"), 8),
        (("load", "initrd"), 9),
        (("quoted key",), 10),
        (("kernel",), 12),
        (("kernel", "era"), 13),
        (("kernel", "config", "KFENCE"), 14),
        (("fault", 0), 16),
        (("fault", 0, "write"), 18),
        (("fault", 1), 20),
        (("fault", 1, "at"), 21),
        (("fault", 1, "write"), 22),
        (("fault", 1, "when"), 24),
        (("expect", "console"), 27),
        (("expect", "console", 1), 27),
        (("expect", "outcome"), 33),
        (("expect", "segment"), None),
        (("fault", 2), None),
        (("schema", "x"), None),
        ((), None),
    ],
)
def test_a_key_is_found_where_it_stands(path: Path, line: int | None) -> None:
    assert line_of(TEXT, path) == line


def test_a_key_that_is_not_given_is_looked_for_in_its_table() -> None:
    assert at_line(TEXT, ("kernel", "protection"), "none") == "line 12: none"
    assert at_line(TEXT, ("crash", "message"), "none") == "none"


def test_text_that_is_no_toml_has_no_lines() -> None:
    assert line_of("a = \nb = 1\n", ("b",)) is None


def test_lines_end_as_on_other_systems_too() -> None:
    assert line_of("a = 1\r\n\r\n[b]\r\nc = 2\r\n", ("b", "c")) == 4


class Form(msgspec.Struct, forbid_unknown_fields=True):
    """Tables of tables, as a scenario may come to have them."""

    matrix: dict[str, list[Literal["one", "two"]]] = {}
    sizes: dict[str, int] = {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[matrix]\nx = ["one"]\ny = ["too"]\n',
            "line 1: Invalid enum value 'too' (did you mean two?); known are one, two - at `$.matrix[...][0]`",
        ),
        ("[sizes]\na = 1\n\nb = 'x'\n", "line 4: Expected `int`, got `str` - at `$.sizes[...]`"),
        ("\nmatrx = {}\n", "line 2: Object contains unknown field `matrx` (did you mean matrix?)"),
    ],
)
def test_what_could_stand_there_instead_is_told_for_any_form(text: str, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(tomllib.loads(text), Form)
    assert validation_text(error.value, text, Form) == words


_KEYS = st.text("abcdef", min_size=1, max_size=3)
_VALUES = st.one_of(
    st.integers(0, 9).map(str),
    st.sampled_from(['"x"', "'''\n[t]\na = 1\n'''", "[\n1,\n\n2]", "{ a = 1 }", "true"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=12, unique_by=lambda pair: pair[0]))
def test_every_key_of_any_file_is_found_on_the_line_that_begins_with_it(pairs: list[tuple[str, str]]) -> None:
    text = "\n\n".join(f"{key} = {value}" for key, value in pairs)
    data: dict[str, Any] = tomllib.loads(text)
    for key in data:
        line = line_of(text, (key,))
        assert line is not None
        assert text.split("\n")[line - 1].startswith(f"{key} = ")
