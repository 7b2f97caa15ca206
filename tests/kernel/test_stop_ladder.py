"""CPUs that do not stop at the crash: what each era tries, what it says, how long it takes, and what is in the dump."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from kernel_bench import IMAGE, INITRD

from kexecemu import Outcome
from kexecemu.crash.kernel import Kernel
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.stray.fault import By, Fault, When

STALE = "Some CPUs may be stale, kdump will be unreliable."


def crashing(
    era: str, stuck: tuple[int, ...], *, cpus: int = 4, gic: int = 2, cmdline: str = "", **options: str
) -> Kernel:
    board = Board("256M", cpus, gic=gic, stuck_cpus=stuck)
    kernel = Kernel.boot(board, KernelConfig(era, options=options), cmdline=f"crashkernel=64M {cmdline}")
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    return kernel


def said(kernel: Kernel) -> list[tuple[float, str]]:
    """Time in seconds and words of what the first kernel said from the crash on."""
    lines = re.findall(r"^\[ *([\d.]+)\] (.*)$", kernel.board.uart.text, re.M)
    begin = [words for _, words in lines].index("sysrq: Trigger a crash")
    return [(float(seconds), words) for seconds, words in lines[begin:]]


def ladder(kernel: Kernel) -> list[str]:
    return [words for _, words in said(kernel) if words.startswith("SMP: ")]


def saved(kernel: Kernel) -> set[object]:
    return {event.facts["cpu"] for event in kernel.board.timeline.of("crash_save_cpu")}


@pytest.mark.parametrize("era", [era.value for era in Era])
@pytest.mark.parametrize(
    ("stuck", "late"), [((2,), "2"), ((1, 2, 3), "1-3"), ((1, 3), "1,3"), ((0, 2), "2"), ((0,), "")]
)
def test_a_cpu_that_is_stuck_costs_a_second_and_is_named(era: str, stuck: tuple[int, ...], late: str) -> None:
    with crashing(era, stuck) as kernel:
        end = kernel.panic()
        assert end.outcome is Outcome.CAPTURED  # a CPU that does nothing does no harm
        # Before 6.12 all that were asked are named, whoever has answered.
        named = late if Era(era) >= Era("6.12") else "1-3"
        wanted = [f"SMP: failed to stop secondary CPUs {named}"] if late else []
        assert ladder(kernel) == ["SMP: stopping secondary CPUs", *wanted]
        assert saved(kernel) == {0, 1, 2, 3} - (set(stuck) - {0})
        assert kernel.board.idle == (INSTRUCTIONS_PER_SECOND if late else 0)
        words = [line for _, line in said(kernel)]
        assert (STALE in words) is bool(late)
        if late:
            assert words.index("Starting crashdump kernel...") < words.index(STALE) < words.index("Bye!")
            gaps = [after - before for (before, _), (after, _) in pairwise(said(kernel))]
            assert max(gaps) == pytest.approx(1, abs=0.01)


# Debian's 6.1 and 7.3.4 in this emulator, machine.cpus = 4 and stuck_cpus = [1, 3]; CPU 1 and CPU 2 crashed. What is
# left out of the warning are the line of the source, modules and registers, and frames that this kernel has not.
REAL = {
    "6.1": (
        (1, 3),
        "SMP: failed to stop secondary CPUs 0,2-3",
        "CPU: 1 PID: 1 Comm: init Kdump: loaded Not tainted 6.1.0-56-cloud-arm64",
    ),
    "7.3": (
        (1, 3),
        "SMP: failed to stop secondary CPUs 1,3",
        "CPU: 2 UID: 0 PID: 1 Comm: init Kdump: loaded Not tainted 7.3.4+deb13-cloud-arm64",
    ),
}


def numbers(line: str) -> set[int]:
    """The CPUs of a list like 0,2-3 at the end of a line."""
    ends = [part.split("-") for part in line.rpartition(" ")[2].split(",")]
    return {one for part in ends for one in range(int(part[0]), int(part[-1]) + 1)}


@pytest.mark.parametrize("era", REAL)
def test_the_lines_are_in_the_order_of_a_real_kernel(era: str) -> None:
    stuck, failed, task = REAL[era]
    crashed = int(task[5])
    change = {crashed: 0, 0: crashed}  # here it is CPU 0 that crashes: the two change places
    with crashing(era, tuple(change.get(one, one) for one in stuck)) as kernel:
        kernel.panic()
        words = [line for _, line in said(kernel)]
        at = words.index("SMP: stopping secondary CPUs")
        assert words[at + 1].startswith("SMP: failed to stop secondary CPUs ")
        assert numbers(words[at + 1]) == {change.get(one, one) for one in numbers(failed)}
        uid, model = (" UID: 0", " PREEMPT") if " UID: 0" in task else ("", "")
        assert [line for line in words[at + 2 :] if line[:1] != " "] == [
            "Starting crashdump kernel...",
            "------------[ cut here ]------------",
            STALE,
            f"CPU: 0{uid} PID: 57 Comm: bash Kdump: loaded Not tainted {era}.0-kexecemu #1{model}",
            "Hardware name: linux,dummy-virt (DT)",
            "Call trace:",
            "---[ end trace 0000000000000000 ]---",
            "Bye!",
        ]
        frames = [line.split("+")[0].strip() for line in words[at:] if line[:1] == " "]
        assert frames[:4] == ["machine_kexec", "__crash_kexec", "panic", "sysrq_handle_crash"]


NMI = "irqchip.gicv3_pseudo_nmi=1"


@pytest.mark.parametrize(
    ("era", "gic", "cmdline", "option", "heard"),
    [
        ("6.12", 3, NMI, "y", True),
        ("7.3", 3, NMI, "y", True),
        ("7.3", 3, f"irqchip.gicv3_pseudo_nmi=0 {NMI}", "y", True),
        ("7.3", 3, f"{NMI} irqchip.gicv3_pseudo_nmi=x", "y", True),
        ("7.3", 3, f"{NMI} irqchip.gicv3_pseudo_nmi=off", "y", False),
        ("7.3", 3, "", "y", False),
        ("7.3", 3, NMI, "n", False),
        ("7.3", 2, NMI, "y", False),
        ("6.6", 3, NMI, "y", False),
    ],
)
def test_a_pseudo_nmi_reaches_it(era: str, gic: int, cmdline: str, option: str, heard: bool) -> None:
    with crashing(era, (1, 2), gic=gic, cmdline=cmdline, ARM64_PSEUDO_NMI=option) as kernel:
        assert kernel.panic().outcome is Outcome.CAPTURED
        second = "retry stop with NMI for CPUs 1-2" if heard else "failed to stop secondary CPUs 1-"
        assert ladder(kernel)[1].startswith(f"SMP: {second}") and len(ladder(kernel)) == 2
        assert saved(kernel) == ({0, 1, 2, 3} if heard else {0, 3})
        assert kernel.board.idle == INSTRUCTIONS_PER_SECOND
        assert (STALE in [line for _, line in said(kernel)]) is not heard


def test_what_is_left_of_the_others_is_powered() -> None:
    with crashing("7.3", (2,)) as kernel:
        kernel.finish_crash(kernel.begin_crash())
        assert [cpu.powered for cpu in kernel.board.cpus] == [True, False, True, False]
        assert not kernel.board.cpus[2].deliver_irq()


def test_the_one_that_is_stuck_is_the_late_one() -> None:
    with crashing("7.3", (2, 3)) as kernel:
        kernel.inject(Fault("initrd+0x1000", b"\xa5\xa5", by=By.LATE_CPU, when=When.AT_JUMP))
        assert kernel.panic().outcome is Outcome.DETECTED
        assert [one.cpu for one in kernel.injections] == [2]


def test_a_panic_that_is_handed_to_a_stuck_cpu_is_the_end() -> None:
    """smp_call_function_single_async() has sent its IPI, and waits for nobody."""
    with crashing("7.3", (2,), cmdline="panic_force_cpu=2") as kernel:
        end = kernel.panic()
        assert end.outcome is Outcome.HUNG and end.capture is None
        words = [line for _, line in said(kernel)]
        assert "panic: Redirecting from CPU 0 to CPU 2 for crash kernel." in words
        assert not any(line.startswith(("Kernel panic", "SMP: ")) for line in words)


@pytest.mark.parametrize(("stuck", "wrong"), [((4,), 4), ((0, 9), 9), ((-1,), -1)])
def test_a_cpu_that_there_is_not_is_not_stuck(stuck: tuple[int, ...], wrong: int) -> None:
    with pytest.raises(InputError, match=f"stuck_cpus: the board has CPUs 0 to 3, not {wrong}"):
        Board("64M", 4, stuck_cpus=stuck)
