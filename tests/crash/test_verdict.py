"""The purgatory's record, read and told; and its ends: power, return, trap, booting all the same, repair."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu import Board, Kernel, KernelConfig, Outcome, When
from kexecemu.crash.end import End
from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.crash.verdict import (
    Damaged,
    Verdict,
    VerdictFlags,
    VerdictState,
    describe_damage,
    read_verdict,
)
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.ranges import PhysRange

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()[:20_000]
SMALL = Path(__file__).parents[1] / "data/kernel/purgatory-small.ro.gz"
HEADER = "".join((purgatory_path().parent / name).read_text() for name in ("purgatory.h", "record.h"))


def loaded(purgatory: object = True, **options: str) -> tuple[Kernel, Kimage]:
    given = {f"KEXEC_PURGATORY_{name}": value for name, value in options.items()}
    config = KernelConfig("6.4", purgatory=purgatory, options=given)  # type: ignore[arg-type]
    kernel = Kernel.boot(Board("64M", 2), config, cmdline="crashkernel=16M")
    image = kernel.kexec_file_load(STUB, INITRD, "panic=5")
    assert image is not None
    return kernel, image


def checker(kernel: Kernel) -> LoadedPurgatory:
    assert kernel.image is not None and kernel.image.purgatory is not None
    return kernel.image.purgatory


def told(end: End) -> str:
    (event,) = end.timeline.of("purgatory")
    return event.text


# -- the record ------------------------------------------------------------------------------------------------


def test_states_and_bits_have_the_numbers_of_the_header() -> None:
    for state in VerdictState:
        assert re.search(rf"PURGATORY_{state.name} = {state.value},", HEADER), state
    for flag in VerdictFlags:
        bit = flag.value.bit_length() - 1
        assert re.search(rf"define PURGATORY_FLAG_{flag.name}\s+BIT\({bit}\)", HEADER), flag
    for name, damaged in (("SELF", Damaged.PURGATORY), ("DTB", Damaged.DTB_POINTER)):
        assert re.search(rf"define PURGATORY_{name}\s+BIT\({damaged.value.bit_length() - 1}\)", HEADER)


def test_every_field_is_read_from_where_the_header_puts_it() -> None:
    kernel, _ = loaded()
    purgatory = checker(kernel)
    ranges = [0x1000 * n for n in range(32)]
    raw = struct.pack("<8sIIQ32s32s", b"PURGVRDT", 2, 3, 77, b"e" * 32, b"f" * 32)
    raw += struct.pack("<IIQQQQII32Q", 0x15, 0x20004, 9, 11, 12, 13, 3, 0, *ranges)
    assert len(raw) == purgatory.symbol_size("purgatory_verdict") == 392
    kernel.ram.write(purgatory.symbol_phys("purgatory_verdict"), raw)
    assert read_verdict(kernel.ram, purgatory) == Verdict(
        VerdictState.MISMATCH,
        77,
        b"e" * 32,
        b"f" * 32,
        VerdictFlags.MMU_ON | VerdictFlags.SELF_CHECKED | VerdictFlags.REPAIRED,
        0x20004,
        9,
        11,
        12,
        13,
        (
            PhysRange.of(0, 0x1000),
            PhysRange.of(0x2000, 0x3000),
            PhysRange.of(0x4000, 0x5000),
        ),
        2,
    )


NO_FLAGS = VerdictFlags(0)


def verdict_of(state: VerdictState, damaged: int = 0, flags: VerdictFlags = NO_FLAGS) -> Verdict:
    return Verdict(state, 0, b"", b"", flags, damaged)


@pytest.mark.parametrize("state", VerdictState)
def test_digests_were_compared_in_a_state_that_says_so_unless_the_check_ended_before(
    state: VerdictState,
) -> None:
    as_far = state in (VerdictState.MATCH, VerdictState.MISMATCH)
    for regions in (0, 1, 1 << 15, 0xFFFF):
        assert verdict_of(state, regions).compared is as_far
        for early in (Damaged.PURGATORY, Damaged.DTB_POINTER, Damaged.PURGATORY | Damaged.DTB_POINTER):
            assert not verdict_of(state, regions | early).compared


@pytest.mark.parametrize("state", VerdictState)
def test_a_verdict_objects_by_its_state_or_by_having_repaired(state: VerdictState) -> None:
    wrong = state in (VerdictState.MISMATCH, VerdictState.TRAPPED)
    for flag in [NO_FLAGS, *VerdictFlags]:
        for damaged in (0, 1, 1 << 15, Damaged.PURGATORY, Damaged.DTB_POINTER):
            assert verdict_of(state, damaged, flag).objects is (wrong or flag is VerdictFlags.REPAIRED)


@pytest.mark.parametrize("regions", [[], [0], [15], [0, 15], [3, 4], list(range(16))])
def test_regions_are_told_by_bits_0_to_15_and_what_is_besides_by_none_of_them(regions: list[int]) -> None:
    bits = sum(1 << one for one in regions)
    for more in (0, Damaged.PURGATORY, Damaged.DTB_POINTER, 0xFFFC0000):
        assert verdict_of(VerdictState.MISMATCH, bits | more).damaged_regions == regions


def test_a_record_of_the_first_version_is_read_and_has_nothing_of_the_second(tmp_path: Path) -> None:
    path = tmp_path / "purgatory.ro"
    path.write_bytes(gzip.decompress(SMALL.read_bytes()))
    kernel, image = loaded(path)
    end = kernel.panic()
    assert end.verdict == Verdict(
        VerdictState.MATCH,
        sum(one.size for one in image.sha_regions),
        image.digest or b"",
        image.digest or b"",
    )


@given(st.binary(min_size=392, max_size=392), st.sampled_from([b"", b"PURGVRDT\2\0\0\0"]))
@settings(deadline=None, max_examples=50)
def test_whatever_is_in_memory_is_read_or_is_no_record(garbage: bytes, head: bytes) -> None:
    kernel, image = SHARED
    purgatory = checker(kernel)
    kernel.ram.write(purgatory.symbol_phys("purgatory_verdict"), head + garbage[len(head) :])
    verdict = read_verdict(kernel.ram, purgatory)
    state = int.from_bytes(garbage[12:16], "little")
    assert (verdict is not None) is (bool(head) and state <= 4)
    if verdict is not None:
        describe_damage(verdict, image)
        assert len(verdict.damage) <= 16


SHARED = loaded()


@pytest.mark.parametrize(
    ("damaged", "pages", "text"),
    [
        (0, 0, None),
        (0b0001, 0, "kernel"),
        (0b0100, 1, "initrd, 1 page"),
        (0b1101, 12, "kernel and initrd and dtb, 12 pages"),
        (1 << 9, 0, "region 9"),
        (Damaged.PURGATORY, 0, "the purgatory itself"),
        (Damaged.DTB_POINTER, 0, "x0 (not the device tree's address)"),
    ],
)
def test_what_is_damaged_is_told_by_the_segments_names(damaged: int, pages: int, text: str | None) -> None:
    verdict = Verdict(VerdictState.MISMATCH, 0, b"", b"", damaged=damaged, damaged_pages=pages)
    assert describe_damage(verdict, SHARED[1]) == text


# -- ends ------------------------------------------------------------------------------------------------------


def test_the_timeline_says_which_segment_and_how_many_pages() -> None:
    kernel, image = loaded(PAGE_DIGESTS="y")
    kernel.stray_write("initrd+0x1ffc", b"\xff" * 8)
    end = kernel.panic()
    initrd = image.segment("initrd")
    assert initrd is not None and end.verdict is not None
    assert told(end) == "the purgatory finds that the digests differ, and stops; damaged: initrd, 2 pages"
    assert end.verdict.damage == (PhysRange.of(initrd.mem + 0x1000, 0x2000),)
    assert (end.verdict.damaged_regions, end.verdict.damaged_pages) == ([2], 2)


@pytest.mark.parametrize(
    ("policy", "power", "words"),
    [("off", "system_off", "switches off"), ("reset", "system_reset", "resets"), ("stop", None, "stops")],
)
def test_switching_the_power_after_a_mismatch_is_an_end_by_mismatch(
    policy: str, power: str | None, words: str
) -> None:
    kernel, _ = loaded(POLICY=policy)
    kernel.stray_write("kernel+8", b"\xff")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and end.capture is None
    assert end.purgatory is not None
    assert (end.purgatory.end, end.purgatory.power) == (PurgatoryEnd.MISMATCH, power)
    assert told(end) == f"the purgatory finds that the digests differ, and {words}; damaged: kernel"


def test_a_return_to_the_caller_is_told_from_a_jump_astray() -> None:
    kernel, _ = loaded(POLICY="return")
    kernel.stray_write("initrd", b"\xff")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and end.capture is None
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.RETURNED
    kernel, _ = loaded(POLICY="boot")
    # Found, but booted anyway: to where the damaged pointer leads, if the purgatory does not look at itself.
    kernel.stray_write("initrd", b"\xff")
    kernel.stray_write("purgatory:purgatory_self_digest", bytes(32))
    kernel.stray_write("purgatory:purgatory_kernel_entry", struct.pack("<Q", 0x40200000))
    end = kernel.panic()
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.ELSEWHERE


def test_a_good_image_is_booted_whatever_the_policy_and_is_captured() -> None:
    for policy in ("reset", "off", "return", "boot", "repair"):
        kernel, _ = loaded(POLICY=policy, COPY="y", PAGE_DIGESTS="y", CHOSEN="y")
        end = kernel.panic()
        assert (end.outcome, end.damage) == (Outcome.CAPTURED, [])


def test_an_exception_in_the_check_is_delivered_to_the_purgatory_which_reports_it() -> None:
    kernel, _ = loaded()
    kernel.stray_write("purgatory:sha256_update", bytes(4), width=4)  # udf
    end = kernel.panic()
    assert end.outcome is Outcome.TRAPPED
    run = end.purgatory
    assert (
        run is not None
        and run.end is PurgatoryEnd.TRAPPED
        and run.fault is not None
        and run.verdict is not None
    )
    assert run.verdict.state is VerdictState.TRAPPED
    where = checker(kernel).symbol_phys("sha256_update")
    assert (run.verdict.esr, run.verdict.elr) == (run.fault.esr, where) == (run.fault.esr, run.fault.pc)
    assert run.fault.delivered and kernel.board.boot_cpu.exceptions[-1] == run.fault
    assert f"purgatory: exception, ESR {run.fault.esr:#x} at {where:#x}" in end.console


def test_an_exception_before_the_purgatory_has_vectors_is_the_end_of_it() -> None:
    kernel, _ = loaded()
    kernel.stray_write("purgatory:purgatory_start", bytes(4), width=4)
    end = kernel.panic()
    assert end.outcome is Outcome.TRAPPED and end.verdict is not None
    assert end.verdict.state is VerdictState.NOT_RUN


def test_an_exception_under_the_policy_boot_is_followed_into_the_capture_kernel() -> None:
    kernel, _ = loaded(POLICY="boot")
    kernel.stray_write("purgatory:sha256_update", bytes(4), width=4)
    # An exception while it looks at itself would stop it: it does not know then where to boot to.
    kernel.stray_write("purgatory:purgatory_self_digest", bytes(32))
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and end.capture is not None and end.vmcore is not None
    assert told(end).startswith("the purgatory meets an exception and jumps all the same")


# -- what it writes, and what is left of the damage ------------------------------------------------------------


def cells(kernel: Kernel, image: Kimage) -> tuple[int, ...]:
    assert image.verdict_record is not None
    return struct.unpack(">38I", kernel.ram.read(image.verdict_record.start, image.verdict_record.size))


def test_the_record_in_the_device_tree_is_no_damage_and_says_what_the_verdict_says() -> None:
    kernel, image = loaded(POLICY="boot", PAGE_DIGESTS="y")
    kernel.stray_write("initrd+0x1000", b"\xff")
    end = kernel.panic()
    initrd = image.segment("initrd")
    assert initrd is not None and end.verdict is not None
    assert end.outcome is Outcome.DETECTED and end.vmcore is not None
    assert [str(one) for one in end.damage] == ["initrd+0x1000, 1 byte"]
    found = cells(kernel, image)
    assert found[:6] == (2, VerdictState.MISMATCH, end.verdict.flags, 1 << 2, 1, 1)
    assert found[6:10] == (0, initrd.mem + 0x1000, 0, 0x1000)
    assert not any(found[10:])


def test_a_change_beside_the_record_is_damage_of_the_device_tree() -> None:
    for shift in (-1, 152):
        kernel, image = loaded(CHOSEN="y")
        assert image.verdict_record is not None
        at = hex(image.verdict_record.start + shift)
        before = kernel.ram.read(int(at, 16), 1)
        kernel.dma_write(at, bytes([before[0] ^ 0xFF]), when=When.AFTER_CHECK)
        end = kernel.panic()
        assert [(one.segment, one.length) for one in end.damage] == [("dtb", 1)]


@pytest.mark.parametrize("pages", ["y", "n"])
def test_after_a_repair_nothing_is_damaged_any_more_and_the_dump_is_taken(pages: str) -> None:
    kernel, image = loaded(POLICY="repair", COPY="y", PAGE_DIGESTS=pages)
    kernel.stray_write("initrd+0x1000", b"\xff" * 3)
    kernel.stray_write("dtb+0x40", b"\xff")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and end.vmcore is not None
    assert end.damage == []
    assert end.verdict is not None and VerdictFlags.REPAIRED in end.verdict.flags
    assert told(end).startswith("the purgatory repairs the image and jumps to the kernel")
    assert cells(kernel, image)[2] == end.verdict.flags


def test_what_only_the_purgatory_reads_does_the_capture_kernel_no_harm_after_the_check() -> None:
    for at, options in (("copy+0x2000", {"COPY": "y"}), ("page-digests+8", {"PAGE_DIGESTS": "y"})):
        kernel, _ = loaded(**options)
        kernel.dma_write(at, b"\x5a\xa5", when=When.AFTER_CHECK)
        assert kernel.panic().outcome is Outcome.LATENT
    kernel, _ = loaded(PAGE_DIGESTS="y")
    kernel.stray_write("page-digests+8", b"\x5a\xa5")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and told(end).endswith("; damaged: page-digests")


def test_a_damaged_copy_alone_is_latent_and_with_the_image_damaged_there_as_well_it_cannot_mend() -> None:
    kernel, _ = loaded(POLICY="repair", COPY="y")
    kernel.stray_write("copy+0x2000", b"\x5a\xa5")
    assert kernel.panic().outcome is Outcome.LATENT
    kernel, image = loaded(POLICY="repair", COPY="y")
    initrd, first = image.segment("initrd"), image.segments[:2]
    assert initrd is not None
    kernel.stray_write("initrd+0x10", b"\xff")
    kernel.stray_write(f"copy+{sum(one.memsz for one in first) + 0x10:#x}", b"\xfe")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and end.capture is None
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.MISMATCH
