"""Numbers that the kernel shares with user space and with its own assembler (uapi/linux/kexec.h, linux/kexec.h)."""

from __future__ import annotations

import struct

from kexecemu.kernel.image import kimage
from kexecemu.kernel.image.kimage import Segment, pack_segments
from kexecemu.kernel.load import kexec_load

NUMBERS = {
    "KEXEC_ARCH_AARCH64": 183 << 16,
    "KEXEC_FILE_UNLOAD": 0x1,
    "KEXEC_FILE_ON_CRASH": 0x2,
    "KEXEC_FILE_NO_INITRAMFS": 0x4,
    "KEXEC_FILE_DEBUG": 0x8,
    "KEXEC_FILE_NO_CMA": 0x10,
    "KEXEC_SEGMENT_MAX": 16,
    "IND_DESTINATION": 1,
    "IND_INDIRECTION": 2,
    "IND_DONE": 4,
    "IND_SOURCE": 8,
}


def test_flags_and_limits_are_those_of_the_headers() -> None:
    found = {name: value for name, value in vars(kimage).items() if name.startswith(("KEXEC_", "IND_"))}
    assert found == NUMBERS
    assert kexec_load.KEXEC_ON_CRASH == 1


def test_struct_kexec_segment_is_two_pairs_of_an_address_and_a_size() -> None:
    some = [Segment("a", b"abc", 0x1000, 0x2000), Segment("b", b"", 0x5000, 0x1000)]
    words = list(struct.iter_unpack("<QQQQ", pack_segments(some)))
    assert [one[1:] for one in words] == [(3, 0x1000, 0x2000), (0, 0x5000, 0x1000)]


def test_a_segment_is_found_by_its_name_and_by_any_address_in_it() -> None:
    one, two = Segment("a", b"abc", 0x1000, 0x2000), Segment("b", b"", 0x5000, 0x1000)
    image = kimage.Kimage(control_page=0, segments=[one, two])
    assert (image.segment("a"), image.segment("b"), image.segment("c")) == (one, two, None)
    found = [image.segment_at(phys) for phys in (0xFFF, 0x1000, 0x2FFF, 0x3000, 0x5000, 0x5FFF, 0x6000)]
    assert found == [None, one, one, None, two, two, None]
