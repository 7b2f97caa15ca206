"""What is made of the rows of a sweep: which sizes work, which to take, what is in the way."""

from __future__ import annotations

from kexecemu.sizing.advice import Advice, advice_of, end_word, size_word
from kexecemu.sizing.memory import Memory
from kexecemu.sizing.run import NOT_LOADED, NOT_RESERVED, Asked, Row

M = 1 << 20


def row(size: int, works: bool = True, unused: int | None = None, more: str = "", cma: int = 0) -> Row:
    memory = None if unused is None else Memory(unused * M, cma=cma * M)
    if works:
        return Row(Asked(size * M, more), "captured", "true", "fine", end="done", memory=memory)
    return Row(Asked(size * M, more), "trapped", "none", "bad", end="panic", panic="deadlock", memory=memory)


def test_the_size_to_take_leaves_the_margin_and_nothing_larger_fails() -> None:
    rows = [
        row(64, unused=40),
        row(96, False, 2),
        row(112, unused=20),
        row(128, unused=36),
        row(160, unused=60),
    ]
    advice = advice_of(rows, 32 * M)
    assert (advice.smallest, advice.all_from, advice.take) == (64 * M, 112 * M, 128 * M)
    assert "from 112M on every size that was tried works" in advice.words
    assert "64M works, and 96M does not" in advice.words
    assert "take crashkernel=128M: 36M of it were never used here" in advice.words
    assert advice_of(rows, 36 * M).take == 128 * M
    assert advice_of(rows, 37 * M).take == 160 * M
    assert advice_of(rows, 61 * M).take is None
    assert any("none of them leaves 61M" in words for words in advice_of(rows, 61 * M).words)


def test_the_order_of_rows_means_nothing() -> None:
    rows = [row(64, unused=40), row(96, False, 2), row(128, unused=36), row(96, unused=50, more="cma=0")]
    assert advice_of(rows[::-1]) == advice_of(rows)


def test_where_the_largest_fails_there_is_nothing_to_take() -> None:
    advice = advice_of([row(64, unused=40), row(96, False, 2)])
    assert (advice.smallest, advice.all_from, advice.take) == (64 * M, None, None)
    assert "the largest size that was tried does not work: try larger ones (--to)" in advice.words


def test_cma_is_named_where_all_that_fail_have_it() -> None:
    rows = [
        row(64, unused=40),
        row(100, False, 2, cma=64),
        row(112, False, 2, cma=64),
        row(128, unused=40, cma=64),
    ]
    (cma,) = [words for words in advice_of(rows).words if "CMA" in words]
    assert cma.startswith("in each of them 64M are set aside for CMA (CONFIG_CMA_SIZE_MBYTES)")
    others = [row(64, unused=40), row(100, False, 2, cma=64), row(112, False, 2), row(128, unused=40)]
    assert not any("CMA" in words for words in advice_of(others).words)


def test_what_ifs_are_told_apart_and_decide_nothing() -> None:
    rows = [
        row(64, False, 2),
        row(64, unused=50, more="cma=0"),
        row(48, False, 1, more="cma=0"),
        row(128, unused=40),
    ]
    advice = advice_of(rows)
    assert advice.smallest == 128 * M
    assert "with cma=0 on the capture kernel's command line 64M works and 48M does not" in advice.words


def test_what_the_machine_cannot_reserve_is_no_failure_of_the_kernel() -> None:
    rows = [row(64, unused=40), Row(Asked(2048 * M), NOT_RESERVED, "none", "cannot allocate")]
    advice = advice_of(rows)
    assert (advice.all_from, advice.take) == (64 * M, 64 * M)
    assert "2048M: cannot allocate" in advice.words


def test_where_nothing_works_the_reason_of_the_largest_is_told() -> None:
    refused = [Row(Asked(size * M), NOT_LOADED, "none", f"no hole in {size}") for size in (2, 1)]
    assert advice_of(refused) == Advice(
        None, None, None, ("no size that was tried works", "the largest is not loaded: no hole in 2")
    )
    assert advice_of([row(64, False, 1)]).words == ("no size that was tried works",)
    assert advice_of([]).words == ("no size that was tried works",)


def test_of_a_kernel_that_is_no_linux_the_room_is_not_known() -> None:
    (_, last) = advice_of([row(4)]).words
    assert last == "how much of them was used is not known: this capture kernel is no Linux"


def test_sizes_and_ends_in_words() -> None:
    assert [size_word(size) for size in (96 * M, 33333 << 10)] == ["96M", "33333K"]
    assert [end_word(one) for one in (row(1), row(1, False), Row(Asked(M), NOT_LOADED, "none", ""))] == [
        "works",
        "panic",
        "not loaded",
    ]
