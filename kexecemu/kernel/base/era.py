"""The eras of arm64's kexec, and the one table of what changed when, which every rule that changed asks."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from functools import cache, total_ordering
from typing import Any, NamedTuple, Self

from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["CHANGES", "Change", "Era", "Rules", "parse_release"]


@shown()
@dataclass(frozen=True)
class Rules:
    """What is not the same in every era; the defaults are what the oldest one does.

    protects_by_pte            arch_kexec_protect_crashkres() exists
    early_reservation          crashkernel= is reserved before the linear map where there are no DMA zones, and decides
                               how that is built
    falls_back_high            crashkernel=X that does not fit below the DMA limit is looked for above it; and where no
                               ,low is given there are 128 MiB of low memory
    falls_back_low             crashkernel=X,high is looked for above the limit, then below; @offset has own words
    low_where_it_reaches_over  low memory is left out if the region begins so far below the limit, else if below it
    generic_reservation        reserve_crashkernel_generic(): the size is not rounded to whole pages
    refuses_all_of_ram         a region as large as all RAM is not looked for
    gives_up                   a reservation that fails where there are no DMA zones ends
    suffixes                   which crashkernel= options are not of the plain kind
    counts_low_region          crash_get_memory_size() and crash_shrink_memory() know crashk_low_res
    top_down_skips_last_page   locate_mem_hole_top_down() starts at end - size with an inclusive end
    text_alias_starts_at_text  the read-only alias of the kernel text in the linear map starts at _text, not at _stext
    ima_in_crash_images        ima_add_kexec_buffer() adds its segment to crash images too
    ima_filled_at_reboot       IMA's segment is reserved at the load and filled at the reboot, no digest covers it
    file_load_flags            KEXEC_FILE_FLAGS
    reserves_before_memmap     the memory map and the zones come after the reservation
    reserves_cma               crashkernel=X,cma is reserved
    rodata_noalias             rodata=on is what full was, noalias what on was; the default is on
    sysfs_kexec                /sys/kernel/kexec/ has what lies in /sys/kernel/kexec_* else, and crash_cma_ranges
    tells_uid                  dump_stack() says which user is running
    tells_preemption           dump_stack() says whether the kernel is preemptible
    marks_trace                the first line of a call trace says how it was come by
    idmap_tables               pages that create_idmap() takes from memblock
    of_property_size           sizeof(struct property), in bytes
    reserved_mem_size          sizeof(struct reserved_mem); 0: the array is in the image
    numa_distances             the table of distances between nodes is there from the start
    pglist_data_size           sizeof(pg_data_t) of a kernel with NUMA
    section_usage_bits         bits for a pageblock in a section's usage map
    memreserve_first           /memreserve/ is looked at before /reserved-memory, which then may fail
    tells_reserved_mem         each region of /reserved-memory has a line in the log
    cma_says_what_was_asked    the CMA area's line has the size that was asked for, not that which it has
    cma_limit_is_asked         cma=SIZE@START-END may end above the DMA limit
    cma_says_node              the CMA area's line ends with the node
    memmap_at_once             sparse_init() takes one buffer for all sections
    ragged_is_none             a property of addresses and sizes that is not whole pairs is none
    usable_ranges              MAX_USABLE_RANGES, of linux,usable-memory-range
    maps_whole_pages           map_mem() leaves out a page that a region has only a part of
    clears_hotplug             numa_init() forgets which memory is hotpluggable
    notes_of_possible_cpus     kexec_file_load()'s core header has the notes of CPUs that are not present, too
    sysfs_has_present_cpus     /sys/devices/system/cpu has no folder for CPUs that are not present
    reserved_mem_sorted_by_node  regions that are equal keep their order, and one with alloc-ranges joins another
    reserved_mem_late          regions with a reg have their say when the tree is unflattened
    reserves_first_reg         of a region's reg the first entry counts, and its driver is asked before
    va_bits                    VA_BITS of a kernel that nobody has configured otherwise
    modules_vsize              MODULES_VSIZE in bytes: the image is linked behind it
    vmemmap_at_end             VMEMMAP_END is 1 GiB below the end of all addresses, whatever a struct page takes
    vmcore_note_align          p_align of /proc/vmcore's notes
    guest                      the guest kernel that has the era's structures: fixtures/build.py
    """

    protects_by_pte: bool = True
    early_reservation: bool = True
    falls_back_high: bool = False
    falls_back_low: bool = False
    low_where_it_reaches_over: bool = False
    generic_reservation: bool = False
    refuses_all_of_ram: bool = False
    gives_up: bool = True
    suffixes: tuple[str, ...] = (",high", ",low")
    counts_low_region: bool = False
    top_down_skips_last_page: bool = True
    text_alias_starts_at_text: bool = False
    ima_in_crash_images: bool = True
    ima_filled_at_reboot: bool = False
    file_load_flags: int = 0x7
    reserves_before_memmap: bool = False
    reserves_cma: bool = False
    rodata_noalias: bool = False
    sysfs_kexec: bool = False
    tells_uid: bool = False
    tells_preemption: bool = False
    marks_trace: bool = False
    idmap_tables: int = 4
    of_property_size: int = 96
    reserved_mem_size: int = 0
    numa_distances: bool = True
    pglist_data_size: int = 11392
    section_usage_bits: int = 4
    memreserve_first: bool = True
    tells_reserved_mem: bool = False
    cma_says_what_was_asked: bool = False
    cma_limit_is_asked: bool = False
    cma_says_node: bool = False
    memmap_at_once: bool = True
    ragged_is_none: bool = False
    usable_ranges: int = 2
    maps_whole_pages: bool = False
    clears_hotplug: bool = False
    notes_of_possible_cpus: bool = False
    sysfs_has_present_cpus: bool = False
    reserved_mem_sorted_by_node: bool = False
    reserved_mem_late: bool = False
    reserves_first_reg: bool = False
    va_bits: int = 48
    modules_vsize: int = 128 << 20
    vmemmap_at_end: bool = False
    vmcore_note_align: int = 0
    guest: str = "vmlinux"


class Change(NamedTuple):
    """A rule that is otherwise from a release on, and the commit or where that was seen."""

    since: tuple[int, int]
    rule: str
    value: Any
    source: str


CHANGES = (
    Change((6, 2), "falls_back_high", True, "a9ae89df7377, a149cf00b158"),
    Change((6, 2), "low_where_it_reaches_over", True, "a149cf00b158"),
    Change((6, 2), "gives_up", False, "a9ae89df7377: the limit is as high as high memory goes"),
    Change((6, 3), "memreserve_first", False, "b41328187629"),
    Change((6, 4), "tells_reserved_mem", True, "seen in 6.12.117, not in 6.1.192"),
    Change((6, 4), "protects_by_pte", False, "0d124e96051b"),
    Change((6, 4), "early_reservation", False, "504cae453f82"),
    Change((6, 5), "falls_back_low", True, "6c4dcaddbd36"),
    Change((6, 5), "low_where_it_reaches_over", False, "6c4dcaddbd36"),
    Change((6, 5), "counts_low_region", True, "16c6006af4d4"),
    Change((6, 5), "modules_vsize", 2 << 30, "3e35d303ab7d"),
    Change((6, 5), "guest", "vmlinux-6.5", "linked behind the modules; sparse_irqs (721255b9826b)"),
    Change((6, 5), "reserved_mem_sorted_by_node", True, "6.12.118's of_reserved_mem.c, not 6.1.192's"),
    Change((6, 6), "guest", "vmlinux-6.6", "page flags in another order"),
    Change(
        (6, 6), "notes_of_possible_cpus", True, "crash_prepare_elf64_headers() of the crash hotplug series"
    ),
    Change((6, 7), "generic_reservation", True, "fdc268232dbb"),
    Change((6, 7), "top_down_skips_last_page", False, "816d334afa85"),
    Change((6, 8), "sysfs_has_present_cpus", True, "GENERIC_CPU_DEVICES; seen in 7.3.4"),
    Change((6, 8), "file_load_flags", 0xF, "KEXEC_FILE_DEBUG"),
    Change((6, 9), "va_bits", 52, "352b0395b505 and those before it: Kconfig's default"),
    Change((6, 9), "vmemmap_at_end", True, "32697ff38287; as 6.12.117's VMCOREINFO has it"),
    Change((6, 9), "idmap_tables", 0, "the early mapping in C: not in 6.12.118's memblock=debug"),
    Change((6, 11), "of_property_size", 104, "bin_attribute.llseek; 6.12.118's BTF"),
    Change((6, 11), "gives_up", True, "the dead loop of riscv64, mended for all"),
    Change((6, 12), "cma_says_node", True, "seen in 6.12.117"),
    Change((6, 12), "refuses_all_of_ram", True, "seen in 6.12.117"),
    Change((6, 12), "text_alias_starts_at_text", True, "seen in 6.12.117"),
    Change((6, 12), "ima_in_crash_images", False, "upstream since 6.16, and in the stable 6.12"),
    Change(
        (6, 12), "ima_filled_at_reboot", True, "9ee8888a80fe: upstream since 6.16, and in the stable 6.12"
    ),
    Change((6, 12), "numa_distances", False, "mm/numa_memblks.c"),
    Change((6, 12), "maps_whole_pages", True, "seen in 6.12.118 and 7.3.4; not in 6.1.192's map_mem()"),
    Change((6, 12), "clears_hotplug", True, "numa_memblks_init()"),
    Change((6, 12), "guest", "vmlinux-6.12", "no vmap_area_list; 6.12.117's VMCOREINFO"),
    Change((6, 12), "vmcore_note_align", 4, "seen in 6.12.117, not in 6.1.176"),
    Change((6, 12), "pglist_data_size", 14144, "6.12.118's BTF"),
    Change((6, 12), "reserved_mem_late", True, "fdt_scan_reserved_mem_reg_nodes() of 6.12.118"),
    Change((6, 12), "reserved_mem_size", 48, "alloc_reserved_mem_array(), as 6.12.118 has it"),
    Change((6, 12), "tells_uid", True, "seen in 6.12.117"),
    Change((6, 13), "marks_trace", True, "seen in 7.3.4, not in 6.12.117"),
    Change((6, 15), "tells_preemption", True, "preempt_model_str(): seen in 7.3.4, not in 6.12.117"),
    Change((6, 15), "cma_says_what_was_asked", True, "areas of several ranges: seen in 7.3.4"),
    Change((6, 15), "cma_says_node", False, "areas of several ranges: not in 7.3.4"),
    Change((6, 17), "file_load_flags", 0x3F, "07d24902977e: FORCE_DTB, NO_CMA"),
    Change((6, 17), "suffixes", (",high", ",low", ",cma"), "crashkernel=X,cma of x86"),
    Change((6, 18), "rodata_noalias", True, "arch_parse_debug_rodata() of asm/setup.h; seen in 7.3.4"),
    Change((6, 18), "guest", "vmlinux-6.18", "timekeeper_data, total_nr_irqs, nr_queued; 7.3's sources"),
    Change((6, 19), "sysfs_kexec", True, "deprecated the files beside it; seen in 7.3.4"),
    Change(
        (7, 0),
        "reserves_before_memmap",
        True,
        "nodes, zones and memory map initialized in one place",
    ),
    Change((7, 0), "guest", "vmlinux-7.3", "page.compound_info, printk_info.comm; 7.3.4's BTF"),
    Change((7, 0), "of_property_size", 112, "7.3.4's BTF"),
    Change((7, 0), "pglist_data_size", 14400, "7.3.4's BTF"),
    Change((7, 0), "section_usage_bits", 8, "seen in 7.3.4's memblock=debug"),
    Change((7, 0), "memmap_at_once", False, "seen in 7.3.4's memblock=debug"),
    Change((7, 3), "reserved_mem_size", 40, "7.3.4's BTF"),
    Change((7, 3), "reserves_cma", True, "c12c63d05dfe"),
    Change((7, 3), "reserves_first_reg", True, "fdt_scan_reserved_mem_late() of 7.3.4, reserved_mem_ops"),
    Change((7, 3), "cma_limit_is_asked", True, "dma_contiguous_reserve() of 7.3.4, not of 6.12.118"),
    Change((7, 3), "usable_ranges", 6, "c12c63d05dfe"),
    Change((7, 3), "ragged_is_none", True, "of_flat_dt_get_addr_size_prop(): in 7.3.4, not in 6.12.118"),
)
"""Every change that the model knows, in order of release."""


@total_ordering
class Era(enum.Enum):
    """A stretch of arm64 history; the value is the release that begins it, and what was so then is the era's.

    A new era is one entry, behind those before it: the release, and a sentence for people. What is so in it is in
    CHANGES. The first one stands for everything before it, too.
    """

    V6_1 = (
        "6.1",
        "before the series of April 2023: the loaded segments lose PTE_VALID, and crashkernel= may force the whole "
        "linear map down to base pages",
    )
    V6_2 = (
        "6.2",
        "the same, but crashkernel=X falls back to high memory, and 128 MiB of low memory go with it",
    )
    V6_4 = (
        "6.4",
        "right after the series (commits 0d124e96051b, 04a2a7af3d97, 504cae453f82): no protection, late reservation",
    )
    V6_5 = ("6.5", "crashkernel=X,high falls back to low memory (6c4dcaddbd36)")
    V6_6 = ("6.6", "as 6.5")
    V6_7 = ("6.7", "the generic reservation (fdc268232dbb)")
    V6_12 = ("6.12", "with KEXEC_FILE_DEBUG, and IMA's list as its stable releases have it")
    V6_18 = ("6.18", "crashkernel=X,cma is skipped, flags to 0x3f")
    V7_0 = ("7.0", "crash memory is reserved before the memory map, and so lies higher")
    V7_3 = ("7.3", "crashkernel=X,cma is reserved (c12c63d05dfe)")

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """One entry of the table."""
        era = object.__new__(cls)
        era._value_, era.meaning = value, meaning
        return era

    def __lt__(self, other: object) -> bool:
        """Is it older?"""
        return self.since < other.since if isinstance(other, Era) else NotImplemented

    @property
    def since(self) -> tuple[int, int]:
        """The release that begins it."""
        return parse_release(self.value)

    @property
    def rules(self) -> Rules:
        """Every rule as this era has it."""
        return _rules(self.since)

    @classmethod
    def of_release(cls, release: str) -> Era:
        """The era that a kernel belongs to by what uname -r says of it.

        InputError for what is no release, and for one that is newer than all that is known here.
        """
        version = parse_release(release)
        if version > (newest := max(cls)).since:
            raise InputError(f"Linux {release} is newer than the newest that is known here, {newest.value}")
        return max((era for era in cls if era.since <= version), default=min(cls))


def parse_release(text: str) -> tuple[int, int]:
    """The first two numbers of a release of Linux; InputError for what is none."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text)
    if found is None:
        raise InputError(f"{text!r} is no release of Linux")
    return int(found[1]), int(found[2])


@cache
def _rules(release: tuple[int, int]) -> Rules:
    return replace(Rules(), **{one.rule: one.value for one in CHANGES if one.since <= release})
