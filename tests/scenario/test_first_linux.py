"""A real first kernel: what it says is read as it means it, and a scenario of it says nothing without a meaning."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_header import build

from kexecemu import InputError, read_scenario
from kexecemu.cli import main
from kexecemu.data import shipped_scenarios
from kexecemu.linux.first_boot import ConsoleWatch
from kexecemu.linux.first_records import (
    KexecSaid,
    SaidHeader,
    SaidSegment,
    crash_kernel,
    iomem,
    parse_kexec,
    split_records,
)
from kexecemu.linux.first_store import GuestKernelMap, hang, store
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEndKind
from kexecemu.scenario.linux_setup import linux_setup
from kexecemu.scenario.read import find_scenario
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.setup import prepare

DATA = Path(__file__).parents[1] / "data/first-linux"
CONSOLES = ("6.1.192", "6.12.118")
HEAD = 'schema = 1\nname = "x"\n'
LINUX = HEAD + '[kernel]\nlinux = "fetched:kernel"\n'


def console(version: str) -> str:
    return gzip.decompress((DATA / f"console-{version}.txt.gz").read_bytes()).decode()


# -- records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", CONSOLES)
def test_each_record_is_what_lies_between_its_lines(version: str) -> None:
    text = console(version)
    records = split_records(text)
    assert sorted(records) == [
        "dmesg.txt",
        "fdt.dtb",
        "iomem.txt",
        "kexec.txt",
        "vmcoreinfo-address.txt",
        "vmcoreinfo.txt",
    ]
    for name, content in records.items():
        assert f"first: record {name}\n{content}first: end of {name}\n" in text
    assert records["vmcoreinfo.txt"].startswith("OSRELEASE=6.1")


def test_what_the_kernel_prints_into_a_record_is_taken_out_of_it() -> None:
    text = (
        "first: record iomem.txt\n"
        "40000000-5fffffff : System RAM\n"
        "[   10.047857] random: crng init done\n"
        "  51600000-5b5fffff : Crash kernel\n"
        "first: end of iomem.txt\n"
    )
    assert split_records(text)["iomem.txt"].splitlines() == [
        "40000000-5fffffff : System RAM",
        "  51600000-5b5fffff : Crash kernel",
    ]


def test_every_segment_has_the_name_of_what_kexec_put_there() -> None:
    said = parse_kexec(split_records(console("6.1.192"))["kexec.txt"])
    # kexec_load's own lines are the numbers; the names are told by others: kernel_segment, initrd, dtb, elfcorehdr.
    assert said.segments == [
        SaidSegment("kernel", 0x51600000, 0x1AB0000, 0x1A09FC0),
        SaidSegment("initrd", 0x530B0000, 0x1EB000, 0x1EAC00),
        SaidSegment("dtb", 0x5329B000, 0x1000, 0x7FC),
        SaidSegment("purgatory", 0x5329C000, 0x4000, 0x3558),
        SaidSegment("elfcorehdr", 0x5B5FF000, 0x1000, 0x400),
    ]
    assert said.entry == 0x5329C6A0


@pytest.mark.parametrize("version", CONSOLES)
def test_the_core_headers_cover_all_ram_but_the_crash_kernel(version: str) -> None:
    records = split_records(console(version))
    said = parse_kexec(records["kexec.txt"])
    region, low = crash_kernel(records["iomem.txt"])
    (ram,) = [area for _, area, name in iomem(records["iomem.txt"]) if name == "System RAM"]
    notes = [header for header in said.headers if header.type == 4]
    text, *loads = [header for header in said.headers if header.type == 1]
    assert (region is not None, low, len(notes)) == (True, None, 2)
    assert region is not None
    pieces = [PhysRange.of(load.phys, load.size) for load in loads]
    assert pieces == [PhysRange(ram.start, region.start), PhysRange(region.end, ram.end)]
    # One linear map, and the kernel's own mapping beside it.
    assert len({load.virt - load.phys for load in loads}) == 1
    assert text.virt - text.phys != loads[0].virt - loads[0].phys
    code = next(area for _, area, name in iomem(records["iomem.txt"]) if name == "Kernel code")
    assert PhysRange.of(text.phys, text.size).covers(code)


@pytest.mark.parametrize("version", CONSOLES)
def test_the_purgatorys_symbols_lie_in_its_segment_and_the_check_is_one_of_them(version: str) -> None:
    said = parse_kexec(split_records(console(version))["kexec.txt"])
    (purgatory,) = [one for one in said.segments if one.name == "purgatory"]
    area = PhysRange.of(purgatory.mem, purgatory.memsz)
    assert {"purgatory", "verify_sha256_digest", "arm64_kernel_entry"} <= set(said.symbols)
    assert all(area.covers(symbol) for symbol in said.symbols.values())
    assert not said.symbols["purgatory"].overlaps(said.symbols["verify_sha256_digest"])


def test_the_crash_kernels_low_part_is_the_lower_one() -> None:
    text = "40000000-ffffffff : System RAM\n  50000000-57ffffff : Crash kernel\n  e0000000-efffffff : Crash kernel\n"
    high, low = crash_kernel(text)
    assert (high, low) == (PhysRange(0xE0000000, 0xF0000000), PhysRange(0x50000000, 0x58000000))
    assert crash_kernel("40000000-ffffffff : System RAM\n") == (None, None)


def test_a_record_without_the_debugging_lines_is_refused() -> None:
    with pytest.raises(InputError, match="no kexec_load line"):
        parse_kexec("")
    text = split_records(console("6.1.192"))["kexec.txt"]
    with pytest.raises(InputError, match=r"segment\[4\]\.memsz"):
        parse_kexec(text.replace("segment[4].memsz", "segment[4].x"))
    with pytest.raises(InputError, match="what its segment at 0x5329b000 is"):
        parse_kexec(re.sub(r"dtb: +base \S+", "", text))


# -- marks -----------------------------------------------------------------------------------------------------


def test_a_mark_stops_at_the_end_of_its_line_however_it_comes() -> None:
    stops: list[str] = []
    marks = ConsoleWatch(lambda: stops.append(marks.hit or ""))
    marks.wanted = ("loaded", "] Bye!")
    for byte in b"first: loa":
        marks(bytes([byte]))
    marks(b"ded\r")
    assert stops == []
    marks(b"\n[    1.0] Bye!\r\nBye!\n")
    assert stops == ["first: loaded", "[    1.0] Bye!"]


def test_a_board_stops_for_a_mark_that_a_guest_prints() -> None:
    with Board("16M") as board:
        system = System(board)
        marks = ConsoleWatch(system.request_stop)
        marks.wanted = ("B",)
        board.uart.listeners.append(marks)
        # mov x1, #0x9000000; then A, \n, B, \n, C to the UART, and an endless loop.
        words = [0xD2A12001]
        for letter in b"A\nB\nC":
            words += [0x52800000 | letter << 5, 0x39000020, 0x14000001]  # mov w0; strb w0, [x1]; b .+4
        words += [0x14000000]
        board.ram.write(0x40000000, b"".join(word.to_bytes(4, "little") for word in words))
        board.boot_cpu.reset(0x40000000)
        end = system.run(10_000)
        assert (end.kind.value, board.uart.output) == ("stopped", b"A\nB\n")


# -- scenarios -------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return read_scenario(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[kernel]\nlinux = "fetched:kernel"\nera = "6.4"\n', "kernel.era means nothing"),
        ('[kernel]\nlinux = "x"\nprotection = "none"\n', "kernel.protection means nothing"),
        ('[kernel]\nlinux = "x"\nrng_ready = false\n', "kernel.rng_ready means nothing"),
        ('[kernel]\nlinux = "x"\n[kernel.config]\nZONE_DMA = "n"\n', "kernel.config means nothing"),
        ('[kernel]\nlinux = "x"\npurgatory = "default"\n', "kernel.purgatory is kexec-tools or none"),
        ('[kernel]\nlinux = "x"\npurgatory = true\n', "kernel.purgatory is kexec-tools or none"),
        ('[kernel]\nlinux = "x"\ncmdline = "crashkernel=64M quiet"\n', "no quiet, no loglevel="),
        ('[kernel]\nlinux = "x"\n[load]\ncapture = "stub"\n', "load.capture is linux"),
        (
            '[kernel]\nlinux = "x"\npurgatory = "kexec-tools"\n[load]\nsyscall = "kexec_file_load"\n',
            "kernel.purgatory: kexec-tools brings its own to kexec_load",
        ),
        ('[kernel]\nlinux = "x"\n[load]\ninitrd = "none"\n', "load.initrd"),
        ('[kernel]\nlinux = "x"\n[machine]\ndtb = "x"\n', "machine.dtb means nothing"),
        ('[kernel]\nlinux = "x"\n[crash]\nmessage = "x"\n', "crash.message means nothing"),
    ],
)
def test_a_key_that_means_nothing_to_a_real_first_kernel_is_refused(
    tmp_path: Path, text: str, key: str
) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, HEAD + text)
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_means_something_is_read(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        LINUX
        + """
        cmdline = "crashkernel=96M nokaslr"
        purgatory = "none"
        [machine]
        ram = "1G"
        cpus = 4
        stuck_cpus = [1, 3]
        [load]
        append = "console=ttyAMA0"
        """,
    )
    assert (scenario.kernel.linux, scenario.kernel.purgatory) == ("fetched:kernel", "none")
    assert scenario.machine.stuck_cpus == [1, 3]


def test_what_runs_the_model_says_that_it_cannot_run_a_real_kernel(tmp_path: Path) -> None:
    scenario = read(tmp_path, LINUX)
    with pytest.raises(InputError, match="first kernel is a real Linux"):
        prepare(scenario_setup(scenario, tmp_path))


def test_what_is_not_fetched_is_one_line_that_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEXECEMU_CACHE", str(tmp_path))
    for command in (["run", "linux-captures"], ["compare-linux"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run kexecemu fetch kernel" in line


def test_a_cpu_that_there_is_not_cannot_be_stuck(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(build(image_size=0x10000))
    scenario = read(
        tmp_path,
        HEAD + '[kernel]\nlinux = "Image"\n[load]\ninitrd = "Image"\n[machine]\ncpus = 2\nstuck_cpus = [2]\n',
    )
    with pytest.raises(InputError, match="the board has CPUs 0 to 1, not 2"):
        linux_setup(scenario_setup(scenario, tmp_path))


def test_those_that_ship_explain_themselves_and_say_what_to_fetch() -> None:
    names = [
        name for name in shipped_scenarios() if read_scenario(find_scenario(name)).kernel.linux is not None
    ]
    assert {"linux-captures", "linux-stamped-checked", "linux-stamped-unchecked"} <= set(names)
    for name in names:
        text = find_scenario(name).read_text()
        assert re.search(r"kexecemu fetch kernel\S* busybox kexec-tools\n", text)
        assert len(" ".join(re.findall(r"^# (.*)$", text, re.MULTILINE)).split()) >= 35


# -- a CPU that stores astray ----------------------------------------------------------------------------------

RAM, TEXT, DATA_AT = 0x40000000, 0x40010000, 0x40100000
SAID = KexecSaid(
    RAM,
    [],
    [SaidHeader(4, RAM, 0, 424), SaidHeader(1, TEXT, TEXT, 0x1000), SaidHeader(1, RAM, RAM, 16 << 20)],
    {},
)
IOMEM = "40000000-40ffffff : System RAM\n  40010000-40010fff : Kernel code\n"
STORES = (
    (0x39000001, 0xD65F03C0),
    (0x79000001, 0xD65F03C0),
    (0xB9000001, 0xD65F03C0),
    (0xF9000001, 0xD65F03C0),
)
PARK = (0xD503205F, 0xD503207F, 0x17FFFFFE)


@pytest.fixture
def standing() -> Iterator[SystemCpu]:
    """A CPU without its MMU, stopped in a loop of two branches; its text has stores that return, and a park loop."""
    with Board("16M") as board:
        words = [word for pair in STORES for word in (0xD503201F, *pair)] + [*PARK]
        board.ram.write(TEXT, b"".join(word.to_bytes(4, "little") for word in words))
        board.ram.write(RAM, (0x14000001).to_bytes(4, "little") + (0x17FFFFFF).to_bytes(4, "little"))
        cpu = board.boot_cpu
        cpu.reset(RAM)
        for number in range(31):
            cpu.set_x(number, 0x1111 * number)
        assert System(board).run(1001).kind is SystemEndKind.BUDGET
        yield cpu


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_stray_store_changes_memory_and_nothing_that_the_cpu_had(standing: SystemCpu, width: int) -> None:
    before = standing.registers()
    data = bytes(range(0x80, 0x90))
    assert store(standing, GuestKernelMap(SAID, IOMEM), DATA_AT, data, width) is None
    assert standing.ram.read(DATA_AT - 8, 32) == bytes(8) + data + bytes(8)
    assert standing.registers() == before
    # As many stores as that width takes, each with its return.
    assert standing.instructions == 1001 + 2 * 16 // width


def test_a_store_that_is_not_aligned_to_its_width_is_one_of_bytes(standing: SystemCpu) -> None:
    assert store(standing, GuestKernelMap(SAID, IOMEM), DATA_AT + 1, b"abcd", 4) is None
    assert standing.ram.read(DATA_AT, 6) == b"\0abcd\0"
    assert standing.instructions == 1001 + 2 * 4


def test_without_the_instructions_or_the_right_map_there_is_no_store(standing: SystemCpu) -> None:
    ram = standing.ram
    ram.write(TEXT, bytes(0x100))
    with pytest.raises(InputError, match="no store of 8 bytes"):
        store(standing, GuestKernelMap(SAID, IOMEM), DATA_AT, bytes(8), 8)
    elsewhere = KexecSaid(RAM, [], [*SAID.headers[:2], SaidHeader(1, RAM, RAM + 0x1000, 1 << 20)], {})
    with pytest.raises(InputError, match="linear map is not where"):
        store(standing, GuestKernelMap(elsewhere, IOMEM), DATA_AT, b"a", 1)
    with pytest.raises(InputError, match="names no kernel code"):
        store(standing, GuestKernelMap(SAID, ""), DATA_AT, b"a", 1)
    assert ram.read(DATA_AT, 8) == bytes(8)


def test_a_cpu_that_hangs_is_in_an_endless_loop_and_hears_no_interrupt(standing: SystemCpu) -> None:
    assert hang(standing, GuestKernelMap(SAID, IOMEM))
    assert standing.pstate & Pstate.I
    assert standing.ram.read(standing.pc, 12) == b"".join(word.to_bytes(4, "little") for word in PARK)
    memory = standing.ram.read(RAM, 1 << 20)
    for _ in range(3):
        assert standing.advance(standing.now + 100).kind.value == "idle"
    assert standing.ram.read(RAM, 1 << 20) == memory
