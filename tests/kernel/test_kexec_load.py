"""kexec_load(2) and kexec-tools' part of it, against what `kexec -c -p -d` printed on real machines."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from errno import EACCES, EADDRNOTAVAIL, EBUSY, EINVAL, EPERM

import pytest
from image_header import build

from kexecemu import Board, InputError, Kernel, KernelConfig, KexecError
from kexecemu.data import fixture_path
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import KEXEC_ARCH_AARCH64, Kimage, Segment
from kexecemu.kernel.load import environment
from kexecemu.kernel.load.kexec_load import KEXEC_ON_CRASH, KexecLoadArguments, kexec_load
from kexecemu.kernel.load.kexec_tools import core_header_size
from kexecemu.kernel.procfs import proc_iomem, sysfs
from kexecemu.kernel.signature.policy import KexecSignaturePolicy, Lockdown

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()
CMDLINE = "console=ttyAMA0 earlycon=pl011,0x9000000 nr_cpus=1 reset_devices irqpoll panic=5 rdinit=/init"
MIB = 1 << 20


def booted(cmdline: str = "crashkernel=96M", ram: str = "768M", **config: object) -> Kernel:
    options = {"ZONE_DMA": "n"}
    return Kernel.boot(Board(ram, 2), KernelConfig("6.1", options=options, **config), cmdline=cmdline)  # type: ignore[arg-type]


def image(size: int, image_size: int) -> bytes:
    return build(image_size=image_size) + bytes(size - 64)


def test_segments_lie_where_kexec_tools_put_them_on_the_real_machine() -> None:
    # kexec -c -p of Image 0x50b828 (image_size 0x550000) and an initrd of 0x27d988 bytes, crashkernel=96M of 768 MiB.
    kernel = booted()
    loaded = kernel.kexec_tools_load(image(0x50B828, 0x550000), bytes(0x27D988), CMDLINE)
    assert [(one.name, one.bufsz, one.mem, one.memsz) for one in loaded.segments[:2]] == [
        ("kernel", 0x50B828, 0x6A000000, 0x550000),
        ("initrd", 0x27D988, 0x6A550000, 0x27E000),
    ]
    tree, purgatory, core = loaded.segments[2:]
    assert (tree.name, tree.mem) == ("dtb", 0x6A7CE000)
    assert (purgatory.name, purgatory.mem) == ("purgatory", tree.mem + tree.memsz)
    assert (core.name, core.bufsz, core.mem, core.memsz) == ("elfcorehdr", 0x400, 0x6FFFF000, 0x1000)
    assert loaded.start == purgatory.mem
    assert loaded.segments == sorted(loaded.segments, key=lambda one: one.mem)


def test_the_device_tree_is_edited_as_kexec_tools_does() -> None:
    kernel = booted()
    loaded = kernel.kexec_tools_load(image(0x50B828, 0x550000), bytes(0x27D988), CMDLINE)
    tree = loaded.segment("dtb")
    assert tree is not None
    fdt = Fdt(bytes(tree.buf))
    chosen = fdt.path_offset("/chosen")
    assert chosen is not None
    # Values are padded to whole cells: on the real machine 93 characters became 96 bytes.
    assert fdt.getprop(chosen, "bootargs") == CMDLINE.encode() + bytes(3)
    assert fdt.get_cells(chosen, "linux,elfcorehdr") == [0, 0x6FFFF000, 0, 0x400]
    assert fdt.get_cells(chosen, "linux,usable-memory-range") == [0, 0x6A000000, 0, 0x6000000]
    assert fdt.get_u64(chosen, "linux,initrd-start") == 0x6A550000
    assert fdt.get_u64(chosen, "linux,initrd-end") == 0x6A7CD988
    assert fdt.getprop(chosen, "linux,booted-from-kexec") is None
    assert fdt.mem_reservations() == []
    # New properties come first, the last one added before the others.
    names = [one.name for one in fdt.properties(chosen)]
    assert names.index("linux,usable-memory-range") < names.index("linux,elfcorehdr")


def chosen_of(kernel: Kernel, cmdline: str = CMDLINE) -> tuple[Fdt, int]:
    """/chosen of the device tree that kexec-tools makes."""
    tree = kernel.kexec_tools_load(image(0x50B828, 0x550000), None, cmdline).segment("dtb")
    assert tree is not None
    fdt = Fdt(bytes(tree.buf))
    chosen = fdt.path_offset("/chosen")
    assert chosen is not None
    return fdt, chosen


def with_seeds(cmdline: str, *, rng_ready: bool) -> Kernel:
    """A kernel whose boot loader gave it random numbers."""
    board = Board("768M", 2)
    dtb = virt_device_tree(
        board.ram.banks,
        2,
        0x9000000,
        cmdline=cmdline,
        kaslr_seed=0x1122334455667788,
        rng_seed=bytes(range(1, 33)),
    )
    return Kernel.boot(board, KernelConfig("6.1", rng_ready=rng_ready), cmdline=None, dtb=dtb)


@pytest.mark.parametrize("rng_ready", [False, True])
def test_a_seed_that_the_kernel_has_used_up_becomes_another_one_if_there_are_random_numbers(
    rng_ready: bool,
) -> None:
    kernel = with_seeds("crashkernel=96M", rng_ready=rng_ready)
    running = Fdt(kernel.initial_boot_params)
    own = running.path_offset("/chosen")
    assert own is not None
    assert running.get_u64(own, "kaslr-seed") == 0
    assert running.getprop(own, "rng-seed") is None
    fdt, chosen = chosen_of(kernel)
    seed = fdt.get_u64(chosen, "kaslr-seed")
    assert seed is not None
    assert (seed != 0, seed == 0x1122334455667788) == (rng_ready, False)
    assert fdt.getprop(chosen, "rng-seed") is None


@pytest.mark.parametrize("cmdline", ["crashkernel=96M", "crashkernel=96M quiet panic=5"])
def test_an_empty_command_line_leaves_the_running_kernel_s_own(cmdline: str) -> None:
    # set_bootargs() of 2.0.25 and 2.0.29, and kexec -p --append "" on Debian's 6.1
    fdt, chosen = chosen_of(booted(cmdline), "")
    assert fdt.getprop(chosen, "bootargs") == cmdline.encode() + b"\0"


def test_a_seed_that_nokaslr_has_left_there_is_refused() -> None:
    # Linux 6.1 with nokaslr, and kexec-tools 2.0.25: "setup_2nd_dtb: kaslr-seed is not wiped to 0."
    with pytest.raises(InputError, match="kaslr-seed is not wiped to 0"):
        chosen_of(with_seeds("crashkernel=96M nokaslr", rng_ready=True))


@pytest.mark.parametrize(("era", "size"), [("6.1", 256), ("6.4", 256), ("6.12", 256 + 64)])
def test_both_parts_of_a_high_reservation_are_usable_and_later_kernels_count_both(
    era: str, size: int
) -> None:
    cmdline = "crashkernel=256M,high crashkernel=64M,low"
    kernel = Kernel.boot(Board("6G"), KernelConfig(era), cmdline=cmdline)
    fdt, chosen = chosen_of(kernel)
    high, low = kernel.crashk_res, kernel.crashk_low_res
    assert high is not None
    assert low is not None
    # Linux 6.12 of 6 GiB: <1 a9200000 0 10000000 0 f4000000 0 8000000>, the low part behind.
    assert fdt.getprop(chosen, "linux,usable-memory-range") == struct.pack(
        ">4Q", high.start, high.size, low.start, low.size
    )
    assert sysfs(kernel)["/sys/kernel/kexec_crash_size"] == f"{size << 20}\n"


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return booted()


def segments(kernel: Kernel) -> list[Segment]:
    assert kernel.crashk_res is not None
    return [Segment("kernel", b"x", kernel.crashk_res.start, 0x1000)]


def call(kernel: Kernel, **change: object) -> None:
    assert kernel.crashk_res is not None
    arguments = KexecLoadArguments(kernel.crashk_res.start, segments(kernel))
    kexec_load(kernel, replace(arguments, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("era", "known"),
    [("6.1", 0), ("6.5", 0), ("6.6", 4), ("6.7", 4), ("6.12", 4 | 8), ("6.18", 4 | 8), ("7.3", 4 | 8)],
)
def test_the_flags_that_are_taken_are_the_era_s(era: str, known: int) -> None:
    """KEXEC_UPDATE_ELFCOREHDR is 4, KEXEC_CRASH_HOTPLUG_SUPPORT is 8."""
    with Kernel.boot(Board("256M"), KernelConfig(era), cmdline="crashkernel=64M") as kernel:
        for bit in range(1, 16):
            flags = KEXEC_ARCH_AARCH64 | KEXEC_ON_CRASH | 1 << bit
            if known & 1 << bit:
                call(kernel, flags=flags)
                assert kernel.image is not None and len(kernel.image.segments) == 1
                continue
            with pytest.raises(KexecError, match="unknown flags") as refusal:
                call(kernel, flags=flags)
            assert refusal.value.errno == EINVAL


@pytest.mark.parametrize(
    ("change", "errno"),
    [
        ({"flags": KEXEC_ARCH_AARCH64 | KEXEC_ON_CRASH | 2}, EINVAL),  # KEXEC_PRESERVE_CONTEXT is not arm64's
        ({"flags": 62 << 16 | KEXEC_ON_CRASH}, EINVAL),  # EM_X86_64
        ({"segments": [Segment("s", b"", 0x6A000000 + at * 0x1000, 0x1000) for at in range(17)]}, EINVAL),
        ({"entry": 0x40000000}, EADDRNOTAVAIL),
        ({"segments": [Segment("s", b"", 0x40000000, 0x1000)]}, EADDRNOTAVAIL),
        ({"segments": [Segment("s", b"", 0x6A000800, 0x1000)]}, EADDRNOTAVAIL),
        (
            {"segments": [Segment("s", b"xx", 0x6A000000, 0x1000), Segment("t", b"", 0x6A000000, 0x1000)]},
            EINVAL,
        ),
    ],
)
def test_a_bad_call_gets_the_kernels_errno(kernel: Kernel, change: dict[str, object], errno: int) -> None:
    with pytest.raises(KexecError) as refusal:
        call(kernel, **change)
    assert refusal.value.errno == errno


def test_privilege_lockdown_and_the_lock_come_first(kernel: Kernel) -> None:
    arguments = KexecLoadArguments(0, [], flags=0xFFFFFFFF)  # everything else is wrong as well
    with pytest.raises(KexecError) as refusal:
        kexec_load(kernel, arguments, capable=False)
    assert refusal.value.errno == EPERM
    kernel.kexec.signature_policy = KexecSignaturePolicy(lockdown=Lockdown.INTEGRITY)
    with pytest.raises(KexecError) as refusal:
        kexec_load(kernel, arguments)
    assert refusal.value.errno == EPERM
    kernel.kexec.signature_policy = None
    kernel.kexec.locked = True
    try:
        with pytest.raises(KexecError) as refusal:
            call(kernel)
        assert refusal.value.errno == EBUSY
    finally:
        kernel.kexec.locked = False


def test_images_that_must_be_verified_cannot_be_loaded_this_way(kernel: Kernel) -> None:
    arguments = KexecLoadArguments(0x6A000000, segments(kernel))
    for policy, errno in (
        (KexecSignaturePolicy(lockdown=Lockdown.INTEGRITY), EPERM),
        (KexecSignaturePolicy(sig=True, secure_boot=True), EACCES),
        (KexecSignaturePolicy(ima_appraise=True), EACCES),
    ):
        kernel.kexec.signature_policy = policy
        with pytest.raises(KexecError) as refusal:
            kexec_load(kernel, arguments)
        assert refusal.value.errno == errno
    kernel.kexec.signature_policy = KexecSignaturePolicy(sig=True)
    assert kexec_load(kernel, arguments) is not None
    kernel.kexec.signature_policy = None


def test_the_default_architecture_is_accepted_and_an_empty_list_unloads(kernel: Kernel) -> None:
    for flags in (183 << 16 | 1, 1):  # EM_AARCH64
        call(kernel, flags=flags)
        assert kernel.image is not None
    assert sysfs(kernel)["/sys/kernel/kexec_crash_loaded"] == "1\n"
    call(kernel, segments=[])
    assert kernel.image is None
    assert sysfs(kernel)["/sys/kernel/kexec_crash_loaded"] == "0\n"


def test_a_failed_load_leaves_no_crash_kernel(kernel: Kernel) -> None:
    call(kernel)
    with pytest.raises(KexecError):
        call(kernel, entry=0x40000000)
    assert kernel.image is None


def test_segments_are_protected_as_by_the_other_call(kernel: Kernel) -> None:
    call(kernel)
    assert [(area.start, area.size) for area in kernel.protected] == [(0x6A000000, 0x1000)]


def test_kexec_tools_refuses_what_it_cannot_load() -> None:
    kernel = booted()
    with pytest.raises(InputError, match="cannot determine the file type"):
        kernel.kexec_tools_load(b"#!" * 100, None, "")
    with pytest.raises(InputError, match="2047"):
        kernel.kexec_tools_load(STUB, None, "x" * 2048)
    with pytest.raises(InputError, match="does not fit in crashkernel"):
        kernel.kexec_tools_load(image(4096, 1 << 30), None, "")
    with pytest.raises(InputError, match=r"initrd.*could not|could not.*initrd"):
        kernel.kexec_tools_load(STUB, bytes(100 * MIB), "")


def places(loaded: Kimage) -> list[tuple[str, int, int, int]]:
    return [(one.name, one.bufsz, one.mem, one.memsz) for one in loaded.segments]


def zboot_of(packed: bytes, compression: bytes) -> bytes:
    """struct linux_efi_zboot_header, and the kernel behind it."""
    header = struct.pack("<2s2x4sII8x32sI", b"MZ", b"zimg", 96, len(packed), compression, 0x818223CD)
    return header.ljust(96, b"\0") + packed + bytes(100)


def uimage_of(
    data: bytes, *, kind: int = 2, system: int = 5, arch: int = 22, comp: int = 0, size: int | None = None
) -> bytes:
    """struct image_header of U-Boot, and what it carries."""
    told = len(data) if size is None else size
    rest = struct.pack(">5I4B32s", 0, told, 0, 0, zlib.crc32(data), system, arch, kind, comp, b"Linux")
    magic = b"\x27\x05\x19\x56"
    return magic + struct.pack(">I", zlib.crc32(magic + bytes(4) + rest)) + rest + data


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (uimage_of(STUB, kind=3), "type 3 is no kernel"),
        (uimage_of(STUB, kind=4), "type 4 is no kernel"),
        (uimage_of(STUB, system=2), "for another system"),
        (uimage_of(STUB, arch=2), "for another machine"),
        (uimage_of(STUB, comp=2), "compressed by other than gzip"),
        (uimage_of(STUB, size=len(STUB) + 1), "its header says"),
        (uimage_of(STUB) + b"x", "its header says"),
        (uimage_of(STUB)[:-1], "its header says"),
        (uimage_of(STUB)[:-1] + b"x", "the data's checksum"),
        (uimage_of(STUB)[:8] + b"x" + uimage_of(STUB)[9:], "the header's checksum"),
        (uimage_of(STUB, comp=1), "uImage: incorrect header check"),
        (uimage_of(gzip.compress(STUB, mtime=0)[:500], comp=1), "its gzip data is cut off"),
    ],
)
def test_a_uimage_that_kexec_tools_refuses_is_refused_and_why_is_said(kernel: bytes, why: str) -> None:
    with pytest.raises(InputError, match=f"kexec-tools: uImage: .*{why}|kexec-tools: {why}"):
        booted().kexec_tools_load(kernel, None, CMDLINE)


def test_a_uimage_of_something_else_is_refused_as_that_would_be() -> None:
    with pytest.raises(InputError, match="cannot determine the file type"):
        booted().kexec_tools_load(uimage_of(b"text" * 100), None, CMDLINE)


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda data: gzip.compress(data, mtime=0), id="gzip"),
        pytest.param(
            lambda data: gzip.compress(data, mtime=0) + b"behind it", id="gzip, and something behind it"
        ),
        pytest.param(
            lambda data: gzip.compress(data[:9999], mtime=0) + gzip.compress(data[9999:], mtime=0),
            id="two members",
        ),
        pytest.param(lambda data: zboot_of(gzip.compress(data, mtime=0), b"gzip"), id="zboot"),
        pytest.param(lambda data: uimage_of(data), id="uImage"),
        pytest.param(lambda data: uimage_of(data, kind=14), id="uImage that may lie anywhere"),
        pytest.param(
            lambda data: uimage_of(gzip.compress(data, mtime=0), comp=1), id="uImage with gzip inside"
        ),
        pytest.param(lambda data: gzip.compress(uimage_of(data), mtime=0), id="gzip with a uImage inside"),
    ],
)
def test_a_kernel_that_kexec_tools_unpacks_lies_where_its_image_would(pack: Callable[[bytes], bytes]) -> None:
    """As measured on a machine: Image.gz by kexec_load has the same segments as the Image."""
    packed = pack(STUB)
    assert packed != STUB
    kernel = booted()
    loaded = kernel.kexec_tools_load(packed, INITRD, CMDLINE)
    assert places(loaded) == places(booted().kexec_tools_load(STUB, INITRD, CMDLINE))
    assert bytes(loaded.segments[0].buf) == STUB
    assert any("the kernel is unpacked" in event.text for event in kernel.board.timeline)
    assert kernel.panic().outcome == "captured"


def test_what_follows_an_image_is_cut_off_by_kexec_tools_and_refused_by_the_kernel() -> None:
    """A device tree behind the Image, as Android's boards have it: measured, kexec cuts bufsz to memsz."""
    whole = image(0x4000, 0x4000)
    kernel = booted()
    loaded = kernel.kexec_tools_load(whole + bytes(range(256)) * 40, None, CMDLINE)
    assert places(loaded)[0] == ("kernel", 0x4000, 0x6A000000, 0x4000)
    assert any("0x2800 bytes behind the Image" in event.text for event in kernel.board.timeline)
    with pytest.raises(KexecError) as refusal:
        booted().kexec_file_load(whole + bytes(0x2800), None, b"a\0")
    assert refusal.value.errno == EINVAL


def test_an_image_without_a_size_is_taken_for_one_of_an_old_kernel() -> None:
    """arm64_process_image_header(): 16 MiB, 512 KiB behind a multiple of 2 MiB, whatever text_offset says."""
    loaded = booted().kexec_tools_load(build(image_size=0, text_offset=0x1000) + bytes(4000), None, CMDLINE)
    name, _, mem, memsz = places(loaded)[0]
    assert (name, mem, memsz) == ("kernel", 0x6A080000, 16 * MIB)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (gzip.compress(b"text", mtime=0), "cannot determine the file type"),
        (gzip.compress(STUB, mtime=0)[:9], "gzip: the file is cut off"),
        (gzip.compress(STUB, mtime=0)[:-8] + bytes(8), "gzip: incorrect data check"),
        (b"", "cannot read the kernel: the file is empty"),
        (zboot_of(b"", b"zstd22"), "an EFI zboot kernel, zstd22 inside"),
        (zboot_of(gzip.compress(STUB, mtime=0), b"gzip")[:500], "zboot: the file is cut off"),
        (fixture_path("guests/vmlinux").read_bytes(), "kdump is not supported on arm64 for an ELF file"),
        (gzip.compress(fixture_path("guests/vmlinux").read_bytes(), mtime=0), "kdump is not supported"),
        (lzma.compress(STUB), "compressed with xz"),
    ],
)
def test_what_kexec_tools_cannot_unpack_is_named(kernel: bytes, words: str) -> None:
    with pytest.raises(InputError, match=f"kexec-tools: .*{words}"):
        booted().kexec_tools_load(kernel, None, "")


def test_without_the_symbols_of_kexec_tools_a_purgatory_is_refused() -> None:
    from kexecemu.data import purgatory_path

    kernel = booted(purgatory=str(purgatory_path()))
    with pytest.raises(KexecError, match="symbol arm64_sink does not exist"):
        kernel.kexec_tools_load(STUB, None, "")


def test_the_crash_by_kexec_load_is_checked_by_kexec_tools_purgatory() -> None:
    kernel = booted()
    kernel.kexec_tools_load(STUB, INITRD, "console=ttyAMA0")
    end = kernel.panic()
    assert end.outcome == "captured"
    assert "I'm in purgatory\npurgatory: entry=000000006a000000\npurgatory: dtb=" in end.console
    assert "purgatory: booting kernel now\n" in end.console


# What a real 6.1.192 of the same 768 MiB said; without the lines of devices and of early allocations we lack.
def test_iomem_says_what_the_real_kernel_said() -> None:
    lines = proc_iomem(booted()).splitlines()
    assert lines[0] == "09000000-09000fff : pl011@9000000"
    assert lines[1] == "  09000000-09000fff : 9000000.pl011 pl011@9000000"
    assert "40000000-6fffffff : System RAM" in lines
    assert lines[-1] == "  6a000000-6fffffff : Crash kernel"
    code = next(line for line in lines if line.endswith("Kernel code"))
    assert code.startswith("  40210000-")
    assert any(line.endswith(" : reserved") for line in lines)


def test_sysfs_says_what_the_real_kernel_said() -> None:
    files = sysfs(booted())
    assert files["/sys/kernel/kexec_crash_size"] == "100663296\n"
    assert files["/sys/kernel/kexec_loaded"] == "0\n"
    assert files["/sys/devices/system/cpu/cpu1/crash_notes_size"] == "424\n"
    phys, size = files["/sys/kernel/vmcoreinfo"].split()
    assert (len(phys), size) == (18, "1024")


def test_the_kernel_knows_neither_the_device_tree_nor_the_purgatory_that_user_space_has_made() -> None:
    """kexec_load() sets no kimage->arch.dtb_mem: a purgatory of kexec-tools brings its own."""
    kernel = booted()
    loaded = kernel.kexec_tools_load(STUB, INITRD, CMDLINE)
    arch = kernel.guest.vmlinux.offsetof("kimage", "arch")
    at = {
        name: arch + kernel.guest.vmlinux.offsetof("kimage_arch", name)
        for name in ("dtb_mem", "purgatory_mem")
    }
    assert [kernel.guest.read("crash_kimage_storage", offset) for offset in at.values()] == [0, 0]
    assert loaded.purgatory is not None and loaded.dtb_mem and not loaded.file_mode


@pytest.mark.parametrize("syscall", ["kexec_file_load", "kexec_tools_load", "reboot"])
def test_nothing_is_set_on_an_image_once_it_is_published(
    syscall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the rest of the load, nor by the crash, nor by the one who judges it."""
    published: list[dict[str, object]] = []
    name = "publish_reboot" if syscall == "reboot" else "publish"
    publish = getattr(environment, name)

    def note(state: KernelState, loaded: Kimage | None, *more: object) -> None:
        publish(state, loaded, *more)
        if loaded is not None:
            published.append(dict(vars(loaded)))

    monkeypatch.setattr(environment, name, note)
    kernel = booted()
    if syscall == "kexec_tools_load":
        loaded = kernel.kexec_tools_load(STUB, INITRD, CMDLINE)
    else:
        loaded = kernel.kexec_file_load(STUB, INITRD, CMDLINE, flags=0 if syscall == "reboot" else 2)
    end = kernel.reboot_by_kexec() if syscall == "reboot" else kernel.panic()
    assert end is not None and loaded is not None and loaded.purgatory is not None
    assert [dict(vars(loaded))] == published


@pytest.mark.parametrize(("headers", "size"), [(0, 1024), (17, 1024), (18, 2048), (72, 4096), (73, 5120)])
def test_kexec_tools_core_headers_take_whole_kib_and_are_full_with_72(headers: int, size: int) -> None:
    assert core_header_size(headers) == size
