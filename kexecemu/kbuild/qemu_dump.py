"""The dump that a capture kernel in QEMU copied to its disk, beside what memory held when the image was entered."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from kexecemu.errors import FormatError
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.kbuild.qemu import Qemu
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.ranges import PhysRange

__all__ = ["MemoryHeld", "dump_loads", "true_dump"]

MemoryHeld = Sequence[tuple[PhysRange, str]]
"""Areas of physical memory, and the SHA-256 of each."""


def dump_loads(qemu: Qemu, image: Kimage) -> MemoryHeld:
    """What a dump should have, by the loaded elfcorehdr, as memory is now."""
    core = image.segment("elfcorehdr")
    assert core is not None
    headers = parse_core_header(bytes(core.buf)).program_headers
    areas = [PhysRange.of(one.paddr, one.memsz) for one in headers if one.type == PT_LOAD]
    found = []
    for area in areas:
        with qemu.saved_memory(area) as path, open(path, "rb") as file:
            found.append((area, hashlib.file_digest(file, "sha256").hexdigest()))
    return found


def true_dump(disk: Path | None, said: str, loads: MemoryHeld) -> bool:
    """The PT_LOADs of the core on the disk are what memory held; said is the capture kernel's last word."""
    if disk is None or not re.search(r", [0-9]+ bytes to ", said):
        return False
    read = []
    with open(disk, "rb") as file:
        try:
            headers = parse_core_header(file.read(1 << 16)).program_headers
        except FormatError:
            return False
        if any(one.offset + one.filesz > disk.stat().st_size for one in headers):
            return False  # whatever a guest has written there
        for one in headers:
            if one.type == PT_LOAD:
                file.seek(one.offset)
                digest = hashlib.sha256()
                for at in range(0, one.filesz, 1 << 22):
                    digest.update(file.read(min(1 << 22, one.filesz - at)))
                read.append((PhysRange.of(one.paddr, one.filesz), digest.hexdigest()))
    return bool(read) and read == list(loads)
