"""What objects say of themselves at a prompt, and what they say once they are at an end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
from campaign_summaries import made_up_summary
from reachable import LIMIT, PUBLIC, one_of_each, unfit

import kexecemu
from kexecemu import testing
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import InputError
from kexecemu.formats import elfrel
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.load.environment import elf_headers
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.snapshot import Snapshots
from kexecemu.machine.timeline import Timeline
from kexecemu.report.steps import steps_of
from kexecemu.scenario.read import read_scenario
from kexecemu.scenario.runner import run_scenario
from kexecemu.scenario.setup import Setup
from kexecemu.shown import brief, shown
from kexecemu.stray.fault import By, Fault

INITRD = 24 << 20
STUB = fixture_path("guests/capture-Image")


@dataclass(frozen=True)
class Session:
    """A kernel with a large initrd, and the end of its crash."""

    kernel: Kernel
    image: Kimage
    end: End


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Kernel.boot(Board("512M", cpus=2), KernelConfig("6.1"), cmdline="crashkernel=128M") as kernel:
        image = kernel.kexec_file_load(STUB, bytes(INITRD), "console=ttyAMA0")
        assert image is not None
        kernel.stray_write("initrd", b"\xa5" * 200)
        kernel.dma_write("initrd+0x1000", b"\xa5" * 8192)
        yield Session(kernel, image, kernel.panic())


@pytest.fixture(scope="module")
def everything(session: Session) -> dict[type, object]:
    ran = run_scenario("golden")
    assert ran.end.vmcore is not None
    tree = Fdt(session.kernel.initial_boot_params)
    found = one_of_each(
        [
            session.kernel,
            session.image,
            session.end,
            ran,
            testing.run(),
            Fault("initrd", flip=1),
            read_scenario("campaign-16m"),
            Setup(kernel=STUB),
            Kernel.boot(Board("512M", gic=3)),
            elfrel.parse(purgatory_path().read_bytes()),
            tree,
            next(tree.properties(0)),
            next(tree.nodes()),
            ran.end.vmcore.layout(),
            parse_core_header(elf_headers(session.kernel)),
            Snapshots(Board("16M")).take(),
            session.kernel.board.boot_cpu.walk(session.kernel.space.linear_virt(session.image.start)),
            steps_of(ran),
            made_up_summary(),
        ]
    )
    return found


def test_everything_of_a_session_fits_a_small_table(everything: dict[type, object]) -> None:
    assert unfit(everything.values()) == []


@pytest.mark.parametrize("module", [kexecemu, testing])
def test_every_class_that_users_import_was_among_them(module: object, everything: dict[type, object]) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    kinds = {getattr(module, name) for name in names} & PUBLIC - {testing.SetupOptions}  # a form for a dict
    missed = {
        kind.__name__
        for kind in kinds
        if not issubclass(kind, BaseException)
        and not hasattr(kind, "__members__")
        and not any(issubclass(found, kind) for found in everything)
    }
    assert missed == set()


def test_there_are_many(everything: dict[type, object]) -> None:
    assert len(set(everything) & PUBLIC) > 75


def test_what_no_session_has_would_not_print_its_buffers_either() -> None:
    """Dataclasses print whatever they hold, unless they are told otherwise."""
    wordy = {
        kind.__name__
        for kind in PUBLIC
        if is_dataclass(kind)
        and not hasattr(kind, "_shown")
        and any(
            re.search("bytes|int|list|tuple|Sequence|Mapping|dict", str(one.type)) for one in fields(kind)
        )
    }
    assert wordy == set()


def test_a_buffer_is_told_by_its_size(session: Session) -> None:
    segment = session.image.segment("initrd")
    assert segment is not None
    assert repr(segment) == (
        f"Segment(name='initrd', buf=<0x1800000 bytes>, mem={segment.mem:#x}, memsz={segment.memsz:#x})"
    )
    lines = repr(session.image).splitlines()
    assert lines[0] == "Kimage:"
    assert f"initrd {segment.area} (0x1800000 bytes)" in repr(session.image)
    assert re.search(rf"^  start +{session.image.start:#x}$", repr(session.image), re.MULTILINE)


def test_registers_are_in_hex_and_counts_are_not(session: Session) -> None:
    cpu = session.kernel.board.boot_cpu
    assert re.search(rf"^  pc +{cpu.pc:#x}$", repr(cpu), re.MULTILINE)
    assert re.search(rf"^  instructions +{cpu.instructions:_}$", repr(cpu), re.MULTILINE)
    assert f"pstate{'':8}{cpu.pstate:#x}" in repr(cpu)
    assert cpu.pstate & Pstate.DAIF


def test_a_timeline_is_a_table_of_its_last_events(session: Session) -> None:
    lines = repr(session.end.timeline).splitlines()
    assert lines[0].startswith(f"Timeline of {len(session.end.timeline)} events, the last 10")
    assert len(lines) == 11
    last = list(session.end.timeline)[-1]
    assert lines[-1] == f"{last.when:>14,}  outcome        {last.text}"
    assert repr(Timeline(lambda: 0)) == "Timeline of 0 events"


def test_what_is_asked_of_a_closed_board_is_told_all_the_same() -> None:
    with Kernel.boot(Board("512M")) as kernel:
        pass
    assert "closed=True" in repr(kernel.board.ram)
    assert len(repr(kernel)) + len(repr(kernel.board)) + len(repr(kernel.board.boot_cpu)) < LIMIT


def test_what_raises_says_so_in_the_table() -> None:
    @shown("value")
    class Odd:
        @property
        def value(self) -> int:
            raise InputError("there is none")

    assert repr(Odd()) == "Odd(value=<there is none>)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (bytes(33), "<0x21 bytes>"),
        (memoryview(b"ab"), "<0x2 bytes 6162>"),
        ("\n" * 90, "'" + r"\n" * 24 + "\\'... <90 characters>"),
        ("x" * 500, f"'{'x' * 49}'... <500 characters>"),
        (
            list(range(1000, 5000)),
            f"[{', '.join(map(hex, range(1000, 1011)))}, and 3,989 more]",
        ),
        ({"instructions": 12345, "pc": 12345}, "{'instructions': 12_345, 'pc': 0x3039}"),
        (By.DMA, "By.DMA"),
        (-1, "-0x1"),
        ({"b", "a"}, "{'a', 'b'}"),
        (object(), "<object>"),
    ],
)
def test_a_value_in_few_words(value: object, text: str) -> None:
    assert brief(value) == text


def test_a_repr_leaves_equality_and_hashing_as_they_are() -> None:
    assert Fault("initrd", flip=1) == Fault("initrd", flip=1)
    assert len({Fault("initrd", flip=1), Fault("initrd", flip=1)}) == 1
    assert Segment("x", b"1", 0, 4096) != Segment("x", b"2", 0, 4096)
    assert replace(Setup(), seed=1) != Setup()


# -- an end is an end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda kernel: kernel.panic(), "panic"),
        (lambda kernel: kernel.crash(), "panic"),
        (lambda kernel: kernel.kexec_file_load(STUB), "kexec_file_load"),
        (lambda kernel: kernel.kexec_tools_load(STUB), "kexec_load"),
        (lambda kernel: kernel.stray_write("initrd", b"x"), "fault at initrd"),
        (lambda kernel: kernel.dma_write("initrd", b"x"), "fault at initrd"),
        (lambda kernel: kernel.reboot_by_kexec(), "reboot"),
    ],
)
def test_nothing_happens_to_a_kernel_that_has_crashed(
    session: Session, act: Callable[[Kernel], object], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        act(session.kernel)
    assert str(refused.value) == f"{words}: the kernel has crashed; boot another on a board of its own"


def test_a_kernel_that_was_left_by_kexec_is_left() -> None:
    with Kernel.boot(Board("512M"), cmdline="crashkernel=64M") as kernel:
        kernel.kexec_file_load(STUB, None, "console=ttyAMA0", flags=0)
        kernel.reboot_by_kexec()
        with pytest.raises(InputError, match="the kernel has been left by kexec"):
            kernel.panic()


def test_one_board_takes_one_kernel() -> None:
    with Board("512M") as board:
        Kernel.boot(board)
        with pytest.raises(
            InputError, match="a kernel runs on this board already: each needs a board of its own"
        ):
            Kernel.boot(board)


def test_leaving_a_with_block_closes_the_kernels_board() -> None:
    with Kernel.boot(Board("512M")) as kernel:
        assert not kernel.board.ram.closed
    assert kernel.board.ram.closed
    kernel.close()


@pytest.mark.parametrize(
    "act",
    [
        lambda kernel: kernel.kexec_file_load(STUB),
        lambda kernel: kernel.panic(),
        lambda kernel: kernel.board.ram.read(0x40000000, 1),
        lambda kernel: kernel.board.ram.write(0x40000000, b"x"),
        lambda kernel: kernel.board.boot_cpu.x(0),
        lambda kernel: kernel.board.boot_cpu.reset(0x40000000),
        lambda kernel: kernel.board.dma.write(0x40000000, b"x"),
        lambda kernel: Kernel.boot(kernel.board),
    ],
)
def test_a_closed_board_is_refused_in_words(act: Callable[[Kernel], object]) -> None:
    with Kernel.boot(Board("512M")) as kernel:
        pass
    with pytest.raises(InputError, match="the board is closed"):
        act(kernel)


# -- the package -----------------------------------------------------------------------------------------------------


def test_the_package_says_what_is_in_it() -> None:
    assert dir(kexecemu) == sorted([*kexecemu.__all__, "__version__"])
    assert re.match(r"\d+\.\d+|checkout", kexecemu.__version__)
    with pytest.raises(AttributeError, match="no attribute 'Kernal'"):
        kexecemu.Kernal  # noqa: B018
