"""The printk ring in guest memory, read as prb_read() and dump tools read it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import boot, small

from kexecemu.kernel.boot.loglevel import LogLevel, level_of, split_level
from kexecemu.kernel.crash.host_calls import printk
from kexecemu.kernel.model import KernelModel

FINALIZED = 2
WRAP = 1 << 64
IDS = 1 << 62


def records(kernel: KernelModel) -> list[tuple[int, int, str]]:
    """(seq, nanoseconds, text) of all records from tail_id to head_id, by the names in the guest's layout."""
    guest, layout = kernel.guest, kernel.guest.vmlinux

    def u64(symbol: str, *members: tuple[str, str]) -> int:
        return guest.read(symbol, sum(layout.offsetof(*member) for member in members))

    ring, data = ("printk_ringbuffer", "desc_ring"), ("printk_ringbuffer", "text_data_ring")
    count = 1 << (u64("printk_rb_static", ring, ("prb_desc_ring", "count_bits")) & 0xFFFFFFFF)
    size = 1 << (u64("printk_rb_static", data, ("prb_data_ring", "size_bits")) & 0xFFFFFFFF)
    descs, infos = (
        guest.space.virt_to_phys(u64("printk_rb_static", ring, ("prb_desc_ring", name)))
        for name in ("descs", "infos")
    )
    text_phys = guest.space.virt_to_phys(u64("printk_rb_static", data, ("prb_data_ring", "data")))
    tail, head = (u64("printk_rb_static", ring, ("prb_desc_ring", name)) for name in ("tail_id", "head_id"))
    found = []
    for step in range((head - tail) % IDS + 1):
        record = (tail + step) % IDS
        state, begin, following = struct.unpack("<3Q", guest.ram.read(descs + record % count * 24, 24))
        if state != record | FINALIZED << 62:
            continue
        seq, ns, length = struct.unpack("<QQH", guest.ram.read(infos + record % count * 88, 18))
        if begin == following == 1:
            found.append((seq, ns, ""))
            continue
        # get_data(): a block in one lap, or one whose text is at the start of the next.
        if begin // size == following // size and begin < following:
            at, room = begin % size, following - begin
        else:
            assert (begin + size) % WRAP // size == following // size
            at, room = 0, following % size
        identity = struct.unpack("<Q", guest.ram.read(text_phys + at, 8))[0]
        assert identity == record and length <= room - 8
        found.append((seq, ns, guest.ram.read(text_phys + at + 8, length).decode()))
    return found


def console_lines(kernel: KernelModel) -> list[str]:
    lines = kernel.board.uart.text.replace("\r", "").splitlines()
    return [line.split("] ", 1)[1] for line in lines if line.startswith("[")]


def test_the_boot_s_messages_are_all_in_the_ring_numbered_from_0() -> None:
    kernel = small()
    got = records(kernel)
    assert [text for _, _, text in got] == console_lines(kernel)
    assert [seq for seq, _, _ in got] == list(range(len(got)))
    assert [ns for _, ns, _ in got] == sorted(ns for _, ns, _ in got)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 56, 120, 248, 500])
def test_a_full_ring_keeps_the_newest_messages_whole_and_in_order(length: int) -> None:
    """Lengths that fill the text buffer to the last byte are among them: such a block goes to the start."""
    kernel = small()
    before = len(console_lines(kernel))
    lines = [f"{number:04}".ljust(length, "x")[:length] for number in range(700)]
    for line in lines:
        kernel.log(line)
    got = records(kernel)
    assert [text for _, _, text in got] == lines[-len(got) :]
    assert [seq for seq, _, _ in got] == list(range(before + 700 - len(got), before + 700))
    # As many as there are descriptors, or as the text buffer of 16 KiB has room for, but for the wrap's waste.
    block = 8 + -(-length // 8) * 8
    assert len(got) >= min(128, (1 << 14) // block - 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=200), st.integers(0, 9))
def test_whatever_is_logged_the_ring_is_consistent_and_ends_with_the_newest(
    lengths: list[int], salt: int
) -> None:
    kernel = _shared()
    texts = [chr(ord("a") + (number + salt) % 26) * length for number, length in enumerate(lengths)]
    for text in texts:
        kernel.log(text)
    got = records(kernel)
    numbers = [seq for seq, _, _ in got]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    kept = min(len(got), len(texts))
    assert kept > 0 and [text for _, _, text in got][-kept:] == texts[-kept:]


_KERNELS: list[KernelModel] = []


def _shared() -> KernelModel:
    if not _KERNELS:
        _KERNELS.append(small())
    return _KERNELS[0]


def test_a_message_too_long_for_the_ring_is_counted_as_failed_and_still_printed() -> None:
    kernel = small()
    kernel.log("x" * 100_000)
    kernel.log("after")
    assert [text for _, _, text in records(kernel)][-2:] == ["", "after"]
    assert (
        kernel.guest.read("printk_rb_static", kernel.guest.vmlinux.offsetof("printk_ringbuffer", "fail")) == 1
    )
    assert "x" * 100_000 in kernel.board.uart.text


@pytest.mark.parametrize("garbage", [b"\xff" * 88, b"\xef\xbe\xad\xde" * 22, bytes(88)])
@pytest.mark.parametrize("symbol", ["printk_rb_static", "_printk_rb_static_descs", "__log_buf"])
def test_a_ring_that_was_stamped_on_loses_messages_but_not_the_console(symbol: str, garbage: bytes) -> None:
    kernel = small()
    kernel.ram.write(kernel.guest.phys(symbol), garbage)
    for number in range(300):
        kernel.log(f"line {number}")
    assert console_lines(kernel)[-1] == "line 299"


def test_time_stamps_on_the_console_are_in_seconds_and_microseconds() -> None:
    kernel = small()
    kernel.printk.log("late", 12_345_678_900, LogLevel.INFO)
    assert kernel.board.uart.text.replace("\r", "").endswith("[   12.345678] late\n")


# -- levels ------------------------------------------------------------------------------------------------------------


def levels(kernel: KernelModel) -> dict[str, int]:
    """The level of each record's text, by where the bits are in the layout."""
    guest, layout = kernel.guest, kernel.guest.vmlinux
    size, at = layout.sizeof("printk_info"), layout.offsetof("printk_info", "level")
    shift = layout.bitfield_shift("printk_info", "level")
    infos = guest.phys("_printk_rb_static_infos")
    texts = {seq: text for seq, _, text in records(kernel)}
    found = {}
    for index in range(128):
        info = infos + index * size
        text = texts.get(guest.ram.read_u64(info))
        if (
            text is not None and guest.ram.read_u64(info + 8 * 2) & 0xFFFF
        ):  # text_len; the rest was never used
            found[text] = guest.ram.read_u32(info + at // 4 * 4) >> (at % 4 * 8 + shift) & 7
    assert len(found) == len(set(texts.values()))
    return found


def test_a_crash_is_told_at_the_levels_of_a_real_kernel() -> None:
    """By pr_notice(), pr_emerg() and KERN_DEFAULT in the sources of 6.1, 6.12 and 7.3."""
    with boot(cpus=2, cmdline="crashkernel=64M rodata=of") as kernel:
        kernel.crash()
        found = levels(kernel)
        for start, level in (
            ("Linux version ", 5),
            ("Machine model: ", 6),
            ("Invalid option string for rodata", 4),
            ("crashkernel reserved: ", 6),
            ("Kernel command line: ", 5),
            ("smp: Brought up ", 6),
            ("sysrq: Trigger a crash", 6),
            ("Kernel panic - not syncing: ", 0),
            ("CPU: 0 PID: 57 ", 4),
            ("Hardware name: ", 4),
            ("Call trace:", 4),
            (" panic+", 4),
        ):
            (text,) = (text for text in found if text.startswith(start))
            assert found[text] == level, text
        assert not any("\x01" in text for text in found)
        assert "\x01" not in kernel.board.uart.text


def test_an_oops_is_told_at_the_levels_of_a_real_kernel() -> None:
    with boot(cmdline="oops=panic") as kernel:
        kernel.stray_write_virt(0x40, b"\0")
        found = levels(kernel)
        for start, level in (
            ("Unable to handle kernel NULL pointer", 1),
            ("Mem abort info:", 1),
            ("  FSC = ", 1),
            ("swapper pgtable: ", 1),
            ("[0000000000000040] pgd=", 1),
            ("Internal error: Oops: ", 0),
            ("pc : ", 4),
            ("x29: ", 4),
            ("Kernel panic - not syncing: Oops: Fatal exception", 0),
        ):
            (text,) = (text for text in found if text.startswith(start))
            assert found[text] == level, text


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("cannot allocate crashkernel low memory (size:0x8000000).", LogLevel.ERR),
        ("cannot allocate crashkernel (size:0x8000000)", LogLevel.WARNING),
        ("crashkernel: memory value expected", LogLevel.WARNING),
        ("crashkernel size resulted in zero bytes", LogLevel.INFO),
        ("cma: Failed to reserve 64 MiB on node -1", LogLevel.ERR),
        ("cma: Reserved 64 MiB at 0x000000007c000000", LogLevel.INFO),
        ("OF: reserved mem: Reserved memory: No reserved-memory node in the DT", LogLevel.INFO),
        ("OF: reserved mem: Reserved memory: unsupported node format, ignoring", LogLevel.ERR),
        ("OF: reserved mem: initialized node pool, compatible id shared-dma-pool", LogLevel.INFO),
        ("SMP: failed to stop secondary CPUs 1", LogLevel.WARNING),
        ('RNG is not initialised: omitting "rng-seed" property', LogLevel.NOTICE),
        ("Kernel command line: quiet", LogLevel.NOTICE),
        ("Invalid option string for rodata: 'x'", LogLevel.WARNING),
        ("crashkernel reservation failed - memory is in use.", LogLevel.WARNING),
        ("crashkernel CMA reservation failed: 64 MB requested", LogLevel.WARNING),
        ("crashkernel CMA reservation not supported", LogLevel.WARNING),
        ("crashkernel reserved: 0x0000000072c00000 - 0x000000007ac00000 (128 MB)", LogLevel.INFO),
        ("OF: fdt: Reserved memory: invalid reg property in 'x', skipping node.", LogLevel.ERR),
        ("OF: reserved mem: invalid size property in 'x' node.", LogLevel.ERR),
        ("OF: reserved mem: failed to allocate memory for node 'x': size 1 MiB", LogLevel.ERR),
        ("panic: Redirecting from CPU 0 to CPU 1 for crash kernel.", LogLevel.EMERG),
        ("panic: Redirected from CPU 0, skipping stack dump.", LogLevel.EMERG),
        ("panic: target CPU 1 is offline, continuing on CPU 0", LogLevel.WARNING),
        ("Some CPUs may be stale, kdump will be unreliable.", LogLevel.WARNING),
        ("SMP: stopping secondary CPUs", LogLevel.CRIT),
        ("ima: Error passing over kexec measurement buffer.", LogLevel.ERR),
        ("ima: impossible to appraise a kernel image without a file descriptor", LogLevel.ERR),
        ("Lockdown: kexec: kexec of unsigned images is restricted", LogLevel.NOTICE),
        ("kexec_file: Enforced kernel signature verification failed (-126).", LogLevel.NOTICE),
        ("kexec_file: kernel signature verification failed (-61).", LogLevel.DEBUG),
        ("", LogLevel.INFO),
    ],
)
def test_a_line_has_the_level_at_which_the_kernel_says_it(line: str, level: LogLevel) -> None:
    assert level_of(line) is level


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("\x010Kernel panic", (LogLevel.EMERG, "Kernel panic")),
        ("\x017x", (LogLevel.DEBUG, "x")),
        ("plain", (LogLevel.WARNING, "plain")),
        ("\x018x", (LogLevel.WARNING, "\x018x")),
        ("\x01", (LogLevel.WARNING, "\x01")),
        ("", (LogLevel.WARNING, "")),
    ],
)
def test_a_level_before_a_text_is_no_part_of_it(text: str, split: tuple[LogLevel, str]) -> None:
    assert split_level(text) == split


@pytest.mark.parametrize(
    ("number", "text"), [(0xFFFFFFFF, "-1"), (0x7FFFFFFF, "2147483647"), (5 << 32 | 1 << 31, "-2147483648")]
)
def test_a_format_takes_its_arguments_in_order_and_two_percent_signs_none(number: int, text: str) -> None:
    with small() as kernel:
        guest, cpu = kernel.guest, kernel.board.boot_cpu
        virt = guest.vmlinux.virt("stray_buffer")
        guest.ram.write(guest.phys("stray_buffer"), b"\x013%d %% %lx %s%%.\n\0")
        guest.ram.write(guest.phys("stray_buffer") + 64, b"some words\0")
        for index, value in enumerate((virt, number, 0xABC, virt + 64)):
            cpu.set_x(index, value)
        printk(kernel, cpu)
        assert records(kernel)[-1][2] == f"{text} % abc some words%."
        assert console_lines(kernel)[-1] == f"{text} % abc some words%."
