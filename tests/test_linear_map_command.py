"""kexecemu linear-map: its options, its JSON, its dump, its words, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from kexecemu.commands.linear_map import linear_map_command
from kexecemu.errors import InputError
from kexecemu.kernel.memory import linear_price

RECORDED = Path(__file__).parent / "data" / "kernel" / "linear-map"
RODATA_ON = ("--cmdline", "crashkernel=256M rodata=on")
TEXT_6_1, TEXT_6_12 = "0x40210000-0x405b0000", "0x40200000-0x405d0000"
PRICE = {"table_pages", "table_bytes", "entries", "blocks", "contiguous"}

app = typer.Typer(rich_markup_mode=None)
app.command()(linear_map_command)


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with these arguments; what it printed."""

    def run(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


def number(text: str) -> int:
    return int(text.replace(",", ""))


# -- --json ----------------------------------------------------------------------------------------------------


def test_the_object_has_the_contract_s_keys_and_both_sides(run: Any) -> None:
    found = json.loads(run("--era", "6.1", *RODATA_ON, "--json"))
    assert set(found) >= PRICE | {"reason", "crashkernel", "era", "ram", "method", "before", "after"}
    assert set(found["before"]) == set(found["after"]) == PRICE
    assert (found["era"], found["ram"], found["method"]) == ("6.1", 1 << 30, "built")
    assert found["crashkernel"] == {"start": 0x6EC00000, "end": 0x7EBFFFFF}
    assert found["blocks"] == {"4K": 262144} and found["contiguous"] == {}
    assert found["after"]["blocks"] == {"4K": 512, "2M": 511}
    assert found["after"]["contiguous"] == {"4K": 480, "2M": 496}
    assert found["table_bytes"] == 4096 * found["table_pages"]


@pytest.mark.parametrize("ram", ["1G", "768M", "4G", "4T"])
@pytest.mark.parametrize(
    "options", [(), ("--config", "ZONE_DMA=n"), ("--config", "CONFIG_ARM64_16K_PAGES=y")]
)
def test_the_sides_are_what_the_two_eras_say_of_themselves(
    run: Any, ram: str, options: tuple[str, ...]
) -> None:
    arguments = ("--ram", ram, *RODATA_ON, *options, "--json")
    found = {era: json.loads(run("--era", era, *arguments)) for era in ("6.1", "6.4", "6.12")}
    for one in found.values():
        assert one["before"] == {key: found["6.1"][key] for key in PRICE}
        assert one["after"] == {key: found["6.4"][key] for key in PRICE}


def test_the_sides_keep_their_own_protection_whatever_is_asked_for(run: Any) -> None:
    plain = json.loads(run(*RODATA_ON, "--json"))
    protected = json.loads(run(*RODATA_ON, "--protection", "pte", "--json"))
    assert protected["protection"] == "pte" and protected["table_pages"] == plain["before"]["table_pages"]
    assert (protected["before"], protected["after"]) == (plain["before"], plain["after"])


def test_without_crashkernel_there_is_none_and_the_kernel_s_words_say_why_not(run: Any) -> None:
    assert json.loads(run("--cmdline", "", "--json"))["crashkernel"] is None
    refused = json.loads(run("--cmdline", "crashkernel=2G", "--json"))
    assert refused["crashkernel"] is None
    assert refused["messages"] == ["cannot allocate crashkernel (size:0x80000000)"]
    high = json.loads(run("--ram", "8G", "--era", "6.12", "--cmdline", "crashkernel=1G,high", "--json"))
    assert high["crashkernel_low"] == {"start": 0xF8000000, "end": 0xFFFFFFFF}


def test_sizes_are_named_by_their_largest_unit_for_every_granule(run: Any) -> None:
    arguments = ("--ram", "16G", "--cmdline", "rodata=on", "--json")
    sizes = {
        granule: list(json.loads(run(*arguments, "--config", f"ARM64_{granule}_PAGES=y"))["blocks"])
        for granule in ("4K", "16K", "64K")
    }
    assert sizes == {"4K": ["4K", "2M", "1G"], "16K": ["16K", "32M"], "64K": ["64K", "512M"]}


def test_four_tebibytes_take_no_second_and_the_formula_is_named(run: Any) -> None:
    start = time.process_time()
    found = json.loads(run("--ram", "4T", "--era", "6.1", "--json"))
    assert time.process_time() - start < 1
    assert found["method"] == "formula"
    leaves = 1 << 30
    tables = (leaves >> 9) + (leaves >> 18) + (leaves >> 27)
    assert (found["table_pages"], found["entries"]) == (tables, leaves + tables)


def test_no_engine_is_loaded() -> None:
    """Nothing is run, so nothing that runs code is needed, nor the time to load it."""
    script = (
        "import sys; from kexecemu.commands.linear_map import linear_map_command as run; run(json=True); "
        "sys.exit('unicorn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 0


def test_the_same_question_has_the_same_answer_byte_for_byte(run: Any) -> None:
    assert run("--json", *RODATA_ON) == run("--json", *RODATA_ON)


# -- --ptdump --------------------------------------------------------------------------------------------------


def section(name: str, head: str) -> str:
    text = (RECORDED / f"{name}.txt").read_text()
    match = re.search(rf"^@@ {head}\n(---.*?Mapping end \]---\n)", text, re.M | re.S)
    assert match is not None
    return match[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("zones-on-1G-crash128M", ("--era", "6.1", "--text", TEXT_6_1)),
        ("nozones-on-1G-crash128M", ("--era", "6.1", "--text", TEXT_6_1, "--config", "ZONE_DMA=n")),
        ("6.12-zones-on-1G-crash128M", ("--era", "6.12", "--text", TEXT_6_12)),
    ],
)
def test_the_dump_is_a_real_kernel_s_before_and_after_a_load(
    run: Any, name: str, arguments: tuple[str, ...]
) -> None:
    arguments = ("--ptdump", "--cmdline", "rodata=on crashkernel=128M", *arguments)
    assert run(*arguments) == section(name, "before")
    start = {"z": 0x76C00000, "n": 0x78000000, "6": 0x76E00000}[name[0]]
    loaded = {
        "kernel": (start, 0x550000),
        "initrd": (start + 0x550000, 0x27E000),
        "dtb": (start + 0x7E00000, 0x2000),
        "elfcorehdr": (start + 0x7FF0000, 0x1000),
    }
    options = [f"--loaded={key}={mem:#x}+{size:#x}" for key, (mem, size) in loaded.items()]
    assert run(*arguments, *options) == section(name, "after")


def test_an_inclusive_end_of_text_is_understood_as_such(run: Any) -> None:
    assert run("--text", "0x40210000-0x405affff", "--ptdump") == run("--text", TEXT_6_1, "--ptdump")


def test_the_price_of_a_load_is_apart_from_that_of_the_boot(run: Any) -> None:
    arguments = ("--era", "6.1", *RODATA_ON, "--json")
    before, after = json.loads(run(*arguments)), json.loads(run(*arguments, "--loaded", "dtb=0x7ea00000+8K"))
    assert before.pop("load") is None
    assert after.pop("load") == {"table_pages": 0, "entries": 2}
    assert before == after


def test_a_load_without_protection_changes_nothing_in_the_map(run: Any) -> None:
    arguments = (*RODATA_ON, "--loaded", "kernel=0x6ee00000+4K")
    assert json.loads(run(*arguments, "--json"))["load"] == {"table_pages": 0, "entries": 0}
    assert run(*arguments, "--ptdump") == run(*RODATA_ON, "--ptdump")


# -- words -----------------------------------------------------------------------------------------------------


def test_the_account_says_how_why_and_what_the_series_saved(run: Any) -> None:
    text = run("--era", "6.1", *RODATA_ON)
    assert "crashkernel= is reserved too late to be mapped apart, so all RAM is mapped by base pages" in text
    assert "0x6ec00000-0x7ebfffff, 256M" in text
    assert re.search(r"table pages +514 +514 +3\n", text)
    assert "the series saved 511 table pages here (2,093,056 bytes)" in text
    assert "built in guest memory" in text


def test_the_account_says_why_nothing_is_saved(run: Any) -> None:
    assert "saved nothing here: after it, too, rodata=full by default needs base pages" in run()
    assert "the map is the same before and after" in run("--cmdline", "rodata=on")


def test_the_account_tells_of_low_memory_of_a_load_and_of_the_formula(run: Any) -> None:
    high = run("--ram", "8G", "--era", "6.12", "--cmdline", "crashkernel=1G,high rodata=on")
    assert "low part    0xf8000000-0xffffffff, 128M" in high and "exact formula" in high
    split = run("--era", "6.12", "--protection", "bbml2", "--loaded", "dtb=0x7ec00000+0x1000")
    assert "after a load  546 entries written to protect the segments, 1 more table page\n" in split


@pytest.mark.parametrize(
    ("era", "words", "alias"),
    [
        ("7.0", "", None),
        ("7.2", "", "read-only"),
        ("7.3", "", "invalid"),
        ("7.3", " rodata=noalias", "invalid"),
        ("7.3", " rodata=off", "writable"),
    ],
)
def test_the_account_says_what_the_alias_of_the_kernel_s_data_is(
    run: Any, era: str, words: str, alias: str | None
) -> None:
    cmdline = f"crashkernel=64M{words}"
    line = f"kernel data   0x40240000-0x4053afff, {alias} alias\n"
    assert (line in run("--era", era, "--cmdline", cmdline)) is (alias is not None)
    found = json.loads(run("--era", era, "--cmdline", cmdline, "--json"))
    assert found["data_alias"] == alias
    assert found["data"] == (None if alias is None else {"start": 0x40240000, "end": 0x4053AFFF})


RODATA_NOTE = "before 6.18 rodata=on was what noalias is now, and full what on is now: 6.1 and 6.4 have "
UNKNOWN = "Invalid option string for rodata: '{}'"


@pytest.mark.parametrize(
    ("era", "words", "has", "kernel_says"),
    [
        ("6.18", "rodata=on", "rodata=on here", None),
        ("7.3", "rodata=noalias", f"rodata=full by default here ({UNKNOWN.format('noalias')})", None),
        ("6.17", "rodata=on", None, None),
        ("6.18", "", None, None),
        ("6.18", "rodata=off", None, None),
        ("6.18", "rodata=full", None, "full"),
        ("6.1", "rodata=noalias", None, "noalias"),
    ],
)
def test_that_the_sides_read_rodata_with_other_words_is_said_where_it_matters(
    run: Any, era: str, words: str, has: str | None, kernel_says: str | None
) -> None:
    notes = [] if has is None else [RODATA_NOTE + has]
    text = run("--era", era, "--cmdline", words)
    assert [line for line in text.splitlines() if "before 6.18" in line] == notes
    found = json.loads(run("--era", era, "--cmdline", words, "--json"))
    assert found["notes"] == notes
    assert found["messages"] == ([] if kernel_says is None else [UNKNOWN.format(kernel_says)])


def test_what_is_not_modelled_of_a_command_line_is_said(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run("--cmdline", "movablecore=64M", "--json"))
    assert found["warnings"] == ["movablecore= is not modelled: ZONE_MOVABLE"]
    assert json.loads(run("--json"))["warnings"] == []


def test_a_cpu_whose_blocks_can_be_split_is_said_and_what_a_load_costs_on_it(run: Any) -> None:
    load = ("--era", "7.3", "--protection", "pte", "--loaded", "dtb=0x7ec01000+0x1000")
    pages, blocks = (json.loads(run(*load, *more, "--json")) for more in ((), ("--bbm", "3")))
    assert (pages["bbm"], blocks["bbm"]) == (0, 3)
    assert pages["table_pages"] > 500 and blocks["table_pages"] == 4
    assert (pages["load"]["table_pages"], blocks["load"]["table_pages"]) == (0, 1)


def test_blocks_that_nobody_would_split_are_plain_blocks_on_such_a_cpu(run: Any) -> None:
    for word, reason in (("noalias", "blocks"), ("on", "blocks that can be split live (FEAT_BBM level 3)")):
        found = run("--era", "7.3", "--bbm", "3", "--cmdline", f"crashkernel=256M rodata={word}", "--json")
        assert json.loads(found)["reason"] == reason


def test_the_table_in_the_documentation_is_what_the_command_says(run: Any) -> None:
    rows = re.findall(r"^    (\w+) +([\d,]+) +([\d,]+)$", linear_price.__doc__ or "", re.M)
    assert [row[0] for row in rows] == ["1G", "4G", "256G", "4T"]
    for ram, before, after in rows:
        found = json.loads(run("--ram", ram, *RODATA_ON, "--json"))
        sides = (found["before"]["table_pages"], found["after"]["table_pages"])
        assert sides == (number(before), number(after)), ram


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--ram 1X", "is not a number of bytes"),
        ("--ram G", "is not a number of bytes"),
        ("--ram 0", "not made of whole pages"),
        ("--ram 1000000001", "not made of whole pages"),
        ("--ram 256T", "48 bits"),
        ("--ram 2M", "too small to boot"),
        ("--era 5.10", "era '5.10' is older than 6.1"),
        ("--protection full", "protection 'full' is not known"),
        ("--config ZONE_DMA", "write NAME=VALUE"),
        ("--config ZONES=y", "not one that the model knows"),
        ("--ptdump --json", "exclude each other"),
        ("--cmdline crashkernel=256M\N{MULTIPLICATION SIGN}", "is ASCII"),
        ("--text 0x40210000", "write START-END"),
        ("--text 0x40210000-", "is not a number"),
        ("--text 0x405b0000-0x40210000", "ends before it starts"),
        ("--text 0x40210000-0x40210000", "ends before it starts"),
        ("--text 0x40210800-0x405b0000", "whole pages"),
        ("--text 0x40210000-0x405b1000 --config ARM64_64K_PAGES=y", "whole pages of 0x10000"),
        ("--text 0x30000000-0x30200000", "outside RAM"),
        ("--text 0x7ff00000-0x80100000", "outside RAM"),
        ("--loaded kernel", "write NAME=PHYS+SIZE"),
        ("--loaded kernel=0x6ec00000", "write NAME=PHYS+SIZE"),
        ("--loaded =0x6ec00000+4K", "write NAME=PHYS+SIZE"),
        ("--loaded kernel=0x6ec00000+x", "is not a number"),
        ("--loaded kernel=0x6ec00000+0", "a segment of no bytes"),
        ("--loaded kernel=0x6ec00800+4K", "kernel at 0x6ec00800+0x1000 is not page aligned"),
        ("--loaded kernel=0x50000000+4K", "is not inside crashkernel"),
        ("--loaded kernel=0x6ec00000+8K --loaded dtb=0x6ec01000+4K", "dtb overlaps kernel"),
        ("--loaded kernel=0xfffffffffffff000+8K", "wraps around"),
        ("--loaded kernel=0x6ec00000+4K --cmdline rodata=on", "no crashkernel memory is reserved"),
        ("--ram 4T --ptdump --era 6.1", "4096 GiB by base pages is more than is built"),
    ],
)
def test_bad_input_is_refused_in_one_line(run: Any, arguments: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as refusal:
        run(*arguments.split())
    assert "\n" not in str(refusal.value)
