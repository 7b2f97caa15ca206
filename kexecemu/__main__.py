"""The program: python -m kexecemu, and what is installed as kexecemu."""

# What signal is made of, and built in: reading signal's files takes time, in which Ctrl-C would find nobody.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit status. Ctrl-C ends it in one line from the first import on."""
    parent = os.getpid()
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears:
        # Nothing is open yet, and an exception in the middle of an import may be swallowed or dressed up there.
        signal.signal(signal.SIGINT, _at_once)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda which, frame: _terminated(parent, which, frame))
    from kexecemu.cli import main as command_line
    from kexecemu.commands.streams import open_closed
    from kexecemu.interrupt import INTERRUPTED, guarded, leave, on_ctrl_c

    open_closed()  # before anything else is opened, and gets one of their numbers
    try:
        with guarded():
            if hears:
                signal.signal(signal.SIGINT, on_ctrl_c)
            try:
                status = command_line()
            finally:
                if hears:
                    signal.signal(signal.SIGINT, _at_once)
            if status == INTERRUPTED:
                # Python's own end may wait for threads, and ends by the signal whatever status it is given where
                # KeyboardInterrupt came out of an exec(), of which dataclasses has some.
                sys.stdout.flush()
                leave(b"")
            return status
    except KeyboardInterrupt:
        leave()


def _terminated(parent: int, number: int, frame: object) -> None:
    """End as shells count signals, and take what is temporary along; a child has nothing that is its own."""
    if os.getpid() != parent:
        os._exit(128 + number)
    interrupt = sys.modules.get("kexecemu.interrupt")
    if interrupt is None or not hasattr(interrupt, "raise_in"):
        raise SystemExit(128 + number)
    interrupt.raise_in(frame, SystemExit(128 + number))


def _at_once(*_: object) -> None:
    """What leave() does where nothing is to be undone, and before it can be imported."""
    os.write(2, b"kexecemu: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
