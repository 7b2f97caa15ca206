"""Finding damage: against a comparison byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.crash.damage import Damage, differing, find_damage, written_by_early_check
from kexecemu.data import purgatory_path
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory, parse_purgatory
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

BASE = 0x40000000


def naive(loaded: bytes, now: bytes, name: str) -> list[Damage]:
    found: list[Damage] = []
    for offset in range(len(loaded)):
        if loaded[offset] == now[offset]:
            continue
        if found and found[-1].offset + found[-1].length == offset:
            found[-1] = Damage(name, found[-1].offset, found[-1].length + 1)
        else:
            found.append(Damage(name, offset, 1))
    return found


@settings(max_examples=60, deadline=None)
@given(
    bufsz=st.integers(0, 3 * 4096),
    stamps=st.lists(st.tuples(st.integers(0, 3 * 4096 - 1), st.binary(min_size=1, max_size=40)), max_size=6),
)
def test_damage_is_what_a_comparison_byte_by_byte_finds(bufsz: int, stamps: list[tuple[int, bytes]]) -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 16)])
    segment = Segment("initrd", bytes(at % 251 for at in range(bufsz)), BASE + 0x1000, 3 * 4096)
    ram.write(segment.mem, segment.content())
    for offset, data in stamps:
        ram.write(segment.mem + offset, data[: 3 * 4096 - offset])
    found = find_damage(ram, Kimage(BASE, [segment]), purgatory=False)
    assert found == naive(segment.content(), ram.read(segment.mem, segment.memsz), "initrd")
    ram.close()


PAGE = 4096
STRETCHES = [
    [(0, 1)], [(0, PAGE)], [(PAGE - 1, PAGE)], [(PAGE, PAGE + 1)], [(PAGE - 1, PAGE + 1)], [(PAGE, 2 * PAGE)],
    [(2 * PAGE - 1, 2 * PAGE)], [(0, 3 * PAGE)], [(3 * PAGE - 1, 3 * PAGE)], [(3 * PAGE, 3 * PAGE + 1)],
    [(3 * PAGE, 3 * PAGE + 100)], [(3 * PAGE + 99, 3 * PAGE + 100)], [(5, 2 * PAGE + 7)], [(0, 3 * PAGE + 100)],
    [(PAGE - 2, PAGE - 1), (PAGE, PAGE + 1)], [(PAGE - 1, PAGE), (PAGE + 1, PAGE + 2)], [(0, 1), (2, 3)],
    [(PAGE - 1, PAGE), (2 * PAGE - 1, 2 * PAGE), (3 * PAGE, 3 * PAGE + 1)], [],
]  # fmt: skip


@pytest.mark.parametrize(
    "stretches", STRETCHES, ids=lambda found: " ".join(f"{a:x}-{b:x}" for a, b in found) or "none"
)
def test_damage_that_begins_or_ends_at_an_edge_is_found_to_the_byte(stretches: list[tuple[int, int]]) -> None:
    """Edges of what is compared at a time, which random places hardly ever hit; the last piece is a part of one."""
    left = bytes(at % 251 for at in range(3 * PAGE + 100))
    right = bytearray(left)
    for start, end in stretches:
        right[start:end] = bytes(byte ^ 0x80 for byte in left[start:end])
    assert differing(left, bytes(right)) == differing(bytes(right), left) == stretches


def test_the_purgatory_is_looked_at_only_when_asked_for() -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 16)])
    image = Kimage(BASE, [Segment("initrd", b"a", BASE, 4096), Segment("purgatory", b"b", BASE + 4096, 4096)])
    assert [one.segment for one in find_damage(ram, image, purgatory=False)] == ["initrd"]
    assert [one.segment for one in find_damage(ram, image, purgatory=True)] == ["purgatory"]


def test_what_the_purgatory_wrote_into_the_device_tree_is_left_out_and_its_neighbours_are_not() -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 16)])
    image = Kimage(BASE, [Segment("initrd", b"", BASE, 4096), Segment("dtb", b"", BASE + 0x1000, 8192)])
    image.verdict_record = PhysRange.of(BASE + 0x1F80, 152)
    ram.write(BASE, b"\xff" * 0x3000)
    assert find_damage(ram, image, purgatory=False) == [
        Damage("initrd", 0, 4096),
        Damage("dtb", 0, 0xF80),
        Damage("dtb", 0xF80 + 152, 8192 - 0xF80 - 152),
    ]


def test_ranges_of_one_s_own_are_cut_at_the_segment_s_ends() -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 16)])
    image = Kimage(BASE, [Segment("purgatory", b"", BASE + 0x1000, 4096)])
    ram.write(BASE, b"\xff" * 0x3000)
    own = [PhysRange.of(BASE, 0x1010), PhysRange.of(BASE + 0x1FF0, 0x100), PhysRange.of(BASE + 0x5000, 8)]
    assert find_damage(ram, image, purgatory=True, own=own) == [Damage("purgatory", 0x10, 4096 - 0x20)]
    assert ram.read(BASE + 0x1000, 4) == b"\xff" * 4  # memory itself is left alone


def test_the_purgatory_s_data_is_its_own_once_an_early_check_has_written_there() -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 20)])
    segments: list[Segment] = []

    def place(buf: bytearray, memsz: int, align: int) -> Segment:
        segments.append(Segment("purgatory", buf, BASE, -(-memsz // 4096) * 4096))
        return segments[0]

    purgatory = LoadedPurgatory(parse_purgatory(purgatory_path().read_bytes()), place)
    image = Kimage(BASE, segments)
    ram.write(BASE, segments[0].content())
    verdict = purgatory.symbol_phys("purgatory_verdict")
    ram.write(verdict + 12, b"\2")  # MATCH, but by whom is not said
    assert written_by_early_check(ram, purgatory) == []
    ram.write(verdict + 88, b"\x20")  # the flag of an early check
    ram.write(purgatory.symbol_phys("purgatory_sha_regions"), b"\xff")
    own = written_by_early_check(ram, purgatory)
    damage = find_damage(ram, image, purgatory=True, own=own)
    assert damage == [Damage("purgatory", purgatory.symbol_phys("purgatory_sha_regions") - BASE, 1)]
