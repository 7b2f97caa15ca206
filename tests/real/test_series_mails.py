"""The series that ship, as they would be posted: by the kernels' own checkpatch.pl, and by git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kexecemu.errors import InputError
from kexecemu.fetch.cache import cache_folder
from kexecemu.kbuild.patches import checkpatch, make_patches, source_files
from kexecemu.kbuild.series import apply_series, series_path
from kexecemu.kbuild.source import find_source

pytestmark = pytest.mark.real

AUTHOR = "A Tester <tester@example.org>"


@pytest.mark.skipif(shutil.which("perl") is None, reason="checkpatch.pl is in Perl")
@pytest.mark.parametrize(
    ("name", "version"), [("purgatory", "6.12"), ("purgatory", "7.3"), ("protect", "7.3")]
)
def test_a_series_is_clean_and_git_takes_it(tmp_path: Path, name: str, version: str) -> None:
    try:
        tarball = find_source(version, cache_folder())
    except InputError as error:
        pytest.skip(str(error))
    series = series_path(name)
    source = source_files(series, version, tarball, check=True)
    patches = make_patches(series, version, source, AUTHOR)
    assert [one.line for one in checkpatch(patches, source) if not one.reason] == []

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for tree in (ours, theirs):
        for path, data in source.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
    apply_series(series, version, ours)

    def git(*words: str) -> None:
        identity = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.org")
        subprocess.run(["git", *identity, *words], cwd=theirs, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", version)
    mails = []
    for patch in patches:
        (tmp_path / patch.name).write_text(patch.text)
        mails += [] if patch.name.startswith("0000") else [str(tmp_path / patch.name)]
    git("am", "-q", *mails)
    made = {path.relative_to(ours): path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    assert all((theirs / path).read_bytes() == data for path, data in made.items())
