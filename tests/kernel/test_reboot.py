"""An ordinary kexec: places in free memory, the list of pages, and guest code that moves them."""

from __future__ import annotations

import hashlib

import pytest

from kexecemu import Board, InputError, Kernel, KernelConfig, KexecError
from kexecemu.crash.damage import find_damage
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.data import fixture_path
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.config import Way
from kexecemu.kernel.image.kimage import IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE, Kimage
from kexecemu.kernel.procfs import sysfs
from kexecemu.machine.cpu.stop import CpuStopKind

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()


def loaded(
    era: str = "6.1", cpus: int = 1, initrd: bytes = INITRD, way: Way = Way.PURGATORY, **options: str
) -> tuple[Kernel, Kimage]:
    protection = None if way is Way.PURGATORY else "none"
    config = KernelConfig(era, options=options, check_way=way, protection=protection)
    kernel = Kernel.boot(Board("512M", cpus), config, cmdline="crashkernel=64M")
    image = kernel.kexec_file_load(STUB, initrd, "console=ttyAMA0", flags=0)
    assert image is not None
    return kernel, image


def walk_list(kernel: Kernel, image: Kimage) -> dict[int, int]:
    """Follow image->head as the relocation code does: destination page -> source page (physical)."""
    moves: dict[int, int] = {}
    page = kernel.config.page_size
    entry, pointer, destination = image.head, 0, 0
    while not entry & IND_DONE:
        phys = entry & -page
        if entry & IND_INDIRECTION:
            pointer = phys
        elif entry & IND_DESTINATION:
            destination = phys
        elif entry & IND_SOURCE:
            moves[destination] = phys
            destination += page
        entry = kernel.ram.read_u64(pointer)
        pointer += 8
    return moves


@pytest.mark.parametrize(
    "options", [{}, {"ARM64_16K_PAGES": "y"}, {"ARM64_64K_PAGES": "y"}], ids=["4K", "16K", "64K"]
)
def test_the_new_kernel_is_entered_by_the_boot_protocol_with_every_page_in_place(
    options: dict[str, str],
) -> None:
    kernel, image = loaded(cpus=2, **options)
    stop = kernel.reboot()
    cpu = kernel.board.boot_cpu
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, image.start)
    assert [cpu.x(number) for number in range(4)] == [image.dtb_mem, 0, 0, 0]
    assert cpu.sysreg("SCTLR_EL1") & 0x1005 == 0  # M, C, I
    assert cpu.pstate & 0x3C0 == 0x3C0
    assert find_damage(kernel.ram, image, purgatory=False) == []
    assert find_damage(kernel.ram, image, purgatory=True) == []
    (jump,) = kernel.board.timeline.of("jump")
    assert jump.text == f"the relocation code jumps to {image.start:#x}, MMU off"
    assert not kernel.board.cpus[1].powered


def test_the_purgatory_checks_an_ordinary_image_too() -> None:
    kernel, _ = loaded()
    end = kernel.reboot_by_kexec()
    assert end.purgatory is not None
    assert end.purgatory.end is PurgatoryEnd.KERNEL
    assert end.kernel is not None
    assert end.kernel.record is not None
    assert end.kernel.record.violations == 0
    assert end.kernel.end is CaptureEnd.NO_DUMP
    assert "kexec_core: Starting new kernel" in kernel.board.uart.text
    assert "not started after a crash" in kernel.board.uart.text


def test_a_waiting_page_that_was_stamped_on_is_found_after_the_move() -> None:
    kernel, image = loaded()
    initrd = image.segment("initrd")
    assert initrd is not None
    source = walk_list(kernel, image)[initrd.mem + 0x1000]
    kernel.board.dma.write(source + 5, b"\xee")
    end = kernel.reboot_by_kexec()
    assert end.purgatory is not None
    assert end.purgatory.end is PurgatoryEnd.MISMATCH
    assert end.kernel is None
    assert [str(one) for one in find_damage(kernel.ram, image, purgatory=False)] == ["initrd+0x1005, 1 byte"]


@pytest.mark.parametrize("way", Way)
def test_of_an_ordinary_image_only_a_purgatory_can_look_at_what_was_moved(way: Way) -> None:
    kernel, image = loaded(way=way)
    initrd = image.segment("initrd")
    assert initrd is not None and not image.table_pages
    kernel.board.dma.write(walk_list(kernel, image)[initrd.mem + 0x1000] + 5, b"\xee")
    end = kernel.reboot_by_kexec()
    assert (end.kernel is None) == (way is not Way.MACHINE_KEXEC)
    assert ("digests do NOT match" in kernel.board.uart.text) == (way is not Way.MACHINE_KEXEC)


def test_the_list_moves_every_page_once_from_outside_all_destinations() -> None:
    # 3 MiB are more pages than one page of the list holds, so it is linked by IND_INDIRECTION.
    kernel, image = loaded(initrd=hashlib.sha256(b"seed").digest() * (3 << 15))
    moves = walk_list(kernel, image)
    page = kernel.config.page_size
    wanted = [one.mem + at for one in image.segments for at in range(0, one.memsz, page)]
    assert sorted(moves) == sorted(wanted)
    assert len(moves) > page // 8
    assert len(set(moves.values())) == len(moves)
    assert not any(
        one.area.start <= source < one.area.end for source in moves.values() for one in image.segments
    )
    assert all(
        not area.start <= image.control_code_page < area.end for area in (one.area for one in image.segments)
    )
    content = b"".join(kernel.ram.read(moves[address], page) for address in sorted(moves))
    loaded_bytes = b"".join(one.content() for one in sorted(image.segments, key=lambda one: one.mem))
    assert content == loaded_bytes
    assert kernel.reboot().pc == image.start


def test_places_are_in_free_memory_and_follow_the_same_rules() -> None:
    kernel, image = loaded()
    free = kernel.arch.memblock.free_ranges()
    assert all(any(area.covers(one.area) for area in free) for one in image.segments)
    assert [one.name for one in image.segments] == ["kernel", "initrd", "dtb", "purgatory"]
    first, initrd = image.segments[:2]
    assert first.mem % (2 << 20) == 0
    assert initrd.mem == first.mem + first.memsz
    segment = image.segment("dtb")
    assert segment is not None
    chosen_tree = Fdt(bytes(segment.buf))
    chosen = chosen_tree.path_offset("/chosen")
    assert chosen is not None
    assert chosen_tree.getprop(chosen, "linux,elfcorehdr") is None
    assert chosen_tree.getprop(chosen, "linux,usable-memory-range") is None


def test_an_ordinary_image_and_a_crash_image_are_independent() -> None:
    kernel, _ = loaded()
    assert kernel.kexec_file_load(STUB, INITRD, "console=ttyAMA0") is not None
    assert sysfs(kernel)["/sys/kernel/kexec_loaded"] == "1\n"
    assert sysfs(kernel)["/sys/kernel/kexec_crash_loaded"] == "1\n"
    kernel.kexec_file_load(None, None, None, flags=1)  # KEXEC_FILE_UNLOAD
    assert sysfs(kernel)["/sys/kernel/kexec_loaded"] == "0\n"
    assert kernel.panic().outcome == "captured"


def test_a_failed_ordinary_load_keeps_the_old_image() -> None:
    kernel, image = loaded()
    with pytest.raises(KexecError):
        kernel.kexec_file_load(b"no Image", INITRD, "quiet", flags=0)
    assert kernel.kexec.reboot_image is image


def test_without_an_image_there_is_no_reboot() -> None:
    kernel = Kernel.boot(Board("512M"), KernelConfig("6.4"), cmdline="crashkernel=64M")
    with pytest.raises(InputError, match="no image is loaded"):
        kernel.reboot_by_kexec()
