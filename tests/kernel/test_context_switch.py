"""Who runs, as the scheduler's structures have it: the task that panics runs, everybody else sleeps or is idle."""

from __future__ import annotations

import pytest
from kernel_bench import IMAGE, INITRD, boot

from kexecemu.kernel.base.config import Era
from kexecemu.kernel.boot.timekeeping import BOOT_TIME
from kexecemu.kernel.model import KernelModel

TASKS = ("init_task", "task_init", "task_kthreadd", "task_kworker", "task_bash")
RELEASES = [era.value for era in Era]


def member(kernel: KernelModel, task: str, name: str) -> int:
    """A u32 of a task."""
    virt = kernel.task_virt(task) + kernel.guest.vmlinux.offsetof("task_struct", name)
    return kernel.ram.read_u32(kernel.space.virt_to_phys(virt))


def rq(kernel: KernelModel, cpu: int, name: str) -> int:
    """A u64 of a CPU's run queue; a name with a dot is one of the structures in it."""
    layout, guest = kernel.guest.vmlinux, kernel.guest
    outer, _, inner = name.partition(".")
    offset = layout.offsetof("rq", outer) + (layout.offsetof(f"{outer}_rq", inner) if inner else 0)
    virt = layout.virt("runqueues") + guest.read("__per_cpu_offset", 8 * cpu) + offset
    return int.from_bytes(guest.read_virt(virt % (1 << 64), 8), "little")


def nr_running(kernel: KernelModel, cpu: int) -> tuple[int, int]:
    """Of the run queue, and of its fair part."""
    members = kernel.guest.vmlinux.layout["structs"]["cfs_rq"]["members"]
    fair = "cfs.nr_queued" if "nr_queued" in members else "cfs.nr_running"
    return rq(kernel, cpu, "nr_running") & 0xFFFFFFFF, rq(kernel, cpu, fair) & 0xFFFFFFFF


def running(kernel: KernelModel) -> list[str]:
    """Tasks on a CPU; each that is not idle must be on its run queue and ready, and the others not."""
    found = [name for name in TASKS if member(kernel, name, "on_cpu")]
    for name in TASKS[1:]:
        runs = int(name in found)
        assert (member(kernel, name, "on_rq"), member(kernel, name, "__state")) == (runs, 1 - runs)
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_the_task_that_panics_runs_in_the_dump(release: str) -> None:
    with boot(era=release, cpus=2) as kernel:
        virt = kernel.task_virt
        assert running(kernel) == ["init_task"]
        assert nr_running(kernel, 0) == nr_running(kernel, 1) == (0, 0)
        assert rq(kernel, 0, "curr") == rq(kernel, 0, "idle") == virt("init_task")
        kernel.crash()
        assert running(kernel) == ["task_bash"]
        assert nr_running(kernel, 0) == (1, 1) and nr_running(kernel, 1) == (0, 0)
        assert rq(kernel, 0, "curr") == virt("task_bash")
        assert rq(kernel, 0, "cfs.curr") == virt("task_bash") + kernel.guest.vmlinux.offsetof(
            "task_struct", "se"
        )
        assert rq(kernel, 1, "curr") == rq(kernel, 1, "idle")


def test_a_stray_write_runs_in_its_own_task_and_leaves_the_cpu_idle_again() -> None:
    with boot() as kernel:
        before = rq(kernel, 0, "nr_switches")
        assert kernel.stray_write_virt(kernel.space.linear_virt(0x44000000), b"\0")
        assert running(kernel) == ["init_task"] and nr_running(kernel, 0) == (0, 0)
        assert rq(kernel, 0, "cfs.curr") == 0
        assert rq(kernel, 0, "nr_switches") == before + 2


@pytest.mark.parametrize("release", ["6.1", "6.6", "6.12", "6.18", "7.3"])
def test_jiffies_and_the_timekeeper_go_with_virtual_time(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with boot(era=release) as kernel:
        kernel.kexec_file_load(IMAGE, INITRD, "console=ttyAMA0")
        # Three seconds of instructions are too many to run.
        monkeypatch.setattr(
            KernelModel, "now_ns", property(lambda self: self.board.instructions + 3_250_000_000)
        )
        kernel.crash()
        layout = kernel.guest.vmlinux
        ticks = kernel.guest.read("jiffies_64") - ((1 << 32) - 300 * 100)
        assert ticks == 325
        modern = "timekeeper_data" in layout.elf.symbols
        assert modern is (release in ("6.18", "7.3"))
        base = layout.offsetof("tk_data", "timekeeper") if modern else 8
        at = base + layout.offsetof("timekeeper", "xtime_sec")
        now = kernel.guest.read("timekeeper_data" if modern else "tk_core", at)
        assert now == BOOT_TIME + 3
        # Monotonic time begins at power on, so what is put to the wall's is minus that.
        offset = base + layout.offsetof("timekeeper", "wall_to_monotonic")
        back = kernel.guest.read("timekeeper_data" if modern else "tk_core", offset)
        assert back == (1 << 64) - BOOT_TIME
