"""Fault models: what each writes, that its variant says everything, and that it is what lies about in a kernel."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.campaign.fault import CampaignFault
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.stray.contents import STRUCTURES
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import HASHED_CONTENTS, MAX_LENGTH, MODELS, Model, find_model, model_rows

DATA = Path(__file__).parent.parent / "data" / "kernel" / "linear-map"
BYTES = bytes(range(256)) * 16

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


def some_variants(model: Model) -> list[int]:
    """All of a small model; of a large one the first and the last, and some from all over."""
    if model.variants < 1000:
        return list(range(model.variants))
    return sorted({*range(64), *range(64, model.variants, 61), model.variants - 1})


# -- all of them ---------------------------------------------------------------------------------------------------


@every_model
def test_it_writes_as_many_bytes_as_it_says_and_the_same_every_time(model: Model) -> None:
    for variant in some_variants(model):
        length = model.length(variant)
        before = BYTES[:length]
        assert 1 <= length <= MAX_LENGTH
        data = model.data(variant, before)
        assert len(data) == length
        assert model.data(variant, bytes(before)) == data


@every_model
def test_at_the_end_of_ram_the_first_bytes_are_the_same(model: Model) -> None:
    for variant in some_variants(model)[::7]:
        whole = model.data(variant, BYTES[: model.length(variant)])
        for room in {1, model.length(variant) // 2} - {0}:
            assert model.data(variant, BYTES[:room]) == whole[:room]


@every_model
def test_no_two_variants_write_the_same(model: Model) -> None:
    written = {model.data(variant, bytes(model.length(variant))) for variant in some_variants(model)}
    if not model.name.startswith("word"):
        assert len(written) == len(some_variants(model))
    else:  # values by a hash: two of 65536 words of 32 bits may well be the same, not many
        assert len(written) >= len(some_variants(model)) - 2


@every_model
def test_there_is_no_variant_outside_of_its_number(model: Model) -> None:
    for variant in (-1, model.variants, model.variants + 1):
        with pytest.raises(InputError, match=f"fault model {model.name} has no variant"):
            model.length(variant)
        with pytest.raises(InputError, match=f"fault model {model.name} has no variant"):
            model.data(variant, b"12345678")


@every_model
def test_it_says_what_it_is_and_where_that_comes_from(model: Model) -> None:
    assert re.fullmatch(r"[A-Z].*\.", model.summary)
    assert len(model.source) > 20
    assert model.width in (1, 2, 4, 8)


@every_model
def test_its_name_can_stand_in_the_token_of_a_fault(model: Model) -> None:
    fault = CampaignFault(By.CPU, model.name, model.variants - 1, "initrd", 16, When.AFTER_LOAD)
    assert CampaignFault.parse(fault.id) == fault


@every_model
def test_it_goes_to_another_process_as_it_is(model: Model) -> None:
    other = pickle.loads(pickle.dumps(model))
    assert other == model
    assert other.data(0, BYTES[: model.length(0)]) == model.data(0, BYTES[: model.length(0)])


def test_a_model_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    assert find_model("byte") is MODELS["byte"]
    with pytest.raises(
        InputError, match=r"no fault model 'bitflip' \(did you mean bit-flip\?\); there are bit-flip,"
    ):
        find_model("bitflip")


def test_the_list_of_models_has_a_line_for_each() -> None:
    rows = model_rows()
    assert [row.name for row in rows] == list(MODELS)
    by_name = {row.name: row for row in rows}
    assert (by_name["bit-flip"].variants, by_name["byte"].variants) == (8, 255)
    assert (by_name["memset"].shortest, by_name["memset"].longest) == (8, 4096)
    assert (by_name["memcpy"].shortest, by_name["memcpy"].longest) == (16, 4096)
    assert max(row.longest for row in rows) == MAX_LENGTH
    assert all(
        (row.summary, row.source) == (MODELS[row.name].summary, MODELS[row.name].source) for row in rows
    )


def test_what_is_written_by_a_hash_never_changes() -> None:
    """A fault's token has to mean the same write in every version, or no old campaign can be run again."""
    digest = hashlib.sha256()
    for model in MODELS.values():
        for variant in some_variants(model):
            digest.update(model.data(variant, BYTES[: model.length(variant)]))
    assert digest.hexdigest()[:16] == "f0fb3b5ca63a3097"


# -- each of them ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 255), st.integers(0, 7))
def test_a_bit_flip_inverts_one_bit_and_twice_is_nothing(before: int, variant: int) -> None:
    model = MODELS["bit-flip"]
    after = model.data(variant, bytes([before]))
    assert (after[0] ^ before).bit_count() == 1
    assert model.data(variant, after) == bytes([before])


@given(st.integers(0, 255))
def test_the_variants_of_byte_are_all_the_other_values(before: int) -> None:
    model = MODELS["byte"]
    values = {model.data(variant, bytes([before]))[0] for variant in range(model.variants)}
    assert values == set(range(256)) - {before}


@pytest.mark.parametrize(("name", "size"), [("word32", 4), ("word64", 8)])
def test_a_stray_word_is_a_telling_value_or_any_other(name: str, size: int) -> None:
    model = MODELS[name]
    telling = model.variants - (1 << 16)
    words = [model.data(variant, bytes(size)) for variant in range(model.variants)]
    assert {bytes(size), b"\xff" * size, b"\x6b" * size} < set(words[:telling])
    others = words[telling:]
    assert len(set(others)) > (1 << 16) - 4  # of 2**32 values, half a pair would meet by chance
    ones = sum(int.from_bytes(word, "little").bit_count() for word in others)
    total = len(others) * size * 8
    assert abs(ones - total / 2) < 4 * total**0.5 / 2  # four standard deviations


@pytest.mark.parametrize(("name", "byte"), [("stuck-at-0", 0x00), ("stuck-at-1", 0xFF)])
def test_what_is_stuck_is_a_byte_or_a_word(name: str, byte: int) -> None:
    model = MODELS[name]
    written = [model.data(variant, BYTES[: model.length(variant)]) for variant in range(model.variants)]
    assert written == [bytes([byte]) * size for size in (1, 4, 8)]


def test_a_memset_has_every_value_in_every_length() -> None:
    model = MODELS["memset"]
    written = [model.data(variant, bytes(model.length(variant))) for variant in range(model.variants)]
    assert all(len(set(data)) == 1 for data in written)
    assert {(data[0], len(data)) for data in written} == {
        (value, 8 << power) for value in (0x00, 0xFF, 0x5A, 0x6B, 0xAA, 0xBB, 0xCC) for power in range(10)
    }


def linear_map_of_a_real_kernel() -> list[range]:
    """Virtual ranges that a 6.1 kernel on a machine with 1 GiB had in its linear map, from its own page table dump."""
    lines = (DATA / "zones-on-1G-nocrash.txt").read_text()
    section = lines.partition("---[ Linear Mapping start ]---")[2].partition("---[ Linear Mapping end ]---")[
        0
    ]
    pairs = re.findall(r"^\W*0x([0-9a-f]{16})-0x([0-9a-f]{16}).*(?:BLK|PTE|MEM|UXN)", section, re.MULTILINE)
    return [range(int(start, 16), int(end, 16)) for start, end in pairs]


def words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data)


def test_pointers_into_the_linear_map_are_such_as_a_real_kernel_has() -> None:
    ranges = linear_map_of_a_real_kernel()
    assert sum(map(len, ranges)) > 1000 << 20
    model = MODELS["stamp"]
    for variant in range(HASHED_CONTENTS):  # list_head: two of them
        for word in words(model.data(variant, bytes(16))):
            assert word % 8 == 0
            assert any(word in one for one in ranges), hex(word)


def test_pointers_to_functions_are_in_the_kernel_image() -> None:
    with fixture_path("guests/vmlinux").open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = table.get_symbol_by_name("_text")
        assert symbols is not None
        start = int(symbols[0]["st_value"])
    model = MODELS["stamp"]
    for variant in range(HASHED_CONTENTS, 2 * HASHED_CONTENTS):  # rcu_head: next and func
        func = words(model.data(variant, bytes(16)))[1]
        assert func % 4 == 0
        assert start <= func < start + (32 << 20)


def test_a_stamp_as_large_as_a_task_is_half_zeros_and_has_numbers_and_pointers() -> None:
    model = MODELS["stamp"]
    variant = (len(STRUCTURES) - 1) * HASHED_CONTENTS
    content = words(model.data(variant, bytes(4096)))
    zeros = sum(word == 0 for word in content)
    small = sum(0 < word < 4096 for word in content)
    pointers = sum(word >> 48 == 0xFFFF for word in content)
    assert zeros + small + pointers == len(content) == 512
    assert 200 < zeros < 320
    assert small > 60
    assert pointers > 100


def test_a_memcpy_brings_pointers_or_text() -> None:
    model = MODELS["memcpy"]
    half = model.variants // 2
    for variant in range(0, half, 53):
        data = model.data(variant, bytes(model.length(variant)))
        assert all(word >> 48 == 0xFFFF for word in words(data))
    for variant in range(half, model.variants, 53):
        data = model.data(variant, bytes(model.length(variant)))
        assert data.decode("ascii").replace("\n", " ").isprintable()
    assert {model.length(variant) for variant in range(model.variants)} == {16 << power for power in range(9)}


def test_a_freed_object_is_poisoned_to_its_end() -> None:
    model = MODELS["use-after-free"]
    for variant in range(10):
        data = model.data(variant, bytes(model.length(variant)))
        assert data[:-1] == b"k" * (len(data) - 1)
        assert data[-1] == 0xA5


def test_list_del_leaves_the_two_poisons_of_arm64() -> None:
    data = MODELS["use-after-free"].data(10, bytes(16))
    assert words(data) == (0xDEAD000000000100, 0xDEAD000000000122)


def test_a_freelist_pointer_is_null_plain_or_mixed_with_a_secret() -> None:
    model = MODELS["use-after-free"]
    pointers = [words(model.data(variant, bytes(8)))[0] for variant in range(11, model.variants)]
    assert pointers[0] == 0
    plain, hardened = pointers[1 : 1 + HASHED_CONTENTS], pointers[1 + HASHED_CONTENTS :]
    assert len(plain) == len(hardened) == HASHED_CONTENTS
    assert all(word >> 30 == 0xFFFF000000000000 >> 30 for word in plain)
    assert sum(word >> 48 == 0xFFFF for word in hardened) < 3
