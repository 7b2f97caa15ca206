"""kexecemu collect: the script that gathers, on a machine of its own, what there is to know of its kdump."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from kexecemu.commands.options import output
from kexecemu.commands.outputs import print_or_write

__all__ = ["EXAMPLES", "collect_command"]

EXAMPLES = """\
kexecemu collect
The script, to be read, or piped to a shell on the machine: ssh root@machine sh -s
kexecemu collect --out collect.sh
The same as a file; run it there: sh collect.sh -o facts.tar
"""


def collect_command(
    out: Annotated[Path | None, output("--out", "Write the script there, and not to stdout.")] = None,
) -> None:
    """Print the shell script that gathers what there is to know of a machine's kdump, into one tar."""
    script = (files("kexecemu.doctor") / "collect.sh").read_text(encoding="utf-8")
    print_or_write(script, out)
