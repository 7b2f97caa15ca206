"""kexecemu kernel patches: the series as it would be posted, and what the kernel's checkpatch.pl says of it."""

from pathlib import Path
from typing import Annotated

from kexecemu.commands.kernel_given import VersionArgument, counted, failed
from kexecemu.commands.options import option
from kexecemu.commands.outputs import Written, check_folder
from kexecemu.errors import BuildError, InputError
from kexecemu.files import replace_file
from kexecemu.folders import replacing_folder

__all__ = ["EXAMPLES", "patches"]

EXAMPLES = """\
kexecemu kernel patches 7.3 --out patches
A cover letter and a patch for each step, as git am takes them.
kexecemu kernel patches 7.3 --check
What scripts/checkpatch.pl --strict says: exit status 1 for what has no reason to stand.
"""


def patches(
    version: VersionArgument,
    series: Annotated[
        str, option("--series", "purgatory, protect, or a folder with a series (*.toml).", "NAME|DIR")
    ] = "purgatory",
    out: Annotated[Path | None, option("--out", "A folder for the patches; it is made.", "DIR")] = None,
    author: Annotated[
        str, option("--author", "Who signs them off, with an address.", "NAME")
    ] = "kexecemu <kexecemu@example.org>",
    check: Annotated[
        bool, option("--check", "Run the kernel's checkpatch.pl --strict on them.", None)
    ] = False,
) -> None:
    """Make the series' patches from Debian's source: for reviewers, and for checkpatch.

    Exit status 1 if checkpatch says anything that is not among the exceptions with a reason.
    """
    from kexecemu.fetch.cache import cache_folder
    from kexecemu.kbuild.patches import check_author, checkpatch, make_patches, source_files
    from kexecemu.kbuild.series import find_series
    from kexecemu.kbuild.source import find_source, package_of

    if out is None and not check:
        raise InputError("nothing to do: give --out DIR, or --check")
    check_folder("--out", out)
    check_author(author)
    if "," in series:
        raise InputError(f"--series {series}: patches are made of one series at a time")
    written = Written()
    tarball = find_source(version, cache_folder())
    folder = find_series(series)
    with counted(f"reading {tarball.name}", "files of it") as each:
        each()
        source = source_files(folder, version, tarball, check=check, each=each)
    made = make_patches(folder, version, source, author, package_of(version, cache_folder()))
    if out is not None:
        with written.writing("--out", out):
            with replacing_folder(out) as new:
                for patch in made:
                    replace_file(new / patch.name, patch.text.encode())
            print(f"{len(made)} file{'s' if len(made) != 1 else ''} in {out}")
    if not check:
        written.exit()
    try:
        with counted("checkpatch", f"of {len(made)}") as each:
            complaints = checkpatch(made, source, each)
    except BuildError as error:
        raise failed("patches", error) from error
    wrong = [one for one in complaints if not one.reason]
    reasons = sorted({one.reason for one in complaints if one.reason})
    for reason in reasons:
        print(f"{sum(one.reason == reason for one in complaints):4} stand: {reason}")
    for one in wrong:
        print(one.line)
    print(f"checkpatch --strict: {len(wrong)} to mend, {len(complaints) - len(wrong)} that stand")
    written.exit(1 if wrong else 0)
