"""A real first kernel beside the model of it: what each reserved, loaded and wrote down, line by line.

The model gets what the real one had: the same RAM and device tree with the same command line, the options of the real
one's configuration that it knows, and kexec-tools' own purgatory; then both load the same Image and initrd.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kexecemu.errors import FormatError, InputError
from kexecemu.formats.elfcore import PT_LOAD, ProgramHeader, iterate_notes, parse_core_header
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.config import KNOWN_OPTIONS, Era, KernelConfig
from kexecemu.kernel.kimage import Kimage
from kexecemu.kernel.procfs import proc_iomem, sysfs
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.first_linux import FirstLinux
from kexecemu.scenario.first_linux_records import iomem
from kexecemu.scenario.lab import Kernel

__all__ = [
    "Row",
    "Same",
    "boot_model",
    "compare",
    "compare_trees",
    "compare_vmcoreinfo",
    "config_options",
    "era_of",
]

# Why a line does not count.
_RANDOM = "random by KASLR"
_SEED = "a random number"
_ALLOCATED = "from the kernel's allocator"
_IMAGE = "the model is a kernel image of its own"
_LAYOUT = "structures of the model's own build"
_ONE_GUEST = "the model's guest is a 6.1 in every era"
_ABSENT = "-"


class Same(enum.StrEnum):
    """What came of one line."""

    EQUAL = "equal"
    DIFFERENT = "different"
    SHOWN = "not counted"


@dataclass(frozen=True)
class Row:
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


def era_of(release: str) -> Era:
    """The era of a kernel by what uname -r says: 6.1 up to 6.3, 6.4 up to 6.6, 6.12 from 6.7 on."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise InputError(f"{release!r} is no release of Linux")
    version = int(found[1]), int(found[2])
    if version < (6, 4):
        return Era.V6_1
    return Era.V6_4 if version < (6, 7) else Era.V6_12


def config_options(text: str) -> dict[str, str]:
    """The options of a kernel's .config that the model knows; what is "not set" is n."""
    options = {}
    for line in text.splitlines():
        if found := re.match(r"CONFIG_(\w+)=(.*)$", line):
            options[found[1]] = found[2].strip('"')
        elif found := re.match(r"# CONFIG_(\w+) is not set$", line):
            options[found[1]] = "n"
    # What is about our purgatory is in no kernel.
    return {
        name: options[name]
        for name in KNOWN_OPTIONS
        if name in options and not name.startswith("KEXEC_PURGATORY")
    }


def boot_model(linux: FirstLinux, options: Mapping[str, str]) -> Kernel:
    """Our model of the kernel that is running, booted on a board like its own, with the same load done.

    Raises InputError or KexecError where the model refuses what the real kernel took.
    """
    setup = linux.setup
    config = KernelConfig(era_of(linux.release), purgatory=setup.kexec, options=options, rng_ready=True)
    kernel = Kernel.boot(Board(setup.ram, setup.cpus), config, cmdline=None, dtb=linux.dtb, seed=setup.seed)
    if kernel.crashk_res is None:
        raise InputError("the model has reserved no crashkernel memory where the real kernel has")
    kernel.kexec_tools_load(setup.crash_image, setup.crash_initrd, setup.append)
    return kernel


def compare(linux: FirstLinux, kernel: Kernel) -> list[Row]:
    """All lines, in groups."""
    image = kernel.image
    assert image is not None
    return [
        *_reservation(linux, kernel),
        *_resources(linux, kernel),
        *_segments(linux.image, image),
        *compare_trees(_content(linux.image, "dtb"), _content(image, "dtb")),
        *_core_header(linux, _content(linux.image, "elfcorehdr"), _content(image, "elfcorehdr")),
        *_purgatory(linux, kernel, image),
        *_protection(linux, kernel, image),
        *compare_vmcoreinfo(
            _real_vmcoreinfo(linux),
            kernel.vmcoreinfo().decode(errors="replace"),
            "" if kernel.config.release is Era.V6_1 else _ONE_GUEST,
        ),
    ]


def _content(image: Kimage, name: str) -> bytes:
    segment = image.segment(name)
    return bytes(segment.buf) if segment is not None else b""


def _text(area: PhysRange | None) -> str:
    return _ABSENT if area is None else f"{area.start:#x}-{area.last:#x}"


def _reservation(linux: FirstLinux, kernel: Kernel) -> Iterator[Row]:
    yield Row("crashkernel", "crashk_res", _text(linux.crashk_res), _text(kernel.crashk_res))
    yield Row("crashkernel", "crashk_low_res", _text(linux.crashk_low_res), _text(kernel.crashk_low_res))
    found = re.search(r"kexec_crash_size (\d+)", linux.board.uart.text)
    real = found[1] if found else _ABSENT
    yield Row("crashkernel", "kexec_crash_size", real, sysfs(kernel)["/sys/kernel/kexec_crash_size"].strip())


def _resources(linux: FirstLinux, kernel: Kernel) -> Iterator[Row]:
    """/proc/iomem: RAM and crash memory count; what lies in RAM besides is of the two images and allocators."""
    real, model = iomem(linux.records["iomem.txt"]), iomem(proc_iomem(kernel))
    for name, why in (
        ("System RAM", ""),
        ("Crash kernel", ""),
        ("Kernel code", _IMAGE),
        ("Kernel data", _IMAGE),
        ("reserved", _ALLOCATED),
    ):
        ours = [_text(area) for _, area, what in real if what == name]
        theirs = [_text(area) for _, area, what in model if what == name]
        for number in range(max(len(ours), len(theirs))):
            yield Row("/proc/iomem", name, _at(ours, number), _at(theirs, number), why)


def _at(values: Sequence[str], number: int) -> str:
    return values[number] if number < len(values) else _ABSENT


def _segments(real: Kimage, model: Kimage) -> Iterator[Row]:
    names = list(dict.fromkeys(one.name for one in (*real.segments, *model.segments)))
    yield Row(
        "segments",
        "order",
        " ".join(one.name for one in real.segments),
        " ".join(one.name for one in model.segments),
    )
    for name in names:
        ours, theirs = real.segment(name), model.segment(name)
        for field in ("mem", "memsz", "bufsz"):
            yield Row(
                "segments",
                f"{name} {field}",
                _ABSENT if ours is None else f"{getattr(ours, field):#x}",
                _ABSENT if theirs is None else f"{getattr(theirs, field):#x}",
            )
    yield Row("segments", "entry", f"{real.start:#x}", f"{model.start:#x}")


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


def compare_trees(real: bytes, model: bytes) -> Iterator[Row]:
    """Of the two trees for the crash kernel every property, where they are the same in one line a node."""
    try:
        ours, theirs = _properties(real), _properties(model)
    except FormatError as error:
        yield Row("device tree", "blob", f"{len(real)} bytes", f"{len(model)} bytes: {error}")
        return
    yield Row("device tree", "order", _order(ours, theirs), "the same")
    why = {"/chosen/kaslr-seed": _SEED, "/chosen/rng-seed": _SEED}
    for path in dict.fromkeys((*ours, *theirs)):
        values = [_shown(tree[path]) if path in tree else _ABSENT for tree in (ours, theirs)]
        reason = why.get(path, "") if path in ours and path in theirs else ""
        yield Row("device tree", path, values[0], values[1], reason)


def _order(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> str:
    """Where the order of what both have is another one, for people."""
    left, right = [path for path in ours if path in theirs], [path for path in theirs if path in ours]
    return next(
        (
            f"{one} where the model has {other}"
            for one, other in zip(left, right, strict=True)
            if one != other
        ),
        "the same",
    )


def _core_header(linux: FirstLinux, real: bytes, model: bytes) -> Iterator[Row]:
    kaslr = "nokaslr" not in linux.setup.cmdline.split()

    def headers(blob: bytes) -> list[ProgramHeader]:
        try:
            return list(parse_core_header(blob).program_headers)
        except FormatError:
            return []

    ours, theirs = headers(real), headers(model)
    yield Row("elfcorehdr", "e_phnum", str(len(ours)), str(len(theirs)))
    loads = 0
    for number in range(max(len(ours), len(theirs))):
        left = ours[number] if number < len(ours) else None
        right = theirs[number] if number < len(theirs) else None
        kind = left or right
        assert kind is not None
        is_load = kind.type == PT_LOAD
        loads += is_load
        kernel = is_load and loads == 1  # kexec-tools puts the kernel's own mapping first
        name = f"{number} {'PT_LOAD' if is_load else 'PT_NOTE'}{' kernel' if kernel else ''}"
        for field, why in (
            ("type", ""),
            ("paddr", "" if is_load else _ALLOCATED),
            ("vaddr", (_RANDOM if kaslr else "") if is_load else ""),
            ("memsz", _IMAGE if kernel else ""),
        ):
            values = [_ABSENT if one is None else f"{getattr(one, field):#x}" for one in (left, right)]
            yield Row("elfcorehdr", f"{name} p_{field}", values[0], values[1], why)


def _purgatory(linux: FirstLinux, kernel: Kernel, image: Kimage) -> Iterator[Row]:
    """The bytes of the same object, linked by two: told by the symbols that differ, and what lies outside of any."""
    ours, theirs = _content(linux.image, "purgatory"), _content(image, "purgatory")
    loaded = kernel.kexec.purgatory
    assert loaded is not None
    start = loaded.segment.mem
    symbols = {name: PhysRange.of(phys, size) for name, (phys, size) in loaded.symbol_table().items() if size}
    differ: dict[str, int] = {}
    for at, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            name = next((name for name, area in symbols.items() if start + at in area), "elsewhere")
            differ[name] = differ.get(name, 0) + 1
    why = {
        "sha256_digest": "over a device tree with a random number",
        "arm64_sink": "the model's user says --serial, to have something to see",
    }
    for name, area in sorted(symbols.items()):
        if name in differ:
            at = area.start - start
            yield Row(
                "purgatory",
                name,
                _short(ours[at : at + area.size]),
                _short(theirs[at : at + area.size]),
                why.get(name, ""),
            )
    elsewhere = differ.get("elsewhere", 0) + abs(len(ours) - len(theirs))
    yield Row("purgatory", "bytes outside of those that differ", str(elsewhere), "0")


def _short(data: bytes) -> str:
    return data.hex() if len(data) <= 32 else f"{data[:32].hex()}..."


def _protection(linux: FirstLinux, kernel: Kernel, image: Kimage) -> Iterator[Row]:
    """Which segments a store through the linear map would fault on: by the real page tables, and by the model."""
    cpu = linux.board.boot_cpu
    for segment in linux.image.segments:
        pages = range(segment.area.start, segment.area.end, kernel.config.page_size)
        absent = [cpu.translate(linux.kernel_map.linear_virt(cpu, phys)) is None for phys in pages]
        real = "mapped" if not any(absent) else "not mapped" if all(absent) else "partly mapped"
        own = image.segment(segment.name)
        there = own is not None and any(area.covers(own.area) for area in kernel.protected)
        yield Row("protection", segment.name, real, "not mapped" if there else "mapped")


def _real_vmcoreinfo(linux: FirstLinux) -> str:
    """The note in memory, at the address that /sys/kernel/vmcoreinfo gives."""
    phys, size = linux.records["vmcoreinfo-address.txt"].split()
    data = linux.ram.read(int(phys, 16), int(size, 16))
    return next((note.desc for note in iterate_notes(data) if note.name == "VMCOREINFO"), b"").decode(
        errors="replace"
    )


_COUNTED = re.compile(r"PAGESIZE|NUMBER\((?!MODULES_|VMALLOC_|VMEMMAP_|kimage_voffset|PHYS_OFFSET)")


# What is the same in each of the eras, for pages of one size.
_EVERY_ERA = ("PAGESIZE", "NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)")

_BY_CONFIG = {
    "NUMBER(PG_hwpoison)": "the model is built without MEMORY_FAILURE",
    "NUMBER(HUGETLB_PAGE_DTOR)": "the model is built without HUGETLB_PAGE",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": "the model is built without HUGETLB_PAGE",
    "SYMBOL(mem_map)": "the model is built without NUMA",
    "SYMBOL(contig_page_data)": "the model is built without NUMA",
    **{
        f"SYMBOL(kallsyms_{name})": "the model is built without KALLSYMS"
        for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
    },
}


def compare_vmcoreinfo(real: str, model: str, another: str) -> Iterator[Row]:
    """Lines by their key. Which keys there are counts, and the numbers that no address and no structure decides.

    another says why a line may differ that would count in a kernel of the model's own release.
    """
    ours, theirs = (
        dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line) for text in (real, model)
    )
    for key in dict.fromkeys((*ours, *theirs)):
        both = key in ours and key in theirs
        why = _BY_CONFIG.get(key, another) if not both else "" if key in _EVERY_ERA else another
        if both and not _COUNTED.match(key):
            why = _LAYOUT if key.startswith(("SIZE", "OFFSET", "LENGTH")) else _IMAGE
            if key.startswith(("SYMBOL", "KERNELOFFSET", "NUMBER")):
                why = _RANDOM
        yield Row("vmcoreinfo", key, ours.get(key, _ABSENT), theirs.get(key, _ABSENT), why)
