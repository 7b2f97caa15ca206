"""How a kernel of ours is started in QEMU, and how its console is listened to: with a script in QEMU's place."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from kexecemu.errors import InputError, MachineError
from kexecemu.kbuild.qemu import Qemu, QemuMachine


@pytest.mark.parametrize(
    ("cpu", "el", "machine", "words"),
    [
        ("max", "el1", "virt,gic-version=3", ""),
        ("max", "el2", "virt,gic-version=3,virtualization=on", "id_aa64mmfr1.vh=0"),
        ("max", "vhe", "virt,gic-version=3,virtualization=on", ""),
        ("cortex-a57", "el2", "virt,gic-version=3,virtualization=on", ""),
    ],
)
def test_the_level_is_the_machine_s_and_what_the_kernel_is_told(
    cpu: str, el: str, machine: str, words: str
) -> None:
    one = QemuMachine(cpu, el, 4, "1G")
    command = one.command(Path("/qemu"))
    assert one.words == words
    for name, value in (("-M", machine), ("-cpu", cpu), ("-smp", "4"), ("-m", "1G")):
        assert command[command.index(name) + 1] == value
    assert "-no-reboot" in command and "-no-shutdown" in command


@pytest.mark.parametrize(
    ("cpu", "el", "said"),
    [
        ("cortex-a72", "el1", "--cpu 'cortex-a72' is not one of max, neoverse-v1, cortex-a57, neoverse-v3"),
        ("max", "el3", "--el 'el3' is not one of el1, el2, vhe"),
        ("cortex-a57", "vhe", "--el vhe: a cortex-a57 has no VHE"),
    ],
)
def test_a_machine_that_there_is_none_of_is_refused(cpu: str, el: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        QemuMachine(cpu, el)
    assert str(error.value) == said


def test_a_kernel_of_pages_that_the_cpu_has_not_is_refused_before_it_says_nothing() -> None:
    with pytest.raises(
        InputError, match=r"^--cpu cortex-a57: it has no pages of 16 KiB, and this kernel no others$"
    ):
        QemuMachine("cortex-a57").check_pages(16 << 10)
    for cpu, size in (("cortex-a57", 4 << 10), ("cortex-a57", 64 << 10), ("max", 16 << 10)):
        QemuMachine(cpu).check_pages(size)


def script(folder: Path, text: str) -> list[str]:
    path = folder / "qemu.py"
    path.write_text(f"import sys\n{text}\n")
    return [*shlex.split(sys.executable), str(path)]


def test_the_console_is_kept_told_and_typed_on(tmp_path: Path) -> None:
    heard = bytearray()
    text = (
        "print('first\\r', flush=True)\nprint('heard ' + sys.stdin.readline(), flush=True)\nsys.stdin.read()"
    )
    with Qemu(script(tmp_path, text), heard.extend) as qemu:
        assert qemu.wait_for(("nothing", "first\n"), 30) == "first\n"
        at = len(qemu.console)
        qemu.type(b"a line\n")
        assert qemu.wait_for(("a line\n\n",), 30, at) is not None
        assert qemu.console == "first\nheard a line\n\n" and not qemu.ended
    assert heard.startswith(b"first\r\nheard")


def test_a_qemu_that_ends_is_not_waited_for_and_its_last_words_are_kept(tmp_path: Path) -> None:
    with Qemu(script(tmp_path, "sys.exit('qemu: no such machine')")) as qemu:
        assert qemu.wait_for(("anything",), 600) is None
        assert qemu.trouble == "qemu: no such machine"
        with pytest.raises(MachineError, match="QEMU has no gdb stub: qemu: no such machine"):
            _ = qemu.gdb


def test_a_word_that_begins_a_line_is_found_nowhere_else(tmp_path: Path) -> None:
    text = "print('cmdline: first: end: x', flush=True)\nprint('first: end: y', flush=True)\nsys.stdin.read()"
    with Qemu(script(tmp_path, text)) as qemu:
        assert qemu.wait_for(("\ncmdline", "\nfirst: end: y"), 30) == "\ncmdline"
        assert qemu.wait_for(("\nfirst: end: x", "\nfirst: end: y"), 30) == "\nfirst: end: y"
