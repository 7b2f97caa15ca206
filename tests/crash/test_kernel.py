"""The library's way: board, kernel, load, write astray, panic, and the End."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from kexecemu import Board, By, Fault, InputError, Kernel, KernelConfig, Outcome, When
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.crash.verdict import Damaged, VerdictState
from kexecemu.data import fixture_path
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import VmcoreLayout
from kexecemu.kernel.boot.vmcoreinfo import VMCOREINFO_NOTE_SIZE
from kexecemu.machine.cpu.stop import CpuStopKind

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()
SMALL = Path(__file__).parents[1] / "data/kernel/purgatory-small.ro.gz"


def loaded(era: str = "6.4", cmdline: str = "crashkernel=64M", cpus: int = 2, **config: object) -> Kernel:
    kernel = Kernel.boot(Board("256M", cpus), KernelConfig(era, **config), cmdline=cmdline)  # type: ignore[arg-type]
    kernel.kexec_file_load(STUB, INITRD, "console=ttyAMA0")
    return kernel


def test_a_good_image_is_captured_and_the_verdict_says_match() -> None:
    kernel = loaded()
    end = kernel.panic()
    assert end.outcome is Outcome.CAPTURED
    assert end.damage == []
    assert end.verdict is not None
    assert end.verdict.state is VerdictState.MATCH
    assert kernel.image is not None
    assert end.verdict.found == end.verdict.expected == kernel.image.digest
    # What the guest hashed is what memory holds, says somebody else's SHA-256.
    digest = hashlib.sha256()
    for segment in kernel.image.segments:
        if segment.name not in ("purgatory", "kernel"):  # the stub has written to itself meanwhile
            assert kernel.ram.read(segment.mem, segment.memsz) == segment.content()
        if segment.name != "purgatory":
            digest.update(segment.content())
    assert digest.digest() == end.verdict.found


def test_the_stub_meets_its_entry_contract_and_counts_the_dump() -> None:
    end = loaded(cpus=3).panic()
    assert end.capture is not None
    record = end.capture.record
    assert record is not None
    assert record.violations == 0
    assert record.x[1:] == (0, 0, 0)
    assert record.notes == 3 + 1
    assert end.vmcore is not None
    assert record.vmcore_bytes == end.vmcore.layout().size


def test_another_message_is_the_panics_own() -> None:
    end = loaded().panic("the watchdog barked")
    assert "Kernel panic - not syncing: the watchdog barked" in end.console
    assert "sysrq" not in end.console
    assert end.outcome is Outcome.CAPTURED


def test_without_an_image_the_panic_ends_without_a_dump() -> None:
    kernel = Kernel.boot(Board("256M"), KernelConfig(), cmdline="crashkernel=64M")
    end = kernel.panic()
    assert end.outcome is Outcome.HUNG
    assert "no crash image" in end.reason
    assert end.vmcore is None


def test_a_stray_write_under_protection_is_an_oops_and_the_system_goes_on() -> None:
    kernel = loaded("6.1")
    injection = kernel.stray_write("kernel+0x100", b"\xff\xff", width=2)
    assert injection.exception is not None
    assert injection.exception.is_write
    assert not injection.changed
    assert "Unable to handle kernel paging request at virtual address" in kernel.board.uart.text
    assert kernel.panic().outcome is Outcome.PREVENTED


def test_with_oops_panic_the_oops_itself_is_the_crash() -> None:
    kernel = loaded("6.1", cmdline="crashkernel=64M oops=panic")
    kernel.stray_write("kernel+0x100", b"\xff")
    # The machine is already on its way: the guest's own die() went through crash_kexec().
    assert "Starting crashdump kernel" in kernel.board.uart.text


@pytest.mark.parametrize("protection", ["pte", "readonly", "bbml2"])
def test_every_protection_prevents_what_the_cpu_writes_and_not_what_dma_writes(protection: str) -> None:
    kernel = loaded(protection=protection)
    assert kernel.stray_write("dtb+8", b"\x00").exception is not None
    assert kernel.panic().outcome is Outcome.PREVENTED
    kernel = loaded(protection=protection)
    kernel.dma_write("dtb+9", b"\x77")
    assert kernel.panic().outcome is Outcome.DETECTED


def test_readonly_covers_the_whole_region_and_pte_the_segments_only() -> None:
    assert loaded(protection="readonly").stray_write("crashkernel-free", b"\x01").exception is not None
    assert loaded(protection="pte").stray_write("crashkernel-free", b"\x01").exception is None


def test_the_control_page_is_left_writable_for_crashtime() -> None:
    for protection in ("pte", "readonly"):
        kernel = loaded(protection=protection)
        assert kernel.image is not None
        for page in kernel.image.control_pages:
            assert kernel.stray_write(hex(page.start + 0x800), b"\x00").exception is None
        assert kernel.panic().outcome is not Outcome.DETECTED


def test_a_fault_after_the_check_waits_for_its_moment() -> None:
    kernel = loaded()
    assert kernel.dma_write("initrd", b"\xff", when=When.AFTER_CHECK) is None
    assert kernel.ram.read(kernel.image.segment("initrd").mem, 1) == INITRD[:1]  # type: ignore[union-attr]
    end = kernel.panic()
    assert end.outcome is Outcome.SILENT
    assert end.verdict is not None
    assert end.verdict.state is VerdictState.MATCH
    with pytest.raises(InputError, match="CPUs have stopped by the moment after-check"):
        Fault("initrd", write=b"\x00", by=By.CPU, when=When.AFTER_CHECK)


@pytest.mark.parametrize(
    ("symbol", "value", "outcome", "end"),
    [
        # As a real kernel did: "digests match", then a jump to garbage.
        (
            "purgatory_kernel_entry",
            (0x41000000).to_bytes(8, "little"),
            Outcome.MISBOOT,
            PurgatoryEnd.ELSEWHERE,
        ),
        # A region of gigabytes: it hashes on and on, past any budget. The real one hung after "checking" as well.
        (
            "purgatory_sha_regions+8",
            (0xDEADBEEF).to_bytes(8, "little"),
            Outcome.HUNG,
            PurgatoryEnd.HUNG,
        ),
        # An empty first region is another input: refused, a false alarm.
        ("purgatory_sha_regions+8", bytes(8), Outcome.DETECTED, PurgatoryEnd.MISMATCH),
    ],
)
def test_a_stamped_symbol_does_what_it_did_to_a_real_kernel(
    symbol: str, value: bytes, outcome: Outcome, end: PurgatoryEnd, tmp_path: Path
) -> None:
    trusting = tmp_path / "purgatory.ro"
    trusting.write_bytes(gzip.decompress(SMALL.read_bytes()))
    kernel = loaded(purgatory=trusting)
    kernel.stray_write(f"purgatory:{symbol}", value, width=8)
    result = kernel.panic()
    assert result.outcome is outcome
    assert result.purgatory is not None
    assert result.purgatory.end is end
    assert [one.segment for one in result.damage] == ["purgatory"] * len(result.damage) != []


@pytest.mark.parametrize(
    "symbol", ["purgatory_kernel_entry", "purgatory_sha_regions+8", "purgatory_sha256_digest"]
)
def test_the_purgatory_that_ships_notices_that_its_own_symbols_were_stamped(symbol: str) -> None:
    kernel = loaded()
    kernel.stray_write(f"purgatory:{symbol}", b"\x5a" * 8, width=8)
    end = kernel.panic()
    assert (end.outcome, [one.segment for one in end.damage]) == (Outcome.DETECTED, ["purgatory"])
    assert end.verdict is not None and end.verdict.damaged == Damaged.PURGATORY
    (event,) = end.timeline.of("purgatory")
    assert event.text.endswith("; damaged: the purgatory itself")


def test_a_stamped_silent_uart_costs_the_report_and_not_the_verdict() -> None:
    kernel = loaded()
    kernel.stray_write("purgatory:purgatory_uart_base", bytes(8), width=8)
    kernel.stray_write("initrd", b"\xff")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED
    assert "purgatory:" not in end.console


def test_a_stamped_stack_of_the_purgatory_is_latent() -> None:
    kernel = loaded()
    kernel.stray_write("purgatory:purgatory_stack", b"\xff" * 8)
    assert kernel.panic().outcome is Outcome.LATENT


def test_a_purgatory_that_spins_in_a_mismatch_is_told_from_one_that_hangs(tmp_path: Path) -> None:
    kernel = loaded()
    # An endless loop of two instructions in the middle of the check: no verdict, no mismatch.
    kernel.stray_write("purgatory:sha256_update", bytes.fromhex("1f2003d5ffffff17"), width=4)
    end = kernel.panic()
    assert end.outcome is Outcome.HUNG
    assert end.verdict is not None
    assert end.verdict.state is VerdictState.CHECKING


def test_an_elfcorehdr_that_was_stamped_on_reaches_the_capture_kernel_without_a_purgatory() -> None:
    kernel = loaded(purgatory="none")
    kernel.stray_write("elfcorehdr", b"\x00")
    end = kernel.panic()
    assert end.outcome is Outcome.SILENT
    assert end.capture is not None
    assert end.capture.end is CaptureEnd.NO_DUMP
    assert "Core image elf header is not sane" in end.console


def test_capture_kernel_code_that_is_no_code_traps() -> None:
    kernel = loaded(purgatory="none")
    entry = 4 * (int.from_bytes(STUB[:4], "little") & 0x3FFFFFF)
    kernel.stray_write(f"kernel+{entry:#x}", bytes(4), width=4)
    assert kernel.panic().outcome is Outcome.TRAPPED


def test_the_dump_is_the_crashed_machines_memory(tmp_path: Path) -> None:
    kernel = loaded()
    kernel.ram.write(0x4F000000, b"a page of somebody's")
    end = kernel.panic()
    assert end.vmcore is not None
    path = tmp_path / "vmcore"
    size = end.vmcore.write(path)
    assert path.stat().st_size == size
    layout: VmcoreLayout = end.vmcore.layout()
    loads = [header for header in layout.program_headers if header.type == PT_LOAD]
    with path.open("rb") as file:
        for header in loads:
            for phys in (header.paddr, header.paddr + header.filesz - 4096, 0x4F000000):
                if header.paddr <= phys < header.paddr + header.filesz:
                    file.seek(header.offset + phys - header.paddr)
                    assert file.read(4096) == kernel.ram.read(phys, 4096)
    region = kernel.crashk_res
    assert region is not None
    assert not any(
        header.paddr < region.end and region.start < header.paddr + header.filesz for header in loads
    )


def test_crashtime_goes_through_the_safe_copy_and_into_the_note() -> None:
    kernel = loaded()
    before = kernel.vmcoreinfo()
    assert b"CRASHTIME" not in before
    kernel.panic()
    image = kernel.image
    assert image is not None
    copy = kernel.ram.read(image.vmcoreinfo_safecopy, 4096)
    assert copy.startswith(before + b"CRASHTIME=")
    note_phys = kernel.space.virt_to_phys(kernel.guest.read("vmcoreinfo_note"))
    note = kernel.ram.read(note_phys, VMCOREINFO_NOTE_SIZE)
    assert before in note
    assert b"\nCRASHTIME=" in note


def test_an_exception_right_before_the_jump_is_no_jump() -> None:
    kernel = loaded()
    kernel.dma_write("vmlinux:cpu_soft_restart", bytes(4))
    end = kernel.panic()
    assert (end.outcome, end.reason) == (
        Outcome.TRAPPED,
        "the crash path did not get out of the first kernel",
    )
    assert not end.timeline.of("jump")


def test_a_jump_to_where_nothing_can_be_fetched_misboots() -> None:
    kernel = loaded()
    start = kernel.guest.vmlinux.offsetof("kimage", "start")
    kernel.dma_write(f"vmlinux:crash_kimage_storage+{start}", bytes(8))
    end = kernel.panic()
    assert end.outcome is Outcome.MISBOOT
    assert end.timeline.of("jump")[0].text == "machine_kexec() jumps to 0x0, MMU off"


def test_a_kernel_that_was_told_to_jump_elsewhere_misboots() -> None:
    kernel = loaded()
    start = kernel.guest.vmlinux.offsetof("kimage", "start")
    kernel.guest.write("crash_kimage_storage", 0x40800000, start)
    end = kernel.panic()
    assert end.outcome is Outcome.MISBOOT
    assert end.reason == "the first kernel did not jump to the image's entry"
    assert end.timeline.of("misboot")[0].facts == {"pc_phys": 0x40800000}


def test_a_deadline_ends_the_boot_cpu_where_it_stands() -> None:
    kernel = loaded()
    stop = kernel.crash()
    assert stop.kind is CpuStopKind.LEFT
    assert stop.pc == kernel.image.start  # type: ignore[union-attr]
    again = kernel.board.boot_cpu.run(limit=1000, deliver=False)
    assert again.kind is CpuStopKind.DEADLINE
