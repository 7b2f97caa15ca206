"""The purgatory, run: its digests are hashlib's, its accesses are those that a CPU without MMU can do.

Every test runs the object that ships, and then the one that gcc makes of the same source.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unicorn import Uc

    from tests.purgatory.conftest import Bench, Run

RAM = 0x40000000
DTB = 0x40380000
KERNEL_ENTRY = 0x40200000
CHECKING, MATCH, MISMATCH = 1, 2, 3

# Published examples: FIPS 180-4 and its companion by NIST.
VECTORS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}


def some_bytes(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def clean(run: Run) -> bool:
    """Was every data access aligned, and inside the purgatory, its regions and the UART?"""
    return not run.foreign and not run.unaligned


@pytest.mark.parametrize("message", VECTORS, ids=["empty", "abc", "two blocks", "a million a"])
def test_the_published_digests_are_found(bench: Bench, message: bytes) -> None:
    run = bench.run([bench.put(RAM, message)], bytes.fromhex(VECTORS[message]), watch=len(message) < 1000)
    assert run.verdict.state == MATCH
    assert run.verdict.found.hex() == VECTORS[message]


@pytest.mark.parametrize("length", [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 4095, 4096, 4097])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 61])
def test_any_length_at_any_alignment_hashes_as_hashlib_does(bench: Bench, start: int, length: int) -> None:
    data = some_bytes(length)
    run = bench.run([bench.put(RAM + start, data)], hashlib.sha256(data).digest())
    assert run.verdict.found == hashlib.sha256(data).digest()
    assert (run.pc, run.verdict.state, run.verdict.bytes_hashed) == (KERNEL_ENTRY, MATCH, length)
    assert clean(run)


@pytest.mark.parametrize("lengths", [(4096, 8192, 4096), (100, 28, 1), (63, 1, 64), (1, 4095, 70), (7,) * 16])
def test_regions_are_hashed_in_order_as_one_message(bench: Bench, lengths: tuple[int, ...]) -> None:
    # Later regions lie lower in memory, so that order in the list and order in memory differ.
    parts = [some_bytes(length, seed) for seed, length in enumerate(lengths)]
    regions = [bench.put(RAM + 0x10000 * (len(parts) - i) + i, part) for i, part in enumerate(parts)]
    digest = hashlib.sha256(b"".join(parts)).digest()
    run = bench.run(regions, digest)
    assert (run.verdict.state, run.verdict.found) == (MATCH, digest)
    assert run.verdict.bytes_hashed == sum(lengths)
    assert clean(run)


def test_empty_regions_between_others_hash_nothing(bench: Bench) -> None:
    first, second = some_bytes(4096, 1), some_bytes(4096, 2)
    regions = [(0, 0), bench.put(RAM, first), (0xDEAD0000, 0), bench.put(RAM + 0x1000, second)]
    run = bench.run(regions, hashlib.sha256(first + second).digest())
    assert run.verdict.state == MATCH
    assert run.console.startswith(
        b"purgatory: checking 2 regions, 0x2000 bytes" + bench.mode.words.encode() + b"\r\n"
    )
    assert clean(run)


def test_no_regions_at_all_have_the_digest_of_nothing(bench: Bench) -> None:
    run = bench.run([], hashlib.sha256().digest())
    assert (run.pc, run.verdict.state, run.verdict.bytes_hashed) == (KERNEL_ENTRY, MATCH, 0)


def test_swapped_regions_do_not_match(bench: Bench) -> None:
    first, second = some_bytes(4096, 1), some_bytes(4096, 2)
    regions = [bench.put(RAM, second), bench.put(RAM + 0x1000, first)]
    assert bench.run(regions, hashlib.sha256(first + second).digest()).verdict.state == MISMATCH


@pytest.mark.parametrize("bit", [0, 7, 8 * 55, 8 * 64 + 3, 8 * 4095 + 7])
def test_one_flipped_bit_is_found(bench: Bench, bit: int) -> None:
    data = bytearray(some_bytes(4096))
    expected = hashlib.sha256(data).digest()
    data[bit // 8] ^= 1 << bit % 8
    run = bench.run([bench.put(RAM, bytes(data))], expected)
    assert run.pc == bench.loaded.symbols["purgatory_stop"][0]
    assert run.verdict.state == MISMATCH
    assert (run.verdict.expected, run.verdict.found) == (expected, hashlib.sha256(data).digest())
    assert clean(run)


@pytest.mark.parametrize("index", range(32))
def test_every_byte_of_the_digest_counts(bench: Bench, index: int) -> None:
    digest = bytearray(hashlib.sha256(b"").digest())
    digest[index] ^= 0x80
    run = bench.run([], bytes(digest))
    assert run.verdict.state == MISMATCH


def test_the_kernel_is_entered_by_the_contract_that_the_purgatory_was_entered_by(bench: Bench) -> None:
    run = bench.run([], hashlib.sha256().digest())
    assert run.pc == KERNEL_ENTRY
    assert [run.registers[f"x{i}"] for i in range(4)] == [DTB, 0, 0, 0]


@pytest.mark.parametrize("digest", [hashlib.sha256().digest(), bytes(32)], ids=["match", "mismatch"])
def test_the_stack_is_its_own_and_no_sp_is_expected(bench: Bench, digest: bytes) -> None:
    run = bench.run([], digest)
    bottom, size = bench.loaded.symbols["purgatory_stack"]
    assert bottom < run.registers["sp"] < bottom + size
    assert run.registers["sp"] % 16 == 0
    assert clean(run)


def test_an_entry_of_zero_stops_and_says_so_whatever_the_first_region_is(bench: Bench) -> None:
    """With IMA_KEXEC the first region is IMA's list, in a crash image, too."""
    data = some_bytes(4096)
    run = bench.run([bench.put(KERNEL_ENTRY, data)], hashlib.sha256(data).digest(), entry=0)
    assert run.verdict.state == MATCH
    assert run.pc == bench.loaded.symbols["purgatory_stop"][0]
    assert run.console.endswith(b"purgatory: no kernel entry\r\npurgatory: stopped\r\n")


def test_the_console_says_what_was_found(bench: Bench) -> None:
    data = some_bytes(0x3000)
    match = bench.run([bench.put(RAM, data)], hashlib.sha256(data).digest())
    how = bench.mode.words
    assert match.console.decode() == (
        f"purgatory: checking 1 regions, 0x3000 bytes{how}\r\npurgatory: digests match\r\n"
    )
    wrong = bytes(range(32))
    mismatch = bench.run([(RAM, 0x3000)], wrong)
    assert mismatch.console.decode().split("\r\n") == [
        f"purgatory: checking 1 regions, 0x3000 bytes{how}",
        "purgatory: digests do NOT match",
        f"purgatory: expected {wrong.hex()}",
        f"purgatory: found    {hashlib.sha256(data).hexdigest()}",
        "purgatory: stopped",
        "",
    ]


def test_without_a_uart_it_is_silent(bench: Bench) -> None:
    run = bench.run([], bytes(32), uart=0)
    assert (run.console, run.verdict.state) == (b"", MISMATCH)
    assert clean(run)


def test_it_waits_for_room_in_the_fifo(bench: Bench) -> None:
    bench.fifo_full_reads = 3  # the bench asserts that no byte goes into a full FIFO
    data = some_bytes(64)
    run = bench.run([bench.put(RAM, data)], hashlib.sha256(data).digest())
    assert run.console.endswith(b"digests match\r\n")


def test_an_image_without_a_region_is_not_called_checked(bench: Bench) -> None:
    """The kernel stores no digest where a normal kexec hands memory over, nor of an image that is in CMA as a whole."""
    run = bench.run([], hashlib.sha256().digest())
    assert (run.console, run.pc) == (b"purgatory: nothing to check\r\n", KERNEL_ENTRY)


def test_a_fifo_that_never_empties_does_not_cost_the_dump(bench: Bench) -> None:
    bench.fifo_full_reads = 1 << 40
    run = bench.run([], hashlib.sha256().digest(), watch=False)
    assert (run.console, run.pc, run.verdict.state) == (b"", KERNEL_ENTRY, MATCH)


def test_a_region_larger_than_4_gib_is_not_cut_short(bench: Bench) -> None:
    """It would take hours to hash: it is enough that it is still at it where a 32-bit length had ended."""
    run = bench.run([(RAM + 0x3F0000, (1 << 32) + 64)], bytes(32), watch=False, limit=400_000)
    assert run.verdict.state == CHECKING
    assert run.console.startswith(b"purgatory: checking 1 regions, 0x100000040 bytes")


@pytest.mark.parametrize("phys", [0x40000000, 0x40011000, 0x403E0000])
def test_it_runs_at_any_page(bench_at: Callable[[int], Bench], phys: int) -> None:
    bench = bench_at(phys)
    data = some_bytes(4096)
    run = bench.run([bench.put(RAM + 0x100000, data)], hashlib.sha256(data).digest())
    assert (run.pc, run.verdict.state) == (KERNEL_ENTRY, MATCH)
    assert clean(run)


def test_a_check_that_was_patched_away_does_not_start_the_kernel(bench: Bench) -> None:
    """With the call a NOP, x0 is still the device tree's address, which is no 0."""
    nop = bytes.fromhex("1f2003d5")
    start = bench.loaded.symbols["purgatory_start"][0]

    def patch(uc: Uc) -> None:
        assert struct.unpack("<I", uc.mem_read(start + 16, 4))[0] >> 26 == 0b100101  # the BL
        uc.mem_write(start + 16, nop)

    run = bench.run([], bytes(32), before=patch)
    assert run.pc == bench.loaded.symbols["purgatory_stop"][0]
    assert run.verdict.state == 0


def test_hashing_costs_what_is_promised(bench: Bench, purgatory_ro: Path) -> None:
    """By the SHA-2 instructions at most 4 instructions a byte, without at most 31, maintenance of caches included."""
    shipped = purgatory_ro.parent.name == "purgatory" and (purgatory_ro.parent / "entry.S").exists()
    small, large = some_bytes(0x1000), some_bytes(0x11000)
    runs = [bench.run([bench.put(RAM, data)], hashlib.sha256(data).digest()) for data in (small, large)]
    per_byte = (runs[1].instructions - runs[0].instructions) / 0x10000
    # The promise is for what ships; gcc's scalar code takes 34.
    assert 1 < per_byte <= (4.0 if bench.mode.crypto else 31.0 if shipped else 36.0)
