"""The rivals of a purgatory with a map of its own: real guest code of each, and what the load makes for it."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from kernel_bench import IMAGE, INITRD, MIB

from kexecemu import Board, InputError, Kernel, KernelConfig
from kexecemu.cli import main
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome
from kexecemu.data import purgatory_path
from kexecemu.kernel.base.config import Way
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.descriptors import AP_RO, ATTR_IDX, PXN, UXN
from kexecemu.machine.memory.walk import TableReader
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, When

RIVALS = [Way.TRANS_PGD, Way.MACHINE_KEXEC]


def loaded(way: Way, *, cpus: int = 1, initrd: bytes = INITRD, **options: str) -> tuple[Kernel, Kimage]:
    config = KernelConfig("6.4", check_way=way, options=options)
    kernel = Kernel.boot(Board("512M", cpus), config, cmdline="crashkernel=64M")
    image = kernel.kexec_file_load(IMAGE, initrd, "console=ttyAMA0")
    assert image is not None
    return kernel, image


def crash(way: Way, *faults: Fault, **options: str) -> End:
    kernel, _ = loaded(way, **options)
    for one in faults:
        kernel.inject(one)
    return kernel.panic()


def dma(at: str | int, data: bytes, when: When = When.AFTER_LOAD) -> Fault:
    return Fault(hex(at) if isinstance(at, int) else at, write=data, by=By.DMA, when=when)


def kimage(kernel: Kernel, member: str) -> int:
    """The physical address of a member of struct kimage_arch."""
    layout = kernel.guest.vmlinux
    at = layout.offsetof("kimage", "arch") + layout.offsetof("kimage_arch", member)
    return kernel.guest.phys("crash_kimage_storage") + at


@pytest.mark.parametrize("pages", ["ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES"])
@pytest.mark.parametrize("way", RIVALS)
def test_an_intact_image_captures_and_a_stamped_one_does_not_start(way: Way, pages: str) -> None:
    options = {pages: "y"}
    good = crash(way, cpus=2, **options)  # type: ignore[arg-type]
    assert (good.outcome, good.dump.value, good.damage) == (Outcome.CAPTURED, "true", [])
    bad = crash(way, dma("initrd+0x1000", b"\xff"), **options)
    assert (bad.outcome, bad.dump.value) == (Outcome.DETECTED, "none")
    assert [one.segment for one in bad.damage] == ["initrd"]


def test_the_dying_kernel_goes_on_with_its_panic_where_it_finds_damage() -> None:
    kernel, _ = loaded(Way.MACHINE_KEXEC)
    kernel.inject(dma("kernel+0x40", b"\0"))
    end = kernel.panic()
    assert end.reason == "the first kernel gives kdump up: the crash image has been damaged"
    assert "kexec: the crash image has been damaged, giving up kdump" in end.console
    cpu = kernel.board.boot_cpu
    assert cpu.pc == kernel.guest.vmlinux.virt("panic_no_kexec") and cpu.sysreg("SCTLR_EL1") & 1


def test_only_what_is_written_before_the_hash_is_found_and_that_is_sooner_in_machine_kexec() -> None:
    late = dma("initrd+0x1000", b"\xff\xff", When.AT_JUMP)
    assert crash(Way.TRANS_PGD, late).outcome is Outcome.DETECTED
    assert crash(Way.MACHINE_KEXEC, late).outcome is Outcome.SILENT
    for way in Way:
        assert crash(way, dma("initrd+0x1000", b"\xff\xff", When.AFTER_CHECK)).outcome is Outcome.SILENT


def test_the_digest_is_in_the_first_kernel_s_memory_and_one_over_it_finds_damage_there() -> None:
    kernel, image = loaded(Way.MACHINE_KEXEC)
    assert image.purgatory is None and image.segment("purgatory") is None
    digest = hashlib.sha256(b"".join(kernel.ram.read(one.mem, one.memsz) for one in image.segments)).digest()
    at = kimage(kernel, "image_digest")
    assert kernel.ram.read(at, 32) == image.digest == digest
    kernel.inject(dma(at, bytes([digest[0] ^ 1])))
    end = kernel.panic()
    assert (end.outcome, end.damage) == (Outcome.DETECTED, [])
    assert "struct kimage has been damaged" in end.reason


@pytest.mark.parametrize("member", ["start", "nr_segments", "segment", "segment+16", "segment+24", "dtb_mem"])
def test_what_the_first_kernel_finds_and_starts_the_image_by_is_looked_at_first(member: str) -> None:
    kernel, _ = loaded(Way.MACHINE_KEXEC)
    name, _, more = member.partition("+")
    layout = kernel.guest.vmlinux
    storage = kernel.guest.phys("crash_kimage_storage")
    at = kimage(kernel, name) if name == "dtb_mem" else storage + layout.offsetof("kimage", name)
    kernel.inject(dma(at + int(more or 0), b"\xef\xbe\xad\xde"))
    end = kernel.panic()
    assert end.reason == "the first kernel gives kdump up: struct kimage has been damaged"


def test_a_digest_of_zeros_is_none() -> None:
    kernel, _ = loaded(Way.MACHINE_KEXEC)
    kernel.inject(dma(kimage(kernel, "kimage_digest"), bytes(32)))
    kernel.inject(dma("initrd+0x1000", b"\xff\xff"))
    assert kernel.panic().outcome is Outcome.SILENT


def test_damaged_text_of_the_first_kernel_that_hashes_does_not_let_damage_through() -> None:
    """A SHA-256 that computes anything else finds a difference, or does not come to an end: 16 words of it."""
    kernel, _ = loaded(Way.MACHINE_KEXEC)
    start, seen = kernel.guest.phys("sha256_blocks"), set()
    for number in range(16):
        kernel, _ = loaded(Way.MACHINE_KEXEC)
        at = start + 128 * number
        word = kernel.ram.read_u32(at) ^ 1 << (11 * number + 3) % 32
        kernel.inject(dma(at, struct.pack("<I", word)))
        kernel.inject(dma("initrd+0x1000", b"\xff\xff"))
        seen.add(kernel.panic().outcome)
    assert Outcome.DETECTED in seen and not seen & {Outcome.SILENT, Outcome.CAPTURED, Outcome.MASKED}


def test_a_large_image_takes_its_time_and_is_not_given_up() -> None:
    kernel, _ = loaded(Way.MACHINE_KEXEC, initrd=bytes(8 * MIB))
    assert kernel.panic().outcome is Outcome.CAPTURED


# -- the map that is made at the load ----------------------------------------------------------------------------


def test_the_map_has_the_regions_read_only_the_purgatory_and_the_console_and_nothing_else() -> None:
    kernel, image = loaded(Way.TRANS_PGD)
    assert kernel.crashk_res is not None and image.purgatory is not None
    assert set(image.table_pages) <= set(image.control_pages)
    assert all(kernel.crashk_res.covers(page) for page in image.table_pages)
    assert not any(page.overlaps(one.area) for page in image.table_pages for one in image.segments)
    root = kernel.ram.read_u64(kimage(kernel, "ttbr0"))
    assert root == image.table_pages[0].start
    reader = TableReader(kernel.ram, kernel.tables.fmt, root)
    found: dict[int, int] = {}
    for leaf in reader.leaves(0, 1 << 48):
        if leaf.valid:
            assert leaf.descriptor & ((1 << 48) - 1 & -4096) == leaf.virt
            found |= dict.fromkeys(pages(PhysRange.of(leaf.virt, leaf.size)), leaf.descriptor)
    segment = image.purgatory.segment
    code = PhysRange(segment.mem, segment.mem + len(image.purgatory.buf))
    expected = {page: (AP_RO, PXN) for one in image.sha_regions for page in pages(one)}
    expected |= dict.fromkeys(pages(code), (AP_RO, 0))
    expected |= dict.fromkeys(pages(PhysRange(code.end, segment.area.end)), (0, PXN))
    expected[0x9000000] = 0, PXN
    assert {page: (one & AP_RO, one & PXN) for page, one in found.items()} == expected
    assert all(one & UXN for one in found.values())
    assert {page for page, one in found.items() if one & ATTR_IDX(7) != ATTR_IDX(0)} == {0x9000000}


def pages(area: PhysRange) -> range:
    return range(area.start, area.end, 4096)


def test_what_is_large_is_mapped_by_blocks() -> None:
    kernel, image = loaded(Way.TRANS_PGD, initrd=bytes(8 * MIB))
    initrd = image.segment("initrd")
    assert initrd is not None
    leaves = list(TableReader(kernel.ram, kernel.tables.fmt, image.table_pages[0].start).leaves(0, 1 << 48))
    sizes = {one.size for one in leaves if one.valid and initrd.area.start <= one.virt < initrd.area.end}
    assert 2 * MIB in sizes
    # Level by level one table, and those of the last level where blocks do not fit.
    assert len(image.table_pages) <= 8


def test_it_is_entered_with_the_mmu_on_and_leaves_with_it_off() -> None:
    kernel, image = loaded(Way.TRANS_PGD)
    cpu = kernel.board.boot_cpu
    stop = kernel.crash()
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)
    assert cpu.sysreg("SCTLR_EL1") & 1 and cpu.sysreg("TTBR0_EL1") == image.table_pages[0].start
    assert [cpu.x(number) for number in range(4)] == [image.dtb_mem, 0, 0, 0]
    assert cpu.pstate & 0x3C0 == 0x3C0
    stop = cpu.run(stops={image.kernel_entry}, limit=50_000_000)
    assert (stop.kind, cpu.pc) == (CpuStopKind.BREAKPOINT, image.kernel_entry)
    assert cpu.sysreg("SCTLR_EL1") & 0x1005 == 0
    assert [cpu.x(number) for number in range(4)] == [image.dtb_mem, 0, 0, 0]


@pytest.mark.parametrize("what", ["the initrd", "the code"])
def test_a_damaged_entry_of_the_map_ends_the_purgatory_without_a_word(what: str) -> None:
    kernel, image = loaded(Way.TRANS_PGD)
    initrd = image.segment("initrd")
    assert initrd is not None
    reader = TableReader(kernel.ram, kernel.tables.fmt, image.table_pages[0].start)
    at = reader.walk(initrd.mem if what == "the initrd" else image.start).steps[-1][1]
    kernel.inject(dma(at, bytes(8)))
    end = kernel.panic()
    assert (end.outcome, end.dump.value) == (Outcome.TRAPPED, "none")
    assert end.damage == []  # the tables are no segment: no digest covers them
    assert "digests" not in end.console


def test_an_entry_that_leads_elsewhere_is_a_false_alarm() -> None:
    kernel, image = loaded(Way.TRANS_PGD)
    initrd = image.segment("initrd")
    assert initrd is not None
    reader = TableReader(kernel.ram, kernel.tables.fmt, image.table_pages[0].start)
    at, page = reader.walk(initrd.mem).steps[-1][1], 1 << 12
    kernel.inject(dma(at, struct.pack("<Q", kernel.ram.read_u64(at) + page)))
    end = kernel.panic()
    assert (end.outcome, end.damage) == (Outcome.DETECTED, [])
    assert "the purgatory refused an intact image" in end.reason


def test_the_guard_looks_at_such_a_purgatory_as_well() -> None:
    end = crash(Way.TRANS_PGD, dma("purgatory+0x20", b"\0\0\0\0"), KEXEC_PURGATORY_GUARD="y")
    assert end.reason == "the first kernel gives kdump up: the purgatory has been damaged"


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "changes", "words"),
    [
        ("machine-kexec", {"protection": "pte"}, "not mapped when it would hash"),
        ("machine-kexec", {"protection": "bbml2"}, "not mapped when it would hash"),
        ("machine-kexec", {"purgatory": "mine.ro"}, "has no purgatory"),
        ("purgatory-trans-pgd", {"purgatory": False}, "needs a purgatory"),
        ("purgatory-trans-pgd", {"purgatory": str(purgatory_path())}, "cannot be entered with the MMU on"),
        ("transpgd", {}, "way 'transpgd' is not known"),
    ],
)
def test_a_way_that_cannot_be_is_refused_in_words(way: str, changes: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config = KernelConfig("6.4", check_way=way, **changes)  # type: ignore[arg-type]
        kernel = Kernel.boot(Board("512M"), config, cmdline="crashkernel=64M")
        kernel.kexec_file_load(IMAGE, INITRD, "")


@pytest.mark.parametrize("way", [one.value for one in Way])
def test_the_way_is_an_option_of_the_command_and_in_what_it_says(
    way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crash", "--way", way, "--json", "--expect", "captured"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["way"] == way and told["outcome"] == "captured"
    assert any(one["name"] == "purgatory" for one in told["segments"]) == (way != "machine-kexec")
