"""What a guest says is believed where memory agrees, and ends in no traceback: every line of a console that is read."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import FormatError, InputError, KexecError, MachineError
from kexecemu.kbuild.qemu_dump import true_dump
from kexecemu.kbuild.qemu_ends import linux_end, store_fault
from kexecemu.linux.capture import DiskVmcore, LinuxEnd, _account, _Console
from kexecemu.linux.first_records import believed, crash_kernel, iomem, last_words, parse_kexec, split_records
from kexecemu.linux.first_store import GuestKernelMap
from kexecemu.machine.devices.disk import Disk

NUMBERS = [
    "99999999999999",
    "9" * 6000,
    "-1",
    "0",
    "18446744073709551616",
    "\u0663\u0664",
    "1e9",
    "",
    "0x10",
    " 5",
]
HEX = ["f" * 16, "f" * 17, "f" * 6000, "0", "", "-1", "g", "\u0661"]
LINES = (
    *(f"kdump: end: status 0, {number} bytes to /dev/vda" for number in NUMBERS),
    *(f"kexec_load: entry = 0x{a} flags = 0x{b} nr_segments = {n}" for a in HEX for b in HEX[:3] for n in NUMBERS),
    *(f"segment[0].{key} = 0x{a}" for key in ("mem", "memsz", "bufsz") for a in HEX),
    *(f"{a}-{b} : Crash kernel" for a in HEX for b in HEX),
    *(f"{a}-{b} : Kernel code" for a in HEX[:3] for b in HEX[:3]),
    *(f"Unable to handle kernel paging request at virtual address {a}" for a in HEX),
    *(f"  ESR = 0x{a}" for a in HEX),
    *(f"[    1.0] CPU: {number} PID: 1" for number in NUMBERS),
    *(f"kernel_segment: {a}\ninitrd: base {a}, \ndtb: base {a},\nelfcorehdr 0x{a}-0" for a in HEX),
    *(f"text_offset: {a}" for a in HEX),
    *(f"Elf header: p_type = {n}, p_offset = 0x{a} p_paddr = 0x{a} p_vaddr = 0x{a} p_filesz = 0x{a} p_memsz = 0x{a}"
      for a in HEX for n in NUMBERS),
    *(f"sym: x info: 1 other: 1 shndx: 1 value: 0 size: {a}\nsym: x value: {a} addr: 0" for a in HEX),
    "first: record iomem.txt", "first: end of iomem.txt", "first: record ", "first: end of ",
    "first: end: kexec failed", "first: Linux x is up",
    "kdump: Linux x is up", "Kernel panic - not syncing: ", "kdump: end: no /proc/vmcore",
)  # fmt: skip

READERS: dict[str, Callable[[str], object]] = {
    "records": split_records,
    "kexec -d": parse_kexec,
    "/proc/iomem": iomem,
    "the crash kernel's place": crash_kernel,
    "the last words": last_words,
    "a fault": store_fault,
    "a capture kernel in QEMU": lambda text: linux_end(text, panicked=True),
    "an end": lambda text: _end(text, b""),
    "the linear map": lambda text: GuestKernelMap(parse_kexec(text), text),
}


def _end(text: str, held: bytes) -> object:
    """The account of a capture kernel that has printed that, with that on its disk."""
    with Disk(1 << 16) as disk:
        disk.write(0, held)
        console = _Console(lambda: None)
        console(text.encode("utf-8", "replace") + b"\n")
        run = _account(LinuxEnd.DONE, "", 1, text, console, disk, [])
        assert run.vmcore is None or 0 <= run.vmcore.size <= disk.size
        return run


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LINES) | st.text(max_size=9), max_size=12))
def test_no_line_of_a_console_ends_in_a_traceback(reader, lines):
    text = "\n".join(lines)
    with contextlib.suppress(InputError, MachineError, KexecError):
        READERS[reader](text)


@pytest.mark.parametrize("line", LINES)
def test_no_single_line_does(line):
    for read in READERS.values():
        with contextlib.suppress(InputError, MachineError, KexecError):
            read(line)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "piece", ["first: record x\n", "Unable to handle kernel ", "header: ", "\n", "[    1.0", "sym: "]
)
def test_a_flood_takes_no_more_than_its_length(reader, piece):
    begin = time.process_time()
    with contextlib.suppress(InputError, MachineError, KexecError):
        READERS[reader](piece * 60_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("number", ["65537", "99999999999999", "9" * 6000, "-1", "\u0663"])
def test_a_dump_of_which_the_disk_cannot_hold_so_much_is_none(number):
    run = _end(f"kdump: end: status 0, {number} bytes to /dev/vda", b"")
    assert run.vmcore is None and run.read == []


def _core(*loads: tuple[int, int, int]) -> bytes:
    """A core with these program headers: type, offset, size."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 183, 1, 0, 64, 0, 0, 64, 56, len(loads), 0, 0, 0)
    for kind, offset, size in loads:
        head += struct.pack("<IIQQQQQQ", kind, 7, offset, 0, 0x40000000, size, size, 0)
    return head


@pytest.mark.parametrize(
    "loads",
    [
        [(1, 0, 1 << 63)],
        [(1, (1 << 64) - 1, 1)],
        [(1, 0, 0x8000)] * 200,
        [(4, 0, 1 << 62)],
        [(4, 0, 0x8000)] * 200,
        [(1, 1 << 63, 512)],
    ],
)
def test_no_more_is_read_of_a_dump_than_there_is(loads, tmp_path: Path):
    data = _core(*loads)
    run = _end("kdump: end: status 0, 65536 bytes to /dev/vda", data)
    assert run.read == []
    with Disk(1 << 16) as disk:
        disk.write(0, data)
        with pytest.raises((FormatError, MachineError)):
            DiskVmcore(disk, 1 << 16).headers()
            DiskVmcore(disk, 1 << 16).loads()
    (tmp_path / "disk").write_bytes(data.ljust(1 << 16, b"\0"))
    assert not true_dump(tmp_path / "disk", "status 0, 65536 bytes to /dev/vda", [])


def test_what_memory_does_not_agree_with_is_one_line():
    for error in (MachineError("a"), KexecError(22, "b", "c"), ValueError("d"), KeyError("e")):
        with (
            pytest.raises(InputError, match=r"^the first Linux has loaded no crash kernel as it says: "),
            believed(),
        ):
            raise error
    with pytest.raises(InputError, match=r"^as it is$"), believed():
        raise InputError("as it is")


def test_records_are_read_whatever_stands_between():
    text = "x\nfirst: record a\n1\n[    1.000000] y\n2\nfirst: end of a\n"
    text += "first: record b\nfirst: record c\n3\nfirst: end of c\n"
    assert split_records(text) == {"a": "1\n2\n", "c": "3\n"}


def test_the_last_words_are_not_those_of_the_records_that_follow() -> None:
    console = "Cannot reserve\nfirst: Linux 6.1 is up\nMemory for crashkernel is not reserved\n"
    record = "first: record dmesg.txt\n[    0.000000] x\nfirst: end of dmesg.txt\n"
    end = "first: end: kexec failed with status 255"
    assert last_words(f"{console}{record}{end}") == last_words(console + end)
    assert "not reserved" in last_words(console + end)


def test_of_a_panic_its_own_line_is_told_and_not_that_of_its_end() -> None:
    console = (
        "Linux\n[ 0.2] Kernel panic - not syncing: Requested init /nope failed (error -2).\n"
        "[ 0.2] CPU: 0\n[ 0.3] ---[ end Kernel panic"
    )
    said = "[ 0.2] Kernel panic - not syncing: Requested init /nope failed (error -2)."
    assert last_words(console) == said
    assert last_words(console.partition("\n[ 0.3]")[0]) == said
