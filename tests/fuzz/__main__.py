# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that kexecemu reads, with inputs that are nearly right: nothing but its own errors may come of that.

    python -m tests.fuzz [FORMAT ...] [--count 10000 | --seconds 60] [--seed 1] [--jobs 2] [--write] [--guided]

Each format's inputs are its corpus (everything that ever failed, in tests/fuzz/corpus) and then what a mutator makes of
good ones: an input depends on the format, the seed and its number alone. Of formats that take milliseconds an input
there are a tenth as many. Counted are inputs, kinds of exceptions that are not kexecemu's own (kexecemu.errors), inputs
that take longer than two seconds of a processor, and the memory that a format's process takes at its peak above what it
had before the first input. Bad inputs are left in the folder of --found, to be looked at and put into the corpus.
--write puts the table into docs/figures.md. --guided has atheris look for inputs by coverage, one format at a time,
until it is stopped or has found something.

Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.formats import FORMATS  # noqa: E402
from fuzz.run import HEADING, LIMIT, corpus, fuzz, markdown  # noqa: E402


def guided(name: str) -> None:
    """Coverage-guided, by atheris; does not return."""
    import atheris  # type: ignore[import-not-found]

    from kexecemu.errors import KexecemuError

    with atheris.instrument_imports(include=["kexecemu"]):
        run = FORMATS[name].make()

    def once(data: bytes) -> None:
        with suppress(KexecemuError):
            run(data)

    with tempfile.TemporaryDirectory() as folder:
        for at, data in enumerate([*FORMATS[name].seeds(), *corpus(name)]):
            (Path(folder) / f"seed-{at}").write_bytes(data)
        atheris.Setup([sys.argv[0], f"-timeout={LIMIT:.0f}", folder], once)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each format")
    parser.add_argument("--seconds", type=float, default=0.0, help="in place of --count: how long for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes for each format")
    parser.add_argument("--found", type=Path, help="where bad inputs go (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/figures.md")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris: one format")
    given = parser.parse_args()
    names = given.formats or list(FORMATS)
    if wrong := [name for name in names if name not in FORMATS]:
        parser.error(f"no format {wrong[0]}: there are {', '.join(FORMATS)}")
    if given.guided:
        guided(names[0])
    found = given.found or Path(tempfile.gettempdir()) / "kexecemu-fuzz-found"
    print(HEADING, flush=True)
    tallies = fuzz(names, given.seed, 0 if given.seconds else given.count, given.seconds, given.jobs, found)
    if given.write:
        sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
        from measured_block import replace_block

        replace_block("fuzz", markdown(tallies, shlex.join(sys.argv[1:])))
    return 0 if all(one.clean for one in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
