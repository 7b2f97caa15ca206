"""Parts of a hand-over: which memory is written and in how many files, sizes, boards that QEMU has not, the state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.handoff import (
    FILES,
    Handoff,
    _command,
    _nonzero,
    _Piece,
    _size,
    _write_memory,
    check_board,
    write_handoff,
)
from kexecemu.crash.handoff_code import FLASH_LOW, FLASH_START, LOW_SIZE
from kexecemu.errors import InputError, MachineError
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.machine.board import Board
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

BASE, PAGE, M = 0x40000000, 4096, 1 << 20


def stretches(pages: list[int]) -> list[PhysRange]:
    """Of pages that hold something, joined where no more than 16 lie between."""
    found: list[list[int]] = []
    for page in sorted(pages):
        if found and page - found[-1][1] <= 16:
            found[-1][1] = page + 1
        else:
            found.append([page, page + 1])
    return [PhysRange(BASE + first * PAGE, BASE + end * PAGE) for first, end in found]


@pytest.mark.parametrize(
    "pages",
    [
        [],
        [0],
        [1023],
        [0, 17],  # 16 between them
        [0, 18],
        [255, 256],  # over an edge of a mebibyte
        [250, 267, 285],
        [0, 1, 2, 500, 1000, 1023],
        *(Random(seed).sample(range(1024), count) for seed, count in ((1, 5), (2, 40), (3, 200))),
    ],
)  # fmt: skip
def test_what_is_not_zero_is_found_in_whole_pages_joined_over_small_gaps(pages: list[int]) -> None:
    ram = Ram([PhysRange.of(BASE, 4 * M)])
    for page in pages:
        ram.write(BASE + page * PAGE + (page * 7) % PAGE, b"\1")
    for page in range(0, 1024, 5):  # touched, and zeros again
        ram.write(BASE + page * PAGE + 4095, ram.read(BASE + page * PAGE + 4095, 1))
    assert list(_nonzero(ram, ram.banks[0])) == stretches(pages)
    within = PhysRange(BASE + 100 * PAGE, BASE + 600 * PAGE)
    assert list(_nonzero(ram, within)) == stretches([page for page in pages if 100 <= page < 600])


@pytest.mark.parametrize(
    ("pages", "files", "copied"),
    [
        ([], [], 0),
        ([3], [("low.bin", 0, 4)], 4),
        ([255], [("low.bin", 0, 256)], 256),
        ([256], [("ram-40100000.bin", 256, 257)], 0),
        ([250, 260], [("ram-40100000.bin", 256, 261), ("low.bin", 0, 256)], 256),
        ([3, 900], [("ram-40384000.bin", 900, 901), ("low.bin", 0, 4)], 4),
        ([3, 100, 900], [("ram-40384000.bin", 900, 901), ("low.bin", 0, 101)], 101),
    ],
)
def test_what_lies_in_qemu_s_own_place_goes_to_the_flash_and_the_rest_where_it_was(
    pages: list[int], files: list[tuple[str, int, int]], copied: int, tmp_path: Path
) -> None:
    ram = Ram([PhysRange.of(BASE, 4 * M)])
    for page in pages:
        ram.write(BASE + page * PAGE, bytes([page % 255 + 1]) * 9)
    pieces, count = _write_memory(tmp_path, ram, PhysRange.of(BASE, LOW_SIZE))
    assert count == copied * PAGE
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(name for name, *_ in files)
    expected = []
    for name, first, end in files:
        data = ram.read(BASE + first * PAGE, (end - first) * PAGE)
        assert (tmp_path / name).read_bytes() == data
        phys = FLASH_LOW if name == "low.bin" else BASE + first * PAGE
        expected.append(_Piece(name, phys, len(data), hashlib.sha256(data).hexdigest()))
    assert pieces == expected


@pytest.mark.parametrize(
    ("size", "word"),
    [(1 << 30, "1G"), (3 << 30, "3G"), (1536 << 20, "1536M"), (M, "1M"), (M + 8192, "1032K"), (8192, "8K")],
)
def test_a_size_is_written_in_the_largest_unit_of_which_it_is_a_whole_number(size: int, word: str) -> None:
    assert _size(size) == word


def board(**more: Any) -> Any:
    """One that QEMU has, but for what is said."""
    ram = SimpleNamespace(banks=[PhysRange.of(BASE, 64 * M)], size=64 * M)
    uart = SimpleNamespace(base_phys=0x09000000, kind="pl011")
    made = SimpleNamespace(ram=ram, uart=uart, conduit="hvc", cpus=[None] * 3, gic=SimpleNamespace(version=2))
    for name, value in more.items():
        part, _, rest = name.partition("_")
        setattr(getattr(made, part), rest, value) if rest else setattr(made, name, value)
    return made


PL011 = "QEMU's virt has a pl011, and at EL1 PSCI by hvc, this board"
ONE = "QEMU's virt has one bank of RAM from 0x40000000, this board has"


@pytest.mark.parametrize(
    ("more", "el", "said"),
    [
        ({}, 1, ""),
        ({}, 2, ""),
        ({"conduit": "smc"}, 2, ""),
        ({"ram_size": 64 * M + 8192}, 1, ""),
        ({"conduit": "none"}, 1, ""),
        ({"conduit": "smc"}, 1, f"{PL011}: pl011, and PSCI by smc"),
        ({"uart_kind": "ns16550"}, 1, f"{PL011}: ns16550, and PSCI by hvc"),
        ({"uart_kind": None}, 2, f"{PL011}: none, and PSCI by hvc"),
        ({"uart_base_phys": 0x09000004}, 1, "QEMU's virt has its UART at 0x9000000, this board at 0x9000004"),
        ({"ram_size": 64 * M + 4096}, 1, "QEMU's RAM comes in pieces of 0x2000 bytes, this board has 0x4001000"),
        ({"ram_banks": []}, 1, f"{ONE} "),
        ({"ram_banks": [PhysRange(BASE + 8, BASE + 16)]}, 1, f"{ONE} 0x40000008-0x4000000f"),
        ({"ram_banks": [PhysRange(BASE, BASE + 8), PhysRange(BASE + 16, BASE + 24)]}, 1,
         f"{ONE} 0x40000000-0x40000007, 0x40000010-0x40000017"),
    ],
)  # fmt: skip
def test_a_board_is_one_of_qemu_s_or_refused_by_what_is_not(more: dict[str, Any], el: int, said: str) -> None:
    if not said:
        check_board(board(**more), el)
        return
    with pytest.raises(InputError) as refusal:
        check_board(board(**more), el)
    assert str(refusal.value) == f"handoff: {said}"


@pytest.mark.parametrize(("el", "gic", "machine"), [(1, 2, "virt"), (2, 2, "virt,virtualization=on"),
                                                     (1, 3, "virt,gic-version=3"),
                                                     (2, 3, "virt,virtualization=on,gic-version=3")])  # fmt: skip
def test_the_command_line_is_the_board_s_with_every_file_at_its_place(
    el: int, gic: int, machine: str
) -> None:
    pieces = [_Piece("a,b.bin", 0x1000, 5, ""), _Piece("start.bin", 0x2000, 5, "")]
    own = board(gic=SimpleNamespace(version=gic))
    common = ["-no-reboot", "-nic", "none", "-display", "none", "-serial", "stdio", "-monitor", "none"]
    for folder, where in ((None, ""), (Path("/x,y"), "/x,,y/")):
        assert _command(own, pieces, el, "max", folder) == [
            "qemu-system-aarch64", "-M", machine, "-cpu", "max", "-m", "64M", "-smp", "3", *common,
            "-device", f"loader,file={where}a,,b.bin,addr=0x1000,force-raw=on",
            "-device", f"loader,file={where}start.bin,addr=0x2000,force-raw=on",
            "-device", "loader,addr=0x1000,cpu-num=0",
        ]  # fmt: skip
    assert FLASH_START == 0x1000


ENTRY = BASE + 2 * M


def standing(**more: Any) -> tuple[Any, Kimage]:
    """A first kernel that has been left: its CPU stands at the image's entry."""
    made = Board("64M", 2)
    cpu = made.boot_cpu
    cpu.reset(ENTRY)
    made.ram.write(ENTRY, b"code")
    made.uart.write(0, 4, ord("x"))
    image = Kimage(0, [Segment("kernel", b"code", ENTRY, 0x1000)], start=ENTRY, **more)
    return SimpleNamespace(board=made, crashing_cpu=cpu), image


def test_the_state_says_what_was_handed_over(tmp_path: Path) -> None:
    kernel, image = standing(kernel_entry=ENTRY + 8, dtb_mem=BASE + 0x100)
    handoff = write_handoff(tmp_path / "new", kernel, image, el=2, cpu_model="max")
    state = json.loads((tmp_path / "new/state.json").read_text())
    names = ["ram-40200000.bin", "start.bin", "state.json", "run-qemu.sh"]
    assert handoff.files == tuple(tmp_path / "new" / name for name in names)
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == sorted(names)
    assert (handoff.el, handoff.folder, handoff.script) == (2, tmp_path / "new", tmp_path / "new/run-qemu.sh")
    files = state.pop("files")
    assert [(one["name"], one["phys"]) for one in files] == [(names[0], ENTRY), ("start.bin", 0x1000)]
    assert state.pop("command")[2] == "virt,virtualization=on" and handoff.command[4] == "max"
    registers = kernel.crashing_cpu.registers()
    kinds = state.pop("registers"), state.pop("vector_registers"), state.pop("system_registers")
    assert [len(one) for one in kinds] == [34, 32, len(registers) - 66]
    assert {name: value for kind in kinds for name, value in kind.items()} == registers
    assert state == {
        "version": 1, "entry": ENTRY, "el": 2, "alignment_checks": False, "instructions": 0, "console_bytes": 1,
        "kernel_entry": ENTRY + 8, "dtb": BASE + 0x100, "digest": None,
        "board": {"ram": [{"start": BASE, "end": BASE + 64 * M - 1}], "cpus": 2, "uart": 0x09000000},
        "segments": [{"name": "kernel", "mem": ENTRY, "memsz": 0x1000, "bufsz": 4}],
    }  # fmt: skip
    assert Handoff(tmp_path, 1, []).files == () and FILES[-1] == "run-qemu.sh"
    kernel.board.close()


def test_a_machine_that_is_elsewhere_or_has_its_mmu_on_is_not_handed_over(tmp_path: Path) -> None:
    kernel, image = standing()
    cpu = kernel.crashing_cpu
    image.table_pages.append(PhysRange.of(BASE, 0x1000))
    with pytest.raises(
        InputError, match="QEMU goes on with the MMU off, and way purgatory-trans-pgd leaves it on"
    ):
        write_handoff(tmp_path / "new", kernel, image)
    image.start += 4
    words = f"handoff: cpu0 is at {ENTRY:#x}, not at the image's entry with the MMU off"
    with pytest.raises(MachineError, match=words):
        write_handoff(tmp_path / "new", kernel, image)
    image.start -= 4
    image.table_pages.clear()
    cpu.set_sysreg("SCTLR_EL1", cpu.sysreg("SCTLR_EL1") | 1)
    with pytest.raises(MachineError, match=words):
        write_handoff(tmp_path / "new", kernel, image)
    for el in (0, 3):
        with pytest.raises(InputError, match=f"handoff: the exception level is 1 or 2, not {el}"):
            write_handoff(tmp_path / "new", kernel, image, el=el)
    assert not (tmp_path / "new").exists()
    kernel.board.close()
