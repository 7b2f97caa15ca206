"""Boards of every shape: little RAM and much, several banks, high memory, granules, CPUs; from boot to dump."""

from __future__ import annotations

import pytest
from elftools.elf.elffile import ELFFile
from kernel_bench import GIB, IMAGE, INITRD, MIB, boot

from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError, MachineError
from kexecemu.formats.elf import PT_NOTE
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.formats.fdt import Fdt, FdtEditor, cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.cpus import cpu_affinities
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.boot.firmware import choose_places, initrd_range, set_bootargs
from kexecemu.kernel.boot.tree_board import TreeConsole, console_of, gic_phys
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.load.kexec_file import load
from kexecemu.kernel.procfs import sysfs
from kexecemu.machine.board import Board
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

UART = 0x9000000
BANK = PhysRange.of(GIB, 256 * MIB)


def crash(
    ram: str | list[PhysRange],
    cmdline: str,
    *,
    era: str = "6.4",
    cpus: int = 1,
    options: dict[str, str] | None = None,
) -> tuple[Kernel, End]:
    kernel = Kernel.boot(Board(ram, cpus), KernelConfig(era, options=options or {}), cmdline=cmdline)
    assert kernel.kexec_file_load(IMAGE, INITRD, "panic=5") is not None
    return kernel, kernel.panic()


@pytest.mark.parametrize("granule", ["ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES"])
@pytest.mark.parametrize("era", ["6.1", "6.4", "6.12"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_kernel_of_any_granule_boots_loads_and_crashes(granule: str, era: str, cpus: int) -> None:
    kernel, end = crash("256M", "crashkernel=64M", era=era, cpus=cpus, options={granule: "y"})
    assert end.outcome is Outcome.CAPTURED
    page = kernel.config.page_size
    assert kernel.image is not None
    assert all(one.mem % page == 0 and one.memsz % page == 0 for one in kernel.image.segments)
    assert kernel.tables.fmt.granule.size == page


@pytest.mark.parametrize(("granule", "size"), [("4K", 0x1024), ("16K", 0x4024), ("64K", 0x10024)])
def test_the_note_of_vmcoreinfo_has_room_for_a_page(granule: str, size: int) -> None:
    """VMCOREINFO_BYTES is PAGE_SIZE: seen as PT_NOTE of kernels with 4 and 64 KiB."""
    config = KernelConfig(options={f"ARM64_{granule}_PAGES": "y"})
    kernel = Kernel.boot(Board("2G"), config, cmdline="crashkernel=512M")
    header = kernel.kexec_file_load(IMAGE, INITRD, "").segment("elfcorehdr")
    assert header is not None
    note = [one for one in parse_core_header(bytes(header.buf)).program_headers if one.type == PT_NOTE][-1]
    assert note.memsz == size
    assert sysfs(kernel)["/sys/kernel/vmcoreinfo"] == f"{note.paddr:#018x} {size:x}\n"
    (found,) = iterate_notes(kernel.ram.read(note.paddr, size))
    assert (found.name, found.desc) == ("VMCOREINFO", kernel.vmcoreinfo())


@pytest.mark.parametrize("granule", ["ARM64_16K_PAGES", "ARM64_64K_PAGES"])
def test_protection_works_with_larger_pages(granule: str) -> None:
    kernel = Kernel.boot(
        Board("256M"), KernelConfig("6.1", options={granule: "y"}), cmdline="crashkernel=64M"
    )
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    injection = kernel.stray_write("initrd+0x1000", b"\xa5")
    assert injection.exception is not None and injection.exception.status == "translation fault level 3"
    assert kernel.panic().outcome is Outcome.PREVENTED


@pytest.mark.parametrize("ram", ["64M", "96M", "200M", "1G", "3G"])
def test_ram_of_any_size_will_do(ram: str) -> None:
    kernel, end = crash(ram, "crashkernel=16M")
    assert end.outcome is Outcome.CAPTURED
    assert kernel.crashk_res is not None and kernel.crashk_res.end <= kernel.ram.banks[0].end


def test_ram_across_4_gib_keeps_the_crash_region_below_it_and_dumps_what_is_above() -> None:
    kernel, end = crash("4G", "crashkernel=64M rodata=on")
    assert end.outcome is Outcome.CAPTURED
    assert kernel.crashk_res is not None and kernel.crashk_res.end <= 1 << 32
    high, end = crash("4G", "crashkernel=64M,high crashkernel=32M,low rodata=on")
    assert end.outcome is Outcome.CAPTURED
    assert high.crashk_res is not None and high.crashk_res.start >= 1 << 32
    assert high.crashk_low_res is not None and high.crashk_low_res.end <= 1 << 32


def test_several_banks_are_all_in_the_dump_but_for_the_crash_region(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    banks = [BANK, PhysRange.of(0x60000000, 128 * MIB), PhysRange.of(8 * GIB, 64 * MIB)]
    kernel, end = crash(banks, "crashkernel=64M")
    assert end.outcome is Outcome.CAPTURED and end.vmcore is not None
    marks = [(0x48100000, b"first bank"), (0x60100000, b"second bank"), (8 * GIB + 0x1000, b"third bank")]
    for phys, mark in marks:
        kernel.ram.write(phys, mark)
    path = tmp_path_factory.mktemp("dump") / "vmcore"
    end.vmcore.write(path)
    with path.open("rb") as file:
        core = ELFFile(file)
        loads = list(core.iter_segments("PT_LOAD"))
        for phys, mark in marks:
            inside = next(one for one in loads if one["p_paddr"] <= phys < one["p_paddr"] + one["p_filesz"])
            file.seek(inside["p_offset"] + phys - inside["p_paddr"])
            assert file.read(len(mark)) == mark
        assert kernel.crashk_res is not None
        for one in loads:
            area = PhysRange.of(one["p_paddr"], one["p_memsz"])
            assert not area.overlaps(kernel.crashk_res)
        # The first is the kernel's own mapping, the others all RAM once.
        assert sum(one["p_memsz"] for one in loads[1:]) == 448 * MIB - kernel.crashk_res.size


def test_ram_that_does_not_start_at_1_gib_is_mapped_from_where_it_starts() -> None:
    kernel, end = crash([PhysRange.of(0x8_8000_0000, 256 * MIB)], "crashkernel=64M")
    assert end.outcome is Outcome.CAPTURED
    assert kernel.space.memstart == 0x8_8000_0000
    assert kernel.space.linear_virt(0x8_8000_0000) == 0xFFFF000000000000


@pytest.mark.parametrize("ram", ["1M", "2M", "4M"])
def test_too_little_ram_is_refused_in_one_line(ram: str) -> None:
    with pytest.raises(InputError) as refusal:
        boot(ram=ram, cmdline="")
    assert "too small" in str(refusal.value) and "\n" not in str(refusal.value)


def test_more_cpus_than_the_guest_knows_are_refused() -> None:
    with pytest.raises(InputError, match="at most 64 CPUs, not 65"):
        boot(ram="64M", cpus=65)


def test_a_kernel_of_64_cpus_brings_them_all_up_and_down() -> None:
    _, end = crash("256M", "crashkernel=64M", cpus=64)
    assert end.outcome is Outcome.CAPTURED
    assert "smp: Brought up 1 node, 64 CPUs" in end.console
    assert len(end.timeline.of("crash_save_cpu")) == 64


# -- the boot loader -------------------------------------------------------------------------------------------


def tree_with(**chosen: bytes) -> Fdt:
    editor = FdtEditor(virt_device_tree([BANK], 2, UART), 8192)
    node = editor.path_offset("/chosen")
    assert node is not None
    for name, value in chosen.items():
        editor.setprop(node, name.replace("_", "-").replace("linux-", "linux,", 1), value)
    editor.pack()
    return Fdt(bytes(editor.data))


def test_kernel_and_device_tree_lie_where_qemu_puts_them() -> None:
    """With an initrd the tree is behind it, at the next 2 MiB: 0x48800000 on the recorded machine."""
    ram = Ram([PhysRange.of(GIB, 768 * MIB)])
    places = choose_places(ram, 0x550000, tree_with())
    assert (places.kernel_phys, places.dtb_phys) == (0x40200000, 0x48000000)
    for end, dtb_phys in ((0x48701B2C, 0x48800000), (0x48601B2C, 0x48800000), (0x4B287E10, 0x4B400000)):
        initrd = tree_with(linux_initrd_start=cells(0x48000000), linux_initrd_end=cells(end))
        assert choose_places(ram, 0x550000, initrd).dtb_phys == dtb_phys
    small = Ram([PhysRange.of(GIB, 64 * MIB)])
    assert choose_places(small, 0x550000, tree_with()).dtb_phys == GIB + 32 * MIB


@pytest.mark.parametrize(
    ("initrd", "dtb_phys"), [((0x4FF00000, 0x50000000), 0x40000000), ((0x30000000, 0x30001000), 0x48000000)]
)
def test_a_tree_goes_where_there_is_room_for_it(initrd: tuple[int, int], dtb_phys: int) -> None:
    """An initrd at the end of RAM leaves it no room behind; one outside of RAM is no matter."""
    tree = tree_with(linux_initrd_start=cells(initrd[0]), linux_initrd_end=cells(initrd[1]))
    places = choose_places(Ram([BANK]), 0x550000, tree)
    assert (places.kernel_phys, places.dtb_phys) == (0x40200000, dtb_phys)


@pytest.mark.parametrize(
    ("initrd", "said"),
    [
        ((0x30000000, 0x30100000), True),
        ((0x3FFFF000, 0x40001000), True),
        ((0x40200000, 0x40300000), False),
        ((0x48000000, 0x48100000), False),
    ],
)
def test_an_initrd_below_ram_is_told_of_and_left_out(initrd: tuple[int, int], said: bool) -> None:
    """As Debian's 6.1 and 6.12 have it in QEMU, down to the one that lies on the kernel."""
    tree = tree_with(linux_initrd_start=cells(initrd[0]), linux_initrd_end=cells(initrd[1]))
    with boot("6.12", "crashkernel=64M", ram=[BANK], dtb=tree.data) as kernel:
        text = kernel.board.uart.text
        assert ("initrd not fully accessible via the linear mapping -- please check" in text) is said
        area = PhysRange(*initrd)
        assert any(one.covers(area) for one in kernel.arch.memblock.reserved) is not said
        assert kernel.crashk_res is not None
        assert kernel.arch.memblock.memory == [BANK]


@pytest.mark.parametrize(
    "initrd", [(0x50000000, 0x50100000), (0x4FFFF000, 0x50001000), (0xF0000000, 0xF0100000)]
)
def test_an_initrd_above_ram_is_taken_for_ram_and_nothing_boots(initrd: tuple[int, int]) -> None:
    """Debian's 6.1 and 6.12 print nothing at all."""
    tree = tree_with(linux_initrd_start=cells(initrd[0]), linux_initrd_end=cells(initrd[1]))
    with pytest.raises(InputError, match="no RAM, but taken for some: it does not boot"):
        boot("6.12", "crashkernel=64M", ram=[BANK], dtb=tree.data)


def test_what_does_not_fit_into_ram_is_refused() -> None:
    with pytest.raises(InputError, match="too small to boot"):
        choose_places(Ram([PhysRange.of(GIB, 4 * MIB)]), 0x550000, tree_with())


def reserving(*areas: tuple[int, int], no_map: bool = True) -> Fdt:
    editor = FdtEditor(virt_device_tree([BANK], 1, UART), 8192)
    parent = editor.add_subnode(0, "reserved-memory")
    for name, value in (("#address-cells", cells(2)), ("#size-cells", cells(2)), ("ranges", b"")):
        editor.setprop(parent, name, value)
    for start, size in areas:
        node = editor.add_subnode(parent, f"area@{start:x}")
        editor.setprop(node, "reg", cells(0, start, 0, size))
        if no_map:
            editor.setprop(node, "no-map", b"")
    editor.pack()
    return Fdt(bytes(editor.data))


@pytest.mark.parametrize("no_map", [True, False])
@pytest.mark.parametrize(
    ("areas", "kernel_phys", "dtb_phys"),
    [
        ([(0x40000000, 0x200000)], 0x40200000, 0x48000000),
        ([(0x40200000, 0x1000)], 0x40400000, 0x48000000),
        ([(0x40700000, 0x1000)], 0x40800000, 0x48000000),
        ([(0x40000000, 0x7F00000)], 0x48000000, 0x48600000),
        ([(0x48000000, 0x8000000)], 0x40200000, 0x40000000),
        ([(0x40200000, 0xFE00000)], None, None),
    ],
)
def test_memory_that_the_tree_reserves_gets_neither_kernel_nor_tree(
    areas: list[tuple[int, int]], kernel_phys: int | None, dtb_phys: int | None, no_map: bool
) -> None:
    tree = reserving(*areas, no_map=no_map)
    if kernel_phys is None:
        with pytest.raises(InputError, match="too small to boot"):
            choose_places(Ram([BANK]), 0x550000, tree)
        return
    places = choose_places(Ram([BANK]), 0x550000, tree)
    assert (places.kernel_phys, places.dtb_phys) == (kernel_phys, dtb_phys)


def test_what_the_model_reads_from_its_own_tree_is_what_it_wrote() -> None:
    banks = [BANK, PhysRange.of(1 << 32, GIB)]
    tree = Fdt(set_bootargs(virt_device_tree(banks, 18, UART), "crashkernel=1G quiet"))
    assert memory_ranges(tree) == banks
    assert cpu_affinities(tree) == [*range(16), 0x100, 0x101]
    assert console_of(tree) == TreeConsole("pl011", UART)
    assert initrd_range(tree) is None
    chosen = tree.path_offset("/chosen")
    assert chosen is not None and tree.get_strings(chosen, "bootargs") == ["crashkernel=1G quiet"]


@pytest.mark.parametrize("version", [2, 3])
def test_the_interrupt_controller_is_told_from_its_node(version: int) -> None:
    found, places = gic_phys(Fdt(virt_device_tree([BANK], 1, UART, gic=version)))
    assert found == version and places is not None
    with Board("4M", 1, gic=version) as board, Board("4M", 1, gic=version, gic_phys=places) as other:
        assert repr(other.gic) == repr(board.gic)


def test_a_command_line_in_the_device_tree_counts_when_none_is_given() -> None:
    dtb = virt_device_tree([BANK], 1, UART, cmdline="crashkernel=32M")
    kernel = boot(cmdline=None, ram=[BANK], dtb=dtb)
    assert kernel.crashk_res is not None and kernel.crashk_res.size == 32 * MIB
    assert boot(cmdline="quiet", ram=[BANK], dtb=dtb).crashk_res is None


def test_a_tree_with_a_command_line_set_is_no_longer_than_it_says() -> None:
    for cmdline in ("", "quiet", "x" * 999):
        dtb = set_bootargs(virt_device_tree([BANK], 1, UART), cmdline)
        assert len(dtb) == Fdt(dtb).totalsize


def test_a_command_line_is_cut_at_the_kernel_s_2048_bytes() -> None:
    """COMMAND_LINE_SIZE: what lies behind it is never seen."""
    kernel = boot(cmdline="x" * 2045 + " crashkernel=64M", ram="256M")
    assert kernel.crashk_res is None
    assert boot(cmdline="x" * 2031 + " crashkernel=64M", ram="256M").crashk_res is not None


@pytest.mark.parametrize("text", ["caf\u00e9 \U0001f600" * 80, "\udcff\udcfe"])
def test_a_command_line_may_hold_any_bytes(text: str) -> None:
    """What no UTF-8 is comes from the shell as lone surrogates, and goes to the guest as the bytes that it was."""
    kernel = boot(cmdline=f"crashkernel=64M {text}", ram="256M")
    raw = text.encode("utf-8", "surrogateescape")
    assert kernel.ram.read_cstring(kernel.guest.phys("boot_command_line"), 2048) == b"crashkernel=64M " + raw
    image = kernel.kexec_file_load(IMAGE, INITRD, text)
    assert image is not None
    tree = Fdt(kernel.ram.read(image.dtb_mem, 0x2000))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None and tree.getprop(chosen, "bootargs") == raw + b"\0"
    assert load(kernel, IMAGE, INITRD, raw + b"\0", 2) is not None
    assert kernel.crash(text).pc == image.start


def test_a_memory_node_that_promises_more_ram_than_there_is_is_no_traceback() -> None:
    dtb = virt_device_tree([PhysRange.of(GIB, GIB)], 1, UART)
    with pytest.raises((InputError, MachineError)):
        boot(ram=[BANK], dtb=dtb)
