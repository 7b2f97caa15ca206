"""Lines of a comparison between a real kernel and the model: what counts, for device trees and VMCOREINFO."""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from kexecemu.errors import FormatError
from kexecemu.formats.fdt import Fdt

__all__ = ["ABSENT", "ALLOCATED", "IMAGE", "RANDOM", "FactRow", "Same", "compare_trees"]
__all__ += ["compare_messages", "compare_vmcoreinfo"]

# Why a line does not count.
RANDOM = "random by KASLR"
_SEED = "a random number"
ALLOCATED = "from the kernel's allocator"
IMAGE = "the model is a kernel image of its own"
_LAYOUT = "the model's structures are of its own build, with fewer options"
ABSENT = "-"


class Same(enum.StrEnum):
    """What came of one line."""

    EQUAL = "equal"
    DIFFERENT = "different"
    SHOWN = "not counted"


@dataclass(frozen=True)
class FactRow:
    """One line: what it is, the two values in words, and why it does not count if it does not."""

    group: str
    name: str
    real: str
    model: str
    why: str = ""

    @property
    def same(self) -> Same:
        """Whether both are equal, and whether that counts."""
        if self.real == self.model:
            return Same.EQUAL
        return Same.SHOWN if self.why else Same.DIFFERENT


def _properties(blob: bytes) -> dict[str, bytes]:
    """All properties of a tree by their path, in the tree's order; a node itself is a path that ends in a slash."""
    tree, path = Fdt(blob), [""]
    found: dict[str, bytes] = {}
    for node in tree.nodes():
        path[node.depth :] = [node.name]
        folder = "/".join(path) + "/"
        found[folder] = b""
        for prop in tree.properties(node.offset):
            found[folder + prop.name] = prop.value
    return found


def _shown(value: bytes) -> str:
    """Strings as strings, else cells."""
    if not value:
        return "(empty)"
    if value[-1] == 0 and all(32 <= byte < 127 or byte == 0 for byte in value) and value[0]:
        return " ".join(f'"{word}"' for word in value.rstrip(b"\0").decode().split("\0")) + (
            "" if not value.endswith(b"\0\0") else f" ({len(value)} bytes)"
        )
    if len(value) % 4 == 0:
        cells = [int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value), 4)]
        return f"<{' '.join(f'{cell:x}' for cell in cells)}>"
    return value.hex()


def compare_trees(real: bytes, model: bytes) -> Iterator[FactRow]:
    """Every property of the two trees for the crash kernel, and whether their order is the same."""
    try:
        ours, theirs = _properties(real), _properties(model)
    except FormatError as error:
        yield FactRow("device tree", "blob", f"{len(real)} bytes", f"{len(model)} bytes: {error}")
        return
    yield FactRow("device tree", "order", _order(ours, theirs), "the same")
    why = {"/chosen/kaslr-seed": _SEED, "/chosen/rng-seed": _SEED}
    for path in dict.fromkeys((*ours, *theirs)):
        values = [_shown(tree[path]) if path in tree else ABSENT for tree in (ours, theirs)]
        reason = why.get(path, "") if path in ours and path in theirs else ""
        yield FactRow("device tree", path, values[0], values[1], reason)


def _order(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> str:
    """Where the order of what both have is another one, for people."""
    left, right = [path for path in ours if path in theirs], [path for path in theirs if path in ours]
    pairs = zip(left, right, strict=True)
    return next((f"{one} where the model has {other}" for one, other in pairs if one != other), "the same")


# What of VMCOREINFO is of the image and where it lies, and of structures whose size depends on a whole configuration.
_PLACES = re.compile(r"SYMBOL\(vmemmap\)|KERNELOFFSET|NUMBER\((kimage_voffset|PHYS_OFFSET)\)")
_NOT_COUNTED = (
    (re.compile(r"SYMBOL\(mem_section\)"), ALLOCATED),
    (re.compile(r"SYMBOL\((?!vmemmap\))"), IMAGE),
    (re.compile(r"(SIZE|OFFSET|LENGTH)\((pglist_data|zone|free_area|printk_info)\b"), _LAYOUT),
    (re.compile(r"(OSRELEASE|BUILD-ID)$"), IMAGE),
)

# Messages of the boot that say where memory is, and what became of it.
_MESSAGES = {
    "crash memory": re.compile("cra(sh|hs)kernel|^Memory value expected"),
    "memory left out": re.compile("^Memory limited|^OF: fdt: Ignoring memory"),
    "CMA": re.compile("^cma: "),
    "zones": re.compile("Zone ranges|^  (DMA|DMA32|Normal|Device) |Movable zone|^  Node [0-9]+: 0x"),
    "nodes": re.compile("^ +node +[0-9]|Initmem setup"),
    "reserved memory": re.compile("OF: reserved mem|Reserved memory|^Skipping dt|--0x.* overlaps with "),
    "CPUs": re.compile("^Number of cores|^missing boot CPU|^smp: Brought up"),
    "early parameters": re.compile("^Malformed early option"),
}
_ECHO = re.compile(r"ommand line|Unknown kernel|^memblock_|\+0x[0-9a-f]+/0x")  # and memblock=debug
_TIME = re.compile(r"^\[ *[0-9]+\.[0-9]+\] ")


def compare_vmcoreinfo(real: str, model: str, *, kaslr: bool) -> Iterator[FactRow]:
    """Lines by their key. Which keys there are counts, and so do numbers; of addresses those that kaslr would draw."""
    not_counted = (*([(_PLACES, RANDOM)] if kaslr else []), *_NOT_COUNTED)
    ours, theirs = (
        dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line) for text in (real, model)
    )
    for key in dict.fromkeys((*ours, *theirs)):
        both = key in ours and key in theirs
        why = next((reason for pattern, reason in not_counted if both and pattern.match(key)), "")
        yield FactRow("vmcoreinfo", key, ours.get(key, ABSENT), theirs.get(key, ABSENT), why)


def compare_messages(real: str, model: str) -> Iterator[FactRow]:
    """What both kernels printed of memory as they booted, without the times; each line counts."""
    ours, theirs = ([_TIME.sub("", line).rstrip() for line in text.splitlines()] for text in (real, model))
    for name, pattern in _MESSAGES.items():
        left, right = (
            [line for line in lines if pattern.search(line) and not _ECHO.search(line)]
            for lines in (ours, theirs)
        )
        for one, other in zip_longest(left, right, fillvalue=ABSENT):
            yield FactRow("messages", name, one, other)
