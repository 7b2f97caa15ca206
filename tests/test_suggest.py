"""The nearest of the names that there are."""

from __future__ import annotations

import pytest

from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.suggest import did_you_mean, nearest

SEGMENTS = ["kernel", "elfcorehdr", "initrd", "dtb", "purgatory"]


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("initd", SEGMENTS, "initrd"),
        ("INITRD", SEGMENTS, "initrd"),
        ("zone_dma", KNOWN_OPTIONS, "ZONE_DMA"),
        ("KEXEC_PURGATORY_POLICI", KNOWN_OPTIONS, "KEXEC_PURGATORY_POLICY"),
        ("nosuch", SEGMENTS, None),
        ("", SEGMENTS, None),
        ("initrd", [], None),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case_and_none_where_none_is_like_it(
    word: str, known: list[str], found: str | None
) -> None:
    assert nearest(word, known) == found
    assert did_you_mean(word, known) == (f" (did you mean {found}?)" if found else "")


def test_the_order_of_the_names_does_not_matter() -> None:
    assert len({nearest("after", order) for order in (["after-a", "after-b"], ["after-b", "after-a"])}) == 1
