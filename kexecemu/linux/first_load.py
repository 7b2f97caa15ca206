"""What a real kexec-tools has loaded, as an object: what it said, checked against memory and against the files."""

from __future__ import annotations

from collections.abc import Mapping

from kexecemu.errors import MachineError
from kexecemu.kernel.digests import calculate_digest
from kexecemu.kernel.kexec_core import alloc_crash_control_pages
from kexecemu.kernel.kimage import Kimage, Segment
from kexecemu.linux.first_records import KexecSaid
from kexecemu.machine.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["read_load"]

_MAGICS = {"dtb": b"\xd0\x0d\xfe\xed", "elfcorehdr": b"\x7fELF"}


def read_load(
    ram: Ram, said: KexecSaid, files: Mapping[str, bytes], region: PhysRange, *, page_size: int, checks: bool
) -> Kimage:
    """The load that kexec told of, with the contents that memory has: what is as loaded is decided by them later.

    files are those that were loaded, by segment: memory must hold them, and with checks the purgatory the digest of
    all. region is crashk_res; the kernel's own pages in there are where it allocates them, in pages of page_size bytes.
    Raises MachineError when memory does not hold what was said.
    """
    segments = [Segment(one.name, ram.read(one.mem, one.bufsz), one.mem, one.memsz) for one in said.segments]
    image = Kimage(control_page=region.start, segments=segments, start=said.entry)
    for segment in segments:
        if ram.read(segment.mem, segment.memsz) != segment.content():
            raise MachineError(
                f"{segment.name} at {segment.area} has no zeros behind its {segment.bufsz:#x} bytes"
            )
    for name in ("kernel", "initrd", "dtb", "elfcorehdr"):
        found = image.segment(name)
        wanted = files.get(name, _MAGICS.get(name, b""))
        if (
            found is None
            or found.buf[: len(wanted)] != wanted
            or (name in files and found.bufsz != len(wanted))
        ):
            raise MachineError(f"memory does not hold the {name} where kexec said that it is")
    kernel, dtb, purgatory = (image.segment(name) for name in ("kernel", "dtb", "purgatory"))
    assert kernel is not None and dtb is not None
    image.kernel_entry, image.dtb_mem = kernel.mem, dtb.mem
    if checks:
        image.digest, image.sha_regions = calculate_digest(segments)
        if purgatory is None or image.digest not in bytes(purgatory.buf):
            raise MachineError("the purgatory that was loaded has not the digest of the other segments")
    for why in ("control_code_buffer", "vmcoreinfo copy buffer"):
        alloc_crash_control_pages(image, region, page_size, why)
    return image
