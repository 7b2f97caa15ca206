"""kexec_file_load(2) row by row: what a load, an unload and a shrink leave, and the window without a crash kernel."""

from __future__ import annotations

from errno import EACCES, EBADF, EBUSY, EFBIG, EINVAL, EIO, EKEYREJECTED, ENOENT, ENOSYS, EPERM, ETXTBSY

import pytest
from image_header import build

from kexecemu import KEXEC_FILE_ON_CRASH, KEXEC_FILE_UNLOAD, Board, Kernel, KernelConfig, KexecError
from kexecemu.data import fixture_path
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.crash_size import crash_shrink_memory
from kexecemu.kernel.image.kimage import IND_DONE
from kexecemu.kernel.load.files import OpenFile
from kexecemu.kernel.load.kexec_file import load
from kexecemu.kernel.procfs import proc_iomem, sysfs

STUB = fixture_path("guests/capture-Image").read_bytes()
MIB = 1 << 20
DEBUG = 8


def booted(era: str = "6.1", cmdline: str = "crashkernel=64M", **config: object) -> Kernel:
    return Kernel.boot(Board("256M"), KernelConfig(era, **config), cmdline=cmdline)  # type: ignore[arg-type]


@pytest.fixture
def kernel() -> Kernel:
    return booted()


def refused(kernel: Kernel, image: OpenFile | bytes | None = STUB, **arguments: object) -> int:
    with pytest.raises(KexecError) as refusal:
        kernel.kexec_file_load(image, **arguments)  # type: ignore[arg-type]
    assert refusal.value.errno is not None
    return refusal.value.errno


def test_b1_without_the_capability_or_once_disabled_it_is_eperm(kernel: Kernel) -> None:
    assert refused(kernel, None, flags=0x1000, capable=False) == EPERM  # before any other check
    kernel.kexec.load_disabled = True
    assert refused(kernel) == EPERM
    assert sysfs(kernel)["/proc/sys/kernel/kexec_load_disabled"] == "1\n"
    # Even an unload, as the real kernel said.
    assert refused(kernel, flags=KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD) == EPERM


def test_b1_a_kernel_without_kexec_file_has_no_such_call() -> None:
    assert refused(booted(options={"KEXEC_FILE": "n"})) == ENOSYS


@pytest.mark.parametrize(
    ("era", "flags"), [("6.1", DEBUG), ("6.4", DEBUG), ("6.12", 0x10), ("6.1", 0x80000000)]
)
def test_b1_unknown_flags_are_einval(era: str, flags: int) -> None:
    assert refused(booted(era), flags=KEXEC_FILE_ON_CRASH | flags) == EINVAL


def test_b1_the_debug_flag_is_known_to_6_12() -> None:
    assert booted("6.12").kexec_file_load(STUB, flags=KEXEC_FILE_ON_CRASH | DEBUG) is not None


def test_b1_a_second_load_at_the_same_time_is_ebusy(kernel: Kernel) -> None:
    kernel.kexec.locked = True
    assert refused(kernel) == EBUSY
    assert refused(kernel, flags=0) == EBUSY
    assert kernel.kexec.locked  # it is not ours to release


@pytest.mark.parametrize("bad", [b"", b"no Image at all" * 10, STUB[:63]])
def test_b1_a_failed_reload_leaves_no_crash_kernel_and_nothing_protected(kernel: Kernel, bad: bytes) -> None:
    kernel.kexec_file_load(STUB, bytes(100))
    assert kernel.protected
    assert refused(kernel, bad) == EINVAL
    assert kernel.image is None
    assert kernel.guest.read("kexec_crash_image") == 0
    assert kernel.protected == []
    assert sysfs(kernel)["/sys/kernel/kexec_crash_loaded"] == "0\n"
    assert not kernel.kexec.locked


def test_b1_while_a_load_is_under_way_no_crash_kernel_is_loaded(kernel: Kernel) -> None:
    kernel.kexec_file_load(STUB)
    seen: list[object] = []

    class Spy:
        def check(self, image: bytes, log: object) -> None:
            seen.append((kernel.image, kernel.guest.read("kexec_crash_image"), kernel.protected))

    kernel.kexec.signature_policy = Spy()
    kernel.kexec_file_load(STUB)
    assert seen == [(None, 0, [])]
    assert kernel.image is not None


def test_b1_unload_ignores_everything_else_and_succeeds_on_nothing(kernel: Kernel) -> None:
    unload = KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD
    assert kernel.kexec_file_load(None, None, b"no NUL", flags=unload) is None
    kernel.kexec_file_load(STUB)
    assert kernel.kexec_file_load(None, flags=unload) is None
    assert kernel.image is None


def test_b10_an_unload_leaves_the_memory_as_it_is(kernel: Kernel) -> None:
    image = kernel.kexec_file_load(STUB, bytes(range(256)))
    assert image is not None
    kernel.kexec_file_load(None, flags=KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD)
    assert all(kernel.ram.read(one.mem, one.memsz) == one.content() for one in image.segments)
    # And everyone may write there again.
    assert kernel.stray_write(hex(image.segments[0].mem), b"\x01").exception is None


@pytest.mark.parametrize("which", ["kernel", "initrd"])
@pytest.mark.parametrize(
    ("change", "errno"),
    [
        ({"readable": False}, EBADF),
        ({"regular": False}, EINVAL),
        ({"open_for_write": True}, ETXTBSY),
        ({"lsm_denies": True}, EACCES),
        ({"data": b""}, EINVAL),
        ({"size": (4 << 30) + 1}, EFBIG),
        ({"size": 1 << 20}, EIO),
    ],
)
def test_b2_a_file_that_cannot_be_read_has_its_errno(
    kernel: Kernel, which: str, change: dict[str, object], errno: int
) -> None:
    file = OpenFile(**{"data": STUB, **change})  # type: ignore[arg-type]
    files = {"image": STUB, "initrd": STUB, ("image" if which == "kernel" else "initrd"): file}
    assert refused(kernel, **files) == errno  # type: ignore[arg-type]


def test_b2_a_bad_descriptor_is_ebadf(kernel: Kernel) -> None:
    assert refused(kernel, None) == EBADF
    with pytest.raises(KexecError) as refusal:
        load(kernel, STUB, None, None, KEXEC_FILE_ON_CRASH)  # no NO_INITRAMFS: the initrd's descriptor counts
    assert refusal.value.errno == EBADF


def test_b2_the_image_is_looked_at_before_the_initrd(kernel: Kernel) -> None:
    with pytest.raises(KexecError, match="not an arm64 Image"):
        kernel.kexec_file_load(b"x" * 100, OpenFile(b""))


def test_b2_a_signature_is_asked_before_the_initrd_is_read(kernel: Kernel) -> None:
    class Refuse:
        def check(self, image: bytes, log: object) -> None:
            raise KexecError(EKEYREJECTED, "verify_pefile_signature", "no")

    kernel.kexec.signature_policy = Refuse()
    assert refused(kernel, STUB, initrd=OpenFile(b"")) == EKEYREJECTED


def test_b2_a_command_line_without_its_nul_is_einval(kernel: Kernel) -> None:
    assert refused(kernel, cmdline=b"console=ttyAMA0") == EINVAL


def test_b2_a_command_line_of_no_length_deletes_bootargs(kernel: Kernel) -> None:
    for cmdline, expected in (
        (b"", None),
        (None, None),
        (b"\0", b"\0"),
        ("", b"\0"),
        ("quiet", b"quiet\0"),
        (b"a\0b\0", b"a\0"),
    ):
        image = kernel.kexec_file_load(STUB, None, cmdline)
        assert image is not None
        segment = image.segment("dtb")
        assert segment is not None
        tree = Fdt(bytes(segment.buf))
        chosen = tree.path_offset("/chosen")
        assert chosen is not None
        assert tree.getprop(chosen, "bootargs") == expected


def test_b2_there_is_no_limit_on_the_command_line_here(kernel: Kernel) -> None:
    # arm64 has no check of COMMAND_LINE_SIZE; the new kernel cuts it.
    assert kernel.kexec_file_load(STUB, None, "x" * 5000) is not None


def test_b2_control_pages_are_the_first_free_ones_of_the_region(kernel: Kernel) -> None:
    image = kernel.kexec_file_load(STUB, bytes(5000))
    assert image is not None
    initrd = image.segment("initrd")
    assert initrd is not None
    assert image.control_code_page == initrd.mem + initrd.memsz
    assert image.vmcoreinfo_safecopy == image.control_code_page + 4096
    assert kernel.ram.read(image.vmcoreinfo_safecopy, 4096).rstrip(b"\0") == kernel.vmcoreinfo()


def test_b8_memory_is_the_buffer_and_zeros_to_memsz(kernel: Kernel) -> None:
    assert kernel.crashk_res is not None
    kernel.ram.fill(kernel.crashk_res.start, kernel.crashk_res.size, 0xFF)
    image = kernel.kexec_file_load(build(image_size=MIB) + b"text" * 1000, b"initrd" * 1000)
    assert image is not None
    for segment in image.segments:
        memory = kernel.ram.read(segment.mem, segment.memsz)
        assert memory[: segment.bufsz] == segment.buf
        assert not any(memory[segment.bufsz :])


def test_the_kimage_in_guest_memory_is_what_was_loaded(kernel: Kernel) -> None:
    image = kernel.kexec_file_load(STUB, bytes(5000))
    assert image is not None
    guest, layout = kernel.guest, kernel.guest.vmlinux
    virt = guest.read("kexec_crash_image")
    assert virt == layout.virt("crash_kimage_storage")

    def member(name: str) -> int:
        return guest.read("crash_kimage_storage", layout.offsetof("kimage", name))

    assert member("start") == image.start
    assert member("head") == IND_DONE
    assert member("nr_segments") == len(image.segments)
    base = layout.offsetof("kimage", "segment")
    for index, segment in enumerate(image.segments):
        words = [guest.read("crash_kimage_storage", base + 32 * index + 8 * word) for word in range(4)]
        assert words == [0, segment.bufsz, segment.mem, segment.memsz]


def test_a_reload_of_the_same_files_gives_the_same_image(kernel: Kernel) -> None:
    first = kernel.kexec_file_load(STUB, bytes(5000), "quiet")
    second = kernel.kexec_file_load(STUB, bytes(5000), "quiet")
    assert first is not None
    assert second is not None
    assert [(one.name, one.mem, one.content()) for one in first.segments] == [
        (one.name, one.mem, one.content()) for one in second.segments
    ]
    assert kernel.panic().outcome == "captured"


# /sys/kernel/kexec_crash_size: crash_shrink_memory()


def test_b11_shrinking_needs_no_image_and_a_smaller_size(kernel: Kernel) -> None:
    with pytest.raises(KexecError) as refusal:
        crash_shrink_memory(kernel, 65 * MIB)
    assert refusal.value.errno == EINVAL
    crash_shrink_memory(kernel, 64 * MIB)  # equal: nothing to do
    kernel.kexec_file_load(STUB)
    with pytest.raises(KexecError) as refusal:
        crash_shrink_memory(kernel, MIB)
    assert refusal.value.errno == ENOENT
    kernel.kexec.locked = True
    with pytest.raises(KexecError) as refusal:
        crash_shrink_memory(kernel, MIB)
    assert refusal.value.errno == EBUSY


def test_b11_a_shrunk_region_keeps_its_start_and_the_rest_is_free(kernel: Kernel) -> None:
    before = kernel.crashk_res
    assert before is not None
    crash_shrink_memory(kernel, 16 * MIB + 1)
    after = kernel.crashk_res
    assert after is not None
    assert (after.start, after.size) == (before.start, 16 * MIB + 4096)
    assert sysfs(kernel)["/sys/kernel/kexec_crash_size"] == f"{after.size}\n"
    assert f"  {after.start:08x}-{after.last:08x} : Crash kernel\n" in proc_iomem(kernel)
    assert kernel.guest.read("crashk_res", kernel.guest.vmlinux.offsetof("resource", "end")) == after.last
    image = kernel.kexec_file_load(STUB)
    assert image is not None
    assert all(after.covers(one.area) for one in image.segments)
    assert kernel.panic().outcome == "captured"


def test_b11_shrinking_to_nothing_releases_the_region(kernel: Kernel) -> None:
    crash_shrink_memory(kernel, 0)
    assert kernel.crashk_res is None
    assert "Crash kernel" not in proc_iomem(kernel)
    with pytest.raises(KexecError, match="no crashkernel memory is reserved"):
        kernel.kexec_file_load(STUB)
