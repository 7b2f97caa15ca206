"""What lies about in an arm64 kernel's memory and so is what a stray write leaves: pointers, numbers, poison, text.

Everything is made from bytes that the caller gives (a hash), so that the same bytes always make the same content.
Addresses are those of a kernel with 48 bits of virtual address and pages of 4096 bytes.
"""

__all__ = ["LIST_POISON1", "LIST_POISON2", "POISON_END", "POISON_FREE", "POISON_INUSE", "STRUCTURES"]
__all__ += ["TELLING_WORDS32", "TELLING_WORDS64", "ascii_like", "linear_pointer", "pointer_like"]
__all__ += ["structure_like"]

# include/linux/poison.h; arm64 has CONFIG_ILLEGAL_POINTER_VALUE=0xdead000000000000.
POISON_INUSE, POISON_FREE, POISON_END = 0x5A, 0x6B, 0xA5
LIST_POISON1, LIST_POISON2 = 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122

# Virtual: where each kind of address begins, and how many bytes from there on are likely ones.
_LINEAR, _LINEAR_SIZE = 0xFFFF_0000_0000_0000, 1 << 30  # PAGE_OFFSET: a machine with 1 GiB
_VMALLOC, _VMALLOC_SIZE = 0xFFFF_8000_0A00_0000, 1 << 28  # stacks and modules' data, above the kernel image
_TEXT, _TEXT_SIZE = 0xFFFF_8000_0801_0000, 16 << 20  # KIMAGE_VADDR of 6.1
_VMEMMAP, _VMEMMAP_SIZE = 0xFFFF_FC00_0000_0000, 16 << 20  # struct page of the same 1 GiB

# Values that mean something where they may land: in code, in a device tree, in the header of an Image.
TELLING_WORDS32 = (
    0x0000_0000,
    0x0000_0001,
    0x8000_0000,
    0xFFFF_FFFF,
    0x5A5A_5A5A,
    0x6B6B_6B6B,
    0x57AC_6E9D,  # STACK_END_MAGIC
    0x644D_5241,  # "ARM\x64", in an Image's header
    0xEDFE_0DD0,  # the magic of a device tree, which is big-endian
    0xD503_201F,  # nop
    0xD65F_03C0,  # ret
    0x1400_0000,  # b . : a branch to itself
)
TELLING_WORDS64 = (
    0x0000_0000_0000_0000,
    0x0000_0000_0000_0001,
    0x8000_0000_0000_0000,
    0xFFFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFF4,  # ERR_PTR(-ENOMEM)
    0x5A5A_5A5A_5A5A_5A5A,
    0x6B6B_6B6B_6B6B_6B6B,
    LIST_POISON1,
    LIST_POISON2,
    _LINEAR,
    _TEXT,
)

# A letter for each 8 bytes: l linear map, v vmalloc, t kernel text, m vmemmap, i a small number, 0 zeros,
# ? any of these, as in a large structure, half of which is zeros.
STRUCTURES = (
    "ll",  # struct list_head
    "lt",  # struct rcu_head
    "illt",  # struct work_struct
    "immli00i",  # struct page
    "?" * 128,  # 1024 bytes: an inode with its file system's part
    "?" * 512,  # 4096 bytes: a task_struct
)
_ANY = "0000000000iiiillllvt"


def _at(base_virt: int, size: int, align: int, word: bytes) -> bytes:
    offset = int.from_bytes(word, "little") % size
    return (base_virt + offset - offset % align).to_bytes(8, "little")


def linear_pointer(word: bytes) -> bytes:
    """Eight bytes, little-endian: an address in the linear map, a multiple of 8, chosen by 8 bytes."""
    return _at(_LINEAR, _LINEAR_SIZE, 8, word)


def _content(letter: str, word: bytes) -> bytes:
    if letter == "?":
        letter = _ANY[word[7] % len(_ANY)]
        word = word[:7] + b"\0"
    if letter == "l":
        return linear_pointer(word)
    if letter == "v":
        return _at(_VMALLOC, _VMALLOC_SIZE, 8, word)
    if letter == "t":
        return _at(_TEXT, _TEXT_SIZE, 4, word)
    if letter == "m":
        return _at(_VMEMMAP, _VMEMMAP_SIZE, 64, word)
    if letter == "i":
        return (word[0] if word[1] & 1 else word[0] << 4).to_bytes(8, "little")
    return bytes(8)


def structure_like(structure: str, random: bytes) -> bytes:
    """What a structure holds: one of STRUCTURES, with 8 bytes of `random` for each of its letters."""
    return b"".join(_content(letter, random[8 * at : 8 * at + 8]) for at, letter in enumerate(structure))


def pointer_like(random: bytes) -> bytes:
    """As many bytes as `random`, a multiple of 8: pointers into the linear map, vmalloc and the kernel's text."""
    letters = "lllv" + "lllt"
    words = [random[at : at + 8] for at in range(0, len(random), 8)]
    return b"".join(_content(letters[word[7] % len(letters)], word) for word in words)


def ascii_like(random: bytes) -> bytes:
    """As many bytes as `random`: printable ASCII with spaces and line ends, as in a log."""
    alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789:=/._-[]()ABCDEF  \n    etaoinsr"
    return bytes(alphabet[one % len(alphabet)] for one in random)
