"""kexecemu collect: the script that gathers, on a machine of its own, what there is to know of its kdump."""

import sys
from importlib.resources import files

__all__ = ["EXAMPLES", "collect_command"]

EXAMPLES = """\
kexecemu collect > collect.sh
The script; take it to the machine, read it, and run it there: sh collect.sh -o facts.tar
kexecemu collect | ssh root@machine sh -s -- -o facts.tar
The same at once, on a machine elsewhere.
"""


def collect_command() -> None:
    """Print the shell script that gathers what there is to know of a machine's kdump, into one tar."""
    sys.stdout.write((files("kexecemu.doctor") / "collect.sh").read_text(encoding="utf-8"))
