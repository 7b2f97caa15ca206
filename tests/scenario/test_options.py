"""The table of options: a key of a scenario, an option of the command line and a field of Setup are one thing."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.cli import app
from kexecemu.commands import complete
from kexecemu.commands.options import takes_setup
from kexecemu.commands.schema import scenario_schema
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era, Protection
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.report.again import Again
from kexecemu.scenario.given import SetupChanges, SetupOptions, command_words, setup_of, with_changes
from kexecemu.scenario.options import OPTIONS, Setup, given_options
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.toml import changed, scenario_of, scenario_toml

SEEN: list[Setup] = []
PARSER = typer.Typer()


@PARSER.command()
@takes_setup()
def take(setup: Setup) -> None:
    """Remember what was given."""
    SEEN.append(setup)


def parsed(words: list[str]) -> Setup:
    """What the options of a command are as a setup."""
    PARSER(words, standalone_mode=False)
    return SEEN.pop()


def read(scenario: Scenario) -> Setup:
    """What a scenario is as a setup, once it was written and read."""
    text = scenario_toml(scenario)
    return setup_of(msgspec.convert(tomllib.loads(text), Scenario), Path("/elsewhere"))


# A value of each option that is not the default, as it is written in a scenario.
EXAMPLES: Mapping[str, Any] = {
    "ram": "512M",
    "cpus": 3,
    "gic": 3,
    "bbm": 2,
    "dtb": "/there/board.dtb",
    "efi_map": "/there/dmesg.txt",
    "iomem": "/there/iomem",
    "stuck_cpus": [1, 2],
    "era": "6.12",
    "cmdline": "crashkernel=64M",
    "protection": "readonly",
    "purgatory": "/there/mine.ro",
    "config": {"ZONE_DMA": "n", "KFENCE": "y"},
    "rng_ready": True,
    "linux": "/there/Image",
    "kernel": "fetched:kernel",
    "initrd": "none",
    "modules": "/there/lib/modules/6.12",
    "initrd_size": "16M",
    "append": "a b",
    "dm_crypt_keys": 2,
    "syscall": "kexec_load",
    "way": "machine-kexec",
    "capture": "linux",
    "seed": 7,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_key_an_option_and_a_field_of_one_name_are_the_same(name: str) -> None:
    option = OPTIONS[name]
    values = {name: EXAMPLES[name]}
    setup = Setup(**values)
    assert given_options(setup).keys() == values.keys()
    tables: dict[str, Any] = {"schema": 1, "name": "x"}
    for key, value in values.items():
        table = OPTIONS[key].table
        (tables.setdefault(table, {}) if table else tables)[key] = value
    assert setup_of(msgspec.convert(tables, Scenario), Path("/elsewhere")) == setup
    words = command_words(values)
    assert words.count(f"--{name.replace('_', '-')}") == (2 if name == "config" else 1)
    assert parsed(words) == setup
    assert option.key == (f"{option.table}.{name}" if option.table else name)


PATHS = st.sampled_from(["/there/a file", "fetched:kernel"]).map(Path)
TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)
VALUES: Mapping[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, (1 << 64) - 1),
    int | None: st.none() | st.integers(1, 64),
    str: TEXT,
    str | None: st.none() | TEXT,
    str | int | None: st.none() | st.sampled_from(["1G", "512M", "0x8000000"]),
    Path | None: st.none() | PATHS,
    bool | str | Path | None: st.sampled_from(["default", "none", "/there/mine.ro", True, False, None]),
    tuple[int, ...]: st.lists(st.integers(0, 7)).map(tuple),
    Mapping[str, str]: st.dictionaries(st.sampled_from(sorted(KNOWN_OPTIONS)), st.sampled_from("yn")),
}
WORDS = {"era": [one.value for one in Era], "protection": [None, *(one.value for one in Protection)]}


def value_of(name: str) -> st.SearchStrategy[Any]:
    option = OPTIONS[name]
    words = option.words or WORDS.get(name)
    return st.sampled_from(words) if words else VALUES[option.kind]


def setups(kind: str, **needed: st.SearchStrategy[Any]) -> st.SearchStrategy[Setup]:
    names = [name for name, one in OPTIONS.items() if one.only in ("", kind) and name != "linux"]
    fields = {name: value_of(name) for name in names} | needed
    optional = {name: one for name, one in fields.items() if name not in needed}
    return st.fixed_dictionaries(needed, optional=optional).map(lambda values: Setup(**values))


MODEL = setups("model")
REAL = setups(
    "linux",
    linux=PATHS,
    purgatory=st.sampled_from(["kexec-tools", "none"]),
    syscall=st.just("kexec_load"),
    capture=st.just("linux"),
)


@settings(max_examples=200, deadline=None)
@given(MODEL | REAL)
def test_any_setup_comes_back_from_its_line_and_from_its_scenario(setup: Setup) -> None:
    line = Again(None, None, [], given_options(setup), "x", setup, [], "boom").command()
    assert line is not None
    program, command, *words = shlex.split(line)
    assert (program, command) == ("kexecemu", "crash")
    assert parsed(words) == setup
    assert read(scenario_of("x", setup, [], "boom")) == setup
    assert with_changes(Setup(), given_options(setup)) == setup
    # In place of what a scenario says it gives the same, where that says nothing.
    assert read(changed(Scenario(1, "x"), given_options(setup))) == setup


def test_a_config_is_put_to_the_one_that_is_there_and_all_else_takes_its_place() -> None:
    setup = Setup(config={"KFENCE": "y", "ZONE_DMA": "n"}, ram="1G")
    new = {"config": {"ZONE_DMA": "y"}, "ram": "2G"}
    wanted = Setup(config={"KFENCE": "y", "ZONE_DMA": "y"}, ram="2G")
    assert with_changes(setup, new) == wanted
    assert read(changed(scenario_of("x", setup, [], "boom"), new)) == wanted


def test_a_board_by_its_tree_takes_the_place_of_a_scenarios_ram_and_cpus() -> None:
    usual = scenario_of("x", Setup(ram="1G", cpus=2, gic=3), [], "boom")
    tree = {"dtb": Path("/board.dtb")}
    assert read(changed(usual, tree)) == Setup(**tree)
    assert read(changed(usual, {**tree, "ram": "2G", "cpus": 1})) == Setup(**tree, ram="2G", cpus=1)
    other = scenario_of("x", Setup(ram="1G", cpus=2, dtb=Path("/rk3399.dtb")), [], "boom")
    assert read(changed(other, tree)) == Setup(**tree, ram="1G", cpus=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"capture": "stubb"},
            r"capture 'stubb' is not known \(did you mean stub\?\); known are stub, linux",
        ),
        ({"syscall": "x"}, "syscall 'x' is not known; known are kexec_file_load, kexec_load"),
        (
            {"linux": "x", "rng_ready": True},
            "kernel.rng_ready means nothing where the first kernel is a real one",
        ),
        ({"linux": "x", "purgatory": "p.ro"}, "kernel.purgatory is kexec-tools or none where .* not 'p.ro'"),
        ({"config": ["A=y"]}, "config: Mapping is wanted, not list"),
        ({"rng_ready": "yes"}, "rng_ready: bool is wanted, not str 'yes'"),
        ({"cpus": "2"}, "cpus: a whole number is wanted, not str '2'"),
        ({"dtb": 5}, "dtb: a path is wanted, not int 5"),
    ],
)
def test_a_value_that_is_none_is_refused_in_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Setup(**values)


def test_enumerations_are_taken_for_their_words() -> None:
    setup = Setup(era=Era.V6_1, protection=Protection.PTE)  # type: ignore[arg-type]
    assert (setup.era, setup.protection) == ("6.1", "pte")


def test_type_checkers_know_the_same_options() -> None:
    hints = get_type_hints(SetupOptions)
    assert hints.keys() == OPTIONS.keys()
    assert SetupOptions.__annotations__.keys() - SetupChanges.__annotations__.keys() == {"seed"}
    for name, hint in hints.items():
        kind = OPTIONS[name].kind
        more = {str} if Path in get_args(kind) else set()  # a path may be a string
        assert set(get_args(hint)) == set(get_args(kind)) | more, name


def test_every_option_is_in_the_schema_and_completed_where_it_has_words() -> None:
    tables = {"machine": "Machine", "kernel": "KernelTable", "load": "Load"}
    schema = scenario_schema()
    crash = typer.main.get_command(app).commands["crash"]  # type: ignore[attr-defined]
    options = {one.name: one for one in crash.params}
    for name, option in OPTIONS.items():
        keys = schema["$defs"][tables[option.table]]["properties"] if option.table else schema["properties"]
        assert keys[name]["description"].startswith(option.help)
        assert options[name].help.startswith(option.help)
        assert (options[name].default or None) is None
    for table, shown in tables.items():
        assert list(schema["$defs"][shown]["properties"]) == [
            name for name, one in OPTIONS.items() if one.table == table
        ]
    assert complete.of(("stub", "linux"))("l") == ["linux"]
