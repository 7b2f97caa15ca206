"""Stray stores that a CPU executes: the boot CPU, the same through an alias, and a CPU that did not stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel_bench import IMAGE, INITRD, boot

from kexecemu import Board, InputError, Kernel, KernelConfig
from kexecemu.crash.end import End
from kexecemu.crash.moments import Passed, crash, follow
from kexecemu.kernel.crash.stray_store import patch_map
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.cpu.stop import CpuStopKind

WRITERS = ("cpu", "alias", "late-cpu")
DATA = bytes(range(1, 17))


def loaded(*, cpus: int = 2, cmdline: str = "crashkernel=64M", **config: object) -> tuple[Kernel, Kimage]:
    kernel = Kernel.boot(Board("256M", cpus), KernelConfig("6.4", **config), cmdline=cmdline)  # type: ignore[arg-type]
    image = kernel.kexec_file_load(IMAGE, INITRD, "quiet")
    assert image is not None
    return kernel, image


def initrd_phys(image: Kimage) -> int:
    initrd = image.segment("initrd")
    assert initrd is not None
    return initrd.mem


def memory(kernel: Kernel) -> bytes:
    return b"".join(kernel.ram.read(bank.start, bank.size) for bank in kernel.ram.banks)


def differing(before: bytes, after: bytes, start: int) -> set[int]:
    """The pages that differ, by their physical address."""
    return {
        start + at for at in range(0, len(before), 4096) if before[at : at + 4096] != after[at : at + 4096]
    }


@pytest.fixture
def kernel_and_image() -> Iterator[tuple[Kernel, Kimage]]:
    kernel, image = loaded()
    yield kernel, image
    kernel.board.close()


# -- where nothing forbids it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 512, 4096 - len(DATA)])
def test_a_store_to_the_very_buffer_that_it_takes_its_bytes_from_stays(offset: int) -> None:
    kernel, _ = loaded(cmdline="crashkernel=64M rodata=off")
    with kernel.board:
        buffer = kernel.guest.phys("stray_buffer")
        before = kernel.ram.read(buffer, 4096)
        assert kernel.store(buffer + offset, DATA, 1, by="cpu") is None
        assert kernel.ram.read(buffer + offset, len(DATA)) == DATA
        # What is beside it is that store's, too: nobody puts the buffer back then.
        kernel.store(initrd_phys(kernel.image), DATA, 1, by="cpu")  # type: ignore[arg-type]
        assert kernel.ram.read(buffer + offset, len(DATA)) == DATA != before[offset : offset + len(DATA)]


@pytest.mark.parametrize("by", WRITERS)
def test_a_store_of_more_than_the_guest_s_buffer_arrives_as_a_whole(by: str) -> None:
    kernel, image = loaded(cmdline="crashkernel=64M rodata=off")
    with kernel.board:
        data = bytes(range(251)) * 40  # two buffers and a half
        assert kernel.store(initrd_phys(image) + 8, data, 8, by=by) is None
        assert kernel.ram.read(initrd_phys(image) + 8, len(data)) == data


@pytest.mark.parametrize("by", WRITERS)
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("moment", ["alive", "in panic"])
def test_a_store_gets_through_and_the_digest_finds_it(by: str, width: int, moment: str) -> None:
    kernel, image = loaded()
    with kernel.board:
        stop = kernel.begin_crash() if moment == "in panic" else None
        phys = initrd_phys(image) + 4096 - 8  # over the end of a page
        executed = kernel.board.boot_cpu.instructions
        assert kernel.store(phys, DATA, width, by=by) is None
        assert kernel.ram.read(phys, len(DATA)) == DATA
        assert (kernel.board.boot_cpu.instructions > executed) is (by != "late-cpu")
        stop = kernel.finish_crash(kernel.begin_crash() if stop is None else stop)
        assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)
        end: End = follow(crash(kernel, passed=Passed(kernel.left(stop))), {})
        # The model tells nobody who has written: the end is what the bytes make of it.
        assert end.purgatory is not None and end.purgatory.end.value == "mismatch"
        assert [(one.segment, one.offset) for one in end.damage] == [("initrd", 4096 - 8)]


@pytest.mark.parametrize(
    "options", [{}, {"KEXEC_PURGATORY_EARLY_CHECK": "y"}, {"KEXEC_PURGATORY_GUARD": "y"}]
)
@pytest.mark.parametrize("purgatory", [True, None])
@pytest.mark.parametrize("cpus", [1, 3])
def test_every_image_gets_to_where_a_panicking_cpu_can_store_and_halves_are_the_whole(
    options: dict[str, str], purgatory: bool | None, cpus: int
) -> None:
    if purgatory is None:
        options = {}
    told = []
    for halves in (False, True):
        kernel, image = loaded(cpus=cpus, options=options, purgatory=purgatory)
        with kernel.board:
            if halves:
                stop = kernel.begin_crash()
                assert (stop.kind, stop.pc) == (CpuStopKind.BREAKPOINT, kernel.guest.phys("cpu_soft_restart"))
                assert kernel.board.boot_cpu.sysreg("SCTLR_EL1") & 1
                assert [cpu.powered for cpu in kernel.board.cpus] == [True] + [False] * (cpus - 1)
                stop = kernel.finish_crash(stop)
            else:
                stop = kernel.crash()
            assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)
            told.append((kernel.board.timeline.as_jsonl(), kernel.board.uart.text, kernel.board.instructions))
    assert told[0] == told[1]


def test_a_store_in_panic_comes_behind_the_guard_that_would_have_seen_it() -> None:
    kernel, image = loaded(options={"KEXEC_PURGATORY_GUARD": "y"})
    purgatory = image.segment("purgatory")
    assert purgatory is not None
    with kernel.board:
        stop = kernel.begin_crash()
        assert kernel.store(purgatory.mem + 4, b"\xff") is None
        assert kernel.finish_crash(stop).kind is CpuStopKind.LEFT and kernel.refusal is None


def test_a_store_in_panic_says_whether_all_of_it_was_stored() -> None:
    kernel, image = loaded(protection="pte")
    with kernel.board:
        kernel.begin_crash()
        linear, store = kernel.space.linear_virt, kernel._execution.store_in_panic
        assert store(linear(0x44000FFC), b"12345678", 4) is True
        assert kernel.ram.read(0x44000FFC, 8) == b"12345678"
        assert store(linear(initrd_phys(image)), b"1234", 4) is False


def test_without_an_image_a_crash_is_over_where_it_begins() -> None:
    with Board("256M") as board:
        kernel = Kernel.boot(board, KernelConfig("6.4"), cmdline="crashkernel=64M")
        stop = kernel.begin_crash()
        assert stop.pc == kernel.guest.vmlinux.virt("panic_no_kexec")
        assert kernel.finish_crash(stop) == stop
        with pytest.raises(InputError, match="does not run the first kernel any more"):
            kernel.store(board.ram.banks[0].start, b"x")


# -- what is left behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", WRITERS)
def test_but_for_the_stored_page_memory_is_what_it_was(by: str) -> None:
    """The boot CPU's stores leave traces on its stack and in the scheduler while the kernel lives, so in panic here."""
    kernel, image = loaded()
    with kernel.board:
        kernel.begin_crash()
        phys, start = initrd_phys(image), kernel.ram.banks[0].start
        before, registers = memory(kernel), kernel.board.boot_cpu.registers()
        kernel.store(phys, DATA, by=by)
        assert differing(before, memory(kernel), start) == {phys}
        assert kernel.board.boot_cpu.registers() == registers


@pytest.mark.parametrize("page", ["4K", "16K", "64K"])
def test_an_alias_is_a_mapping_of_its_own_and_gone_afterwards(page: str) -> None:
    kernel, image = loaded(options={f"ARM64_{page}_PAGES": "y"}, protection="readonly")
    with kernel.board:
        phys = initrd_phys(image)
        leaves = list(kernel.tables.leaves(1 << 63, 1 << 64))
        assert kernel.store(phys, b"\xa5", by="alias") is None
        assert kernel.ram.read(phys, 1) == b"\xa5"
        assert list(kernel.tables.leaves(1 << 63, 1 << 64)) == leaves
        assert kernel.early.spare and not any(
            any(kernel.ram.read(table, kernel.config.page_size)) for table in kernel.early.spare
        )


@pytest.mark.parametrize(("era", "top"), [("6.7", 0xFFFF_FBFF_FE00_0000), ("6.9", 0xFFFF_FFFF_FF80_0000)])
def test_an_alias_is_made_in_the_fixmap_below_its_era_s_top(era: str, top: int) -> None:
    """FIXADDR_TOP: until 6.9 32 MiB below the memory map, of 4 TiB here; then 8 MiB below the end of all addresses."""
    with boot(era, "crashkernel=64M", ram="256M") as kernel:
        with patch_map(kernel, kernel.ram.banks[0].start + 0x123) as virt:
            assert virt % 4096 == 0x123 and top - (8 << 20) < virt < top - (4 << 20)
            assert kernel.tables.walk(virt).phys == kernel.ram.banks[0].start + 0x123
        assert kernel.tables.walk(virt).phys is None


def test_the_late_cpu_is_off_again_and_no_time_has_passed() -> None:
    kernel, image = loaded()
    with kernel.board:
        kernel.crash()
        late = kernel.board.cpus[1]
        before, when = late.registers(), kernel.board.time
        assert kernel.store(initrd_phys(image), DATA, 8, by="late-cpu") is None
        assert kernel.ram.read(initrd_phys(image), 16) == DATA
        assert (late.powered, late.registers(), kernel.board.time) == (False, before, when)


# -- where the page tables forbid it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protection", ["pte", "readonly"])
@pytest.mark.parametrize("by", ["cpu", "late-cpu"])
def test_a_protected_page_keeps_every_cpu_out_but_by_an_alias(by: str, protection: str) -> None:
    kernel, image = loaded(protection=protection)
    with kernel.board:
        phys = initrd_phys(image)
        kernel.begin_crash()
        assert kernel.store(phys, b"\xa5", by="alias") is None
        fault = kernel.store(phys + 1, b"\xa5", by=by)
        assert fault is not None
        assert (fault.cpu, fault.far) == (int(by == "late-cpu"), kernel.space.linear_virt(phys + 1))
        assert fault.esr >> 26 == 0x25 and fault.esr & 0x3F == (0x07 if protection == "pte" else 0x0F)
        assert kernel.ram.read(phys, 2) == b"\xa5" + INITRD[1:2]


def test_a_fault_of_the_late_cpu_disturbs_nobody() -> None:
    kernel, image = loaded(protection="pte")
    with kernel.board:
        stop = kernel.crash()
        console = kernel.board.uart.text
        assert kernel.store(initrd_phys(image), b"\xa5", by="late-cpu") is not None
        assert kernel.board.uart.text == console and not kernel.board.cpus[1].powered
        assert follow(crash(kernel, passed=Passed(kernel.left(stop))), {}).outcome == "captured"


@pytest.mark.parametrize(
    ("options", "ends_at", "says"),
    [
        ({}, "make_task_dead", "Internal error: Oops"),
        ({"PANIC_ON_OOPS": "y"}, "panic_no_kexec", "Kernel panic - not syncing: Oops: Fatal exception"),
    ],
)
def test_an_oops_in_the_middle_of_a_panic_means_no_dump(
    options: dict[str, str], ends_at: str, says: str
) -> None:
    """crash_kexec() finds panic_cpu set and __crash_kexec() the lock taken: nobody starts the image any more."""
    kernel, image = loaded(protection="pte", options=options)
    with kernel.board:
        stop = kernel.begin_crash()
        fault = kernel.store(initrd_phys(image), b"\xa5")
        assert fault is not None and says in kernel.board.uart.text
        stop = kernel.finish_crash(stop)
        assert (stop.kind, stop.pc) == (CpuStopKind.BREAKPOINT, kernel.guest.vmlinux.virt(ends_at))
        end = follow(crash(kernel, passed=Passed(kernel.left(stop))), {})
        assert (end.outcome, end.dump) == ("hung", "none")


# -- where nobody can ------------------------------------------------------------------------------------------------


def test_who_is_not_there_cannot_store(kernel_and_image: tuple[Kernel, Kimage]) -> None:
    kernel, image = kernel_and_image
    phys = initrd_phys(image)
    with pytest.raises(InputError, match="made by cpu, alias, late-cpu, not by 'dma'"):
        kernel.store(phys, b"x", by="dma")
    with pytest.raises(InputError, match="1, 2, 4 or 8 bytes wide, not 3"):
        kernel.store(phys, b"x", 3)
    kernel.crash()
    for by in ("cpu", "alias"):
        with pytest.raises(InputError, match="does not run the first kernel any more"):
            kernel.store(phys, b"x", by=by)
    assert kernel.ram.read(phys, 1) == INITRD[:1]


def test_on_a_machine_with_one_cpu_nobody_is_late() -> None:
    kernel, image = loaded(cpus=1)
    with kernel.board, pytest.raises(InputError, match="this machine has one CPU"):
        kernel.store(initrd_phys(image), b"x", by="late-cpu")
