"""What is not modelled is one list: the documentation's, the command's, and what is warned of at run time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kexecemu
from kexecemu import Board, Kernel, KernelConfig
from kexecemu.cli import main
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.limits import LIMITS, told
from kexecemu.machine import virt
from kexecemu.machine.ranges import PhysRange

PACKAGE = Path(kexecemu.__file__).parent
ASKED = {one.name for one in LIMITS if one.asked}


def test_what_is_warned_of_is_in_the_list_and_what_the_list_says_is_warned_of() -> None:
    used = set[str]()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if re.search(r"^from kexecemu.limits import .*\btold\b", text, re.MULTILINE):
            used |= set(re.findall(r'\btold\(\s*"([^"]+)"', text))
    assert used == ASKED


@pytest.mark.parametrize("name", ["caches", "nothing", ""])
def test_what_is_not_to_be_asked_for_is_no_warning(name: str) -> None:
    with pytest.raises(KeyError):
        told(name, "words")


def test_each_has_a_name_of_its_own_and_a_sentence() -> None:
    assert len({one.name for one in LIMITS}) == len(LIMITS)
    for one in LIMITS:
        assert one.meaning.endswith(".") and one.meaning[0] != " " and "  " not in one.meaning


def test_the_command_lists_them_in_this_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "limits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in LIMITS]


@pytest.mark.parametrize(("era", "said"), [("6.12", True), ("7.3", True), ("6.1", False)])
def test_sdei_is_said_of_where_the_kernel_would_use_it(era: str, said: bool) -> None:
    ram = [PhysRange.of(virt.RAM_BASE, 512 << 20)]
    usual = virt_device_tree(ram, 1, virt.UART.start)
    editor = FdtEditor(usual, len(usual) + 512)
    node = editor.add_subnode(editor.add_subnode(0, "firmware"), "sdei")
    editor.setprop(node, "compatible", b"arm,sdei-1.0\0")
    with Kernel.boot(Board(ram), KernelConfig(era), cmdline="", dtb=bytes(editor.data)) as kernel:
        assert [words.partition(" ")[0] for words in kernel.not_modelled()] == ["SDEI"] * said
