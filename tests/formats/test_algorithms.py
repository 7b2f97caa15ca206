"""What a release's parsers know, and which release's parsers a release has."""

from __future__ import annotations

import pytest

from kexecemu.errors import InputError
from kexecemu.formats import oid
from kexecemu.formats.algorithms import LINUX_6_1, LINUX_6_12, LINUX_7_3, RELEASES, Algorithms, algorithms_of


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("5.10", LINUX_6_1),
        ("6.1", LINUX_6_1),
        ("6.6", LINUX_6_1),
        ("6.7", LINUX_6_12),
        ("6.12", LINUX_6_12),
        ("6.19", LINUX_6_12),
        ("7.0", LINUX_7_3),
        ("7.3", LINUX_7_3),
        ("10.0", LINUX_7_3),
    ],
)
def test_a_release_has_the_parsers_of_the_newest_that_is_not_newer(release: str, known: Algorithms) -> None:
    assert algorithms_of(release) is known


@pytest.mark.parametrize(
    "release", ["", "6", "6.", ".1", "6.1.192", "6.12-rc1", "٦.١٢", "6.1\n", "9" * 5 + ".1"]
)
def test_what_is_no_release_is_bad_input(release: str) -> None:
    with pytest.raises(InputError, match=r"is no release of Linux, as 6\.12"):
        algorithms_of(release)


@pytest.mark.parametrize("known", RELEASES.values(), ids=RELEASES)
def test_whatever_a_table_has_is_registered(known: Algorithms) -> None:
    tables = (known.digests, known.signer_keys, known.signatures, known.public_keys, known.curves)
    for table in (*tables, known.content_digests):
        assert table and set(table) <= known.registered


def test_what_came_and_went() -> None:
    sha224, sha3, md5, p521, ml_dsa = map(
        oid.encode,
        (
            "2.16.840.1.101.3.4.2.4",
            "2.16.840.1.101.3.4.2.8",
            "1.2.840.113549.2.5",
            "1.3.132.0.35",
            "2.16.840.1.101.3.4.3.18",
        ),
    )
    assert [sha224 in one.content_digests for one in RELEASES.values()] == [True, False, False]
    assert [sha3 in one.digests for one in RELEASES.values()] == [False, True, True]
    assert [md5 in one.registered for one in RELEASES.values()] == [True, False, False]
    assert [p521 in one.curves for one in RELEASES.values()] == [False, True, True]
    assert [ml_dsa in one.signatures for one in RELEASES.values()] == [False, False, True]
