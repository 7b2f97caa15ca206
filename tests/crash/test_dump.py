"""What became of the dump: what /proc/vmcore shows against what memory was when the first kernel was left."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from kexecemu import Board, By, Dump, Fault, Kernel, KernelConfig, Outcome, When
from kexecemu.crash.end import End
from kexecemu.crash.vmcore import Vmcore
from kexecemu.data import fixture_path
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()
# Of a program header in the core header.
P_OFFSET, P_VADDR, P_PADDR, P_MEMSZ = 8, 16, 24, 40
LATE = When.AFTER_CHECK


def loaded(purgatory: bool | str | None = None, image: bytes = STUB, **options: str) -> Kernel:
    config = KernelConfig("6.4", purgatory=purgatory, options=options)
    kernel = Kernel.boot(Board("128M"), config, cmdline="crashkernel=32M")
    kernel.kexec_file_load(image, INITRD, "console=ttyAMA0")
    return kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """Without a purgatory: whatever is written gets as far as the capture kernel."""
    kernel = loaded()
    yield kernel
    kernel.board.close()


def load_header(kernel: Kernel, number: int) -> int:
    """Offset of the numbered PT_LOAD in the core header."""
    assert kernel.image is not None
    segment = kernel.image.segment("elfcorehdr")
    assert segment is not None
    headers = parse_core_header(segment.content()).program_headers
    loads = [index for index, header in enumerate(headers) if header.type == PT_LOAD]
    return 64 + 56 * loads[number]


def in_dtb(kernel: Kernel, value: bytes) -> int:
    """Offset of some bytes in the properties, which come behind the memory reservations."""
    assert kernel.image is not None
    segment = kernel.image.segment("dtb")
    assert segment is not None
    return bytes(segment.buf).rindex(value)


def dma(kernel: Kernel, at: str, data: bytes, when: When = When.AFTER_LOAD) -> End:
    kernel.dma_write(at, data, when)
    return kernel.panic()


def told(end: End) -> tuple[Outcome, Dump]:
    return end.outcome, end.dump


def test_the_strings_are_the_promised_ones_and_each_has_words() -> None:
    assert [one.value for one in Dump] == ["true", "wrong", "none"]
    assert len({one.meaning for one in Dump}) == 3


def test_an_undisturbed_dump_is_equal_to_the_crashed_memory(kernel: Kernel) -> None:
    end = kernel.panic()
    assert told(end) == (Outcome.CAPTURED, Dump.TRUE)
    assert end.dump_reason == "taken, equal to the crashed memory"
    assert end.timeline.of("outcome")[0].facts["dump"] == "true"


# -- the core header --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (P_OFFSET, "from 0x4"),
        (P_VADDR, "(virt "),
        (P_PADDR, "bytes at "),
        (P_MEMSZ, "bytes at "),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_load_that_says_something_else_is_a_wrong_dump(
    kernel: Kernel, field: int, words: str, number: int
) -> None:
    at = load_header(kernel, number) + field + 1
    end = dma(kernel, f"elfcorehdr+{at:#x}", b"\x50")
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert end.dump_reason.startswith("taken, not equal to the crashed memory: load ")
    assert words in end.dump_reason


def test_loads_that_are_missing_are_a_wrong_dump(kernel: Kernel) -> None:
    end = dma(kernel, "elfcorehdr+0x38", b"\x03")  # e_phnum
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert end.dump_reason.endswith("the number of its loads is 1, not 3")


def test_a_byte_of_the_file_header_that_no_kernel_checks_is_in_the_dump_and_makes_it_wrong(
    kernel: Kernel,
) -> None:
    end = dma(kernel, "elfcorehdr+5", b"\x02")  # EI_DATA: big endian, says the dump now
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert "byte 0x5 of its file header is 0x02, not 0x01" in end.dump_reason


def test_a_header_that_no_kernel_takes_is_no_dump(kernel: Kernel) -> None:
    end = dma(kernel, "elfcorehdr", b"\0")
    assert told(end) == (Outcome.SILENT, Dump.NONE)
    assert end.reason.endswith("nobody noticed, though it took no dump")


def test_what_lies_behind_the_program_headers_is_in_no_dump(kernel: Kernel) -> None:
    end = dma(kernel, "elfcorehdr+0xf00", b"\xff")
    assert told(end) == (Outcome.SILENT, Dump.TRUE)


# -- the device tree --------------------------------------------------------------------------------------------


def test_a_device_tree_that_leads_elsewhere_is_no_dump(kernel: Kernel) -> None:
    assert kernel.image is not None
    segment = kernel.image.segment("elfcorehdr")
    assert segment is not None
    at = in_dtb(kernel, struct.pack(">QQ", segment.mem, segment.memsz))
    assert told(dma(kernel, f"dtb+{at + 5:#x}", b"\0")) == (Outcome.SILENT, Dump.NONE)


def test_a_capture_kernel_that_is_given_the_memory_it_should_dump_has_no_true_dump(kernel: Kernel) -> None:
    region = kernel.crashk_res
    assert region is not None
    at = in_dtb(kernel, struct.pack(">QQ", region.start, region.size))
    end = dma(kernel, f"dtb+{at:#x}", struct.pack(">QQ", 0x40000000, 0x8000000))
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert "was told to use 0x40000000-0x47ffffff" in end.dump_reason


# -- memory and notes -------------------------------------------------------------------------------------------


def test_what_was_stamped_on_before_the_crash_is_a_part_of_what_crashed(kernel: Kernel) -> None:
    end = dma(kernel, "0x41000000", b"stray")
    assert told(end) == (Outcome.LATENT, Dump.TRUE)
    assert "first kernel's own memory" in end.reason


def test_what_a_device_writes_after_the_crash_is_not(kernel: Kernel) -> None:
    end = dma(kernel, "0x41000000", b"stray", LATE)
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert "memory at 0x41000000" in end.dump_reason and "changed since the crash" in end.dump_reason
    assert end.reason == "the dump is not what memory held at the crash, and nobody noticed"


def test_the_same_byte_once_more_is_no_change(kernel: Kernel) -> None:
    before = kernel.ram.read(0x41000000, 1)
    assert told(dma(kernel, "0x41000000", before, LATE)) == (Outcome.MASKED, Dump.TRUE)


def test_notes_that_are_stamped_on_after_the_crash_are_a_wrong_dump(kernel: Kernel) -> None:
    end = dma(kernel, f"{kernel.crash_notes_phys(0) + 0x40:#x}", b"\xff" * 8, LATE)
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert "notes are not those that the first kernel left" in end.dump_reason


def test_a_stamped_copy_of_vmcoreinfo_gets_into_the_notes_and_is_told(kernel: Kernel) -> None:
    # panic() writes the note from the copy that was made for just that: the one in the crash region.
    end = dma(kernel, f"{kernel.image.vmcoreinfo_safecopy + 0x10:#x}", b"?")
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert "vmcoreinfo in its notes is not what it was at the load" in end.dump_reason


def test_what_the_crash_path_writes_anew_was_changed_all_the_same_and_is_told_so(kernel: Kernel) -> None:
    # crash_save_cpu() fills the note of this CPU after the stray write.
    end = dma(kernel, f"{kernel.crash_notes_phys(0) + 0x40:#x}", b"\xa5")
    assert told(end) == (Outcome.MASKED, Dump.TRUE)
    assert (
        end.reason
        == "the bytes that the write changed were written anew before the end, and the dump was taken"
    )


# -- with a purgatory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "dump", "words"),
    [
        ("stop", Dump.NONE, "none: the purgatory stopped and started no capture kernel"),
        ("off", Dump.NONE, "none: the purgatory switched the machine off and started no capture kernel"),
        ("reset", Dump.NONE, "none: the purgatory reset the machine and started no capture kernel"),
        ("return", Dump.NONE, "none: the purgatory went back to the first kernel"),
        ("boot", Dump.TRUE, "taken, equal"),
        ("repair", Dump.TRUE, "taken, equal"),
    ],
)
def test_what_is_detected_is_a_dump_or_none_by_the_policy(policy: str, dump: Dump, words: str) -> None:
    copy = {"KEXEC_PURGATORY_COPY": "y"} if policy == "repair" else {}
    kernel = loaded(True, KEXEC_PURGATORY_POLICY=policy, **copy)
    end = dma(kernel, "initrd+0x10", b"\xa5" * 4)
    kernel.board.close()
    assert told(end) == (Outcome.DETECTED, dump)
    assert end.dump_reason.startswith(words)
    assert end.reported


def test_a_purgatory_that_boots_what_it_found_damaged_may_take_a_wrong_dump() -> None:
    kernel = loaded(True, KEXEC_PURGATORY_POLICY="boot")
    end = dma(kernel, f"elfcorehdr+{load_header(kernel, 1) + P_VADDR:#x}", b"\x50")
    kernel.board.close()
    assert told(end) == (Outcome.DETECTED, Dump.WRONG)
    assert end.reason.endswith("and booted the capture kernel all the same")


def test_a_crash_without_an_image_has_no_dump() -> None:
    kernel = Kernel.boot(Board("128M"), KernelConfig(), cmdline="crashkernel=32M")
    end = kernel.panic()
    kernel.board.close()
    assert told(end) == (Outcome.HUNG, Dump.NONE)
    assert end.dump_reason == "none: no crash image is loaded"


# -- a kernel that nobody follows -----------------------------------------------------------------------------------


def not_the_stub() -> bytes:
    """An Image that stands at its first instruction when the run ends."""
    image = bytearray(STUB)
    at = image.index(b"CAPTURE1")
    image[at : at + 8] = bytes(8)
    return bytes(image)


def test_of_a_kernel_that_is_not_followed_it_is_said_what_proc_vmcore_would_show() -> None:
    kernel = loaded(image=not_the_stub())
    end = kernel.panic()
    assert told(end) == (Outcome.CAPTURED, Dump.TRUE)
    assert end.dump_reason == (
        "/proc/vmcore would show the crashed memory (the capture kernel was not run past its first instruction)"
    )
    assert "entered as it should be, and not followed further" in end.reason
    assert isinstance(end.vmcore, Vmcore)
    kernel.board.close()


def test_and_that_it_would_not_where_the_core_header_is_damaged() -> None:
    kernel = loaded(image=not_the_stub())
    kernel.inject(Fault(f"elfcorehdr+{load_header(kernel, 0) + P_PADDR:#x}", write=b"\x50", by=By.DMA))
    end = kernel.panic()
    kernel.board.close()
    assert told(end) == (Outcome.SILENT, Dump.WRONG)
    assert end.dump_reason.startswith("/proc/vmcore would not show the crashed memory (")


# Elf64_Phdr: p_offset, p_filesz, p_align.
@pytest.mark.parametrize("field", [8, 32, 48])
def test_the_field_of_a_load_that_differs_is_in_the_sentence(kernel: Kernel, field: int) -> None:
    at = load_header(kernel, 0) + field
    segment = kernel.image.segment("elfcorehdr") if kernel.image is not None else None
    assert segment is not None
    end = dma(kernel, f"elfcorehdr+{at:#x}", bytes([segment.content()[at] ^ 0x10]))
    assert end.dump is Dump.WRONG
    found, _, right = end.dump_reason.removeprefix("taken, not equal to the crashed memory: ").partition(
        ", not "
    )
    assert right and not found.endswith(right)
