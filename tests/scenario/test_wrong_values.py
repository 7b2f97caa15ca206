"""Every key of a scenario file, as its JSON Schema has it, with wrong values: one line, and never a traceback."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kexecemu.arguments import toml_table
from kexecemu.cli import main
from kexecemu.commands.schema import scenario_schema
from kexecemu.errors import InputError
from kexecemu.kernel.base.cmdline import memparse

SOME = int(os.environ.get("KEXECEMU_VALUES", "3"))
"""How many values a key is given, of those below; all of them were tried."""

DIGITS = "1" * 4301
DEEP = 5000
VALUES = (
    *(
        "0",
        "-1",
        "1.5",
        "nan",
        "inf",
        "1e400",
        "true",
        '""',
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        "[1]",
        '["x"]',
        "[nan]",
    ),
    *(
        DIGITS,
        f"-{DIGITS}",
        f"0x{DIGITS}",
        f"0b{DIGITS}",
        f"0o{DIGITS}",
        f"[{DIGITS}]",
        f'"{DIGITS}"',
        f'"0x{DIGITS}"',
    ),
    *("9223372036854775808", "-9223372036854775809", "99999999999999999999", f"0x{'f' * 64}", f"1e{DIGITS}"),
    *(
        "[" * DEEP,
        "[" * DEEP + "]" * DEEP,
        "{a=" * DEEP,
        "[" * 200 + "]" * 200,
        '["a",' * 90 + "]" * 90,
        "{a.a.a.a=1}",
    ),
    *(
        '"a\\u0000b"',
        '"\\u0000"',
        '"\\u001b[2J"',
        '"1T"',
        '"1K"',
        '"\\u0661"',
        '"16\\u212a"',
        '"none"',
        '"default"',
    ),
    *(
        '"initrd"',
        '"/dev/zero"',
        '"/"',
        '"nowhere/x"',
        '"fetched:"',
        '"fetched:x"',
        f'"{"x" * 300}"',
        f'"{"x" * 5000}"',
    ),
    *(
        '"a\\nb"',
        '"%s"',
        '"{}"',
        '"\\U0010ffff"',
        f'"crashkernel={DIGITS}"',
        '"crashkernel=1T"',
        '"initrd+' + DIGITS + '"',
    ),
    *(
        f'"hashing-{DIGITS}"',
        '"hashing-999999"',
        '"hashing-\\u0661"',
        '"capture--1"',
        "1979-05-27",
        "07:32:00",
    ),
)


def keys() -> Iterator[tuple[str, str, bool]]:
    """Table, key, and whether there are several tables of that name."""
    schema = scenario_schema()
    for name, key in schema["properties"].items():
        inside: Any = key.get("$ref") or key.get("items", {}).get("$ref") or ""
        inside = inside or next((one["$ref"] for one in key.get("anyOf", ()) if "$ref" in one), "")
        table = schema["$defs"].get(inside.rpartition("/")[2], {})
        for below in table.get("properties", ()):
            yield name, below, "items" in key
        yield "", name, False


KEYS = sorted(set(keys()))
BASE: dict[str, dict[str, str]] = {
    "": {"schema": "1", "name": '"x"'},
    "machine": {"ram": '"64M"'},
    "kernel": {"cmdline": '"crashkernel=16M"'},
}
NEEDED = {"fault": {"at": '"initrd"', "write": '"ff"'}, "expect": {"outcome": '"captured"'}}


def text_of(table: str, key: str, several: bool, value: str) -> str:
    tables = {name: dict(values) for name, values in BASE.items()}
    if not table and key in (*BASE, *NEEDED, "crash", "campaign", "load", "matrix"):
        tables.pop(key, None)
    given = tables.setdefault(table, dict(NEEDED.get(table, {})))
    given[key] = value
    if table == "fault" and key in ("flip", "model", "variant"):
        given.pop("write")
        given.setdefault("model", '"bit-flip"') if key == "variant" else None
    lines = []
    for name, values in tables.items():
        lines += [f"[[{name}]]" if several and name == table else f"[{name}]"] * bool(name)
        lines += [f"{one} = {what}" for one, what in values.items()]
    return "\n".join(lines) + "\n"


def test_the_keys_are_those_of_the_schema() -> None:
    assert {
        ("", "seed", False),
        ("machine", "ram", False),
        ("fault", "at", True),
        ("expect", "console", False),
    } <= set(KEYS)
    assert len(KEYS) > 50


@pytest.mark.parametrize(("table", "key", "several"), KEYS)
def test_a_wrong_value_is_one_line(
    table: str,
    key: str,
    several: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEXECEMU_CACHE", str(tmp_path / "no cache"))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for value in random.Random(f"{table} {key}").sample(VALUES, min(SOME, len(VALUES))):
        Path("s.toml").write_text(text_of(table, key, several, value), encoding="utf-8")
        status = main(["run", "s.toml"])
        out, err = capsys.readouterr()
        told = f"[{table}] {key} = {value[:80]}: {status}: {err}"
        assert status in (0, 1, 2), told
        if status == 2:
            assert out == "" and err.startswith("kexecemu: ") and len(err.splitlines()) == 1, told
            assert len(err) < 2000, told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"a = {DIGITS}", "too long"),
        (f"a = 0x{DIGITS}", "too long"),
        (f"a = [[{{b = 0o{DIGITS}}}]]", "too long"),
        ("a = " + "[" * DEEP, "too deep"),
        ("a = " + "[" * DEEP + "]" * DEEP, "too deep"),
        ("a = " + "{a = " * DEEP, "too deep"),
        ("a = 1\na = 2", "overwrite"),
        ("a = 2026-02-30", "Invalid date"),
        ("\0", "Invalid"),
    ],
)
def test_what_is_no_toml_is_told_in_words(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as error:
        toml_table(text)
    assert len(str(error.value)) < 200


def test_tables_may_be_as_deep_as_dots_make_them() -> None:
    table = toml_table(".".join("a" * DEEP) + " = 1")
    for _ in range(DEEP):
        table = table["a"]
    assert table == 1


@pytest.mark.parametrize(
    "digits", ["9" * 4301, "1" + "0" * 9000, "18446744073709551617", "07" * 3000, "0x" + "f" * 5000]
)
def test_a_number_of_any_length_is_what_the_kernel_makes_of_it(digits: str) -> None:
    base = 16 if digits[:2] == "0x" else 8 if digits[0] == "0" else 10
    value = 0
    for digit in digits.removeprefix("0x"):
        value = (value * base + int(digit, 16)) & (1 << 64) - 1  # simple_strtoull(): it wraps round
    assert memparse(digits + "M,high") == ((value << 20) & (1 << 64) - 1, ",high")
