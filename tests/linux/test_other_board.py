"""A real Linux's disk and devices on boards that are none of QEMU's; tests/real runs Debian's kernel on a dozen."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from kexecemu import Board, InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.boot.of_address import device_areas, with_parents
from kexecemu.kernel.boot.tree_board import timer_ppis
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.memory.memblock import merge
from kexecemu.linux.other_board import (
    board_parameters,
    check_controller,
    disk_place,
    other_devices,
    with_disk,
)
from kexecemu.machine import virt
from kexecemu.machine.devices.uart import KINDS, PrintingUart, Uart
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.options import Setup
from kexecemu.scenario.setup import boot

RAM = [PhysRange.of(0x80000000, 1 << 30)]


def board(cell_count: int = 3, address: int = 1, **more: NodeSpec) -> Fdt:
    """A board with a GIC and whatever else, at its root."""
    root: NodeSpec = {"#address-cells": cells(address), "#size-cells": cells(1)}
    gic: NodeSpec = {
        "compatible": ["arm,gic-v3"],
        "reg": reg(0x1000000, 0x10000, address) + reg(0x1100000, 0x100000, address),
        "#interrupt-cells": cells(cell_count),
        "interrupt-controller": b"",
        "phandle": 9,
    }
    return Fdt(build({**root, "intc@1000000": gic, **more}))


def reg(start: int, size: int, address: int = 1) -> bytes:
    return start.to_bytes(4 * address, "big") + cells(size)


def node_of(dtb: bytes) -> tuple[Fdt, int, PhysRange]:
    tree = Fdt(dtb)
    path = next(one for one in with_parents(tree) if tree.name(one[-1]).startswith("virtio_mmio@"))
    (area,) = device_areas(tree, path)
    return tree, path[-1], area


@pytest.mark.parametrize("address", [1, 2])
@pytest.mark.parametrize("width", [3, 4])
def test_the_disk_is_a_device_of_the_tree_with_an_interrupt_of_its_own(width: int, address: int) -> None:
    tree = board(width, address)
    place = disk_place(tree, RAM)
    assert (place.phys, place.spi, place.in_tree) == (virt.VIRTIO, 47, False)
    found, node, area = node_of(with_disk(tree.data, place))
    assert area == virt.virtio_slot(31)
    assert found.get_strings(node, "compatible") == ["virtio,mmio"]
    assert found.get_u32(node, "interrupt-parent") == 9
    assert found.get_cells(node, "interrupts") == [0, 47, 1, 0][:width]


@pytest.mark.parametrize(
    ("what", "start"),
    [
        (PhysRange.of(0xA000000, 0x1000), 0xA010000),
        (PhysRange.of(0xA003FFF, 1), 0xA010000),
        (PhysRange.of(0x9000000, 0x1000001), 0xA010000),
        (PhysRange.of(0xA004000, 0x10000), 0xA000000),
        (PhysRange(0x2000000, 0xFFFF0000), 0xFFFF0000),
        (PhysRange(0xA000000, 0xFFFFFFFF), 0x1010000),
    ],
)
def test_it_is_where_neither_a_device_nor_ram_is(what: PhysRange, start: int) -> None:
    tree = board(uart={"reg": reg(what.start, what.size)})
    assert disk_place(tree, RAM).phys == PhysRange.of(start, virt.VIRTIO.size)
    assert disk_place(board(), [what]).phys == PhysRange.of(start, virt.VIRTIO.size)


def test_where_ram_fills_4_gib_it_is_above_if_the_root_has_cells_for_that() -> None:
    assert disk_place(board(address=2), [PhysRange(0, 5 << 30)]).phys.start == 5 << 30


def test_a_tree_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="no place for the disk"):
        disk_place(board(), [PhysRange(0, 1 << 32)])


@pytest.mark.parametrize("name", ["interrupts", "interrupts-extended"])
def test_its_interrupt_is_one_that_no_device_names(name: str) -> None:
    tree = board(uart={name: cells(0, 47, 4, 0, 45, 4)}, other={name: cells(9, 0, 46, 4)}, odd={name: b"abc"})
    place = disk_place(tree, RAM)
    assert place.spi == 44
    found, node, area = node_of(with_disk(tree.data, place))
    assert (found.get_cells(node, "interrupts"), area) == ([0, 44, 1], virt.virtio_slot(31))


def spis(first: int, last: int) -> dict[str, NodeSpec]:
    """Devices that have these, last included."""
    return {f"device{spi}": {"interrupts": cells(0, spi, 4)} for spi in range(first, last + 1)}


def test_where_the_transports_interrupts_are_all_taken_it_has_another() -> None:
    """As on Google's gs101 and Renesas' RZ/V2H."""
    assert disk_place(board(**spis(16, 60)), RAM).spi == 61
    # A number that is 61 may be one of something else, but 62 is of nothing.
    assert disk_place(board(**spis(16, 60), odd={"interrupts": cells(1, 61, 4)}), RAM).spi == 62
    odd = {f"odd{cell}": {"interrupts": cells(1, cell, 4)} for cell in range(61, 256)}
    assert disk_place(board(**spis(16, 60), **odd), RAM).spi == 61
    with pytest.raises(InputError, match="no interrupt for the disk"):
        disk_place(board(**spis(16, 255)), RAM)


def test_qemus_own_tree_is_left_as_it_is() -> None:
    dtb = virt_device_tree(RAM, 1, virt.UART.start, virtio_slots=range(32))
    place = disk_place(Fdt(dtb), RAM)
    assert (place.phys, place.spi, place.in_tree) == (virt.VIRTIO, 47, True)
    assert with_disk(dtb, place) == dtb
    assert not disk_place(Fdt(virt_device_tree(RAM, 1, virt.UART.start, virtio_slots=[3])), RAM).in_tree


def test_without_an_interrupt_controller_that_is_emulated_there_is_no_disk() -> None:
    root: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(1)}
    tree = Fdt(build({**root, "intc": {"compatible": ["brcm,bcm2836-l1-intc"], "phandle": 1}}))
    with pytest.raises(InputError, match="no interrupt controller that is emulated"):
        with_disk(tree.data, disk_place(tree, RAM))


def test_the_board_has_zeros_where_its_devices_are_and_its_own_in_their_midst() -> None:
    """The controller, the console and the disk are cut out of pages that merge with others'."""
    tree = board(
        syscon={"reg": reg(0xFFF000, 0x300000)},  # all around the interrupt controller
        timer={
            "compatible": ["arm,armv7-timer-mem"],
            "reg": reg(0x2000000, 0x1000),
            "frame": {"reg": reg(0x2001000, 0x1000), "frame-number": 0},
        },
    )
    absent = other_devices(tree)
    assert [one.phys for one in absent] == [PhysRange(0xFFF000, 0x12FF000), PhysRange.of(0x2000000, 0x1000)]
    gic = PhysRange.of(0x1000000, 0x10000), PhysRange.of(0x1100000, 0x100000)
    with Board(RAM, 2, gic=3, gic_phys=gic, absent=absent) as made:
        regions = sorted((start, last + 1) for start, last, _ in made.boot_cpu.uc.mem_regions())
    areas = [*RAM, *gic, *(one.phys for one in absent), virt.VIRTIO, virt.UART, virt.RTC]
    assert all(this[1] <= following[0] for this, following in pairwise(regions))
    assert sum(end - start for start, end in regions) == sum(one.size for one in merge(areas))


def test_a_memory_mapped_timer_says_that_it_may_be_used() -> None:
    root: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(1), "ranges": b""}
    timer: NodeSpec = {
        **root,
        "compatible": ["arm,armv7-timer-mem"],
        "reg": reg(0x2000000, 0x1000),
        "frame@2001000": {"reg": reg(0x2001000, 0x1000), "frame-number": 0},
    }
    device = other_devices(board(timer=timer))[-1]
    assert [device.read(0x40 + 4 * frame, 4) for frame in range(9)] == [0x3F] * 8 + [0]
    assert (device.read(0x1010, 4), device.read(0x10, 4)) == (62_500_000, 0)


@pytest.mark.parametrize(
    ("uart", "words"),
    [
        (PrintingUart("8250", 0xFE215040), "earlycon=uart8250,mmio,0xfe215040 cpuidle.off=1"),
        (PrintingUart("8250", 0x4400, 1), "earlycon=uart8250,mmio16,0x4400 cpuidle.off=1"),
        (PrintingUart("8250-32", 0x11002000), "earlycon=uart8250,mmio32,0x11002000 cpuidle.off=1"),
        (PrintingUart("8250", 0x4400, 3), "earlycon cpuidle.off=1"),
        (PrintingUart("geni", 0x4400), "earlycon cpuidle.off=1"),
        (Uart(), "earlycon cpuidle.off=1"),
    ],
)
def test_the_console_prints_from_the_start_whatever_drivers_there_are(uart: Uart, words: str) -> None:
    assert board_parameters(uart) == words


def test_geni_prints_as_many_characters_of_a_word_as_it_was_told() -> None:
    """As qcom_geni_serial_console_write() does it, and as one does that writes a byte at a time."""
    uart = PrintingUart("geni", 0x1000)
    length, data = KINDS["geni"].length, KINDS["geni"].data
    assert length is not None and uart.read(0x68, 4) >> 8 == 2
    uart.write(length, 4, 6)
    for word in (b"hell", b"o\n\0\0"):
        uart.write(data, 4, int.from_bytes(word, "little"))
    for byte in b"ab":
        uart.write(data, 1, byte)
    uart.write(data, 4, ord("c"))
    assert uart.output == b"hello\nabc"


def timer(kind: str = "arm,armv8-timer", width: int = 3, **more: bytes | list[str]) -> Fdt:
    return board(width, timer={"compatible": [kind], **more})


PPIS = [(1, 13), (1, 14), (1, 11), (1, 10)]


def interrupts(*numbers: tuple[int, int], width: int = 3) -> bytes:
    return cells(*(cell for kind, number in numbers for cell in (kind, number, 8, 0)[:width]))


def test_the_timers_interrupts_are_those_that_the_tree_names() -> None:
    assert timer_ppis(timer(interrupts=interrupts(*PPIS))) == (30, 27)
    assert timer_ppis(timer("arm,armv7-timer", 4, interrupts=interrupts(*PPIS, width=4))) == (30, 27)
    qualcomm = [(1, 1), (1, 2), (1, 3), (1, 0)]
    assert timer_ppis(timer(interrupts=interrupts(*qualcomm))) == (18, 19)
    names = {"interrupt-names": ["phys", "virt", "hyp-phys"]}
    assert timer_ppis(timer(interrupts=interrupts((1, 2), (1, 3), (1, 0)), **names)) == (18, 19)


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [(1, 13), (1, 14)],
        [(0, 13), (0, 14), (0, 11)],  # no PPIs
        [(1, 13), (1, 16), (1, 11)],
        [(1, 13), (1, 14), (1, 14)],
    ],
)
def test_a_tree_that_names_them_otherwise_has_those_of_qemu(numbers: list[tuple[int, int]]) -> None:
    assert timer_ppis(timer(interrupts=interrupts(*numbers))) is None


def test_no_timer_no_controller_or_no_cells_are_none() -> None:
    assert timer_ppis(board()) is None
    assert timer_ppis(timer(interrupts=b"abc")) is None
    root: NodeSpec = {"timer": {"compatible": ["arm,armv8-timer"], "interrupts": interrupts(*PPIS)}}
    assert timer_ppis(Fdt(build(root))) is None


@pytest.mark.parametrize(
    "change", [("status", b"disabled\0"), ("interrupts", cells(0, 63, 1)), ("compatible", b"x\0")]
)
def test_a_transport_of_qemus_that_is_not_as_qemus_is_left_alone(change: tuple[str, bytes]) -> None:
    dtb = virt_device_tree(RAM, 1, virt.UART.start, virtio_slots=(31,))
    editor = FdtEditor(dtb, len(dtb) + 256)
    node = editor.path_offset(f"/virtio_mmio@{virt.virtio_slot(31).start:x}")
    assert node is not None
    editor.setprop(node, *change)
    place = disk_place(Fdt(bytes(editor.data)), RAM)
    assert not place.in_tree and not place.phys.overlaps(virt.VIRTIO)


@pytest.mark.parametrize(
    ("start", "good"), [(0x8000000, True), (0x80000000, False), (0x9000000, False), (1 << 44, False)]
)
def test_an_interrupt_controller_where_something_else_is_is_refused(start: int, good: bool) -> None:
    places, taken = [PhysRange.of(start, 0x10000)], [*RAM, virt.UART, PhysRange(0, 0)]
    if good:
        check_controller(places, taken)
    else:
        with pytest.raises(
            InputError, match=r"the interrupt controller at .* is in RAM, on a device or out of reach"
        ):
            check_controller(places, taken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gic": 2}, "it has a GICv3, not a GICv2"),
        ({"cpus": 3}, "it has 2 CPUs, not 3"),
        ({"ram": "1G"}, "not both"),
    ],
)
def test_what_contradicts_the_tree_is_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    dtb = tmp_path / "board.dtb"
    dtb.write_bytes(virt_device_tree(RAM, 2, virt.UART.start, gic=3))
    setup = Setup(dtb=dtb, cmdline="crashkernel=64M", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        boot(setup)
