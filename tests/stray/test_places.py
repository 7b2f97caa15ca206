"""Places by name in a kernel that is loaded in part, at the ends of RAM and of what is aimed at."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection
from kexecemu.stray.first import Left, through
from kexecemu.stray.target import area_of, resolve, resolve_by

LOW, HIGH = PhysRange.of(0x40000000, 0x10000), PhysRange.of(0x80000000, 0x10000)
REGION = PhysRange.of(0x40008000, 0x8000)
GUEST = PhysRange.of(0x40000000, 0x4000)
SYMBOLS = {"banner": 0x40000100, "last": 0x40003FFF, "size": 0x4000, "end": 0x40004000}


def kernel(image: Kimage | None, region: PhysRange | None = REGION) -> Any:
    """A first kernel with these symbols, one of which is a number and one behind its end."""
    vmlinux = SimpleNamespace(elf=SimpleNamespace(symbols=SYMBOLS))
    guest = SimpleNamespace(vmlinux=vmlinux, phys=SYMBOLS.__getitem__, area=GUEST)
    return SimpleNamespace(image=image, crashk_res=region, guest=guest, ram=Ram([LOW, HIGH]))


def image(*segments: Segment, control: PhysRange | None = None) -> Kimage:
    return Kimage(0, list(segments), control_pages=[control] if control else [])


INITRD = Segment("initrd", b"abc", 0x4000A000, 0x1000)


def at(where: Any, target: str, size: int = 1) -> PhysRange:
    return resolve(where, Fault(target, write=bytes(size)))


def refused(where: Any, target: str, size: int = 1) -> str:
    with pytest.raises(InputError) as refusal:
        at(where, target, size)
    return str(refusal.value)


def test_without_an_image_or_a_region_only_the_first_kernel_and_addresses_are_places() -> None:
    for bare in (kernel(None), kernel(image(INITRD), None), kernel(None, None)):
        assert at(bare, "vmlinux:banner").start == 0x40000100
        assert at(bare, "0x80000000").start == 0x80000000
        for name in ("initrd", "crashkernel", "purgatory:x", "nothing"):
            assert refused(bare, name) == f"target {name}: no crash image is loaded"


def test_a_symbol_is_a_place_in_the_first_kernel_up_to_its_end() -> None:
    one = kernel(image(INITRD))
    assert at(one, "vmlinux:last") == PhysRange.of(0x40003FFF, 1)
    assert at(one, "vmlinux:banner+0x3eff") == PhysRange.of(0x40003FFF, 1)
    assert refused(one, "vmlinux:last", 2) == (
        "target vmlinux:last: 2 bytes at offset 0x0 do not fit in the 0x1 bytes of vmlinux:last"
    )
    for name in ("size", "end"):
        words = f"target vmlinux:{name}: {name} is a number, not a place in the first kernel's image"
        assert refused(one, f"vmlinux:{name}") == words
    assert refused(one, "purgatory:x") == "target purgatory:x: no purgatory is loaded"


@pytest.mark.parametrize(
    ("base", "area"),
    [
        ("crashkernel", REGION),
        ("crashkernel-free", PhysRange(0x4000B000, 0x4000F000)),
        ("initrd", INITRD.area),
        ("kernel", None),
        ("crashkernel-fre", None),
    ],
)
def test_a_name_stands_for_a_segment_the_region_or_its_largest_free_part(
    base: str, area: PhysRange | None
) -> None:
    own = image(INITRD, control=PhysRange.of(0x4000F000, 0x1000))
    assert area_of(REGION, own, base) == area


@pytest.mark.parametrize(
    ("target", "size", "area"),
    [
        ("here", 16, (0x40000000, 16)),
        ("here+0xf", 1, (0x4000000F, 1)),
        ("here+15", 1, (0x4000000F, 1)),
        ("here+0", 16, (0x40000000, 16)),
        (" 0x8000ffff ", 1, (0x8000FFFF, 1)),
        ("0X8000FFF0", 16, (0x8000FFF0, 16)),
        ("1073741824", 1, (0x40000000, 1)),
    ],
)
def test_a_place_is_whole_inside_of_what_it_names(target: str, size: int, area: tuple[int, int]) -> None:
    ram = Ram([LOW, HIGH])
    asked: list[str] = []

    def places(name: str) -> PhysRange:
        asked.append(name)
        return PhysRange.of(0x40000000, 16)

    fault = Fault(target, write=bytes(size))
    assert resolve_by(ram, places, fault) == PhysRange.of(*area)
    assert asked == (["here"] if target.startswith("here") else [])


@pytest.mark.parametrize(
    ("target", "size", "said"),
    [
        ("here+1", 16, "target here+1: 16 bytes at offset 0x1 do not fit in the 0x10 bytes of {}"),
        ("here+0x10", 1, "target here+0x10: 1 byte at offset 0x10 do not fit in the 0x10 bytes of {}"),
        ("0x4000ffff", 2, "target 0x4000ffff: no RAM at physical 0x4000ffff"),
        ("0x3fffffff", 2, "target 0x3fffffff: no RAM at physical 0x3fffffff"),
        ("0x80010000", 1, "target 0x80010000: no RAM at physical 0x80010000"),
    ],
)
def test_a_place_that_is_not_is_refused(target: str, size: int, said: str) -> None:
    ram = Ram([LOW, HIGH])
    for called in (None, "that place"):
        with pytest.raises(InputError) as refusal:
            resolve_by(ram, lambda _: PhysRange.of(0x40000000, 16), Fault(target, write=bytes(size)), called)
        assert str(refusal.value) == said.format(called or "here")


@pytest.mark.parametrize("bank", [LOW, HIGH])
@pytest.mark.parametrize("room", [1, 4, 7, 8, 9])
def test_what_a_model_writes_begins_inside_of_its_place_and_ends_with_the_bank(
    bank: PhysRange, room: int
) -> None:
    ram, start = Ram([LOW, HIGH]), bank.end - room
    place = PhysRange.of(start, 1)
    for target in ("here", f"{start:#x}"):
        found = resolve_by(ram, lambda _: place, Fault(target, model="word64"))
        assert found == PhysRange.of(start, min(room, 8))
    with pytest.raises(InputError, match="1 byte at offset 0x1 do not fit in the 0x1 bytes of here"):
        resolve_by(ram, lambda _: place, Fault("here+1", model="word64"))


def test_a_stage_is_run_to_its_end_whatever_it_stops_at() -> None:
    steps: list[int] = []

    def stage() -> Generator[int, None, str]:
        for step in range(3):
            steps.append(step)
            yield step
        return "the end"

    assert (through(stage()), steps) == ("the end", [0, 1, 2])


def test_who_left_was_neither_refused_nor_trapped_and_what_was_written_is_there_unless_it_is_said() -> None:
    left = Left(None, None, True)  # type: ignore[arg-type]
    assert (left.refused, left.trapped) == (None, False)
    one = Injection(Fault("x", b"a", by=By.DMA), 0, b"a", b"b")
    assert (one.exception, one.cpu, one.loaded_over, one.changed) == (None, None, False, True)
