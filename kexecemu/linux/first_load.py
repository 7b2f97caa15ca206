"""What a real kexec-tools has loaded, as an object: what it said, checked against memory and against the files."""

from collections.abc import Mapping

from kexecemu.errors import MachineError
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel.image.digests import calculate_digest
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.load.kexec_core import alloc_crash_control_pages
from kexecemu.linux.first_purgatory import FoundPurgatory
from kexecemu.linux.first_records import KexecSaid
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["SaidPurgatory", "read_load"]


class SaidPurgatory(LoadedPurgatory):
    """A purgatory that kexec-tools has linked: its place, and those of its symbols that it told of."""

    def __init__(self, segment: Segment, said: KexecSaid) -> None:
        self.segment, self.buf, self.entry = segment, bytearray(segment.buf), said.entry
        self._symbols = {name: (area.start, area.size) for name, area in said.symbols.items()}

    def symbol_table(self) -> dict[str, tuple[int, int]]:
        """Name to physical address and size in bytes."""
        return self._symbols

    def has_symbol(self, name: str) -> bool:
        """It was told of."""
        return name in self._symbols

    def symbol_size(self, name: str) -> int:
        """In bytes, 0 for one that was not told of."""
        return self._symbols.get(name, (0, 0))[1]

    def scratch(self) -> list[PhysRange]:
        """What it may write of its own is not told of."""
        return []


_MAGICS = {"dtb": b"\xd0\x0d\xfe\xed", "elfcorehdr": b"\x7fELF"}


def read_load(
    ram: Ram,
    said: KexecSaid,
    files: Mapping[str, bytes],
    region: PhysRange,
    *,
    page_size: int,
    checks: bool,
    built_in: RelocatableObject | None = None,
) -> Kimage:
    """The load that kexec told of, with the contents that memory has: what is as loaded is decided by them later.

    files are those that were loaded, by segment: memory must hold them, and with checks the purgatory the digest of
    all. region is crashk_res; the kernel's own pages in there are where it allocates them, in pages of page_size bytes.
    built_in is the purgatory's object where the kernel has it, and not kexec-tools. Raises MachineError when memory
    does not hold what was said.
    """
    segments = [Segment(one.name, ram.read(one.mem, one.bufsz), one.mem, one.memsz) for one in said.segments]
    image = Kimage(control_page=region.start, segments=segments, start=said.entry)
    for segment in segments:
        if ram.read(segment.mem, segment.memsz) != segment.content():
            zeros = f"no zeros behind its {segment.bufsz:#x} bytes"
            raise MachineError(f"{segment.name} at {segment.area} has {zeros}")
    for name in ("kernel", "initrd", "dtb", "elfcorehdr"):
        found = image.segment(name)
        held = found.buf if found is not None else b""
        if held != files[name] if name in files else not held.startswith(_MAGICS[name]):
            raise MachineError(f"memory does not hold the {name} where kexec said that it is")
    kernel, dtb, purgatory = map(image.segment, ("kernel", "dtb", "purgatory"))
    assert kernel is not None and dtb is not None
    image.kernel_entry, image.dtb_mem = kernel.mem, dtb.mem
    if checks:
        image.digest, image.sha_regions = calculate_digest(segments)
        if purgatory is None or image.digest not in bytes(purgatory.buf):
            raise MachineError("the purgatory that was loaded has not the digest of the other segments")
    if purgatory is not None:
        own = None if built_in is None else FoundPurgatory(built_in, purgatory)
        image.purgatory = own or SaidPurgatory(purgatory, said)
    for why in ("control_code_buffer", "vmcoreinfo copy buffer"):
        alloc_crash_control_pages(image, region, page_size, why)
    return image
