"""panic_force_cpu=: whose panic it is then, what is said of it, and what is in the notes; as a real 7.3.4 has it."""

from __future__ import annotations

import re

import pytest
from kernel_bench import IMAGE, INITRD, boot

from kexecemu import Outcome
from kexecemu.campaign.golden import golden_run
from kexecemu.crash.kernel import Kernel
from kexecemu.errors import InputError
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.kernel.base.cmdline import kstrtoint
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.board import Board
from kexecemu.machine.snapshot import Snapshots
from kexecemu.stray.fault import By, Fault, When

WFI = bytes.fromhex("7f2003d5")


def crashing(cmdline: str, era: str = "7.3", cpus: int = 4, **config: object) -> Kernel:
    kernel = Kernel.boot(
        Board("256M", cpus), KernelConfig(era, **config), cmdline=f"crashkernel=64M {cmdline}"
    )
    kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    return kernel


def console(kernel: KernelModel) -> list[str]:
    """What the first kernel said from the crash on, without times and without frames of the stack."""
    lines = [re.sub(r"^\[.{12}\] ", "", line) for line in kernel.board.uart.text.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line == "sysrq: Trigger a crash")
    return [line for line in lines[begin:] if line[:1] != " " and line[:8] != "capture:"]


def notes_of(kernel: KernelModel, cpu: int) -> bytes:
    return kernel.ram.read(kernel.crash_notes_phys(cpu), 0x1A8)


# -- as a real kernel --------------------------------------------------------------------------------------------

# Linux 7.3.4 in QEMU, four CPUs, panic_force_cpu=2 and a sysrq on CPU 1, without what its configuration adds (a warning
# of a kernel that cannot take CPUs off) and what is only its own: the build, PREEMPTLAZY, the frames.
REAL = """\
sysrq: Trigger a crash
panic: Redirecting from CPU 1 to CPU 2 for crash kernel.
CPU: 1 UID: 0 PID: 55 Comm: sh Kdump: loaded Not tainted 7.3.4-purgatory+ #6 PREEMPTLAZY
Hardware name: linux,dummy-virt (DT)
Call trace:
Kernel panic - not syncing: sysrq triggered crash
panic: Redirected from CPU 1, skipping stack dump.
SMP: stopping secondary CPUs
Starting crashdump kernel...
Bye!"""
# The same with panic_force_cpu=3 maxcpus=2.
REAL_OFFLINE = """\
sysrq: Trigger a crash
panic: target CPU 3 is offline, continuing on CPU 1
Kernel panic - not syncing: sysrq triggered crash
CPU: 1 UID: 0 PID: 40 Comm: sh Kdump: loaded Not tainted 7.3.4-purgatory+ #6 PREEMPTLAZY
Hardware name: linux,dummy-virt (DT)
Call trace:
SMP: stopping secondary CPUs
Starting crashdump kernel...
Bye!"""


def as_here(text: str) -> list[str]:
    """What a real kernel said of a crash on CPU 1, as it is on CPU 0 and of this kernel."""
    lines = []
    for line in text.replace("CPU 1", "CPU 0").splitlines():
        if line.startswith("CPU:"):
            line = "CPU: 0 UID: 0 PID: 57 Comm: bash Kdump: loaded Not tainted 7.3.0-kexecemu #1 PREEMPT"
        lines.append(line)
    return lines


@pytest.mark.parametrize(("cmdline", "cpus", "text"), [("=2", 4, REAL), ("=3", 2, REAL_OFFLINE)])
def test_the_lines_are_those_of_a_real_kernel(cmdline: str, cpus: int, text: str) -> None:
    with crashing(f"panic_force_cpu{cmdline}", cpus=cpus) as kernel:
        kernel.begin_crash()
        assert console(kernel)[: len(as_here(text))] == as_here(text)


@pytest.mark.parametrize("target", [1, 2, 3])
def test_the_cpu_that_was_named_leaves_the_kernel_and_the_other_stands_still(target: int) -> None:
    with crashing(f"panic_force_cpu={target}") as kernel:
        end = kernel.panic()
        assert end.outcome is Outcome.CAPTURED
        event = kernel.board.timeline.of("panic_redirect")[0]
        assert (event.facts["cpu"], event.facts["to"]) == (0, target)
        # It is in its own idle task; of the one that panicked there is no note, nobody asked it for its registers.
        saved = {event.facts["cpu"] for event in kernel.board.timeline.of("crash_save_cpu")}
        assert saved == {0, 1, 2, 3} - {0}
        assert notes_of(kernel, 0) == bytes(0x1A8)
        note = next(iterate_notes(notes_of(kernel, target)))
        assert int.from_bytes(note.desc[32:36], "little") == 0
        assert kernel.guest.read("__cpu_online_mask") & 1 == 0


def test_the_one_that_panicked_is_not_off() -> None:
    with crashing("panic_force_cpu=2") as kernel:
        left = kernel.finish_crash(kernel.begin_crash())
        assert kernel.image is not None and left.pc == kernel.image.start
        first = kernel.board.cpus[0]
        # It has come to its wait, and is behind the instruction.
        assert kernel.guest.vmlinux.describe(first.pc - 4).startswith("cpu_park_loop+")
        assert kernel.guest.read_virt(first.pc - 4, 4) == WFI
        assert [cpu.powered for cpu in kernel.board.cpus] == [True, False, True, False]
        assert not first.deliver_irq()


# -- when it is not handed over ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "cmdline", "cpus"),
    [
        ("6.18", "panic_force_cpu=2", 4),
        ("7.0", "", 4),
        ("7.0", "panic_force_cpu=0", 4),
        ("7.3", "panic_force_cpu=4", 4),
        ("7.3", "panic_force_cpu=63", 4),
        ("7.3", "panic_force_cpu=64", 4),
        ("7.3", "panic_force_cpu=1", 1),
    ],
)
def test_a_panic_goes_on_where_it_began(era: str, cmdline: str, cpus: int) -> None:
    with crashing(cmdline, era, cpus) as kernel:
        assert kernel.panic().outcome is Outcome.CAPTURED
        assert not kernel.board.timeline.of("panic_redirect")
        lines = console(kernel)
        assert not any("Redirect" in line for line in lines)
        offline = [line for line in lines if "offline" in line]
        number = cmdline.rpartition("=")[2]
        online = number in ("", "0") or era == "6.18" or number == "64"
        said = [f"panic: target CPU {number} is offline, continuing on CPU 0"]
        assert offline == ([] if online else said)


@pytest.mark.parametrize("era", ["7.0", "7.2", "7.3"])
def test_eras_that_have_it_do_it_without_an_image_as_well(era: str) -> None:
    with boot(era, "panic_force_cpu=1", ram="256M", cpus=2) as kernel:
        stop = kernel.begin_crash()
        assert stop.pc == kernel.guest.vmlinux.virt("panic_no_kexec")
        assert kernel.crashing_cpu.index == 1 and kernel.crashing_cpu.pc == stop.pc
        assert kernel.board.cpus[0].pc != stop.pc


def test_an_oops_that_is_fatal_starts_the_image_where_it_was() -> None:
    """die() calls crash_kexec(), which asks nobody."""
    with crashing("panic_force_cpu=1 oops=panic", cpus=2) as kernel:
        kernel.stray_write_virt(0xFFFF_0000_0000_0000 + (1 << 46), b"x")
        assert kernel.panic().outcome is Outcome.CAPTURED
        assert not kernel.board.timeline.of("panic_redirect")


def test_an_oops_without_an_image_is_handed_over_and_has_told_its_stack_already() -> None:
    with boot("7.3", "panic_force_cpu=1 oops=panic", ram="256M", cpus=2) as kernel:
        kernel.stray_write_virt(0xFFFF_0000_0000_0000 + (1 << 46), b"x")
        lines = [re.sub(r"^\[.{12}\] ", "", line) for line in kernel.board.uart.text.splitlines()]
        at = lines.index("panic: Redirecting from CPU 0 to CPU 1 for crash kernel.")
        assert lines[at + 1 : at + 3] == [
            "Kernel panic - not syncing: Oops: Fatal exception",
            "panic: Redirected from CPU 0, skipping stack dump.",
        ]


# -- what follows it -----------------------------------------------------------------------------------------------


def test_a_stray_store_in_the_panic_is_by_the_cpu_that_goes_on() -> None:
    with crashing("panic_force_cpu=2") as kernel:
        kernel.inject(Fault("initrd+0x1000", b"\xa5\xa5", when=When.DURING_PANIC))
        end = kernel.panic()
        assert end.outcome is Outcome.DETECTED
        assert [one.cpu for one in kernel.injections] == [2]


def test_the_cpu_that_crashes_is_no_late_one() -> None:
    with crashing("panic_force_cpu=1") as kernel:
        kernel.inject(Fault("initrd", b"\xa5", by=By.LATE_CPU, when=When.AT_JUMP))
        with pytest.raises(InputError, match="cpu1 is the one that crashes"):
            kernel.panic()


def test_a_machine_put_back_to_before_crashes_on_the_boot_cpu_again() -> None:
    with crashing("panic_force_cpu=1", cpus=2) as kernel:
        snapshots = Snapshots(kernel.board)
        before = snapshots.take()
        kernel.begin_crash()
        assert kernel.crashing_cpu.index == 1
        snapshots.restore(before)
        assert kernel.crashing_cpu.index == 0 and kernel.guest.read("__cpu_online_mask") == 3
        kernel.begin_crash()
        assert kernel.crashing_cpu.index == 1


def test_a_campaign_does_not_follow_it() -> None:
    with crashing("panic_force_cpu=1", cpus=2) as kernel:
        image = kernel.image
        assert image is not None
        with pytest.raises(InputError, match="panic_force_cpu=: a campaign knows what the boot CPU does"):
            golden_run(kernel, image, Snapshots(kernel.board))


# -- the parameter -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("2", 2),
        ("+2", 2),
        ("-2", -2),
        ("0x1f", 31),
        ("0X1F", 31),
        ("010", 8),
        ("2147483647", (1 << 31) - 1),
        ("-2147483648", -1 << 31),
        *(
            (text, None)
            for text in ("", "x", "1x", "08", "0x", "2147483648", "-2147483649", "1 ", "--1", "+-1")
        ),
        ("9" * 5000, None),
    ],
)
def test_a_number_is_read_as_kstrtoint_reads_it(text: str, value: int | None) -> None:
    assert kstrtoint(text) == value


@pytest.mark.parametrize(
    ("cmdline", "cpu", "said"),
    [
        ("", None, []),
        ("panic_force_cpu=7", 7, []),
        ("panic_force_cpu=7 panic_force_cpu=0x2", 2, []),
        ("panic_force_cpu", None, ["Malformed early option 'panic_force_cpu'"]),
        ("xpanic_force_cpu=2", None, []),
        *(
            (
                f"panic_force_cpu=3 panic_force_cpu={bad}",
                3,
                [f"panic_force_cpu: invalid value '{bad}'", "Malformed early option 'panic_force_cpu'"],
            )
            for bad in ("", "-1", "1x", "64", "1,2", "99999999999")
        ),
    ],
)
def test_what_the_kernel_makes_of_the_parameter(cmdline: str, cpu: int | None, said: list[str]) -> None:
    log: list[str] = []
    assert parse_early_param(KernelConfig("7.0"), cmdline, log.append).panic_force_cpu == cpu
    assert log == said
    assert parse_early_param(KernelConfig("6.18"), cmdline, log.append).panic_force_cpu is None
    assert log == said


def test_what_is_no_number_is_told_at_boot() -> None:
    with boot("7.3", "panic_force_cpu=1x", ram="256M") as kernel:
        lines = [re.sub(r"^\[.{12}\] ", "", line) for line in kernel.board.uart.text.splitlines()]
        at = lines.index("panic_force_cpu: invalid value '1x'")
        assert lines[at + 1] == "Malformed early option 'panic_force_cpu'"
        assert at < lines.index("Kernel command line: panic_force_cpu=1x")
    with boot("6.18", "panic_force_cpu=1x", ram="256M") as kernel:
        assert "invalid value" not in kernel.board.uart.text


@pytest.mark.parametrize("target", [1, 2, 3])
def test_an_oops_in_the_panic_is_handed_to_nobody(target: int) -> None:
    """The CPU that was named has been stopped by then, or is the very one: a store that faults in it is the end."""
    with crashing(f"panic_force_cpu={target} oops=panic", protection="pte") as kernel:
        kernel.stray_write_virt(0xFFFF_0000_0000_0000 + (1 << 46), b"x")  # crash_kexec(), on the boot CPU
        kernel.inject(Fault("initrd", b"\xa5", when=When.DURING_PANIC))
        assert kernel.panic().capture is None
        assert not kernel.board.timeline.of("panic_redirect")
        said = f"panic: target CPU {target} is offline, continuing on CPU 0"
        assert kernel.board.uart.text.count(said) == 1


def test_a_store_that_faults_on_the_cpu_that_goes_on_is_the_end() -> None:
    with crashing("panic_force_cpu=1 oops=panic", cpus=2, protection="pte") as kernel:
        kernel.inject(Fault("initrd", b"\xa5", when=When.DURING_PANIC))
        assert kernel.panic().capture is None
        assert [one.cpu for one in kernel.injections] == [1]
        assert len(kernel.board.timeline.of("panic_redirect")) == 1
