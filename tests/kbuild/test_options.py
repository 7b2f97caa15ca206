"""What a kernel of ours is configured with: asked for in lines, and looked for in what the kernel made of them."""

from __future__ import annotations

import pytest

from kexecemu.errors import InputError
from kexecemu.kbuild.options import fragment, fragment_text, not_taken, parse_lines, with_defaults


def test_lines_are_taken_as_a_configuration_has_them_with_the_prefix_and_without() -> None:
    assert parse_lines(["A=m", "A2=-1", "A3=0x1f"]) == {"A": "m", "A2": "-1", "A3": "0x1f"}
    lines = ["KASAN=y", "CONFIG_KCOV=n", "# CONFIG_SMP is not set", ' CMDLINE="a=b c" ']
    assert parse_lines(lines) == {"KASAN": "y", "KCOV": "n", "SMP": "n", "CMDLINE": '"a=b c"'}


@pytest.mark.parametrize(
    "line",
    [
        "KASAN",
        "KASAN=",
        "=y",
        "# a comment",
        "KA-SAN=y",
        "KASAN=yes",
        'A="x',
        'A="x"y"',
        "A=$(shell true)",
        "A=y\nB=y",
    ],
)
def test_what_is_no_such_line_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="is no line of a kernel's configuration"):
        parse_lines([line])


@pytest.mark.parametrize("line", ["kasan=y", "CONFIG_kasan=n"])
def test_an_option_in_small_letters_is_refused_before_anything_is_unpacked(line: str) -> None:
    with pytest.raises(InputError, match="options are written in capitals, as KASAN=y"):
        parse_lines([line])


def test_a_size_of_pages_is_its_option_and_there_are_three() -> None:
    for pages, name in (("4k", "ARM64_4K_PAGES"), ("16k", "ARM64_16K_PAGES"), ("64k", "ARM64_64K_PAGES")):
        found = [one for one in fragment(pages) if one.endswith("K_PAGES")]
        assert found == [name]
    with pytest.raises(InputError, match="--pages '8k' is not one of 4k, 16k, 64k"):
        fragment("8k")


def test_what_is_asked_for_wins_over_what_is_usual() -> None:
    assert fragment()["KEXEC_FILE"] == "y"
    assert fragment(more=["KEXEC_FILE=n"])["KEXEC_FILE"] == "n"


def test_a_kernel_that_took_everything_has_taken_its_own_fragment() -> None:
    wanted = fragment("16k", ["KASAN=n", "NR_CPUS=8"])
    assert not_taken(wanted, fragment_text(wanted)) == []


def test_what_the_kernel_made_otherwise_is_named_with_what_it_is() -> None:
    wanted = {"KEXEC_FILE": "y", "KASAN": "n", "NR_CPUS": "8", "GONE": "n"}
    config = "# CONFIG_KEXEC_FILE is not set\nCONFIG_KASAN=y\nCONFIG_NR_CPUS=4\n"
    assert not_taken(wanted, config) == ["KEXEC_FILE=y (is n)", "KASAN=n (is y)", "NR_CPUS=8 (is 4)"]


def test_no_word_of_a_choice_that_a_release_has_lost() -> None:
    assert not_taken({"ARM64_PAN": "y"}, "") == []


def test_options_of_a_series_are_as_the_series_has_them_unless_they_are_asked_for() -> None:
    off = "# CONFIG_ARM64_KEXEC_PURGATORY_{} is not set\n"
    config = "CONFIG_SMP=y\n# CONFIG_KASAN is not set\n" + off.format("CACHES") + off.format("SHA2")
    kept = with_defaults(config, {"ARM64_KEXEC_PURGATORY_SHA2": "n"})
    assert kept == "CONFIG_SMP=y\n# CONFIG_KASAN is not set\n" + off.format("SHA2")
