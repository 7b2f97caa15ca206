"""Edits of a source tree that hold our own lines only."""

import re
from pathlib import Path

import msgspec
import pytest

from kexecemu.data import purgatory_sources
from kexecemu.errors import InputError
from kexecemu.guests.purgatory import files_of
from kexecemu.kbuild.series import apply_series, apply_step, find_series, read_series, series_path

_C = """\
#include <linux/kexec.h>

int load(void)
{
	return 0;
}

int store(void)
{
	return 0;
}
"""


def _tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "kernel").mkdir(parents=True)
    (tree / "kernel/load.c").write_text(_C)
    (tree / "out").symlink_to(tmp_path)
    return tree


def _series(tmp_path: Path, edits: str, head: str = "") -> Path:
    series = tmp_path / "series"
    series.mkdir(exist_ok=True)
    (series / "01-step.toml").write_text(f'subject = "kernel: a step"\nbody = "Why."\n{head}\n{edits}')
    return series


def _edit(place: str, lines: str = "\\tnew();\\n", more: str = "") -> str:
    return f'[[edit]]\npath = "kernel/load.c"\n{place}\nlines = "{lines}"\n{more}\n'


def _after(tmp_path: Path, edits: str, version: str = "6.12") -> str:
    tree = _tree(tmp_path)
    apply_series(_series(tmp_path, edits), version, tree)
    return (tree / "kernel/load.c").read_text()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("before = '^int load'", _C.replace("int load", "\tnew();\nint load")),
        ("after = '^#include'", _C.replace("kexec.h>\n", "kexec.h>\n\tnew();\n")),
        ("replace = '^int store'", _C.replace("int store(void)\n", "\tnew();\n")),
        ("", _C + "\tnew();\n"),
        ("within = '^int store'\nbefore = 'return 0;$'", _C[:-13] + "\tnew();\n" + _C[-13:]),
    ],
    ids=["before", "after", "in its place", "at the end", "behind another line"],
)
def test_an_edit_puts_our_lines_where_its_pattern_fits(tmp_path: Path, place: str, expected: str) -> None:
    assert _after(tmp_path, _edit(place)) == expected


@pytest.mark.parametrize(
    ("edits", "complaint"),
    [
        (_edit("before = 'return 0;'"), "kernel/load.c: 2 lines fit 'return 0;'"),
        (_edit("before = 'nowhere'"), "kernel/load.c: no lines fit 'nowhere'"),
        (_edit("within = 'nowhere'\nbefore = 'return'"), "kernel/load.c: no line fits 'nowhere'"),
        (_edit("before = 'int load'\nafter = 'int load'"), "kernel/load.c: one of before, after and replace"),
        ('[[edit]]\npath = "kernel/none.c"\nlines = "x"\n', "kernel/none.c: No such file or directory"),
        ('[[new]]\npath = "kernel/load.c"\nsource = "entry.S"\n', "kernel/load.c: there already"),
        ('[[new]]\npath = "kernel/new.c"\nsource = "none.S"\n', "none.S: No such file or directory"),
        ('[[edit]]\npath = "kernel/load.c"\nline = "x"\n', "unknown field `line`"),
        ('[[new]]\npath = "../new.c"\nsource = "entry.S"\n', "../new.c: leads out of the tree"),
        ('[[new]]\npath = "/tmp/new.c"\nsource = "entry.S"\n', "/tmp/new.c: leads out of the tree"),
        ('[[new]]\npath = "new.c"\nsource = "../setup.cfg"\n', "../setup.cfg: leads out of the tree"),
        ('[[new]]\npath = "out/new.c"\nsource = "entry.S"\n', "out/new.c: leads out of the tree"),
        ('[[edit]]\npath = "out/load.c"\nlines = "x"\n', "out/load.c: leads out of the tree"),
        (_edit("before = '('"), "'(' is no pattern: missing )"),
        (_edit("before = 'a{99999999999}'"), "'a{99999999999}' is no pattern: "),
        (_edit(f"before = '{'(' * 3000}{')' * 3000}'"), "is no pattern: "),
        (
            '[[new]]\npath = "a\\nb"\nsource = "entry.S"\n',
            "path 'a\\nb' is not one line of at most 250 printable",
        ),
        ('[[new]]\npath = "a\\u0000"\nsource = "entry.S"\n', "path 'a\\x00' is not one line"),
        ('[[new]]\npath = "a"\nsource = "\\u001b[31m"\n', "path '\\x1b[31m' is not one line"),
        (f'[[edit]]\npath = "{"x" * 300}"\nlines = "x"\n', "is not one line of at most 250"),
        ('[[new]]\npath = "kernel/load.c/d"\nsource = "entry.S"\n', "kernel/load.c/d: "),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, edits: str, complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        _after(tmp_path, edits)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_edit_for_another_version_is_left_out(tmp_path: Path) -> None:
    edits = _edit("after = '^#include'", more='versions = ["7.3"]')
    assert _after(tmp_path, edits) == _C
    tree = tmp_path / "tree"
    assert apply_series(tmp_path / "series", "7.3", tree) == ["kernel: a step"]
    assert "new();" in (tree / "kernel/load.c").read_text()


def test_a_step_for_another_version_is_left_out(tmp_path: Path) -> None:
    series = _series(tmp_path, _edit("after = '^#include'"), head='versions = ["7.3"]')
    with pytest.raises(InputError, match=r"series: no step of this series is for Linux 6.12"):
        read_series(series, "6.12")
    assert [step.subject for step in read_series(series, "7.3")] == ["kernel: a step"]


def test_a_new_file_is_one_of_the_purgatory(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    new = '[[new]]\npath = "arch/arm64/purgatory/entry.S"\nsource = "entry.S"\n'
    apply_series(_series(tmp_path, new), "6.12", tree)
    made = tree / "arch/arm64/purgatory/entry.S"
    assert made.read_bytes() == (purgatory_sources() / "entry.S").read_bytes()
    assert made.stat().st_mode & 0o777 == 0o644


def test_a_folder_without_steps_is_no_series(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no series: it has no \*.toml"):
        read_series(tmp_path, "6.12")


@pytest.mark.parametrize("name", ["purgatory", "protect"])
def test_the_messages_of_what_ships_are_those_of_a_kernel_commit(name: str) -> None:
    steps = read_series(series_path(name), "7.3")
    assert steps
    for step in steps:
        assert len(step.subject) <= 75
        assert step.subject.split(": ")[0] in ("arm64", "Documentation", "selftests", "MAINTAINERS")
        assert max(map(len, step.message.splitlines())) <= 75
        assert step.new or step.edit


@pytest.mark.parametrize(
    ("head", "said"),
    [('subject = "a\\nX: evil"', "subject 'a"), ('subject = ""', "subject '' is not one line")],
)
def test_a_subject_is_one_line_of_a_mail(tmp_path: Path, head: str, said: str) -> None:
    series = _series(tmp_path, _edit("after = '^#include'"))
    step = series / "01-step.toml"
    step.write_text(step.read_text().replace('subject = "kernel: a step"', head))
    with pytest.raises(InputError, match=re.escape(said)):
        read_series(series, "6.12")


def test_lines_and_files_without_a_line_s_end_get_one(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    (tree / "kernel/load.c").write_text("int load;")
    apply_series(_series(tmp_path, _edit("", "int more;")), "6.12", tree)
    assert (tree / "kernel/load.c").read_text() == "int load;\nint more;\n"


def test_a_series_is_one_that_ships_or_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_series(".").resolve() == tmp_path.resolve()
    with pytest.raises(InputError, match="--series: a name is empty"):
        find_series("")


def test_what_ships_has_no_line_that_is_too_long_for_the_kernel() -> None:
    """100 columns: checkpatch says so, too, but that needs the kernel's source."""
    for name in ("purgatory", "protect"):
        for path in sorted(series_path(name).glob("*.toml")):
            for line in path.read_text().splitlines():
                assert len(line.expandtabs(8)) <= 100, (path.name, line)
    steps = read_series(series_path(), "7.3")
    for name in {name for step in steps if step.purgatory is not None for name in files_of(step.purgatory)}:
        for line in (purgatory_sources() / name).read_text().splitlines():
            assert len(line.expandtabs(8)) <= 100, (name, line)


@pytest.mark.parametrize(("version", "known"), [("6.12", False), ("7.3", True)])
def test_guarded_control_stacks_are_spoken_of_where_linux_knows_them(
    tmp_path: Path, version: str, known: bool
) -> None:
    """6.12 does not, and asks no firmware for them: not a word of them is in its purgatory or its loader."""
    for step in read_series(series_path(), version):
        if step.purgatory is None:
            continue
        tree = tmp_path / step.subject.replace("/", "-")
        apply_step(msgspec.structs.replace(step, new=(), edit=()), version, tree)
        text = "".join(path.read_text() for path in sorted(tree.rglob("*.[chS]")))
        assert ("purgatory_gcs" in text) is ("GCSCR" in text) is known
    lines = [
        edit.lines
        for step in read_series(series_path(), version)
        for edit in step.edit
        if not edit.versions or version in edit.versions
    ]
    assert any("gcs" in one for one in lines) is known


def test_a_step_has_nothing_that_only_a_later_one_uses(tmp_path: Path) -> None:
    step = next(step for step in read_series(series_path(), "7.3") if step.purgatory == ())
    apply_step(msgspec.structs.replace(step, new=(), edit=()), "7.3", tmp_path)
    folder = tmp_path / "arch/arm64/purgatory"
    text = "".join(path.read_text() for path in sorted(folder.iterdir()))
    for later in (
        "FRAME_SIZE",
        "sysreg_read",
        "PURGATORY_PAGE_SIZE",
        "__purgatory_data",
        "restore",
        " option",
        "Option",
    ):
        assert later not in text, later
