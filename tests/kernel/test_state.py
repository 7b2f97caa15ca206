"""What a booted kernel says of itself and of its machine: its name, its crash region, why it starts no crash image."""

from __future__ import annotations

import pytest
from kernel_bench import IMAGE, INITRD, MIB, small
from test_purgatory_guard import DAMAGED, address_of

from kexecemu import Board, InputError, Kernel, KernelConfig
from kexecemu.crash.outcome import Outcome
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.base.config import Way
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.crash.execution import REFUSALS
from kexecemu.machine.devices.uart import Uart
from kexecemu.machine.ranges import PhysRange

BANK = PhysRange.of(1 << 30, 256 * MIB)


def named(**properties: bytes | None) -> bytes:
    """The board's tree, with these properties of its root set or, where they are None, deleted."""
    editor = FdtEditor(virt_device_tree([BANK], 1, 0x9000000), 8192)
    for name, value in properties.items():
        if value is None:
            editor.delprop(0, name)
        else:
            editor.setprop(0, name, value)
    editor.pack()
    return editor.to_bytes()


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        (b"One\0Two\0", b"three\0", "One"),
        (b"One\0", None, "One"),
        (None, b"acme,three\0acme,four\0", "acme,three"),
        (None, None, None),
    ],
)
def test_a_machine_has_the_first_name_that_its_tree_gives_it(
    model: bytes | None, compatible: bytes | None, name: str | None
) -> None:
    """of_flat_dt_get_machine_name(), when it boots and when it dies."""
    with small(dtb=named(model=model, compatible=compatible)) as kernel:
        kernel.crash()
        text = kernel.board.uart.text
        for words, end in (("Machine model: ", ""), ("Hardware name: ", " (DT)")):
            lines = [line.partition(words)[2].strip() for line in text.splitlines() if words in line]
            assert lines == ([] if name is None else [f"{name}{end}"])


@pytest.mark.parametrize(("cmdline", "found"), [("crashkernel=64M", 1), ("quiet", 0)])
def test_the_crash_region_is_an_event_with_its_place(cmdline: str, found: int) -> None:
    with Kernel.boot(Board("256M"), KernelConfig("6.4"), cmdline=cmdline) as kernel:
        events = kernel.board.timeline.of("crashkernel")
        area = kernel.crashk_res
        assert len(events) == found == (area is not None)
        for one in events:
            assert area is not None
            assert (one.facts["start_phys"], one.facts["end_phys"]) == (area.start, area.last)
            assert one.text == f"crashkernel reserved at {area} (64 MiB)"


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("why", [DAMAGED, "linux_banner", None])
def test_a_refusal_is_one_of_an_image_that_is_there_by_a_reason_of_the_kernel_s_own_and_said(
    why: str | None, says: bool, loaded: bool
) -> None:
    with small() as kernel:
        vmlinux = kernel.guest.vmlinux
        if loaded:
            kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        if why is not None:
            virt = vmlinux.virt(why) if why == "linux_banner" else address_of(vmlinux, why)
            kernel.guest.write("kdump_refusal", virt)
        if says:
            kernel.board.uart.transmit(b"[    1.000000] kexec: nothing, giving up kdump\r\n")
        assert kernel.refusal == (DAMAGED if why == DAMAGED and says and loaded else None)
        assert DAMAGED in REFUSALS


@pytest.mark.parametrize("way", list(Way))
def test_a_board_that_prints_nowhere_is_captured_all_the_same(way: Way) -> None:
    """The map that a purgatory is entered with has a console's page only where there is one."""
    with Board([BANK], uart=Uart()) as board:
        kernel = Kernel.boot(board, KernelConfig("6.4", check_way=way), cmdline="crashkernel=64M")
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        assert kernel.panic().outcome is Outcome.CAPTURED


def test_a_board_on_which_something_runs_or_ran_gets_no_other_kernel() -> None:
    words = "^a kernel runs on this board already: each needs a board of its own$"
    with Board([BANK], 2) as board:
        board.cpus[1].powered = True
        with pytest.raises(InputError, match=words):
            Kernel.boot(board, KernelConfig("6.4"))
    with Board([BANK]) as board:
        Kernel.boot(board, KernelConfig("6.4"), cmdline="crashkernel=64M").panic()
        for cpu in board.cpus:
            cpu.powered = False
        with pytest.raises(InputError, match=words):
            Kernel.boot(board, KernelConfig("6.4"))
    board = Board([BANK])
    board.close()
    with pytest.raises(InputError, match=r"^the board is closed: a kernel needs another one$"):
        Kernel.boot(board, KernelConfig("6.4"))
