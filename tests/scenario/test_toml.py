"""A scenario as text: read again it is the same, and a setup becomes the scenario that gives that setup."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu import By, Fault, When
from kexecemu.crash.outcome import Outcome
from kexecemu.data import shipped_scenarios
from kexecemu.scenario.given import setup_of
from kexecemu.scenario.options import OPTIONS, Setup, given_options
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.schema import Expect, Scenario
from kexecemu.scenario.toml import scenario_of, scenario_toml


def again(scenario: Scenario) -> Scenario:
    return msgspec.convert(tomllib.loads(scenario_toml(scenario)), Scenario)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_a_scenario_that_ships_is_the_same_when_it_is_written_and_read(name: str) -> None:
    scenario = read_scenario(find_scenario(name))
    assert again(scenario) == scenario


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_through(text: str) -> None:
    scenario = Scenario(1, text, expect=Expect(Outcome.SILENT, console=[text, ""]))
    assert again(scenario) == scenario


def test_what_is_not_given_is_not_written() -> None:
    scenario = Scenario(1, "a name", seed=3, expect=Expect(Outcome.SILENT, segments=["dtb"]))
    assert scenario_toml(scenario) == (
        'schema = 1\nname = "a name"\nseed = 3\n\n[expect]\noutcome = "silent"\nsegments = ["dtb"]\n'
    )


# A value for each field, none of them the default.
FULL = Setup(
    kernel=Path("/there/Image"),
    initrd=Path("/there/initrd"),
    initrd_size=0x20000,
    append="a b",
    dm_crypt_keys=3,
    ram="512M",
    cpus=3,
    gic=3,
    bbm=2,
    cmdline="crashkernel=64M",
    dtb=Path("/there/board.dtb"),
    efi_map=Path("/there/dmesg.txt"),
    iomem=Path("/there/iomem"),
    era="6.12",
    protection="readonly",
    purgatory="/there/mine.ro",
    config={"ZONE_DMA": "n", "CMA_SIZE_MBYTES": "16"},
    rng_ready=True,
    seed=7,
    syscall="kexec_file_load",
    way="machine-kexec",
    capture="linux",
)
REAL = Setup(
    linux=Path("/there/Linux"), stuck_cpus=(1, 3), cpus=4, purgatory="kexec-tools", modules=Path("/there")
)


def test_a_setup_becomes_the_scenario_that_gives_it_again(tmp_path: Path) -> None:
    plain = Setup()
    assert given_options(FULL).keys() | given_options(REAL).keys() == OPTIONS.keys()
    assert setup_of(again(scenario_of("x", REAL, [], "boom")), tmp_path) == REAL
    scenario = again(scenario_of("x", FULL, [], "boom"))
    assert scenario_setup(scenario, tmp_path) == FULL
    assert scenario.crash.message == "boom"
    assert scenario_setup(again(scenario_of("x", plain, [], "boom")), tmp_path) == plain


def test_a_setup_without_an_initrd_or_a_purgatory_stays_one(tmp_path: Path) -> None:
    setup = Setup(initrd="none", purgatory=False, kernel=Path("fetched:kernel"))
    found = scenario_setup(again(scenario_of("x", setup, [], "boom")), tmp_path)
    assert (found.initrd, found.purgatory) == (Path("none"), "none")
    assert found.kernel == Path("fetched:kernel")
    assert scenario_of("x", Setup(purgatory=True), [], "boom").kernel.purgatory == "default"


def test_paths_start_where_we_are_and_no_longer_where_the_scenario_lies(tmp_path: Path) -> None:
    setup = scenario_setup(
        scenario_of("x", Setup(kernel=Path("Image"), purgatory="p.ro"), [], "boom"), tmp_path
    )
    assert (setup.kernel, setup.purgatory) == (Path.cwd() / "Image", str(Path.cwd() / "p.ro"))


def test_every_fault_is_written_as_it_was() -> None:
    faults = [
        Fault("initrd+8", write=b"\x00\xff'\"", width=4),
        Fault("dtb", flip=0x81, when=When.BEFORE_PANIC),
        Fault("kernel", write=b"x", by=By.DMA, when=When.AFTER_CHECK),
    ]
    assert [table.fault() for table in again(scenario_of("x", Setup(), faults, "boom")).fault] == faults
