"""Targets and faults: every form leads where it should, every nonsense is refused."""

from __future__ import annotations

import pytest

from kexecemu import Board, By, Fault, InputError, Kernel, KernelConfig, When
from kexecemu.data import fixture_path
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.stray.fault import Injection, account, parse_hex, parse_when
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
    # Of all that is free it is the largest piece, from its first byte to its last.
    used = sorted([*(one.area for one in kernel.image.segments), *kernel.image.control_pages])
    edges = [
        kernel.crashk_res.start,
        *(edge for one in used for edge in (one.start, one.end)),
        kernel.crashk_res.end,
    ]
    gaps = [(end - start, start) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]
    size, start = max(gaps)
    assert len({size for size, _ in gaps}) > 1 and phys == start + 0x1000
    assert place(kernel, f"crashkernel-free+{size - 1:#x}", 1) == start + size - 1
    with pytest.raises(InputError, match=f"do not fit in the {size:#x} bytes of crashkernel-free"):
        place(kernel, f"crashkernel-free+{size - 1:#x}", 2)


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


def test_a_fault_is_a_byte_after_the_load_by_a_cpu_unless_it_says_otherwise() -> None:
    fault = Fault("initrd", bytearray(b"ab"))  # type: ignore[arg-type]
    assert fault == Fault("initrd", b"ab", None, By.CPU, When.AFTER_LOAD, 1, 0, None, 0)
    assert type(fault.write) is bytes and (fault.moment, fault.when_word) == (
        (When.AFTER_LOAD, 0),
        "after-load",
    )
    assert Fault(0x1000, flip=1).at == "0x1000"  # type: ignore[arg-type]
    later = Fault("initrd", flip=1, by="dma", when="hashing-12")  # type: ignore[arg-type]
    assert (later.by, later.moment, later.when_word) == (By.DMA, (When.WHILE_HASHING, 12), "hashing-12")


ONE = "fault at initrd: give one of the bytes to write, the bits to flip, and a model"
HASHING = {"flip": 1, "by": By.DMA, "when": When.WHILE_HASHING}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, ONE),
        ({"write": b"a", "model": "byte"}, ONE),
        ({"flip": 1, "model": "byte"}, ONE),
        ({"flip": 1, "variant": 1}, "fault at initrd: a variant is one of a model's, and none is named"),
        ({"model": "byte", "variant": 255}, "fault model byte has no variant 0xff: there are 0xff"),
        ({"model": "byte", "variant": -1}, "fault model byte has no variant -0x1: there are 0xff"),
        ({"write": b""}, "fault at initrd: nothing to write"),
        ({"flip": 0}, "fault at initrd: flip is a mask of bits in one byte, 0x01 to 0xff"),
        ({"flip": 0x100}, "fault at initrd: flip is a mask of bits in one byte, 0x01 to 0xff"),
        ({"write": b"a", "width": 16}, "fault at initrd: a store is 1, 2, 4 or 8 bytes wide, not 16"),
        ({"flip": 1, "step": 1}, "fault at initrd: after-load goes to 0, not 1"),
        (HASHING | {"step": 257}, "fault at initrd: hashing goes to 256, not 257"),
        (HASHING | {"step": -1}, "fault at initrd: hashing goes to 256, not -1"),
        ({"flip": 1, "by": By.LATE_CPU}, "fault at initrd: a late-cpu is one that does not stop at the crash: "
         "before that none is late"),
        ({"flip": 1, "when": When.AT_JUMP}, "fault at initrd: CPUs have stopped by the moment at-jump; DMA and a "
         "late-cpu still write"),
        ({"flip": 1, "when": "capture-x-1"}, "fault at initrd: when: no moment 'capture-x-1'"),
        ({"flip": 1, "when": "at-jump-1"}, "fault at initrd: when: at-jump goes without a number, not 'at-jump-1'"),
        ({"flip": 1, "when": "hashing-257"}, "fault at initrd: when: 'hashing-257' is too far: hashing goes to 256"),
        ({"write": "text"}, "fault at initrd: write"),
        ({"flip": "1"}, "fault at initrd: flip"),
        ({"flip": 1, "step": "1"}, "fault at initrd: step"),
        ({"flip": 1, "by": "gpu"}, "fault at initrd: by"),
        ({"flip": 1, "when": "soon"}, "fault at initrd: when"),
        ({"at": True, "flip": 1}, "fault: at"),
        ({"at": None, "flip": 1}, "fault: at"),
    ],
)  # fmt: skip
def test_what_makes_no_fault_is_refused_by_what_is_wrong_with_it(words: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        Fault(**({"at": "initrd"} | words))  # type: ignore[arg-type]
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hashing", "here: 'hashing' needs its number of 256ths, as in hashing-128"),
        ("capture", "here: 'capture' needs its number of instructions, as in capture-1000"),
        ("at-jump-3", "here: at-jump goes without a number, not 'at-jump-3'"),
        ("hashing-257", "here: 'hashing-257' is too far: hashing goes to 256"),
        ("capture-1000000001", "here: 'capture-1000000001' is too far: capture goes to 1000000000"),
        ("at-jum", "here: no moment 'at-jum' (did you mean at-jump?); there are during-load, after-load, before-panic, "
         "during-panic, at-jump, hashing-N, after-check, capture-N"),
    ],
)  # fmt: skip
def test_a_moment_that_is_none_is_refused_with_what_it_lacks(word: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_when(word, "here")
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("fault", "before", "after"),
    [
        (Fault("x", b"abc"), b"1234", b"abc"),
        (Fault("x", b"abc"), b"12", b"ab"),  # the end of RAM
        (Fault("x", flip=0x81), b"\x01\x02", b"\x80"),
        (Fault("x", model="stuck-at-1", variant=1), b"1234", b"\xff" * 4),
        (Fault("x", model="stuck-at-1", variant=1), b"12", b"\xff" * 2),
        (Fault("x", model="bit-flip", variant=3), b"\0", b"\x08"),
    ],
)
def test_what_a_fault_writes_is_as_long_as_it_says_or_as_there_is_room(
    fault: Fault, before: bytes, after: bytes
) -> None:
    assert fault.data(before) == after
    assert fault.length == max(len(after), {"stuck-at-1": 4}.get(fault.model or "", len(fault.write or b"1")))


def test_an_injection_is_told_with_the_exception_that_it_met_and_what_is_left_of_it() -> None:
    abort = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, 0xFFFF800008000000, 1, 0x3C5)
    fault = Fault("initrd", b"ab")
    for after, words in ((b"\0\0", "memory is intact"), (b"a\0", "part of it was written")):
        told = account(Injection(fault, 0x40, b"\0\0", after, abort, 1), b"ab")
        assert told == f"cpu1 stores 6162 at initrd (0x40, was 0000): {abort.description}; {words}"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("0x0", "target 0x0: no RAM at physical 0x0"),
        ("0x4fffffff", "target 0x4fffffff: no RAM at physical 0x4fffffff"),  # two bytes from its last one
        ("1+", "target '1+' is neither NAME, NAME+OFFSET nor a physical address"),
        ("initrd+010", "target 'initrd+010' is neither NAME, NAME+OFFSET nor a physical address"),
        ("initrd+0x13ff", "target initrd+0x13ff: 2 bytes at offset 0x13ff do not fit in the 0x2000 bytes of initrd"),
        ("vmlinux:linux_bannr", "target vmlinux:linux_bannr: the first kernel has no symbol linux_bannr (did you mean "
         "linux_banner?)"),
        ("initr", "target initr: no such segment or symbol (did you mean initrd?); there are kernel, elfcorehdr, "
         "initrd, dtb, purgatory, crashkernel, crashkernel-free, purgatory:SYMBOL, vmlinux:SYMBOL and physical "
         "addresses"),
    ],
)  # fmt: skip
def test_a_target_that_is_none_is_refused_with_what_there_is(kernel: Kernel, target: str, said: str) -> None:
    size = 2 if "13ff" not in target else 0x2000
    with pytest.raises(InputError) as refusal:
        place(kernel, target, size)
    assert str(refusal.value) == said.replace("2 bytes at", f"{size} bytes at")


def test_a_model_s_write_may_run_over_the_end_of_its_target_and_ends_with_ram(kernel: Kernel) -> None:
    end = kernel.ram.banks[-1].end
    for at, size in ((f"{end - 4:#x}", 4), (f"{end - 8:#x}", 8), ("initrd+0x1fff", 8)):
        area = resolve(kernel, Fault(at, model="word64"))
        assert area.size == size
    assert kernel.image is not None
    initrd = kernel.image.segment("initrd")
    assert initrd is not None and area.start == initrd.mem + 0x1FFF
