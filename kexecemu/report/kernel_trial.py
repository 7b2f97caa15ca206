"""What came of a crash of a kernel of ours, in lines for people."""

from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.kbuild.trial import TrialEnd
from kexecemu.stray.fault import Injection, When
from kexecemu.visible import lines_text

__all__ = ["trial_text"]

_PURGATORY = {
    PurgatoryEnd.KERNEL: "started the kernel",
    PurgatoryEnd.MISMATCH: "refused the image",
    PurgatoryEnd.RETURNED: "refused the image, and went back",
    PurgatoryEnd.ELSEWHERE: "jumped to what is not the kernel's entry",
    PurgatoryEnd.TRAPPED: "met an exception",
    PurgatoryEnd.HUNG: "gave no verdict",
}
_CAPTURE = {
    CaptureEnd.DONE: "took the dump",
    CaptureEnd.HEADERS: "came up and read the dump's headers",
    CaptureEnd.ENTERED: "was entered as it should be",
    CaptureEnd.NO_DUMP: "came up and found no dump",
    CaptureEnd.OFF: "switched off without a word of the dump",
    CaptureEnd.PANIC: "panicked",
    CaptureEnd.HUNG: "got nowhere",
    CaptureEnd.BAD_ENTRY: "was entered against the boot protocol",
    CaptureEnd.TRAPPED: "ended in an exception",
    CaptureEnd.ELSEWHERE: "left its code",
}


def trial_text(where: str, end: TrialEnd) -> str:
    """where says on which machine it was."""
    lines = [("kernel", f"Linux {end.release}, {where}")]
    lines += [("loaded", f"{one.name:<11}{one.area} ({one.bufsz:,} bytes)") for one in end.image.segments]
    lines += [("stamped", f"{_where(one)}: {_written(one)}{_moment(one)}") for one in end.injections]
    lines += [("purgatory", _purgatory(end)), ("capture", _capture(end))]
    # The meanings speak of a dump that was taken: here it may have been looked at only.
    looked = end.capture is not None and end.capture.end is CaptureEnd.HEADERS
    meaning = "" if looked else f": {end.outcome.meaning}"
    lines += [("outcome", f"{end.outcome.value}{meaning}"), ("reply", end.reply.value)]
    shown, before = [], ""
    for name, text in lines:
        shown.append(f"{'' if name == before else name:<11}{text}".rstrip())
        before = name
    return lines_text(shown)


def _where(one: Injection) -> str:
    phys = f"{one.phys:#x}"
    return phys if one.fault.at == phys else f"{one.fault.at} ({phys})"


def _written(one: Injection) -> str:
    if one.exception is not None:
        return f"{one.before.hex()} as before: cpu{one.cpu}'s store was a fault, ESR {one.exception.esr:#x}"
    return f"{one.before.hex()} -> {one.after.hex()}"


def _moment(one: Injection) -> str:
    return "" if one.fault.when is When.AFTER_LOAD else f", {one.fault.when_word}"


def _purgatory(end: TrialEnd) -> str:
    if end.image.purgatory is None:
        return "none that is known here"
    if end.purgatory is None:
        return f"not entered; {end.stood}"
    verdict = end.purgatory.verdict
    text = f"at EL{end.el}: {_PURGATORY[end.purgatory.end]}"
    if verdict is not None:
        text += f"; its record says {verdict.state.name.lower()}, {verdict.bytes_hashed:,} bytes hashed"
    return text + (f"; {end.stood}" if end.stood else "")


def _capture(end: TrialEnd) -> str:
    if end.capture is None:
        return "not entered"
    linux = end.capture.linux
    who = f"Linux {linux.release} " if linux is not None and linux.release else ""
    text = who + _CAPTURE[end.capture.end]
    if linux is not None and linux.panic:
        text += f": {linux.panic}"
    if end.dump is not None:
        text += ", equal to the crashed memory" if end.dump else ", which is not what memory held"
    return text
