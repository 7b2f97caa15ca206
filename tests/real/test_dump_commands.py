"""docs/dump-tools.md says which command of which tool works on which dump: all of it is run again here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kexecemu.errors import NotFetched

# With --import-mode=importlib nothing puts this folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

import dump_commands
from dump_commands import CRASH, DOCS, DRGN, KINDS, TOOLS, Dump, Row, Tools, ask

pytestmark = pytest.mark.real

ROWS = (*CRASH, *TOOLS, *DRGN)


def documented() -> dict[tuple[str, str], list[str]]:
    """The cells of the table in the file, by tool and command."""
    found: dict[tuple[str, str], list[str]] = {}
    tool = ""
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.fullmatch(r"\*\*(.+)\*\*", cells[0]):
            tool = match[1]
            found[tool, "version"] = cells[3:]
        elif tool and not cells[0] and len(cells) == 3 + len(KINDS):
            found[tool, cells[1].strip("`")] = cells[3:]
    return found


@pytest.fixture(scope="module", params=KINDS)
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A column: its number, what works of it, and the versions of its tools."""
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed (pip install drgn)")
    if os.uname().machine != "aarch64" and shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user-static)")
    try:
        found = ask(KINDS[request.param], tmp_path_factory.mktemp("dump"))
    except NotFetched as error:
        pytest.skip(str(error))
    return list(KINDS).index(request.param), *found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.tool} {row.command}")
def test_a_command_works_where_the_table_says_so_and_nowhere_else(answers: Any, row: Row) -> None:
    column, works, versions = answers
    table = documented()
    said = table[row.tool, row.command][column]
    if said == "no" and versions[row.tool] != table[row.tool, "version"][column]:
        return  # a tool of another version may have learnt it
    assert said == ("works" if works[row] else "no")


def test_most_of_it_works(answers: Any) -> None:
    _, works, _ = answers
    assert sum(works.values()) > 0.75 * len(ROWS)


def test_a_complaint_or_another_machine_is_not_taken_for_an_answer() -> None:
    (ps,) = (row for row in CRASH if row.command == "ps")
    right = ">      57       1   0  ffff800008040b60  RU   0.0        0        0  bash\n"
    assert ps.right(right)
    assert not ps.right(right.replace("RU", "IN"))
    assert not ps.right("crash: read error: kernel virtual address\n" + right)


def test_a_dump_of_52_bit_addresses_needs_the_option_that_the_page_names(tmp_path: Path) -> None:
    kind = KINDS["6.12"]
    try:
        tools = Tools.of(kind.target, dump_commands.qemu_user())
    except NotFetched as error:
        pytest.skip(str(error))
    dump = Dump.make(kind, tmp_path)
    said = tools.run("crash", "-s", "-i", "/dev/null", dump.vmlinux, dump.vmcore, cwd=tmp_path)
    assert "exit status 1" in said
    assert "-m phys_offset=0x40000000" in DOCS.read_text()
    assert dump_commands.crash_options(kind) == ["-m", "phys_offset=0x40000000"]


@pytest.mark.parametrize("target", ["dumptools", "dumptools-trixie"])
def test_what_the_page_says_to_open_a_dump_opens_one(
    fetched: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    folder = fetched(target)
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user-static)")
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    (block,) = (block for block in blocks if f"fetch {target}\n" in block and "qemu-aarch64" in block)
    place = f"~/.cache/kexecemu/{target}"
    assert block.count(place) == 1
    script = "set -e\n" + block.replace(place, str(folder)).replace(
        "kexecemu ", f"{sys.executable} -m kexecemu "
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(dump_commands.TOP), "KEXECEMU_CACHE": str(folder.parent)},
        input="bt\nquit\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "write_sysrq_trigger at ffff8" in done.stdout
    assert done.stdout.endswith("Starting crashdump kernel...\n") or done.stdout.endswith("Bye!\n")
    assert ("vmcore.small" in script) is (tmp_path / "vmcore.small").is_file()


def test_crash_takes_a_dump_of_7_0_with_a_vmlinux_made_as_the_page_says(tmp_path: Path) -> None:
    kind = KINDS["7.3, 48 bits"]._replace(era="7.0")
    try:
        tools = Tools.of(kind.target, dump_commands.qemu_user())
    except NotFetched as error:
        pytest.skip(str(error))
    dump = Dump.make(kind, tmp_path)
    (command,) = re.findall(r"`(sed .*?)`", DOCS.read_text())
    subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "vmlinux": str(dump.vmlinux)}, check=True
    )
    (tmp_path / "commands").write_text("bt\nquit\n")
    words = ("crash", "-s", "-i", tmp_path / "commands")
    assert "is not SMP" in tools.run(*words, dump.vmlinux, dump.vmcore, cwd=tmp_path)
    assert "write_sysrq_trigger at" in tools.run(*words, tmp_path / "vmlinux-7.0", dump.vmcore, cwd=tmp_path)


def test_the_table_has_every_row_and_names_the_tools() -> None:
    table = documented()
    assert set(table) == {(row.tool, row.command) for row in ROWS} | {(row.tool, "version") for row in ROWS}
    assert all(
        cell in ("works", "no")
        for (_, command), cells in table.items()
        if command != "version"
        for cell in cells
    )
    for target in {kind.target for kind in KINDS.values()}:
        assert f"kexecemu fetch {target}" in re.sub(r"\s+", " ", DOCS.read_text())
