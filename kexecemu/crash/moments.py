"""One crash, from the loaded image to its end: a sequence of named moments, at which others may act.

A stray write of a scenario or a campaign, a snapshot, a recorder, the hand-over to QEMU: each is "at this moment, do
that". Nothing else happens between two moments than what the machine does.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from kexecemu.crash.damage import Damage, find_damage, written_by_early_check
from kexecemu.crash.dump import CrashedMemory, Dump, judge_dump
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome, judge, written_bytes_differ
from kexecemu.crash.reason import Facts, reason_of
from kexecemu.crash.running import capture_stage, purgatory_stage
from kexecemu.crash.stages import CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.vmcore import Vmcore, vmcore_of
from kexecemu.crash.words import tell_capture, tell_purgatory
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import DiskVmcore
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.snapshot import Snapshots
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault, When, when_word
from kexecemu.stray.first import FirstKernel, Left, Progress, through
from kexecemu.stray.inject import inject

_S = TypeVar("_S")
_T = TypeVar("_T")

__all__ = ["SYSRQ", "Act", "At", "Passed", "crash", "follow", "injecting"]

SYSRQ = "sysrq triggered crash"

At = tuple[When, int]
"""A moment and its number, 0 for those without: see kexecemu.stray.fault.When."""

Act = Callable[[], object]


@shown()
@dataclass
class Passed:
    """What is behind a crash: kept beside a snapshot of the machine, it lets the crash go on from there.

    left is how the first kernel was left, None before that. crashed is what a dump has to show, damage what was found
    of the purgatory when it was entered, back_phys where it may return to, and began what the CPU had retired by then.
    step is how many 256ths of its run are behind a purgatory that has begun (None: it has not), hashing how many
    instructions all of them are; purgatory is how it ended.
    """

    left: Left | None = None
    crashed: CrashedMemory | None = None
    damage: list[Damage] = field(default_factory=list)
    back_phys: int = 0
    began: int = 0
    step: int | None = None
    hashing: int | None = None
    purgatory: PurgatoryRun | None = None


def follow(steps: Generator[At, None, End], acts: Mapping[At, Sequence[Act]]) -> End:
    """A crash to its end; at each moment what is to be done there."""

    def act(at: At) -> None:
        for one in acts.get(at, ()):
            one()

    return through(_told(steps, lambda at: at, act))


def injecting(first: FirstKernel, faults: Iterable[Fault]) -> dict[At, list[Act]]:
    """Stray writes as what is to be done, each at its moment."""
    acts: dict[At, list[Act]] = {}
    for fault in faults:
        acts.setdefault(fault.moment, []).append(partial(inject, first, fault))
    return acts


def crash(
    first: FirstKernel,
    message: str = SYSRQ,
    wanted: Collection[At] = (),
    *,
    linux: bool = False,
    progress: Progress | None = None,
    passed: Passed | None = None,
) -> Generator[At, None, End]:
    """From right after the load to the end. It stops at every moment; at those with a number where `wanted` has them.

    A wanted one that does not come, since the crash ends before it, is an event of its own at the end. linux follows a
    capture kernel that is a real Linux to its end. passed is what a machine has behind it that was put back to a later
    moment, and is kept up to date on the way; None for one that has just loaded.
    """
    missed = set() if passed is not None else set(wanted)
    steps = _steps(first, message, wanted, Passed() if passed is None else passed, linux, progress)
    end = yield from _told(steps, lambda at: at, missed.discard)
    say = first.board.timeline.record
    for when, step in sorted(missed, key=lambda at: (list(When).index(at[0]), at[1])):
        word = when_word(when, step)
        say("missed", f"the moment {word} did not come: what was to happen then has not", moment=word)
    say("outcome", f"{end.outcome.value}: {end.reason}", outcome=end.outcome.value, dump=end.dump.value)
    return end


def _steps(
    first: FirstKernel,
    message: str,
    wanted: Collection[At],
    passed: Passed,
    linux: bool,
    progress: Progress | None,
) -> Generator[At, None, End]:
    """crash() without its last event."""
    if passed.left is None:
        yield When.AFTER_LOAD, 0
        yield When.BEFORE_PANIC, 0
        passed.left = yield from _told(first.leave(message), lambda _: (When.DURING_PANIC, 0))
    left, image = passed.left, first.image
    if image is None or not left.out or left.stop.pc != image.start:
        return _no_jump(first, left, image)
    if passed.purgatory is None and passed.step is None:
        yield When.AT_JUMP, 0
        passed.damage = _own_damage(first, image)
        passed.back_phys, passed.began = left.cpu.x(30), left.cpu.instructions
    if passed.crashed is None:
        passed.crashed = CrashedMemory.of(first.board.ram, image)
    if image.purgatory is not None and passed.purgatory is None:
        passed.purgatory = yield from _purgatory(first, image, wanted, passed, progress)
        if passed.purgatory.end is PurgatoryEnd.RETURNED:
            first.resume()
    if passed.purgatory is not None and passed.purgatory.end is not PurgatoryEnd.KERNEL:
        return _judged(first, image, passed)
    yield When.AFTER_CHECK, 0
    return (yield from _capture(first, image, wanted, passed, linux, progress))


def _told(
    stage: Generator[_S, None, _T], moment: Callable[[_S], At], act: Callable[[At], object] = lambda at: None
) -> Generator[At, None, _T]:
    """A part of the crash, each stop of which is a moment, and what is done behind it before the part goes on."""
    while True:
        try:
            step = next(stage)
        except StopIteration as stop:
            result: _T = stop.value
            return result
        at = moment(step)
        yield at
        act(at)


def _purgatory(
    first: FirstKernel, image: Kimage, wanted: Collection[At], passed: Passed, progress: Progress | None
) -> Generator[At, None, PurgatoryRun]:
    """From the purgatory's entry, or from where it stands, to its end."""
    assert passed.left is not None
    cpu = passed.left.cpu
    steps = sorted(
        step
        for when, step in wanted
        if when is When.WHILE_HASHING and (passed.step is None or step > passed.step)
    )
    if steps and passed.hashing is None:
        passed.hashing = _measured(first, cpu, image)
    total, back_phys = passed.hashing or 0, passed.back_phys
    done = cpu.instructions - passed.began
    stage = purgatory_stage(
        cpu,
        image,
        back_phys=back_phys,
        steps=steps,
        total=total,
        done=done,
        least=first.purgatory_budget,
        progress=progress,
    )

    def moment(step: int) -> At:
        passed.step = step
        return When.WHILE_HASHING, step

    def act(at: At) -> None:
        if at[1] == 0:  # nothing of it has run yet: what is written now is damage, as at the jump
            passed.damage = _own_damage(first, image)

    run = yield from _told(stage, moment, act)
    tell_purgatory(first.board.timeline, run, image)
    return run


def _measured(first: FirstKernel, cpu: SystemCpu, image: Kimage) -> int:
    """Instructions of the purgatory's run over what was loaded; the machine is as before it afterwards."""
    snapshots = Snapshots(first.board)
    before = snapshots.take()
    for segment in image.segments:
        if first.board.ram.read(segment.mem, segment.memsz) != (loaded := segment.content()):
            first.board.ram.write(segment.mem, loaded)
    cpu.flush_code()
    run = through(purgatory_stage(cpu, image, back_phys=cpu.x(30)))
    snapshots.restore(before)
    snapshots.close()
    cpu.flush_code()
    return run.instructions


def _capture(
    first: FirstKernel,
    image: Kimage,
    wanted: Collection[At],
    passed: Passed,
    linux: bool,
    progress: Progress | None,
) -> Generator[At, None, End]:
    """From the capture kernel's entry on."""
    board, left, crashed = first.board, passed.left, passed.crashed
    assert left is not None and crashed is not None
    damage = [*passed.damage, *find_damage(board.ram, image, purgatory=False)]
    board.timeline.record(
        "capture", f"the capture kernel starts at {image.kernel_entry:#x}", pc_phys=image.kernel_entry
    )
    # A real Linux makes use of all its memory: what a fault has left there is judged before it does.
    differ = written_bytes_differ(board.ram, first.injections) if linux else None
    changed = crashed.memory.changed() if linux else None
    steps = sorted(step for when, step in wanted if when is When.IN_CAPTURE)
    stage = capture_stage(
        left.cpu, board, image, steps=steps, linux=linux, loads=crashed.loads, progress=progress
    )
    capture = yield from _told(stage, lambda step: (When.IN_CAPTURE, step))
    tell_capture(board.timeline, capture)
    vmcore = vmcore_of(board, image, capture)
    if changed is None:
        changed = crashed.memory.changed() if vmcore is not None else []
    dump = judge_dump(crashed, passed.purgatory, capture, vmcore, changed, damage)
    return _end(first, image, dump, damage, passed, capture, vmcore, differ)


def _own_damage(first: FirstKernel, image: Kimage) -> list[Damage]:
    """What differs of the purgatory, which can be compared until it runs."""
    ram = first.board.ram
    own = written_by_early_check(ram, image.purgatory) if image.purgatory is not None else []
    return find_damage(ram, image, purgatory=True, own=own)


def _judged(first: FirstKernel, image: Kimage, passed: Passed) -> End:
    """The end of a crash whose purgatory has started no kernel."""
    assert passed.crashed is not None
    damage = [*passed.damage, *find_damage(first.board.ram, image, purgatory=False)]
    return _end(first, image, judge_dump(passed.crashed, passed.purgatory, None, None, ()), damage, passed)


def _no_jump(first: FirstKernel, left: Left, image: Kimage | None) -> End:
    """The first kernel did not jump to its image: there is none, it did not want to, or its crash path went wrong."""
    say = first.board.timeline.record
    if image is None:
        reason = "no crash image is loaded: panic() goes on without a dump"
        return _over(first, Outcome.HUNG, reason, [], (Dump.NONE, "none: no crash image is loaded"))
    damage = [*_own_damage(first, image), *find_damage(first.board.ram, image, purgatory=False)]
    if left.out:  # its kimage was damaged
        pc = left.stop.pc
        say("misboot", f"the first kernel jumped to {pc:#x} instead of {image.start:#x}", pc_phys=pc)
        return _over(first, Outcome.MISBOOT, "the first kernel did not jump to the image's entry", damage)
    if left.refused is not None:
        none = "none: the first kernel does not start an image that it found damaged"
        reason = f"the first kernel gives kdump up: {left.refused}"
        return _over(first, Outcome.DETECTED, reason, damage, (Dump.NONE, none))
    reason = "the crash path did not get out of the first kernel"
    say("lost", f"{reason}: {left.stop}", pc_virt=left.stop.pc)
    return _over(first, Outcome.TRAPPED if left.trapped else Outcome.HUNG, reason, damage)


def _end(
    first: FirstKernel,
    image: Kimage,
    dump: tuple[Dump, str],
    damage: list[Damage],
    passed: Passed,
    capture: CaptureRun | None = None,
    vmcore: Vmcore | DiskVmcore | None = None,
    differ: bool | None = None,
) -> End:
    ram, purgatory, writes = first.board.ram, passed.purgatory, first.injections
    outcome = judge(ram, writes, damage, purgatory, capture, dump=dump[0], differ=differ)
    loads = passed.crashed.loads if passed.crashed is not None else []
    name, checker = "purgatory_kernel_entry", image.purgatory
    known = checker is not None and checker.has_symbol(name)
    entry = ram.read_u64(checker.symbol_phys(name)) if checker is not None and known else None
    facts = Facts(image, writes, damage, purgatory, capture, dump[0], loads, checker, entry=entry)
    end = _over(first, outcome, reason_of(outcome, facts), damage, dump)
    return replace(end, purgatory=purgatory, capture=capture, vmcore=vmcore)


def _over(
    first: FirstKernel,
    outcome: Outcome,
    reason: str,
    damage: list[Damage],
    dump: tuple[Dump, str] | None = None,
) -> End:
    """Without a word about the dump there is none, for the same reason."""
    board, (what, why) = first.board, dump or (Dump.NONE, f"none: {reason}")
    account = board.uart.text, board.timeline, board.instructions
    return End(outcome, reason, damage, list(first.injections), *account, dump=what, dump_reason=why)
