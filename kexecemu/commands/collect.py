"""kexecemu collect: the script that gathers, on a machine of its own, what there is to know of its kdump."""

import sys
from importlib.resources import files

__all__ = ["EXAMPLES", "collect_command"]

EXAMPLES = """\
kexecemu collect
The script: keep it in a file, read it, and run it on the machine (sh collect.sh -o facts.tar).
"""


def collect_command() -> None:
    """Print the shell script that gathers what there is to know of a machine's kdump, into one tar."""
    sys.stdout.write((files("kexecemu.doctor") / "collect.sh").read_text(encoding="utf-8"))
