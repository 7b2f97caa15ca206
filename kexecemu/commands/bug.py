"""What is said of an error that is our own: one line, and where to find the rest."""

import errno
import os
import sys
import tempfile
import traceback

from kexecemu.commands.streams import say_line

__all__ = ["BUG", "host_reason", "report_bug"]

BUG = 70
"""The exit status of an error of ours: EX_SOFTWARE of sysexits.h."""

# What a machine can run out of, and a user can help.
_HOST = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
}


def host_reason(error: BaseException) -> str | None:
    """Why the machine that this runs on cannot do it, in words; None where the error is another one."""
    if isinstance(error, MemoryError):
        return "this machine has not enough memory for it"
    # With a name it is about a file: one that a user has named, or that is in nobody's way but theirs.
    if isinstance(error, OSError) and (error.errno in _HOST or error.filename is not None):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def report_bug(error: BaseException) -> int:
    """Say that it is a bug, and save its traceback, or with KEXECEMU_DEBUG print it: the exit status."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("KEXECEMU_DEBUG"):
        sys.stderr.write(text)
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    say_line(f"a bug of ours, {what[:200]}; please report it{_saved(text)}")
    return BUG


def _saved(text: str) -> str:
    try:
        from kexecemu.campaign.version import own_version

        words = " ".join(map(repr, sys.argv))
        told = f"kexecemu {own_version()}, Python {sys.version}\n{words}\n\n{text}"
        fd, path = tempfile.mkstemp(prefix="kexecemu-bug-", suffix=".txt")
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(told)
    except Exception as error:  # whatever is wrong here, a user is told of the bug
        return f" (its traceback could not be saved: {error}; KEXECEMU_DEBUG=1 prints it)"
    return f" with {path}, which has the traceback"
