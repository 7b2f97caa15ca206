"""Wrong arguments to the library: one sentence each, that names what is wrong; or they are simply taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kexecemu import (
    Board,
    By,
    Fault,
    InputError,
    Kernel,
    KernelConfig,
    KexecemuError,
    When,
    read_scenario,
    run_scenario,
    testing,
)
from kexecemu.data import fixture_path
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.load.files import OpenFile
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.signature import verify_pefile_signature
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.setup import Setup, prepare

STUB = fixture_path("guests/capture-Image")
CMDLINE = "crashkernel=64M rodata=off"
ODD: Any = 5  # what no type checker would let through


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A kernel with a crash image, which refused arguments leave as it is."""
    with Kernel.boot(Board("512M"), cmdline=CMDLINE) as booted:
        booted.kexec_file_load(STUB)
        yield booted


NO_BOARD: list[tuple[str, Callable[[], object], str]] = [
    ("no RAM", lambda: Board(None), "not a size: None"),
    ("RAM of 1.5", lambda: Board(1.5), "not a size: 1.5"),
    ("RAM of yes", lambda: Board(True), "not a size: True"),
    ("RAM of a name", lambda: Board(["1G"]), "ram: PhysRange is wanted, not str '1G'"),
    ("no banks", lambda: Board([]), "a board needs at least one bank of RAM"),
    (
        "banks that overlap",
        lambda: Board([PhysRange(0x40000000, 0x40002000), PhysRange(0x40001000, 0x40003000)]),
        "overlap",
    ),
    ("CPUs as text", lambda: Board(cpus="2"), "cpus: a whole number is wanted, not str '2'"),
    ("no CPUs", lambda: Board(cpus=0), "a board has 1 to 123 CPUs, not 0"),
    ("a GIC as text", lambda: Board(gic="3"), "gic: a whole number is wanted, not str '3'"),
    ("an odd base", lambda: Board(ram_base=5), "ram_base: 0x5 is not the start of a page"),
    ("a base below zero", lambda: Board(ram_base=-4096), "ram_base: -4096 is less than 0"),
    ("an era as a number", lambda: KernelConfig(6.4), "era: a string is wanted, not float 6.4"),
    ("an era that is none", lambda: KernelConfig("5"), "era '5' is not modelled; known are 6.1"),
    ("protection 5", lambda: KernelConfig(protection=ODD), "protection: a string is wanted, not int 5"),
    (
        "purgatory 5",
        lambda: KernelConfig(purgatory=ODD),
        "purgatory: bool or str or Path is wanted, not int 5",
    ),
    ("a list of options", lambda: KernelConfig(options=["ZONE_DMA=n"]), "options: Mapping is wanted"),
    (
        "an option of True",
        lambda: KernelConfig(options={"KFENCE": True}),
        "config option KFENCE: a string is wanted",
    ),
    ("no board", lambda: Kernel.boot("1G"), "board: Board is wanted, not str '1G'"),
    (
        "an era for a configuration",
        lambda: Kernel.boot(Board("512M"), "6.4"),
        "config: KernelConfig is wanted",
    ),
    (
        "a command line of 5",
        lambda: Kernel.boot(Board("512M"), cmdline=ODD),
        "cmdline: a string is wanted, not int 5",
    ),
    (
        "half a character",
        lambda: Kernel.boot(Board("512M"), cmdline="\ud800"),
        "cmdline: '\\ud800' holds half a character",
    ),
    ("a seed as text", lambda: Kernel.boot(Board("512M"), seed="1"), "seed: a whole number is wanted"),
    (
        "a device tree of 5",
        lambda: Kernel.boot(Board("512M"), dtb=ODD),
        "device tree: bytes or a path are wanted, not int 5",
    ),
    (
        "no such tree",
        lambda: Kernel.boot(Board("512M"), dtb="/no/such"),
        "device tree /no/such: No such file or directory",
    ),
    (
        "junk for a tree",
        lambda: Kernel.boot(Board("512M"), dtb=b"junk"),
        "4 bytes are too short for a header",
    ),
    (
        "no such purgatory",
        lambda: Kernel.boot(Board("512M"), KernelConfig(purgatory="/no/such")),
        "purgatory /no/such: No such",
    ),
    ("Fdt(5)", lambda: Fdt(ODD), "device tree: bytes or a path are wanted, not int 5"),
    ("Fdt of no file", lambda: Fdt("/no/such"), "device tree /no/such: No such file or directory"),
    ("Fdt of a folder", lambda: Fdt(Path("/")), "device tree /: is a directory"),
    ("Fdt of a NUL", lambda: Fdt("a\0b"), "device tree 'a\\x00b': embedded null byte"),
    ("an open file of 5", lambda: OpenFile(ODD), "file: bytes or a path are wanted, not int 5"),
    (
        "no image",
        lambda: verify_pefile_signature(ODD, Keyring.of("x", [])),
        "image: bytes or a path are wanted, not int 5",
    ),
    ("no keyring", lambda: verify_pefile_signature(b"x", ODD), "keyring: Keyring is wanted, not int 5"),
    ("a fault nowhere", lambda: Fault(None, flip=1), "fault: at: a string is wanted, not None"),
    (
        "a fault of text",
        lambda: Fault("dtb", write="ff"),
        'fault at dtb: write: bytes are wanted, as b"\\xff", not str',
    ),
    (
        "a fault by nobody",
        lambda: Fault("dtb", flip=1, by="x"),
        "fault at dtb: by: 'x' is not one of cpu, alias, dma, late-cpu",
    ),
    (
        "a fault at no moment",
        lambda: Fault("dtb", flip=1, when="x"),
        "when: 'x' is not one of during-load, after-load, before-panic, during-panic, at-jump, hashing, after-check",
    ),
    ("a mask as text", lambda: Fault("dtb", flip="1"), "fault at dtb: flip: a whole number is wanted"),
    ("Setup(kernel=5)", lambda: Setup(kernel=ODD), "kernel: a path is wanted, not int 5"),
    (
        "Setup(kernel=bytes)",
        lambda: Setup(kernel=bytes(99)),
        "kernel: a path is wanted, not bytes <0x63 bytes>",
    ),
    ("Setup(append=5)", lambda: Setup(append=ODD), "append: a string is wanted, not int 5"),
    ("Setup(seed='1')", lambda: Setup(seed="1"), "seed: a whole number is wanted, not str '1'"),
    ("prepare(5)", lambda: prepare(ODD), "setup: Setup is wanted, not int 5"),
    ("run(5)", lambda: testing.run(ODD), "scenario: str or Path is wanted, not int 5"),
    ("run of no scenario", lambda: testing.run("nope"), "no scenario 'nope': give a .toml file or one of"),
    ("run(faults=5)", lambda: testing.run(faults=ODD), "faults: Sequence is wanted, not int 5"),
    ("run(faults=text)", lambda: testing.run(faults="dtb=ff"), "fault: Fault is wanted, not str 'd'"),
    ("run(ram=1.5)", lambda: testing.run(ram=1.5), "not a size: 1.5"),
    (
        "run(kernel=missing)",
        lambda: testing.run(kernel="/no/such"),
        "kernel /no/such: No such file or directory",
    ),
    ("run(config=5)", lambda: testing.run(config=ODD), "config: Mapping is wanted, not int 5"),
    ("board(5.5)", lambda: testing.board(5.5), "not a size: 5.5"),
    ("campaign(5)", lambda: testing.campaign(ODD), "scenario: str or Path is wanted, not int 5"),
    (
        "campaign(faults=text)",
        lambda: testing.campaign("campaign-16m", faults="x"),
        "faults: a whole number is wanted",
    ),
    (
        "campaign(only=5)",
        lambda: testing.campaign("campaign-16m", only=ODD),
        "only: a string is wanted, not int 5",
    ),
    ("an end that is none", lambda: testing.assert_outcome(ODD, "captured"), "end: End is wanted, not int 5"),
    (
        "a summary that is none",
        lambda: testing.assert_no(ODD, "silent"),
        "summary: Summary is wanted, not int 5",
    ),
    ("a failure of none", lambda: testing.failure_text(ODD, []), "end: End is wanted, not int 5"),
    ("read_scenario(5)", lambda: read_scenario(ODD), "scenario: str or Path is wanted, not int 5"),
    (
        "read_scenario(missing)",
        lambda: read_scenario(Path("/no/such.toml")),
        "scenario /no/such.toml: No such file",
    ),
    ("run_scenario(5)", lambda: run_scenario(ODD), "scenario: str or Path is wanted, not int 5"),
    ("run_scenario(folder=5)", lambda: run_scenario("golden", ODD), "folder: a path is wanted, not int 5"),
]

OF_A_KERNEL: list[tuple[str, Callable[[Kernel], object], str]] = [
    ("load 5", lambda k: k.kexec_file_load(ODD), "kernel: bytes or a path are wanted, not int 5"),
    ("load no file", lambda k: k.kexec_file_load("/no/such"), "kernel /no/such: No such file or directory"),
    ("load a folder", lambda k: k.kexec_file_load(Path("/")), "kernel /: is a directory"),
    ("load a list", lambda k: k.kexec_file_load([bytes(99)]), "not list [<0x63 bytes>]"),
    (
        "load an initrd of 5",
        lambda k: k.kexec_file_load(STUB, ODD),
        "initrd: bytes or a path are wanted, not int 5",
    ),
    (
        "load by a command line of 5",
        lambda k: k.kexec_file_load(STUB, None, ODD),
        "cmdline: a string is wanted, not int 5",
    ),
    (
        "load by flags of x",
        lambda k: k.kexec_file_load(STUB, None, None, "x"),
        "flags: a whole number is wanted, not str 'x'",
    ),
    ("kexec_load 5", lambda k: k.kexec_tools_load(ODD), "kernel: bytes or a path are wanted, not int 5"),
    (
        "kexec_load without a line",
        lambda k: k.kexec_tools_load(STUB, None, None),
        "cmdline: a string is wanted, not None",
    ),
    ("write nowhere", lambda k: k.stray_write("nope", b"x"), "target nope: no such segment or symbol"),
    ("write text", lambda k: k.stray_write("dtb", "ff"), "fault at dtb: write: bytes are wanted"),
    (
        "write by 3",
        lambda k: k.stray_write("dtb", b"x", width=3),
        "a store is 1, 2, 4 or 8 bytes wide, not 3",
    ),
    ("write below zero", lambda k: k.stray_write(-5, b"x"), "target '-0x5' is neither NAME, NAME+OFFSET nor"),
    ("write beyond", lambda k: k.dma_write("dtb+0xfffffff", b"x"), "do not fit in the"),
    ("DMA at no moment", lambda k: k.dma_write("dtb", b"x", when="x"), "when: 'x' is not one of"),
    ("flip nothing", lambda k: k.flip("dtb", 0), "flip is a mask of bits in one byte, 0x01 to 0xff"),
    ("inject text", lambda k: k.inject("dtb=ff"), "fault: Fault is wanted, not str 'dtb=ff'"),
    ("panic 5", lambda k: k.panic(ODD), "message: a string is wanted, not int 5"),
]


@pytest.mark.parametrize(("act", "words"), [row[1:] for row in NO_BOARD], ids=[row[0] for row in NO_BOARD])
def test_what_makes_no_sense_is_refused_in_a_sentence(act: Callable[[], object], words: str) -> None:
    with pytest.raises(KexecemuError) as refused:
        act()
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("act", "words"), [row[1:] for row in OF_A_KERNEL], ids=[row[0] for row in OF_A_KERNEL]
)
def test_a_kernel_refuses_it_in_a_sentence_too(
    kernel: Kernel, act: Callable[[Kernel], object], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        act(kernel)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert kernel.image is not None, "and the loaded image stays"


def test_files_are_taken_by_their_paths_as_well(tmp_path: Path) -> None:
    images = []
    for given in (STUB.read_bytes(), STUB, str(STUB), bytearray(STUB.read_bytes()), OpenFile(STUB)):
        with Kernel.boot(Board("512M"), cmdline=CMDLINE) as kernel:
            image = kernel.kexec_file_load(given, given)
            assert image is not None
            images.append(image.digest)
            tree = kernel.initial_boot_params
    assert len(set(images)) == 1
    blob = tmp_path / "board.dtb"
    blob.write_bytes(tree)
    assert Fdt(blob).data == Fdt(str(blob)).data == Fdt(tree).data
    with Kernel.boot(Board("512M"), dtb=blob, cmdline=None) as kernel:
        assert kernel.crashk_res is not None


def test_words_and_numbers_of_a_fault_are_taken() -> None:
    fault = Fault(0x7EA00010, write=bytearray(b"x"), by="dma", when="after-check")
    assert (fault.at, fault.write, fault.by, fault.when) == ("0x7ea00010", b"x", By.DMA, When.AFTER_CHECK)


def test_a_scenario_is_taken_by_its_name_its_path_or_as_it_was_read() -> None:
    path = fixture_path("scenarios/initrd-stamped.toml")
    ends = [
        run_scenario(one).end for one in ("initrd-stamped", path, str(path), read_scenario("initrd-stamped"))
    ]
    assert [end.console for end in ends] == [ends[0].console] * 4
    assert testing.run(path, faults=Fault("dtb", flip=1)).damage != ends[0].damage


def test_a_dump_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    dump = run_scenario("golden").end.vmcore
    assert dump is not None
    with pytest.raises(FileNotFoundError) as missing:
        dump.write(tmp_path / "no" / "dump")
    assert missing.value.filename == str(tmp_path / "no" / "dump")
