"""The ELF core header for the capture kernel: crash_prepare_elf64_headers() of kernel/kexec_file.c."""

from collections.abc import Callable, Sequence

from kexecemu.formats.elf import EHDR_SIZE, PHDR_SIZE, PT_LOAD, PT_NOTE, ProgramHeader
from kexecemu.formats.elfcore import PF_RWX, build_elfcorehdr
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["prepare_elf_headers"]

_ALIGN = 4096  # ELF_CORE_HEADER_ALIGN


def prepare_elf_headers(
    *,
    crash_notes: Sequence[tuple[int, int]],
    vmcoreinfo_note: tuple[int, int],
    kernel_text: tuple[int, int, int],
    memory: Sequence[PhysRange],
    exclude: Sequence[PhysRange],
    linear_virt: Callable[[int], int],
    possible_cpus: int,
) -> bytes:
    """The elfcorehdr segment: headers, then zeros up to whole pages.

    crash_notes are (phys, size) of each present CPU's note buffer, vmcoreinfo_note that of VMCOREINFO;
    kernel_text is (_text as virtual address, its physical address, size up to _end). memory is what memblock
    knows, in its order, of which the exclude ranges (crashk_res, crashk_low_res) are left out; linear_virt
    gives the linear map's virtual address of a physical one. Sizes are in bytes. possible_cpus is only for
    the size of the segment.
    """
    text_virt, text_phys, text_size = kernel_text
    notes = (*crash_notes, vmcoreinfo_note)
    headers = [ProgramHeader(PT_NOTE, 0, phys, 0, phys, size, size) for phys, size in notes]
    headers.append(_load(text_virt, text_phys, text_size))
    ranges = subtract(memory, exclude)
    headers += [_load(linear_virt(part.start), part.start, part.size) for part in ranges]
    # One header for each CPU that could be, VMCOREINFO, each range and the kernel text.
    room = EHDR_SIZE + (possible_cpus + 1 + len(ranges) + 1) * PHDR_SIZE
    return build_elfcorehdr(headers, size=(room + _ALIGN - 1) & -_ALIGN)


def _load(virt: int, phys: int, size: int) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, PF_RWX, phys, virt, phys, size, size)
