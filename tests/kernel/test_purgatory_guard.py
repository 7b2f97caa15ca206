"""The first kernel's own distrust: the guard, the early check, and a purgatory that comes back; with the real one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from kernel_bench import IMAGE, INITRD, boot, small, small_purgatory

from kexecemu.crash import kernel as lab
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import Vmlinux
from kexecemu.kernel.crash.execution import REFUSALS
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory_guard import early_check_limit
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.stray.fault import When

GUARD = {"KEXEC_PURGATORY_GUARD": "y"}
EARLY = {"KEXEC_PURGATORY_EARLY_CHECK": "y"}
RETURN = {"KEXEC_PURGATORY_POLICY": "return"}
DAMAGED = "the purgatory has been damaged"


def loaded(options: dict[str, str], **arguments: object) -> tuple[KernelModel, Kimage]:
    kernel = small(options=options, **arguments)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    return kernel, image


def lab_kernel(options: dict[str, str], era: str = "6.4", **arguments: object) -> lab.Kernel:
    config = KernelConfig(era, options=options, **arguments)  # type: ignore[arg-type]
    kernel = lab.Kernel.boot(Board("256M", 2), config, cmdline="crashkernel=64M")
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    return kernel


def refused(kernel: KernelModel) -> str | None:
    """Why the panic stayed in the first kernel; None if it did not."""
    stop = kernel.crash()
    if stop.kind is CpuStopKind.LEFT:
        assert kernel.refusal is None
        return None
    assert stop.pc == kernel.guest.vmlinux.virt("panic_no_kexec")
    return kernel.refusal


# -- the guard -------------------------------------------------------------------------------------------------


def test_the_kernel_keeps_the_digest_of_the_loaded_purgatory_in_its_kimage() -> None:
    kernel, image = loaded(GUARD)
    guest, purgatory = kernel.guest, image.segment("purgatory")
    assert purgatory is not None
    base = guest.phys("crash_kimage_storage") + guest.vmlinux.offsetof("kimage", "arch")
    kept = guest.ram.read(base + guest.vmlinux.offsetof("kimage_arch", "purgatory_digest"), 32)
    assert kept == hashlib.sha256(kernel.ram.read(purgatory.mem, purgatory.bufsz)).digest()


@pytest.mark.parametrize("options", [{}, GUARD, EARLY, {**GUARD, **EARLY}])
def test_only_an_early_check_takes_instructions_of_its_own(options: dict[str, str]) -> None:
    _, image = loaded(options)
    assert bool(early_check_limit(image)) is ("KEXEC_PURGATORY_EARLY_CHECK" in options)
    assert early_check_limit(None) == 0


@pytest.mark.parametrize("more", [{}, EARLY])
def test_an_intact_purgatory_is_started(more: dict[str, str]) -> None:
    kernel, _ = loaded({**GUARD, **more}, cpus=2)
    assert refused(kernel) is None


@pytest.mark.parametrize("part", range(16))
@pytest.mark.parametrize("more", [{}, EARLY])
def test_a_flipped_bit_anywhere_in_code_and_settings_is_found(part: int, more: dict[str, str]) -> None:
    kernel, image = loaded({**GUARD, **more})
    assert image.guard is not None
    at = image.guard.purgatory_mem + (image.guard.purgatory_size - 1) * part // 15
    (byte,) = kernel.ram.read(at, 1)
    kernel.ram.write(at, bytes([byte ^ 1 << part % 8]))
    assert refused(kernel) == DAMAGED


def test_with_an_early_check_the_guard_leaves_out_only_what_the_purgatory_writes_itself() -> None:
    plain, early = loaded(GUARD)[1], loaded({**GUARD, **EARLY})
    purgatory = early[1].purgatory
    assert plain.guard is not None and early[1].guard is not None and purgatory is not None
    assert plain.guard.purgatory_size == len(purgatory.buf)
    end = early[1].guard.purgatory_mem + early[1].guard.purgatory_size
    assert end == min(area.start for area in purgatory.scratch())
    for name in (
        "purgatory_start",
        "purgatory_sha_regions",
        "purgatory_sha256_digest",
        "purgatory_self_digest",
    ):
        assert purgatory.symbol_phys(name) < end


def test_a_stamped_digest_in_the_kimage_is_a_false_alarm_and_not_a_crash() -> None:
    kernel, _ = loaded(GUARD)
    guest = kernel.guest
    member = guest.vmlinux.offsetof("kimage", "arch") + guest.vmlinux.offsetof(
        "kimage_arch", "purgatory_digest"
    )
    guest.write("crash_kimage_storage", guest.read("crash_kimage_storage", member) ^ 1, member)
    assert refused(kernel) == DAMAGED


@pytest.mark.parametrize("way", ["pte", "bbml2"])
def test_a_guard_that_could_not_read_the_purgatory_is_refused(way: str) -> None:
    kernel = small("6.1", protection=way, options=GUARD)
    with pytest.raises(InputError, match="not mapped"):
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert kernel.image is None


def test_a_guard_reads_through_a_read_only_protection() -> None:
    kernel = small("6.1", protection="readonly", options=GUARD)
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert refused(kernel) is None


def test_without_a_purgatory_there_is_nothing_to_guard() -> None:
    kernel, image = loaded(GUARD, purgatory=None)
    assert image.guard is None
    assert refused(kernel) is None


def test_what_the_purgatory_cannot_find_in_itself_the_guard_finds() -> None:
    kernel = lab_kernel(GUARD)
    kernel.flip("purgatory+0x20")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and DAMAGED in end.reason
    assert [str(one) for one in end.damage] == ["purgatory+0x20, 1 byte"]
    assert [event.kind for event in end.timeline][-2:] == ["refused", "outcome"]
    assert end.purgatory is None and end.vmcore is None


def test_a_refusal_is_forgotten_with_the_next_load() -> None:
    kernel, _ = loaded(GUARD)
    kernel.guest.write("kdump_refusal", address_of(kernel.guest.vmlinux, DAMAGED))
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert kernel.guest.read("kdump_refusal") == 0
    assert refused(kernel) is None


def address_of(vmlinux: Vmlinux, text: str) -> int:
    """Where a string of the guest kernel is linked."""
    for segment in vmlinux.elf.segments:
        at = segment.data.find(text.encode() + b"\0")
        if at >= 0:
            return segment.vaddr + at
    raise AssertionError(text)


def test_the_reasons_that_are_believed_are_all_that_the_guest_has() -> None:
    sources = sorted((Path(__file__).parents[2] / "fixtures/minikernel").glob("*.c"))
    texts = [text for one in sources for text in re.findall(r'kdump_give_up\("(.*)"\)', one.read_text())]
    assert sorted(texts) == sorted(REFUSALS)


@pytest.mark.parametrize("text", ["Bye!\n", "linux_banner", DAMAGED])
def test_a_stray_pointer_to_some_text_is_no_reason_that_anybody_gave(text: str) -> None:
    kernel = lab_kernel({})
    vmlinux = kernel.guest.vmlinux
    virt = vmlinux.virt(text) if text == "linux_banner" else address_of(vmlinux, text)
    kernel.dma_write("vmlinux:kdump_refusal", virt.to_bytes(8, "little"), When.BEFORE_PANIC)
    end = kernel.panic()
    # The guest does believe it, and starts nothing.
    assert end.outcome is Outcome.HUNG
    assert end.reason == "the crash path did not get out of the first kernel"
    assert not end.timeline.of("refused")


def test_a_reason_is_told_as_it_is_linked_whatever_memory_makes_of_it() -> None:
    kernel = lab_kernel(GUARD)
    kernel.flip("purgatory+0x20")
    virt = address_of(kernel.guest.vmlinux, DAMAGED)
    kernel.ram.write(kernel.guest.space.virt_to_phys(virt), b"two\nlines\x1b[2J\0")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED
    assert end.reason == f"the first kernel gives kdump up: {DAMAGED}"


# -- the early check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", ["4K", "16K", "64K"])
def test_an_early_check_that_is_content_changes_nothing_for_the_dump(pages: str) -> None:
    end = lab_kernel({**EARLY, f"ARM64_{pages}_PAGES": "y"}).panic()
    assert (end.outcome, end.damage) == (Outcome.CAPTURED, [])
    assert end.vmcore is not None


@pytest.mark.parametrize("mmu", ["y", "n"])
@pytest.mark.parametrize("segment", ["kernel", "elfcorehdr", "initrd", "dtb"])
def test_an_early_check_finds_damage_while_the_other_cpus_are_up(segment: str, mmu: str) -> None:
    kernel = lab_kernel({**EARLY, "KEXEC_PURGATORY_MMU": mmu})
    kernel.flip(f"{segment}+0x21")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED and "early check" in end.reason
    assert [str(one) for one in end.damage] == [f"{segment}+0x21, 1 byte"]
    assert kernel.board.cpus[1].powered
    assert "stopping secondary CPUs" not in end.console
    assert end.console.endswith("kexec: the early check has failed, giving up kdump\n")


def test_the_kernel_gets_its_registers_back_from_the_early_check() -> None:
    names = ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "VBAR_EL1", "CPACR_EL1", "SP_EL0")
    kernel, image = loaded(EARLY)
    cpu = kernel.board.boot_cpu
    before = {name: cpu.sysreg(name) for name in names[:-1]}
    kernel.ram.write(image.segments[0].mem + 64, b"\xff")
    assert refused(kernel) == "the early check has failed"
    assert {name: cpu.sysreg(name) for name in names[:-1]} == before
    assert cpu.sysreg("SP_EL0") == kernel.task_virt("task_bash")


def test_an_early_check_works_on_pages_that_are_not_mapped() -> None:
    kernel = lab_kernel(EARLY, "6.1", protection="pte")
    kernel.dma_write("initrd+0x10", b"\xff\xff")
    assert "early check" in kernel.panic().reason


def test_what_comes_after_the_early_check_is_left_to_the_late_one() -> None:
    """The other CPUs still run then; here a fault that the crash path itself carries out."""
    kernel, image = loaded(EARLY)
    assert refused(kernel) is None
    kernel.ram.write(image.segments[0].mem + 64, b"\xff")
    purgatory = image.purgatory
    assert purgatory is not None
    stop = kernel.board.boot_cpu.run(within=range(image.start, purgatory.segment.area.end), limit=50_000_000)
    assert stop.kind is not CpuStopKind.LEFT
    assert "purgatory: digests do NOT match" in kernel.board.uart.text


def test_a_purgatory_that_hangs_when_asked_early_is_given_up_in_the_end() -> None:
    kernel = lab_kernel(EARLY)
    kernel.stray_write("purgatory:purgatory_check", bytes.fromhex("00000014"), width=4)  # b .
    assert kernel.panic().outcome is Outcome.HUNG


def test_a_stray_word_where_the_early_check_begins_is_a_trap_that_nobody_handles() -> None:
    """The purgatory has not set its vectors yet, and the kernel's are at a virtual address."""
    kernel = lab_kernel(EARLY)
    kernel.stray_write("purgatory:purgatory_check", bytes(4), width=4)
    assert kernel.panic().outcome is Outcome.TRAPPED


def test_a_purgatory_that_has_no_early_check_is_refused(tmp_path: Path) -> None:
    kernel = small(options=EARLY, purgatory=small_purgatory(tmp_path))
    with pytest.raises(InputError, match=r"KEXEC_PURGATORY_EARLY_CHECK=y: .* no symbol purgatory_check"):
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")


# -- the purgatory that returns --------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["y", "n"])
def test_after_the_purgatory_has_returned_the_panic_goes_on_with_the_mmu_on(mmu: str) -> None:
    kernel = lab_kernel({**RETURN, "KEXEC_PURGATORY_MMU": mmu})
    cpu = kernel.board.boot_cpu
    names = ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "VBAR_EL1", "CPACR_EL1")
    before = {name: cpu.sysreg(name) for name in names}
    kernel.flip("initrd+0x10")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED
    assert end.purgatory is not None and end.purgatory.end.value == "returned"
    assert end.console.endswith("kexec: the purgatory has refused the crash image, giving up kdump\n")
    assert cpu.pc == kernel.guest.vmlinux.virt("panic_no_kexec")
    assert {name: cpu.sysreg(name) for name in names} == before


def test_a_kernel_that_died_of_an_oops_does_not_ask_twice() -> None:
    kernel = lab_kernel({**RETURN, "PANIC_ON_OOPS": "y"}, "6.1", protection="pte")
    kernel.dma_write("initrd+0x10", b"\xff\xff")
    kernel.stray_write("initrd+0x20", b"\xff")
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED
    assert end.console.count("purgatory: digests do NOT match") == 1
    assert "Kernel panic - not syncing: Oops: Fatal exception" in end.console


def test_all_three_together_leave_a_sound_image_alone() -> None:
    kernel = boot(options={**GUARD, **EARLY, **RETURN}, cpus=4)
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert refused(kernel) is None
    assert not any(cpu.powered for cpu in kernel.board.cpus[1:])
