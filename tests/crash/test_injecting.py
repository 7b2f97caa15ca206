"""Stray writes of a first kernel: which happen at once, and which wait; nobody writes to one that has crashed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kexecemu import By, Fault, InputError, Kernel, When
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.scenario.setup import Setup, prepare


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel, _ = prepare(Setup(cpus=2))
    yield kernel
    kernel.close()


@pytest.mark.parametrize("when", When)
def test_a_write_up_to_the_load_happens_at_once_and_later_ones_wait(kernel: Kernel, when: When) -> None:
    at_once = when in (When.DURING_LOAD, When.AFTER_LOAD, When.BEFORE_PANIC)
    fault = Fault("initrd", flip=1, by=By.DMA, when=when)
    found = kernel.inject(fault)
    assert (found is not None) is at_once and len(kernel.injections) == at_once
    kernel.panic()
    assert [one.fault for one in kernel.injections] == [fault]


def test_what_is_not_said_of_a_write_is_the_least(kernel: Kernel) -> None:
    flipped = kernel.flip("initrd+8")
    written = kernel.stray_write("initrd+9", b"ab")
    late = kernel.dma_write("initrd+11", b"c", When.AT_JUMP)
    early = kernel.dma_write("initrd+12", b"d")
    assert flipped is not None and early is not None and late is None
    assert flipped.fault == Fault("initrd+8", flip=1, by=By.CPU)
    assert written.fault == Fault("initrd+9", write=b"ab", width=1)
    assert early.fault == Fault("initrd+12", write=b"d", by=By.DMA, when=When.AFTER_LOAD)
    assert kernel.injections == [flipped, written, early]
    assert [kernel.storing(by) for by in (By.CPU, By.ALIAS, By.LATE_CPU)] == [0, 0, 1]


def test_a_kernel_that_has_crashed_is_written_to_by_nobody_and_what_is_no_fault_by_none(
    kernel: Kernel,
) -> None:
    with pytest.raises(InputError, match="fault"):
        kernel.inject("initrd")  # type: ignore[arg-type]
    kernel.panic()
    with pytest.raises(InputError, match=r"fault at initrd: the kernel has crashed"):
        kernel.inject(Fault("initrd", flip=1))


@pytest.mark.parametrize("kind", CpuStopKind)
def test_how_it_was_left_is_read_from_the_stop_alone(
    kernel: Kernel, kind: CpuStopKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kexec = kernel.guest.vmlinux.virt("panic_no_kexec")
    monkeypatch.setattr(Kernel, "refusal", "a digest")
    for pc in (no_kexec, no_kexec + 4):
        left = kernel.left(CpuStop(kind, pc, 9))
        assert (left.cpu, left.stop.pc) == (kernel.crashing_cpu, pc)
        assert (left.out, left.trapped) == (kind is CpuStopKind.LEFT, kind is CpuStopKind.FAULT)
        assert left.refused == ("a digest" if pc == no_kexec else None)
