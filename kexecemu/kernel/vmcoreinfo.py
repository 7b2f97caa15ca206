"""VMCOREINFO: what dump tools must know of this kernel, kept in its memory (kernel/crash_core.c, section C.7 order)."""

from __future__ import annotations

from kexecemu.formats.elfnote import vmcoreinfo_note
from kexecemu.kernel.vmlinux import GuestKernel

__all__ = ["VMCOREINFO_BYTES", "VMCOREINFO_NOTE_SIZE", "append_crashtime", "vmcoreinfo_text", "write_note"]

VMCOREINFO_BYTES = 4096
VMCOREINFO_NOTE_SIZE = 0x1024
_LINE_LIMIT = 0x50  # vmcoreinfo_append_str() formats into a buffer of this size

_U64 = 1 << 64

# (kind, names) in the kernel's order; lines whose symbol or structure the guest lacks are left out.
_LINES: tuple[tuple[str, str], ...] = (
    ("SYMBOL", "init_uts_ns"),
    ("OFFSET", "uts_namespace.name"),
    ("SYMBOL", "node_online_map"),
    ("SYMBOL", "swapper_pg_dir"),
    ("SYMBOL", "_stext"),
    ("SYMBOL", "vmap_area_list"),
    ("ARRAY", "mem_section"),
    ("SIZE", "mem_section"),
    ("OFFSET", "mem_section.section_mem_map"),
    ("NUMBER", "SECTION_SIZE_BITS=27"),
    ("NUMBER", "MAX_PHYSMEM_BITS=48"),
    ("SIZE", "page"),
    ("SIZE", "list_head"),
    ("OFFSET", "page.flags"),
    ("OFFSET", "page._refcount"),
    ("OFFSET", "page.mapping"),
    ("OFFSET", "page.lru"),
    ("OFFSET", "page._mapcount"),
    ("OFFSET", "page.private"),
    ("OFFSET", "page.compound_dtor"),
    ("OFFSET", "page.compound_order"),
    ("OFFSET", "page.compound_head"),
    ("OFFSET", "list_head.next"),
    ("OFFSET", "list_head.prev"),
    ("SYMBOL", "prb"),
    ("SYMBOL", "printk_rb_static"),
    ("SYMBOL", "clear_seq"),
    ("SIZE", "printk_ringbuffer"),
    ("OFFSET", "printk_ringbuffer.desc_ring"),
    ("OFFSET", "printk_ringbuffer.text_data_ring"),
    ("OFFSET", "printk_ringbuffer.fail"),
    ("SIZE", "prb_desc_ring"),
    ("OFFSET", "prb_desc_ring.count_bits"),
    ("OFFSET", "prb_desc_ring.descs"),
    ("OFFSET", "prb_desc_ring.infos"),
    ("OFFSET", "prb_desc_ring.head_id"),
    ("OFFSET", "prb_desc_ring.tail_id"),
    ("SIZE", "prb_desc"),
    ("OFFSET", "prb_desc.state_var"),
    ("OFFSET", "prb_desc.text_blk_lpos"),
    ("SIZE", "prb_data_blk_lpos"),
    ("OFFSET", "prb_data_blk_lpos.begin"),
    ("OFFSET", "prb_data_blk_lpos.next"),
    ("SIZE", "printk_info"),
    ("OFFSET", "printk_info.seq"),
    ("OFFSET", "printk_info.ts_nsec"),
    ("OFFSET", "printk_info.text_len"),
    ("OFFSET", "printk_info.caller_id"),
    ("OFFSET", "printk_info.dev_info"),
    ("SIZE", "dev_printk_info"),
    ("OFFSET", "dev_printk_info.subsystem"),
    ("LENGTH", "printk_info_subsystem=16"),
    ("OFFSET", "dev_printk_info.device"),
    ("LENGTH", "printk_info_device=48"),
    ("SIZE", "prb_data_ring"),
    ("OFFSET", "prb_data_ring.size_bits"),
    ("OFFSET", "prb_data_ring.data"),
    ("OFFSET", "prb_data_ring.head_lpos"),
    ("OFFSET", "prb_data_ring.tail_lpos"),
    ("SIZE", "atomic_long_t"),
    ("OFFSET", "atomic_long_t.counter"),
    ("SIZE", "latched_seq"),
    ("OFFSET", "latched_seq.val"),
    ("NUMBER", "PG_lru=4"),
    ("NUMBER", "PG_private=13"),
    ("NUMBER", "PG_swapcache=10"),
    ("NUMBER", "PG_swapbacked=19"),
    ("NUMBER", "PG_slab=9"),
    ("NUMBER", "PG_head_mask=65536"),
    ("NUMBER", "PAGE_BUDDY_MAPCOUNT_VALUE=-129"),
)


def _line(guest: GuestKernel, kind: str, what: str) -> str | None:
    vmlinux = guest.vmlinux
    structs = vmlinux.layout["structs"]
    if kind == "SYMBOL":
        return f"SYMBOL({what})={vmlinux.virt(what):x}" if what in vmlinux.elf.symbols else None
    if kind == "SIZE":
        return f"SIZE({what})={vmlinux.sizeof(what)}" if what in structs else None
    if kind == "OFFSET":
        struct, member = what.split(".")
        known = struct in structs and member in structs[struct]["members"]
        return f"OFFSET({what})={vmlinux.offsetof(struct, member)}" if known else None
    if kind == "ARRAY":
        # SYMBOL(mem_section) is the value of the pointer, not the variable's address (VMCOREINFO_SYMBOL_ARRAY).
        if "mem_section" not in vmlinux.elf.symbols:
            return None
        return f"SYMBOL({what})={guest.read(what):x}\nLENGTH({what})=8192"
    name, value = what.split("=")
    return f"{kind}({name})={value}"


def vmcoreinfo_text(guest: GuestKernel, page_size: int, phys_offset: int, t1sz: int) -> bytes:
    """The lines that crash_save_vmcoreinfo_init() and arch_crash_save_vmcoreinfo() write at boot.

    page_size in bytes, phys_offset a physical address (PHYS_OFFSET), t1sz the TCR_EL1.T1SZ field.
    """
    space = guest.space
    lines = [
        f"OSRELEASE={_release(guest)}",
        f"BUILD-ID={guest.vmlinux.build_id}",
        f"PAGESIZE={page_size}",
    ]
    lines += [line for kind, what in _LINES if (line := _line(guest, kind, what)) is not None]
    lines += [
        f"NUMBER(VA_BITS)={space.va_bits}",
        f"NUMBER(kimage_voffset)={space.kimage_voffset:#x}",
        f"NUMBER(PHYS_OFFSET)={phys_offset:#x}",
        f"NUMBER(TCR_EL1_T1SZ)={t1sz:#x}",
        f"KERNELOFFSET={guest.space.kimage_vaddr - guest.vmlinux.virt('_text'):x}",
        "NUMBER(KERNELPACMASK)=0x0",
    ]
    return "".join(line + "\n" for line in lines).encode()[:VMCOREINFO_BYTES]


def _release(guest: GuestKernel) -> str:
    """uts_namespace.name.release of the running kernel, from its own memory."""
    layout = guest.vmlinux
    offset = layout.offsetof("uts_namespace", "name") + layout.offsetof("new_utsname", "release")
    return guest.ram.read_cstring(guest.phys("init_uts_ns") + offset, 65).decode()


def append_crashtime(text: bytes, seconds: int) -> bytes:
    """crash_save_vmcoreinfo(): the one line that is only there after a crash, in seconds."""
    line = f"CRASHTIME={seconds}\n".encode()[:_LINE_LIMIT]
    return (text + line)[:VMCOREINFO_BYTES]


def write_note(guest: GuestKernel, text: bytes) -> None:
    """update_vmcoreinfo_note(): the ELF note in the first kernel's memory that the core's PT_NOTE points at."""
    note_phys = guest.space.virt_to_phys(guest.read("vmcoreinfo_note"))
    guest.ram.fill(note_phys, VMCOREINFO_NOTE_SIZE)
    guest.ram.write(note_phys, vmcoreinfo_note(text))
