"""The dump that `kexecemu crash --vmcore` writes, opened by tools that nobody here wrote.

A machine of two CPUs; one stray word is written before the crash, so that something in the dump can come from
nowhere but the run. (gdb takes what a core lacks from the vmlinux file without a word.)
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from tests.real.conftest import Command, DumpTools

pytestmark = pytest.mark.real

RAM_START, RAM_SIZE = 0x40000000, 256 << 20
STRAY_PHYS, STRAY = 0x44000000, bytes.fromhex("deadbeef")
# The way into the crash, innermost first. Inlining may hide others between them.
BACKTRACE = ["__crash_kexec", "panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger"]
PRSTATUS_PID, PRSTATUS_PC, PRSTATUS_SIZE = 32, 112 + 32 * 8, 392


@dataclass(frozen=True)
class Crash:
    """A dump and what kexecemu said of the run."""

    vmcore: Path
    report: dict[str, Any]

    @property
    def vmlinux(self) -> str:
        """The first kernel's ELF file."""
        path: str = self.report["vmlinux"]
        return path

    @property
    def log(self) -> list[str]:
        """What the first kernel printed, up to its last word."""
        lines = [line.rstrip("\r") for line in self.report["console"].split("\n")]
        return lines[: next(i for i, line in enumerate(lines) if line.endswith("Bye!")) + 1]


@pytest.fixture(scope="module")
def crash(command: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """Two CPUs, 256 MiB, a crash by sysrq, the stub as capture kernel."""
    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    machine = ("--cpus", "2", "--ram", "256M", "--cmdline", "crashkernel=64M")
    done = command("crash", *machine, "--write", f"{STRAY_PHYS:#x}={STRAY.hex()}", "--vmcore", path, "--json")
    assert done.status == 0, done.stderr
    assert done.json["vmcore"] == str(path)
    return Crash(path, done.json)


def notes(crash: Crash) -> list[tuple[str, int, bytes]]:
    """(owner, type, contents) of each note, as pyelftools reads them."""
    with open(crash.vmcore, "rb") as file:
        segments = [one for one in ELFFile(file).iter_segments() if one["p_type"] == "PT_NOTE"]
        assert len(segments) == 1, "a kernel makes one PT_NOTE of all of them"
        data = BytesIO(segments[0].data())
    found = []
    while header := data.read(12):
        namesz, descsz, kind = struct.unpack("<III", header)
        name = data.read(-(-namesz // 4) * 4)[:namesz].rstrip(b"\0").decode()
        found.append((name, kind, data.read(-(-descsz // 4) * 4)[:descsz]))
    return found


def in_order(wanted: list[str], names: list[str]) -> bool:
    """All of wanted occur in names, in that order."""
    rest = iter(names)
    return all(name in rest for name in wanted)


# -- binutils --------------------------------------------------------------------------------------------------


def readelf(crash: Crash, *options: str) -> str:
    program = shutil.which("readelf")
    if program is None:
        pytest.skip("readelf is not installed")
    done = subprocess.run(
        [program, "-W", *options, str(crash.vmcore)], capture_output=True, text=True, check=True
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_readelf_sees_an_arm64_core_that_holds_all_ram_but_the_crash_region(crash: Crash) -> None:
    header = readelf(crash, "-h")
    assert re.search(r"Type: +CORE", header) and re.search(r"Machine: +AArch64", header)
    loads = [
        [int(value, 16) for value in line.split()[1:6]]
        for line in readelf(crash, "-l").splitlines()
        if line.split()[:1] == ["LOAD"]
    ]
    text, *ram = loads
    assert text[1] >> 47 == 0x1FFFF, "the first one is the kernel's own mapping"
    for _, _, phys, filesz, memsz in loads:
        assert filesz == memsz and phys % 0x1000 == 0
    region = crash.report["crashkernel"]
    ends = [(phys, phys + memsz) for _, _, phys, _, memsz in ram]
    assert ends == [(RAM_START, region["start"]), (region["end"] + 1, RAM_START + RAM_SIZE)]
    # Each load begins where the one before it ends, and the last one ends the file.
    places = [(offset, offset + filesz) for offset, _, _, filesz, _ in loads]
    assert [start for start, _ in places[1:]] == [end for _, end in places[:-1]]
    assert places[-1][1] == crash.vmcore.stat().st_size


def test_readelf_sees_the_notes_of_both_cpus_and_vmcoreinfo(crash: Crash) -> None:
    lines = [line.split() for line in readelf(crash, "-n").splitlines()]
    rows = [(words[0], int(words[1], 16)) for words in lines if len(words) > 2 and words[1].startswith("0x")]
    assert [name for name, _ in rows] == ["CORE", "CORE", "VMCOREINFO"]
    assert [size for _, size in rows[:2]] == [PRSTATUS_SIZE] * 2


# -- gdb -------------------------------------------------------------------------------------------------------


def test_gdb_unwinds_the_crash_and_reads_the_stray_word(crash: Crash) -> None:
    program = shutil.which("gdb-multiarch") or shutil.which("gdb")
    if program is None:
        pytest.skip("gdb-multiarch is not installed")
    virt = f"(unsigned char[4])*(unsigned char*)(0xffff000000000000 + {STRAY_PHYS - RAM_START:#x})"
    commands = ["bt", f"output/x {virt}", "echo \\n", "output/d panic_cpu.counter"]
    setup = ["set width 0", f"file {crash.vmlinux}", f"core-file {crash.vmcore}"]
    words = [word for one in (*setup, *commands) for word in ("-ex", one)]
    done = subprocess.run([program, "-q", "-nx", "-batch", *words], capture_output=True, text=True)
    if "not supported" in done.stderr or "architecture" in done.stderr:
        pytest.skip("this gdb knows no arm64")
    frames = [line for line in done.stdout.splitlines() if line.startswith("#")]
    functions = [match[1] for frame in frames if (match := re.search(r"(?:in |#\d+ +)(\w+) \(", frame))]
    assert in_order(BACKTRACE, functions), done.stdout + done.stderr
    assert "{0xde, 0xad, 0xbe, 0xef}" in done.stdout
    # panic_cpu is -1 (PANIC_CPU_INVALID) in the file.
    assert done.stdout.splitlines()[-1] == "0"


# -- drgn, by both of its readers ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["0", "1"], ids=["drgn", "libkdumpfile"])
def prog(crash: Crash, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The dump in drgn, read by itself or by libkdumpfile."""
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed (pip install drgn)")
    import drgn

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRGN_USE_LIBKDUMPFILE_FOR_ELF", request.param)
        program = drgn.Program()
        program.set_core_dump(crash.vmcore)
        program.load_debug_info([crash.vmlinux])
        yield program


def test_drgn_lists_the_tasks(prog: Any) -> None:
    from drgn.helpers.linux.pid import for_each_task

    tasks = {task.pid.value_(): task.comm.string_().decode() for task in for_each_task(prog)}
    assert tasks[1] == "init" and tasks[2] == "kthreadd" and "bash" in tasks.values()


def test_drgn_reads_the_log_that_the_console_showed(crash: Crash, prog: Any) -> None:
    from drgn.helpers.linux.printk import get_dmesg

    assert get_dmesg(prog).decode().splitlines() == crash.log
    assert crash.log[-1].endswith("Bye!")


def test_drgn_unwinds_the_crashed_thread(crash: Crash, prog: Any) -> None:
    thread = prog.crashed_thread()
    names = [frame.name for frame in thread.stack_trace() if frame.name]
    assert in_order(BACKTRACE, names), names
    (pid,) = {int(words[1]) for line in crash.log if (words := re.search(r"PID: (\d+) Comm: ", line))}
    assert thread.tid == pid
    assert thread.object.comm.string_() == b"bash"
    # Its frames have lines of the source, so the crash notes hold what the CPU had.
    panicked = next(frame for frame in thread.stack_trace() if frame.name == "panic")
    assert panicked.source()[0].endswith("panic.c")


def test_drgn_unwinds_the_cpu_that_was_stopped(prog: Any) -> None:
    from drgn.helpers.linux.sched import idle_task

    names = [frame.name for frame in prog.stack_trace(idle_task(prog, 1))]
    assert "do_idle" in names, names


def test_the_crash_notes_in_memory_are_the_notes_of_the_core(crash: Crash, prog: Any) -> None:
    from drgn.helpers.linux.percpu import per_cpu_ptr

    prstatus = [contents for name, kind, contents in notes(crash) if (name, kind) == ("CORE", 1)]
    assert [struct.unpack_from("<I", one, PRSTATUS_PID)[0] for one in prstatus] == [
        prog.crashed_thread().tid,
        0,
    ]
    for cpu, contents in enumerate(prstatus):
        assert len(contents) == PRSTATUS_SIZE
        virt = per_cpu_ptr(prog["crash_notes"], cpu).value_()
        # Elf64_Nhdr, "CORE" padded to 8 bytes, then the contents.
        assert prog.read(virt + 20, PRSTATUS_SIZE) == contents
    where = [prog.symbol(struct.unpack_from("<Q", one, PRSTATUS_PC)[0]).name for one in prstatus]
    assert where[0] == "__crash_kexec"
    assert prog["panic_cpu"].counter.value_() == 0


def test_drgn_reads_the_stray_word_by_physical_and_by_virtual_address(prog: Any) -> None:
    from drgn.helpers.linux.mm import follow_phys

    assert prog.read(STRAY_PHYS, 4, True) == STRAY
    virt = 0xFFFF000000000000 + STRAY_PHYS - RAM_START
    assert prog.read(virt, 4) == STRAY
    # And by the dead kernel's own page tables, which a PT_LOAD could spare it.
    assert follow_phys(prog["init_mm"].address_of_(), virt).value_() == STRAY_PHYS


def test_drgn_refuses_a_dump_without_vmcoreinfo(crash: Crash, tmp_path: Path) -> None:
    """The tools are no rubber stamp: what they check in this dump does count."""
    drgn = pytest.importorskip("drgn")
    damaged = tmp_path / "vmcore"
    with open(crash.vmcore, "rb") as file:
        head = file.read(1 << 20)
    assert head.count(b"SYMBOL(swapper_pg_dir)") == 1
    damaged.write_bytes(head.replace(b"SYMBOL(swapper_pg_dir)", b"SYMBOL(swapper_pg_xxx)"))
    with pytest.raises(Exception, match="swapper_pg_dir"):
        drgn.Program().set_core_dump(damaged)


# -- crash, makedumpfile and vmcore-dmesg ----------------------------------------------------------------------


def test_vmcore_dmesg_prints_the_log(crash: Crash, dumptools: DumpTools, tmp_path: Path) -> None:
    done = dumptools.run("vmcore-dmesg", crash.vmcore, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == crash.log


def test_crash_opens_it_and_shows_tasks_backtrace_and_log(
    crash: Crash, dumptools: DumpTools, tmp_path: Path
) -> None:
    (tmp_path / "commands").write_text(f"ps\nbt\nlog\nrd -p {STRAY_PHYS:x} 1\nsys\nquit\n")
    done = dumptools.run("crash", "-s", "-i", "commands", crash.vmlinux, crash.vmcore, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    frames = [words[2] for line in lines if (words := line.split()) and words[0].startswith("#")]
    assert in_order(["machine_kexec", *BACKTRACE], frames), done.stdout
    tasks = [line.split()[-1] for line in lines if re.match(r"^>? +\d+ +\d+ +\d+ +[0-9a-f]{16} ", line)]
    assert {"init", "[kthreadd]", "bash", "[swapper/1]"} <= set(tasks)
    assert re.search(r"^> +57 .* RU .* bash$", done.stdout, re.MULTILINE), "the one that panicked runs"
    assert "\n".join(crash.log) in done.stdout
    word = int.from_bytes(STRAY + bytes(4), "little")
    assert re.search(rf"{STRAY_PHYS:x}: +{word:016x}", done.stdout)
    assert re.search(r"CPUS: 2", done.stdout)
    assert 'PANIC: "Kernel panic - not syncing: sysrq triggered crash"' in done.stdout


def crash_says(crash: Crash, dumptools: DumpTools, folder: Path, dump: Path, *commands: str) -> str:
    """What crash prints to each of the commands."""
    (folder / "commands").write_text("".join(f"{one}\n" for one in (*commands, "quit")))
    done = dumptools.run("crash", "-s", "-i", "commands", crash.vmlinux, dump, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_crash_knows_how_much_memory_there_was_and_when_it_was(
    crash: Crash, dumptools: DumpTools, tmp_path: Path
) -> None:
    said = crash_says(crash, dumptools, tmp_path, crash.vmcore, "sys", "kmem -i", "kmem -z")
    assert re.search(r"MEMORY: 256 MB$", said, re.MULTILINE)
    assert re.search(r"DATE: Sun Dec 11 \d\d:\d\d:\d\d UTC 2022$", said, re.MULTILINE)
    # Less than all: the crash region is not the first kernel's.
    match = re.search(r"TOTAL MEM +(\d+) +(\d+)(?:\.\d)? MB", said)
    assert match is not None, said
    assert 160 < int(match[2]) < 256 - 64
    assert re.findall(r'ZONE: \d .* NAME: "(\w+)"', said) == ["DMA", "DMA32", "Normal", "Movable"]


def test_crash_finds_the_sections_and_the_page_of_an_address(
    crash: Crash, dumptools: DumpTools, tmp_path: Path
) -> None:
    said = crash_says(crash, dumptools, tmp_path, crash.vmcore, "kmem -n", f"kmem -p {STRAY_PHYS:x}")
    sections = re.findall(
        r"^ *(\d+) +[0-9a-f]{16} +([0-9a-f]{16}) +([0-9a-f]{16}) +(\w+) +(\d+)", said, re.MULTILINE
    )
    assert [(int(number), state, int(pfn)) for number, _, _, state, pfn in sections] == [
        (8, "PMOE", 0x40000),
        (9, "PMOE", 0x48000),
    ]
    # 2 MiB of struct pages a section, from VMEMMAP_START on.
    assert [mem_map for _, _, mem_map, *_ in sections] == ["fffffc0000000000", "fffffc0000200000"]
    page = 0xFFFFFC0000000000 + (STRAY_PHYS - RAM_START) // 4096 * 64
    assert re.search(rf"^{page:016x} +{STRAY_PHYS:x} ", said, re.MULTILINE), said
    assert re.search(
        rf"^ +0 +DMA +{RAM_SIZE // 4096} +fffffc0000000000 +{RAM_START:x}", said, re.MULTILINE
    ), said


def test_makedumpfile_extracts_the_log(crash: Crash, dumptools: DumpTools, tmp_path: Path) -> None:
    done = dumptools.run("makedumpfile", "--dump-dmesg", crash.vmcore, tmp_path / "log", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().splitlines() == crash.log


@pytest.fixture(scope="module")
def filtered(crash: Crash, dumptools: DumpTools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump without zero, cache, user and free pages, compressed: what a capture kernel would store."""
    folder = tmp_path_factory.mktemp("filtered")
    done = dumptools.run("makedumpfile", "-c", "-d", "31", crash.vmcore, folder / "dump", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "dump"


def test_makedumpfile_makes_a_small_dump_of_it(crash: Crash, filtered: Path) -> None:
    with filtered.open("rb") as file:
        assert file.read(8) == b"KDUMP   "
    assert 0 < filtered.stat().st_size < crash.vmcore.stat().st_size // 50


def test_crash_opens_the_filtered_dump(
    crash: Crash, dumptools: DumpTools, filtered: Path, tmp_path: Path
) -> None:
    said = crash_says(crash, dumptools, tmp_path, filtered, "bt", "log", f"rd -p {STRAY_PHYS:x} 1")
    frames = [words[2] for line in said.splitlines() if (words := line.split()) and words[0].startswith("#")]
    assert in_order(["machine_kexec", *BACKTRACE], frames), said
    assert "\n".join(crash.log) in said
    # The stray word is in free memory, which is what the filter has left out.
    assert f"rd: page excluded: physical address: {STRAY_PHYS:x} " in said


# -- drgn and the memory map, in the dump as it is and as makedumpfile leaves it -----------------------------------


@pytest.fixture(scope="module", params=["whole", "filtered"])
def either(crash: Crash, request: pytest.FixtureRequest) -> Any:
    """The dump in drgn, and the one that makedumpfile has filtered."""
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    dump = crash.vmcore if request.param == "whole" else request.getfixturevalue("filtered")
    program.set_core_dump(dump)
    program.load_debug_info([crash.vmlinux])
    return program


def test_drgn_walks_all_struct_pages(either: Any) -> None:
    from drgn.helpers.linux.mm import PageReserved, for_each_page, page_to_phys, phys_to_page

    pages = list(for_each_page(either))
    assert len(pages) == RAM_SIZE // 4096
    first, last = pages[0], pages[-1]
    assert page_to_phys(first) == RAM_START and page_to_phys(last) == RAM_START + RAM_SIZE - 4096
    # The first page is free, and in the last is what memblock has given to the kernel itself.
    assert not PageReserved(first) and PageReserved(last)
    assert page_to_phys(phys_to_page(either, STRAY_PHYS)) == STRAY_PHYS


def test_drgn_names_the_state_of_each_section(either: Any) -> None:
    from drgn.helpers.linux.mmzone import decode_section_flags, nr_to_section

    states = {decode_section_flags(nr_to_section(either, number)) for number in (8, 9)}
    assert states == {"SECTION_MARKED_PRESENT|SECTION_HAS_MEM_MAP|SECTION_IS_ONLINE|SECTION_IS_EARLY"}
    assert not nr_to_section(either, 10).section_mem_map


def test_drgn_counts_the_node_s_pages_and_those_on_its_free_lists(either: Any) -> None:
    from drgn.helpers.linux.list import list_count_nodes
    from drgn.helpers.linux.mm import totalram_pages
    from drgn.helpers.linux.mmzone import for_each_online_pgdat
    from drgn.helpers.linux.vmstat import nr_free_pages

    (node,) = for_each_online_pgdat(either)
    assert node.node_present_pages == node.node_spanned_pages == RAM_SIZE // 4096
    assert totalram_pages(either) == sum(zone.managed_pages.counter.value_() for zone in node.node_zones)
    free = sum(
        list_count_nodes(head.address_of_()) << order
        for order, area in enumerate(node.node_zones[0].free_area)
        for head in area.free_list
    )
    assert free == nr_free_pages(either) == totalram_pages(either) - 1  # the tasks' page
