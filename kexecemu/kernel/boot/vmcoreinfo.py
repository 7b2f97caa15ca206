"""VMCOREINFO: what dump tools must know of this kernel, kept in its memory.

Followed, in its order: crash_save_vmcoreinfo_init() of kernel/crash_core.c, arch_crash_save_vmcoreinfo() of arm64.
"""

from kexecemu.formats.elfnote import vmcoreinfo_note
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.memory.sparsemem import (
    MAX_PHYSMEM_BITS,
    nr_section_roots,
    section_size_bits,
    vmemmap_range,
)

__all__ = ["VMCOREINFO_BYTES", "VMCOREINFO_NOTE_SIZE", "append_crashtime", "vmcoreinfo_text", "write_note"]

VMCOREINFO_BYTES = 4096
VMCOREINFO_NOTE_SIZE = 0x1024
_LINE_LIMIT = 0x50  # vmcoreinfo_append_str() formats into a buffer of this size

_N_ONLINE, _NODEMASK_SIZE = 1, 8  # node_online_map is node_states[N_ONLINE]
_MODULES_VSIZE = 128 << 20
_VMALLOC_GAP = 256 << 20  # between the end of the vmalloc area and VMEMMAP_START

# Lengths that have a name of their own.
_LENGTHS = {
    "printk_info_subsystem": "dev_printk_info.subsystem",
    "printk_info_device": "dev_printk_info.device",
}

# A kind and what of it there is, in the kernel's order; what the guest lacks is left out.
_LINES = f"""
SYMBOL init_uts_ns
OFFSET uts_namespace.name
SYMBOL node_online_map swapper_pg_dir _stext vmap_area_list mem_map contig_page_data mem_section
LENGTH mem_section
SIZE mem_section
OFFSET mem_section.section_mem_map
NUMBER SECTION_SIZE_BITS MAX_PHYSMEM_BITS={MAX_PHYSMEM_BITS}
SIZE page pglist_data zone free_area list_head nodemask_t
OFFSET page.flags page._refcount page.mapping page.lru page._mapcount page.private page.compound_dtor
OFFSET page.compound_order page.compound_head pglist_data.node_zones pglist_data.nr_zones
OFFSET pglist_data.node_start_pfn pglist_data.node_spanned_pages pglist_data.node_id zone.free_area zone.vm_stat
OFFSET zone.spanned_pages free_area.free_list list_head.next list_head.prev vmap_area.va_start vmap_area.list
LENGTH zone.free_area
SYMBOL prb printk_rb_static clear_seq
SIZE printk_ringbuffer
OFFSET printk_ringbuffer.desc_ring printk_ringbuffer.text_data_ring printk_ringbuffer.fail
SIZE prb_desc_ring
OFFSET prb_desc_ring.count_bits prb_desc_ring.descs prb_desc_ring.infos prb_desc_ring.head_id
OFFSET prb_desc_ring.tail_id
SIZE prb_desc
OFFSET prb_desc.state_var prb_desc.text_blk_lpos
SIZE prb_data_blk_lpos
OFFSET prb_data_blk_lpos.begin prb_data_blk_lpos.next
SIZE printk_info
OFFSET printk_info.seq printk_info.ts_nsec printk_info.text_len printk_info.caller_id printk_info.dev_info
SIZE dev_printk_info
OFFSET dev_printk_info.subsystem
LENGTH printk_info_subsystem
OFFSET dev_printk_info.device
LENGTH printk_info_device
SIZE prb_data_ring
OFFSET prb_data_ring.size_bits prb_data_ring.data prb_data_ring.head_lpos prb_data_ring.tail_lpos
SIZE atomic_long_t
OFFSET atomic_long_t.counter
SIZE latched_seq
OFFSET latched_seq.val
LENGTH free_area.free_list
NUMBER NR_FREE_PAGES=0 PG_lru=4 PG_private=13 PG_swapcache=10 PG_swapbacked=19 PG_slab=9 PG_head_mask=65536
NUMBER PAGE_BUDDY_MAPCOUNT_VALUE=-129
"""


def _symbol(guest: GuestKernel, name: str) -> int | None:
    """What SYMBOL(name) is, None where the guest has no such symbol."""
    symbols = guest.vmlinux.elf.symbols
    if name == "mem_section":
        # VMCOREINFO_SYMBOL_ARRAY takes a name for an array's address: of a pointer that is its value.
        return guest.read(name) if name in symbols else None
    if name == "node_online_map":
        return symbols["node_states"] + _N_ONLINE * _NODEMASK_SIZE if "node_states" in symbols else None
    return symbols.get(name)


def _line(guest: GuestKernel, page_size: int, kind: str, what: str) -> str | None:
    """One line; None where the guest lacks what it is about."""
    structs = guest.vmlinux.layout["structs"]
    struct, _, member = _LENGTHS.get(what, what).partition(".")
    value: int | str | None
    if kind == "SYMBOL":
        address = _symbol(guest, what)
        value = None if address is None else f"{address:x}"
    elif kind == "SIZE":
        value = structs[what]["size"] if what in structs else None
    elif what == "mem_section":
        value = nr_section_roots(page_size)
    elif kind in ("OFFSET", "LENGTH"):
        value = structs.get(struct, {}).get("members" if kind == "OFFSET" else "lengths", {}).get(member)
    elif what == "SECTION_SIZE_BITS":
        value = section_size_bits(page_size)
    else:
        what, _, value = what.partition("=")
    return None if value is None else f"{kind}({what})={value}"


def _arm64_lines(space: AddressSpace, page_size: int) -> list[str]:
    """arch_crash_save_vmcoreinfo(), up to VMEMMAP_END: the address space of 6.1, in which the guest is linked."""
    vmemmap_start, vmemmap_end = vmemmap_range(space, page_size)
    modules_end = space.page_end + _MODULES_VSIZE
    ranges = {
        "MODULES_VADDR": space.page_end,
        "MODULES_END": modules_end,
        "VMALLOC_START": modules_end,
        "VMALLOC_END": vmemmap_start - _VMALLOC_GAP,
        "VMEMMAP_START": vmemmap_start,
        "VMEMMAP_END": vmemmap_end,
    }
    lines = [f"NUMBER({name})={virt:#x}" for name, virt in ranges.items()]
    return [f"NUMBER(VA_BITS)={space.va_bits}", *lines]


def vmcoreinfo_text(guest: GuestKernel, page_size: int, phys_offset: int, t1sz: int) -> bytes:
    """The lines that crash_save_vmcoreinfo_init() and arch_crash_save_vmcoreinfo() write at boot.

    page_size in bytes, phys_offset a physical address (PHYS_OFFSET), t1sz the TCR_EL1.T1SZ field.
    """
    space = guest.space
    layout = guest.vmlinux
    offset = layout.offsetof("uts_namespace", "name") + layout.offsetof("new_utsname", "release")
    release = guest.ram.read_cstring(guest.phys("init_uts_ns") + offset, 65).decode()
    lines = [f"OSRELEASE={release}", f"BUILD-ID={layout.build_id}", f"PAGESIZE={page_size}"]
    for kind, *names in map(str.split, _LINES.strip().splitlines()):
        found = (_line(guest, page_size, kind, what) for what in names)
        lines += [line for line in found if line is not None]
    lines += [
        *_arm64_lines(space, page_size),
        f"NUMBER(kimage_voffset)={space.kimage_voffset:#x}",
        f"NUMBER(PHYS_OFFSET)={phys_offset:#x}",
        f"NUMBER(TCR_EL1_T1SZ)={t1sz:#x}",
        f"KERNELOFFSET={guest.space.kimage_vaddr - guest.vmlinux.virt('_text'):x}",
        "NUMBER(KERNELPACMASK)=0x0",
    ]
    return "".join(line + "\n" for line in lines).encode()[:VMCOREINFO_BYTES]


def append_crashtime(text: bytes, seconds: int) -> bytes:
    """crash_save_vmcoreinfo(): the one line that is only there after a crash, in seconds."""
    line = f"CRASHTIME={seconds}\n".encode()[:_LINE_LIMIT]
    return (text + line)[:VMCOREINFO_BYTES]


def write_note(guest: GuestKernel, text: bytes) -> None:
    """update_vmcoreinfo_note(): the ELF note in the first kernel's memory that the core's PT_NOTE points at."""
    note_phys = guest.space.virt_to_phys(guest.read("vmcoreinfo_note"))
    guest.ram.fill(note_phys, VMCOREINFO_NOTE_SIZE)
    guest.ram.write(note_phys, vmcoreinfo_note(text))
