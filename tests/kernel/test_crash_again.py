"""What a kernel keeps in memory goes back with its memory: load, snapshot, panic, restore, panic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel_bench import IMAGE, INITRD

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.crash.end import End
from kexecemu.errors import InputError
from kexecemu.machine.snapshot import Snapshots
from kexecemu.stray.fault import By, Fault, When


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Board("256M", 3) as board:
        config = KernelConfig("6.4", protection="readonly", options={"PANIC_ON_OOPS": "y"})
        kernel = Kernel.boot(board, config, cmdline="crashkernel=64M")
        kernel.kexec_file_load(IMAGE, INITRD, "quiet")
        yield kernel


def told(end: End) -> tuple[object, ...]:
    return end.outcome, end.reason, end.console, end.timeline.as_jsonl(), end.instructions


def test_the_second_crash_stops_the_cpus_again_and_ends_as_the_first(kernel: Kernel) -> None:
    snapshots = Snapshots(kernel.board)
    loaded = snapshots.take()
    first = told(kernel.panic())
    assert [event.facts["cpu"] for event in kernel.board.timeline.of("cpu_off")] == [1, 2]
    with pytest.raises(InputError, match="has crashed"):
        kernel.panic()
    snapshots.restore(loaded)
    assert kernel.over is None and all(cpu.powered for cpu in kernel.board.cpus)
    assert told(kernel.panic()) == first
    assert kernel.guest.read_u32("cpus_stopped") == 1


def test_after_a_fatal_oops_that_is_undone_an_undisturbed_crash_takes_its_dump(kernel: Kernel) -> None:
    snapshots = Snapshots(kernel.board)
    loaded = snapshots.take()
    initrd = kernel.image.segment("initrd")  # type: ignore[union-attr]
    fault = kernel.store(initrd.mem, b"\xff")  # type: ignore[union-attr]
    assert fault is not None and kernel.dying
    assert kernel.ram.read(initrd.mem, 1) == INITRD[:1]  # type: ignore[union-attr]
    snapshots.restore(loaded)
    assert not kernel.dying
    assert kernel.panic().outcome == "captured"


def test_a_kernel_that_an_oops_has_brought_there_panics_only_once(kernel: Kernel) -> None:
    kernel.inject(Fault("initrd", write=b"\xff", by=By.CPU))
    assert kernel.dying
    assert kernel.panic("never said").outcome == "prevented"
    assert "never said" not in kernel.board.uart.text
    with pytest.raises(InputError, match="has crashed"):
        kernel.crash()


def test_what_is_protected_is_what_the_page_tables_say(kernel: Kernel) -> None:
    snapshots = Snapshots(kernel.board)
    loaded = snapshots.take()
    before = kernel.protected
    region = kernel.crashk_res
    assert region is not None and before
    # Somebody stamps on the table: the first page's entry is a writable one then.
    walk = kernel.tables.walk(kernel.space.linear_virt(before[0].start))
    kernel.ram.write_u64(walk.entry_phys, walk.descriptor & ~(1 << 7))
    assert kernel.protected[0].start == before[0].start + 4096
    snapshots.restore(loaded)
    assert kernel.protected == before


def test_stray_writes_go_back_with_the_machine_those_that_wait_for_their_moment_too(kernel: Kernel) -> None:
    snapshots = Snapshots(kernel.board)
    loaded = snapshots.take()
    plain = told(kernel.panic())
    snapshots.restore(loaded)
    kernel.dma_write("initrd", b"\xff")
    kernel.inject(Fault("initrd", flip=1, by=By.DMA, when=When.AFTER_CHECK))
    written = snapshots.take()
    disturbed = told(kernel.panic())
    assert disturbed != plain
    snapshots.restore(loaded)
    assert (kernel.injections, told(kernel.panic())) == ([], plain)
    snapshots.restore(written)
    assert len(kernel.injections) == 1 and told(kernel.panic()) == disturbed
