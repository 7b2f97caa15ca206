"""The linear map and the reservation, against the page tables and /proc/iomem of real kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from kernel_bench import DATA, GIB, MIB, arm64_image, boot, ptdump

from kexecemu.formats.fdt import Fdt, FdtEditor, cells
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import Era, KernelConfig, Protection
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.setup_memory import ArchSetup, TextLayout, arm64_memblock_init, setup_memory
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.protection import protect_crashkres, unprotect_crashkres
from kexecemu.kernel.load.kexec_image import CrashFiles, LoadContext, image_load
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.memory.descriptors import Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

LINEAR_START = 0xFFFF000000000000
DRAM = PhysRange.of(GIB, GIB)
DTB_PHYS = 0x48000000
# _text, _stext, __init_begin and _end of the kernels in tests/data/kernel/linear-map.
LINUX_6_1 = TextLayout(0x40200000, 0x40210000, 0x405B0000, 0x40750000)
LINUX_6_12 = TextLayout(0x40200000, 0x40210000, 0x405D0000, 0x40780000)


@dataclass
class Booted:
    """A kernel's memory after setup_arch(), without its CPU."""

    arch: ArchSetup
    tables: PageTables
    space: AddressSpace
    config: KernelConfig
    log: list[str]

    def ptdump(self) -> list[list[str]]:
        return ptdump(self.tables.ram, self.tables.root_phys, self.space.memstart - LINEAR_START)

    @property
    def crashk_res(self) -> PhysRange:
        assert self.arch.reservation.crashk_res is not None
        return self.arch.reservation.crashk_res


def set_up(
    config: KernelConfig,
    cmdline: str,
    layout: TextLayout = LINUX_6_1,
    banks: tuple[PhysRange, ...] = (DRAM,),
    *,
    kernel_tables: int = 0,
    bbm: int = 0,
) -> Booted:
    """setup_arch() for a kernel image that is elsewhere and larger than the guest that ships.

    kernel_tables are the pages that map_kernel() has taken before the linear map.
    """
    ram = Ram(banks)
    dtb = Fdt(virt_device_tree(banks, 2, 0x9000000, cmdline=cmdline))
    space = AddressSpace(banks[0].start, 0xFFFF800008000000, layout.text, layout.end - layout.text)
    log: list[str] = []
    memblock = early_init_dt_scan(dtb, config, log.append)
    early = parse_early_param(config, cmdline, log.append)
    reserved = arm64_memblock_init(memblock, dtb, DTB_PHYS, cmdline, early, space, layout, config, log.append)
    granule = {4096: Granule.K4, 16384: Granule.K16, 65536: Granule.K64}[config.page_size]
    tables = PageTables(
        ram,
        TableFormat(granule, 48),
        layout.end - config.page_size,
        lambda: memblock.phys_alloc_range(config.page_size, config.page_size),
    )
    for _ in range(kernel_tables):
        memblock.phys_alloc_range(config.page_size, config.page_size)
    arch = setup_memory(
        memblock, cmdline, early, config, space, layout, tables, dtb, reserved, log.append, bbm
    )
    return Booted(arch, tables, space, config, log)


# -- real kernels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """One file of tests/data/kernel/linear-map."""

    name: str
    cmdline: str
    crashk_res: PhysRange | None
    before: list[list[str]]
    after: list[list[str]]

    @property
    def config(self) -> KernelConfig:
        zones = "n" if self.name.startswith("nozones") else "y"
        return KernelConfig("6.12" if self.name.startswith("6.12") else "6.1", options={"ZONE_DMA": zones})

    @property
    def layout(self) -> TextLayout:
        return LINUX_6_12 if self.name.startswith("6.12") else LINUX_6_1

    def boot(self) -> Booted:
        return set_up(self.config, self.cmdline, self.layout)


def recorded(name: str) -> Recorded:
    text = (DATA / "linear-map" / f"{name}.txt").read_text()
    sections = dict(re.findall(r"^@@ (\w+)(.*?)(?=^@@ |\Z)", text, re.M | re.S))

    def dump(head: str) -> list[list[str]]:
        return [line.split() for line in sections.get(head, "").splitlines() if line.startswith("0x")]

    area = re.search(r"([0-9a-f]+)-([0-9a-f]+) : Crash kernel", text)
    crashk_res = PhysRange(int(area[1], 16), int(area[2], 16) + 1) if area else None
    return Recorded(name, sections["cmdline"].strip(), crashk_res, dump("before"), dump("after"))


ALL_RECORDED = [recorded(path.stem) for path in sorted((DATA / "linear-map").glob("*.txt"))]
each = pytest.mark.parametrize("real", ALL_RECORDED, ids=lambda real: real.name)
each_with_image = pytest.mark.parametrize(
    "real", [real for real in ALL_RECORDED if real.after], ids=lambda real: real.name
)


def test_all_five_recordings_are_read() -> None:
    assert len(ALL_RECORDED) == 5 and all(len(real.before) >= 5 for real in ALL_RECORDED)
    assert sum(bool(real.after) for real in ALL_RECORDED) == 4


@each
def test_the_linear_map_is_the_one_that_a_real_kernel_built(real: Recorded) -> None:
    assert real.boot().ptdump() == real.before


@each
def test_the_crash_region_is_where_a_real_kernel_put_it(real: Recorded) -> None:
    booted = real.boot()
    assert booted.arch.reservation.crashk_res == real.crashk_res
    if real.crashk_res is not None:
        # The kernel's own line in the same file, but for the time stamp.
        text = (DATA / "linear-map" / f"{real.name}.txt").read_text()
        said = next(line for line in booted.log if "crashkernel" in line)
        assert f"] {said}\n" in text


def load(booted: Booted) -> Kimage:
    """The crash image that all recordings loaded, by its sizes."""
    image = Kimage(control_page=booted.crashk_res.start)
    files = CrashFiles(
        arm64_image(0x50B828, image_size=0x550000),
        bytes(0x27D988),
        bytes(0x1000),
        lambda initrd, core: bytes(0x1F83),
    )
    image_load(image, files, LoadContext(booted.config.release, 4096, booted.crashk_res, None, 0))
    return image


def protect(booted: Booted, image: Kimage) -> None:
    places = booted.tables, booted.space, image, booted.crashk_res
    protect_crashkres(booted.config, *places, splits=booted.arch.plan.splits)


def unprotect(booted: Booted, image: Kimage) -> None:
    places = booted.tables, booted.space, image, booted.crashk_res
    unprotect_crashkres(booted.config, *places, splits=booted.arch.plan.splits)


@each_with_image
def test_after_a_load_the_pages_are_invalid_that_a_real_kernel_made_invalid(real: Recorded) -> None:
    booted = real.boot()
    protect(booted, load(booted))
    assert booted.ptdump() == real.after


@each_with_image
def test_unprotecting_gives_back_exactly_the_map_from_before(real: Recorded) -> None:
    booted = real.boot()
    image = load(booted)
    protect(booted, image)
    unprotect(booted, image)
    assert booted.ptdump() == real.before


def test_debian_s_kernel_with_a_cma_area_reserves_where_it_does() -> None:
    """Debian 6.1.176, 1 GiB, crashkernel=256M: /proc/iomem has 6ac00000-7abfffff; 64 MiB of CMA lie above it."""
    config = KernelConfig("6.1", options={"CMA_SIZE_MBYTES": "64"})
    debian = TextLayout(0x40200000, 0x40210000, 0x41580000, 0x41CA0000)
    # /proc/iomem has 517 pages at the end of RAM, 7fdfb000-7fffffff: 506 of them are the linear map's tables.
    booted = set_up(config, "crashkernel=256M", debian, kernel_tables=11)
    assert booted.crashk_res == PhysRange(0x6AC00000, 0x7AC00000)
    assert any(area.covers(PhysRange(0x7AC00000, 0x7EC00000)) for area in booted.arch.memblock.reserved)


def test_a_cma_area_is_aligned_to_huge_pages() -> None:
    """Debian 6.1.192 on a board of 512 MiB, crashkernel=160M: "cma: Reserved 64 MiB at 0x000000005b600000"."""
    config = KernelConfig("6.1", options={"CMA_SIZE_MBYTES": "64"})
    debian = TextLayout(0x40200000, 0x40210000, 0x41590000, 0x41CB0000)
    booted = set_up(
        config, "crashkernel=160M", debian, (PhysRange(0x40000000, 0x60000000),), kernel_tables=11
    )
    assert "cma: Reserved 64 MiB at 0x000000005b600000" in booted.log
    assert booted.crashk_res == PhysRange(0x51600000, 0x5B600000)


@pytest.mark.parametrize(
    ("asked", "area"),
    [
        # Debian 6.1.192 of 1 GiB with crashkernel=192M: the crash kernel is at 6ac00000-76bfffff, below these.
        ("cma=128M", PhysRange(0x76C00000, 0x7EC00000)),
        ("cma=64M", PhysRange(0x7AC00000, 0x7EC00000)),
        ("", PhysRange(0x7AC00000, 0x7EC00000)),
        ("cma=0", None),
        ("cma=32M@0x60000000", PhysRange(0x60000000, 0x62000000)),
        ("cma=32M@0x60000000-0x68000000", PhysRange(0x66000000, 0x68000000)),
        ("cma=3M", PhysRange(0x7E800000, 0x7EC00000)),  # whole pageblocks
    ],
)
def test_the_command_line_decides_on_the_cma_area(asked: str, area: PhysRange | None) -> None:
    config = KernelConfig("6.1", options={"CMA_SIZE_MBYTES": "64"})
    debian = TextLayout(0x40200000, 0x40210000, 0x41590000, 0x41CB0000)
    booted = set_up(config, f"crashkernel=192M {asked}", debian, kernel_tables=11)
    lines = [line for line in booted.log if line.startswith("cma: ")]
    wanted = [] if area is None else [f"cma: Reserved {area.size >> 20} MiB at {area.start:#018x}"]
    assert lines == wanted
    if asked == "cma=128M":
        assert booted.crashk_res == PhysRange(0x6AC00000, 0x76C00000)


def test_a_kernel_without_cma_does_not_know_the_parameter() -> None:
    """Seen in a 7.3.4 built without CMA: low crash memory at the end of 4 GiB, whatever cma= asks for."""
    config = KernelConfig("7.3", options={"CMA": "n", "CMA_SIZE_MBYTES": "64"})
    debian = TextLayout(0x40200000, 0x40210000, 0x41590000, 0x41CB0000)
    booted = set_up(config, "crashkernel=192M cma=64M", debian, kernel_tables=11)
    assert not [line for line in booted.log if line.startswith("cma: ")]


# -- the truth table of granularity and reservation ------------------------------------------------------------


def levels(kernel: KernelModel, area: PhysRange) -> set[int]:
    """The levels of the leaves that map a physical range, read from guest RAM."""
    start = kernel.space.linear_virt(area.start)
    return {kernel.tables.walk(start + offset).level for offset in range(0, area.size, 2 * MIB)}


ZONES, NO_ZONES = {"ZONE_DMA": "y"}, {"ZONE_DMA": "n"}
PAGES, BLOCKS = {3}, {2}
LATE, EARLY = 0x77000000, 0x78000000  # a late reservation lies below what was allocated before it


@pytest.mark.parametrize(
    ("era", "options", "cmdline", "rest", "crash", "early"),
    [
        # no crashkernel=: blocks everywhere, unless something else wants pages
        ("6.1", ZONES, "rodata=on", BLOCKS, None, None),
        ("6.1", NO_ZONES, "rodata=on", BLOCKS, None, None),
        ("6.4", ZONES, "rodata=on", BLOCKS, None, None),
        ("6.1", ZONES, "rodata=full", PAGES, None, None),
        ("6.4", ZONES, "rodata=full", PAGES, None, None),
        # whatever can change the direct map: pages everywhere, before the series and after it
        ("6.1", ZONES, "crashkernel=128M", PAGES, PAGES, False),
        ("6.1", NO_ZONES, "crashkernel=128M", PAGES, PAGES, True),
        ("6.4", ZONES, "crashkernel=128M", PAGES, PAGES, False),
        ("6.4", NO_ZONES, "crashkernel=128M", PAGES, PAGES, False),
        ("6.12", ZONES, "crashkernel=128M", PAGES, PAGES, False),
        # zones (what distributions have), and nothing else that wants pages: the problem that the series solved
        ("6.1", ZONES, "crashkernel=128M rodata=on", PAGES, PAGES, False),
        ("6.4", ZONES, "crashkernel=128M rodata=on", BLOCKS, BLOCKS, False),
        ("6.12", ZONES, "crashkernel=128M rodata=off", BLOCKS, BLOCKS, False),
        # no zones: reserved early enough for the crash region alone to be pages
        ("6.1", NO_ZONES, "crashkernel=128M rodata=on", BLOCKS, PAGES, True),
        ("6.4", NO_ZONES, "crashkernel=128M rodata=on", BLOCKS, BLOCKS, False),
        ("6.12", NO_ZONES, "crashkernel=128M rodata=on", BLOCKS, BLOCKS, False),
        # an option that cannot be read forces pages all the same: only its presence is looked at that early
        ("6.1", ZONES, "crashkernel=rubbish rodata=on", PAGES, None, None),
        ("6.4", ZONES, "crashkernel=rubbish rodata=on", BLOCKS, None, None),
    ],
)
def test_each_row_of_the_truth_table_in_the_page_tables_of_a_booted_kernel(
    era: str,
    options: dict[str, str],
    cmdline: str,
    rest: set[int],
    crash: set[int] | None,
    early: bool | None,
) -> None:
    kernel = boot(era, cmdline, options=options)
    if crash is None:
        assert kernel.crashk_res is None
    else:
        assert kernel.crashk_res is not None
        assert levels(kernel, kernel.crashk_res) == crash
        assert (kernel.crashk_res.start == EARLY) is early
        assert early or kernel.crashk_res.start < LATE
    assert levels(kernel, PhysRange(0x44000000, 0x70000000)) == rest


@pytest.mark.parametrize(
    ("options", "cmdline", "pages"),
    [
        ({}, "", True),
        ({}, "rodata=full", True),
        ({}, "rodata=on", False),
        ({}, "rodata=off", False),
        ({}, "rodata=bogus", True),
        ({}, "rodata", True),
        ({}, "rodata=on rodata=bogus", False),
        ({"RODATA_FULL_DEFAULT_ENABLED": "n"}, "", False),
        ({"RODATA_FULL_DEFAULT_ENABLED": "n"}, "rodata=full", True),
        ({"RODATA_FULL_DEFAULT_ENABLED": "n"}, "rodata=bogus", False),
        ({}, "rodata=on debug_pagealloc=on", True),
        ({}, "rodata=on debug_pagealloc=1", True),
        ({"DEBUG_PAGEALLOC_ENABLE_DEFAULT": "y"}, "rodata=on", True),
        ({"DEBUG_PAGEALLOC_ENABLE_DEFAULT": "y"}, "rodata=on debug_pagealloc=off", False),
        ({"KFENCE": "y"}, "rodata=on", False),
        ({"KFENCE": "y", "KFENCE_SAMPLE_INTERVAL": "0"}, "rodata=on", True),
        ({"KFENCE": "y"}, "rodata=on kfence.sample_interval=0", True),
        ({"KFENCE": "y", "KFENCE_SAMPLE_INTERVAL": "0"}, "rodata=on kfence.sample_interval=100", False),
        ({}, "rodata=on kfence.sample_interval=0", False),
    ],
)
def test_what_makes_the_linear_map_base_pages(options: dict[str, str], cmdline: str, pages: bool) -> None:
    booted = set_up(KernelConfig("6.4", options=options), cmdline)
    ram = [line for line in booted.ptdump() if "MEM/NORMAL-TAGGED" in line]
    assert all("PTE" in line and "CON" not in line for line in ram) is pages


@pytest.mark.parametrize("era", ["6.18", "7.0", "7.3"])
@pytest.mark.parametrize(
    ("options", "cmdline", "pages", "said"),
    [
        ({}, "", True, []),
        ({}, "rodata=on", True, []),
        ({}, "rodata=noalias", False, []),
        ({}, "rodata=off", False, []),
        ({}, "rodata=full", True, ["Invalid option string for rodata: 'full'"]),
        ({}, "rodata=noalias rodata=full", False, ["Invalid option string for rodata: 'full'"]),
        ({"RODATA_FULL_DEFAULT_ENABLED": "n"}, "", True, []),  # it is gone
    ],
)
def test_from_6_18_on_rodata_has_other_words(
    era: str, options: dict[str, str], cmdline: str, pages: bool, said: list[str]
) -> None:
    config = KernelConfig(era, options=options)
    ram = [line for line in set_up(config, cmdline).ptdump() if "MEM/NORMAL-TAGGED" in line]
    assert all("PTE" in line and "CON" not in line for line in ram) is pages
    log: list[str] = []
    parse_early_param(config, cmdline, log.append)
    assert log == said


@pytest.mark.parametrize(
    ("era", "bbm", "cmdline", "protection", "blocks"),
    [
        # no kernel before 6.18 knows of it
        ("6.1", 3, "crashkernel=64M", None, False),
        ("6.12", 2, "crashkernel=64M", None, False),
        ("6.12", 3, "crashkernel=64M", "pte", False),
        # 6.18 knows a list of CPUs, 7.3 also what the register says
        ("6.18", 0, "crashkernel=64M", None, False),
        ("6.18", 1, "crashkernel=64M", None, False),
        ("6.18", 2, "crashkernel=64M", None, True),
        ("6.18", 3, "crashkernel=64M", None, False),
        ("7.0", 2, "crashkernel=64M rodata=on", None, True),
        ("7.0", 3, "crashkernel=64M rodata=on", None, False),
        ("7.3", 1, "crashkernel=64M", None, False),
        ("7.3", 2, "crashkernel=64M", None, True),
        ("7.3", 3, "crashkernel=64M", None, True),
        # what can wait for a lock may be split, what cannot must be pages
        ("7.3", 3, "crashkernel=64M debug_pagealloc=on", None, False),
        ("7.3", 3, "crashkernel=64M kfence.sample_interval=0", None, True),
        ("7.3", 0, "crashkernel=64M rodata=noalias", None, True),
        # and so a protection costs no map of base pages
        ("7.3", 0, "crashkernel=64M rodata=noalias", "pte", False),
        ("7.3", 2, "crashkernel=64M", "pte", True),
        ("7.3", 3, "crashkernel=64M rodata=noalias", "pte", True),
        ("7.3", 3, "crashkernel=64M", "readonly", True),
        ("6.18", 3, "crashkernel=64M", "readonly", False),
        # the protection that is for any kernel and any CPU
        ("6.1", 0, "crashkernel=64M", "bbml2", True),
        ("7.3", 0, "crashkernel=64M", "bbml2", True),
    ],
)
def test_the_map_is_of_blocks_where_the_cpu_and_the_kernel_can_split_them(
    era: str, bbm: int, cmdline: str, protection: str | None, blocks: bool
) -> None:
    config = KernelConfig(era, protection=protection, options={"KFENCE": "y"})
    booted = set_up(config, cmdline, bbm=bbm)
    assert any("BLK" in line for line in booted.ptdump() if "RW" in line) is blocks
    before = len(booted.tables.tables)
    if protection is None:
        return
    image = load(booted)
    protect(booted, image)
    if protection != "readonly":  # which begins and ends with a block here
        virt = [booted.space.linear_virt(at) for one in image.segments for at in (one.mem, one.area.last)]
        assert all(booted.tables.walk(at).phys is None for at in virt)
        assert (len(booted.tables.tables) > before) is blocks
    unprotect(booted, image)
    for at in range(booted.crashk_res.start, booted.crashk_res.end, 4096):
        assert booted.tables.walk(booted.space.linear_virt(at)).phys == at


# -- details ---------------------------------------------------------------------------------------------------


def test_the_read_only_alias_may_have_blocks_even_where_all_else_is_pages() -> None:
    """map_mem() maps it with NO_CONT_MAPPINGS alone, whatever the flags of the rest are."""
    large = TextLayout(0x40200000, 0x40210000, 0x41580000, 0x41CA0000)
    alias = [line for line in set_up(KernelConfig("6.1"), "", large).ptdump() if "ro" in line]
    assert [line[1:3] for line in alias] == [["1984K", "PTE"], ["16M", "PMD"], ["1536K", "PTE"]]
    assert not any("CON" in line for line in alias)


def test_what_is_no_ram_is_not_in_the_linear_map() -> None:
    banks = (PhysRange(0x40000000, 0x60000000), PhysRange(0x60200000, 0x80000000))
    dump = set_up(KernelConfig("6.4"), "rodata=on", banks=banks).ptdump()
    assert ["0xffff000020000000-0xffff000020200000", "2M", "PMD"] in dump


def test_the_splittable_map_of_bbml2_is_blocks_even_with_rodata_full() -> None:
    """Commit a166563e7ec3: large blocks with rodata=full is what live splitting was made for."""
    config = KernelConfig("6.12", protection=Protection.BBML2)
    booted = set_up(config, "crashkernel=128M", LINUX_6_12)
    assert booted.ptdump() == recorded("6.12-zones-on-1G-crash128M").before
    debug = set_up(config, "crashkernel=128M debug_pagealloc=on", LINUX_6_12)
    assert not any("BLK" in line for line in debug.ptdump() if "ro" not in line)


def test_more_ram_than_the_linear_region_holds_is_forgotten() -> None:
    top = 1 << 47
    banks = (DRAM, PhysRange(GIB + top - MIB, GIB + top + MIB))
    booted = set_up(KernelConfig("6.4"), "rodata=on", banks=banks)
    assert booted.arch.memblock.end_of_dram == GIB + top


@pytest.mark.parametrize(
    ("limit", "end"),
    [("mem=512M", 0x60000000), ("mem=0x10000800", 0x50000000), ("mem=4G", 0x80000000), ("mem=0", 0x80000000)],
)
def test_mem_caps_ram_from_below_and_zero_means_no_limit(limit: str, end: int) -> None:
    booted = set_up(KernelConfig("6.4"), f"crashkernel=64M {limit}")
    assert booted.arch.memblock.end_of_dram == end
    assert booted.crashk_res.end <= end


def test_mem_does_not_take_the_kernel_s_own_memory_away() -> None:
    """memblock_mem_limit_remove_map() is followed by memblock_add(_text.._end)."""
    layout = TextLayout(0x5FE00000, 0x5FE10000, 0x601B0000, 0x60350000)
    config = KernelConfig("6.4")
    dtb = Fdt(virt_device_tree((DRAM,), 1, 0x9000000))
    space = AddressSpace(GIB, 0xFFFF800008000000, layout.text, layout.end - layout.text)
    memblock = early_init_dt_scan(dtb, config, [].append)
    early = parse_early_param(config, "mem=256M")
    arm64_memblock_init(memblock, dtb, DTB_PHYS, "mem=256M", early, space, layout, config, [].append)
    assert memblock.memory == [PhysRange(GIB, 0x50000000), PhysRange(layout.text, layout.end)]


@pytest.mark.parametrize("era", [era.value for era in Era])
def test_a_late_reservation_lies_below_the_page_tables_and_what_came_before_it(era: str) -> None:
    """1 GiB: the memory map takes 16 MiB at the top, the tables of a map of base pages a little over 2 MiB."""
    pages = set_up(KernelConfig(era), "crashkernel=128M")
    # From 7.0 on it comes before the memory map.
    more = 0x1000000 if era.startswith("7") else 0
    assert pages.crashk_res.start == 0x76C00000 + more
    blocks = set_up(KernelConfig(era, protection="none"), "crashkernel=128M rodata=off")
    assert blocks.crashk_res.start == 0x76E00000 + more


def test_mem_does_not_take_the_first_kernel_s_initrd_away() -> None:
    tree = FdtEditor(virt_device_tree((DRAM,), 1, 0x9000000), 4096)
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    tree.setprop(chosen, "linux,initrd-start", cells(0x60000800))
    tree.setprop(chosen, "linux,initrd-end", cells(0x60002001))
    tree.pack()
    space = AddressSpace(GIB, 0xFFFF800008000000, LINUX_6_1.text, LINUX_6_1.end - LINUX_6_1.text)
    dtb, config = Fdt(bytes(tree.data)), KernelConfig("6.4")
    memblock = early_init_dt_scan(dtb, config, [].append)
    early = parse_early_param(config, "mem=256M")
    arm64_memblock_init(memblock, dtb, DTB_PHYS, "mem=256M", early, space, LINUX_6_1, config, [].append)
    pages = PhysRange(0x60000000, 0x60003000)
    assert memblock.memory == [PhysRange(GIB, 0x50000000), pages]
    assert pages in memblock.reserved
