"""IMA's measurement list for the next kernel: security/integrity/ima/ima_kexec.c.

It is the first segment of an image, since ima_add_kexec_buffer() runs before the architecture's loader: whoever takes
the first segment for the kernel is wrong. What has been measured here is what every kernel measures by itself:
boot_aggregate, all zeros since the board has no TPM.
"""

import hashlib
import struct

from kexecemu.errors import KexecError
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image.kimage import IMA, Kimage
from kexecemu.kernel.load.contiguous import Contiguous
from kexecemu.kernel.load.kexec_core import add_buffer

__all__ = ["add_kexec_buffer", "measurement_list", "update_kexec_buffer"]

_HEADER = struct.Struct("<HHIQQ")  # struct ima_kexec_hdr: version, two reserved, buffer_size, count
_PCR = 10  # CONFIG_IMA_MEASURE_PCR_IDX


def measurement_list() -> bytes:
    """What ima_dump_measurement_list() writes: its header, and boot_aggregate by the template ima-ng and SHA-1."""
    digest, name = b"sha1:\0" + bytes(20), b"boot_aggregate\0"
    data = b"".join(struct.pack("<I", len(field)) + field for field in (digest, name))
    template = b"ima-ng"
    entry = struct.pack("<I", _PCR) + hashlib.sha1(data, usedforsecurity=False).digest()
    entry += struct.pack("<I", len(template)) + template + struct.pack("<I", len(data)) + data
    return _HEADER.pack(1, 0, 0, _HEADER.size + len(entry), 1) + entry


def add_kexec_buffer(state: KernelState, image: Kimage, in_cma: Contiguous | None = None) -> None:
    """ima_add_kexec_buffer(): room for the list and what is measured until then, which is half a page unless said.

    The list is in it at once, or where an era fills it at the reboot, zeros, which no digest covers then. A list that
    finds no room is left out, and the load goes on. in_cma has places in the CMA area.
    """
    config = state.config
    rules = config.release.rules
    if not config.enabled("IMA_KEXEC") or (image.crash and not rules.ima_in_crash_images):
        return
    content = measurement_list()
    buf = b"" if rules.ima_filled_at_reboot else content
    extra = config.number("IMA_KEXEC_EXTRA_MEMORY_KB") << 10 or config.page_size // 2
    try:
        add_buffer(
            image,
            IMA,
            buf,
            len(content) + extra,
            config.page_size,
            region=state.crashk_res,
            free_memory=state.arch.memblock.free_ranges(),
            scratch=state.kho.areas if state.kho else None,
            contiguous=in_cma,
            era=config.release,
            page_size=config.page_size,
        )
    except KexecError:
        state.log("ima: Error passing over kexec measurement buffer.")


def update_kexec_buffer(state: KernelState, image: Kimage) -> None:
    """ima_update_kexec_buffer(), a reboot notifier: the list into the pages that were reserved for it."""
    segment = image.segment(IMA)
    if segment is None or segment.buf:
        return
    segment.buf = measurement_list()
    page_size = state.config.page_size
    pages = range(segment.mem, segment.area.end, page_size) if segment.cma else image.ima_pages
    for number, page in enumerate(pages):
        state.ram.write(page, segment.content()[number * page_size : (number + 1) * page_size])
