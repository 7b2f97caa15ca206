"""What a handoff's folder holds; that QEMU can go on from it is tests/real/test_handoff_qemu.py's."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_LITTLE_ENDIAN, Cs

from kexecemu.crash.handoff import Handoff, check_board, write_handoff
from kexecemu.crash.handoff_code import FLASH_START, LOW_SIZE
from kexecemu.crash.kernel import Kernel
from kexecemu.data import fixture_path
from kexecemu.errors import InputError, MachineError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

RAM_BASE = 0x40000000
STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()


def loaded(board: Board) -> tuple[Kernel, Kimage]:
    kernel = Kernel.boot(board, KernelConfig("6.4", purgatory=True), cmdline="crashkernel=32M")
    image = kernel.kexec_file_load(STUB, INITRD, "console=ttyAMA0")
    assert image is not None
    return kernel, image


def at_the_jump(gic: int = 2) -> tuple[Kernel, Kimage]:
    kernel, image = loaded(Board("128M", gic=gic))
    kernel.crash()
    return kernel, image


def state_of(handoff: Handoff) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((handoff.folder / "state.json").read_text())
    return state


def kexecemu(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kexecemu", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("low", [(), (0x10, 0x2345), (LOW_SIZE - 1, LOW_SIZE)], ids=["none", "some", "edge"])
def test_the_files_make_all_of_ram(low: tuple[int, ...], tmp_path: Path) -> None:
    kernel, image = at_the_jump()
    for offset in low:
        kernel.ram.write(RAM_BASE + offset, b"\x5a")
    state = state_of(write_handoff(tmp_path / "new" / "folder", kernel, image))
    [bank] = kernel.ram.banks
    ram = bytearray(bank.size)
    written = 0
    for file in state["files"]:
        data = (tmp_path / "new/folder" / file["name"]).read_bytes()
        assert len(data) == file["size"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        if file["name"].startswith("ram-"):
            # QEMU's own device tree is below that, and it refuses two things at one place.
            assert file["phys"] >= RAM_BASE + LOW_SIZE
            offset = file["phys"] - RAM_BASE
            ram[offset : offset + len(data)] = data
            written += len(data)
        elif file["name"] == "low.bin":
            assert len(data) <= LOW_SIZE
            ram[: len(data)] = data
    assert ram == kernel.ram.read(bank.start, bank.size)
    assert any(file["name"] == "low.bin" for file in state["files"]) == bool(low)
    assert written < 8 << 20  # of 128 MiB


def test_the_state_is_the_cpu_at_the_entry(tmp_path: Path) -> None:
    kernel, image = at_the_jump()
    expected = kernel.board.boot_cpu.registers()
    handoff = write_handoff(tmp_path, kernel, image, alignment_checks=True)
    state = state_of(handoff)
    assert state["registers"] | state["vector_registers"] | state["system_registers"] == expected
    assert state["entry"] == state["registers"]["pc"] == image.start
    assert (state["registers"]["x0"], state["registers"]["x1"]) == (image.dtb_mem, 0)
    assert state["digest"] == (image.digest or b"").hex()
    assert [one["name"] for one in state["segments"]] == [one.name for one in image.segments]
    assert state["board"] == {
        "ram": [{"start": RAM_BASE, "end": RAM_BASE + (128 << 20) - 1}],
        "cpus": 1,
        "uart": 0x09000000,
    }
    assert (state["el"], state["alignment_checks"]) == (1, True)
    assert kernel.board.boot_cpu.registers() == expected  # writing it down has changed nothing


def test_the_script_runs_the_command_line_with_what_it_is_given(tmp_path: Path) -> None:
    kernel, image = at_the_jump()
    handoff = write_handoff(tmp_path, kernel, image)
    assert os.access(handoff.script, os.X_OK)
    (line,) = [one for one in handoff.script.read_text().splitlines() if one.startswith("qemu-system-")]
    words = shlex.split(line)
    # Behind it the script's own look at the machine, by which it knows that the CPU has stopped.
    command, more = words[: words.index("-chardev")], words[words.index("-chardev") :]
    assert more[-3:] == ["$@", "<&5", "&"]
    assert command == state_of(handoff)["command"]
    assert [word.replace(f"{tmp_path}/", "") for word in handoff.command] == command
    assert handoff.command[:7] == ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-m", "128M"]


def test_qemu_gets_the_interrupt_controller_that_the_device_tree_names(tmp_path: Path) -> None:
    handoff = write_handoff(tmp_path, *at_the_jump(gic=3))
    assert handoff.command[:3] == ["qemu-system-aarch64", "-M", "virt,gic-version=3"]


def test_a_comma_in_the_folder_is_doubled_for_qemu(tmp_path: Path) -> None:
    kernel, image = at_the_jump()
    handoff = write_handoff(tmp_path / "a,b", kernel, image)
    assert any(word.startswith(f"loader,file={tmp_path}/a,,b/start.bin,") for word in handoff.command)


@pytest.mark.parametrize("el", [1, 2])
def test_the_code_sets_the_level_s_own_registers_and_branches_through_one_of_the_kernel_s(
    el: int, tmp_path: Path
) -> None:
    kernel, image = at_the_jump()
    handoff = write_handoff(tmp_path, kernel, image, el=el)
    code = (tmp_path / "start.bin").read_bytes()
    decoded = list(Cs(CS_ARCH_ARM64, CS_MODE_LITTLE_ENDIAN).disasm(code, FLASH_START))
    branch = next(number for number, one in enumerate(decoded) if one.mnemonic == "br")
    through = int(decoded[branch].op_str.removeprefix("x"))
    assert kernel.board.boot_cpu.x(through) == image.start
    loads = [one.op_str.split(",")[0] for one in decoded[branch - 31 : branch]]
    assert loads == [f"x{number}" for number in range(31)]
    written = {one.op_str.split(",")[0] for one in decoded[:branch] if one.mnemonic == "msr"}
    assert {"sctlr_el1", "vbar_el1", "ttbr1_el1", "sp_el0", "daif", "nzcv"} <= written
    assert {"sctlr_el2", "hcr_el2", "sp_el1"} & written == (
        {"sctlr_el2", "hcr_el2", "sp_el1"} if el == 2 else set()
    )
    assert ("virt,virtualization=on" in handoff.command) == (el == 2)


@pytest.mark.parametrize(
    ("board", "words"),
    [
        (lambda: Board("64M", ram_base=0x80000000), "0x80000000-0x83ffffff"),
        (
            lambda: Board([PhysRange.of(RAM_BASE, 1 << 26), PhysRange.of(0x80000000, 1 << 26)]),
            "one bank of RAM",
        ),
        (lambda: Board((64 << 20) + 4096), "pieces of 0x2000 bytes"),
        (lambda: Board("64M", uart_base=0x09040000), "UART at 0x9000000, this board at 0x9040000"),
    ],
    ids=["base", "banks", "size", "uart"],
)
def test_a_board_that_qemu_has_not_is_refused(board: Any, words: str) -> None:
    with board() as made, pytest.raises(InputError, match=words):
        check_board(made)


def test_a_refusal_writes_nothing(tmp_path: Path) -> None:
    kernel, image = loaded(Board("128M"))
    with pytest.raises(MachineError, match="not at the image's entry"):
        write_handoff(tmp_path / "folder", kernel, image)
    kernel.crash()
    with pytest.raises(InputError, match="1 or 2, not 3"):
        write_handoff(tmp_path / "folder", kernel, image, el=3)
    assert not (tmp_path / "folder").exists()


def test_the_command_line_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    options = ("--ram", "128M", "--cmdline", "crashkernel=32M", "--json")
    plain = json.loads(kexecemu("crash", *options).stdout)
    done = kexecemu("crash", *options, "--handoff", folder)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert plain.pop("handoff") is None
    handoff = result.pop("handoff")
    assert plain.pop("files") == []
    assert sorted(result.pop("files")) == sorted(map(str, folder.iterdir()))
    assert result == plain
    assert handoff["folder"] == str(folder)
    assert handoff["script"] == str(folder / "run-qemu.sh")
    assert handoff["el"] == 1
    assert f"loader,file={folder}/start.bin,addr=0x1000,force-raw=on" in handoff["command"]
    assert (folder / "state.json").is_file()


def test_a_scenario_is_handed_over_too(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    done = kexecemu("run", "initrd-stamped", "--handoff", folder)
    assert done.returncode == 0, done.stderr
    *_, command = done.stdout.splitlines()
    assert str(folder / "run-qemu.sh") in done.stdout
    assert shlex.split(command)[0] == "qemu-system-aarch64"


def test_a_fault_at_hashing_0_is_handed_over_as_one_at_the_jump(tmp_path: Path) -> None:
    folders = [tmp_path / when for when in ("at-jump", "hashing-0", "none")]
    for folder in folders:
        fault = f'by = "dma"\nat = "initrd+8"\nwrite = "5a5a"\nwhen = "{folder.name}"'
        faults = f"[[fault]]\n{fault}\n" if folder.name != "none" else ""
        (tmp_path / "s.toml").write_text(f'schema = 1\nname = "x"\n{faults}')
        assert kexecemu("run", tmp_path / "s.toml", "--handoff", folder).returncode == 0
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] != files[2]


def test_a_fault_in_the_middle_of_hashing_is_later_than_the_hand_over(tmp_path: Path) -> None:
    fault = 'by = "dma"\nat = "initrd+8"\nwrite = "5a"\nwhen = "hashing-128"'
    (tmp_path / "s.toml").write_text(f'schema = 1\nname = "x"\n[[fault]]\n{fault}\n')
    done = kexecemu("run", tmp_path / "s.toml", "--handoff", tmp_path / "machine")
    assert (done.returncode, done.stdout) == (2, "")
    words = "the machine is handed over at the jump, and a fault at hashing-128 is later"
    assert done.stderr == f"kexecemu: --handoff: {words}\n"


@pytest.mark.parametrize("command", ["crash", "run"])
def test_what_cannot_be_handed_over_is_refused_in_one_line(command: str, tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    if command == "run":
        done = kexecemu("run", "write-after-check", "--handoff", folder)
        words = "the machine is handed over at the jump, and a fault at after-check is later"
    else:
        (tmp_path / "dtb").write_bytes(virt_device_tree([PhysRange.of(0x80000000, 128 << 20)], 1, 0x09000000))
        done = kexecemu(
            "crash", "--dtb", tmp_path / "dtb", "--cmdline", "crashkernel=32M", "--handoff", folder
        )
        words = "QEMU's virt has one bank of RAM from 0x40000000, this board has 0x80000000-0x87ffffff"
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("kexecemu: ")
    assert words in line
    assert not folder.exists()


def test_a_file_is_no_folder_to_hand_over_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = kexecemu("crash", "--handoff", tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"kexecemu: --handoff {tmp_path / 'file'}: is not a folder\n"
    assert (tmp_path / "file").read_text() == "mine"
