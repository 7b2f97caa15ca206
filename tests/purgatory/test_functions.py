"""The purgatory's functions by themselves, over all arguments that can make a difference."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.purgatory.calls import CODE, SCRATCH, SCRATCH_END, Functions
from tests.purgatory.conftest import El
from tests.purgatory.test_run import some_bytes

STATE, OUT, DATA = SCRATCH, SCRATCH + 0x400, SCRATCH + 0x1000
STATE_SIZE = 32 + 8 + 64  # words, count, block
COUNT, BLOCK = 32, 40
PAGE = 4096


@pytest.fixture(scope="module")
def functions(purgatory_ro: Path) -> Functions:
    return Functions(purgatory_ro)


# -- SHA-256 ---------------------------------------------------------------------------------------------------------


def ror(word: int, by: int) -> int:
    return (word >> by | word << 32 - by) & 0xFFFFFFFF


def roots(exponent: int, bits: int = 32) -> Iterator[int]:
    """The first bits behind the point of the square or cube roots of the primes."""
    primes = (n for n in range(2, 1000) if all(n % d for d in range(2, int(n**0.5) + 1)))
    for prime in primes:
        # In whole numbers: the root of prime * 2^(bits * exponent), by Newton from above.
        wide = prime << bits * exponent
        root = 1 << (wide.bit_length() // exponent + 1)
        while (better := ((exponent - 1) * root + wide // root ** (exponent - 1)) // exponent) < root:
            root = better
        yield root & (1 << bits) - 1


def compress(state: list[int], block: bytes) -> list[int]:
    """FIPS 180-4 section 6.2.2, word by word as it stands there; hashlib lets nobody begin in the middle."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = ror(w[t - 15], 7) ^ ror(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = ror(w[t - 2], 17) ^ ror(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append(w[t - 16] + s0 + w[t - 7] + s1 & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for k, word in zip(roots(3), w, strict=False):
        t1 = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (e & f ^ ~e & g) + k + word
        t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = t1 + t2 & 0xFFFFFFFF, a, b, c, d + t1 & 0xFFFFFFFF, e, f, g
    return [x + y & 0xFFFFFFFF for x, y in zip(state, (a, b, c, d, e, f, g, h), strict=True)]


def test_the_reference_is_right() -> None:
    first = [root for root, _ in zip(roots(2), range(8), strict=False)]
    one = compress(first, b"abc\x80" + bytes(52) + struct.pack(">Q", 24))
    assert struct.pack(">8I", *one) == hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize("instructions", [0, 1], ids=["scalar", "sha2"])
def test_every_byte_is_taken_once_and_in_order_whatever_is_in_the_block_already(
    functions: Functions, instructions: int
) -> None:
    """All ways through digest_update() and what it calls: they ask for count % 64, and for len as far as a third block.

    What comes behind whole blocks goes by the same code as with fewer of them. So the state after any update is the one
    that hashlib has after the same bytes, which is found out by finishing both.
    """
    message = some_bytes(64 + 3 * 64 + 1, seed=instructions)
    functions.set("sha2_in_use", struct.pack("<I", instructions))
    uc = functions.uc
    uc.mem_write(DATA, message)
    for used in range(64):
        functions("sha256_init", STATE)
        functions("digest_update", STATE, DATA, used)
        before = bytes(uc.mem_read(STATE, STATE_SIZE))
        assert before[BLOCK : BLOCK + used] == message[:used]
        for length in range(3 * 64 + 1):
            uc.mem_write(STATE, before)
            functions("digest_update", STATE, DATA + used, length)
            functions("sha256_final", STATE, OUT)
            assert bytes(uc.mem_read(OUT, 32)) == hashlib.sha256(message[: used + length]).digest(), (
                used,
                length,
            )


@pytest.mark.parametrize(
    "count", [1 << 29, (1 << 32) - 64, 1 << 32, (1 << 35) + 128, (1 << 61) - 64], ids=hex
)
def test_the_length_in_the_last_block_has_64_bits(functions: Functions, count: int) -> None:
    """From 512 MiB on it is longer than 32 bits; a whole run of that size takes minutes here."""
    state = list(struct.unpack("<8I", some_bytes(32, seed=count)))
    functions.uc.mem_write(STATE, struct.pack("<8IQ", *state, count) + bytes(64))
    functions("sha256_final", STATE, OUT)
    last = compress(state, b"\x80" + bytes(55) + struct.pack(">Q", count * 8))
    assert bytes(functions.uc.mem_read(OUT, 32)) == struct.pack(">8I", *last)


# -- the table of regions ----------------------------------------------------------------------------------------------


def test_a_region_is_sane_if_it_could_have_been_loaded(functions: Functions) -> None:
    start = CODE
    end = sum(functions.loaded.symbols["table_area"])

    def sane(phys: int, size: int) -> bool:
        functions.uc.mem_write(DATA, struct.pack("<QQ", phys, size))
        return functions("region_sane", DATA) == 1

    top = 1 << 64
    for phys, size in ((0, 0), (0xDEADBEEF, 0), (top - 1, 0), (start, 0)):
        assert sane(phys, size), "nothing is hashed of an empty one"
    for phys, size in (
        (0, 1),
        (start - 1, 1),
        (start - PAGE, PAGE),
        (end, 1),
        (end, PAGE),
        ((1 << 48) - 1, 2),
    ):
        assert sane(phys, size), (hex(phys), size)
    for phys, size in (
        (start, 1),
        (start - 1, 2),
        (start - PAGE, PAGE + 1),
        (end - 1, 1),
        (end - 1, PAGE),
        (start + PAGE, PAGE),
        (start - PAGE, end - start + 2 * PAGE),
        (top - 1, 1),
        (top - PAGE, PAGE),
        (PAGE, top - 1),
        (PAGE, top - PAGE),
        (1 << 52, 1),
        ((1 << 52) - PAGE, 2 * PAGE),
        (end, top - end),
    ):
        assert not sane(phys, size), (hex(phys), hex(size))


# -- the map -----------------------------------------------------------------------------------------------------------

VALID, TABLE, AP1, RDONLY, AF, PXN, UXN = 1 << 0, 1 << 1, 1 << 6, 1 << 7, 1 << 10, 1 << 53, 1 << 54
ADDRESS = 0x0000FFFFFFFFF000
SH, INNER, ATTR = 3 << 8, 3 << 8, 7 << 2


@pytest.fixture(scope="module", params=[El.EL1, El.EL2], ids=lambda el: el.name)
def mmu(purgatory_ro: Path, request: pytest.FixtureRequest) -> Functions:
    return Functions(purgatory_ro, request.param)


def mapped(functions: Functions) -> dict[int, int]:
    """Every page that the built tables map, with the attributes of its leaf; each has to be its own address."""
    table_area, size = functions.loaded.symbols["table_area"]
    found: dict[int, int] = {}

    def walk(table: int, level: int, base: int) -> None:
        assert table % PAGE == 0 and table_area <= table and table + PAGE <= table_area + size
        for index, entry in enumerate(struct.unpack("<512Q", functions.uc.mem_read(table, PAGE))):
            at = base + (index << 39 - 9 * level)
            if not entry & VALID:
                assert entry == 0
            elif level < 3 and entry & TABLE:
                walk(entry & ADDRESS, level + 1, at)
            else:
                assert level > 0 and (level < 3 or entry & TABLE) and entry & ADDRESS == at
                for page in range(at, at + (1 << 39 - 9 * level), PAGE):
                    found[page] = entry & ~(ADDRESS | TABLE)

    walk(struct.unpack("<4Q", functions.get("new"))[2], 0, 0)
    return found


def regions_of(functions: Functions, regions: list[tuple[int, int]], copy: int = 0) -> None:
    functions.set(
        "purgatory_sha_regions", b"".join(struct.pack("<QQ", *one) for one in regions).ljust(256, b"\0")
    )
    functions.set("purgatory_copy", struct.pack("<Q", copy))
    functions.set("purgatory_page_digests", bytes(8))
    functions.set("purgatory_no_mmu", bytes(8))


def pages(phys: int, size: int) -> range:
    return range(phys & -PAGE, (phys + size + PAGE - 1) & -PAGE, PAGE)


GIB = 1 << 30
LAYOUTS = {
    "aligned": [(0x50000000, 0x200000), (0x50400000, 0x3000)],
    "odd ends": [(0x50001003, 0x2FFE), (0x5FFFFFFF, 2)],
    "a block of 1 GiB": [(0x80000000 - PAGE, GIB + 2 * PAGE)],
    "blocks on both sides": [(0x60000000 - 0x201000, 0x403000)],
    "neighbours": [(0x50000000, 0x1000), (0x50001000, 0x1000), (0x50002000, 0x1000)],
    "above 4 GiB": [(0x100000000, 0x2000), (0xFFFFFFFFF000, 0x1000)],
}


@pytest.mark.parametrize("writable", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_nothing_is_in_the_map_that_is_not_needed(
    mmu: Functions, layout: list[tuple[int, int]], writable: int
) -> None:
    symbols = mmu.loaded.symbols
    at_el1 = mmu.el is El.EL1
    never = PXN if at_el1 else UXN
    data = symbols["purgatory_verdict"][0]
    regions_of(mmu, layout)
    mmu("caches_prepare_writable" if writable else "caches_prepare")
    assert mmu.get("mmu_prepared") == bytes([1, 0, 0, 0])
    expected = dict.fromkeys(pages(CODE, data - CODE), (False, True))
    expected |= dict.fromkeys(pages(data, sum(symbols["table_area"]) - data), (True, False))
    for one in layout:
        expected |= dict.fromkeys(pages(*one), (bool(writable), False))
    found = mapped(mmu)
    assert found.keys() == expected.keys()
    assert {page: (not entry & RDONLY, not entry & never) for page, entry in found.items()} == expected
    # At EL1 a page that EL0 could reach would not be executed, and PAN would refuse it; at EL2 AP[1] is RES1.
    assert {entry & (AP1 | AF | SH | ATTR) for entry in found.values()} == {
        AF | INNER | (0 if at_el1 else AP1)
    }
    if at_el1:
        assert all(entry & UXN for entry in found.values())
    else:
        assert not any(entry & PXN for entry in found.values())


def test_the_registers_of_the_map_are_those_of_its_level(mmu: Functions) -> None:
    """4 KiB granule, 48 bits, walks cached and inner shareable, one type of memory: normal, write-back."""
    regions_of(mmu, [(0x50000000, PAGE)])
    mmu("caches_prepare")
    assert mmu.get("mmu_prepared") == bytes([1, 0, 0, 0])
    mair, tcr, ttbr0, sctlr = struct.unpack("<4Q", mmu.get("new"))
    assert (mair, ttbr0 % PAGE) == (0xFF, 0)
    table_area, size = mmu.loaded.symbols["table_area"]
    assert table_area <= ttbr0 < table_area + size
    walks = 16 | 1 << 8 | 1 << 10 | 3 << 12  # T0SZ, IRGN0, ORGN0, SH0
    pa_range = 4  # 44 bits: a Cortex-A57
    if mmu.el is El.EL1:
        assert tcr == walks | 1 << 23 | 2 << 30 | pa_range << 32  # EPD1, TG1
    else:
        assert tcr == walks | 1 << 23 | 1 << 31 | pa_range << 16  # RES1
    old = struct.unpack("<4Q", mmu.get("old"))
    assert old[3] == sctlr & ~0x1005 and sctlr & 0x1005 == 0x1005


def test_the_second_copy_is_mapped_as_long_as_the_regions_are_but_the_table(functions: Functions) -> None:
    regions_of(functions, [(0x50000000, 0x3000), (0x50010000, 0x1801), (0x50020000, 0x1000)], copy=0x58000000)
    functions.set("purgatory_page_digests", struct.pack("<Q", 0x50020000))
    assert functions("caches_prepare", 1) == 1
    copy = {page for page in mapped(functions) if page >= 0x58000000}
    assert copy == set(pages(0x58000000, 0x4801))


def test_with_more_places_than_tables_the_mmu_stays_off_and_nothing_is_stored_behind_the_tables(
    functions: Functions,
) -> None:
    table_area, size = functions.loaded.symbols["table_area"]
    behind = random.Random(1).randbytes(PAGE)
    answers = []
    for count in range(1, 17):
        functions.uc.mem_write(table_area + size, behind)
        # Each in 1 GiB of its own: a table of level 2 and one of level 3.
        regions_of(functions, [(0x100000000 + index * GIB, PAGE) for index in range(count)])
        answers.append(functions("caches_prepare", 0))
        assert bytes(functions.uc.mem_read(table_area + size, PAGE)) == behind
        if answers[-1]:
            mapped(functions)
    assert answers == sorted(answers, reverse=True) and {0, 1} == set(answers)
    # 24 tables: the top, one of each level for ourselves; then two a place, and one where 512 GiB begin. None is lost.
    assert answers.count(1) == (24 - 4) // 2


def test_what_lies_above_48_bits_is_read_without_the_mmu(functions: Functions) -> None:
    regions_of(functions, [(1 << 48, PAGE)])
    assert functions("caches_prepare", 0) == 0
    regions_of(functions, [(0x50000000, PAGE)], copy=1 << 48)
    assert functions("caches_prepare", 0) == 0
    regions_of(functions, [((1 << 48) - PAGE, PAGE + 1)])
    assert functions("caches_prepare", 0) == 0
    regions_of(functions, [((1 << 48) - PAGE, PAGE)], copy=0x60000000)
    assert functions("caches_prepare", 0) == 1


def test_what_is_in_the_map_already_is_not_mapped_again(functions: Functions) -> None:
    """As a block or as a page, whichever comes first: attributes would be those of one of them."""
    block, page = (0x50000000, 2 << 20), (0x50001000, PAGE)
    for regions in ([block, page], [page, block], [page, page], [(0x80000000, GIB), (0x80000000, PAGE)]):
        regions_of(functions, regions)
        assert functions("caches_prepare", 0) == 0


@pytest.mark.parametrize(
    ("start", "size", "tables"),
    [
        (0x50000000, PAGE, 1),
        (0x50000000, 2 << 20, 0),
        (0x80000000, GIB, 0),
        (0x80000000 - PAGE, GIB + PAGE, 1),
        (1 << 39, 1 << 39, 1),  # there is no block of 512 GiB
    ],
)
def test_a_block_is_as_large_as_4k_granules_have_it(
    functions: Functions, start: int, size: int, tables: int
) -> None:
    """The tables that a region takes beside the four for ourselves, of which it shares what lies in the same GiB."""
    regions_of(functions, [(start, size)])
    assert functions("caches_prepare", 0) == 1
    assert struct.unpack("<Q", functions.get("tables_used"))[0] == 4 + tables
    top = struct.unpack("<512Q", functions.uc.mem_read(struct.unpack("<4Q", functions.get("new"))[2], PAGE))
    assert {entry & (VALID | TABLE) for entry in top} == {0, VALID | TABLE}


def test_the_scratch_memory_is_large_enough() -> None:
    assert DATA + 0x1000 < SCRATCH_END
