"""What is behind a crash at each of its moments, from which it can go on; and a first kernel that never jumped."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu import By, Fault, Outcome, When
from kexecemu.crash import moments
from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.moments import Passed, crash, follow, injecting
from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshots
from kexecemu.machine.timeline import Timeline
from kexecemu.scenario.setup import Setup, prepare
from kexecemu.stray.first import Left
from kexecemu.testing import run

WANTED = [
    *((When.WHILE_HASHING, step) for step in (200, 0, 31)),
    *((When.IN_CAPTURE, step) for step in (2000, 0, 1000)),
]


def told(end: End) -> tuple[object, ...]:
    return (
        end.outcome,
        end.reason,
        end.console,
        end.timeline.as_jsonl(),
        end.instructions,
        end.dump,
        end.dump_reason,
    )


def ended(steps: Any, seen: list[Any] | None = None) -> End:
    """A crash to its end, in which nothing is done at any moment; which came is kept."""

    def noted() -> Any:
        while True:
            try:
                at = next(steps)
            except StopIteration as stop:
                return stop.value
            if seen is not None:
                seen.append(at)
            yield at

    return follow(noted(), {})


@pytest.mark.parametrize("purgatory", ["default", "none"])
def test_a_crash_goes_on_from_each_of_its_moments_to_the_same_end(purgatory: str) -> None:
    kernel, image = prepare(Setup(cpus=2, purgatory=purgatory))
    assert Passed() == Passed(None, None, [], 0, 0, None, None, None)
    plain = run(cpus=2, purgatory=purgatory).purgatory
    snapshots, passed = (
        Snapshots(kernel.board),
        Passed(hashing=plain.instructions if plain is not None else None),
    )
    seen: list[tuple[Any, Any, Passed]] = []
    steps = crash(kernel, wanted=WANTED, passed=passed)
    while True:
        try:
            at = next(steps)
        except StopIteration as stop:
            whole: End = stop.value
            break
        seen.append((at, snapshots.take(), replace(passed, damage=list(passed.damage))))
    cpu = kernel.board.boot_cpu
    for at, taken, behind in seen:
        gone = list(When).index(at[0]) > list(When).index(When.AT_JUMP)
        assert (behind.left is None) == (at[0] in (When.AFTER_LOAD, When.BEFORE_PANIC, When.DURING_PANIC))
        assert (behind.crashed is not None) == gone and behind.damage == []
        hashing = at[0] is When.WHILE_HASHING
        assert behind.step == (at[1] if hashing else 200 if gone and purgatory == "default" else None)
        assert (behind.purgatory is not None) == (gone and not hashing and purgatory == "default")
        if at[0] in (When.DURING_PANIC, When.IN_CAPTURE):
            continue  # in the middle of what is not left halfway
        snapshots.restore(taken)
        cpu.flush_code()
        if gone:
            assert behind.left is not None and behind.back_phys != 0 and 0 < behind.began <= cpu.instructions
            assert (behind.began == cpu.instructions) == ((hashing and at[1] == 0) or purgatory == "none")
        again = list[Any]()
        end, every = ended(crash(kernel, wanted=WANTED, passed=behind), again), [one for one, *_ in seen]
        assert told(end) == told(whole), at
        # One in the middle of the hashing is behind it, a moment between two parts comes again.
        jump = gone and purgatory == "none"  # which is all that there is between the two
        begin = every.index((When.AT_JUMP, 0) if jump else at) + hashing
        assert again == (every[begin:] if gone or at[0] is When.AT_JUMP else every)
    assert whole.timeline.of("missed") == [] and whole.outcome is Outcome.CAPTURED
    moments_seen = [at for at, *_ in seen]
    assert moments_seen == sorted(moments_seen, key=lambda at: (list(When).index(at[0]), at[1]))
    assert {at for at in WANTED if at[0] is When.IN_CAPTURE} <= {*moments_seen}
    hashed = [at for at in moments_seen if at[0] is When.WHILE_HASHING]
    assert hashed == (
        [] if purgatory == "none" else sorted(at for at in WANTED if at[0] is When.WHILE_HASHING)
    )
    assert image.start in image.segments[0].area or purgatory == "default"
    snapshots.close()
    kernel.close()


def test_moments_that_do_not_come_are_told_in_the_order_of_the_crash() -> None:
    late = [
        (When.IN_CAPTURE, 10**9),
        (When.IN_CAPTURE, 5 * 10**8),
        (When.WHILE_HASHING, 256),
        (When.WHILE_HASHING, 3),
    ]
    kernel, _ = prepare(Setup(purgatory="none"))
    end = ended(crash(kernel, wanted=late))
    kernel.close()
    words = ["hashing-3", "hashing-256", "capture-500000000", "capture-1000000000"]
    assert [one.facts for one in end.timeline.of("missed")] == [{"moment": word} for word in words]
    assert [one.text for one in end.timeline.of("missed")] == [
        f"the moment {word} did not come: what was to happen then has not" for word in words
    ]
    (last,) = end.timeline.of("outcome")
    assert (last.text, last.facts) == (f"captured: {end.reason}", {"outcome": "captured", "dump": "true"})


def test_what_is_to_happen_at_one_moment_happens_in_the_order_in_which_it_was_asked_for() -> None:
    faults = [
        Fault("initrd", write=bytes([byte]), by=By.DMA, when=when)
        for byte, when in ((1, When.AT_JUMP), (2, When.AFTER_CHECK), (3, When.AT_JUMP))
    ]
    kernel, _ = prepare(Setup(purgatory="none"))
    acts = injecting(kernel, faults)
    assert {at: len(some) for at, some in acts.items()} == {(When.AT_JUMP, 0): 2, (When.AFTER_CHECK, 0): 1}
    follow(crash(kernel, wanted=acts), acts)
    assert [one.fault for one in kernel.injections] == [faults[0], faults[2], faults[1]]
    kernel.close()


def test_the_purgatory_s_run_is_measured_over_what_was_loaded_and_leaves_no_trace() -> None:
    """What is damaged by then is damaged afterwards, and the measure is that of the undisturbed run."""
    whole = run().purgatory
    assert whole is not None
    kernel, image = prepare(Setup())
    kernel.inject(Fault("initrd+0x10", write=b"\x5a" * 8, by=By.DMA))
    passed = Passed()
    steps = crash(kernel, wanted=[(When.WHILE_HASHING, 128)], passed=passed)
    at = (When.AFTER_LOAD, 0)
    while at != (When.WHILE_HASHING, 128):
        at = next(steps)
    assert passed.hashing == whole.instructions
    late = kernel.board.boot_cpu.instructions - passed.began - whole.instructions * 128 // 256
    assert 0 <= late < 100  # it is the first block that begins then
    initrd = image.segment("initrd")
    assert initrd is not None and kernel.ram.read(initrd.mem + 0x10, 8) == b"\x5a" * 8
    assert not kernel.ram.private
    end = ended(steps)
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.MISMATCH
    kernel.close()


# -- no jump -----------------------------------------------------------------------------------------------------


def first(ram: Ram) -> Any:
    board = SimpleNamespace(
        timeline=Timeline(lambda: 5), uart=SimpleNamespace(text="said"), instructions=9, ram=ram
    )
    return SimpleNamespace(board=board, injections=["a write"])


def left(**more: Any) -> Left:
    stop = CpuStop(CpuStopKind.LEFT, 0x1234, 7)
    return Left(**({"cpu": None, "stop": stop, "out": False} | more))


NONE, NOT_THERE = "no crash image is loaded", "the first kernel did not jump to the image's entry"
NOT_OUT = "the crash path did not get out of the first kernel"
LOST = ("lost", f"{NOT_OUT}: left at 0x1234 after 7 instructions", {"pc_virt": 0x1234})
IMAGE = Kimage(0, [Segment("kernel", b"abcd", 0x40001000, 0x1000)], start=0x40001000)
HARMED = [Damage("kernel", 1, 1)]


@pytest.mark.parametrize(
    ("how", "image", "outcome", "reason", "dump", "event"),
    [
        ({}, None, "HUNG", f"{NONE}: panic() goes on without a dump", NONE, None),
        ({"out": True}, IMAGE, "MISBOOT", NOT_THERE, NOT_THERE,
         ("misboot", "the first kernel jumped to 0x1234 instead of 0x40001000", {"pc_phys": 0x1234})),
        ({"refused": "digest"}, IMAGE, "DETECTED", "the first kernel gives kdump up: digest",
         "the first kernel does not start an image that it found damaged", None),
        ({}, IMAGE, "HUNG", NOT_OUT, NOT_OUT, LOST),
        ({"trapped": True}, IMAGE, "TRAPPED", NOT_OUT, NOT_OUT, LOST),
    ],
)  # fmt: skip
def test_a_first_kernel_that_did_not_jump_is_told_by_why(
    how: dict[str, Any], image: Kimage | None, outcome: str, reason: str, dump: str, event: Any
) -> None:
    ram = Ram([PhysRange.of(0x40000000, 0x10000)])
    ram.write(0x40001000, b"a?cd")
    kernel = first(ram)
    end: Any = moments._no_jump(kernel, left(**how), image)
    assert (end.outcome, end.reason) == (Outcome[outcome], reason)
    assert (end.dump, end.dump_reason) == (Dump.NONE, f"none: {dump}")
    assert end.damage == (HARMED if image is not None else [])
    assert (end.console, end.instructions, end.injections) == ("said", 9, ["a write"])
    assert (end.purgatory, end.capture, end.vmcore) == (None, None, None)
    assert [(one.kind, one.text, one.facts) for one in end.timeline] == ([event] if event else [])


def test_an_image_that_is_jumped_to_elsewhere_than_at_its_start_is_none() -> None:
    """By the stop alone: what left the kernel there did not come to the purgatory."""

    def leave(message: str) -> Any:
        yield
        return left(out=True)

    kernel: Kernel = first(Ram([PhysRange.of(0x40000000, 0x10000)]))
    kernel.leave, kernel.image = leave, IMAGE  # type: ignore[misc, method-assign]
    seen: list[Any] = []
    steps = crash(kernel)
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            assert stop.value.outcome is Outcome.MISBOOT
            break
    assert seen == [(When.AFTER_LOAD, 0), (When.BEFORE_PANIC, 0), (When.DURING_PANIC, 0)]


@pytest.mark.parametrize("call", [crash, Kernel.panic])
def test_no_linux_is_followed_and_nobody_hears_of_progress_unless_it_is_asked_for(call: Any) -> None:
    defaults = {name: one.default for name, one in inspect.signature(call).parameters.items()}
    assert (defaults["linux"], defaults["progress"], defaults["message"]) == (
        False,
        None,
        "sysrq triggered crash",
    )
