"""The board's table: its addresses stand nowhere else, and what is made from it is where it says."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

import kexecemu
from kexecemu.machine import virt
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

PACKAGE = Path(kexecemu.__file__).parent
AREAS = {name: value for name, value in vars(virt).items() if isinstance(value, PhysRange)}
ADDRESSES = {virt.RAM_BASE, *(area.start for area in AREAS.values())} - {0}


def test_no_other_file_of_the_package_knows_an_address_of_the_board() -> None:
    known: dict[int, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Constant) and type(node.value) is int and node.value in ADDRESSES:
                known.setdefault(node.value, set()).add(path.relative_to(PACKAGE).as_posix())
    assert known == {address: {"machine/virt.py"} for address in ADDRESSES}


def test_no_two_areas_of_one_board_share_an_address() -> None:
    for gic in (2, 3):
        # What only the other version has.
        left_out = {2: ("GIC_ITS", "GIC_REDISTRIBUTORS"), 3: ("GIC_CPU_INTERFACE", "GIC_MSI_FRAME")}[gic]
        here = [area for name, area in AREAS.items() if name not in left_out]
        ordered = sorted([*here, PhysRange.of(virt.RAM_BASE, 1)])
        assert all(low.end <= high.start for low, high in itertools.pairwise(ordered))


@pytest.mark.parametrize("gic", [2, 3])
def test_the_devices_are_where_the_table_has_them(gic: int) -> None:
    with Board("4M", 2, gic=gic) as board:
        assert [bank.start for bank in board.ram.banks] == [virt.RAM_BASE]
        assert (board.uart.phys, board.rtc.phys, board.virtio.phys) == (virt.UART, virt.RTC, virt.VIRTIO)
        devices = [device.phys for device in board.cpus[1]._devices]
        interrupts = (
            [virt.GIC_DISTRIBUTOR, virt.GIC_CPU_INTERFACE]
            if gic == 2
            else [
                virt.GIC_DISTRIBUTOR,
                PhysRange.of(virt.GIC_REDISTRIBUTORS.start, 2 * virt.REDISTRIBUTOR_SIZE),
            ]
        )
        assert devices == [virt.UART, *interrupts, virt.VIRTIO, virt.RTC]


def test_as_many_cpus_have_redistributors_as_the_table_has_room_for() -> None:
    with Board("4M", virt.GICV3_CPUS, gic=3) as board:
        assert virt.GIC_REDISTRIBUTORS.covers(board.cpus[0]._devices[2].phys)
