"""The purgatory's smaller functions by themselves: digests compared, pages counted, what is told to others."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import pytest
from unicorn import UC_HOOK_INTR, Uc
from unicorn import arm64_const as arm64

from tests.purgatory.calls import SCRATCH, Functions
from tests.purgatory.conftest import EXCP_HVC, EXCP_SMC, El
from tests.purgatory.test_functions import regions_of
from tests.purgatory.test_run import some_bytes

PAGE = 4096
UART = 0x09000000
FULL = 1 << 5  # FR.TXFF


@pytest.fixture(scope="module")
def functions(purgatory_ro: Path) -> Functions:
    return Functions(purgatory_ro)


# -- digests -----------------------------------------------------------------------------------------------------------


def test_digests_are_the_same_if_all_their_bits_are(functions: Functions) -> None:
    """Whatever stands before and behind them."""
    digest, around = some_bytes(32), some_bytes(16, seed=2)
    one, other = SCRATCH + 0x100, SCRATCH + 0x200

    def same(changed: bytes) -> int:
        functions.uc.mem_write(one - 16, around + digest + around)
        functions.uc.mem_write(other - 16, bytes(16) + changed + bytes(16))
        return functions("digest_same", one, other)

    assert same(digest) == 1
    for bit in range(256):
        assert same((int.from_bytes(digest, "little") ^ 1 << bit).to_bytes(32, "little")) == 0, bit
    # All four words differ, in bits of their own.
    assert same(bytes(byte ^ 1 << index // 8 for index, byte in enumerate(digest))) == 0


def test_a_digest_is_known_if_any_of_its_bits_is_set(functions: Functions) -> None:
    at = SCRATCH + 0x100
    for value in (0, *(1 << bit for bit in range(256))):
        functions.uc.mem_write(at - 8, b"\xff" * 8 + value.to_bytes(32, "little") + b"\xff" * 8)
        assert functions("digest_known", at) == bool(value), hex(value)


def test_a_piece_matches_its_digest(functions: Functions) -> None:
    data = some_bytes(100)
    functions.uc.mem_write(SCRATCH + 0x1000, data)
    for length in (0, 1, 64, 99):
        functions.uc.mem_write(SCRATCH, hashlib.sha256(data[:length]).digest())
        assert [
            functions("digest_matches", SCRATCH + 0x1000, one, SCRATCH) for one in (length, length + 1)
        ] == [1, 0]


# -- regions, pages and the table of their digests ---------------------------------------------------------------------

LENGTHS = (PAGE, 1, 0, 2 * PAGE, 2 * PAGE + 1, PAGE - 1, 3 * PAGE - 1, 8)


def test_a_page_digest_is_counted_through_the_pages_of_all_regions_before(functions: Functions) -> None:
    table = 0x48000000
    regions_of(functions, [(0x50000000 + 0x100000 * i, size) for i, size in enumerate(LENGTHS)])
    functions.set("purgatory_page_digests", struct.pack("<Q", table))
    index = 0
    for region, size in enumerate(LENGTHS):
        for offset in range(0, size, PAGE):
            assert functions("page_digest", region, offset) == table + 32 * index
            index += 1
            by_page = functions("piece_len", region, offset, 1)
            assert by_page == min(PAGE, size - offset)
            assert functions("piece_len", region, offset, 0) == size - offset


def test_the_table_is_the_region_that_starts_where_the_loader_says(functions: Functions) -> None:
    regions = [(0, PAGE), *((0x50000000 + PAGE * i, PAGE) for i in range(15))]
    for table, expected in ((0, None), (0x50000000, 1), (0x50000000 + 14 * PAGE, 15), (0x50000001, None)):
        regions_of(functions, regions)
        functions.set("purgatory_page_digests", struct.pack("<Q", table))
        assert [i for i in range(16) if functions("is_table", i)] == ([] if expected is None else [expected])
        # Usable if it has a digest of its own, and is not damaged.
        for known in (None, *range(16)):
            for damaged in (0, 1, 2, 1 << 14, 1 << 15, 0xFFFF):
                digests = bytearray(512)
                if known is not None:
                    digests[32 * known + 9] = 1
                functions.set("purgatory_region_digests", bytes(digests))
                record = bytearray(functions.get("purgatory_verdict"))
                record[92:96] = struct.pack("<I", damaged)
                functions.set("purgatory_verdict", bytes(record))
                usable = expected is not None and known == expected and not damaged >> expected & 1
                assert functions("page_digests_usable") == usable, (table, known, damaged)


@pytest.mark.parametrize("table", [SCRATCH, 0])
def test_what_lies_behind_the_regions_is_none(functions: Functions, table: int) -> None:
    regions_of(functions, [(0x40000000, 0)] * 16)
    functions.set("purgatory_page_digests", struct.pack("<Q", table))
    functions.set("purgatory_region_digests", bytes([1] * 512))
    functions.set("purgatory_verdict", bytes(len(functions.get("purgatory_verdict"))))
    # As if there were a seventeenth, with a digest.
    for symbol, value in (
        ("purgatory_sha_regions", struct.pack("<QQ", SCRATCH, PAGE)),
        ("purgatory_region_digests", bytes([1] * 32)),
    ):
        functions.uc.mem_write(sum(functions.loaded.symbols[symbol]), value)
    assert functions("page_digests_usable") == 0
    functions("locate", 1)
    assert functions.get("purgatory_verdict")[92:96] == bytes(4)


def test_the_copy_is_as_long_as_the_regions_that_are_not_the_table(functions: Functions) -> None:
    regions = [(0x50000000 + 0x100000 * i, 1000 + i) for i in range(16)]
    for table, copy in ((None, 1 << 30), (0, 1 << 30), (15, 8), (7, 0)):
        regions_of(functions, regions, copy=copy)
        functions.set("purgatory_page_digests", struct.pack("<Q", 0 if table is None else regions[table][0]))
        expected = sum(size for i, (_, size) in enumerate(regions) if i != table) if copy else 0
        assert functions("copy_len") == expected


# -- what the next kernel is told --------------------------------------------------------------------------------------

RECORD = 6 * 4 + 8 * 16


@pytest.mark.parametrize("ranges", [9, 0, 1, 7, 8, 16])
def test_the_next_kernel_is_told_in_cells_and_of_eight_ranges_at_most(
    functions: Functions, ranges: int
) -> None:
    source = random.Random(ranges)
    flags, damaged, pages = (source.getrandbits(32) for _ in range(3))
    damage = [(source.getrandbits(64), source.getrandbits(64)) for _ in range(16)]
    flat = [value for pair in damage for value in pair]
    state = 3
    functions.set(
        "purgatory_verdict",
        struct.pack(
            "<QII Q 64s II QQQQ II 32Q",
            0,
            2,
            state,
            0,
            bytes(64),
            flags,
            damaged,
            pages,
            0,
            0,
            0,
            ranges,
            0,
            *flat,
        ),
    )
    at = SCRATCH + 0x104
    functions.uc.mem_write(at - 4, b"\xa5" * (RECORD + 8))
    functions.set("purgatory_chosen", struct.pack("<Q", at))
    functions("chosen")
    told = min(ranges, 8)
    expected = struct.pack(f">6I{2 * told}Q", 2, state, flags, damaged, told, pages, *flat[: 2 * told])
    written = bytes(functions.uc.mem_read(at - 4, RECORD + 8))
    assert written == b"\xa5" * 4 + expected.ljust(RECORD + 4, b"\xa5")


@pytest.mark.parametrize("chosen", [0, SCRATCH + 1, SCRATCH + 2, SCRATCH + 5])
def test_nothing_is_told_where_there_is_no_place_for_cells(functions: Functions, chosen: int) -> None:
    functions.uc.mem_write(SCRATCH, b"\xa5" * 0x200)
    functions.set("purgatory_chosen", struct.pack("<Q", chosen))
    functions("chosen")
    assert bytes(functions.uc.mem_read(SCRATCH, 0x200)) == b"\xa5" * 0x200


# -- the console -------------------------------------------------------------------------------------------------------


class Console(Functions):
    """A PL011 that says "full" so often before each byte, in a register full of other bits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, El.EL1)
        self.sent, self.waits, self.left = bytearray(), 0, 0

        def read(_uc: Uc, offset: int, size: int, _data: object) -> int:
            assert (offset, size) == (0x18, 4)
            self.left -= 1
            return FULL if self.left >= 0 else 0xFFFFFFFF & ~FULL

        def write(_uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
            assert (offset, size) == (0, 4) and self.left < 0
            self.sent.append(value)
            self.left = self.waits

        self.uc.mmio_map(UART, 0x1000, read, None, write, None)

    def says(self, name: str, *arguments: int) -> bytes:
        self.set("purgatory_uart_base", struct.pack("<Q", UART))
        self.set("console_stuck", bytes(4))
        self.sent.clear()
        self.left = self.waits
        self(name, *arguments)
        return bytes(self.sent)


@pytest.fixture(scope="module")
def console(purgatory_ro: Path) -> Console:
    return Console(purgatory_ro)


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_text_is_sent_as_terminals_want_it(console: Console, waits: int) -> None:
    console.waits = waits
    for text in (b"", b"a", b"a\n", b"\n\nb", bytes(range(1, 256))):
        console.uc.mem_write(SCRATCH, text + b"\0more")
        assert console.says("console_puts", SCRATCH) == text.replace(b"\n", b"\r\n")


def test_numbers_are_those_that_they_are(console: Console) -> None:
    console.waits = 0
    for value in (0, 1, 9, 10, 11, 99, 100, 101, 1234567890, 0xFFFFFFFF):
        assert console.says("console_put_dec", value) == str(value).encode()
    for value in (*(1 << bit for bit in range(64)), 0, 0xF, 0xA9, 0x123456789ABCDEF0, (1 << 64) - 1):
        assert console.says("console_put_hex", value) == hex(value).encode()
    digest = bytes(range(0x80, 0x10, -0x10)) + some_bytes(25)
    console.uc.mem_write(SCRATCH, digest + b"\xff")
    assert console.says("console_put_digest", SCRATCH) == digest.hex().encode()


def test_nothing_is_sent_once_it_was_stuck_or_where_there_is_none(console: Console) -> None:
    console.uc.mem_write(SCRATCH, b"text\0")
    console.says("console_puts", SCRATCH)
    for symbol, value in (("console_stuck", b"\1\0\0\0"), ("purgatory_uart_base", bytes(8))):
        console.set("console_stuck", bytes(4))
        console.set(symbol, value)
        console.sent.clear()
        console("console_puts", SCRATCH)
        assert console.sent == b""


# -- the report --------------------------------------------------------------------------------------------------------


def report(
    console: Console,
    regions: list[tuple[int, bytes]],
    damage: list[tuple[int, int]],
    pages: int,
    flags: int = 0,
) -> str:
    """What is said of damage that is in the record."""
    for phys, data in regions:
        console.uc.mem_write(phys, data)
    regions_of(console, [(phys, len(data)) for phys, data in regions])
    table = SCRATCH + 0x80000
    count = sum(-(-len(data) // PAGE) for _, data in regions)
    console.uc.mem_write(table, bytes(range(32 * count % 256)) + some_bytes(32 * count))
    console.set("purgatory_page_digests", struct.pack("<Q", table))
    for name, seed in (("purgatory_region_digests", 5), ("purgatory_found", 6)):
        console.set(name, some_bytes(512, seed=seed))
    flat = [value for pair in damage for value in pair]
    console.set(
        "purgatory_verdict",
        struct.pack(
            f"<QII Q 64s II QQQQ II {len(flat)}Q",
            0,
            2,
            3,
            0,
            bytes(64),
            flags,
            0,
            pages,
            0,
            0,
            0,
            len(damage),
            0,
            *flat,
        ),
    )
    console.set("purgatory_sha256_digest", some_bytes(32, seed=7))
    console.set("sha2_in_use", bytes(4))
    console.uc.mem_write(SCRATCH, some_bytes(32, seed=8))
    console.waits = 0
    return console.says("report_result", 0xFFFF, SCRATCH).decode()


@pytest.mark.parametrize("repaired", [False, True], ids=["", "repaired"])
@pytest.mark.parametrize("pages", [0, 3], ids=["by region", "by page"])
def test_each_range_is_told_with_its_region_its_ends_and_its_digests(
    console: Console, pages: int, repaired: bool
) -> None:
    at = SCRATCH + 0x10000
    sizes = (PAGE, PAGE + 8, 3 * PAGE, *(8,) * 12, 16)
    regions = [(at + 0x4000 * i, some_bytes(size, seed=20 + i)) for i, size in enumerate(sizes)]
    regions[1] = (regions[0][0] + PAGE, regions[1][1])  # a neighbour
    damage = [
        (regions[0][0], PAGE),
        (regions[1][0], PAGE),
        (regions[1][0] + PAGE, 8),
        (regions[2][0] + PAGE, 2 * PAGE),
        (regions[15][0], 16),
    ]
    text = report(console, regions, damage, pages, 1 << 4 if repaired else 0)
    digests = [bytes(console.uc.mem_read(SCRATCH + 0x80000 + 32 * i, 32)).hex() for i in range(20)]
    expected = [
        "digests do NOT match",
        f"expected {some_bytes(32, seed=7).hex()}",
        f"found    {some_bytes(32, seed=8).hex()}",
    ]
    for (start, size), region, page in zip(damage, (0, 1, 1, 2, 15), (0, 1, 2, 4, 18), strict=True):
        expected.append(f"damaged: region {region}, {start:#x}-{start + size - 1:#x}")
        part = slice(32 * region, 32 * region + 32)
        if not pages:
            expected.append(f"  expected {some_bytes(512, seed=5)[part].hex()}")
            expected.append(f"  found    {some_bytes(512, seed=6)[part].hex()}")
        elif not repaired:
            first = bytes(console.uc.mem_read(start, min(size, PAGE)))
            expected += [
                f"  page expected {digests[page]}",
                f"  page found    {hashlib.sha256(first).hexdigest()}",
            ]
    if pages:
        expected.append(f"damaged pages: {pages}")
    assert text.splitlines() == [f"purgatory: {line}" for line in expected]


@pytest.mark.parametrize("what", ["damaged", "x0", "nothing"])
def test_what_is_found_at_once_is_one_line(console: Console, what: str) -> None:
    damaged, line = {
        "damaged": (1 << 16 | 1 << 17, "the purgatory itself is damaged"),
        "x0": (1 << 17, "x0 is not the device tree that was loaded"),
        "nothing": (0, "digests match"),
    }[what]
    console.set("regions", struct.pack("<I", 1))
    assert console.says("report_result", damaged, SCRATCH).decode() == f"purgatory: {line}\r\n"


def test_an_exception_is_told_with_its_three_registers(console: Console) -> None:
    assert console.says("report_trap", 0x96000010, 0x403C0123, 0xDEAD) == (
        b"purgatory: exception, ESR 0x96000010 at 0x403c0123, FAR 0xdead\r\n"
    )


def test_the_first_line_counts_regions_and_bytes(console: Console) -> None:
    for lengths in ((), (0, 5), (1,) * 16, (0,) * 15 + (0x1234,), (1 << 33, 0, 1)):
        regions_of(console, [(0x50000000, one) for one in lengths])
        for prepared, used in ((0, 0), (1, 0), (0, 1), (1, 1)):
            console.set("mmu_prepared", struct.pack("<I", prepared))
            console.set("sha2_in_use", struct.pack("<I", used))
            how = ", caches on" * prepared + ", SHA-2 instructions" * used
            count = sum(1 for one in lengths if one)
            checking = f"purgatory: checking {count} regions, {sum(lengths):#x} bytes{how}\r\n"
            nothing = "purgatory: nothing to check\r\n"
            assert console.says("report_start").decode() == (checking if count else nothing)


# -- firmware ----------------------------------------------------------------------------------------------------------


def test_firmware_is_called_once_by_the_conduit_that_it_has(functions: Functions) -> None:
    """With the function in x0 and nothing in the others; without a conduit it is as if firmware had refused."""
    calls: list[tuple[int, list[int]]] = []

    def on_call(uc: Uc, number: int, _data: object) -> None:
        calls.append((number, [uc.reg_read(getattr(arm64, f"UC_ARM64_REG_X{one}")) for one in range(4)]))
        uc.reg_write(arm64.UC_ARM64_REG_X0, 77)

    handle = functions.uc.hook_add(UC_HOOK_INTR, on_call)
    for conduit, number in ((0, None), (1, EXCP_HVC), (2, EXCP_SMC), (3, None)):
        calls.clear()
        answer = functions("psci_call", 0x84000009, conduit, 0xBAD2, 0xBAD3)
        assert calls == ([(number, [0x84000009, 0, 0, 0])] if number else [])
        assert answer & 0xFFFFFFFF == (77 if number else 0xFFFFFFFF)
    functions.uc.hook_del(handle)
