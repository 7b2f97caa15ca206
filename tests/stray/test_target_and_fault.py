"""Targets and faults: every form leads where it should, every nonsense is refused."""

from __future__ import annotations

import pytest

from kexecemu import Board, By, Fault, InputError, Kernel, KernelConfig
from kexecemu.data import fixture_path
from kexecemu.stray.fault import parse_hex
from kexecemu.stray.target import resolve

STUB = fixture_path("guests/capture-Image").read_bytes()


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    kernel = Kernel.boot(Board("256M"), KernelConfig(), cmdline="crashkernel=64M")
    kernel.kexec_file_load(STUB, bytes(5000), "quiet")
    return kernel


def place(kernel: Kernel, target: str, length: int) -> int:
    area = resolve(kernel, Fault(target, write=bytes(length)))
    assert area.size == length
    return area.start


def test_a_segment_and_an_offset(kernel: Kernel) -> None:
    assert kernel.image is not None
    for segment in kernel.image.segments:
        assert place(kernel, segment.name, 1) == segment.mem
        assert place(kernel, f"{segment.name}+0x10", 1) == segment.mem + 16
        assert place(kernel, f"{segment.name}+16", 1) == segment.mem + 16
        assert place(kernel, f"{segment.name}+{segment.memsz - 1}", 1) == segment.mem + segment.memsz - 1


def test_symbols_of_the_purgatory_and_of_the_first_kernel(kernel: Kernel) -> None:
    assert kernel.image is not None and kernel.image.purgatory is not None
    digest = kernel.image.purgatory.symbol_phys("purgatory_sha256_digest")
    assert place(kernel, "purgatory:purgatory_sha256_digest+4", 1) == digest + 4
    assert kernel.ram.read(digest, 32) == kernel.image.digest
    assert place(kernel, "vmlinux:linux_banner", 1) == kernel.guest.phys("linux_banner")


def test_free_crash_memory_is_used_by_nothing(kernel: Kernel) -> None:
    assert kernel.image is not None
    phys = place(kernel, "crashkernel-free+0x1000", 8)
    assert kernel.crashk_res is not None
    assert phys in kernel.crashk_res
    assert kernel.image.segment_at(phys) is None
    assert not any(phys in page for page in kernel.image.control_pages)
    assert place(kernel, "crashkernel", 1) == kernel.crashk_res.start


def test_physical_addresses_in_hex_and_decimal(kernel: Kernel) -> None:
    assert place(kernel, "0x40000000", 1) == 0x40000000
    assert place(kernel, "1073741824", 1) == 0x40000000


@pytest.mark.parametrize(
    "target",
    [
        "",
        "initrd+",
        "initrd-1",
        "initrd+0xzz",
        "+5",
        "0x0",
        "0x4fffffff1",
        "nothing",
        "purgatory:",
        "vmlinux:",
        "a b",
    ],
)
def test_nonsense_is_refused(kernel: Kernel, target: str) -> None:
    with pytest.raises(InputError):
        place(kernel, target, 2)


def test_a_write_past_the_end_of_its_target_is_refused(kernel: Kernel) -> None:
    assert place(kernel, "dtb+0xffe", 2)
    with pytest.raises(InputError, match="do not fit in the 0x1000 bytes of dtb"):
        place(kernel, "dtb+0xfff", 2)


def test_before_a_load_there_is_nothing_to_hit() -> None:
    kernel = Kernel.boot(Board("256M"), KernelConfig(), cmdline="crashkernel=64M")
    with pytest.raises(InputError, match="no crash image is loaded"):
        place(kernel, "initrd", 1)


@pytest.mark.parametrize(
    "change", [{"write": b""}, {"write": b"a", "flip": 1}, {}, {"flip": 0}, {"flip": 256}]
)
def test_a_fault_is_bytes_or_bits(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Fault("initrd", **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "variant", "right"), [("byte", 254, True), ("byte", 255, False), ("byt", 0, False)]
)
def test_a_fault_of_a_model_is_one_of_those_that_there_are(model: str, variant: int, right: bool) -> None:
    if right:
        assert Fault("initrd", model=model, variant=variant).variant == variant
        return
    with pytest.raises(InputError, match="byt"):
        Fault("initrd", model=model, variant=variant)


def test_a_store_has_a_width_that_exists() -> None:
    with pytest.raises(InputError, match="1, 2, 4 or 8"):
        Fault("initrd", write=b"abc", width=3)


def test_a_flip_inverts_exactly_its_bits(kernel: Kernel) -> None:
    before = kernel.ram.read(place(kernel, "kernel+0x500", 1), 1)[0]
    injection = kernel.flip("kernel+0x500", 0x41, by=By.DMA)
    assert injection is not None
    assert injection.after[0] == before ^ 0x41
    kernel.flip("kernel+0x500", 0x41)
    assert kernel.ram.read(injection.phys, 1)[0] == before


def test_a_long_write_is_made_in_pieces_and_complete(kernel: Kernel) -> None:
    data = bytes(range(256)) * 40
    injection = kernel.stray_write("crashkernel-free", data, width=8)
    assert injection.after == data
    assert kernel.ram.read(injection.phys, len(data)) == data


@pytest.mark.parametrize(
    ("text", "data"), [("0xA5", b"\xa5"), ("de_ad", b"\xde\xad"), (" 00ff ", b"\x00\xff")]
)
def test_hex_digits(text: str, data: bytes) -> None:
    assert parse_hex(text, "x") == data
