"""A kernel of ours that has been built (kexecemu kernel build 6.12), booted and stamped on in QEMU and on our board."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kexecemu.errors import InputError
from kexecemu.fetch.cache import cache_folder
from kexecemu.kbuild.build import BuildPlan, BuiltKernel, find_built
from kexecemu.kbuild.on_board import BoardRuns, board_runs
from kexecemu.kbuild.on_qemu import qemu_runs, run_in_qemu
from kexecemu.kbuild.options import fragment
from kexecemu.kbuild.qemu import QemuMachine
from kexecemu.kbuild.series import series_path
from kexecemu.kbuild.trial import Loaded, Trial, TrialEnd, WhatIsWritten
from kexecemu.scenario.runner import run_scenario
from kexecemu.stray.fault import By, Fault, When

pytestmark = pytest.mark.real

STRAY = bytes.fromhex("deadbeef")


def built(version: str = "6.12") -> BuiltKernel:
    """The kernel with the series that ships; skips with the command that builds it."""
    try:
        found = find_built(BuildPlan(version, (series_path(),), fragment()), cache_folder())
    except InputError as error:
        pytest.skip(f"no kernel of ours: {error}")
    if found is None:
        pytest.skip(f"no kernel of ours: run kexecemu kernel build {version}")
    return found


def dma(*places: str) -> WhatIsWritten:
    return lambda loaded: [Fault(at, write=STRAY, by=By.DMA) for at in places]


@pytest.fixture(scope="module")
def board() -> Iterator[BoardRuns]:
    with board_runs(Trial(built())) as runs:
        yield runs


@pytest.mark.parametrize(
    ("cpu", "el", "cpus"),
    [
        ("max", "el1", 1),
        ("max", "el2", 2),
        ("max", "vhe", 4),
        ("neoverse-v1", "el1", 4),
        ("neoverse-v1", "vhe", 1),
        ("cortex-a57", "el1", 2),
        ("cortex-a57", "el2", 1),
    ],
)
@pytest.mark.parametrize("kaslr", [True, False], ids=["kaslr", "nokaslr"])
def test_an_intact_image_is_checked_and_takes_a_true_dump(cpu: str, el: str, cpus: int, kaslr: bool) -> None:
    end = run_in_qemu(Trial(built(), cpus=cpus, kaslr=kaslr), QemuMachine(cpu, el, cpus), dma())
    assert (end.reply.value, end.outcome.value, end.dump) == ("boots", "captured", True), end.as_object()
    assert end.el == (1 if el == "el1" else 2)
    assert end.image.start != end.image.kernel_entry


@pytest.mark.parametrize("place", ["kernel+0x100000", "initrd+0x1000", "dtb+0x40", "elfcorehdr+0x40"])
@pytest.mark.parametrize(("cpu", "el"), [("max", "vhe"), ("cortex-a57", "el1")])
def test_a_stamped_word_is_refused_in_qemu(place: str, cpu: str, el: str) -> None:
    end = run_in_qemu(Trial(built()), QemuMachine(cpu, el), dma(place))
    assert (end.reply.value, end.outcome.value) == ("caught", "detected"), end.as_object()
    assert [(one.segment, one.length) for one in end.damage] == [(place.partition("+")[0], 4)]
    assert end.capture is None


@pytest.mark.parametrize(("when", "reply"), [(When.AT_JUMP, "caught"), (When.AFTER_CHECK, "missed")])
def test_what_comes_after_the_check_is_not_found_and_what_comes_right_before_is(
    board: BoardRuns, when: When, reply: str
) -> None:
    def stray(loaded: Loaded) -> list[Fault]:
        return [Fault("initrd+0x1000", write=STRAY, by=By.DMA, when=when)]

    ends = [run_in_qemu(Trial(built()), QemuMachine(), stray), board.run(stray)]
    assert [one.reply.value for one in ends] == [reply, reply], [one.as_object() for one in ends]
    assert [[hit.fault.when for hit in one.injections] for one in ends] == [[when], [when]]
    assert [[(one.segment, one.length) for one in end.damage] for end in ends] == [[("initrd", 4)]] * 2


@pytest.mark.parametrize(
    ("words", "when", "said"),
    [
        ([STRAY], When.AFTER_LOAD, ("harmless", "latent", True)),
        ([STRAY], When.AT_JUMP, ("harmless", "latent", True)),
        ([STRAY], When.AFTER_CHECK, ("missed", "silent", False)),
        ([STRAY, b"\xcc" * 4], When.AFTER_CHECK, ("harmless", "masked", True)),
    ],
)
def test_memory_of_the_crashed_kernel_is_what_the_dump_has_to_show_from_the_jump_on(
    board: BoardRuns, words: list[bytes], when: When, said: tuple[str, str, bool]
) -> None:
    """Free memory, which the boot loader or nobody has written to: 0xcc in both, or what is put there first."""

    def stray(loaded: Loaded) -> list[Fault]:
        before = Fault("0x48000000", write=b"\xcc" * 4, by=By.DMA, when=When.AFTER_LOAD)
        return [before, *(Fault("0x48000000", write=one, by=By.DMA, when=when) for one in words)]

    for end in (run_in_qemu(Trial(built()), QemuMachine(), stray), board.run(stray)):
        assert (end.reply.value, end.outcome.value, end.dump) == said, end.as_object()
        assert [one.after for one in end.injections] == [b"\xcc" * 4, *words]


def test_a_moment_that_qemu_does_not_stop_at_is_refused() -> None:
    with pytest.raises(InputError, match="no moment hashing, but after-load, at-jump, after-check"):
        late = Fault("initrd", write=STRAY, by=By.DMA, when=When.WHILE_HASHING, step=7)
        run_in_qemu(Trial(built()), QemuMachine(), lambda loaded: [late])


@pytest.mark.parametrize(
    ("cpu", "el", "cpus"), [("max", "el1", 1), ("neoverse-v1", "vhe", 4), ("cortex-a57", "el2", 2)]
)
def test_a_saved_state_goes_on_as_a_boot_does(cpu: str, el: str, cpus: int) -> None:
    """Whichever CPU it is that crashes; again and again."""
    machine, trial = QemuMachine(cpu, el, cpus), Trial(built(), cpus=cpus, dump=False)
    places: Sequence[tuple[str, ...]] = [
        (), ("initrd+0x1000",), ("purgatory:purgatory_kernel_entry",), ("crashkernel-free",), ()
    ]  # fmt: skip
    with qemu_runs(trial, machine) as runs:
        found = [runs.run(dma(*one)) for one in places]
        assert [one.reply.value for one in found] == ["boots", "caught", "caught", "harmless", "boots"]
        assert {one.image.start for one in found} == {runs.loaded.image.start}
        assert {one.release for one in found} == {found[0].release} != {""}
    assert found[0].captured and run_in_qemu(trial, machine, dma("initrd+0x1000")).outcome == found[1].outcome


def test_any_folder_will_do_for_what_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's own words for files know commas, quotes and backslashes; a socket's path ends at 107 characters."""
    folder = tmp_path / ", ' \" \\ %s $x" / ("long" * 30)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert run_in_qemu(Trial(built()), QemuMachine(), dma()).dump
    with qemu_runs(Trial(built(), dump=False), QemuMachine()) as runs:
        assert runs.run(dma("initrd+0x1000")).outcome.value == "detected"
    assert not list(folder.iterdir())


def test_what_nobody_needs_harms_nobody() -> None:
    end = run_in_qemu(Trial(built()), QemuMachine(), dma("crashkernel-free+0x1000"))
    assert (end.reply.value, end.outcome.value, end.dump) == ("harmless", "latent", True), end.as_object()


def test_our_board_says_what_qemu_says(board: BoardRuns) -> None:
    places: Sequence[tuple[str, ...]] = [(), ("kernel+0x100000",), ("purgatory:purgatory_kernel_entry",)]
    ends: list[tuple[TrialEnd, TrialEnd]] = [
        (
            board.run(dma(*one), linux=not one),
            run_in_qemu(Trial(built(), dump=not one), QemuMachine("cortex-a57"), dma(*one)),
        )
        for one in places
    ]
    for ours, theirs in ends:
        assert (ours.reply, ours.outcome) == (theirs.reply, theirs.outcome)
        assert [one.area for one in ours.image.segments][:3] == [one.area for one in theirs.image.segments][
            :3
        ]
    assert (ends[0][0].dump, ends[0][1].dump) == (True, True)


def test_a_board_that_has_loaded_crashes_as_often_as_one_likes(board: BoardRuns) -> None:
    first, again = board.run(dma()), board.run(dma())
    assert first.outcome == again.outcome and first.console == again.console
    assert board.run(dma("initrd+0x1000"), linux=False).reply.value == "caught"


def test_faults_may_depend_on_what_was_loaded(board: BoardRuns) -> None:
    def last_byte(loaded: Loaded) -> list[Fault]:
        kernel = loaded.image.segment("kernel")
        assert kernel is not None
        return [Fault(f"kernel+{kernel.bufsz - 1}", flip=0x80, by=By.DMA)]

    end = board.run(last_byte, linux=False)
    assert [(one.segment, one.length) for one in end.damage] == [("kernel", 1)]


def test_a_target_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        InputError, match=r"target initramfs: no such segment.*kernel.*and physical addresses"
    ):
        run_in_qemu(Trial(built()), QemuMachine(), dma("initramfs+0"))


SCENARIO = """\
schema = 1
name = "a kernel of ours"
[kernel]
linux = "{image}"
cmdline = "crashkernel=192M"
[load]
syscall = "kexec_file_load"
"""
FAULT = '[[fault]]\nat = "initrd+0x1000"\nwrite = "deadbeef"\nby = "dma"\n'


@pytest.mark.parametrize(("fault", "outcome"), [("", "captured"), (FAULT, "detected")])
def test_a_scenario_whose_first_kernel_has_the_purgatory_is_judged_by_it(
    tmp_path: Path, fault: str, outcome: str
) -> None:
    path = tmp_path / "own.scenario.toml"
    path.write_text(SCENARIO.format(image=built().image) + fault)
    end = run_scenario(path).end
    assert end.outcome.value == outcome
    assert end.purgatory is not None
