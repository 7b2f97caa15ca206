"""What kexecemu's pytest plugin says about a test that failed: the crash behind it, and not our own code.

Imported when a test has failed that has something of kexecemu loaded, and not before.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any

import msgspec
import pytest
from _pytest._code.code import ExceptionRepr

from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.errors import InputError, KexecError
from kexecemu.failure import KexecemuFailure, failure_text
from kexecemu.linux.first import FirstLinux
from kexecemu.pytest_artefacts import again_in, chosen_folder, folder_of, keep, note_end, shown
from kexecemu.pytest_scenarios import ScenarioItem
from kexecemu.scenario.runner import mismatches_of
from kexecemu.scenario.schema import Expect
from kexecemu.visible import visible

__all__ = ["Compared", "Failure", "compare"]

_PACKAGE = Path(__file__).resolve().parent
_MOST_ENDS = 3


@dataclass(frozen=True)
class Compared:
    """A bare comparison that has failed: of which crash, what was asserted, and what is wrong, in words.

    expect is what would have been right, None for a comparison that [expect] has no words for.
    """

    end: End
    asserted: str
    wrong: str
    expect: Expect | None


def compare(op: str, left: object, right: object) -> Compared | None:
    """What an assertion compares, when one side is the outcome, the dump or the console of an End.

    pytest leaves what an assertion has computed in the frame of the test, and there the End is as well.
    """
    for end in _ends_in(_asserting_frame()):
        if right is end.console and op in ("in", "not in"):
            key = "console" if op == "in" else "console_absent"
            return _compared(end, f"{left!r} {op} the console", "", {key: [left]})
        for key, word in (("outcome", end.outcome), ("dump", end.dump)):
            if word is left or word is right:
                other = right if word is left else left
                words = {key: str(other)} if op in ("==", "is") else {}
                asserted = f"{_plain(left)} {op} {_plain(right)}"
                return _compared(end, asserted, f"{key} is {word}, expected {_asked(op, other)}", words)
    return None


def _plain(value: object) -> str:
    return repr(str(value) if isinstance(value, str) else value)


def _asked(op: str, other: object) -> str:
    if op in ("in", "not in") and isinstance(other, Iterable) and not isinstance(other, str):
        return f"{'one' if op == 'in' else 'none'} of {', '.join(map(str, other))}"
    return f"not {other}" if op in ("!=", "is not") else str(other)


def _compared(end: End, asserted: str, wrong: str, words: Mapping[str, object]) -> Compared:
    """With the words of [expect], where it has them for this."""
    try:
        expect = msgspec.convert({"outcome": end.outcome.value, **words}, Expect) if words else None
    except msgspec.ValidationError:
        expect = None
    return Compared(end, asserted, "; ".join(mismatches_of(end, expect)) or wrong, expect)


def _asserting_frame() -> FrameType | None:
    """The frame of the assertion that is being explained."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not any(name.startswith("@py_") for name in frame.f_locals):
        frame = frame.f_back
    return frame


def ends_behind(traceback: TracebackType | None) -> list[End]:
    """The Ends that the frames of a failure know, those of the innermost first."""
    found = {id(end): end for frame in _frames(traceback) for end in _ends_in(frame)}
    return list(found.values())[:_MOST_ENDS]


def kernel_behind(end: End, traceback: TracebackType | None) -> Kernel | FirstLinux | None:
    """The kernel whose crash this is the end of, where it or a frame of the failure knows."""
    if isinstance(kernel := getattr(end, "kernel", None), Kernel | FirstLinux):
        return kernel
    for frame in _frames(traceback):
        for value in list(frame.f_locals.values()):
            one = getattr(value, "kernel", None) if _is_of_ours(value) else None
            for kernel in (value, one):
                if isinstance(kernel, Kernel | FirstLinux) and kernel.board.timeline is end.timeline:
                    return kernel
    return None


def _frames(traceback: TracebackType | None) -> list[FrameType]:
    """From the innermost out, without pytest's own."""
    frames = [frame for frame, _ in walk_tb(traceback)]
    return [one for one in reversed(frames) if not _is_machinery(one)]


def _is_machinery(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).split(".")[0] in ("_pytest", "pluggy")


def _ends_in(frame: FrameType | None) -> Iterator[End]:
    for value in list(frame.f_locals.values()) if frame is not None else ():
        # No other containers: what those do when they are looked into is not known.
        inner = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
        for one in (value, *inner):
            end = getattr(one, "end", None) if _is_of_ours(one) else None
            if isinstance(one, End):
                yield one
            elif isinstance(end, End):
                yield end  # of a Result


def _is_of_ours(value: object) -> bool:
    return str(type(value).__module__).startswith("kexecemu.")


def cut_at_ours(excinfo: pytest.ExceptionInfo[BaseException]) -> pytest.ExceptionInfo[BaseException]:
    """The same failure without the frames of ours, for what only the caller can put right; else as it is.

    An InputError says what was given and a KexecError what the kernel refuses: where in kexecemu that was noticed, and
    after which other error, helps nobody who called it.
    """
    error = excinfo.value
    if not isinstance(error, InputError | KexecError):
        return excinfo
    entries: list[TracebackType] = []
    traceback: TracebackType | None = excinfo.tb
    while traceback is not None and not _is_ours(traceback.tb_frame):
        entries.append(traceback)
        traceback = traceback.tb_next
    if traceback is None or all(_is_machinery(one.tb_frame) for one in entries):
        return excinfo
    cut: TracebackType | None = None
    for one in reversed(entries):
        cut = TracebackType(cut, one.tb_frame, one.tb_lasti, one.tb_lineno)
    error.__cause__, error.__suppress_context__ = None, True
    return pytest.ExceptionInfo.from_exc_info((type(error), error, cut))  # type: ignore[arg-type]


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(_PACKAGE)


class Failure:
    """One failed test: made before pytest renders the failure, and told once it has."""

    def __init__(self, item: pytest.Item, call: pytest.CallInfo[Any], compared: Compared | None) -> None:
        assert call.excinfo is not None
        error = call.excinfo.value
        self._item = item
        self._traceback = call.excinfo.tb
        self._folder = folder_of(item)
        self._crashes: list[tuple[End, Expect | None, list[str]]] = []
        self._told = isinstance(error, KexecemuFailure)
        if isinstance(error, KexecemuFailure):
            if error.end is not None:
                self._crashes.append((error.end, error.expect, error.wrong))
                if not isinstance(item, ScenarioItem):
                    error.again = again_in(self._folder, item, error.end, error.expect)
        elif compared is not None and compared.wrong in str(error):
            self._crashes.append((compared.end, compared.expect, [compared.wrong]))
        elif not isinstance(error, InputError | KexecError):
            self._crashes += [(end, None, []) for end in ends_behind(self._traceback)]
        if not isinstance(item, ScenarioItem) and not item.config.getoption("fulltrace", False):
            call.excinfo = cut_at_ours(call.excinfo)

    def tell(self, report: pytest.TestReport) -> None:
        """Add the crashes to the report, keep what is left of them, and name that in the test's properties."""
        texts = []
        for number, (end, expect, wrong) in enumerate(self._crashes, 1):
            folder = self._folder
            if folder is not None and len(self._crashes) > 1:
                folder /= str(number)
            if len(self._crashes) > 1:
                texts.append(f"{'' if number == 1 else chr(10)}crash {number} of {len(self._crashes)}:")
            if not self._told:
                texts.append(failure_text(end, [], again_in(folder, self._item, end, expect)))
            if not any(name == "kexecemu_outcome" for name, _ in self._item.user_properties):
                note_end(self._item, end)
            if folder is not None:
                texts.append(self._keep(folder, end, expect, wrong, report))
        _add(report, "\n".join(texts))

    def make_visible(self, report: pytest.TestReport) -> None:
        """In the report of a test that crashes kernels what their guests said is shown, and not obeyed."""
        if self._crashes or self._item.get_closest_marker("kexecemu"):
            report.longrepr = _shown_in(report.longrepr)
            report.sections = _shown_in(report.sections)

    def _keep(
        self, folder: Path, end: End, expect: Expect | None, wrong: list[str], report: pytest.TestReport
    ) -> str:
        config = self._item.config
        kernel = kernel_behind(end, self._traceback)
        try:
            dump = chosen_folder(config) is not None
            kept = keep(folder, end, kernel, expect, wrong, test=self._item.nodeid, dump=dump)
        except OSError as error:
            return f"not kept: {error.filename or folder}: {error.strerror or error}"
        told = [("kexecemu_artefacts", str(shown(folder, config)))]
        told += [(f"kexecemu_{what}", str(shown(path, config))) for what, path in kept.items()]
        self._item.user_properties += told
        report.user_properties += told
        return f"kept in {shown(folder, config)}: {', '.join(path.name for path in kept.values())}"


def _shown_in(value: Any) -> Any:
    """The parts of pytest's rendering of a failure, with their texts made visible in place."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_shown_in, value))
    if type(value).__module__.startswith("_pytest."):
        for name, one in vars(value).items():
            setattr(value, name, _shown_in(one))
    return value


def _add(report: pytest.TestReport, text: str) -> None:
    if not text:
        return
    if isinstance(report.longrepr, ExceptionRepr):
        report.longrepr.addsection("kexecemu", text)
    else:
        report.longrepr = f"{report.longrepr}\n{text}"
