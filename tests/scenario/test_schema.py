"""The scenario file: every key must be known, every value of its type, and a refusal says which and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from kexecemu import By, InputError, When, read_scenario
from kexecemu.crash.outcome import Outcome
from kexecemu.data import shipped_scenarios
from kexecemu.kernel.base.config import Era, KernelConfig, Protection
from kexecemu.scenario.read import find_scenario
from kexecemu.scenario.runner import run_scenario, scenario_setup
from kexecemu.scenario.schema import Scenario

HEAD = 'schema = 1\nname = "x"\n'


def read(tmp_path: Path, text: str | bytes) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_scenario(path)


def refused(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, text)
    message = str(refusal.value)
    assert message.startswith(f"scenario {tmp_path / 'scenario.toml'}: ")
    return message


# -- what a file may say ---------------------------------------------------------------------------------------


def test_a_name_is_all_that_a_scenario_needs(tmp_path: Path) -> None:
    scenario = read(tmp_path, HEAD)
    assert (scenario.name, scenario.seed, scenario.fault, scenario.expect) == ("x", 0, [], None)
    setup = scenario_setup(scenario, tmp_path)
    assert (setup.era, setup.purgatory, setup.ram, setup.cpus, setup.cmdline) == (
        "6.4",
        "default",
        None,
        None,
        None,
    )


def test_every_key_arrives_where_it_is_meant_to(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        HEAD
        + """
        seed = 7
        [machine]
        ram = 0x8000000
        cpus = 3
        gic = 3
        [kernel]
        era = "6.12"
        cmdline = "crashkernel=32M"
        protection = "readonly"
        purgatory = "mine.ro"
        config = { ZONE_DMA = "n", CMA_SIZE_MBYTES = "16" }
        rng_ready = true
        [load]
        kernel = "Image"
        initrd = "none"
        append = "quiet"
        [[fault]]
        by = "dma"
        at = "kernel+0x10"
        write = "0xdead_beef"
        when = "after-check"
        [[fault]]
        at = "dtb"
        flip = 0x81
        [crash]
        message = "out of coffee"
        [expect]
        outcome = "silent"
        segment = "kernel"
        console = ["a", "b"]
        """,
    )
    setup = scenario_setup(scenario, tmp_path)
    assert (setup.ram, setup.cpus, setup.gic, setup.seed, setup.rng_ready) == (0x8000000, 3, 3, 7, True)
    assert (setup.kernel, setup.initrd, setup.append) == (tmp_path / "Image", Path("none"), "quiet")
    assert setup.purgatory == str(tmp_path / "mine.ro")
    config = KernelConfig(setup.era, protection=setup.protection, options=setup.config)
    assert (config.release, config.way, config.has_dma_zones) == (Era.V6_12, Protection.READONLY, False)
    first, second = (table.fault() for table in scenario.fault)
    assert (first.by, first.at, first.write, first.when) == (
        By.DMA,
        "kernel+0x10",
        bytes.fromhex("deadbeef"),
        When.AFTER_CHECK,
    )
    assert (second.by, second.flip, second.width, second.when) == (By.CPU, 0x81, 1, When.AFTER_LOAD)
    assert scenario.crash.message == "out of coffee"
    assert scenario.expect is not None
    assert (scenario.expect.outcome, scenario.expect.console) == (Outcome.SILENT, ["a", "b"])


def test_a_seed_from_outside_wins_over_the_file_s(tmp_path: Path) -> None:
    scenario = read(tmp_path, HEAD + "seed = 7\n")
    assert scenario_setup(scenario, tmp_path, seed=0).seed == 0
    assert scenario_setup(scenario, tmp_path).seed == 7


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "path"),
    [
        ("colour = 1", "colour", None),
        ("[machines]\nram = '1G'", "machines", None),
        ("[machine]\nrams = '1G'", "rams", "$.machine"),
        ("[kernel]\nconfigs = {}", "configs", "$.kernel"),
        ("[load]\ninitramfs = 'x'", "initramfs", "$.load"),
        (
            "[[fault]]\nat = 'initrd'\nwrite = '00'\n[[fault]]\nat = 'dtb'\nvalue = '00'",
            "value",
            "$.fault[1]",
        ),
        ("[crash]\nmsg = 'x'", "msg", "$.crash"),
        ("[expect]\noutcome = 'silent'\nsegmnets = []", "segmnets", "$.expect"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(
    tmp_path: Path, text: str, key: str, path: str | None
) -> None:
    message = refused(tmp_path, HEAD + text)
    assert f"unknown field `{key}`" in message
    assert path is None or message.endswith(f"at `{path}`")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("seed = 'one'", "$.seed"),
        ("[machine]\ncpus = '2'", "$.machine.cpus"),
        ("[machine]\nram = 1.5", "$.machine.ram"),
        ("[kernel]\nera = 6.4", "$.kernel.era"),
        ("[kernel]\nconfig = { ZONE_DMA = false }", "$.kernel.config[...]"),
        ("[load]\nsyscall = 'kexec'", "$.load.syscall"),
        ("[[fault]]\nby = 'cosmic ray'\nat = 'initrd'", "$.fault[0].by"),
        ("[[fault]]\nat = 'initrd'\nwrite = 255", "$.fault[0].write"),
        ("[[fault]]\nat = 'initrd'\nwrite = 'ff'\nwidth = 'now'", "$.fault[0].width"),
        ("[expect]\noutcome = 'good'", "$.expect.outcome"),
        ("[expect]\noutcome = 'silent'\nconsole = 'one line'", "$.expect.console"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(tmp_path: Path, text: str, path: str) -> None:
    assert f"at `{path}`" in refused(tmp_path, HEAD + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field `schema`"),
        ("schema = 1", "missing required field `name`"),
        ("schema = 2\nname = 'x'", "at `$.schema`"),
        (HEAD + "[[fault]]\nwrite = 'ff'", "missing required field `at` - at `$.fault[0]`"),
        (HEAD + "[expect]\nsegment = 'dtb'", "missing required field `outcome` - at `$.expect`"),
        (HEAD + "name = 'y'", "Cannot overwrite a value"),
        (
            HEAD + "[[fault]]\nat = 'initrd'",
            "fault at initrd: give one of the bytes to write, the bits to flip, and a model",
        ),
        (HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'ff'\nflip = 1", "fault at dtb: give one of"),
        (
            HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'f'",
            "fault at dtb: write: 'f' is not an even number of hex digits",
        ),
        (HEAD + "[[fault]]\nat = 'dtb'\nwrite = ''", "fault at dtb: nothing to write"),
        (HEAD + "[[fault]]\nat = 'dtb'\nflip = 256", "fault at dtb: flip is a mask of bits in one byte"),
        (
            HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'ff'\nwidth = 3",
            "a store is 1, 2, 4 or 8 bytes wide, not 3",
        ),
        (
            HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'ff'\nwhen = 'after-check'",
            "CPUs have stopped by the moment",
        ),
        (HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'ff'\nmodel = 'word32'", "fault at dtb: give one of"),
        (HEAD + "[[fault]]\nat = 'dtb'\nwrite = 'ff'\nvariant = 3", "a variant is one of a model's"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_in_clear_words(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    message = refused(tmp_path, text)
    assert words in message and "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_scenario(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is a directory"):
        read_scenario(tmp_path)


def test_a_name_without_a_path_is_one_that_ships_and_others_are_answered_with_all_of_them() -> None:
    for name in shipped_scenarios():
        assert find_scenario(name).stem == name
    assert find_scenario("./golden.toml") == Path("golden.toml")
    with pytest.raises(InputError) as refusal:
        find_scenario("goldne")
    assert all(name in str(refusal.value) for name in shipped_scenarios())


# -- running ---------------------------------------------------------------------------------------------------

SMALL = HEAD + '[machine]\nram = "64M"\n[kernel]\ncmdline = "crashkernel=16M"\n'


def mismatches(tmp_path: Path, text: str) -> list[str]:
    result = run_scenario(read(tmp_path, SMALL + text), tmp_path)
    assert result.as_expected is (not result.mismatches)
    return result.mismatches


FAULT = "[[fault]]\nat = 'initrd+0x10'\nwrite = 'ffff'\n[expect]\n"


def test_expectations_that_come_true_leave_nothing_to_say(tmp_path: Path) -> None:
    text = (
        FAULT + "outcome = 'detected'\nsegment = 'initrd'\ndump = 'none'\nconsole = ['digests do NOT match']"
    )
    assert mismatches(tmp_path, text) == []


def test_each_expectation_that_fails_is_told(tmp_path: Path) -> None:
    text = FAULT + "outcome = 'silent'\nsegment = 'dtb'\nconsole = ['purgatory:', 'all is well']"
    assert mismatches(tmp_path, text) == [
        "outcome is detected, expected silent",
        "damaged is initrd, expected dtb",
        "the console does not say 'all is well'",
    ]
    assert mismatches(tmp_path, "[expect]\noutcome = 'captured'\ndump = 'wrong'") == [
        "dump is true (taken, equal to the crashed memory), expected wrong"
    ]
    assert mismatches(tmp_path, "[expect]\noutcome = 'captured'\nsegment = 'dtb'") == [
        "damaged is nothing, expected dtb"
    ]


def test_nobody_can_expect_an_error_of_ours(tmp_path: Path) -> None:
    assert len(mismatches(tmp_path, "[expect]\noutcome = 'error'")) == 2


def test_faults_happen_at_their_moments_and_in_the_file_s_order_within_one(tmp_path: Path) -> None:
    text = """
    [[fault]]
    by = "dma"
    at = "initrd+2"
    write = "33"
    when = "after-check"
    [[fault]]
    at = "crashkernel-free"
    write = "22"
    when = "before-panic"
    [[fault]]
    at = "crashkernel-free"
    write = "11"
    """
    result = run_scenario(read(tmp_path, SMALL + text), tmp_path)
    kinds = [event.kind for event in result.end.timeline]
    faults = [event.facts["at"] for event in result.end.timeline.of("fault")]
    assert faults == ["crashkernel-free", "crashkernel-free", "initrd+2"]
    assert [one.after.hex() for one in result.end.injections] == ["11", "22", "33"]
    assert kinds.index("panic") < kinds.index("purgatory") < len(kinds) - 1 - kinds[::-1].index("fault")


@pytest.mark.parametrize("when", ["after-load", "before-panic"])
def test_an_oops_that_panics_ends_the_other_cpu_writes_and_not_the_run(tmp_path: Path, when: str) -> None:
    text = f"""
    era = "6.1"
    [[fault]]
    at = "initrd"
    write = "ff"
    [[fault]]
    at = "crashkernel-free"
    write = "ff"
    when = "{when}"
    [expect]
    outcome = "prevented"
    console = ["Internal error: Oops", "Starting crashdump kernel", "capture: done"]
    """
    scenario = SMALL.replace("crashkernel=16M", "crashkernel=16M oops=panic") + text
    result = run_scenario(read(tmp_path, scenario), tmp_path)
    assert result.mismatches == []
    first, second = result.end.injections
    assert first.exception is not None
    assert second.exception is None and not second.changed
    assert "no CPU stores any more" in result.end.timeline.of("fault")[1].text


@pytest.mark.parametrize("rng_ready", ["true", "false"])
def test_the_same_file_and_seed_give_the_same_bytes(tmp_path: Path, rng_ready: str) -> None:
    scenario = read(tmp_path, SMALL + f"rng_ready = {rng_ready}\n" + FAULT + "outcome = 'detected'\n")
    one, two = (run_scenario(scenario, tmp_path, seed=5) for _ in range(2))
    assert one.end.timeline.as_jsonl() == two.end.timeline.as_jsonl()
    assert (one.end.console, one.image.digest) == (two.end.console, two.image.digest)
    other = run_scenario(scenario, tmp_path, seed=6)
    assert (other.image.digest == one.image.digest) is (rng_ready == "false")
