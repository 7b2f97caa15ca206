"""The stage 1 translation table format of AArch64 with 48-bit addresses: granules, levels, descriptors.

A table holds 8-byte descriptors. Bits 1:0 tell the kind: 0b11 a table (levels 0 to 2) or a page (level 3),
0b01 a block, bit 0 clear invalid, whatever else is set. Names of attributes are the architecture's; Linux's
are close.
"""

from dataclasses import dataclass
from enum import Enum

from kexecemu.errors import MachineError
from kexecemu.shown import shown

__all__ = ["ATTR_IDX", "Granule", "TableFormat"]

ENTRY_SIZE = 8

VALID = 1 << 0
TYPE = 1 << 1
"""Set: a table, or a page at level 3; clear: a block."""
AP_EL0 = 1 << 6
"""AP[1]: EL0 may access too."""
AP_RO = 1 << 7
"""AP[2]: read-only."""
SH_INNER = 3 << 8
AF = 1 << 10
"""Access flag: clear, the first access faults."""
NG = 1 << 11
"""Not global: the translation belongs to one ASID."""
DBM = 1 << 51
CONT = 1 << 52
"""One of an aligned run of entries that the TLB may hold as one."""
PXN = 1 << 53
"""Not executable at EL1."""
UXN = 1 << 54
"""Not executable at EL0."""

ADDRESS = (1 << 48) - 1


def ATTR_IDX(index: int) -> int:
    """AttrIndx: which of the eight attributes in MAIR_EL1 the memory has."""
    return index << 2


class Granule(Enum):
    """The size of a page and of a table, by the bits of an offset inside it."""

    K4 = 12
    K16 = 14
    K64 = 16

    @property
    def shift(self) -> int:
        """log2 of the size."""
        return self.value

    @property
    def size(self) -> int:
        """Bytes in a page, and in a whole table."""
        return 1 << self.value

    @property
    def bits(self) -> int:
        """Address bits that one level resolves: a table holds 2**bits descriptors."""
        return self.value - 3


# How many adjacent entries the contiguous bit joins, by granule and level (Arm ARM, table D8-90 of issue
# J.a).
_CONTIGUOUS = {Granule.K4: {1: 16, 2: 16, 3: 16}, Granule.K16: {2: 32, 3: 128}, Granule.K64: {2: 32, 3: 32}}
# With 48-bit output addresses; 16K and 64K gain level 1 blocks only with 52.
_BLOCKS = {Granule.K4: (1, 2), Granule.K16: (2,), Granule.K64: (2,)}


@shown()
@dataclass(frozen=True, slots=True)
class TableFormat:
    """A granule and a size of the virtual address space in bits (25 to 48, that is 64 - TCR_EL1.TnSZ)."""

    granule: Granule
    va_bits: int = 48

    def __post_init__(self) -> None:
        if not 25 <= self.va_bits <= 48:
            raise MachineError(f"{self.va_bits}-bit virtual addresses: the format has 25 to 48 bits")

    @property
    def start_level(self) -> int:
        """The level of the root table; the last is always 3."""
        return 4 + (self.granule.shift - self.va_bits) // self.granule.bits

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry at `level` covers."""
        return self.granule.shift + (3 - level) * self.granule.bits

    def entry_size(self, level: int) -> int:
        """Bytes of address space that one entry at `level` covers."""
        return 1 << self.shift(level)

    def entries(self, level: int) -> int:
        """How many descriptors a table at `level` has; fewer in the root when va_bits does not fill it."""
        if level == self.start_level:
            return 1 << (self.va_bits - self.shift(level))
        return 1 << self.granule.bits

    def index(self, virt: int, level: int) -> int:
        """The number of the descriptor in its table that translates virt; bits above va_bits are ignored."""
        return (virt & ((1 << self.va_bits) - 1)) >> self.shift(level) & (self.entries(level) - 1)

    def may_hold_leaf(self, level: int) -> bool:
        """True at levels where a descriptor can map memory: blocks, and pages at level 3."""
        return level == 3 or level in _BLOCKS[self.granule]

    def contiguous_entries(self, level: int) -> int:
        """How many entries the contiguous bit joins at `level`; 1 where it means nothing."""
        return _CONTIGUOUS[self.granule].get(level, 1)

    def contiguous_size(self, level: int) -> int:
        """Bytes in one contiguous run at `level`."""
        return self.contiguous_entries(level) << self.shift(level)

    def table(self, phys: int) -> int:
        """A descriptor that points to the next level's table at `phys`."""
        return phys | TYPE | VALID

    def leaf(self, level: int, phys: int, attributes: int) -> int:
        """A descriptor that maps `phys` at `level`: a page at level 3, else a block."""
        return phys | attributes | VALID | (TYPE if level == 3 else 0)

    def is_table(self, descriptor: int, level: int) -> bool:
        """True if the descriptor, found at `level`, points to a table."""
        return level < 3 and descriptor & (TYPE | VALID) == (TYPE | VALID)

    def is_leaf(self, descriptor: int, level: int) -> bool:
        """True if the descriptor, found at `level`, is valid and maps memory."""
        if level == 3:
            return descriptor & (TYPE | VALID) == (TYPE | VALID)  # 0b01 is reserved there, and faults
        return level in _BLOCKS[self.granule] and descriptor & (TYPE | VALID) == VALID

    def address(self, descriptor: int, level: int) -> int:
        """The physical address in a leaf found at `level`."""
        return descriptor & ADDRESS & -(1 << self.shift(level))

    def table_address(self, descriptor: int) -> int:
        """The physical address of the table that a table descriptor points to."""
        return descriptor & ADDRESS & -self.granule.size

    def attributes(self, descriptor: int, level: int) -> int:
        """The attribute bits of a leaf: everything but its address and its type."""
        return descriptor & ~(ADDRESS & -(1 << self.granule.shift)) & ~(TYPE | VALID)
