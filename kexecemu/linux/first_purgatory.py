"""The purgatory of a real first kernel whose kexec_file_load has one: in its Image, and where it was linked to.

No kernel that Debian builds has one. One that is patched carries it as an object in its Image, as x86's do, and links
it into the crash region. The object tells its size, its entry and its symbols; memory tells what was made of them.
"""

import struct

from kexecemu.errors import BusError, FormatError
from kexecemu.formats.elf import SHF_EXECINSTR, SHT_NOBITS, SHT_NULL
from kexecemu.formats.elfrel import RelocatableObject, embedded_objects, parse
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.image.segment import Segment
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["FoundPurgatory", "built_in_purgatory", "find_purgatory", "hashed_regions"]

_SHF_ALLOC = 2
_LOOK = 64  # bytes of code by which a place is tried
_REGIONS = struct.Struct("<QQ")


class FoundPurgatory(LoadedPurgatory):
    """A purgatory that a real kernel has linked: its object, its place, and its bytes as they are in memory."""

    def __init__(self, obj: RelocatableObject, segment: Segment) -> None:
        """The segment has what memory held; KexecError for an object that the model's loader would not take."""
        super().__init__(obj, lambda buf, memsz, align: segment)
        self.linked = bytes(self.buf)
        """As the object alone would have it, with no variable set."""
        self.buf = bytearray(segment.buf)


def built_in_purgatory(image: bytes) -> RelocatableObject | None:
    """The object that an Image carries, None for one without."""
    for _, data in embedded_objects(image):
        try:
            obj = parse(data)
        except FormatError:
            continue
        if obj.global_symbol("purgatory_start") is not None:
            return obj
    return None


def find_purgatory(
    ram: Ram, region: PhysRange, obj: RelocatableObject, page_size: int
) -> FoundPurgatory | None:
    """Where the crash region holds this object, linked to where it lies; None where it does not.

    It begins on a page, and all of its code is as the object has it. KexecError as FoundPurgatory.
    """
    memory = ram.read(region.start, region.size)
    tried = _at(ram, obj, region.start, page_size)
    code = _code(obj)
    first = code[0][0] if code else 0
    look = tried.linked[first : first + _LOOK]
    at = memory.find(look)
    while at >= 0:
        if (at - first) % page_size == 0 and at >= first:
            found = _at(ram, obj, region.start + at - first, page_size)
            if all(found.buf[start:end] == found.linked[start:end] for start, end in code):
                return found
        at = memory.find(look, at + 4)
    return None


def hashed_regions(purgatory: LoadedPurgatory) -> list[PhysRange]:
    """What it was told to hash, in order (purgatory_sha_regions); [] where it has no such table."""
    if not purgatory.has_symbol("purgatory_sha_regions"):
        return []
    at, size = (
        purgatory.symbol_offset("purgatory_sha_regions"),
        purgatory.symbol_size("purgatory_sha_regions"),
    )
    pairs = _REGIONS.iter_unpack(bytes(purgatory.buf[at : at + size]))
    return [PhysRange.of(start, length) for start, length in pairs if length]


def _at(ram: Ram, obj: RelocatableObject, phys: int, page_size: int) -> FoundPurgatory:
    """The object linked to a place, beside what memory has there; past the end of RAM there are zeros."""
    sizes: list[tuple[int, int]] = []

    def measure(buf: bytearray, memsz: int, align: int) -> Segment:
        sizes.append((len(buf), memsz))
        return Segment("purgatory", buf, phys, memsz)

    LoadedPurgatory(obj, measure)
    bufsz, memsz = sizes[0]
    try:
        held = ram.read(phys, bufsz)
    except BusError:
        held = bytes(bufsz)
    return FoundPurgatory(obj, Segment("purgatory", held, phys, align_up(memsz, page_size)))


def _code(obj: RelocatableObject) -> list[tuple[int, int]]:
    """The executable sections, as offsets [start, end) in the linked buffer: kexec_purgatory_setup_sechdrs()."""
    offset = 0
    found: list[tuple[int, int]] = []
    for section in obj.sections:
        if not section.flags & _SHF_ALLOC or section.type in (SHT_NULL, SHT_NOBITS):
            continue
        offset = align_up(offset, max(section.align, 1))
        if section.flags & SHF_EXECINSTR:
            found.append((offset, offset + section.size))
        offset += section.size
    return found
