"""The Image loader: its probe, its header checks, and where it places a whole crash image."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EINVAL

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import DATA, IMAGE, MIB, arm64_image, real

from kexecemu.errors import KexecError
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.image.digests import calculate_digest, pack_sha_regions
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.purgatory import parse_purgatory
from kexecemu.kernel.load.devtree import STEP
from kexecemu.kernel.load.kexec_image import (
    CORTEX_A57_MMFR0,
    CrashFiles,
    LoadContext,
    image_load,
    image_probe,
)
from kexecemu.machine.ranges import PhysRange

REGION = PhysRange(0x6A000000, 0x70000000)
PAGE = 4096
PURGATORY = parse_purgatory(gzip.decompress((DATA / "purgatory-small.ro.gz").read_bytes()))


@dataclass
class Loaded:
    """A crash image after image_load()."""

    image: Kimage
    asked: list[tuple[PhysRange | None, PhysRange]]  # what make_dtb was told

    def layout(self) -> dict[str, tuple[int, int]]:
        return {one.name: (one.mem, one.memsz) for one in self.image.segments}


def load(
    kernel: bytes = IMAGE,
    initrd: bytes | None = None,
    *,
    dtb: bytes = bytes(0x800),
    elfcorehdr: bytes = bytes(0x1000),
    era: Era = Era.V6_1,
    region: PhysRange | None = REGION,
    purgatory: bool = False,
    page_size: int = 4096,
    mmfr0: int = CORTEX_A57_MMFR0,
    random: Callable[[], int] | None = None,
) -> Loaded:
    asked: list[tuple[PhysRange | None, PhysRange]] = []

    def make_dtb(initrd_area: PhysRange | None, core: PhysRange) -> bytes:
        asked.append((initrd_area, core))
        return dtb

    image = Kimage(control_page=region.start if region else 0)
    found = PURGATORY if purgatory else None
    garbage = era.rules.garbage_in_kexec_buf if random else ()
    context = LoadContext(
        era, page_size, region, found, 0x9000000, mmfr0=mmfr0, random=random, garbage=garbage
    )
    image_load(image, CrashFiles(kernel, initrd, elfcorehdr, make_dtb), context)
    return Loaded(image, asked)


def refused(kernel: bytes, **arguments: object) -> KexecError:
    with pytest.raises(KexecError) as refusal:
        load(kernel, **arguments)  # type: ignore[arg-type]
    return refusal.value


# -- probe and header ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        IMAGE[:63],
        b"\x7fELF" + bytes(100),
        gzip.compress(IMAGE, mtime=0),
        IMAGE[:56] + b"ARMd"[::-1] + IMAGE[60:],
        bytes(4096),
    ],
    ids=["empty", "truncated", "elf", "gzip", "magic reversed", "zeros"],
)
def test_a_file_that_is_no_arm64_image_is_refused_by_the_probe(data: bytes) -> None:
    with pytest.raises(KexecError, match="not an arm64 Image") as refusal:
        image_probe(data)
    assert (refusal.value.errno, refusal.value.step) == (EINVAL, "image_probe")


def test_a_header_alone_passes_the_probe() -> None:
    image_probe(arm64_image(64))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (arm64_image(4096, image_size=0), "image_size is 0"),
        (arm64_image(4096, flags=0xC), "TGran16"),
    ],
)
def test_a_header_that_no_kernel_boots_is_refused(image: bytes, words: str) -> None:
    error = refused(image)
    assert (error.errno, error.step) == (EINVAL, "image_load") and words in error.reason


@pytest.mark.parametrize(
    ("flags", "mmfr0", "page_size", "words"),
    [
        (0x2, CORTEX_A57_MMFR0, 65536, ""),
        (0x4, CORTEX_A57_MMFR0, 4096, "TGran16"),
        (0x4, CORTEX_A57_MMFR0, 16384, ""),  # the running kernel has such pages, and so the CPU
        (0x4, 0x101124, 4096, ""),
        (0x4, 0x201124, 4096, ""),
        (0x6, CORTEX_A57_MMFR0, 4096, ""),
        (0x6, 0xF001124, 4096, "TGran64"),
        (0x2, 0xF0001124, 65536, "TGran4"),
        (0x0, 0xFFF01124, 4096, ""),  # it does not say which
        (0x8, 0xFFF01124, 4096, ""),
        (0x1, CORTEX_A57_MMFR0, 4096, ""),
        (0x1, 0x1024, 4096, "BigEnd"),
        (0x0, 0x1024, 4096, ""),
    ],
)
def test_a_granule_or_byte_order_that_the_cpu_has_not_is_refused(
    flags: int, mmfr0: int, page_size: int, words: str
) -> None:
    """As image_load() does it by system_supports_16kb_granule() and its like, from ID_AA64MMFR0_EL1."""
    kernel = arm64_image(4096, flags=flags)
    options: dict[str, int] = {"mmfr0": mmfr0, "page_size": page_size}
    if not words:
        assert load(kernel, **options).image.start == REGION.start  # type: ignore[arg-type]
        return
    error = refused(kernel, **options)
    assert (error.errno, error.step) == (EINVAL, "image_load") and words in error.reason


# -- placement: the reference machine --------------------------------------------------------------------------


def test_every_segment_lies_where_a_real_kernel_put_it() -> None:
    """Linux 6.1.192, 768 MiB, crashkernel=96M, once as it is and once with a purgatory of 12 KiB."""
    kernel = arm64_image(0x50B200, image_size=0x550000)
    expected = {
        "kernel": (0x6A000000, 0x550000),
        "elfcorehdr": (0x6FFF0000, 0x1000),
        "initrd": (0x6A550000, 0x27E000),
        "dtb": (0x6FE00000, 0x2000),
    }
    loaded = load(kernel, bytes(0x27D4D1), dtb=bytes(8043))
    assert loaded.layout() == expected
    assert (loaded.image.start, loaded.image.kernel_entry, loaded.image.dtb_mem) == (
        0x6A000000,
        0x6A000000,
        0x6FE00000,
    )
    assert list(loaded.layout()) == ["kernel", "elfcorehdr", "initrd", "dtb"]
    checked = load(kernel, bytes(0x27D4D1), dtb=bytes(8043), purgatory=True)
    assert checked.layout() == expected | {"purgatory": (0x6FFFC000, 0x3000)}
    assert checked.image.start == 0x6FFFC000 and checked.image.kernel_entry == 0x6A000000


def test_the_device_tree_is_built_for_the_initrd_s_exact_bytes_and_the_core_header_s_pages() -> None:
    loaded = load(IMAGE, b"x" * 5000)
    initrd, core = loaded.image.segment("initrd"), loaded.image.segment("elfcorehdr")
    assert initrd is not None and core is not None
    assert loaded.asked == [(PhysRange.of(initrd.mem, 5000), core.area)]
    assert load(IMAGE).asked[0][0] is None


def test_the_regions_that_a_real_kernel_gave_its_purgatory_are_packed_the_same() -> None:
    """purgatory_sha_regions of the loaded segment of Linux 6.1.192; in kimage order, the rest zero."""
    segment = gzip.decompress((DATA / "purgatory-segment.bin.gz").read_bytes())
    kernel = arm64_image(0x50B200, image_size=0x550000)
    loaded = load(kernel, bytes(0x27D4D1), dtb=bytes(8043), purgatory=True)
    _, regions = calculate_digest(loaded.image.segments)
    assert pack_sha_regions(regions) == segment[0xF80:0x1080]


def test_a_segment_s_contents_are_the_ones_that_a_real_kernel_hashed() -> None:
    """SHA-256 of two segments of that load over memsz bytes, computed from the real machine's memory."""
    for name, memsz, expected in (
        ("elf-segment.bin", 0x1000, "9826cfd66a2edea03fedd10e954f421f3daf0ce4076f6919db7ea5a02b8c67fa"),
        ("dtb-segment.bin", 0x2000, "208db4ec96a8aa458eee4f8b13d078c7f16727cc713d6ae89d6f55dab42dfb8c"),
    ):
        digest, regions = calculate_digest([Segment(name, real(name), 0x6FE00000, memsz)])
        assert digest.hex() == expected
        assert regions == [PhysRange.of(0x6FE00000, memsz)]


# -- placement: rules ------------------------------------------------------------------------------------------


def test_a_text_offset_moves_the_entry_and_shortens_the_segment() -> None:
    loaded = load(arm64_image(0x4000, text_offset=0x80000, image_size=0x10000))
    assert loaded.layout()["kernel"] == (REGION.start + 0x80000, 0x10000)
    assert loaded.image.start == REGION.start + 0x80000


def test_the_purgatory_is_entered_first_and_told_where_the_kernel_is() -> None:
    loaded = load(arm64_image(0x4000, text_offset=0x80000, image_size=0x10000), purgatory=True)
    purgatory = loaded.image.purgatory
    assert purgatory is not None
    assert loaded.image.start == purgatory.entry == purgatory.symbol_phys("purgatory_start")
    assert loaded.image.kernel_entry == REGION.start + 0x80000
    for name, value in (
        ("purgatory_kernel_entry", loaded.image.kernel_entry),
        ("purgatory_uart_base", 0x9000000),
    ):
        at = purgatory.symbol_phys(name) - purgatory.segment.mem
        assert struct.unpack_from("<Q", purgatory.buf, at) == (value,)


def test_a_purgatory_moves_none_of_the_other_segments() -> None:
    without, having = load(IMAGE, bytes(50000)).layout(), load(IMAGE, bytes(50000), purgatory=True).layout()
    assert {name: place for name, place in having.items() if name != "purgatory"} == without
    assert list(having)[-1] == "purgatory"


@pytest.mark.parametrize(
    ("size", "missing"),
    [
        (4 * MIB, "kernel needs"),
        (10 * MIB, "initrd needs"),
        (14 * MIB, "dtb needs"),
    ],
)
def test_what_does_not_fit_is_named_whatever_the_loader_tried_after_it(size: int, missing: str) -> None:
    """The retry for the kernel's place ends without a place; the first refusal says what stood in the way."""
    region = PhysRange.of(REGION.start, size)
    error = refused(arm64_image(0x1000, image_size=6 * MIB), initrd=bytes(6 * MIB + 1), region=region)
    assert (error.errno, error.step) == (EADDRNOTAVAIL, "kexec_add_buffer")
    assert missing in error.reason


def test_without_a_reservation_nothing_can_be_placed() -> None:
    assert refused(IMAGE, region=None).errno == EADDRNOTAVAIL


def test_a_file_longer_than_its_image_size_is_placed_and_left_to_the_sanity_check() -> None:
    loaded = load(arm64_image(0x3000, image_size=0x1000))
    kernel = loaded.image.segments[0]
    assert (kernel.bufsz, kernel.memsz) == (0x3000, 0x1000)


def test_a_device_tree_that_cannot_be_built_is_not_tried_again_elsewhere() -> None:
    calls = 0

    def make_dtb(initrd: PhysRange | None, core: PhysRange) -> bytes:
        nonlocal calls
        calls += 1
        raise KexecError(EINVAL, STEP, "linux,initrd-start without linux,initrd-end")

    image = Kimage(control_page=REGION.start)
    files = CrashFiles(IMAGE, None, bytes(4096), make_dtb)
    with pytest.raises(KexecError, match="initrd-start without") as refusal:
        image_load(image, files, LoadContext(Era.V6_4, 4096, REGION, None, 0))
    # The kernel's loop does try, and what comes back to user space is that there is no other place.
    assert (refusal.value.errno, calls) == (EADDRNOTAVAIL, 1)


# -- what the stack has for kexec_buf.random -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "kernel", "initrd"),
    [
        # 0x5ffffff bytes in 65535 steps of 0x600, 16384 of them; the kernel then by 2 MiB.
        (Era.V6_16, 0x6B800000, 0x6BA00000 + (0x45FFFFF // 65535 * 16384)),
        (Era.V6_17, 0x6A000000, 0x6A200000 + (0x5DFFFFF // 65535 * 16384)),
        (Era.V6_18, 0x6A000000, 0x6A200000),
    ],
)
def test_garbage_moves_what_is_looked_for_from_below(era: Era, kernel: int, initrd: int) -> None:
    image = arm64_image(64, image_size=2 * MIB)
    found = load(image, bytes(PAGE), era=era, random=lambda: 16384, purgatory=True).layout()
    still = load(image, bytes(PAGE), era=era, purgatory=True).layout()
    assert (found["kernel"][0], found["initrd"][0]) == (kernel, initrd)
    # Those from above are too small to move, and our purgatory's kexec_buf is no garbage.
    assert all(found[name] == still[name] for name in ("elfcorehdr", "dtb", "purgatory"))


def test_a_kernel_at_a_random_place_with_no_room_behind_is_tried_at_the_next() -> None:
    numbers = iter([65000, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(KexecError, match=r"kernel needs .*looked for from a random place on"):
        load(arm64_image(64, image_size=4 * MIB), era=Era.V6_16, random=lambda: next(numbers))


sizes = st.integers(1, 40 * MIB)


@given(
    start=st.integers(0x200, 0x1000).map(lambda number: number * 2 * MIB),
    mib=st.integers(1, 64),
    image_size=sizes,
    text_offset=st.integers(0, 0x40).map(lambda number: number * 0x10000),
    initrd=st.one_of(st.none(), st.integers(1, 1 * MIB)),
    era=st.sampled_from(list(Era)),
    purgatory=st.booleans(),
    page_size=st.sampled_from([4096, 16384, 65536]),
)
def test_a_load_is_in_the_region_in_order_and_disjoint_or_is_refused_for_want_of_room(
    start: int,
    mib: int,
    image_size: int,
    text_offset: int,
    initrd: int | None,
    era: Era,
    purgatory: bool,
    page_size: int,
) -> None:
    region = PhysRange.of(start, mib * MIB)
    kernel = arm64_image(64, text_offset=text_offset, image_size=image_size)
    try:
        loaded = load(
            kernel,
            bytes(initrd) if initrd else None,
            elfcorehdr=bytes(page_size),
            era=era,
            region=region,
            purgatory=purgatory,
            page_size=page_size,
        )
    except KexecError as error:
        assert (error.errno, error.step) == (EADDRNOTAVAIL, "kexec_add_buffer")
        return
    segments = loaded.image.segments
    names = [
        "kernel",
        "elfcorehdr",
        *(["initrd"] if initrd else []),
        "dtb",
        *(["purgatory"] if purgatory else []),
    ]
    assert [one.name for one in segments] == names
    for index, one in enumerate(segments):
        assert region.covers(one.area) and one.memsz % page_size == 0
        assert not any(one.area.overlaps(other.area) for other in segments[:index])
    first = segments[0]
    assert (first.mem - text_offset) % (2 * MIB) == 0
    assert all(one.mem >= first.area.end for one in segments[1:])
    by_name = {one.name: one for one in segments}
    assert by_name["elfcorehdr"].mem % 0x10000 == 0 and by_name["dtb"].mem % (2 * MIB) == 0


@given(st.binary(min_size=64, max_size=64))
def test_no_header_makes_the_loader_do_anything_but_load_or_refuse(header: bytes) -> None:
    data = header[:56] + b"ARM\x64" + header[60:]
    try:
        loaded = load(data, bytes(4096), purgatory=True)
    except KexecError as error:
        assert error.errno in (EINVAL, EADDRNOTAVAIL)
    else:
        assert all(REGION.covers(one.area) for one in loaded.image.segments)
