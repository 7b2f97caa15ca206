"""What is in guest memory after the boot because readers of a dump look for it there."""

from __future__ import annotations

import struct

import pytest
from kernel_bench import IMAGE, INITRD, boot

from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.crash_size import crash_shrink_memory
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

RELEASES = [era.value for era in Era]
PAGES = ("ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("page", PAGES)
def test_the_saved_command_line_is_reserved_memory_in_the_linear_map(release: str, page: str) -> None:
    """drgn takes from it where the linear map is; its page tables must agree."""
    cmdline = "crashkernel=64M " + "x" * 500
    with boot(era=release, ram="512M", cmdline=cmdline, options={page: "y"}) as kernel:
        virt = kernel.guest.read("saved_command_line")
        phys = virt - kernel.space.page_offset + kernel.space.memstart
        assert kernel.tables.walk(virt).phys == phys
        assert kernel.ram.read_cstring(phys, 2048).decode() == cmdline
        area = PhysRange.of(phys, len(cmdline) + 1)
        assert any(one.covers(area) for one in kernel.arch.memblock.reserved)
        assert not kernel.guest.area.overlaps(area)
        assert (
            kernel.guest.read_virt(kernel.guest.vmlinux.virt("boot_command_line"), 16)
            == cmdline[:16].encode()
        )


def test_the_length_of_the_command_line_does_not_move_the_crash_region() -> None:
    """It is copied after the reservation, even where that is a late one."""
    places = set()
    for length in (0, 100, 1900):
        with boot(era="6.12", ram="512M", cmdline="crashkernel=64M " + "x" * length) as kernel:
            places.add(kernel.crashk_res)
    assert len(places) == 1 and None not in places


@pytest.mark.parametrize("release", RELEASES)
def test_no_pointer_leads_to_where_the_tasks_were_linked(release: str) -> None:
    with boot(era=release, cpus=2) as kernel:
        virt = kernel.guest.vmlinux.virt
        start, size = kernel.guest.phys("task_slab_start"), virt("task_slab_end") - virt("task_slab_start")
        assert kernel.ram.read(start, size) == bytes(size)
        linked = range(virt("task_slab_start"), virt("task_slab_end"))
        places = (kernel.guest.area, kernel.free_memory.slab)
        words = [
            word for area in places for word in memoryview(kernel.ram.read(area.start, area.size)).cast("Q")
        ]
        assert not [word for word in words if word in linked]
        slab = kernel.space.linear_virt(kernel.free_memory.slab.start)
        assert len([word for word in words if word in range(slab, slab + size)]) > 30


def members(kernel: KernelModel, symbol: str, struct: str, *names: str) -> list[int]:
    return [kernel.guest.read(symbol, kernel.guest.vmlinux.offsetof(struct, name)) for name in names]


@pytest.mark.parametrize("cmdline", ["crashkernel=64M", "quiet"])
def test_crash_resources_say_what_they_are(cmdline: str) -> None:
    with boot(cmdline=cmdline) as kernel:
        for symbol in ("crashk_res", "crashk_low_res"):
            # IORESOURCE_BUSY | IORESOURCE_SYSTEM_RAM, IORES_DESC_CRASH_KERNEL
            assert members(kernel, symbol, "resource", "flags", "desc") == [0x81000200, 1]


BUSY, MEM, SYSTEM_RAM = 0x80000000, 0x200, 0x1000200


def flags_of(name: str, depth: int) -> int:
    """request_standard_resources() and reserve_memblock_reserved_regions(): busy but for what is no RAM."""
    if name != "reserved":
        return SYSTEM_RAM | BUSY
    return MEM | BUSY if depth else MEM


def resource_lines(kernel: KernelModel, virt: int, parent: int, depth: int) -> list[str]:
    """r_show() of what hangs on a resource, by the pointers in guest memory."""
    lines = []
    while virt:
        start, end, name, flags, _, up, sibling, child = struct.unpack(
            "<8Q", kernel.guest.read_virt(virt, 64)
        )
        assert up == parent and flags == flags_of(kernel.guest.string(name), depth)
        lines.append(f"{'  ' * depth}{start:08x}-{end:08x} : {kernel.guest.string(name)}\n")
        lines += resource_lines(kernel, child, virt, depth + 1)
        virt = sibling
    return lines


@pytest.mark.parametrize(
    "cmdline",
    ["crashkernel=64M", "crashkernel=64M,high crashkernel=32M,low", "quiet"],
)
def test_the_tree_of_resources_is_what_proc_iomem_lists(cmdline: str) -> None:
    with boot(cmdline=cmdline, ram="6G") as kernel:

        def held() -> list[str]:
            child = kernel.guest.read("iomem_resource", kernel.guest.vmlinux.offsetof("resource", "child"))
            return resource_lines(kernel, child, kernel.guest.vmlinux.virt("iomem_resource"), 0)

        def listed() -> list[str]:
            return [line for line in proc_iomem(kernel).splitlines(keepends=True) if "pl011" not in line]

        assert held() == listed()
        if kernel.crashk_res:
            crash_shrink_memory(kernel, 20 << 20)
            assert held() == listed()


@pytest.mark.parametrize("release", ["6.1", "6.5", "6.12", "7.3"])
@pytest.mark.parametrize("cpus", [1, 3])
def test_interrupts_go_to_all_cpus(release: str, cpus: int) -> None:
    with boot(era=release, cpus=cpus) as kernel:
        layout = kernel.guest.vmlinux
        at = layout.offsetof("irq_desc", "irq_common_data") + layout.offsetof("irq_common_data", "affinity")
        for symbol in ("desc_arch_timer", "desc_uart"):
            assert kernel.guest.read(symbol, at) == (1 << cpus) - 1


@pytest.mark.parametrize("release", RELEASES)
def test_the_image_s_parts_are_areas_of_the_vmalloc_range(release: str) -> None:
    with boot(era=release) as kernel:
        guest, layout = kernel.guest, kernel.guest.vmlinux
        head = layout.virt("vmap_area_list") if "vmap_area_list" in layout.elf.symbols else 0
        if not head:
            node = layout.offsetof("vmap_node", "busy") + layout.offsetof("rb_list", "head")
            head = guest.read("vmap_nodes") + node
        found = []
        link = int.from_bytes(guest.read_virt(head, 8), "little")
        while link != head:
            area = link - layout.offsetof("vmap_area", "list")
            va_start, va_end = (
                int.from_bytes(guest.read_virt(area + layout.offsetof("vmap_area", name), 8), "little")
                for name in ("va_start", "va_end")
            )
            found.append((va_start, va_end))
            link = int.from_bytes(guest.read_virt(link, 8), "little")
        names = (
            "_stext",
            "_etext",
            "__start_rodata",
            "__init_begin",
            "__init_begin",
            "__init_end",
            "_sdata",
            "_end",
        )
        virts = [layout.virt(name) for name in names]
        assert found == list(zip(virts[::2], virts[1::2], strict=True))


def test_a_slab_counts_as_memory_in_use() -> None:
    with boot() as kernel:
        counts = [kernel.guest.read("vm_node_stat", 8 * index) for index in range(15)]
        # NR_SLAB_UNRECLAIMABLE_B of the guest's enum node_stat_item
        assert counts == [0] * 6 + [1] + [0] * 8


def test_the_loaded_image_says_where_its_control_pages_are() -> None:
    with boot() as kernel:
        image = kernel.kexec_file_load(IMAGE, INITRD, "")
        assert image is not None
        code, copy = members(
            kernel, "crash_kimage_storage", "kimage", "control_code_page", "vmcoreinfo_data_copy"
        )
        assert code == kernel.free_memory.page_virt(image.control_code_page)
        assert kernel.space.virt_to_phys(copy) == image.vmcoreinfo_safecopy
        for name in ("control_pages", "dest_pages", "unusable_pages"):
            at = kernel.guest.vmlinux.offsetof("kimage", name)
            virt = kernel.guest.vmlinux.virt("crash_kimage_storage") + at
            assert [kernel.guest.read("crash_kimage_storage", at + link) for link in (0, 8)] == [virt, virt]


def test_memory_is_set_up_as_around_a_larger_image_that_is_given() -> None:
    """Debian's 6.12.118 on 2000M: its text has twelve blocks, which take no table in the linear map."""
    text, end = 0x40200000, 0x42080000
    layout = TextLayout(text, text, 0x41AB0000, end, 0x41CD0000, end)
    with Board("2000M", 2) as board, Board("2000M", 2) as other:
        config = KernelConfig("6.12", options={"CMA_SIZE_MBYTES": "64"})
        kernel = KernelModel.boot(board, config, cmdline="crashkernel=160M cma=64M", layout=layout)
        assert kernel.crashk_res == PhysRange.of(0xACC00000, 160 << 20)
        assert any(area.covers(PhysRange(text, end)) for area in kernel.arch.memblock.reserved)
        own = KernelModel.boot(other, config, cmdline="crashkernel=160M cma=64M")
        assert len(own.tables.tables) - len(kernel.tables.tables) == 12


@pytest.mark.parametrize("era", ["6.1", "6.12"])
@pytest.mark.parametrize(
    ("ram", "start"),
    [
        ("504M", 0x52E00000),
        ("1004M", 0x71800000),
        ("1008M", 0x71C00000),
        ("1G", 0x72C00000),
        ("2032M", 0xB0A00000),
        ("6G", 0xF4000000),
    ],
)
def test_a_late_reservation_lies_where_6_1_192_and_6_12_117_had_it(era: str, ram: str, start: int) -> None:
    """unflatten_device_tree() allocates before it: some of these are 2 MiB higher without."""
    with boot(era, "crashkernel=128M", ram=ram, options={"CMA_SIZE_MBYTES": "64"}) as kernel:
        assert kernel.crashk_res == PhysRange.of(start, 128 << 20)
