"""The crash path: notes, vmcoreinfo, messages, stopped CPUs, and what is left when the kernel itself was stamped on."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import IMAGE, INITRD, boot, small
from prstatus import parse_prstatus

from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.kernel.crash.smp import _cpu_list
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.cpu.stop import CpuStopKind


def loaded(era: str = "6.4", **arguments: object) -> tuple[KernelModel, Kimage]:
    kernel = small(era, **arguments)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    return kernel, image


def console(kernel: KernelModel) -> list[str]:
    """Lines without time stamps."""
    return [
        re.sub(r"^\[.{12}\] ", "", line) for line in kernel.board.uart.text.replace("\r", "").splitlines()
    ]


def note_areas(image: Kimage) -> list[tuple[int, int]]:
    """(physical address, size) of every PT_NOTE of the core header: CPUs first, then vmcoreinfo."""
    core = image.segment("elfcorehdr")
    assert core is not None
    return [
        (one.paddr, one.memsz) for one in parse_core_header(bytes(core.buf)).program_headers if one.type == 4
    ]


# -- the jump --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["6.1", "6.4", "6.12"])
@pytest.mark.parametrize("purgatory", [True, None])
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_panic_enters_the_image_as_the_boot_protocol_wants(
    era: str, purgatory: bool | None, cpus: int
) -> None:
    kernel, image = loaded(era, purgatory=purgatory, cpus=cpus)
    stop = kernel.crash()
    cpu = kernel.board.boot_cpu
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)
    assert [cpu.x(number) for number in range(4)] == [image.dtb_mem, 0, 0, 0]
    assert cpu.sysreg("SCTLR_EL1") & 1 == 0 and cpu.pstate & 0x3CF == 0x3C5  # MMU off; EL1h, DAIF masked
    assert not any(other.powered for other in kernel.board.cpus[1:])


@pytest.mark.parametrize(
    ("era", "line", "mark"),
    [
        ("6.1", r"CPU: 0 PID: \d+ Comm: bash Kdump: loaded Not tainted \S+ #1", ""),
        ("6.12", r"CPU: 0 UID: 0 PID: \d+ Comm: bash Kdump: loaded Not tainted \S+ #1", ""),
        ("7.3", r"CPU: 0 UID: 0 PID: \d+ Comm: bash Kdump: loaded Not tainted \S+ #1 PREEMPT", " (C)"),
    ],
)
def test_the_messages_of_a_panic_are_the_real_kernel_s_in_its_order(era: str, line: str, mark: str) -> None:
    """Those of Linux 6.1.192's, 6.12.117's and 7.3.4's consoles at the same sysrq, but for the backtrace's symbols."""
    kernel, _ = loaded(era, cpus=2)
    kernel.crash()
    lines = console(kernel)
    said = lines[lines.index("sysrq: Trigger a crash") :]
    assert said[1] == "Kernel panic - not syncing: sysrq triggered crash"
    assert re.fullmatch(line, said[2])
    assert said[3] == "Hardware name: linux,dummy-virt (DT)"
    assert said[4] == "Call trace:"
    trace = said[5:-3]
    assert trace[0].endswith(mark) and not any(")" in one for one in trace[1:])
    for one in trace:
        words = re.fullmatch(r" (\w+)\+0x([0-9a-f]+)/0x([0-9a-f]+)(?: \(C\))?", one)
        assert words is not None, one
        # A return address: behind a call, and in the function or at its end.
        assert 4 <= int(words[2], 16) <= int(words[3], 16), one
    assert said[-3:] == ["SMP: stopping secondary CPUs", "Starting crashdump kernel...", "Bye!"]


def test_a_panic_of_one_s_own_words_says_them() -> None:
    kernel, image = loaded()
    assert kernel.crash("VFS: Unable to mount root fs").pc == image.start
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in console(kernel)
    assert "sysrq: Trigger a crash" not in console(kernel)


def test_without_an_image_the_panic_stays_in_the_first_kernel() -> None:
    kernel = small(cpus=2)
    stop = kernel.crash()
    assert (stop.kind, stop.pc) == (CpuStopKind.BREAKPOINT, kernel.guest.vmlinux.virt("panic_no_kexec"))
    assert "Starting crashdump kernel..." not in console(kernel)


# -- notes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_every_cpu_leaves_a_note_with_its_own_registers(cpus: int) -> None:
    kernel, image = loaded(cpus=cpus)
    idle = [(cpu.pc, cpu.sp) for cpu in kernel.board.cpus]
    kernel.crash()
    areas = note_areas(image)
    assert len(areas) == cpus + 1
    for index, (phys, size) in enumerate(areas[:cpus]):
        assert (phys, size) == (kernel.crash_notes_phys(index), 424)
        raw = kernel.ram.read(phys, size)
        notes = list(iterate_notes(raw))
        assert [(note.name, note.type, len(note.desc)) for note in notes] == [("CORE", 1, 392)]
        assert raw.endswith(bytes(12))  # the empty note that ends the list
        status = parse_prstatus(notes[0].desc)
        pc, sp = status.regs[32], status.regs[31]
        if index:
            assert (pc, sp) == idle[index]  # interrupted in the idle loop
            assert status.pid == 0
        else:
            assert kernel.guest.vmlinux.describe(pc).startswith(
                ("panic+", "crash_setup_regs+", "__crash_kexec+")
            )
            assert status.pid == 57
        assert status.regs[33] & 0xF == 5  # EL1h


def test_the_note_of_an_oops_holds_the_registers_of_the_faulting_store() -> None:
    kernel, image = loaded("6.1", cpus=2, protection="pte")
    # panic_on_oops in the guest's own memory, as oops=panic on the command line sets it.
    kernel.guest.write_u32("panic_on_oops", 1)
    target = kernel.space.linear_virt(image.segments[2].mem)
    assert not kernel.stray_write_virt(target, b"\xa5" * 4, 4)
    assert kernel.dying
    assert kernel.crash().pc == image.start
    status = parse_prstatus(next(iterate_notes(kernel.ram.read(*note_areas(image)[0]))).desc)
    assert kernel.guest.vmlinux.describe(status.regs[32]).startswith("stray_write+")
    assert status.regs[0] == target and status.regs[10] == 0xA5A5A5A5
    assert status.pid == 9


# -- vmcoreinfo ------------------------------------------------------------------------------------------------


def test_vmcoreinfo_goes_over_to_the_safe_copy_and_gets_its_crashtime() -> None:
    kernel, image = loaded()
    boot_copy_virt = kernel.guest.read("vmcoreinfo_data")
    before = kernel.vmcoreinfo()
    # A stray write into the boot's copy comes too late: the safe copy is in the crash region.
    kernel.ram.write(kernel.space.virt_to_phys(boot_copy_virt), b"X" * 64)
    kernel.crash()
    phys, size = note_areas(image)[-1]
    note = next(iterate_notes(kernel.ram.read(phys, size)))
    assert (note.name, note.type, size) == ("VMCOREINFO", 0, 4132)
    text = note.desc.rstrip(b"\0")
    assert text.startswith(before) and re.fullmatch(rb"CRASHTIME=\d+\n", text[len(before) :])
    assert kernel.guest.read("vmcoreinfo_data") == kernel.space.linear_virt(image.vmcoreinfo_safecopy)
    assert kernel.ram.read(image.vmcoreinfo_safecopy, len(text)) == text


def test_crashtime_is_no_harm_to_any_segment() -> None:
    """The one legitimate write into the crash region after the load."""
    kernel, image = loaded()
    kernel.crash()
    for one in image.segments:
        assert kernel.ram.read(one.mem, one.memsz) == one.content(), one.name


def test_vmcoreinfo_says_what_a_real_kernel_s_says_about_the_address_space() -> None:
    kernel, _ = loaded()
    lines = dict(line.split("=", 1) for line in kernel.vmcoreinfo().decode().splitlines())
    assert lines["PAGESIZE"] == "4096" and lines["NUMBER(VA_BITS)"] == "48"
    assert lines["NUMBER(PHYS_OFFSET)"] == "0x40000000" and lines["NUMBER(TCR_EL1_T1SZ)"] == "0x10"
    virt = kernel.guest.vmlinux.virt("_stext")
    assert lines["SYMBOL(_stext)"] == f"{virt:x}"
    assert int(lines["NUMBER(kimage_voffset)"], 16) == (virt - kernel.guest.phys("_stext")) % (1 << 64)
    assert re.fullmatch(r"[0-9a-f]{40}", lines["BUILD-ID"])


# -- an oops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protection", "headline", "esr", "status", "entry_bits"),
    [
        ("pte", "Unable to handle kernel paging request", 0x96000047, "level 3 translation fault", (0, 1)),
        (
            "readonly",
            "Unable to handle kernel write to read-only memory",
            0x9600004F,
            "level 3 permission fault",
            (1, 1),
        ),
    ],
)
def test_a_store_to_a_protected_page_is_reported_as_linux_reports_it(
    protection: str, headline: str, esr: int, status: str, entry_bits: tuple[int, int]
) -> None:
    kernel, image = loaded("6.1", protection=protection)
    target = kernel.space.linear_virt(image.segments[2].mem + 0x1000)
    assert not kernel.stray_write_virt(target, b"\xa5" * 4, 4)
    lines = console(kernel)
    said = lines[next(number for number, line in enumerate(lines) if line.startswith("Unable")) :]
    assert said[:10] == [
        f"{headline} at virtual address {target:016x}",
        "Mem abort info:",
        f"  ESR = 0x{esr:016x}",
        "  EC = 0x25: DABT (current EL), IL = 32 bits",
        "  SET = 0, FnV = 0",
        "  EA = 0, S1PTW = 0",
        f"  FSC = 0x{esr & 0x3F:02x}: {status}",
        "Data abort info:",
        f"  ISV = 0, ISS = 0x{esr & 0xFFFFFF:08x}",
        "  CM = 0, WnR = 1",
    ]
    assert said[10].startswith("swapper pgtable: 4k pages, 48-bit VAs, pgdp=")
    entries = re.fullmatch(r"\[\w+\] pgd=(\w+), p4d=(\w+), pud=\w+, pmd=\w+, pte=\w+", said[11])
    assert entries is not None and entries[1] == entries[2]  # the p4d is folded
    pte = int(said[11].rsplit("pte=", 1)[1], 16)
    assert (pte & 1, pte & 0x0000_FFFF_FFFF_F000) == (
        entry_bits[0],
        kernel.space.virt_to_phys(target) & ~0xFFF,
    )
    assert said[12].startswith(f"Internal error: Oops: {esr:016x} [#1]")
    assert any(
        re.fullmatch(r"CPU: 0 PID: 9 Comm: kworker/0:1 Kdump: loaded Not tainted \S+ #1", line)
        for line in said
    )
    assert any(line.startswith("pc : stray_write+0x") for line in said)
    assert f"x2 : {4:016x} x1 : {kernel.guest.vmlinux.virt('stray_buffer'):016x} x0 : {target:016x}" in said
    # The kernel lives on: only the kworker died.
    assert not kernel.dying
    assert kernel.crash().pc == image.start


def test_a_null_pointer_is_called_one() -> None:
    kernel, _ = loaded()
    assert not kernel.stray_write_virt(8, b"x")
    assert "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008" in console(
        kernel
    )


def test_a_long_write_stops_at_the_first_page_that_it_may_not_touch() -> None:
    kernel, image = loaded("6.1")
    edge = image.segments[0].mem
    before = kernel.ram.read(edge - 16, 64)
    assert not kernel.stray_write_virt(kernel.space.linear_virt(edge - 16), bytes(range(64)), 8)
    assert kernel.ram.read(edge - 16, 64) == bytes(range(16)) + before[16:]


def test_a_write_may_be_longer_than_the_guest_s_buffer_for_it() -> None:
    kernel, image = loaded()
    data = bytes(number % 251 for number in range(10_001))
    phys = image.segments[2].mem + 3
    assert kernel.stray_write_virt(kernel.space.linear_virt(phys), data)
    assert kernel.ram.read(phys, len(data)) == data


def test_oops_panic_on_the_command_line_makes_an_oops_the_crash_itself() -> None:
    kernel = boot("6.1", "crashkernel=64M oops=panic", ram="256M", cpus=2)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    kernel.stray_write_virt(kernel.space.linear_virt(image.segments[0].mem), b"x")
    assert kernel.dying and "Starting crashdump kernel..." in console(kernel)
    assert not any(
        "Kernel panic" in line for line in console(kernel)
    )  # crash_kexec() comes before any panic()
    stop = kernel.crash()
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)


def test_panic_on_oops_is_a_build_option_too_and_needs_an_image_to_dump() -> None:
    kernel = small("6.1", options={"PANIC_ON_OOPS": "y"})
    assert not kernel.stray_write_virt(8, b"x")
    assert kernel.dying and "Kernel panic - not syncing: Oops: Fatal exception" in console(kernel)
    assert kernel.crash().pc == kernel.guest.vmlinux.virt("panic_no_kexec")


# -- a first kernel that was stamped on ------------------------------------------------------------------------

SYMBOLS = sorted(name for name in small().guest.vmlinux.elf.symbols if not name.startswith("$"))
PATTERNS = (b"\xef\xbe\xad\xde" * 2, b"\xff" * 8, bytes(8))


def stamp_and_crash(symbol: str, data: bytes, cpus: int = 2) -> tuple[KernelModel, Kimage, CpuStopKind]:
    kernel, image = loaded(cpus=cpus)
    kernel.board.dma.write(kernel.guest.phys(symbol), data)
    return kernel, image, kernel.crash().kind


@pytest.mark.parametrize("data", PATTERNS, ids=["deadbeef", "ones", "zeros"])
@pytest.mark.parametrize(
    "symbol",
    [
        "__cpu_try_die",
        "__per_cpu_offset",
        "crash_notes",
        "do_handle_IPI",
        "el1h_64_irq",
        "kexec_crash_image",
        "panic",
        "vmcoreinfo_data",
        "vmcoreinfo_note",
    ],
)
def test_a_crash_path_that_trips_over_stamped_data_ends_and_does_not_raise(symbol: str, data: bytes) -> None:
    """Each of these once ended the model instead of the kernel: a wild pointer, a CPU that cannot be stopped."""
    _, _, kind = stamp_and_crash(symbol, data)
    assert kind in (
        CpuStopKind.LEFT,
        CpuStopKind.BREAKPOINT,
        CpuStopKind.FAULT,
        CpuStopKind.DEADLINE,
        CpuStopKind.IDLE,
        CpuStopKind.POWER,
    )


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SYMBOLS), st.binary(min_size=1, max_size=32))
def test_no_stamp_on_the_first_kernel_does_anything_but_end_its_crash_somewhere(
    symbol: str, data: bytes
) -> None:
    kernel, _ = loaded(cpus=2)
    phys = kernel.guest.phys(symbol)
    if phys in kernel.guest.area and phys + len(data) <= kernel.guest.area.end:
        kernel.board.dma.write(phys, data)
        assert isinstance(kernel.crash().kind, CpuStopKind)


def test_a_cpu_that_cannot_be_stopped_is_named_and_the_dump_goes_on() -> None:
    kernel, image, kind = stamp_and_crash("do_handle_IPI", bytes(8), cpus=4)
    assert kind is CpuStopKind.LEFT and kernel.board.boot_cpu.pc == image.start
    assert "SMP: failed to stop secondary CPUs 1-3" in console(kernel)
    assert kernel.board.idle == INSTRUCTIONS_PER_SECOND


def test_a_kimage_whose_start_was_changed_is_where_the_kernel_jumps() -> None:
    kernel, image = loaded()
    at = kernel.guest.vmlinux.offsetof("kimage", "start")
    kernel.board.dma.write(kernel.guest.phys("crash_kimage_storage") + at, struct.pack("<Q", image.dtb_mem))
    stop = kernel.crash()
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.dtb_mem)


@pytest.mark.parametrize("start", [0, 0x9000000, 0xFFFF800008010000, 0x40000001])
def test_a_jump_to_where_nothing_can_be_fetched_is_a_jump(start: int) -> None:
    kernel, _ = loaded()
    at = kernel.guest.vmlinux.offsetof("kimage", "start")
    kernel.board.dma.write(kernel.guest.phys("crash_kimage_storage") + at, struct.pack("<Q", start))
    stop = kernel.crash()
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, start)
    assert [*kernel.board.timeline][-1].kind == "jump"


UDF, RET, BR_X1 = 0, 0xD65F03C0, 0xD61F0020


@pytest.mark.parametrize(
    ("symbol", "word", "kind"),
    [
        ("cpu_soft_restart", UDF, CpuStopKind.FAULT),  # MMU on: the vectors would be next
        ("cpu_soft_restart_branch", UDF, CpuStopKind.FAULT),  # MMU off, and still in the last code
        ("cpu_soft_restart", BR_X1, CpuStopKind.FAULT),  # to the image, which the identity map does not have
        ("cpu_soft_restart", RET, CpuStopKind.BREAKPOINT),  # back to machine_kexec()
    ],
)
def test_who_does_not_get_out_with_the_mmu_off_has_not_jumped(
    symbol: str, word: int, kind: CpuStopKind
) -> None:
    kernel, _, stopped = stamp_and_crash(symbol, struct.pack("<I", word))
    assert stopped is kind
    assert not [event for event in kernel.board.timeline if event.kind == "jump"]


def test_an_oops_whose_text_was_stamped_on_is_one_line_of_the_timeline() -> None:
    kernel, _ = loaded()
    segment = next(one for one in kernel.guest.vmlinux.elf.segments if b"Oops\0" in one.data)
    virt = segment.vaddr + segment.data.index(b"Oops\0")
    kernel.ram.write(kernel.guest.space.virt_to_phys(virt), b"a\nb\x1b\0")
    assert not kernel.stray_write_virt(8, b"x")
    (event,) = kernel.board.timeline.of("oops")
    assert event.text.startswith("a\\nb\\x1b on cpu0 at ")


@pytest.mark.parametrize(
    ("cpus", "text"),
    [([1], "1"), ([1, 2], "1-2"), ([1, 3], "1,3"), ([1, 2, 3, 5, 7, 8], "1-3,5,7-8"), ([2, 4, 5], "2,4-5")],
)
def test_a_list_of_cpus_is_written_as_the_kernel_does(cpus: list[int], text: str) -> None:
    assert _cpu_list(cpus) == text
