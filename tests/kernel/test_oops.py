"""What the kernel says of a fault: its kind, the walk of the tables, the call trace, and where in which function."""

from __future__ import annotations

import re
import struct
from itertools import pairwise

import pytest
from kernel_bench import IMAGE, INITRD, small

from kexecemu.kernel.crash.oops import call_trace, fault_report


@pytest.mark.parametrize(("page", "folded"), [("4K", 2), ("16K", 2), ("64K", 3)])
def test_the_walk_of_an_oops_names_every_level_and_a_folded_one_says_what_is_above_it(
    page: str, folded: int
) -> None:
    """p4d always, with 48 bits of 64 KiB pages, which are three levels, pud too (asm/pgtable-nop4d.h, -nopud.h)."""
    kernel = small("6.1", protection="pte", options={f"ARM64_{page}_PAGES": "y"})
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    assert not kernel.stray_write_virt(kernel.space.linear_virt(image.segments[2].mem), b"\xa5" * 4, 4)
    (line,) = re.findall(r"\[\w{16}\] (pgd=.*)", kernel.board.uart.text.replace("\r", ""))
    entries = [one.split("=") for one in line.split(", ")]
    assert [name for name, _ in entries] == ["pgd", "p4d", "pud", "pmd", "pte"]
    values = [value for _, value in entries]
    assert values == [values[0]] * (folded - 1) + values[folded - 1 :]
    assert len(set(values)) == 6 - folded


@pytest.mark.parametrize(
    ("fsc", "words"),
    [
        (0x04, "level 0 translation fault"),
        (0x07, "level 3 translation fault"),
        (0x09, "level 1 access flag fault"),
        (0x0E, "level 2 permission fault"),
        (0x10, "synchronous external abort"),
        (0x3F, "unknown 63"),
    ],
)
def test_the_fault_s_kind_is_told_in_words(fsc: int, words: str) -> None:
    kernel = small()
    lines = list(
        fault_report(kernel.guest, kernel.tables, kernel.guest.vmlinux.virt("_text"), 0x96000000 | fsc)
    )
    assert f"  FSC = 0x{fsc:02x}: {words}" in lines


# Frame records one behind the other, from a place in free memory on: (where x29 leads, lr), named for what they say.
@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([(1, ("panic", 8)), (0, ("panic", 8))], 2),  # x29 of 0 is the end
        ([(1, ("panic", 8)), (2, None), (0, ("panic", 8))], 1),  # and so is an lr of 0
        ([(1, ("panic", 8)), (2, ("__host_text_start", 0)), (0, ("panic", 8))], 1),  # whom the model called
        ([(1, ("panic", 8)), (2, ("__host_text_end", -1)), (0, ("panic", 8))], 1),
        ([(1, ("panic", 8)), (2, ("__host_text_end", 0)), (0, ("panic", 8))], 3),
        ([(1, ("panic", 8)), (2, ("__host_text_start", -1)), (0, ("panic", 8))], 3),
        ([(0x100000, ("panic", 8))], 1),  # there is no such memory
        ([(number + 1, ("panic", 8)) for number in range(40)], 32),
    ],
)
def test_a_call_trace_goes_to_the_end_of_the_stack_or_to_whom_the_model_called(
    records: list[tuple[int, tuple[str, int] | None]], said: int
) -> None:
    kernel = small()
    layout, base = kernel.guest.vmlinux, kernel.space.linear_virt(0x48000000)
    for number, (following, lr) in enumerate(records):
        virt = layout.virt(lr[0]) + lr[1] if lr is not None else 0
        frame = base + 16 * following if following else 0
        kernel.ram.write(0x48000000 + 16 * number, struct.pack("<QQ", frame, virt))
    rules = kernel.config.release.rules
    lines = list(call_trace(kernel.guest, rules, layout.virt("panic"), base, fault=True))
    assert lines[0] == "Call trace:" and len(lines) == 2 + said


def test_a_function_s_size_is_told_up_to_the_next_symbol_and_of_the_last_up_to_the_image_s_end() -> None:
    vmlinux = small().guest.vmlinux
    places = sorted({virt for name, virt in vmlinux.elf.symbols.items() if not name.startswith("$")})
    start, end = vmlinux.virt("_text"), vmlinux.virt("_end")
    inside = [virt for virt in places if start <= virt < end]
    for at, following in pairwise([*inside, end]):
        assert vmlinux.describe(at).split("+")[1] == f"0x0/{following - at:#x}"
    last = inside[-1]
    assert vmlinux.describe(end - 1).split("+")[1] == f"{end - 1 - last:#x}/{end - last:#x}"
    assert vmlinux.describe(end) == f"{end:#x}" and vmlinux.describe(start - 1) == f"{start - 1:#x}"


def test_a_task_s_stack_begins_below_the_registers_that_it_entered_the_kernel_with() -> None:
    """task_pt_regs(): struct pt_regs lies at the stack's end, and nobody writes there, or behind it."""
    kernel = small("6.1", protection="pte")
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    layout, size = kernel.guest.vmlinux, 16384
    task = kernel.task_virt("task_kworker")
    (stack,) = struct.unpack("<Q", kernel.guest.read_virt(task + layout.offsetof("task_struct", "stack"), 8))
    top = stack + size - layout.sizeof("pt_regs")
    behind = kernel.guest.read_virt(top, layout.sizeof("pt_regs") + 1024)
    assert not kernel.stray_write_virt(kernel.space.linear_virt(image.segments[2].mem), b"\xa5" * 4, 4)
    (sp,) = re.findall(r"\] sp : (\w{16})", kernel.board.uart.text)
    assert stack < int(sp, 16) <= top
    assert kernel.guest.read_virt(top, len(behind)) == behind
