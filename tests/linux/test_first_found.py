"""What kexec_file_load left in memory is found there: held against the model, which knows what it loaded."""

from __future__ import annotations

import pytest

from kexecemu import Board, Era, Kernel, KernelConfig
from kexecemu.data import fixture_path
from kexecemu.errors import MachineError
from kexecemu.formats.elf import PT_LOAD
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import KEXEC_FILE_ON_CRASH, Kimage
from kexecemu.linux.first_found import find_load

IMAGE = fixture_path("guests/capture-Image").read_bytes()
INITRD = b"an initrd of an odd length" * 777


def loaded(cmdline: str = "crashkernel=64M", era: str | Era = "6.12") -> tuple[Kernel, Kimage]:
    """A model that has loaded without a purgatory, as real arm64 kernels do."""
    kernel = Kernel.boot(Board("256M"), KernelConfig(era, purgatory=False), cmdline=cmdline)
    image = kernel.kexec_file_load(IMAGE, INITRD, cmdline="console=ttyAMA0", flags=KEXEC_FILE_ON_CRASH)
    assert image is not None and kernel.crashk_res is not None
    return kernel, image


@pytest.mark.parametrize("era", Era, ids=lambda era: era.value)
@pytest.mark.parametrize("cmdline", ["crashkernel=64M", "crashkernel=33M", "crashkernel=64M@0x4a200000"])
def test_every_segment_is_found_where_it_was_put(era: Era, cmdline: str) -> None:
    kernel, image = loaded(cmdline, era)
    assert kernel.crashk_res is not None
    said = find_load(kernel.ram, kernel.crashk_res, IMAGE, 4096)
    expected = {one.name: (one.mem, one.memsz, one.bufsz) for one in image.segments}
    assert {one.name: (one.mem, one.memsz, one.bufsz) for one in said.segments} == expected
    assert (said.entry, said.symbols) == (image.start, {})
    text, *linear = [one for one in said.headers if one.type == PT_LOAD]
    assert linear and all(one.phys in kernel.ram.banks[0] for one in linear)
    assert text.virt >> 48 == 0xFFFF


def test_a_device_tree_of_an_earlier_boot_is_not_taken_for_this_one_s() -> None:
    kernel, image = loaded()
    region, dtb = kernel.crashk_res, image.segment("dtb")
    assert region is not None and dtb is not None
    # The running kernel's own tree names no elfcorehdr; a cut one is no tree at all.
    free = region.start + 0x1000000
    tree = virt_device_tree(kernel.ram.banks, 1, 0x09000000)
    kernel.ram.write(free, tree)
    kernel.ram.write(free + 0x10000, dtb.buf[:64])
    said = find_load(kernel.ram, region, IMAGE, 4096)
    assert [one.mem for one in said.segments if one.name == "dtb"] == [dtb.mem]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("kernel", "does not hold the kernel"),
        ("dtb", "no device tree with an elfcorehdr"),
        ("elfcorehdr", "Core image elf header"),
    ],
)
def test_what_is_not_there_any_more_is_said(name: str, what: str) -> None:
    kernel, image = loaded()
    segment = image.segment(name)
    assert segment is not None and kernel.crashk_res is not None
    kernel.ram.write(segment.mem, bytes(64))
    with pytest.raises(MachineError, match=what):
        find_load(kernel.ram, kernel.crashk_res, IMAGE, 4096)
