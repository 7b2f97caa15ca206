"""The selftests' verdicts, against what the scripts themselves concluded for every combination of facts."""

from __future__ import annotations

import gzip

import pytest
import signing
from kexec_selftest import (
    SelftestMachine,
    SelftestVerdict,
    judge_kexec_file_load,
    judge_kexec_load,
)

TABLE = gzip.decompress((signing.DATA / "selftests.txt.gz").read_bytes()).decode().splitlines()
FACTS = TABLE[0].removeprefix("# ").partition(":")[0].split()


def rows(test: str) -> list[tuple[SelftestMachine, str, SelftestVerdict, str]]:
    found = []
    for line in TABLE[1:]:
        name, bits, result, verdict, reason = line.split(" ", 4)
        if name == test:
            facts = {fact: bit == "1" for fact, bit in zip(FACTS, bits, strict=True)}
            found.append((SelftestMachine(**facts), result, SelftestVerdict[verdict], reason))
    return found


def test_kexec_file_load_is_judged_as_the_script_does() -> None:
    table = rows("kexec_file_load")
    assert len(table) == 3 * 2**11
    assert {verdict for _, _, verdict, _ in table} == {SelftestVerdict.PASS, SelftestVerdict.FAIL}
    for machine, result, verdict, reason in table:
        judged = judge_kexec_file_load(machine, loaded=result == "loaded", no_key=result == "nokey")
        assert judged == (verdict, reason), machine


def test_kexec_load_is_judged_as_the_script_does() -> None:
    table = rows("kexec_load")
    # Secure boot and IMA's policy for it in all four combinations, and IMA's appraisal, which changes nothing.
    assert len(table) == 2 * 8
    for machine, result, verdict, reason in table:
        assert judge_kexec_load(machine, loaded=result == "loaded") == (verdict, reason), machine


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (SelftestMachine(root=False), "requires root privileges"),
        (SelftestMachine(kexec=False, kexec_file=False), "is not enabled"),
    ],
)
def test_what_cannot_be_tried_is_skipped(machine: SelftestMachine, why: str) -> None:
    for verdict, reason in (
        judge_kexec_load(machine, loaded=False),
        judge_kexec_file_load(machine, loaded=False),
    ):
        assert verdict is SelftestVerdict.SKIP
        assert why in reason


def test_the_verdicts_are_the_exit_statuses_of_selftests() -> None:
    assert [(verdict.name, verdict.value) for verdict in SelftestVerdict] == [
        ("PASS", 0),
        ("FAIL", 1),
        ("SKIP", 4),
    ]
