"""An initrd that is made larger: still an initramfs, of exactly the size asked for, with the first archive unharmed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.scenario.padding import padded_initrd
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.setup import prepare

INITRD = fixture_path("guests/initrd.cpio").read_bytes()
HEAD = 'schema = 1\nname = "x"\n[machine]\nram = "128M"\n[kernel]\ncmdline = "crashkernel=32M"\n[load]\n'


def unpack(archives: bytes) -> list[tuple[str, bytes]]:
    """Name and contents of all members of archives in a row, zeros between them skipped, as unpack_to_rootfs() does."""
    found = []
    at = 0
    while at < len(archives):
        if not archives[at]:
            at += 4
            assert not any(archives[at - 4 : at])
            continue
        assert archives[at : at + 6] == b"070701"
        fields = [int(archives[at + 6 + 8 * one : at + 14 + 8 * one], 16) for one in range(13)]
        size, name_size = fields[6], fields[11]
        name = archives[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        found.append((name, archives[start : start + size]))
        assert len(found[-1][1]) == size
        at = (start + size + 3) & ~3
    return found


@given(st.integers(1024, 1 << 18), st.integers(0, 5))
def test_it_is_of_the_size_asked_for_and_still_an_initramfs(more: int, uneven: int) -> None:
    initrd = INITRD + bytes(uneven)
    size = len(initrd) + more + 8
    padded = padded_initrd(initrd, size)
    assert len(padded) == size
    assert padded.startswith(initrd)
    members, alone = unpack(padded), unpack(INITRD)
    assert members[: len(alone)] == alone
    assert [name for name, _ in members[len(alone) :]] == ["padding", "TRAILER!!!"]
    # Less than two blocks are not the padding file's own.
    assert len(members[-2][1]) > more - 1024 - 8


def test_the_padding_is_the_same_everywhere_and_no_two_blocks_of_it_are_alike() -> None:
    padded = padded_initrd(INITRD, 1 << 20)
    blocks = [padded[at : at + 32] for at in range(len(INITRD) + 512, (1 << 20) - 512, 32)]
    assert len(set(blocks)) == len(blocks)
    first, second = unpack(padded)[-2][1], unpack(padded_initrd(INITRD, 1 << 21))[-2][1]
    assert second.startswith(first)


@pytest.mark.parametrize("size", [0, 1, len(INITRD), len(INITRD) + 1023])
def test_a_size_with_no_room_for_the_archive_is_refused_with_the_least_that_would_do(size: int) -> None:
    least = len(INITRD) + 1024
    with pytest.raises(InputError, match=f"has to be {least} or more"):
        padded_initrd(INITRD, size)
    assert len(padded_initrd(INITRD, least)) == least


def load(tmp_path: Path, keys: str) -> int:
    path = tmp_path / "scenario.toml"
    path.write_text(HEAD + keys)
    _, image = prepare(scenario_setup(read_scenario(path), tmp_path))
    initrd = image.segment("initrd")
    assert initrd is not None
    return initrd.bufsz


def test_a_scenario_says_how_large_its_initrd_is(tmp_path: Path) -> None:
    assert load(tmp_path, 'initrd_size = "8M"') == 8 << 20
    assert load(tmp_path, "initrd_size = 0x100_001") == 0x100001
    assert load(tmp_path, "") == len(INITRD)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('initrd = "none"\ninitrd_size = "1M"', "initrd_size: there is no initrd"),
        ('initrd_size = "4K"', "initrd_size is 4096 bytes, but with this initrd it has to be"),
        ('initrd_size = "much"', "not a size: 'much'"),
        ("initrd_size = -1", "not a size: -1"),
        ('initrd_size = "1T"', "has 134217728 bytes of RAM in all"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(tmp_path: Path, keys: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(tmp_path, keys)


def test_campaign_16m_loads_16_mib_in_all() -> None:
    path = find_scenario("campaign-16m")
    _, image = prepare(scenario_setup(read_scenario(path), path.parent))
    assert sum(segment.memsz for segment in image.segments) == 16 << 20
