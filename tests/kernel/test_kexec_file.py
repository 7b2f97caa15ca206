"""kexec_file_load(): what it refuses and with what errno, and the life of an image."""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EBADF, EBUSY, EINVAL, ENOEXEC, ENOSYS, EPERM
from pathlib import Path

import pytest
from kernel_bench import IMAGE, INITRD, MIB, arm64_image, boot, small

from kexecemu.data import purgatory_path
from kexecemu.errors import InputError, KexecError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.image.kimage import (
    KEXEC_FILE_NO_INITRAMFS,
    KEXEC_FILE_ON_CRASH,
    KEXEC_FILE_UNLOAD,
    Kimage,
)
from kexecemu.kernel.load.kexec_file import load
from kexecemu.kernel.model import KernelModel

CMDLINE = "console=ttyAMA0 nr_cpus=1 panic=5"


@pytest.fixture
def kernel() -> KernelModel:
    return small()


def refusal(kernel: KernelModel, *arguments: object, **named: object) -> KexecError:
    """The error of a load that must fail; it must leave nothing loaded and the lock free."""
    with pytest.raises(KexecError) as caught:
        kernel.kexec_file_load(*arguments, **named)  # type: ignore[arg-type]
    assert not kernel.kexec.locked
    return caught.value


# -- arguments -------------------------------------------------------------------------------------------------


def test_without_the_capability_or_when_disabled_a_load_is_eperm_before_anything_else(
    kernel: KernelModel,
) -> None:
    assert refusal(kernel, None, None, None, 0x100, capable=False).errno == EPERM
    kernel.kexec.load_disabled = True
    assert refusal(kernel, IMAGE, INITRD, CMDLINE).errno == EPERM


def test_a_disabled_load_leaves_what_is_loaded_alone(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    kernel.kexec.load_disabled = True
    assert refusal(kernel, None, flags=KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD).errno == EPERM
    assert kernel.image is image is not None


@pytest.mark.parametrize(("era", "flag"), [("6.1", 8), ("6.4", 8), ("6.12", 16), ("6.4", 1 << 31)])
def test_a_flag_that_the_era_does_not_know_is_einval(era: str, flag: int) -> None:
    kernel = small(era)
    assert refusal(kernel, IMAGE, INITRD, CMDLINE, KEXEC_FILE_ON_CRASH | flag).errno == EINVAL


def test_the_debug_flag_is_accepted_by_the_era_that_has_it() -> None:
    assert small("6.12").kexec_file_load(IMAGE, INITRD, CMDLINE, KEXEC_FILE_ON_CRASH | 8) is not None


def test_a_kernel_without_the_system_call_says_enosys() -> None:
    assert refusal(small(options={"KEXEC_FILE": "n"}), IMAGE).errno == ENOSYS


def test_a_load_during_another_is_ebusy_and_harms_neither(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    kernel.kexec.locked = True
    with pytest.raises(KexecError) as caught:
        kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert caught.value.errno == EBUSY
    assert kernel.kexec.locked and kernel.image is image


@pytest.mark.parametrize(
    ("image", "initrd", "cmdline", "errno", "step"),
    [
        (None, INITRD, b"a\0", EBADF, "kernel_read_file_from_fd"),
        (b"", INITRD, b"a\0", EINVAL, "kernel_read_file_from_fd"),
        (b"MZ" * 100, INITRD, b"a\0", EINVAL, "image_probe"),
        (IMAGE, None, b"a\0", EBADF, "kernel_read_file_from_fd"),
        (IMAGE, b"", b"a\0", EINVAL, "kernel_read_file_from_fd"),
        (IMAGE, INITRD, b"a", EINVAL, "kimage_file_prepare_segments"),
        (IMAGE, INITRD, b"a\0b", EINVAL, "kimage_file_prepare_segments"),
        (arm64_image(4096, image_size=0), INITRD, b"a\0", EINVAL, "image_load"),
        (arm64_image(4096, flags=0xC), INITRD, b"a\0", EINVAL, "image_load"),
        (arm64_image(0x3000, image_size=0x1000), INITRD, b"a\0", EINVAL, "sanity_check_segment_list"),
        (arm64_image(0x1000, text_offset=0x800), INITRD, b"a\0", EADDRNOTAVAIL, "sanity_check_segment_list"),
        (arm64_image(0x1000, image_size=65 * MIB), INITRD, b"a\0", EADDRNOTAVAIL, "kexec_add_buffer"),
        (arm64_image(0x1000, image_size=1 << 63), INITRD, b"a\0", EADDRNOTAVAIL, "kexec_add_buffer"),
        (IMAGE, bytes(64 * MIB), b"a\0", EADDRNOTAVAIL, "kexec_add_buffer"),
    ],
)
def test_each_refusal_has_the_kernel_s_errno_and_leaves_nothing_loaded(
    kernel: KernelModel, image: bytes | None, initrd: bytes | None, cmdline: bytes, errno: int, step: str
) -> None:
    kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    with pytest.raises(KexecError) as caught:
        load(kernel, image, initrd, cmdline, KEXEC_FILE_ON_CRASH)
    assert (caught.value.errno, caught.value.step) == (errno, step)
    assert not kernel.kexec.locked
    # The old image was destroyed before the new one was known to be good.
    assert kernel.image is None
    assert kernel.guest.read("kexec_crash_image") == 0


def test_files_are_looked_at_in_the_kernel_s_order(kernel: KernelModel) -> None:
    """Kernel, its probe, initrd, command line, and only then the Image's header."""
    for arguments, step in (
        ((b"MZ", None, b"a"), "image_probe"),
        ((arm64_image(4096, image_size=0), None, b"a"), "kernel_read_file_from_fd"),
        ((arm64_image(4096, image_size=0), INITRD, b"a"), "kimage_file_prepare_segments"),
    ):
        with pytest.raises(KexecError) as caught:
            load(kernel, *arguments, KEXEC_FILE_ON_CRASH)
        assert caught.value.step == step


def test_more_than_half_of_ram_is_einval_even_where_it_would_fit() -> None:
    kernel = boot("6.4", "crashkernel=112M", ram="256M")
    error = refusal(kernel, arm64_image(0x1000, image_size=96 * MIB), None, CMDLINE)
    assert (error.errno, error.step) == (EINVAL, "sanity_check_segment_list")


def test_with_no_reservation_nothing_can_be_loaded() -> None:
    kernel = boot("6.4", "quiet", ram="256M")
    assert refusal(kernel, IMAGE, INITRD, CMDLINE).errno == EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("cmdline", "bootargs"),
    [(None, None), (b"", None), ("", [""]), (b"\0", [""]), ("a b", ["a b"]), (b"a\0b\0", ["a"])],
)
def test_a_command_line_of_length_0_deletes_bootargs_and_an_empty_one_has_a_nul(
    kernel: KernelModel, cmdline: str | bytes | None, bootargs: list[str] | None
) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, cmdline)
    assert image is not None
    tree = Fdt(kernel.ram.read(image.dtb_mem, 0x1000))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    assert tree.get_strings(chosen, "bootargs") == bootargs


def test_a_command_line_has_no_limit_in_the_kernel(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, "x" * 5000)
    assert image is not None
    assert b"x" * 5000 + b"\0" in bytes(image.segments[3].buf)


def test_an_initrd_is_ignored_with_the_flag_that_says_so(kernel: KernelModel) -> None:
    image = load(kernel, IMAGE, INITRD, b"a\0", KEXEC_FILE_ON_CRASH | KEXEC_FILE_NO_INITRAMFS)
    assert image is not None
    assert [one.name for one in image.segments] == ["kernel", "elfcorehdr", "dtb", "purgatory"]


# -- life of an image ------------------------------------------------------------------------------------------


def test_unloading_leaves_the_bytes_but_no_image_and_is_fine_when_there_is_none(kernel: KernelModel) -> None:
    flags = KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD
    assert kernel.kexec_file_load(None, flags=flags) is None
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    assert kernel.kexec_file_load(None, flags=flags) is None
    assert kernel.image is None and kernel.guest.read("kexec_crash_image") == 0
    assert kernel.ram.read(image.segments[0].mem, len(IMAGE)) == IMAGE


def test_unloading_without_the_crash_flag_concerns_the_other_image(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert kernel.kexec_file_load(None, flags=KEXEC_FILE_UNLOAD) is None
    assert kernel.image is image is not None


@pytest.mark.parametrize("era", ["6.1", "6.12"])
def test_loading_again_gives_the_same_places_and_the_new_contents(era: str) -> None:
    kernel = small(era)
    first = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    second = kernel.kexec_file_load(IMAGE, INITRD[::-1], CMDLINE)
    assert isinstance(first, Kimage) and isinstance(second, Kimage)
    assert [one.area for one in first.segments] == [one.area for one in second.segments]
    assert first.digest != second.digest
    initrd = second.segment("initrd")
    assert initrd is not None and kernel.ram.read(initrd.mem, len(INITRD)) == INITRD[::-1]


def test_a_protection_that_the_linear_map_cannot_express_leaves_no_image_and_no_lock() -> None:
    """crashkernel= is found anywhere in the command line when it is read, but map_mem() asks for a parameter."""
    kernel = boot("6.1", "foo.crashkernel=64M rodata=on", ram="256M")
    for _ in range(2):
        with pytest.raises(InputError, match="protection is impossible here"):
            kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
        assert kernel.image is None and not kernel.kexec.locked


def test_a_purgatory_without_the_digest_s_symbols_is_refused_at_the_load(tmp_path: Path) -> None:
    data = purgatory_path().read_bytes().replace(b"purgatory_sha_regions", b"purgatory_sha_regionz")
    path = tmp_path / "purgatory.ro"
    path.write_bytes(data)
    error = refusal(small(purgatory=path), IMAGE, INITRD, CMDLINE)
    assert (error.errno, error.step) == (EINVAL, "kexec_purgatory_get_set_symbol")
    assert "purgatory_sha_regions does not exist" in str(error)


def test_a_purgatory_file_that_is_none_is_refused_at_boot_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "purgatory.ro"
    with pytest.raises(InputError, match="No such file"):
        small(purgatory=path)
    path.write_bytes(b"\x7fELF")
    with pytest.raises(KexecError) as caught:
        small(purgatory=path)
    assert caught.value.errno == ENOEXEC and str(path) in str(caught.value)


def test_without_a_purgatory_the_kernel_is_the_entry_and_there_is_no_digest() -> None:
    kernel = small(purgatory=None)
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    assert image.start == image.kernel_entry == image.segments[0].mem
    assert (image.digest, image.sha_regions, image.purgatory) == (None, [], None)
