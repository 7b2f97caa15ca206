"""The command line's grammar: memparse() and every form and refusal of crashkernel=."""

from __future__ import annotations

from errno import EINVAL, ENOENT

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.kernel.base.cmdline import (
    CrashkernelOption,
    get_option,
    memparse,
    parameter,
    parameters,
    parse_crashkernel_option,
    strtobool,
    words,
)
from kexecemu.kernel.base.era import Era

MIB, GIB = 1 << 20, 1 << 30
RAM = 4 * GIB


def parse(
    value: str, ram: int = RAM, suffix: str | None = None, *, whole: bool = False
) -> tuple[CrashkernelOption, list[str]]:
    """The option and the warnings, for one crashkernel= (or a whole command line)."""
    warnings: list[str] = []
    cmdline = value if whole else f"crashkernel={value}"
    return parse_crashkernel_option(cmdline, ram, suffix, warnings.append), warnings


# -- memparse() ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("0", 0, ""),
        ("128M", 128 * MIB, ""),
        ("128m@1G", 128 * MIB, "@1G"),
        ("1G-", GIB, "-"),
        ("2T", 2 << 40, ""),
        ("1P,", 1 << 50, ","),
        ("1e", 1 << 60, ""),
        ("1E", 1 << 60, ""),
        ("512k", 512 << 10, ""),
        ("0x10", 16, ""),
        ("0X1fM", 31 * MIB, ""),
        ("0x1E", 0x1E, ""),
        ("010", 8, ""),
        ("010K", 8 << 10, ""),
        ("08", 0, "8"),
        ("0x", 0, "x"),
        ("0xg", 0, "xg"),
        ("12MB", 12 * MIB, "B"),
        ("1.5G", 1, ".5G"),
        ("-1", 0, "-1"),
        ("+1", 0, "+1"),
        (" 1", 0, " 1"),
        ("", 0, ""),
        ("x", 0, "x"),
        ("18446744073709551616", 0, ""),
        ("16E", 0, ""),
    ],
)
def test_memparse_reads_what_the_kernel_reads(text: str, value: int, rest: str) -> None:
    assert memparse(text) == (value, rest)


def test_a_suffix_without_digits_is_a_zero_that_was_read() -> None:
    """memparse() looks at the character after the number, even where there was no number."""
    assert memparse("M") == (0, "")
    assert memparse("Kx") == (0, "x")


def _memparse_by_character(text: str) -> tuple[int, str]:
    """simple_strtoull(text, &end, 0) and the switch of memparse(), one character at a time as in C."""
    at, base = 0, 10
    if text[:1] == "0":
        hexadecimal = text[1:2] in ("x", "X") and text[2:3] != "" and text[2] in "0123456789abcdefABCDEF"
        at, base = (2, 16) if hexadecimal else (0, 8)
    value = 0
    while at < len(text) and text[at].isascii() and text[at].isalnum():
        digit = int(text[at], 36)
        if digit >= base:
            break
        value = (value * base + digit) % (1 << 64)
        at += 1
    if at < len(text) and text[at] in "KkMmGgTtPpEe":
        value = value * 1024 ** ("KMGTPE".index(text[at].upper()) + 1) % (1 << 64)
        at += 1
    return value, text[at:]


@given(st.text(alphabet="0123456789abcdefxXKMGTPEkmgtpe@-,: ", max_size=24))
def test_memparse_agrees_with_a_reading_by_character(text: str) -> None:
    assert memparse(text) == _memparse_by_character(text)


# -- parameters ------------------------------------------------------------------------------------------------


def test_the_last_of_several_parameters_of_a_name_counts() -> None:
    assert parameter("rodata=on quiet rodata=full", "rodata") == "full"


def test_a_bare_name_has_an_empty_value_and_a_missing_one_has_none() -> None:
    assert parameter("debug quiet", "quiet") == ""
    assert parameter("debug quiet", "rodata") is None
    assert parameter("xrodata=on rodatax=on", "rodata") is None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("0x1f", 31),
        ("017", 15),
        ("09", 0),
        ("-5", -5),
        ("12,13", 12),
        ("12-13", 12),
        ("2147483648", -(1 << 31)),
        ("4294967295", -1),
        ("-4294967295", 1),
        ("1" + "0" * 5000, 0),
        *((text, None) for text in ("", "-", "--1", "x", "K", " 1", "+1")),
    ],
)
def test_get_option_reads_an_int_off_the_front(value: str, number: int | None) -> None:
    assert get_option(value) == number


def test_a_value_may_hold_further_equals_signs() -> None:
    assert parameter("root=PARTUUID=abc", "root") == "PARTUUID=abc"


# -- crashkernel=size[@offset] ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size", "base"),
    [
        ("128M", 128 * MIB, 0),
        ("0x8000000", 128 * MIB, 0),
        ("64M@0x50000000", 64 * MIB, 0x50000000),
        ("64M@1G", 64 * MIB, GIB),
        ("64M@", 64 * MIB, 0),
        ("128M quiet", 128 * MIB, 0),
        ("0", 0, 0),
    ],
)
def test_a_simple_option_is_a_size_and_perhaps_an_offset(value: str, size: int, base: int) -> None:
    assert parse(value) == (CrashkernelOption(size, base), [])


@pytest.mark.parametrize(
    ("value", "size", "warning"),
    [
        ("", 0, "crashkernel: memory value expected"),
        (" quiet", 0, "crashkernel: memory value expected"),
        ("auto", 0, "crashkernel: memory value expected"),
        ("-128M", 0, "crashkernel: memory value expected"),
        ("128MB", 128 * MIB, "crashkernel: unrecognized char: B"),
        ("128M,", 128 * MIB, "crashkernel: unrecognized char: ,"),
        ("128M,medium", 128 * MIB, "crashkernel: unrecognized char: ,"),
    ],
)
def test_a_simple_option_that_cannot_be_read_is_refused_with_the_kernel_s_words(
    value: str, size: int, warning: str
) -> None:
    assert parse(value) == (CrashkernelOption(size, error=EINVAL), [warning])


def test_a_suffix_alone_asks_for_nothing_and_is_no_error() -> None:
    assert parse("M") == (CrashkernelOption(), [])


def test_no_option_at_all_is_enoent_and_no_warning() -> None:
    assert parse("quiet rodata=on", whole=True) == (CrashkernelOption(error=ENOENT), [])
    assert parse("", whole=True) == (CrashkernelOption(error=ENOENT), [])


def test_the_last_crashkernel_option_wins() -> None:
    assert parse("crashkernel=64M crashkernel=96M quiet", whole=True)[0].size == 96 * MIB


def test_a_bad_last_option_is_not_made_up_for_by_a_good_first_one() -> None:
    assert parse("crashkernel=64M crashkernel=bad", whole=True)[0].error == EINVAL


def test_options_with_a_suffix_are_skipped_when_none_is_asked_for() -> None:
    cmdline = "crashkernel=64M crashkernel=1G,high crashkernel=32M,low"
    assert parse(cmdline, whole=True)[0].size == 64 * MIB
    assert parse("crashkernel=1G,high crashkernel=32M,low", whole=True)[0].error == ENOENT


# -- crashkernel=size,high and size,low ------------------------------------------------------------------------


def test_the_last_option_with_the_suffix_asked_for_wins() -> None:
    cmdline = "crashkernel=1G,high crashkernel=2G,high crashkernel=32M,low crashkernel=64M,low"
    assert parse(cmdline, suffix=",high", whole=True)[0].size == 2 * GIB
    assert parse(cmdline, suffix=",low", whole=True)[0].size == 64 * MIB
    assert parse("crashkernel=1G,high", suffix=",low", whole=True)[0].error == ENOENT


@pytest.mark.parametrize(
    ("value", "size", "warning"),
    [
        (",high", 0, "crashkernel: memory value expected"),
        ("x,high", 0, "crashkernel: memory value expected"),
        ("1Gx,high", GIB, "crashkernel: unrecognized char: x"),
        ("1G@2G,high", GIB, "crashkernel: unrecognized char: @"),
        ("1G,high,high", GIB, "crashkernel: unrecognized char: ,"),
    ],
)
def test_a_suffixed_option_that_cannot_be_read_is_refused_with_the_size_that_was_read(
    value: str, size: int, warning: str
) -> None:
    assert parse(value, suffix=",high") == (CrashkernelOption(size, error=EINVAL), [warning])


def test_a_suffixed_option_of_zero_is_a_zero_and_not_an_error() -> None:
    assert parse("0,low", suffix=",low") == (CrashkernelOption(0), [])


# -- crashkernel=start-[end]:size[,...][@offset] ---------------------------------------------------------------

RANGES = "512M-2G:64M,2G-:128M"


@pytest.mark.parametrize(
    ("ram", "size"),
    [
        (512 * MIB, 64 * MIB),
        (GIB, 64 * MIB),
        (2 * GIB - 128 * MIB, 64 * MIB),
        (2 * GIB, 128 * MIB),
        (64 * GIB, 128 * MIB),
    ],
)
def test_the_first_range_that_holds_all_ram_decides(ram: int, size: int) -> None:
    assert parse(RANGES, ram) == (CrashkernelOption(size), [])


def test_ram_is_rounded_up_to_128_mib_before_it_is_looked_up() -> None:
    """Firmware keeps some RAM for itself: 1.9 GiB is meant where the user wrote 2G."""
    assert parse(RANGES, 2 * GIB - 127 * MIB)[0].size == 128 * MIB
    assert parse("384M-:64M", 257 * MIB)[0].size == 64 * MIB


def test_ram_that_no_range_holds_gives_zero_bytes_and_a_message() -> None:
    assert parse(RANGES, 256 * MIB) == (CrashkernelOption(), ["crashkernel size resulted in zero bytes"])


def test_an_offset_behind_the_list_holds_for_whichever_range_matches() -> None:
    assert parse(f"{RANGES}@0x50000000", GIB)[0] == CrashkernelOption(64 * MIB, 0x50000000)
    assert parse(f"{RANGES}@0x50000000", RAM)[0] == CrashkernelOption(128 * MIB, 0x50000000)


def test_an_offset_in_another_word_of_the_command_line_is_not_the_list_s() -> None:
    assert parse(f"crashkernel={RANGES} earlycon=x@5", RAM, whole=True)[0].base == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (":64M", "Memory value expected"),
        ("x-2G:64M", "Memory value expected"),
        ("1G:64M", "'-' expected"),
        ("1G-x:64M", "Memory value expected"),
        ("2G-1G:64M", "end <= start"),
        ("1G-1G:64M", "end <= start"),
        ("1G-2G,:64M", "':' expected"),
        ("1G-:", "Memory value expected"),
        ("1G-:x", "Memory value expected"),
        ("1G-:4G", "invalid size"),
        ("8G-:5G", "invalid size"),
        ("1G-2G:64M,", "Memory value expected"),
        ("1G-:64M@", "Memory value expected after '@'"),
        ("1G-:64M@x", "Memory value expected after '@'"),
    ],
)
def test_a_list_of_ranges_that_cannot_be_read_is_refused(value: str, words: str) -> None:
    option, warnings = parse(value)
    assert option == CrashkernelOption(error=EINVAL)
    assert len(warnings) == 1 and warnings[0].endswith(words)


@pytest.mark.parametrize(
    ("era", "size", "offset"),
    [
        ("6.1", "", ""),
        ("6.6", "", ""),
        ("6.7", "crashkernel: ", "crahskernel: "),
        ("6.12", "crashkernel: ", "crahskernel: "),
        ("7.3", "crashkernel: ", "crashkernel: "),
    ],
)
def test_two_of_the_warnings_about_ranges_begin_as_the_era_has_it(era: str, size: str, offset: str) -> None:
    said: list[str] = []
    for line in ("crashkernel=1G-:x", "crashkernel=1G-:64M@x", "crashkernel=x-:64M"):
        prefixes = Era(era).rules.range_prefixes
        parse_crashkernel_option(line, 2 * GIB, None, said.append, prefixes=prefixes)
    expected = "Memory value expected"
    assert said == [size + expected, f"{offset}{expected} after '@'", f"crashkernel: {expected}"]


def test_ranges_behind_the_one_that_matches_are_not_even_read() -> None:
    assert parse("1G-:64M,rubbish")[0].size == 64 * MIB


def test_a_colon_in_a_later_word_does_not_make_a_list() -> None:
    assert parse("crashkernel=64M root=a:b", whole=True) == (CrashkernelOption(64 * MIB), [])


@given(st.text(alphabet="0123456789xKMG@-,:highlow= ", max_size=40), st.integers(1, 64 * GIB))
def test_no_command_line_makes_the_parser_do_anything_but_answer(value: str, ram: int) -> None:
    for suffix in (None, ",high", ",low"):
        option, warnings = parse(value, ram, suffix)
        assert option.error in (0, EINVAL, ENOENT)
        assert (option.error == EINVAL) <= bool(warnings)
        assert not option.error or option == CrashkernelOption(option.size, error=option.error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("y", "Y", "1", "on", "On", "oN", "yes")),
        *((text, False) for text in ("n", "N", "0", "off", "OF", "no")),
        *((text, None) for text in ("", "o", "ox", "2", "t", "full")),
    ],
)
def test_a_boolean_is_read_by_its_first_letters(text: str, value: bool | None) -> None:
    assert strtobool(text) is value


@pytest.mark.parametrize(
    ("cmdline", "said"),
    [
        ("mem=1G quiet", [("mem", "1G"), ("quiet", None)]),
        ('mem="1100M" "mem=2000M" "quiet"', [("mem", "1100M"), ("mem", "2000M"), ("quiet", None)]),
        ('a="b c"d "e f"=g', [("a", 'b c"d'), ('e f"', "g")]),
        ('a="b', [("a", "b")]),
        ("nr-cpus=2 kfence.sample-interval=1", [("nr_cpus", "2"), ("kfence.sample_interval", "1")]),
        ("a=1 -- a=2", [("a", "1")]),
        ("a --=1 b", [("a", None), ("__", "1"), ("b", None)]),
        ("a= =b", [("a", ""), ("=b", None)]),
    ],
)
def test_words_are_those_that_parse_args_makes(cmdline: str, said: list[tuple[str, str | None]]) -> None:
    assert list(words(cmdline)) == said
    for name, _ in said:
        assert parameters(cmdline, name) == [value or "" for one, value in said if one == name]
    assert parameter("nr_cpus=2", "nr-cpus") == parameter("nr-cpus=2", "nr_cpus") == "2"
