"""Debian's own kernels capture on the board of kexecemu, after the model kernel's crash and the real purgatory.

What is said of a run here is checked by hashlib, pyelftools and the tools that read dumps, and by other ways to run it:
again, counted in Python, stopped at random.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile
from qemu_tree import dump_tree

from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.linux import capture as linux
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel
from kexecemu.machine.board import Board
from kexecemu.machine.system import System
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, crash, scenario_setup
from kexecemu.scenario.setup import Setup, prepare
from kexecemu.stray.fault import By, Fault, When

if TYPE_CHECKING:
    from tests.real.conftest import Command, DumpTools

pytestmark = pytest.mark.real

MIB = 1 << 20
CHUNK = 4 * MIB
STRAY_PHYS, STRAY = 0x44000000, bytes.fromhex("deadbeef")
SEED = 20261124


@pytest.fixture(scope="module")
def setup(debian_kernel: Path, busybox: Path) -> Setup:
    """What debian-captures loads: 512 MiB, 192 of them reserved, a seed for KASLR, a stock command line."""
    path = find_scenario("debian-captures")
    return scenario_setup(read_scenario(path), path.parent)


def sha256(read: Callable[[int, int], bytes], start: int, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, CHUNK):
        digest.update(read(start + offset, min(CHUNK, size - offset)))
    return digest.hexdigest()


@dataclass
class Memory:
    """Looks at RAM at the jump: the digest of each stretch that is not the crash kernel's."""

    digests: dict[tuple[int, int], str]

    def look(self, kernel: Kernel) -> None:
        """To be called at the jump."""
        (bank,) = kernel.ram.banks
        region = kernel.crashk_res
        assert region is not None
        for start, end in ((bank.start, region.start), (region.end, bank.end)):
            self.digests[start, end] = sha256(kernel.ram.read, start, end - start)


@dataclass(frozen=True)
class Capture:
    """A crash that was captured, its dump on disk, and RAM at the jump."""

    result: Result
    vmcore: Path
    memory: Memory

    @property
    def linux(self) -> LinuxCapture:
        return linux_of(self.result.end)

    @property
    def console(self) -> bytes:
        return bytes(self.result.kernel.board.uart.output)


def linux_of(end: End) -> LinuxCapture:
    assert end.capture is not None and end.capture.linux is not None, end.reason
    return end.capture.linux


def capture(setup: Setup, folder: Path) -> Capture:
    memory = Memory({})
    stray = Fault(f"{STRAY_PHYS:#x}", write=STRAY, by=By.DMA, when=When.AFTER_LOAD)
    result = crash("a crash of a test", setup, [stray], acts={(When.AT_JUMP, 0): memory.look})
    assert isinstance(result.end.vmcore, linux.DiskVmcore), result.end.console[-2000:]
    result.end.vmcore.write(folder / "vmcore")
    return Capture(result, folder / "vmcore", memory)


@pytest.fixture(scope="module")
def captured(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """The run that the others are compared with."""
    return capture(setup, tmp_path_factory.mktemp("captured"))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(one: Capture, other: Capture) -> None:
    """The same run: console, time, registers at the end, and the dump byte for byte."""
    assert one.console == other.console
    assert one.linux.where == other.linux.where
    assert one.result.end.instructions == other.result.end.instructions
    boards = [each.result.kernel.board for each in (one, other)]
    registers = [board.boot_cpu.registers() for board in boards]
    for each in registers:
        del each["CNTKCTL_EL1"]  # not what the guest sees where programs' reads of the counter are served
    assert registers[0] == registers[1]
    assert digest(one.vmcore) == digest(other.vmcore)


# -- the dump --------------------------------------------------------------------------------------------------


def test_every_load_of_the_dump_is_memory_as_it_was_at_the_crash(captured: Capture) -> None:
    kernel = captured.result.kernel
    assert captured.result.end.outcome is Outcome.LATENT  # the stray word, which nobody is to notice
    with captured.vmcore.open("rb") as file:
        core = ELFFile(file)
        assert (core["e_type"], core["e_machine"]) == ("ET_CORE", "EM_AARCH64")
        loads = [one for one in core.iter_segments() if one["p_type"] == "PT_LOAD"]

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        found = {
            (load["p_paddr"], load["p_paddr"] + load["p_filesz"]): sha256(
                read, load["p_offset"], load["p_filesz"]
            )
            for load in loads
        }
        (at,) = [load for load in loads[1:] if 0 <= STRAY_PHYS - load["p_paddr"] < load["p_filesz"]]
        assert read(at["p_offset"] + STRAY_PHYS - at["p_paddr"], 4) == STRAY
    text = (loads[0]["p_paddr"], loads[0]["p_paddr"] + loads[0]["p_filesz"])
    # All of RAM but the crash kernel's, and the first kernel's own image once more.
    assert {area: one for area, one in found.items() if area != text} == captured.memory.digests
    assert kernel.guest.area.start in range(*text)
    assert found[text] == sha256(kernel.ram.read, text[0], text[1] - text[0])
    # What the account says is the same.
    said = {(load.phys.start, load.phys.end): load.sha256 for load in captured.linux.read}
    assert said == found
    assert captured.linux.true_dump


def test_its_notes_are_the_first_kernels(captured: Capture) -> None:
    with captured.vmcore.open("rb") as file:
        (segment,) = [one for one in ELFFile(file).iter_segments() if one["p_type"] == "PT_NOTE"]
        assert [note["n_name"] for note in segment.iter_notes()] == ["CORE", "VMCOREINFO"]
    assert "kdump: OSRELEASE=6.4.0-kexecemu" in captured.linux.console


def test_vmcore_dmesg_prints_the_log_of_the_kernel_that_crashed(
    captured: Capture, dumptools: DumpTools, tmp_path: Path
) -> None:
    done = dumptools.run("vmcore-dmesg", captured.vmcore, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = captured.result.end.console.splitlines()
    first = printed[: next(i for i, line in enumerate(printed) if line.endswith("Bye!")) + 1]
    assert done.stdout.splitlines() == first


def test_drgn_finds_the_crashed_thread_and_the_stray_word(captured: Capture) -> None:
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed (pip install drgn)")
    import drgn

    program = drgn.Program()
    program.set_core_dump(captured.vmcore)
    program.load_debug_info([str(captured.result.kernel.guest.vmlinux.path)])
    assert program.read(STRAY_PHYS, 4, True) == STRAY
    names = [frame.name for frame in program.crashed_thread().stack_trace()]
    assert {"__crash_kexec", "panic", "sysrq_handle_crash"} <= set(names)


def test_the_command_tells_programs_of_the_dump_and_shows_the_console_meanwhile(
    setup: Setup, command: Callable[..., Command], tmp_path: Path
) -> None:
    done = command("run", "debian-captures", "-v", "--json", "--vmcore", tmp_path / "vmcore")
    assert done.status == 0, done.stderr
    said = done.json["linux"]
    assert (said["end"], said["vmcore_bytes"]) == ("done", (tmp_path / "vmcore").stat().st_size)
    assert [load["same"] for load in said["loads"]] == [True] * 3
    with (tmp_path / "vmcore").open("rb") as file:
        loads = [one for one in ELFFile(file).iter_segments() if one["p_type"] == "PT_LOAD"]
    ends = [(one["p_paddr"], one["p_paddr"] + one["p_filesz"] - 1) for one in loads]
    assert [(load["start"], load["end"]) for load in said["loads"]] == ends
    shown = done.stderr.replace("\r", "").splitlines()
    assert shown == done.json["console"].splitlines()
    assert f"kdump: Linux {said['release']} is up" in shown


# -- the same whatever the way it is run -------------------------------------------------------------------------


def test_another_run_is_the_same(setup: Setup, captured: Capture, tmp_path: Path) -> None:
    same(captured, capture(setup, tmp_path))


def test_counted_in_python_it_is_the_same(
    setup: Setup, captured: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    same(captured, capture(setup, tmp_path))


@pytest.mark.parametrize("counter", ["native", "python"])
def test_stopped_at_random_it_is_the_same(
    counter: str, setup: Setup, captured: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(SEED)
    stops = []

    def turn(cpus: int) -> int:
        stops.append(chance.choice((1, 7, 1000, 60_000, 300_000, 2_000_000)))
        return stops[-1]

    monkeypatch.setattr(linux, "System", partial(System, slice_of=turn))
    if counter == "python":
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    same(captured, capture(setup, tmp_path))
    assert len(stops) > 1000


def test_kaslr_is_on_and_another_seed_puts_the_kernel_elsewhere(captured: Capture) -> None:
    assert "KASLR enabled" in captured.linux.console
    assert captured.result.kernel.board.boot_cpu.pc >> 32 != 0xFFFF8000  # where it is linked to


# -- other kernels, initrds and boards -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernel-trixie", "kernel-6.18", "kernel-backports"])
def test_newer_kernels_capture_too(
    setup: Setup, fetched: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    release = fetched(name).name.removeprefix("vmlinuz-")
    one = capture(replace(setup, kernel=Path(f"fetched:{name}")), tmp_path)
    assert one.linux.release == release
    assert one.linux.true_dump


def test_a_kernel_for_pages_that_the_cpu_lacks_is_said_to_wait_at_its_start(
    setup: Setup, fetched: Callable[[str], Path]
) -> None:
    fetched("kernel-16k")
    # Cortex-A57 has no pages of 16 KiB: kexec_file_load refuses, kexec-tools does not look; head.S does, and waits.
    result = crash("16K", replace(setup, kernel=Path("fetched:kernel-16k"), syscall="kexec_load"), [])
    told = linux_of(result.end)
    assert (result.end.outcome, told.end) == (Outcome.HUNG, LinuxEnd.STUCK)
    assert "idle for good" in told.where and "it has printed nothing" in told.where
    (kernel,) = [one for one in result.image.segments if one.name == "kernel"]
    assert result.kernel.board.boot_cpu.pc in kernel.area


def test_a_word_in_the_middle_of_busybox_goes_unnoticed_by_linux_without_a_purgatory(setup: Setup) -> None:
    """What debian-initrd-stamped finds: here the dump happens to be good, and nothing says that luck was needed."""
    fault = Fault("initrd+0x80000", write=b"\xa5" * 4)
    end = crash("stamped", replace(setup, purgatory="none"), [fault]).end
    assert end.outcome is Outcome.SILENT
    assert linux_of(end).end is LinuxEnd.DONE
    assert linux_of(end).true_dump


def stamped_at(setup: Setup, mark: bytes, word: bytes = b"\xff" * 4) -> End:
    """A crash without a purgatory, a word written where `mark` lies in the initrd."""
    at = fetched_initrd(fetched_kernel(None)).index(mark)
    return crash("stamped", replace(setup, purgatory="none"), [Fault(f"initrd+{at:#x}", write=word)]).end


def test_a_word_in_the_head_of_busybox_is_a_panic_without_a_purgatory(setup: Setup) -> None:
    end = stamped_at(setup, b"\x7fELF")
    assert (end.outcome, linux_of(end).end) == (Outcome.TRAPPED, LinuxEnd.PANIC)
    assert end.reason.startswith("the capture kernel panicked: No working init found.")
    assert end.dump_reason.startswith("none: the capture kernel panicked: No working init found.")
    assert "Kernel panic - not syncing: No working init found." in linux_of(end).where


def test_a_word_in_the_head_of_init_leaves_a_shell_that_waits_for_somebody(setup: Setup) -> None:
    end = stamped_at(setup, b"#!/bin/sh\n# The init of a capture kernel")
    told = linux_of(end)
    assert (end.outcome, told.end) == (Outcome.HUNG, LinuxEnd.BUDGET)
    assert "Failed to execute /init (error -8)" in told.console
    assert "used up the budget" in told.where


def test_a_linux_with_too_little_memory_is_quoted_and_no_exception_is_blamed(setup: Setup) -> None:
    end = crash("deadlocked", replace(setup, cmdline="crashkernel=104M", initrd_size="60M"), []).end
    assert (end.outcome, end.dump) == (Outcome.TRAPPED, Dump.NONE)
    assert end.reason == "the capture kernel panicked: System is deadlocked on memory"
    assert end.dump_reason == f"none: {end.reason}"


def test_a_linux_that_is_told_to_copy_nothing_has_not_hung(setup: Setup) -> None:
    end = crash("copies nothing", replace(setup, append=f"{setup.append} kexecemu.copy=no"), []).end
    assert (end.outcome, end.dump, end.vmcore) == (Outcome.CAPTURED, Dump.NONE, None)
    assert linux_of(end).end is LinuxEnd.HEADERS
    assert end.reason.endswith("read the dump's headers and switched off without copying it")
    assert "copied nothing" in end.dump_reason


def test_loads_that_lead_elsewhere_are_a_wrong_dump_of_linuxs_too(setup: Setup) -> None:
    """Without a purgatory Linux believes its core header: the dump is what that says, and not what memory was."""
    prepared, image = prepare(replace(setup, purgatory="none"))
    segment = image.segment("elfcorehdr")
    assert segment is not None
    headers = parse_core_header(segment.content()).program_headers
    number = max(index for index, one in enumerate(headers) if one.type == PT_LOAD)
    prepared.board.close()
    virt = Fault(f"elfcorehdr+{64 + 56 * number + 16 + 2:#x}", write=b"\x77", by=By.DMA)  # p_vaddr
    end = crash("elsewhere", replace(setup, purgatory="none"), [virt]).end
    assert linux_of(end).end is LinuxEnd.DONE and linux_of(end).true_dump
    assert (end.outcome, end.dump) == (Outcome.SILENT, Dump.WRONG)
    assert f"load {number - sum(one.type != PT_LOAD for one in headers)} is " in end.dump_reason


def test_an_initrd_of_ones_own_that_takes_no_dump_is_told_so(setup: Setup, initramfs: Path) -> None:
    end = crash("own initrd", replace(setup, initrd=initramfs), []).end
    told = linux_of(end)
    assert (end.outcome, told.end, end.vmcore) == (Outcome.HUNG, LinuxEnd.OFF, None)
    assert "init: vmcore of " in told.console
    assert end.reason == "the capture kernel switched off without a word of the dump"
    assert "powers off without a word of the dump" in end.timeline.of("captured")[0].text


def test_on_the_device_tree_of_qemus_virt_it_captures_too(setup: Setup, tmp_path: Path) -> None:
    blob = dump_tree(tmp_path / "virt.dtb")
    assert struct.unpack(">I", blob.read_bytes()[:4]) == (0xD00DFEED,)
    one = capture(replace(setup, ram=None, dtb=blob), tmp_path)
    assert one.linux.true_dump
    assert isinstance(one.result.kernel.board, Board)
    # It has looked for what the board lacks, and gone on.
    assert "pci-host-generic" in one.linux.console
