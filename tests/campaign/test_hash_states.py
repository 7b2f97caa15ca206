"""The hash's states against hashlib: places in the input, and whether a change is one to the digest."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.campaign.hash_states import RUNG, HashStates
from kexecemu.machine.ranges import PhysRange

SIZES = st.one_of(
    st.integers(1, 200), st.sampled_from([RUNG - 1, RUNG, RUNG + 1, 3 * RUNG]), st.integers(1, 5 * RUNG)
)


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[PhysRange], list[bytes]]:
    """Regions in any order, with gaps or without, and what they hold."""
    at, found = 0x40000000, []
    for size in draw(st.lists(SIZES, min_size=1, max_size=6)):
        at += draw(st.sampled_from([0, 1, 7, 4096]))
        found.append(PhysRange.of(at, size))
        at += size
    found = draw(st.permutations(found))
    random = draw(st.randoms(use_true_random=False))
    return found, [random.randbytes(one.size) for one in found]


@given(regions())
def test_the_digest_is_sha256_over_the_regions_in_their_order(
    drawn: tuple[list[PhysRange], list[bytes]],
) -> None:
    areas, contents = drawn
    assert HashStates(areas, contents).digest == hashlib.sha256(b"".join(contents)).digest()


@given(regions())
def test_every_byte_has_its_place_and_no_other_byte_has_one(
    drawn: tuple[list[PhysRange], list[bytes]],
) -> None:
    areas, contents = drawn
    states = HashStates(areas, contents)
    whole, at = b"".join(contents), 0
    for area, content in zip(areas, contents, strict=True):
        for offset in {0, 1 % area.size, area.size // 2, area.size - 1}:
            place = states.place(area.start + offset)
            assert place == at + offset and whole[place] == content[offset]
        at += area.size
        for phys in (area.start - 1, area.end):
            inside = any(phys in one for one in areas)
            assert (states.place(phys) is not None) == inside
    assert states.place(0) is None and states.place(1 << 60) is None


@settings(max_examples=300)
@given(regions(), st.data())
def test_a_change_is_one_to_the_state_behind_it_exactly_when_it_is_one_to_the_digest(
    drawn: tuple[list[PhysRange], list[bytes]], data: st.DataObject
) -> None:
    states = HashStates(*drawn)
    whole = states.input
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, min(len(whole) - start, 3 * RUNG)))
    new = bytearray(whole[start : start + length])
    if data.draw(st.booleans()):
        new[data.draw(st.integers(0, length - 1))] ^= data.draw(st.integers(0, 255))
    damaged = whole[:start] + bytes(new) + whole[start + length :]
    for _ in range(2):  # the second time from what the first one kept
        assert states.differs(start, bytes(new)) == (
            hashlib.sha256(damaged).digest() != hashlib.sha256(whole).digest()
        )


@pytest.mark.parametrize("start", [0, RUNG - 1, RUNG, 2 * RUNG - 1, 4 * RUNG - 1, 4 * RUNG + 4])
def test_one_bit_anywhere_near_a_checkpoint_is_a_change(start: int) -> None:
    content = bytes(range(256)) * 16 + b"tail."
    states = HashStates([PhysRange.of(0, len(content))], [content])
    assert not states.differs(start, content[start : start + 1])
    assert all(states.differs(start, bytes([content[start] ^ 1 << bit])) for bit in range(8))


@pytest.mark.parametrize(
    ("start", "size", "place"),
    [
        (0, 16, 0),
        (0, 17, None),  # its last byte is none of the hash's
        (-1, 2, None),  # nor its first
        (-1, 18, None),
        (15, 1, 15),
        (0x20, 8, 24),
        (0x24, 12, 28),  # into the region behind, which is hashed next
        (0x28, 24, 32),
        (0x20, 0x21, None),
        (0, 0x28, None),  # over a gap
        (0x50, 8, 16),
        (0x58, 8, 56),
        (0x54, 8, None),  # one behind the other in memory, and not in the hash
    ],
)
def test_an_area_has_a_place_where_it_is_hashed_throughout_and_in_one_piece(
    start: int, size: int, place: int | None
) -> None:
    base = 0x40000000
    offsets = [(0, 16), (0x50, 8), (0x20, 8), (0x28, 24), (0x58, 8)]
    areas = [PhysRange.of(base + at, length) for at, length in offsets]
    states = HashStates(areas, [bytes(area.size) for area in areas])
    assert states.place_of(PhysRange.of(base + start, size)) == place
