"""The sentence of each end on the timeline, word for word, and the facts beside it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.stages import LINUX_ENDS, CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState
from kexecemu.crash.words import linux_words, tell_capture, tell_purgatory
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, LoadDigest
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Event, Timeline

IMAGE = Kimage(0, kernel_entry=0x48200000, digest=bytes(32))
ABORT = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, 0xFFFF800008000000, 1, 0x3C5)
PURGATORY = PurgatoryRun(PurgatoryEnd.KERNEL, 0x1234, 99, None, ABORT)
VERDICT = Verdict(VerdictState.MATCH, 4096, b"e" * 32, b"f" * 32)
WRONG = replace(VERDICT, state=VerdictState.MISMATCH)
REPAIRED = replace(WRONG, flags=VerdictFlags.REPAIRED)


def told(tell: Any, *what: object) -> Event:
    timeline = Timeline(lambda: 7)
    tell(timeline, *what)
    (event,) = timeline
    return event


@pytest.mark.parametrize(
    ("end", "run", "words"),
    [
        ("KERNEL", {}, "is content and jumps to the kernel at 0x48200000"),
        ("KERNEL", {"verdict": VERDICT}, "is content and jumps to the kernel at 0x48200000"),
        ("KERNEL", {"verdict": WRONG}, "jumps all the same to the kernel at 0x48200000"),
        (
            "KERNEL",
            {"verdict": replace(VERDICT, state=VerdictState.TRAPPED)},
            "meets an exception and jumps all the same to the kernel at 0x48200000",
        ),
        ("KERNEL", {"verdict": REPAIRED}, "repairs the image and jumps to the kernel at 0x48200000"),
        ("MISMATCH", {}, "finds that the digests differ, and stops"),
        ("MISMATCH", {"power": "system_off"}, "finds that the digests differ, and switches off"),
        ("MISMATCH", {"power": "system_reset"}, "finds that the digests differ, and resets"),
        ("MISMATCH", {"power": "cpu_off"}, "finds that the digests differ, and switches its CPU off"),
        ("MISMATCH", {"itself": True}, "finds that the image is not as loaded, and stops"),
        ("MISMATCH", {"verdict": WRONG}, "finds that the digests differ, and stops"),
        ("MISMATCH", {"verdict": WRONG, "itself": True}, "finds that the digests differ, and stops"),
        (
            "MISMATCH",
            {"verdict": replace(WRONG, damaged=1)},
            "finds that the digests differ, and stops; damaged: region 0",
        ),
        (
            "MISMATCH",
            {"verdict": replace(WRONG, damaged=Damaged.PURGATORY)},
            "finds that the image is not as loaded, and stops; damaged: the purgatory itself",
        ),
        (
            "MISMATCH",
            {"verdict": replace(WRONG, damaged=Damaged.DTB_POINTER)},
            "finds that the image is not as loaded, and stops; damaged: x0 (not the device tree's address)",
        ),
        ("RETURNED", {}, "finds that something is wrong, and returns to 0x1234"),
        ("ELSEWHERE", {}, "jumps to 0x1234, which is not the kernel"),
        ("TRAPPED", {}, f"is ended by an exception: {ABORT}"),
        ("HUNG", {}, "gets nowhere (pc 0x1234)"),
        ("HUNG", {"verdict": WRONG}, "gets nowhere (pc 0x1234)"),
        ("HUNG", {"power": "system_off"}, "switches off without a verdict (pc 0x1234)"),
        ("HUNG", {"verdict": VERDICT}, "is content, and starts no kernel (pc 0x1234)"),
        (
            "HUNG",
            {"verdict": VERDICT, "power": "system_off"},
            "is content, and starts no kernel (pc 0x1234)",
        ),
    ],
)
def test_each_end_of_a_purgatory_is_told_with_what_it_did(end: str, run: dict[str, Any], words: str) -> None:
    event = told(tell_purgatory, replace(PURGATORY, end=PurgatoryEnd[end], **run), IMAGE)
    assert (event.when, event.kind, event.text) == (7, "purgatory", f"the purgatory {words}")
    verdict = run.get("verdict")
    assert event.facts == {
        "end": PurgatoryEnd[end].value,
        "pc_phys": 0x1234,
        "instructions": 99,
        "expected": "65" * 32 if verdict else None,
        "found": "66" * 32 if verdict else None,
        "damaged": words.partition("damaged: ")[2] or None,
    }


def test_one_that_was_loaded_to_check_nothing_is_not_called_content() -> None:
    event = told(tell_purgatory, PURGATORY, replace(IMAGE, digest=None))
    assert event.text == "the purgatory checks nothing and jumps to the kernel at 0x48200000"


CAPTURE_WORDS = {
    CaptureEnd.DONE: "the capture kernel has gone through the dump and powers off",
    CaptureEnd.ENTERED: "a real kernel stands at its first instruction, the entry contract is met",
    CaptureEnd.NO_DUMP: "the kernel that was started finds no dump: no core header where the device tree says",
    CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
    CaptureEnd.TRAPPED: f"the capture kernel is ended by an exception: {ABORT}",
    CaptureEnd.ELSEWHERE: "the capture kernel runs away to 0x1234",
    CaptureEnd.HUNG: "the capture kernel gets nowhere (pc 0x1234)",
    CaptureEnd.HEADERS: "the capture kernel reads the dump's headers and powers off",
    CaptureEnd.OFF: "the capture kernel powers off",
    CaptureEnd.PANIC: "the capture kernel panics",
}


@pytest.mark.parametrize("end", CaptureEnd)
def test_each_end_of_a_capture_kernel_is_told(end: CaptureEnd) -> None:
    event = told(tell_capture, CaptureRun(end, 0x1234, 99, None, ABORT))
    assert (event.when, event.kind, event.text) == (7, "captured", CAPTURE_WORDS[end])
    assert event.facts == {"end": end.value, "pc_phys": 0x1234, "instructions": 99}


LOAD, OTHER = (LoadDigest(PhysRange.of(0x40000000, 0x1000), digit * 64) for digit in "ab")
DISK: Any = SimpleNamespace(size=0x5000)


@pytest.mark.parametrize(
    ("end", "said", "words"),
    [
        ("DONE", {"read": [LOAD], "crashed": [LOAD], "vmcore": DISK, "console": " up\n"}, "has copied the dump, "
         "0x5000 bytes, and powers off; all 1 loads are as memory was"),
        ("DONE", {"read": [LOAD], "crashed": [LOAD], "console": " \n"}, "has copied the dump, 0x0 bytes, and powers "
         "off; all 1 loads are as memory was; it has printed nothing, for want of a driver for the console"),
        ("DONE", {"read": [OTHER], "crashed": [LOAD], "vmcore": DISK}, "has copied a dump of 0x5000 bytes that is not "
         "what memory held: 0x40000000-0x40000fff differ"),
        ("NO_DUMP", {}, "finds no dump, and powers off (there)"),
        ("HEADERS", {}, "reads the dump's headers, and powers off without copying it (there)"),
        ("OFF", {}, "powers off without a word of the dump (there)"),
        ("OFF", {"last_word": "status 1"}, "powers off: status 1 (there)"),
        ("PANIC", {}, "panics (there)"),
        ("PANIC", {"panic": "out of memory"}, "panics: out of memory (there)"),
        ("STUCK", {}, "gets nowhere (there)"),
        ("LOST", {}, "is ended by an exception (there)"),
        ("BUDGET", {}, "has not come to an end (there)"),
    ],
)  # fmt: skip
def test_each_end_of_a_linux_is_told_in_words_of_its_own(end: str, said: dict[str, Any], words: str) -> None:
    run = LinuxCapture(LinuxEnd[end], "there", 99, **said)
    assert linux_words(run) == f"the capture kernel {words}"
    released = replace(run, release="6.12")
    assert linux_words(released) == f"Linux 6.12 {words}"
    event = told(tell_capture, CaptureRun(LINUX_ENDS[run.end], 0x1234, 99, None, linux=released))
    assert event.text == f"Linux 6.12 {words}"
