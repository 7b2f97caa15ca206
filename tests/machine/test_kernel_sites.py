"""Which instructions of a Linux are found, against capstone's reading of the same bytes."""

from __future__ import annotations

import random
import struct

import capstone
import pytest
from unicorn.arm64_const import UC_ARM64_INS_MRS, UC_ARM64_INS_MSR, UC_ARM64_INS_SYS

from kexecemu.machine.cpu.guest_code import Image, find_image, sites
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

BASE = 0x40000000
TEXT = BASE + 0x210000  # phys
VIRT = 0xFFFF800008210000
NOP = 0xD503201F


@pytest.fixture
def ram():
    with_bank = Ram((PhysRange.of(BASE, 4 << 20),))
    yield with_bank
    with_bank.close()


def put_image(ram: Ram, phys: int = TEXT, size: int = 0x20000, words: tuple[int, ...] = ()) -> None:
    header = struct.pack("<2I6Q2I", 0x91005A4D, 0x14000000, 0, size, 0xA, 0, 0, 0, 0x644D5241, 64)
    ram.write(phys, header + struct.pack(f"<{len(words)}I", *words))


# -- finding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 0x40, 0xFFFC, 0x10000, 0x1FFFC])
def test_an_image_is_found_from_any_place_in_it(ram, offset):
    put_image(ram)
    assert find_image(ram, VIRT + offset, TEXT + offset) == Image(TEXT, VIRT, 0x20000)


def test_what_lies_behind_an_image_is_not_in_it(ram):
    put_image(ram)
    assert find_image(ram, VIRT + 0x20000, TEXT + 0x20000) is None


def test_the_nearest_image_below_is_the_one(ram):
    put_image(ram, TEXT - 0x100000, 0x200000)
    put_image(ram)
    assert find_image(ram, VIRT + 4, TEXT + 4) == Image(TEXT, VIRT, 0x20000)


def test_a_guest_without_an_image_is_none(ram):
    assert find_image(ram, VIRT, TEXT) is None


def test_a_header_that_is_not_aligned_is_none(ram):
    put_image(ram, TEXT + 0x1000)
    assert find_image(ram, VIRT + 0x2000, TEXT + 0x2000) is None


# -- searching -------------------------------------------------------------------------------------------------

COUNTERS = ("cntpct_el0", "cntvct_el0")
TLBI = ("vmalle1", "vae1", "aside1", "vaae1", "vale1", "vaale1")
TIMERS = tuple(f"cnt{which}_{register}_el0" for which in "pv" for register in ("tval", "ctl", "cval"))


def kind_by_capstone(instruction: capstone.CsInsn) -> int | None:
    """What the search should make of an instruction, by its assembly."""
    name, operands = instruction.mnemonic, instruction.op_str.lower().replace(" ", "").split(",")
    if name == "mrs" and operands[1] in (*COUNTERS, *TIMERS, "cntkctl_el1", "id_aa64pfr0_el1"):
        return UC_ARM64_INS_MRS
    if name == "msr" and operands[0] in (*TIMERS, "cntkctl_el1", "sctlr_el1"):
        return UC_ARM64_INS_MSR
    if name == "ic" or (name == "tlbi" and operands[0].removesuffix("is") in TLBI):
        return UC_ARM64_INS_SYS
    return None


def all_system_instructions() -> list[int]:
    """Each MRS, MSR and SYS of op0 1 and 3 that there is, with a register of its own."""
    words = []
    for top in (0xD5080000, 0xD5180000, 0xD5380000):
        for number in range(1 << 14):
            words.append(top & ~0xFFFE0 | (top & 0x80000) | number << 5 | number % 32)
    return words


def test_of_all_system_instructions_those_are_found_that_capstone_says_matter(ram):
    words = all_system_instructions()
    random.Random(1).shuffle(words)
    size = 0x40 + 4 * len(words)
    put_image(ram, size=size, words=tuple(words))
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, 0)
    decoder.skipdata = True
    expected = {}
    for number, word in enumerate(words):
        virt = VIRT + 0x40 + 4 * number
        for instruction in decoder.disasm(struct.pack("<I", word), virt):
            if (kind := kind_by_capstone(instruction)) is not None:
                expected[virt] = kind
                if "sctlr_el1" in instruction.op_str:
                    expected[virt - VIRT + TEXT] = kind  # the MMU goes off where both addresses are the same
    found = dict(sites(ram, Image(TEXT, VIRT, size)))
    # CNTKCTL twice, SCTLR at two places, ID_AA64PFR0, IC, TLBI
    assert len(expected) == len((*COUNTERS, *TIMERS, *TIMERS)) + 3 + 1 + 1 + 3 + 12
    assert found == expected


def test_an_encoding_that_lies_across_two_words_is_none(ram):
    # mrs x0, cntvct_el0 shifted by one, two and three bytes.
    raw = struct.pack("<I", 0xD53BE040)
    data = b"".join(bytes(shift) + raw + bytes(8 - shift) for shift in (1, 2, 3)) + raw
    put_image(ram)
    ram.write(TEXT + 0x40, data)
    assert dict(sites(ram, Image(TEXT, VIRT, 0x20000))) == {VIRT + 0x40 + 36: UC_ARM64_INS_MRS}


def test_a_site_at_the_image_s_very_end_is_found(ram):
    put_image(ram)
    ram.write(TEXT + 0x1FFFC, struct.pack("<I", 0xD51BE32B))
    assert dict(sites(ram, Image(TEXT, VIRT, 0x20000))) == {VIRT + 0x1FFFC: UC_ARM64_INS_MSR}
