"""All device trees that Debian's kernels bring: each is a board on which a crash kernel is loaded, or told why not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kexecemu import Fault, InputError, Kernel, KexecError
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.boot.tree_board import gic_node
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import DUMP_SLOT, LinuxEnd
from kexecemu.linux.other_board import disk_place, other_devices, with_disk
from kexecemu.scenario.options import Setup
from kexecemu.scenario.runner import crash
from kexecemu.scenario.setup import NotModelled, prepare

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::kexecemu.scenario.setup.NotModelled")]

RELEASES = {"trees": "6.12", "trees-backports": "7.3"}
PARTS = 8
SEED = 16
# In a CI run every third tree of each release, and half of the boards; KEXECEMU_TREES=all is all of them.
ALL = os.environ.get("KEXECEMU_TREES") == "all"
STEP = 1 if ALL else 3


def trees_of(fetched: Callable[[str], Path], target: str) -> list[Path]:
    return sorted(fetched(target).glob("**/*.dtb"))


@contextmanager
def loaded(path: Path, era: str, **options: object) -> Iterator[tuple[Kernel, Kimage]]:
    """A crash kernel loaded on the board of a tree, with 2 GiB where firmware is to fill RAM in."""
    ram = None if memory_ranges(Fdt(path.read_bytes())) else "2G"
    setup = Setup(dtb=path, ram=ram, era=era, **{"cmdline": "crashkernel=64M", **options})  # type: ignore[arg-type]
    kernel, image = prepare(setup)
    with kernel:
        yield kernel, image


@dataclass
class Found:
    """What came of many trees."""

    count: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def look(self, path: Path, kernel: Kernel, image: Kimage) -> None:
        """Where segments and what the dump is to hold lie; and that all CPUs have come up."""
        if "failed to boot" in kernel.board.uart.text:
            self.wrong.append(f"{path.name}: CPUs failed to boot")
        banks, nomap = kernel.board.ram.banks, kernel.arch.memblock.nomap
        for segment in image.segments:
            if not any(bank.covers(segment.area) for bank in banks):
                self.wrong.append(f"{path.name}: {segment.name} {segment.area} outside of RAM")
            if any(area.overlaps(segment.area) for area in nomap):
                self.wrong.append(f"{path.name}: {segment.name} {segment.area} in no-map memory")
        header = image.segment("elfcorehdr")
        assert header is not None
        for one in parse_core_header(bytes(header.buf)).program_headers:
            end = one.paddr + one.memsz
            if one.type == PT_LOAD and any(one.paddr < hole.end and hole.start < end for hole in nomap):
                self.wrong.append(f"{path.name}: PT_LOAD {one.paddr:#x}-{end - 1:#x} holds no-map memory")
            if one.type == PT_LOAD and not any(bank.start <= one.paddr and end <= bank.end for bank in banks):
                self.wrong.append(f"{path.name}: PT_LOAD {one.paddr:#x}-{end - 1:#x} outside of RAM")


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("target", RELEASES)
def test_a_crash_kernel_is_loaded_on_each_board_into_its_ram(
    fetched: Callable[[str], Path], target: str, part: int
) -> None:
    found, call = Found(), "kexec_load" if part % 2 else "kexec_file_load"
    for path in trees_of(fetched, target)[part :: PARTS * STEP]:
        found.count += 1
        try:
            # In blocks: a linear map of pages takes as long as all the rest.
            cmdline = "crashkernel=64M rodata=off"
            with loaded(path, RELEASES[target], syscall=call, cmdline=cmdline) as (kernel, image):
                found.look(path, kernel, image)
        except (InputError, KexecError) as error:
            found.refused[path.name] = str(error)
    assert found.count > 100 // STEP
    assert found.wrong == []
    assert len(found.refused) <= 0.02 * found.count + (STEP > 1), found.refused


@pytest.mark.parametrize("part", range(5))
def test_a_clean_crash_is_captured_and_a_stamped_initrd_detected(
    fetched: Callable[[str], Path], part: int
) -> None:
    paths = trees_of(fetched, "trees")
    silent = []
    for path in random.Random(SEED).sample(paths, 50)[part::5]:
        with loaded(path, "6.12") as (kernel, _):
            end = kernel.panic()
            assert (path.name, end.outcome) == (path.name, "captured")
            if kernel.board.uart.kind and "capture: done" not in end.console:
                silent.append(path.name)
        with loaded(path, "6.12") as (kernel, _):
            kernel.inject(Fault("initrd+0x100", flip=0xFF))
            assert (path.name, kernel.panic().outcome) == (path.name, "detected")
    assert silent == []


def test_what_is_not_modelled_of_a_board_is_a_warning(fetched: Callable[[str], Path]) -> None:
    """A console that is a pair of mailboxes."""
    path = next(one for one in trees_of(fetched, "trees-backports") if one.name == "tegra194-p2972-0000.dtb")
    with pytest.warns(NotModelled, match=r"no console: .* \(nvidia,tegra194-tcu\)"), loaded(path, "7.3"):
        pass


# A board for each thing that they differ in, for a real Linux: first those that differ most.
BOARDS = {
    "bcm2711-rpi-4-b": "RAM at 0, spin tables, no PSCI to switch it off",
    "imx8mm-verdin-wifi-mallow": "no driver for the console, and no early one",
    "sc7180-trogdor-pompom-r3": "GENI, interrupts of the timers that are not QEMU's, a memory-mapped timer",
    "mt8192-evb": "an 8250 whose registers are words apart; a GICv3 where QEMU's PCIe is",
    "zynqmp-zcu102-rev1.0": "Cadence",
    "cn9132-clearfog": "frames of MSIs in the midst of the interrupt controller",
    "exynos7-espresso": "no PSCI, no driver for the console",
    "hi3660-hikey960": "a PL011 whose clocks no driver is for",
    "imx8qxp-colibri-iris": "LPUART",
    "meson-sm1-s905d3-libretech-cc": "no early console, a GIC-400",
}


@pytest.mark.parametrize("name", list(BOARDS)[: None if ALL else 5])
def test_a_real_linux_takes_the_dump_of_a_board(fetched: Callable[[str], Path], name: str) -> None:
    path = next(one for one in trees_of(fetched, "trees") if one.stem == name)
    setup = Setup(
        dtb=path,
        ram=None if memory_ranges(Fdt(path.read_bytes())) else "1G",
        era="6.12",
        cmdline="crashkernel=256M",
        kernel=fetched("kernel-trixie"),
        capture="linux",
    )
    result = crash(name, setup, [])
    with result.kernel:
        capture = result.end.capture
        assert capture is not None and capture.linux is not None
        linux = capture.linux
        assert (result.end.outcome, linux.end, linux.true_dump) == ("captured", LinuxEnd.DONE, True), linux
        assert linux.release.startswith("6.12.")


@pytest.mark.parametrize("target", RELEASES)
def test_a_disk_for_its_dump_lies_where_nothing_of_the_board_is(
    fetched: Callable[[str], Path], target: str
) -> None:
    for path in trees_of(fetched, target)[::STEP]:
        dtb = path.read_bytes()
        tree = Fdt(dtb)
        banks = memory_ranges(tree)
        place = disk_place(tree, banks)
        assert not any(
            place.phys.overlaps(one) for one in [*banks, *(one.phys for one in other_devices(tree))]
        )
        if gic_node(tree) is not None:
            added = Fdt(with_disk(dtb, place))
            assert added.path_offset(f"/virtio_mmio@{place.phys.start + DUMP_SLOT * 0x200:x}"), path.name
