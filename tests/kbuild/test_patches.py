"""The series as mails, and checkpatch's words about them."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from kexecemu.errors import InputError
from kexecemu.kbuild.patches import Patch, checkpatch, make_patches, source_files
from kexecemu.kbuild.series import apply_series

_AUTHOR = "A Tester <tester@example.org>"
_C = "".join(f"line {number}\n" for number in range(40))


def _tarball(tmp_path: Path, files: dict[str, str]) -> Path:
    path = tmp_path / "linux-source-6.12.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"linux-source-6.12/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def _series(tmp_path: Path) -> Path:
    series = tmp_path / "series"
    series.mkdir()
    (series / "01-one.toml").write_text(
        'subject = "arm64: one"\nbody = "Why one."\n'
        '[[edit]]\npath = "kernel/a.c"\nafter = \'^line 20$\'\nlines = "ours\\n"\n'
        '[[new]]\npath = "kernel/run.sh"\nsource = "linux/files/test_kexec_purgatory.sh"\nexecutable = true\n'
    )
    (series / "02-two.toml").write_text(
        'subject = "arm64: two"\nbody = "Why two."\n'
        '[[edit]]\npath = "kernel/a.c"\nreplace = \'^line 21$\'\nlines = "theirs no more\\n"\n'
        '[[edit]]\npath = "kernel/run.sh"\nlines = "# more\\n"\n'
    )
    (series / "cover-letter.txt").write_text("arm64: both\n\nWhat and why.\n")
    return series


def test_the_patches_give_what_the_series_gives(tmp_path: Path) -> None:
    series, tarball = _series(tmp_path), _tarball(tmp_path, {"Makefile": "all:\n", "kernel/a.c": _C})
    made = make_patches(series, "6.12", source_files(series, "6.12", tarball, check=False), _AUTHOR)
    assert [patch.name for patch in made] == [
        "0000-cover-letter.patch",
        "0001-arm64-one.patch",
        "0002-arm64-two.patch",
    ]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for tree in (ours, theirs):
        (tree / "kernel").mkdir(parents=True)
        (tree / "kernel/a.c").write_text(_C)
    apply_series(series, "6.12", ours)
    subprocess.run(["git", "init", "-q"], cwd=theirs, check=True)
    for patch in made[1:]:
        (tmp_path / "p").write_text(patch.text)
        subprocess.run(["git", "apply", "../p"], cwd=theirs, check=True)
    for name in ("kernel/a.c", "kernel/run.sh"):
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
        assert (theirs / name).stat().st_mode & 0o111 == (ours / name).stat().st_mode & 0o111


def test_a_patch_says_what_and_why_and_who(tmp_path: Path) -> None:
    cover, one, two = make_patches(_series(tmp_path), "6.12", {"kernel/a.c": _C.encode()}, _AUTHOR)
    assert one.text.startswith(
        f"From: {_AUTHOR}\nSubject: [PATCH 1/2] arm64: one\n\nWhy one.\n\nSigned-off-by: {_AUTHOR}"
    )
    assert "\n---\n kernel/a.c    | 2 +-\n kernel/run.sh | 1 +\n 2 files changed, 2 insertions(+)" in two.text
    assert "2 insertions(+), 1 deletion(-)\n\ndiff --git" in two.text
    assert "\nbase: Linux 6.12\n" in cover.text
    assert cover.text.startswith(f"From: {_AUTHOR}\nSubject: [PATCH 0/2] arm64: both\n\nWhat and why.\n")
    assert "  arm64: one\n  arm64: two\n" in cover.text


@pytest.mark.parametrize("lines", [1, 3, 70, 1000])
def test_a_stat_counts_as_git_does(tmp_path: Path, lines: int) -> None:
    series = _series(tmp_path)
    new = "".join(f"{number}\n" for number in range(lines))
    (series / "01-one.toml").write_text(
        'subject = "arm64: one"\nbody = "Why."\n'
        f'[[edit]]\npath = "kernel/a.c"\nreplace = "^line 20$"\nlines = """\n{new}"""\n'
        '[[new]]\npath = "kernel/run.sh"\nsource = "linux/files/test_kexec_purgatory.sh"\n'
    )
    patch = make_patches(series, "6.12", {"kernel/a.c": _C.encode()}, _AUTHOR)[1]
    (tmp_path / "p").write_text(patch.text)
    told = subprocess.run(
        ["git", "apply", "--stat", "p"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    stat = patch.text.partition("\n---\n")[2].partition("\n\ndiff --git")[0].splitlines()
    theirs = told.stdout.splitlines()
    assert [line.rstrip("+- ").split() for line in stat[:-1]] == [
        line.rstrip("+- ").split() for line in theirs[:-1]
    ]
    assert stat[-1] == theirs[-1].rstrip()
    assert set(stat[0]) & set("+-") == {"+", "-"}  # as git diff: one of each kind at least
    assert max(map(len, stat)) <= 80


def test_a_source_without_a_file_that_is_edited_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"linux-source-6.12.tar.xz: has no kernel/a.c"):
        source_files(_series(tmp_path), "6.12", _tarball(tmp_path, {"Makefile": "all:\n"}), check=False)


@pytest.mark.parametrize("cut", [0, 8])
def test_a_damaged_archive_is_one_line(tmp_path: Path, cut: int) -> None:
    tarball = _tarball(tmp_path, {"Makefile": "all:\n" * 10_000, "kernel/a.c": _C})
    tarball.write_bytes(tarball.read_bytes()[:cut] if cut else b"garbage")
    with pytest.raises(InputError, match=r"linux-source-6.12.tar.xz: is damaged: "):
        source_files(_series(tmp_path), "6.12", tarball, check=False)


def test_a_series_of_new_files_only_needs_nothing_of_the_source(tmp_path: Path) -> None:
    series = tmp_path / "new"
    series.mkdir()
    (series / "01.toml").write_text(
        'subject = "a: b"\nbody = "c"\n[[new]]\npath = "a.S"\nsource = "entry.S"\n'
    )
    assert source_files(series, "6.12", _tarball(tmp_path, {"Makefile": "all:\n"}), check=False) == {}
    [patch] = make_patches(series, "6.12", {}, _AUTHOR)
    assert "new file mode 100644" in patch.text


@pytest.mark.parametrize(
    ("author", "cover", "source", "said"),
    [
        *[
            (author, b"a\n\nb\n", "entry.S", "--author .* is not a name and an address, as You <you@exam")
            for author in (
                "x\nSubject: y",
                "x\udcff",
                " ",
                "noaddress",
                "you@example.org",
                "<you@example.org>",
                " <you@example.org>",
                "You <you>",
                "You <you@>",
                "You <@example.org>",
                "You <a@b> <c@d>",
                "You <a@b@c>",
                "You <a b@c>",
                "You<you@example.org>",
                "You <you@example.org> ",
                "You <you@example.org>\n",
                "A\tB <a@b>",
                "",
            )
        ],
        (_AUTHOR, b"\xff\xfe", "entry.S", "cover-letter.txt: is no text in UTF-8"),
        (_AUTHOR, b"a\n\nb\n", "purgatory.ro", "kernel/new: is no text in UTF-8"),
    ],
)
def test_what_no_mail_can_hold_is_refused(
    tmp_path: Path, author: str, cover: bytes, source: str, said: str
) -> None:
    series = _series(tmp_path)
    (series / "cover-letter.txt").write_bytes(cover)
    with open(series / "01-one.toml", "a") as file:
        file.write(f'[[new]]\npath = "kernel/new"\nsource = "{source}"\n')
    with pytest.raises(InputError, match=said):
        make_patches(series, "6.12", {"kernel/a.c": _C.encode()}, author)


_SAYS = """\
#!/usr/bin/perl
my $name = $ARGV[-1];
open(my $file, '<', $name);
my $bad = 0;
while (<$file>) { if (/^\\+BAD/) { print "a.c:7: ERROR:SPACING: bad\\n"; $bad = 1; } }
print "a.c:1: WARNING:FILE_PATH_CHANGES: added, moved or deleted file(s)\\n";
print "total: $bad errors, 1 warnings\\n";
exit 1;
"""


@pytest.mark.skipif(shutil.which("perl") is None, reason="checkpatch.pl is in Perl")
def test_what_checkpatch_says_stands_only_with_a_reason(tmp_path: Path) -> None:
    tarball = _tarball(
        tmp_path,
        {
            "kernel/a.c": _C,
            "scripts/checkpatch.pl": _SAYS,
            "scripts/spelling.txt": "",
            "scripts/const_structs.checkpatch": "",
        },
    )
    source = source_files(_series(tmp_path), "6.12", tarball, check=True)
    found = checkpatch([Patch("0001-a.patch", "+GOOD\n"), Patch("0002-b.patch", "+BAD\n")], source)
    assert [(one.line.split(": ")[1], bool(one.reason)) for one in found] == [
        ("WARNING:FILE_PATH_CHANGES", True),
        ("ERROR:SPACING", False),
        ("WARNING:FILE_PATH_CHANGES", True),
    ]
