"""Finding damage: against a comparison byte by byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.faults.damage import Damage, find_damage
from kexecemu.kernel.kimage import Kimage, Segment
from kexecemu.machine.ram import Ram
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


def test_the_purgatory_is_looked_at_only_when_asked_for() -> None:
    ram = Ram([PhysRange.of(BASE, 1 << 16)])
    image = Kimage(BASE, [Segment("initrd", b"a", BASE, 4096), Segment("purgatory", b"b", BASE + 4096, 4096)])
    assert [one.segment for one in find_damage(ram, image, purgatory=False)] == ["initrd"]
    assert [one.segment for one in find_damage(ram, image, purgatory=True)] == ["purgatory"]
