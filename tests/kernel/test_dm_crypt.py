"""Keys of dm-crypt in a crash image: their size, where chance puts them, and who is told."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from kernel_bench import IMAGE, INITRD, MIB, arm64_image, boot

from kexecemu.errors import InputError, KexecError
from kexecemu.formats.fdt import Fdt, MemReserve, reg64
from kexecemu.kernel.image.kimage import DM_CRYPT_KEYS, Kimage
from kexecemu.kernel.load.dm_crypt import keys_header
from kexecemu.kernel.model import KernelModel


def load(kernel: KernelModel, flags: int = 2) -> Kimage:
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5", flags=flags)
    assert image is not None
    return image


def booted(keys: int, seed: int = 0, cmdline: str = "crashkernel=64M") -> KernelModel:
    kernel = boot("7.3", cmdline, ram="512M", seed=seed)
    kernel.dm_crypt_keys = keys
    return kernel


@pytest.mark.parametrize(("keys", "size"), [(1, 392), (2, 780), (21, 8152), (128, 49668), (129, 50056)])
def test_a_header_of_four_bytes_is_followed_by_388_for_each_key(keys: int, size: int) -> None:
    header = keys_header(keys)
    assert len(header) == size and int.from_bytes(header[:4], "little") == keys
    for number in range(keys):
        one = header[4 + 388 * number :][:388]
        assert int.from_bytes(one[:4], "little") == 64
        assert one[4:132].rstrip(b"\0") == f"kexecemu:{number}".encode()
        assert b"not a secret" in one[132:196] and not any(one[196:])


@pytest.mark.parametrize("seed", range(4))
def test_they_lie_behind_the_elfcorehdr_in_order_and_anywhere_in_the_region(seed: int) -> None:
    kernel = booted(3, seed)
    image, region = load(kernel), kernel.crashk_res
    assert region is not None
    names = [one.name for one in image.segments]
    assert names == ["kernel", "elfcorehdr", DM_CRYPT_KEYS, "initrd", "dtb", "purgatory"]
    # From below, with the whole region to choose from: 64 MiB - 1 in 65535 steps of 0x400.
    place = region.start + 0x400 * Random(seed).getrandbits(16)
    assert image.segments[2].mem == -(-place // 4096) * 4096
    assert (image.segments[2].bufsz, image.segments[2].memsz) == (4 + 3 * 388, 4096)


def test_they_may_lie_before_the_kernel_s_end_and_then_begin_behind_it() -> None:
    kernel = booted(1, seed=next(seed for seed in range(1 << 14) if Random(seed).getrandbits(16) < 16))
    image, region = load(kernel), kernel.crashk_res
    keys = image.segment(DM_CRYPT_KEYS)
    assert region is not None and keys is not None
    assert keys.mem == image.segments[0].area.end  # the kernel takes the first 64 KiB
    initrd = image.segment("initrd")
    assert initrd is not None and initrd.mem == keys.area.end


def test_the_capture_kernel_is_told_between_the_elfcorehdr_and_the_usable_memory() -> None:
    kernel = booted(2)
    image = load(kernel)
    keys, core, dtb = (image.segment(name) for name in (DM_CRYPT_KEYS, "elfcorehdr", "dtb"))
    assert keys is not None and core is not None and dtb is not None
    tree = Fdt(bytes(dtb.buf))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    # Properties are put in front of those that there are, so the last is the first.
    found = [
        one.name
        for one in tree.properties(chosen)
        if one.name.startswith("linux,") and "initrd" not in one.name
    ]
    assert found.index("linux,elfcorehdr") - 1 == found.index("linux,dmcryptkeys")
    assert found.index("linux,dmcryptkeys") - 1 == found.index("linux,usable-memory-range")
    assert tree.getprop(chosen, "linux,dmcryptkeys") == reg64(keys.mem, 780)
    reserved = tree.mem_reservations()
    at = reserved.index(MemReserve(core.mem, core.bufsz))
    assert reserved[at + 1] == MemReserve(keys.mem, 780)


def test_the_digest_covers_them_and_the_dump_is_taken() -> None:
    kernel = booted(2)
    image = load(kernel)
    keys = image.segment(DM_CRYPT_KEYS)
    assert keys is not None and keys.area in image.sha_regions
    assert (
        image.digest
        == hashlib.sha256(
            b"".join(kernel.ram.read(one.start, one.size) for one in image.sha_regions)
        ).digest()
    )
    assert kernel.ram.read(keys.mem, keys.memsz) == keys.content()


def test_an_image_for_a_reboot_has_none_and_neither_has_one_without_keys() -> None:
    assert load(booted(2), flags=0).segment(DM_CRYPT_KEYS) is None
    assert load(booted(0)).segment(DM_CRYPT_KEYS) is None


def test_another_load_draws_the_same_place_and_another_seed_another() -> None:
    kernel = booted(1, seed=5)
    places = [load(kernel).segments[2].mem for _ in range(2)]
    assert places[0] == places[1] != load(booted(1, seed=6)).segments[2].mem


def test_keys_that_chance_leaves_no_room_for_refuse_the_load_in_the_end() -> None:
    """Each place for the kernel draws again, and there is but one."""
    kernel = booted(129, seed=next(seed for seed in range(1 << 14) if Random(seed).getrandbits(16) > 65500))
    with pytest.raises(KexecError, match=r"dm-crypt-keys needs 0xd000 bytes .*random place on\)"):
        kernel.kexec_file_load(arm64_image(64, image_size=40 * MIB), INITRD, "panic=5")
    assert kernel.image is None


@pytest.mark.parametrize(
    ("era", "keys", "words"),
    [("7.0", 1, "from 7.1 on, not 7.0"), ("7.3", 130, "0 to 129 keys"), ("7.3", -1, "0 to 129 keys")],
)
def test_what_configfs_or_the_era_does_not_take_is_refused(era: str, keys: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        boot(era, "crashkernel=64M", ram="512M").dm_crypt_keys = keys


@pytest.mark.parametrize("era", ["6.12", "7.3"])
def test_with_the_flag_for_it_the_kernel_says_where_everything_went_in_its_own_words(era: str) -> None:
    """As 7.3.4 with three keys in configfs said it; lines with a pointer in them, which is hashed, are left out."""
    kernel = boot(era, "crashkernel=64M", ram="512M", purgatory=False)
    kernel.dm_crypt_keys = 3 if era == "7.3" else 0
    image = load(kernel, 0x2 | 0x8)
    said = [line.partition("] ")[2] for line in kernel.board.uart.text.splitlines() if "oad" in line]
    lines = {
        "elfcorehdr": "kexec_file: Loaded elf core header at {0.mem:#x}",
        DM_CRYPT_KEYS: "Loaded dm crypt keys to kexec_buffer",
        "initrd": "kexec_file: Loaded initrd at {0.mem:#x}",
        "dtb": "kexec_file: Loaded dtb at {0.mem:#x}",
        "kernel": "kexec_file(Image): Loaded kernel at {0.mem:#x}",
    }
    found = [(one, words) for name, words in lines.items() if (one := image.segment(name)) is not None]
    wanted = [f"{words.format(one)} bufsz={one.bufsz:#x} memsz={one.memsz:#x}" for one, words in found]
    end = f"kexec_file: kexec_file_load: type:1, start:{image.start:#x} head:0x4 flags:0xa"
    assert said[-len(wanted) - 1 :] == [*wanted, end]
    assert f"kexec_file: nr_segments = {len(found)}" in kernel.board.uart.text
    quiet = boot(era, "crashkernel=64M", ram="512M")
    load(quiet)
    assert "Loaded" not in quiet.board.uart.text
