"""VMCOREINFO: what dump tools must know of this kernel, kept in its memory.

Followed, in its order: crash_save_vmcoreinfo_init() of kernel/crash_core.c, arch_crash_save_vmcoreinfo() of arm64.
"""

from collections.abc import Mapping

from kexecemu.formats.elfnote import vmcoreinfo_note
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.vmcoreinfo_lines import vmcoreinfo_lines
from kexecemu.kernel.memory.sparsemem import (
    MAX_PHYSMEM_BITS,
    STRUCT_PAGE_SIZE,
    nr_section_roots,
    section_size_bits,
    vmemmap_base,
    vmemmap_range,
)

__all__ = ["VMCOREINFO_BYTES", "VMCOREINFO_NOTE_SIZE", "append_crashtime", "note_size", "vmcoreinfo_text"]
__all__ += ["write_note"]

VMCOREINFO_BYTES = 4096
VMCOREINFO_NOTE_SIZE = 0x1024
_LINE_LIMIT = 0x50  # vmcoreinfo_append_str() formats into a buffer of this size

_N_ONLINE, _NODEMASK_SIZE = 1, 8  # node_online_map is node_states[N_ONLINE]

# Lengths that have a name of their own.
_LENGTHS = {
    "printk_info_subsystem": "dev_printk_info.subsystem",
    "printk_info_device": "dev_printk_info.device",
}


def _symbol(guest: GuestKernel, name: str, page_size: int) -> int | None:
    """What SYMBOL(name) is, None where the guest has no such symbol."""
    symbols = guest.vmlinux.elf.symbols
    if name == "mem_section":
        # VMCOREINFO_SYMBOL_ARRAY takes a name for an array's address: of a pointer that is its value.
        return guest.read(name) if name in symbols else None
    if name == "vmemmap":
        return vmemmap_base(guest.space, page_size)
    if name == "node_online_map":
        return symbols["node_states"] + _N_ONLINE * _NODEMASK_SIZE if "node_states" in symbols else None
    return symbols.get(name)


def _numbers(space: AddressSpace, page_size: int) -> dict[str, str]:
    """NUMBER()s that are neither the same in all kernels of a release nor in the guest's debug information."""
    vmemmap_start, vmemmap_end = vmemmap_range(space, page_size)
    modules_end = space.page_end + space.modules_vsize
    unused = ((1 << space.va_bits) - (1 << space.vabits_actual)) // page_size * STRUCT_PAGE_SIZE
    gap = 8 << 20 if space.vmemmap_at_end else 256 << 20
    ranges = {
        "MODULES_VADDR": space.page_end,
        "MODULES_END": modules_end,
        "VMALLOC_START": modules_end,
        "VMALLOC_END": vmemmap_start + (unused if space.vmemmap_at_end else 0) - gap,
        "VMEMMAP_START": vmemmap_start,
        "VMEMMAP_END": vmemmap_end,
        "kimage_voffset": space.kimage_voffset,
        "PHYS_OFFSET": space.phys_offset % (1 << 64),
        "TCR_EL1_T1SZ": 64 - space.vabits_actual,
        "KERNELPACMASK": 0,  # no pointer authentication
    }
    return {
        "SECTION_SIZE_BITS": str(section_size_bits(page_size)),
        "MAX_PHYSMEM_BITS": str(MAX_PHYSMEM_BITS),
        "VA_BITS": str(space.va_bits),
        **{name: f"{value:#x}" for name, value in ranges.items()},
    }


def _line(guest: GuestKernel, page_size: int, numbers: Mapping[str, str], kind: str, what: str) -> str | None:
    """One line; None where the guest lacks what it is about. numbers are _numbers() of this kernel."""
    structs = guest.vmlinux.layout["structs"]
    struct, _, member = _LENGTHS.get(what, what).partition(".")
    value: int | str | None
    if kind == "SYMBOL":
        address = _symbol(guest, what, page_size)
        value = None if address is None else f"{address:x}"
    elif kind == "SIZE":
        value = structs[what]["size"] if what in structs else None
    elif kind == "LENGTH" and what == "mem_section":
        value = nr_section_roots(page_size)
    elif kind in ("OFFSET", "LENGTH"):
        value = structs.get(struct, {}).get("members" if kind == "OFFSET" else "lengths", {}).get(member)
    elif "=" in what:
        what, _, value = what.partition("=")
    else:
        value = numbers[what]
    return None if value is None else f"{kind}({what})={value}"


def vmcoreinfo_text(guest: GuestKernel, config: KernelConfig) -> bytes:
    """The lines that crash_save_vmcoreinfo_init() and arch_crash_save_vmcoreinfo() of the era write at boot."""
    layout, page_size = guest.vmlinux, config.page_size
    offset = layout.offsetof("uts_namespace", "name") + layout.offsetof("new_utsname", "release")
    release = guest.ram.read_cstring(guest.phys("init_uts_ns") + offset, 65).decode()
    lines: list[str | None] = [f"OSRELEASE={release}", f"BUILD-ID={layout.build_id}", f"PAGESIZE={page_size}"]
    numbers = _numbers(guest.space, page_size)
    for kind, what in vmcoreinfo_lines(config):
        if kind == "KERNELOFFSET":
            lines.append(f"KERNELOFFSET={guest.space.kimage_vaddr - layout.virt('_text'):x}")
        else:
            lines.append(_line(guest, page_size, numbers, kind, what))
    return "".join(line + "\n" for line in lines if line is not None).encode()[:VMCOREINFO_BYTES]


def append_crashtime(text: bytes, seconds: int) -> bytes:
    """crash_save_vmcoreinfo(): the one line that is only there after a crash, in seconds."""
    line = f"CRASHTIME={seconds}\n".encode()[:_LINE_LIMIT]
    return (text + line)[:VMCOREINFO_BYTES]


def note_size(page_size: int) -> int:
    """VMCOREINFO_NOTE_SIZE in bytes: a page of text (VMCOREINFO_BYTES), and a note's header around it."""
    return VMCOREINFO_NOTE_SIZE - VMCOREINFO_BYTES + page_size


def write_note(guest: GuestKernel, text: bytes) -> None:
    """update_vmcoreinfo_note(): the ELF note in the first kernel's memory that the core's PT_NOTE points at."""
    note_phys = guest.space.virt_to_phys(guest.read("vmcoreinfo_note"))
    guest.ram.fill(note_phys, VMCOREINFO_NOTE_SIZE)
    guest.ram.write(note_phys, vmcoreinfo_note(text))
