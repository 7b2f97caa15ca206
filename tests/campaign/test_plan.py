"""The [campaign] table: what it may say, its defaults, and refusals in one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from kexecemu.campaign.plan import HASHING_STEPS, Plan, can_write, plan_of
from kexecemu.cli import main
from kexecemu.errors import InputError
from kexecemu.scenario.read import read_scenario
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import MODELS

HEAD = 'schema = 1\nname = "x"\n'
TWO = "[machine]\ncpus = 2\n"


def plan(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "scenario.toml"
    path.write_text(HEAD + text)
    return plan_of(read_scenario(path))


def test_without_a_table_it_is_a_flipped_bit_in_a_segment_after_the_load(tmp_path: Path) -> None:
    for text in ("", "[campaign]\n"):
        assert plan(tmp_path, text) == Plan(
            ("segments",), (MODELS["bit-flip"],), (By.CPU,), ((When.AFTER_LOAD, 0),), "uniform"
        )


def test_every_key_arrives(tmp_path: Path) -> None:
    text = """
        [machine]
        cpus = 2
        [campaign]
        where = ["initrd", "edges"]
        models = ["memset", "word64"]
        by = ["late-cpu", "dma"]
        moments = ["hashing-256", "capture-1000", "after-check", "during-panic"]
        sampling = "stratified"
    """
    assert plan(tmp_path, text) == Plan(
        ("initrd", "edges"),
        (MODELS["memset"], MODELS["word64"]),
        (By.LATE_CPU, By.DMA),
        (
            (When.WHILE_HASHING, 256),
            (When.IN_CAPTURE, 1000),
            (When.AFTER_CHECK, 0),
            (When.DURING_PANIC, 0),
        ),
        "stratified",
    )


def test_hashing_alone_is_all_of_it_in_steps(tmp_path: Path) -> None:
    made = plan(tmp_path, '[campaign]\nby = ["dma"]\nmoments = ["hashing", "after-load", "hashing-0"]')
    assert made.moments == (
        *((When.WHILE_HASHING, step) for step in HASHING_STEPS),
        (When.AFTER_LOAD, 0),
        (When.WHILE_HASHING, 0),
    )
    assert len(HASHING_STEPS) == 16


def test_each_of_two_writers_may_have_its_own_moments(tmp_path: Path) -> None:
    made = plan(
        tmp_path, TWO + '[campaign]\nby = ["cpu", "late-cpu"]\nmoments = ["after-load", "after-check"]'
    )
    pairs = {(by, moment) for by in made.writers for moment, _ in made.moments if can_write(by, moment)}
    assert pairs == {(By.CPU, When.AFTER_LOAD), (By.LATE_CPU, When.AFTER_CHECK)}


def test_dma_writes_whenever_it_likes_and_somebody_always_can() -> None:
    assert all(can_write(By.DMA, moment) for moment in When)
    for by in By:
        assert any(can_write(by, moment) for moment in When)
    assert [moment for moment in When if can_write(By.CPU, moment)] == [
        When.DURING_LOAD,
        When.AFTER_LOAD,
        When.BEFORE_PANIC,
        When.DURING_PANIC,
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("where = []", "campaign.where: is empty"),
        ("models = []", "campaign.models: is empty"),
        ("by = []", "campaign.by: is empty"),
        ("moments = []", "campaign.moments: is empty"),
        ('where = ["initrd", "dtb", "initrd"]', "campaign.where: 'initrd' is there twice"),
        ('where = ["intird"]', "campaign.where: no place 'intird' (did you mean initrd?); there are kernel,"),
        (
            'models = ["bitflip"]',
            "campaign.models: no fault model 'bitflip' (did you mean bit-flip?); there are bit-flip, byte,",
        ),
        (
            'by = ["gpu"]',
            "campaign.by: no writer 'gpu' (did you mean cpu?); there are cpu, alias, dma, late-cpu",
        ),
        ('moments = ["later"]', "campaign.moments: no moment 'later'; there are during-load, after-load,"),
        ('moments = ["hashing-"]', "campaign.moments: no moment 'hashing-'"),
        ('moments = ["hashing--1"]', "campaign.moments: no moment 'hashing--1'"),
        ('moments = ["after-load-3"]', "campaign.moments: after-load goes without a number"),
        (
            'by = ["dma"]\nmoments = ["capture"]',
            "campaign.moments: 'capture' needs its number of instructions",
        ),
        ('by = ["dma"]\nmoments = ["hashing-257"]', "campaign.moments: 'hashing-257' is too far"),
        (
            'by = ["dma"]\nmoments = ["hashing-8", "hashing"]',
            "campaign.moments: 'hashing' is among the steps",
        ),
        ('moments = ["after-check"]', "campaign.by: cpu cannot write at after-check: it has stopped then"),
        ('by = ["alias"]\nmoments = ["hashing"]', "campaign.by: alias cannot write at hashing"),
        ('by = ["dma", "cpu"]\nmoments = ["capture-1"]', "campaign.by: cpu cannot write at capture"),
        (
            'by = ["late-cpu"]',
            "campaign.by: late-cpu cannot write at after-load: it does not stop at the crash and is one of many until "
            "then",
        ),
        (
            'by = ["cpu"]\nmoments = ["after-check", "hashing"]',
            "campaign.by: cpu cannot write at after-check, hashing: it has stopped then",
        ),
        (
            'by = ["cpu"]\nmoments = ["after-load", "after-check"]',
            "campaign.moments: at after-check none of cpu can write",
        ),
        ('by = ["late-cpu"]\nmoments = ["hashing"]', "campaign.by: a late-cpu is a second one"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_that_names_the_key(
    tmp_path: Path, table: str, words: str
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f"{HEAD}[campaign]\n{table}")
    scenario = read_scenario(path)
    with pytest.raises(InputError) as refusal:
        plan_of(scenario)
    assert str(refusal.value).startswith(words)
    assert "\n" not in str(refusal.value)


def test_run_takes_no_scenario_that_campaign_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f'{HEAD}[campaign]\nby = ["gpu"]\n')
    assert main(["run", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"kexecemu: scenario {path}: line 4: campaign.by: no writer 'gpu' (did you mean cpu?); there are cpu, alias, "
        "dma, late-cpu\n"
    )


def test_hashing_needs_a_purgatory(tmp_path: Path) -> None:
    table = '[campaign]\nby = ["dma"]\nmoments = ["hashing"]\n'
    for none in ('"none"', "false"):
        with pytest.raises(InputError, match=r"campaign\.moments: nothing is hashed without a purgatory"):
            plan(tmp_path, f"{table}[kernel]\npurgatory = {none}")
    # kexec-tools brings its own.
    assert plan(tmp_path, f'{table}[kernel]\npurgatory = "none"\n[load]\nsyscall = "kexec_load"').moments


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('wehre = ["initrd"]', "wehre"),
        ('sampling = "random"', "$.campaign.sampling"),
        ('models = "byte"', "$.campaign.models"),
        ("by = [1]", "$.campaign.by"),
    ],
)
def test_a_wrong_key_or_type_is_refused_when_the_file_is_read(tmp_path: Path, table: str, key: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f"{HEAD}[campaign]\n{table}\n")
    with pytest.raises(InputError) as refusal:
        read_scenario(path)
    assert key in str(refusal.value)
