"""What a kernel in QEMU says of its load, and what its memory has of it: a lie is one line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.kbuild.qemu import Qemu
from kexecemu.kbuild.qemu_load import loaded_in
from kexecemu.linux.first_boot import WAITING, LinuxSetup
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

IMAGE = fixture_path("guests/capture-Image").read_bytes()


class Liar:
    """In QEMU's place: a console, and memory of any bytes."""

    ended = False

    def __init__(self, iomem: str, memory: bytes = b"") -> None:
        self.console = f"first: record iomem.txt\n{iomem}\nfirst: end of iomem.txt\n{WAITING}\n"
        self.memory = memory

    def check_running(self) -> None:
        """It runs."""

    def wait_for(self, words: tuple[str, ...], *_: Any) -> str | None:
        return next((word for word in words if word in self.console), None)

    def copy_memory(self, area: PhysRange, ram: Ram) -> None:
        ram.write(area.start, (self.memory * (area.size // max(len(self.memory), 1) + 1))[: area.size])


def refusal(qemu: Liar) -> str:
    nowhere = Path("/nowhere")
    files = {"busybox": nowhere, "kexec": nowhere, "packages": nowhere, "ram": "512M"}
    setup = LinuxSetup(image=IMAGE, crash_image=IMAGE, crash_initrd=b"x" * 5000, **files)  # type: ignore[arg-type]
    with pytest.raises(InputError) as refused:
        loaded_in(cast(Qemu, qemu), setup)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_who_has_reserved_nothing_or_has_not_come_so_far_is_told_so() -> None:
    assert refusal(Liar("40000000-5fffffff : System RAM")) == "the kernel has reserved no crashkernel memory"
    silent = Liar("")
    silent.console = "[    1.0] Kernel panic - not syncing: No working init found.\nmore\n"
    assert "No working init found" in refusal(silent)


@pytest.mark.parametrize("seed", range(8))
def test_memory_that_has_no_load_is_one_line_whatever_is_in_it(seed: int) -> None:
    chance = random.Random(seed)
    memory = (
        bytes(0x10000) if not seed else IMAGE[: chance.randrange(64, len(IMAGE))] + chance.randbytes(9000)
    )
    refusal(Liar("40000000-5fffffff : System RAM\n  53600000-53dfffff : Crash kernel", memory))


def test_the_last_word_of_init_is_heard_to_its_end() -> None:
    """What is printed comes in pieces, and the first of them may end behind the word that is waited for."""
    pieces = ["first: Linux 7.3.4\nno room\nfirst: end: ", "kexec failed\n"]
    liar = Liar("")
    liar.console = ""

    def pump(_seconds: float) -> None:
        liar.console += pieces.pop(0)

    pump(0)
    liar.pump = pump  # type: ignore[attr-defined]
    assert refusal(liar) == "the kernel has loaded no crash kernel: no room; first: end: kexec failed"
