"""What model, board and QEMU made of a fault is compared run for run, and told in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.crash.purgatory_check import CODE, UNTOUCHED, Reply, cases, code_areas, more_cases
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import InputError
from kexecemu.formats.elfrel import parse
from kexecemu.kbuild.build import read_built
from kexecemu.kbuild.judge import Judged, judge_kernel
from kexecemu.kbuild.trial import Trial
from kexecemu.report.kernel_judge import judge_text
from kexecemu.scenario.purgatory_bench import every_case, model_replies

GOOD, BAD = Reply.CAUGHT, Reply.MISSED


def test_a_row_differs_where_any_run_does_in_that_order() -> None:
    row = Judged(CODE, {"model": [GOOD, BAD], "board": [GOOD, BAD], "qemu": [BAD, GOOD]})
    assert (row.differs, row.wrong) == (["qemu"], [])
    assert row.as_object()["qemu"] == row.as_object()["model"] == {"caught": 1, "missed": 1}


def test_what_aborts_where_qemu_has_flash_is_not_compared_with_it_but_with_the_board() -> None:
    row = Judged(CODE, {"model": [GOOD, BAD], "board": [GOOD, GOOD], "qemu": [GOOD, GOOD]}, in_flash=[1])
    assert row.differs == ["board"]
    row = Judged(CODE, {"model": [GOOD, BAD], "qemu": [BAD, GOOD]}, in_flash=[1])
    assert row.differs == ["qemu"]
    row = Judged(CODE, {"model": [GOOD, BAD], "qemu": [GOOD, GOOD]}, in_flash=[1])
    assert row.differs == []
    assert judge_text([row]).splitlines()[-5:] == [
        "",
        "Not compared with QEMU, whose virt has flash or devices where they abort in the model:",
        "  purgatory's code, 32 bits: 1 run",
        "",
        "1 row, 2 runs: all are as the model says",
    ]


def test_an_intact_image_must_boot_with_a_true_dump() -> None:
    boots = {name: [Reply.BOOTS] for name in ("model", "board", "qemu")}
    assert Judged(UNTOUCHED, boots, captured={"board": True, "qemu": True}).wrong == []
    assert Judged(UNTOUCHED, boots, captured={"board": False, "qemu": True}).wrong == ["board"]
    hung = Judged(UNTOUCHED, {**boots, "qemu": [Reply.HUNG]}, captured={"qemu": False})
    assert (hung.wrong, hung.differs) == (["qemu"], ["qemu"])
    assert Judged("initrd", {"model": [BAD], "qemu": [BAD]}).wrong == []


def test_a_kernel_without_a_purgatory_and_one_without_its_object_are_not_judged(tmp_path: Path) -> None:
    for image, said in (
        (b"", "has no purgatory"),
        (b"MZ" + purgatory_path().read_bytes(), "needs purgatory.ro"),
    ):
        (tmp_path / "Image").write_bytes(image)
        with pytest.raises(InputError, match=said):
            judge_kernel(Trial(read_built(tmp_path)), None, board=True)


def test_rows_are_chosen_by_words_in_their_names(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(b"MZ" + purgatory_path().read_bytes())
    (tmp_path / "purgatory.ro").write_bytes(purgatory_path().read_bytes())
    trial = Trial(read_built(tmp_path))
    judged = judge_kernel(trial, None, board=False, rows=["nothing", "digest, zeros"])
    assert [one.case for one in judged] == [UNTOUCHED, "stored digest, zeros", "its own digest, zeros"]
    with pytest.raises(
        InputError, match=r"--row 'initramfs': no row has .*; there are 'nothing', 'kernel, first"
    ):
        judge_kernel(trial, None, board=False, rows=["nothing", "initramfs"])


def test_the_table_names_what_differs_and_what_does_not_apply() -> None:
    rows = [
        Judged(UNTOUCHED, {"model": [Reply.BOOTS], "qemu": [Reply.BOOTS]}),
        Judged(CODE, {"model": [GOOD, GOOD], "qemu": [GOOD, BAD]}),
        Judged("stack", {"model": [], "qemu": []}, "where it is, is not known"),
    ]
    assert judge_text(rows).splitlines() == [
        "fault                      model  QEMU",
        "-------------------------  -----  -----",
        "nothing                    boots  boots",
        "purgatory's code, 32 bits                differs",
        "  caught                   2      1",
        "  missed                   0      1",
        "stack                      -      -",
        "",
        "- says that a row does not apply:",
        "  stack: where it is, is not known",
        "",
        "3 rows, 3 runs: 1 row is not as the model says",
    ]


def test_of_a_row_with_many_runs_those_that_differ_are_named() -> None:
    rows = [
        Judged("initrd", {"model": [GOOD], "qemu": [BAD]}, hit=[""]),
        Judged(
            CODE,
            {"model": [GOOD, BAD, GOOD], "board": [GOOD, BAD, BAD], "qemu": [GOOD, GOOD, GOOD]},
            in_flash=[1],
            hit=["purgatory+0x4", "sha256+0x8", "sha256+0xc"],
        ),
    ]
    assert [one.differing_runs for one in rows] == [[0], [2]]
    assert judge_text(rows).splitlines()[-4:-2] == [
        "Of rows with many runs those that are not as the model says, counted from 0:",
        "  purgatory's code, 32 bits: run 2, sha256+0xc: model caught, board missed, QEMU caught",
    ]
    assert rows[1].as_object()["hit"] == ["purgatory+0x4", "sha256+0x8", "sha256+0xc"]


def test_a_run_whose_purgatory_stores_to_its_own_code_is_shown_and_not_compared() -> None:
    """Bits of a digest of what each boot has otherwise are its next instructions."""
    replies = {"model": [BAD, GOOD], "board": [BAD, GOOD], "qemu": [BAD, BAD]}
    row = Judged(CODE, replies, hit=["purgatory+0x4", "sha256+0x8"], rewritten=[1])
    assert (row.differs, row.differing_runs) == ([], [])
    assert replace(row, rewritten=[0]).differs == ["qemu"]
    assert judge_text([row]).splitlines()[-4:] == [
        "Not compared, since the purgatory stores to its own code, and runs what no two boots have alike:",
        "  purgatory's code, 32 bits: run 1, sha256+0x8: model caught, board caught, QEMU missed",
        "",
        "1 row, 4 runs: all are as the model says",
    ]


def test_every_fault_and_the_intact_image_have_a_row_of_their_own() -> None:
    kernel = Kernel.boot(Board("512M"), KernelConfig("6.12", purgatory=True), cmdline="crashkernel=64M")
    image = kernel.kexec_file_load(fixture_path("guests/capture-Image").read_bytes(), bytes(0x4000), "")
    assert image is not None and image.purgatory is not None
    obj = parse(purgatory_path().read_bytes())
    every = every_case(kernel.ram, image, obj, image.purgatory)
    names = [one.name for one in every]
    assert len(names) == len(set(names)) == 34
    top, _ = image.purgatory.symbol_table()["purgatory_stack_top"]
    shared = cases(kernel.ram, image, obj, image.purgatory, "kernel", top)
    assert every == [*shared, *more_cases(kernel.ram, image, image.purgatory, "kernel")]
    assert [one.name for one in every if one.absent] == []
    # A linker may have its symbols in any order.
    turned = replace(obj, symbol_tables={at: some[::-1] for at, some in obj.symbol_tables.items()})
    assert every_case(kernel.ram, image, turned, image.purgatory) == every
    # Nor need it have left those that say what is code: the whole section is, then.
    whole = {at: tuple(one for one in some if one.name[:1] != "$") for at, some in obj.symbol_tables.items()}
    [area] = code_areas(replace(obj, symbol_tables=whole), image.purgatory)
    assert (
        all(area.covers(one) for one in code_areas(obj, image.purgatory))
        and area.start == image.purgatory.entry
    )


def test_the_model_says_where_a_run_aborts() -> None:
    found = model_replies(purgatory_path(), parse(purgatory_path().read_bytes()))
    assert found[UNTOUCHED].aborted == [None]
    aborts = found[CODE].aborted
    assert len(aborts) == 32 and any(at is not None for at in aborts)
    told = {found[CODE].replies[run] for run, at in enumerate(aborts) if at is not None}
    assert told <= {Reply.TRAPPED, Reply.TRAP_REPORTED}


def test_the_shipped_purgatory_catches_all_of_the_segments_and_of_what_the_loader_sets() -> None:
    found = model_replies(purgatory_path(), parse(purgatory_path().read_bytes()))
    more = {name: one.replies for name, one in list(found.items())[19:]}
    # Zeros in place of its own digest say that there is none: then nothing of the purgatory itself is checked.
    assert more.pop("its own digest, zeros") == [Reply.HARMLESS]
    # Nor can it see what comes after it, or be trusted once its own code says yes.
    for blind in ("initrd, a word, after the check", "code that says yes, and initrd"):
        assert more.pop(blind) == [Reply.MISSED]
    assert set(map(tuple, more.values())) == {(Reply.CAUGHT,)} and len(more) == 12
