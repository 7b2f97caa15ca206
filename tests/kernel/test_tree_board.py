"""The board that a device tree describes: its console, how PSCI is called, where its interrupt controller is."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_bench import GIB, IMAGE, INITRD, MIB

from kexecemu import Board, InputError, Kernel, KernelConfig, Outcome
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.boot.fill_memory import fill_memory
from kexecemu.kernel.boot.of_address import is_memory, reg_phys, with_parents
from kexecemu.kernel.boot.tree_board import (
    TreeConsole,
    console_of,
    gic_phys,
    psci_conduit,
    stdout_node,
    uart_of,
)
from kexecemu.kernel.boot.unmodelled import not_modelled
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.devices.uart import KINDS
from kexecemu.machine.ranges import PhysRange

CONSOLE = Path(__file__).parents[2] / "fixtures/capture/console.c"
RAM = PhysRange.of(0, 256 * MIB)  # as on a Raspberry Pi


def board(
    compatible: list[str],
    *,
    bus: NodeSpec | None = None,
    reg: bytes = cells(0x15040, 0x40),
    method: str = "smc",
    stdout: str | None = "serial0:115200n8",
    **uart: bytes,
) -> bytes:
    """A board with RAM at 0 and a console on a bus: its addresses from 0x10000 on are the CPU's from 0x7e200000 on."""
    node = {"compatible": compatible, "reg": reg, **uart}
    usual: NodeSpec = {
        "#address-cells": cells(1),
        "#size-cells": cells(1),
        "ranges": cells(0x10000, 0, 0x7E200000, 0x10000),
    }
    chosen: NodeSpec = {} if stdout is None else {"stdout-path": [stdout]}
    return build(
        {
            "#address-cells": cells(2),
            "#size-cells": cells(2),
            "chosen": chosen,
            "aliases": {"serial0": ["/soc/bus/serial@15040"]},
            "memory@0": {"device_type": ["memory"], "reg": cells(0, 0, 0, RAM.size)},
            "psci": {"compatible": ["arm,psci-1.0"], "method": [method]},
            "cpus": {
                "#address-cells": cells(1),
                "#size-cells": cells(0),
                "cpu@0": {"device_type": ["cpu"], "reg": cells(0), "enable-method": ["psci"]},
                "cpu@1": {"device_type": ["cpu"], "reg": cells(1), "enable-method": ["psci"]},
            },
            "soc": {
                "#address-cells": cells(2),
                "#size-cells": cells(2),
                "ranges": b"",
                "bus": {**(usual if bus is None else bus), "serial@15040": node},
            },
        }
    )


def crashed(dtb: bytes, era: str = "6.12", write: tuple[str, bytes] | None = None) -> tuple[str, Outcome]:
    """What was printed by both kernels, and what came of it."""
    tree = Fdt(dtb)
    uart = uart_of(console_of(tree), [RAM])
    with Board([RAM], 2, uart=uart, conduit=psci_conduit(tree) or "hvc") as machine:
        kernel = Kernel.boot(machine, KernelConfig(era), cmdline="crashkernel=64M", dtb=dtb)
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        end = kernel.panic()
        return end.console, end.outcome


FIRST = [(name, one) for name, how in KINDS.items() for one in how.compatible]


@pytest.mark.parametrize(("kind", "compatible"), [("pl011", "arm,pl011"), ("pl011", "arm,sbsa-uart"), *FIRST])
def test_a_clean_crash_is_captured_and_printed_on_any_console_behind_a_bus(
    kind: str, compatible: str
) -> None:
    """Its registers are at 0x7e205040, in the middle of a page but for a PL011."""
    at = 0x16000 if kind == "pl011" else 0x15040
    dtb = board([f"vendor,{kind}", compatible], reg=cells(at, 0x40))
    assert console_of(Fdt(dtb)) == TreeConsole(kind, 0x7E200000 + at - 0x10000)
    text, outcome = crashed(dtb)
    assert outcome is Outcome.CAPTURED
    assert "smp: Brought up 1 node, 2 CPUs" in text
    assert "capture: done\n" in text


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_the_registers_of_an_8250_are_as_far_apart_as_the_tree_says(shift: int) -> None:
    dtb = board(["snps,dw-apb-uart"], **{"reg-shift": cells(shift)})
    assert console_of(Fdt(dtb)) == TreeConsole("8250", 0x7E205040, shift)
    assert "capture: done\n" in crashed(dtb)[0]


def test_the_stub_and_the_board_know_the_same_consoles() -> None:
    text = CONSOLE.read_text()
    listed = {line.split('"')[1] for line in text.splitlines() if line.startswith('\t{ "')}
    assert listed == {
        "arm,pl011",
        "arm,sbsa-uart",
        *(one for how in KINDS.values() for one in how.compatible),
    }


@pytest.mark.parametrize("method", ["smc", "hvc"])
@pytest.mark.parametrize("era", ["6.1", "6.5", "6.6", "6.12", "6.18", "7.3"])
def test_cpus_come_and_go_by_the_instruction_that_the_tree_names(method: str, era: str) -> None:
    dtb = board(["ns16550a"], method=method)
    assert psci_conduit(Fdt(dtb)) == method
    text, outcome = crashed(dtb, era)
    assert "2 CPUs" in text and outcome is Outcome.CAPTURED


def test_a_console_that_is_not_known_is_said_and_prints_nothing() -> None:
    dtb = board(["acme,uart"])
    assert console_of(Fdt(dtb)) is None
    (said,) = not_modelled(KernelConfig("6.12"), "", Fdt(dtb))
    assert "no UART that is emulated (acme,uart)" in said
    text, outcome = crashed(dtb)
    assert outcome is Outcome.CAPTURED and "capture: " not in text
    assert "crashkernel reserved" in text  # what the first kernel logs is known all the same
    (said,) = not_modelled(KernelConfig("6.12"), "", Fdt(board(["ns16550a"], stdout=None)))
    assert "names none" in said


@pytest.mark.parametrize(
    ("bus", "phys"),
    [
        ({"ranges": b""}, 0x15040),
        ({"ranges": cells(0x10000, 0, 0x7E200000, 0x10000)}, 0x7E205040),
        ({"ranges": cells(0x15040, 1, 0, 0x40)}, 1 << 32),
        ({"ranges": cells(0x10000, 0, 0x1000000, 0x5040, 0x15000, 0, 0x2000000, 0x1000)}, 0x2000040),
        ({"ranges": cells(0x10000, 0, 0x7E200000, 0x5040)}, None),
        ({}, None),
        ({"ranges": b"", "#address-cells": cells(3)}, None),
    ],
)
def test_an_address_is_translated_by_each_bus_above_it(bus: NodeSpec, phys: int | None) -> None:
    bus = {"#address-cells": cells(1), "#size-cells": cells(1), **bus}
    tree = Fdt(board(["ns16550a"], bus=bus))
    node = stdout_node(tree)
    path = next(one for one in with_parents(tree) if one[-1] == node)
    found = reg_phys(tree, path)
    assert (None if found is None else found.start) == phys


def test_a_console_in_ram_is_none() -> None:
    bus = {"#address-cells": cells(1), "#size-cells": cells(1), "ranges": b""}
    tree = Fdt(board(["ns16550a"], bus=bus))
    uart = uart_of(console_of(tree), [RAM])
    assert uart is not None and not uart.phys.size and uart.kind == ""


def interrupt_controller(compatible: str, *regs: int) -> Fdt:
    node = {"compatible": [compatible], "reg": cells(*(cell for reg in regs for cell in (0, reg, 0, 0x2000)))}
    soc = {
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "ranges": cells(0, 0, 1, 0, 0, 0x10000000),
        "interrupt-controller@0": node,
    }
    return Fdt(build({"#address-cells": cells(2), "#size-cells": cells(2), "soc": soc}))


def test_the_interrupt_controller_is_where_its_bus_has_it() -> None:
    version, places = gic_phys(interrupt_controller("arm,gic-400", 0x1000, 0x4000))
    assert version == 2 and places == (
        PhysRange.of(0x100001000, 0x2000),
        PhysRange.of(0x100004000, 0x2000),
    )
    version, places = gic_phys(interrupt_controller("arm,gic-v3", 0x10000, 0x20000))
    assert version == 3 and places is not None and places[1].start == 0x100020000
    assert gic_phys(interrupt_controller("arm,gic-400", 0x1004, 0x2000)) == (2, None)
    assert gic_phys(interrupt_controller("arm,gic-v3", 0x10000)) == (3, None)
    assert gic_phys(interrupt_controller("acme,gic")) == (2, None)


# -- RAM that firmware fills in ------------------------------------------------------------------------------------


def without_memory(
    name: str = "memory@80000000", reg: bytes = cells(0, 0x80000000, 0, 0), **root: NodeSpec
) -> bytes:
    device = {"compatible": ["ns16550a"], "reg": cells(0, 0xFE000000, 0, 0x1000)}
    memory: NodeSpec = {"device_type": ["memory"], "reg": reg}
    return build(
        {
            "#address-cells": cells(2),
            "#size-cells": cells(2),
            **({name: memory} if name else {}),
            "serial@fe000000": device,
            **root,
        }
    )


@pytest.mark.parametrize(
    ("dtb", "size", "banks"),
    [
        (without_memory(), GIB, [(0x80000000, GIB)]),
        (without_memory("memory@0", b""), GIB, [(0, GIB)]),
        (without_memory("memory", b""), GIB, [(GIB, GIB)]),
        (without_memory(""), GIB, [(GIB, GIB)]),
        # Around the registers at 0xfe000000, and the 30 MiB above them are no RAM.
        (without_memory(), 3 * GIB, [(0x80000000, 0x7E000000), (0xFE200000, 0x42000000)]),
        (
            without_memory(
                "",
                **{
                    "reserved-memory": {
                        "#address-cells": cells(2),
                        "#size-cells": cells(2),
                        "ranges": b"",
                        "tz@100000": {"reg": cells(0, 0x100000, 0, 0x1000)},
                    }
                },
            ),
            GIB,
            [(0, GIB)],
        ),
    ],
)
def test_ram_is_filled_in_where_the_tree_leaves_room(
    dtb: bytes, size: int, banks: list[tuple[int, int]]
) -> None:
    found = memory_ranges(Fdt(fill_memory(dtb, size)))
    assert [(one.start, one.size) for one in found] == banks


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("#address-cells", cells(0), "other cells"),
        ("#address-cells", cells(0xFFFFFFFF), "other cells"),
        ("#size-cells", cells(0), "other cells"),
        ("#size-cells", cells(3), "other cells"),
    ],
)
def test_what_firmware_cannot_write_is_refused(name: str, value: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fill_memory(edited(without_memory("memory@0", b""), "/", name, value), GIB)
    far = without_memory("memory@800000000000", b"")
    with pytest.raises(InputError, match="is beyond"):
        fill_memory(far, GIB)


# -- what a breaker's trees showed ---------------------------------------------------------------------------------


def edited(dtb: bytes, path: str, name: str, value: bytes | None) -> bytes:
    editor = FdtEditor(dtb, len(dtb) + 256)
    node = editor.path_offset(path)
    assert node is not None
    if value is None:
        editor.delprop(node, name)
    else:
        editor.setprop(node, name, value)
    editor.pack()
    return editor.to_bytes()


def stdout_is(name: str, value: bytes) -> bytes:
    dtb = edited(board(["ns16550a"]), "/chosen", "stdout-path", None)
    return edited(dtb, "/chosen", name, value)


@pytest.mark.parametrize(
    "dtb",
    [
        stdout_is("linux,stdout-path", b"serial0\0"),
        stdout_is("stdout-path", b"/soc/bus/serial@15040:9600\0"),
        edited(stdout_is("stdout-path", b"serial0/serial@15040\0"), "/aliases", "serial0", b"/soc/bus\0"),
        board(
            ["ns16550a"],
            bus={"#address-cells": cells(1), "#size-cells": cells(0), "ranges": b""},
            reg=cells(0x7E205040),
        ),
        board(["arm,sbsa-uart"], reg=cells(0x16000, 0x40), stdout=None),
        board(["mediatek,mt6577-uart"], **{"reg-shift": cells(0)}),
        edited(board(["ns16550a"]), "/soc/bus/serial@15040", "status", b"okay\0"),
    ],
)
def test_board_and_stub_find_the_console_alike(dtb: bytes) -> None:
    assert console_of(Fdt(dtb)) is not None
    assert "capture: done\n" in crashed(dtb)[0]


def test_a_disabled_console_prints_nothing_and_a_disabled_psci_is_not_called() -> None:
    dtb = edited(board(["ns16550a"]), "/soc/bus/serial@15040", "status", b"disabled\0")
    assert console_of(Fdt(dtb)) is None
    text, outcome = crashed(dtb)
    assert "capture: " not in text and outcome is Outcome.CAPTURED
    dtb = edited(board(["ns16550a"], method="smc"), "/psci", "status", b"disabled\0")
    assert psci_conduit(Fdt(dtb)) is None
    assert crashed(dtb)[1] is Outcome.CAPTURED


@pytest.mark.parametrize(("at", "words"), [(0x4000000, "in RAM"), (0x87E024000000, "no CPU here reaches it")])
def test_where_nobody_reaches_the_console_nothing_is_stored(at: int, words: str) -> None:
    bus: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(1), "ranges": b""}
    for compatible in ("arm,pl011", "ns16550a"):
        dtb = board([compatible], bus=bus, reg=cells(at >> 32, at & 0xFFFFFFFF, 0x1000))
        uart = uart_of(console_of(Fdt(dtb)), [RAM])
        with Board([RAM], 2, uart=uart, conduit="smc") as machine:
            kernel = Kernel.boot(machine, KernelConfig("6.12"), cmdline="crashkernel=64M", dtb=dtb)
            assert any(words in one for one in kernel.not_modelled())
            assert kernel.console_phys == kernel.sink_phys == 0
            kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
            assert kernel.panic().outcome is Outcome.CAPTURED


def test_a_gic_400_has_its_cpu_interface_right_behind_a_page_of_distributor() -> None:
    node = {"compatible": ["arm,gic-400"], "reg": cells(0, 0x8000000, 0, 0x1000, 0, 0x8001000, 0, 0x2000)}
    tree = Fdt(build({"#address-cells": cells(2), "#size-cells": cells(2), "gic@8000000": node}))
    version, places = gic_phys(tree)
    assert places is not None and [one.size for one in places] == [0x1000, 0x2000]
    with Board("64M", 2, gic=version, gic_phys=places) as machine:
        assert machine.boot_cpu.pc == 0


def test_a_dump_of_many_banks_is_whole() -> None:
    banks = [PhysRange.of(0x40000000, 256 * MIB)]
    banks += [PhysRange.of(0x60000000 + number * 4 * MIB, 2 * MIB) for number in range(140)]
    tree = FdtEditor(virt_device_tree(banks, 1, 0x9000000), 64 << 10)
    with Board(banks, 1) as machine:
        kernel = Kernel.boot(machine, KernelConfig("6.12"), cmdline="crashkernel=64M", dtb=tree.to_bytes())
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        assert kernel.panic().outcome is Outcome.CAPTURED


@pytest.mark.parametrize("kind", [*KINDS, "pl011"])
def test_stores_for_whoever_has_no_driver_go_to_a_console_that_prints_them(kind: str) -> None:
    """The guest's own putchar stores at the start of the registers: of most kinds that is another register."""
    compatible = "arm,pl011" if kind == "pl011" else KINDS[kind].compatible[0]
    dtb = board([compatible], reg=cells(0x16000, 0x1000))
    uart = uart_of(console_of(Fdt(dtb)), [RAM])
    with Board([RAM], 1, uart=uart, conduit="smc") as machine:
        kernel = Kernel.boot(machine, KernelConfig("6.12"), cmdline="", dtb=dtb)
        prints = kind == "pl011" or KINDS[kind].data == 0
        assert kernel.sink_phys == (0x7E206000 if prints else 0)
        assert kernel.console_phys == (0x7E206000 if kind == "pl011" else 0)


@pytest.mark.parametrize(
    ("name", "kind", "memory"),
    [
        ("memory", None, True),
        ("memory@80000000", None, True),
        ("memory-controller@1000", None, False),
        ("ddr@80000000", b"memory\0", True),
        ("memory@0", b"memory-controller\0", False),
        ("ddr@memory", None, False),
    ],
)
def test_memory_is_what_is_called_so_or_of_that_type(name: str, kind: bytes | None, memory: bool) -> None:
    tree = Fdt(build({name: {} if kind is None else {"device_type": kind}}))
    assert is_memory(tree, tree.path_offset(f"/{name}") or 0) is memory


def on_buses(size_cells: int, **root: NodeSpec) -> bytes:
    """A board whose RAM firmware fills in, from 0 on."""
    cell_counts = {"#address-cells": cells(2), "#size-cells": cells(size_cells)}
    return build({**cell_counts, "memory@0": {"device_type": ["memory"]}, **root})


def test_ram_is_not_put_where_a_bus_has_room_for_devices() -> None:
    """As on a Raspberry Pi 4, whose peripherals have 64 MiB below 4 GiB, and on a board with PCI there."""
    soc: NodeSpec = {
        "#address-cells": cells(1),
        "#size-cells": cells(1),
        "ranges": cells(0x7E000000, 0, 0xFE000000, 0x2000000, 0x7C000000, 0, 0xFC000000, 0x2000000),
    }
    low, *high = memory_ranges(Fdt(fill_memory(on_buses(1, soc=soc), 8 * GIB)))
    assert (low.start, sum(one.size for one in [low, *high])) == (0, 8 * GIB)
    assert low.end == 0xFC000000 and high[0].start == 4 * GIB
    pci: NodeSpec = {
        "device_type": ["pci"],
        "#address-cells": cells(3),
        "#size-cells": cells(2),
        "ranges": cells(0x2000000, 0, 0xF0000000, 0, 0xF0000000, 0, 0x10000000),
    }
    assert memory_ranges(Fdt(fill_memory(on_buses(2, pcie=pci), 4 * GIB)))[0].end == 0xF0000000
    # All there is, RAM and devices, is no room for devices; nor is what RAM begins in.
    for start, size in ((0, 0xFFFFFFFF), (0, 0x20000000)):
        wide: NodeSpec = {**soc, "ranges": cells(0, 0, start, size)}
        (bank,) = memory_ranges(Fdt(fill_memory(on_buses(1, soc=wide), GIB)))
        assert (bank.start, bank.size) == (0, GIB)


def test_a_bank_is_no_larger_than_a_cell_can_say() -> None:
    tree = Fdt(fill_memory(on_buses(1), 9 * GIB))
    sizes = (tree.get_cells(tree.path_offset("/memory@0") or 0, "reg") or [])[2::3]
    assert sum(sizes) == 9 * GIB and max(sizes) == 2 * GIB
