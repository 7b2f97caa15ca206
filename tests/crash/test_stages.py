"""From the jump out of the first kernel to the end: how purgatory and capture kernel are followed and told apart."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st
from image_header import build

from kexecemu import Board, Kernel, KernelConfig, Outcome
from kexecemu.crash.moments import Passed, crash, follow
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd, purgatory_end
from kexecemu.crash.stub import CaptureRecord, CaptureState, Violation, read_record
from kexecemu.crash.verdict import Verdict, VerdictState, read_verdict
from kexecemu.data import fixture_path
from kexecemu.errors import FormatError
from kexecemu.formats import elfrel
from kexecemu.formats.fdt import FdtEditor, cells
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.stray.fault import By, Fault, When

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()[:20_000]
OTHER_KERNEL = build(text_offset=0, image_size=0x10000) + bytes(4096)


SMALL = Path(__file__).parents[1] / "data/kernel/purgatory-small.ro.gz"


def loaded(
    image: bytes = STUB, purgatory: object = True, era: str = "6.4", **options: str
) -> tuple[Kernel, Kimage]:
    given = {f"KEXEC_PURGATORY_{name}": value for name, value in options.items()}
    config = KernelConfig(era, purgatory=purgatory, options=given)  # type: ignore[arg-type]
    kernel = Kernel.boot(Board("64M", 2), config, cmdline="crashkernel=16M")
    loaded = kernel.kexec_file_load(image, INITRD, "panic=5")
    assert loaded is not None
    return kernel, loaded


# -- the purgatory's run ---------------------------------------------------------------------------------------


def test_a_good_run_ends_at_the_kernel_with_every_byte_hashed() -> None:
    kernel, image = loaded()
    end = kernel.panic()
    assert end.purgatory is not None and end.verdict is not None
    assert (end.purgatory.end, end.purgatory.pc) == (PurgatoryEnd.KERNEL, image.kernel_entry)
    assert end.verdict.state is VerdictState.MATCH
    assert end.verdict.bytes_hashed == sum(region.size for region in image.sha_regions)
    assert end.verdict.expected == end.verdict.found == image.digest


def test_to_where_it_was_called_from_is_a_return_but_to_the_kernel_or_within_itself_it_is_none() -> None:
    kernel, image = loaded()
    assert image.purgatory is not None
    inside, away = image.purgatory.segment.mem + 0x40, kernel.ram.banks[0].start + 0x1000
    found = {state: Verdict(state, 0, bytes(32), bytes(32)) for state in VerdictState}

    def ends(pc: int, back: int, state: VerdictState = VerdictState.MISMATCH) -> PurgatoryEnd:
        kind = CpuStopKind.LEFT if pc != inside else CpuStopKind.DEADLINE
        stop = CpuStop(kind, pc, 1000)
        return purgatory_end(kernel.board.boot_cpu, image, stop, 1000, found[state], back)

    assert ends(away, away) is PurgatoryEnd.RETURNED
    assert ends(away, away, VerdictState.TRAPPED) is PurgatoryEnd.RETURNED
    assert ends(away, away, VerdictState.MATCH) is PurgatoryEnd.ELSEWHERE
    assert ends(away, away + 4) is PurgatoryEnd.ELSEWHERE
    assert ends(image.kernel_entry, image.kernel_entry) is PurgatoryEnd.KERNEL
    assert ends(inside, inside) is PurgatoryEnd.MISMATCH


def test_progress_is_told_now_and_then_and_only_ever_grows() -> None:
    kernel, _ = loaded(build(text_offset=0, image_size=0x100000) + bytes(0x80000), CRYPTO="n")
    told: list[tuple[int, int]] = []
    kernel.panic(progress=lambda done, expected: told.append((done, expected)))
    assert len(told) >= 1
    assert told == sorted(told) and all(done <= expected for done, expected in told)


@pytest.mark.parametrize(
    ("symbol", "value", "end"),
    [
        ("purgatory_kernel_entry", struct.pack("<Q", 0x40200000), PurgatoryEnd.ELSEWHERE),
        # To where there is no RAM, and off instruction boundaries as on a real 6.1 ("digests match", then nothing).
        ("purgatory_kernel_entry", struct.pack("<Q", 0x1000), PurgatoryEnd.ELSEWHERE),
        ("purgatory_kernel_entry", struct.pack("<I", 0xDEADBEEF), PurgatoryEnd.ELSEWHERE),
        ("purgatory_kernel_entry", b"\xff" * 8, PurgatoryEnd.ELSEWHERE),
        ("purgatory_sha_regions", struct.pack("<Q", 1 << 47), PurgatoryEnd.TRAPPED),
        ("purgatory_start", struct.pack("<I", 0x14000000), PurgatoryEnd.HUNG),  # b .
        (
            "purgatory_start",
            struct.pack("<I", 0xD503207F),
            PurgatoryEnd.HUNG,
        ),  # wfi: nothing will ever wake it
        ("purgatory_sha256_digest", bytes(8), PurgatoryEnd.MISMATCH),
    ],
)
def test_each_way_to_go_wrong_is_told_apart_by_the_machine_s_state(
    symbol: str, value: bytes, end: PurgatoryEnd, tmp_path: Path
) -> None:
    """With a purgatory that trusts itself, as those of real kernels do."""
    trusting = tmp_path / "purgatory.ro"
    trusting.write_bytes(gzip.decompress(SMALL.read_bytes()))
    kernel, _ = loaded(purgatory=trusting)
    kernel.dma_write(f"purgatory:{symbol}", value)
    result = kernel.panic()
    assert result.purgatory is not None and result.purgatory.end is end


def test_a_purgatory_that_is_over_before_what_was_to_happen_meanwhile_has_ended_there(tmp_path: Path) -> None:
    trusting = tmp_path / "purgatory.ro"
    trusting.write_bytes(gzip.decompress(SMALL.read_bytes()))
    kernel, _ = loaded(purgatory=trusting)
    # mov w0, #8; movk w0, #0x8400, lsl #16; hvc #0: PSCI's SYSTEM_OFF
    kernel.dma_write("purgatory:purgatory_start", struct.pack("<3I", 0x52800100, 0x72B08000, 0xD4000002))
    called: list[str] = []
    at = (When.WHILE_HASHING, 250)  # behind the digest over itself
    steps = crash(kernel, wanted=[at], passed=Passed(hashing=2000))
    end = follow(steps, {at: [lambda: called.append("meanwhile")]})
    assert end.purgatory is not None
    assert (end.purgatory.power, end.purgatory.instructions, called) == ("system_off", 3, [])


B_SELF, WFI, WFE, BACK = 0x14000000, 0xD503207F, 0xD503205F, 0x17FFFFFF
HVC = 0xD4000002


def power(function: int) -> list[int]:
    """PSCI's function 0x8400000x, and an endless loop behind it, as firmware calls are written."""
    return [0x52800000 | function << 5, 0x72B08000, HVC, B_SELF]


def kexec_tools(folder: Path, words: list[int], at: int = 0x14) -> Path:
    """kexec-tools' purgatory, built with other instructions at this offset of its purgatory()."""
    data = bytearray(fixture_path("guests/kexec-tools-purgatory.ro").read_bytes())
    obj = elfrel.parse(bytes(data))
    place = obj.global_symbol("purgatory")
    assert place is not None
    start = obj.sections[place.shndx].offset + place.value + at
    data[start : start + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
    path = folder / "purgatory.ro"
    path.write_bytes(data)
    return path


AT_STOP = 0x504
"""Of kexec-tools' purgatory(): its last store to the console, and the endless loop of a mismatch."""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([B_SELF], "the purgatory got nowhere and gave no verdict"),
        ([WFI, BACK], "the purgatory got nowhere and gave no verdict"),
        ([WFE, BACK], "the purgatory got nowhere and gave no verdict"),
        (power(8), "the purgatory switched the machine off and gave no verdict"),
        (power(9), "the purgatory reset the machine and gave no verdict"),
    ],
    ids=["b .", "wfi", "wfe", "off", "reset"],
)
def test_a_purgatory_that_stops_before_it_can_have_hashed_has_refused_nothing(
    words: list[int], reason: str, tmp_path: Path
) -> None:
    kernel, image = loaded(purgatory=kexec_tools(tmp_path, words))
    end = kernel.panic()
    assert (end.outcome, end.reason) == (Outcome.HUNG, reason)
    assert end.purgatory is not None
    assert end.purgatory.instructions < sum(one.size for one in image.sha_regions) // 3


def test_so_has_one_whose_first_instruction_became_a_branch_to_where_it_stops_in_a_mismatch() -> None:
    kernel, image = loaded(purgatory=fixture_path("guests/kexec-tools-purgatory.ro"))
    assert image.purgatory is not None
    stop = image.purgatory.symbol_phys("purgatory") + AT_STOP + 4
    kernel.dma_write("purgatory:purgatory_start", struct.pack("<I", B_SELF | (stop - image.start) // 4))
    end = kernel.panic()
    assert (end.outcome, kernel.board.boot_cpu.pc) == (Outcome.HUNG, stop)


@pytest.mark.parametrize(
    "words",
    [[WFE, BACK], [WFI, BACK], [HVC, B_SELF], [0xD503201F, B_SELF]],
    ids=["wfe", "wfi", "hvc", "b ."],
)
def test_one_that_stops_when_it_has_hashed_refuses_in_whatever_loop(words: list[int], tmp_path: Path) -> None:
    kernel, _ = loaded(purgatory=kexec_tools(tmp_path, words, AT_STOP))
    kernel.dma_write("initrd", b"a stray write")
    assert kernel.panic().outcome is Outcome.DETECTED


def test_one_that_goes_round_more_than_that_when_it_has_hashed_hangs(tmp_path: Path) -> None:
    """A loop of three instructions: whatever it waits for, that is no stop."""
    kernel, _ = loaded(purgatory=kexec_tools(tmp_path, [0xD503201F, BACK - 1], AT_STOP))
    kernel.dma_write("initrd", b"a stray write")
    end = kernel.panic()
    assert (end.outcome, end.reason) == (Outcome.HUNG, "the purgatory got nowhere and gave no verdict")


def test_one_that_was_led_to_a_loop_which_nobody_loaded_has_refused_nothing(tmp_path: Path) -> None:
    """Behind what is of its file: the loop is of the stray write as well."""
    kernel, image = loaded(purgatory=fixture_path("guests/kexec-tools-purgatory.ro"))
    purgatory = image.purgatory
    assert purgatory is not None
    beyond = purgatory.segment.area.end - 16
    assert beyond >= purgatory.segment.mem + len(purgatory.buf)
    stop = purgatory.symbol_phys("purgatory") + AT_STOP
    kernel.ram.write_u32(stop, B_SELF | (beyond - stop) // 4)
    kernel.ram.write_u32(beyond, B_SELF)
    kernel.dma_write("initrd", b"a stray write")
    end = kernel.panic()
    assert (end.outcome, kernel.board.boot_cpu.pc) == (Outcome.HUNG, beyond)


@pytest.mark.parametrize(
    ("more", "word"),
    [(0, B_SELF), (4, WFI)],  # the store before its loop is a loop; its loop is another
    ids=["before", "in its place"],
)
def test_one_that_stops_in_a_loop_which_was_not_loaded_so_has_refused_nothing(more: int, word: int) -> None:
    kernel, image = loaded(purgatory=fixture_path("guests/kexec-tools-purgatory.ro"))
    assert image.purgatory is not None
    kernel.ram.write_u32(image.purgatory.symbol_phys("purgatory") + AT_STOP + more, word)
    kernel.dma_write("initrd", b"a stray write")
    assert kernel.panic().outcome is Outcome.HUNG


def test_one_that_stops_in_a_loop_of_another_function_than_its_own_purgatory_has_refused_nothing(
    tmp_path: Path,
) -> None:
    """Loaded so, at purgatory_start()'s end, to where only one comes that found no mismatch, or was led astray."""
    kernel, image = loaded(purgatory=kexec_tools(tmp_path, [B_SELF], -4))
    assert image.purgatory is not None
    end = image.purgatory.symbol_phys("purgatory")
    stop = end + AT_STOP
    kernel.ram.write_u32(stop, B_SELF | (end - 4 - stop) // 4 & 0x3FFFFFF)
    kernel.dma_write("initrd", b"a stray write")
    assert (kernel.panic().outcome, kernel.board.boot_cpu.pc) == (Outcome.HUNG, end - 4)


def test_regions_that_a_stray_write_made_empty_are_hashed_in_no_time_and_refused() -> None:
    kernel, image = loaded(purgatory=fixture_path("guests/kexec-tools-purgatory.ro"))
    for number in range(len(image.sha_regions)):
        kernel.dma_write(f"purgatory:sha256_regions+{16 * number + 8}", bytes(8))
    assert kernel.panic().outcome is Outcome.DETECTED


def test_a_content_purgatory_that_starts_no_kernel_is_not_called_one_without_a_verdict() -> None:
    kernel, _ = loaded()
    at = (When.WHILE_HASHING, 250)  # behind the digest over itself
    for symbol in ("purgatory_kernel_entry", "purgatory_sha_regions"):
        kernel.inject(Fault(f"purgatory:{symbol}", write=bytes(8), by=By.DMA, when=at[0], step=at[1]))
    end = kernel.panic()
    assert end.outcome is Outcome.HUNG and end.verdict is not None
    assert end.verdict.state is VerdictState.MATCH and "purgatory: no kernel entry" in end.console
    assert end.reason == (
        "the purgatory found the image as loaded, but started no kernel: its kernel entry is 0"
    )
    assert "came to no end" not in end.dump_reason


def test_a_verdict_that_was_overwritten_is_none_and_one_that_is_whole_is_read() -> None:
    kernel, image = loaded()
    purgatory = image.purgatory
    assert purgatory is not None
    fresh = read_verdict(kernel.ram, purgatory)
    assert fresh is not None and fresh.state is VerdictState.NOT_RUN
    for offset, garbage in ((0, b"X"), (8, b"\x01"), (8, b"\x03"), (12, b"\x63")):
        phys = purgatory.symbol_phys("purgatory_verdict") + offset
        before = kernel.ram.read(phys, 1)
        kernel.ram.write(phys, garbage)
        assert read_verdict(kernel.ram, purgatory) is None
        kernel.ram.write(phys, before)


# -- the capture kernel's run ----------------------------------------------------------------------------------


def test_the_stub_is_known_by_its_record_and_another_kernel_by_having_none() -> None:
    assert CaptureRecord.magic_in(STUB) and not CaptureRecord.magic_in(OTHER_KERNEL)
    kernel, image = loaded()
    record = read_record(kernel.ram, image.kernel_entry)
    assert record is not None and record.state is CaptureState.NOT_RUN


def test_another_kernel_is_followed_to_its_first_instruction() -> None:
    kernel, image = loaded(OTHER_KERNEL)
    end = kernel.panic()
    assert end.outcome is Outcome.CAPTURED and end.capture is not None
    assert (end.capture.end, end.capture.pc, end.capture.instructions) == (
        CaptureEnd.ENTERED,
        image.kernel_entry,
        0,
    )
    assert kernel.board.boot_cpu.pc == image.kernel_entry
    assert end.vmcore is not None


@pytest.mark.parametrize("linux", [False, True])
def test_another_kernel_that_is_entered_wrongly_is_not_followed_and_has_no_dump(linux: bool) -> None:
    kernel, image = loaded(OTHER_KERNEL, purgatory=None)
    layout = kernel.guest.vmlinux
    at = layout.offsetof("kimage", "arch") + layout.offsetof("kimage_arch", "dtb_mem")
    kernel.dma_write(f"vmlinux:crash_kimage_storage+{at}", struct.pack("<Q", image.dtb_mem + 8))
    end = kernel.panic(linux=linux)
    assert end.capture is not None
    assert (end.capture.end, end.capture.instructions) == (CaptureEnd.BAD_ENTRY, 0)
    assert (end.capture.linux, end.vmcore) == (None, None)
    assert kernel.board.boot_cpu.pc == image.kernel_entry


def test_a_text_offset_is_where_the_kernel_is_entered() -> None:
    kernel, image = loaded(build(text_offset=0x80000, image_size=0x10000) + bytes(4096))
    end = kernel.panic()
    assert end.outcome is Outcome.CAPTURED and kernel.crashk_res is not None
    assert (
        end.capture is not None and end.capture.pc == kernel.crashk_res.start + 0x80000 == image.kernel_entry
    )


def test_the_words_of_the_stub_s_record_are_those_of_its_source() -> None:
    source = (fixture_path("guests/capture-Image").parents[1] / "capture/capture.h").read_text()
    bits = {name: 1 << int(bit) for name, bit in re.findall(r"CAPTURE_(\w+) = 1 << (\d+),", source)}
    assert bits == {one.name: one.value for one in Violation} and len(bits) == 7
    numbers = {name: int(value) for name, value in re.findall(r"CAPTURE_(\w+) = (\d+),", source)}
    assert numbers.items() >= {one.name: one.value for one in CaptureState}.items()


@pytest.mark.parametrize(("more", "violations"), [(4, Violation.X0_UNALIGNED), (8, Violation.X0_NO_DTB)])
def test_the_stub_says_what_is_wrong_with_its_entry(more: int, violations: Violation) -> None:
    kernel, image = loaded(purgatory=None)
    layout = kernel.guest.vmlinux
    at = layout.offsetof("kimage", "arch") + layout.offsetof("kimage_arch", "dtb_mem")
    kernel.dma_write(f"vmlinux:crash_kimage_storage+{at}", struct.pack("<Q", image.dtb_mem + more))
    end = kernel.panic()
    assert end.capture is not None and end.capture.record is not None
    assert end.capture.record.state is CaptureState.CONTRACT_VIOLATED
    assert end.capture.record.violations & violations
    assert violations is Violation.X0_UNALIGNED or end.capture.record.violations == violations


def test_the_stub_s_account_agrees_with_what_was_loaded() -> None:
    kernel, image = loaded()
    end = kernel.panic()
    assert end.capture is not None and end.capture.record is not None and kernel.crashk_res is not None
    record = end.capture.record
    initrd, core = image.segment("initrd"), image.segment("elfcorehdr")
    assert initrd is not None and core is not None
    assert (record.state, record.violations) == (CaptureState.DONE, 0)
    assert record.dtb_phys == record.x[0] == image.dtb_mem and record.x[1:] == (0, 0, 0)
    assert record.elfcorehdr == core.area
    assert record.initrd == (initrd.mem, initrd.mem + initrd.bufsz)
    assert record.usable[0] == (kernel.crashk_res.start, kernel.crashk_res.size)
    assert record.notes == 3  # two CPUs and vmcoreinfo


@given(st.binary(min_size=8, max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_record_that_a_damaged_stub_leaves_is_more_than_a_record_or_none(garbage: bytes) -> None:
    ram = Board("64M").ram
    ram.write(0x40000040, b"CAPTURE1" + garbage)
    record = read_record(ram, 0x40000000)
    assert record is None or isinstance(record.state, CaptureState)


# -- the dump --------------------------------------------------------------------------------------------------


def test_the_dump_is_an_elf_core_of_the_crashed_machine(tmp_path: Path) -> None:
    kernel, _ = loaded()
    end = kernel.panic()
    assert end.vmcore is not None
    path = tmp_path / "vmcore"
    assert end.vmcore.write(path) == path.stat().st_size
    with path.open("rb") as file:
        core = ELFFile(file)
        assert (core["e_type"], core["e_machine"]) == ("ET_CORE", "EM_AARCH64")
        notes = [note for segment in core.iter_segments("PT_NOTE") for note in segment.iter_notes()]
        assert [note["n_name"] for note in notes] == ["CORE", "CORE", "VMCOREINFO"]
        for load in core.iter_segments("PT_LOAD"):
            file.seek(load["p_offset"])
            assert file.read(4096) == kernel.ram.read(load["p_paddr"], 4096)


def stamped_tree(**chosen: bytes | None) -> tuple[Kernel, bytes]:
    """A crash of another kernel, whose device tree was changed behind everybody's back (no purgatory)."""
    kernel, image = loaded(OTHER_KERNEL, purgatory=None)
    tree = kernel.ram.read(image.dtb_mem, 0x1000)
    editor = FdtEditor(tree[: int.from_bytes(tree[4:8], "big")], 0x1000)
    node = editor.path_offset("/chosen")
    assert node is not None
    for name, value in chosen.items():
        key = name.replace("_", ",", 1)
        if value is None:
            editor.delprop(node, key)
        else:
            editor.setprop(node, key, value)
    editor.pack()
    return kernel, bytes(editor.data)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no linux,elfcorehdr"),
        (b"", "no linux,elfcorehdr"),
        (cells(0, 0x10000000, 0, 0x1000), "lead out of RAM"),
        (cells(0, 0x40000000, 0, 0x80000000), "lead out of RAM"),
        (cells(0, 0x40000000, 0, 0x1000), "no ELF magic"),
        (cells(0, 0x40000000, 0, 0), "too short for an ELF header"),
    ],
)
def test_a_device_tree_that_leads_to_no_core_header_gives_no_dump_and_a_reason(
    value: bytes | None, words: str, tmp_path: Path
) -> None:
    kernel, tree = stamped_tree(linux_elfcorehdr=value)
    kernel.dma_write("dtb", tree)
    end = kernel.panic()
    assert end.outcome is Outcome.SILENT and end.vmcore is not None
    with pytest.raises(FormatError) as refusal:
        end.vmcore.write(tmp_path / "vmcore")
    assert words in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_load_that_is_no_ram_reads_as_zeros(tmp_path: Path) -> None:
    kernel, _ = loaded(OTHER_KERNEL, purgatory=None)
    # Three notes, then the kernel's own load: its offset and physical address.
    for field in (8, 24):
        kernel.dma_write(f"elfcorehdr+{64 + 3 * 56 + field:#x}", struct.pack("<Q", 0x10000000))
    end = kernel.panic()
    assert end.vmcore is not None
    end.vmcore.write(tmp_path / "vmcore")
    with (tmp_path / "vmcore").open("rb") as file:
        load = next(iter(ELFFile(file).iter_segments("PT_LOAD")))
        assert load["p_paddr"] == 0x10000000
        file.seek(load["p_offset"])
        assert file.read(load["p_filesz"]) == bytes(load["p_filesz"])
