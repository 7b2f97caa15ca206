"""The purgatory's sources without the options that a kernel does not take."""

import re
from pathlib import Path

import pytest

from kexecemu.data import purgatory_sources
from kexecemu.guests.purgatory import OPTIONS, build_purgatory, chosen_options, files_of, purgatory_target
from kexecemu.guests.toolchain import Toolchain, build_target
from kexecemu.guests.unifdef import without_options


def _sources(options: tuple[str, ...]) -> dict[str, str]:
    return {name: (purgatory_sources() / name).read_text() for name in files_of(options)}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("caches",),
        ("sha2",),
        ("caches", "sha2"),
        ("caches", "sha2", "report"),
        ("record", "policy"),
        ("early",),
    ],
    ids=lambda options: ",".join(options) or "core",
)
def test_what_is_left_compiles_to_the_same_object(tmp_path: Path, options: tuple[str, ...]) -> None:
    """As the whole with the other options off: what was taken out did nothing."""
    pytest.importorskip("ziglang")
    chosen = chosen_options(options)
    folder = tmp_path / "purgatory"
    folder.mkdir()
    # record.h is what empty functions are called with, where __KERNEL__ is not defined.
    sources = _sources(chosen) | {"record.h": (purgatory_sources() / "record.h").read_text()}
    for name, text in without_options(sources, set(chosen), kernel=False).items():
        (folder / name).write_text(text)
    tools = Toolchain("zig", tmp_path, tmp_path / "cache")
    build_target(purgatory_target(chosen, "built.ro"), tools, tmp_path / "stage")
    assert (tmp_path / "stage/built.ro").read_bytes() == build_purgatory(chosen)


@pytest.mark.parametrize(
    "options",
    [(), ("caches",), ("caches", "sha2"), ("caches", "sha2", "report")],
    ids=lambda one: ",".join(one),
)
def test_no_hook_of_another_option_is_left(options: tuple[str, ...]) -> None:
    text = "".join(without_options(_sources(options), set(options), kernel=True).values())
    for name in OPTIONS:
        if name not in options:
            assert f"PURGATORY_{name.upper()}\t" not in text
            assert not re.search(rf"#.*PURGATORY_{name.upper()}\b", text)
    gone = {
        "caches": "caches_",
        "sha2": "sha2_",
        "report": "report_",
        "record": "record_",
        "repair": "repair",
    }
    assert [prefix for name, prefix in gone.items() if name not in options and prefix in text] == []
    assert "__KERNEL__" not in text
    assert "stdint" not in text


def test_the_core_of_a_kernel_is_read_in_ten_minutes() -> None:
    texts = without_options(_sources(()), set(), kernel=True)
    ours = [text for name, text in texts.items() if not name.startswith("sha256")]
    assert sum(len(text.splitlines()) for text in ours) < 600


def _without(text: str, *kept: str) -> str:
    return without_options({"x.c": text}, set(kept), kernel=True)["x.c"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("#ifdef PURGATORY_CACHES\na\n#else\nb\n#endif\n", "b\n"),
        ("#ifndef PURGATORY_CACHES\na\n#else\nb\n#endif\n", "a\n"),
        ("#ifdef __KERNEL__\na\n#else\nb\n#endif\n", "a\n"),
        ("#ifdef OTHER\na\n#else\nb\n#endif\n", "#ifdef OTHER\na\n#else\nb\n#endif\n"),
        ("#ifdef OTHER\n#ifdef PURGATORY_EARLY\na\n#endif\nb\n#endif\n", "#ifdef OTHER\nb\n#endif\n"),
        ("#if defined(PURGATORY_EARLY) || defined(OTHER)\na\n#endif\n", "#ifdef OTHER\na\n#endif\n"),
        ("#if defined(PURGATORY_EARLY) || !defined(OTHER)\na\n#endif\n", "#ifndef OTHER\na\n#endif\n"),
        ("a\n#if defined(PURGATORY_EARLY) && defined(OTHER)\nb\n#endif\n", "a\n"),
        ("#if !defined(PURGATORY_EARLY) && defined(A) && defined(B)\na\n#endif\n", None),
        ("#if defined(A) && !(defined(PURGATORY_EARLY) && defined(B))\na\n#endif\n", "#ifdef A\na\n#endif\n"),
        ("#if defined(PURGATORY_EARLY) || \\\n\tdefined(A)\na\n#endif\n", "#ifdef A\na\n#endif\n"),
        ("#if A > 3\na\n#endif\n", "#if A > 3\na\n#endif\n"),
    ],
)
def test_a_condition_is_as_short_as_it_gets(before: str, after: str | None) -> None:
    assert _without(before) == (after or "#if defined(A) && defined(B)\na\n#endif\n")


def test_a_function_that_does_nothing_goes_with_its_calls() -> None:
    text = "static inline void hook(int x) { }\n\nint f(void)\n{\n\thook(3);\n\treturn 1;\n}\n"
    assert _without(text) == "\nint f(void)\n{\n\treturn 1;\n}\n"


def test_one_of_which_something_is_made_stays() -> None:
    text = "static inline int hook(void) { return 0; }\n\nint f(void)\n{\n\treturn hook();\n}\n"
    assert _without(text) == text


def test_one_that_is_empty_only_under_a_condition_stays() -> None:
    text = "#ifdef OTHER\nstatic inline void hook(void) { }\n#endif\n\nvoid f(void)\n{\n\thook();\n}\n"
    assert _without(text) == text


def test_braces_around_one_statement_go() -> None:
    text = "static inline void hook(void) { }\nvoid f(void)\n{\n\tif (a) {\n\t\tb();\n\t\thook();\n\t}\n}\n"
    assert _without(text) == "void f(void)\n{\n\tif (a)\n\t\tb();\n}\n"
