"""A purgatory that a first kernel has built in is found in its Image and in memory: held against the model's load."""

from __future__ import annotations

import pytest

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import InputError, MachineError
from kexecemu.kernel.image.kimage import KEXEC_FILE_ON_CRASH, Kimage
from kexecemu.linux.first_found import find_load
from kexecemu.linux.first_load import read_load
from kexecemu.linux.first_purgatory import FoundPurgatory, built_in_purgatory

IMAGE = fixture_path("guests/capture-Image").read_bytes()
PATCHED = IMAGE + bytes(100) + purgatory_path().read_bytes() + bytes(100)
INITRD = b"an initrd of an odd length" * 777


def loaded() -> tuple[Kernel, Kimage]:
    kernel = Kernel.boot(Board("256M"), KernelConfig("6.12", purgatory=True), cmdline="crashkernel=64M")
    image = kernel.kexec_file_load(IMAGE, INITRD, cmdline="console=ttyAMA0", flags=KEXEC_FILE_ON_CRASH)
    assert image is not None and kernel.crashk_res is not None
    return kernel, image


def test_an_image_s_purgatory_is_found_in_it_and_one_without_has_none() -> None:
    obj = built_in_purgatory(PATCHED)
    assert obj is not None and obj.global_symbol("purgatory_sha_regions") is not None
    assert built_in_purgatory(IMAGE) is None


def test_the_load_is_found_with_its_purgatory_entry_order_and_symbols() -> None:
    kernel, image = loaded()
    assert kernel.crashk_res is not None and image.purgatory is not None
    said = find_load(kernel.ram, kernel.crashk_res, IMAGE, 4096, built_in_purgatory(PATCHED))
    assert said.entry == image.start != image.kernel_entry
    assert [(one.name, one.mem, one.memsz, one.bufsz) for one in said.segments] == [
        (one.name, one.mem, one.memsz, one.bufsz) for one in image.segments
    ]
    table = {name: place for name, place in image.purgatory.symbol_table().items() if place[1]}
    assert {name: (area.start, area.size) for name, area in said.symbols.items()} == table


def test_what_is_read_of_it_is_what_the_model_loaded_digest_and_all() -> None:
    kernel, image = loaded()
    region, built_in = kernel.crashk_res, built_in_purgatory(PATCHED)
    assert region is not None and image.purgatory is not None
    said = find_load(kernel.ram, region, IMAGE, 4096, built_in)
    files = {"kernel": IMAGE, "initrd": INITRD}
    read = read_load(kernel.ram, said, files, region, page_size=4096, checks=True, built_in=built_in)
    assert (read.start, read.kernel_entry, read.dtb_mem) == (image.start, image.kernel_entry, image.dtb_mem)
    assert (read.digest, read.sha_regions) == (image.digest, image.sha_regions)
    assert isinstance(read.purgatory, FoundPurgatory)
    assert bytes(read.purgatory.buf) == bytes(image.purgatory.buf) != read.purgatory.linked
    assert read.purgatory.symbol_table() == image.purgatory.symbol_table()
    assert read.purgatory.scratch() == image.purgatory.scratch()
    digest = read.purgatory.symbol_phys("purgatory_sha256_digest")
    assert read.purgatory.target("purgatory:purgatory_sha256_digest").start == digest
    with pytest.raises(InputError, match="no symbol purgatory_digest"):
        read.purgatory.target("purgatory:purgatory_digest")


def test_a_purgatory_that_is_not_in_memory_is_no_load() -> None:
    kernel, image = loaded()
    assert kernel.crashk_res is not None and image.purgatory is not None
    built_in = built_in_purgatory(PATCHED)
    kernel.dma_write("purgatory+0x40", b"\xff")
    with pytest.raises(MachineError, match="does not hold the purgatory"):
        find_load(kernel.ram, kernel.crashk_res, IMAGE, 4096, built_in)
