"""A real first kernel beside the model of it: what each reserved, loaded and wrote down, line by line.

The model gets what the real one had: the same RAM and device tree with the same command line, the options of the real
one's configuration that it knows, and kexec-tools' own purgatory; then both load the same Image and initrd.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from kexecemu.crash.kernel import Kernel
from kexecemu.errors import FormatError
from kexecemu.formats.elf import PT_LOAD, ProgramHeader
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.kernel.boot.iomem import image_layout
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.procfs import proc_iomem, sysfs
from kexecemu.linux.first import FirstLinux
from kexecemu.linux.first_boot import kaslr_is_off
from kexecemu.linux.first_records import iomem
from kexecemu.linux.rows import (
    ABSENT,
    ALLOCATED,
    IMAGE,
    RANDOM,
    FactRow,
    compare_messages,
    compare_trees,
    compare_vmcoreinfo,
)
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

__all__ = ["boot_model", "compare", "config_options"]

_OVER_SEED = "over a device tree with a random number"


def config_options(text: str) -> dict[str, str]:
    """The options of a kernel's .config that the model knows; what is "not set" is n."""
    options = {}
    for line in text.splitlines():
        if found := re.match(r"CONFIG_(\w+)=(.*)$", line):
            options[found[1]] = found[2].strip('"')
        elif found := re.match(r"# CONFIG_(\w+) is not set$", line):
            options[found[1]] = "n"
    if options:
        options.setdefault("HUGETLB_PAGE", "n")  # it has no prompt: where it is off the file does not say so
    # What is about our purgatory is in no kernel.
    known = [name for name in KNOWN_OPTIONS if not name.startswith("KEXEC_PURGATORY")]
    return {name: options[name] for name in known if name in options}


def boot_model(linux: FirstLinux, options: Mapping[str, str], built_in: Path | None = None) -> Kernel:
    """Our model of the kernel that is running, booted on a board like its own, with the same load done.

    Nothing is loaded where one of the two has reserved nothing. built_in is the purgatory that kernel has, for its
    kexec_file_load(). Raises InputError or KexecError where the model refuses what the real kernel took.
    """
    setup = linux.setup
    era = Era.of_release(linux.release)
    by_file = setup.syscall == "kexec_file_load"
    purgatory = (str(built_in) if built_in else False) if by_file else setup.kexec
    config = KernelConfig(era, purgatory=purgatory, options=options, rng_ready=True)
    board, layout = Board(setup.ram, setup.cpus), _layout(linux)
    kernel = Kernel.boot(board, config, cmdline=None, dtb=linux.dtb, seed=setup.seed, layout=layout)
    if kernel.crashk_res is None or linux.crashk_res is None:
        return kernel
    load = kernel.kexec_file_load if by_file else kernel.kexec_tools_load
    load(setup.crash_image, setup.crash_initrd, setup.append)
    return kernel


def _layout(linux: FirstLinux) -> TextLayout | None:
    """Where the real image has its parts, by /proc/iomem; None where that does not say, and before 6.9.

    A 2 MiB block of its text takes no table in the linear map, and that moves what is reserved behind the map. Before
    6.9 map_kernel() takes tables for the image itself, in Debian's 6.1 just as many as are spared.
    """
    era = Era.of_release(linux.release)
    if era < Era.V6_9:
        return None
    found = {name: area for _, area, name in iomem(linux.records["iomem.txt"])}
    code, data = found.get("Kernel code"), found.get("Kernel data")
    if code is None or data is None:
        return None
    return image_layout(era, code, data)


def compare(linux: FirstLinux, kernel: Kernel) -> list[FactRow]:
    """All lines, in groups; those about the load where both have loaded."""
    rows = [*_reservation(linux, kernel), *_resources(linux, kernel)]
    if kernel.image is not None:
        rows += _load(linux, kernel, kernel.image)
    return [
        *rows,
        *compare_vmcoreinfo(
            _real_vmcoreinfo(linux),
            kernel.vmcoreinfo().decode(errors="replace"),
            kaslr=not kaslr_is_off(linux.setup),
        ),
        *compare_messages(linux.records["dmesg.txt"], kernel.board.uart.text),
    ]


def _load(linux: FirstLinux, kernel: Kernel, image: Kimage) -> Iterator[FactRow]:
    yield from _segments(linux.image, image)
    yield from compare_trees(_content(linux.image, "dtb"), _content(image, "dtb"))
    yield from _core_header(linux, _content(linux.image, "elfcorehdr"), _content(image, "elfcorehdr"))
    yield from _purgatory(linux, kernel, image)
    yield from _protection(linux, kernel, image)


def _content(image: Kimage, name: str) -> bytes:
    segment = image.segment(name)
    return bytes(segment.buf) if segment is not None else b""


def _text(area: PhysRange | None) -> str:
    return ABSENT if area is None else f"{area.start:#x}-{area.last:#x}"


def _reservation(linux: FirstLinux, kernel: Kernel) -> Iterator[FactRow]:
    for name in ("crashk_res", "crashk_low_res"):
        yield FactRow("crashkernel", name, _text(getattr(linux, name)), _text(getattr(kernel, name)))
    found = re.search(r"kexec_crash_size (\d+)", linux.board.uart.text)
    size = sysfs(kernel)["/sys/kernel/kexec_crash_size"].strip()
    yield FactRow("crashkernel", "kexec_crash_size", found[1] if found else ABSENT, size)


def _resources(linux: FirstLinux, kernel: Kernel) -> Iterator[FactRow]:
    """/proc/iomem: RAM and crash memory count; what lies in RAM besides is of the two images and allocators."""
    real, model = iomem(linux.records["iomem.txt"]), iomem(proc_iomem(kernel))
    for name, why in (
        ("System RAM", ""),
        ("Crash kernel", ""),
        ("Kernel code", IMAGE),
        ("Kernel data", IMAGE),
        ("reserved", ALLOCATED),
    ):
        ours = [_text(area) for _, area, what in real if what == name]
        theirs = [_text(area) for _, area, what in model if what == name]
        for left, right in zip_longest(ours, theirs, fillvalue=ABSENT):
            yield FactRow("/proc/iomem", name, left, right, why)


def _segments(real: Kimage, model: Kimage) -> Iterator[FactRow]:
    ours, theirs = ([segment.name for segment in one.segments] for one in (real, model))
    yield FactRow("segments", "order", " ".join(ours), " ".join(theirs))
    for name in dict.fromkeys([*ours, *theirs]):
        pair = real.segment(name), model.segment(name)
        for field in ("mem", "memsz", "bufsz"):
            yield FactRow("segments", f"{name} {field}", *_fields(*pair, field))
    yield FactRow("segments", "entry", f"{real.start:#x}", f"{model.start:#x}")


def _fields(one: object, other: object, field: str) -> tuple[str, str]:
    """A field of both, in hex."""
    left, right = (ABSENT if each is None else f"{getattr(each, field):#x}" for each in (one, other))
    return left, right


def _headers(blob: bytes) -> list[ProgramHeader]:
    try:
        return list(parse_core_header(blob).program_headers)
    except FormatError:
        return []


def _core_header(linux: FirstLinux, real: bytes, model: bytes) -> Iterator[FactRow]:
    kaslr = not kaslr_is_off(linux.setup)
    ours, theirs = _headers(real), _headers(model)
    yield FactRow("elfcorehdr", "e_phnum", str(len(ours)), str(len(theirs)))
    loads = 0
    for number, pair in enumerate(zip_longest(ours, theirs)):
        kind = pair[0] or pair[1]
        assert kind is not None
        is_load = kind.type == PT_LOAD
        loads += is_load
        kernel = is_load and loads == 1  # kexec-tools puts the kernel's own mapping first
        name = f"{number} {'PT_LOAD' if is_load else 'PT_NOTE'}{' kernel' if kernel else ''}"
        for field, why in (
            ("type", ""),
            ("paddr", "" if is_load else ALLOCATED),
            ("vaddr", (RANDOM if kaslr else "") if is_load else ""),
            ("memsz", IMAGE if kernel else ""),
        ):
            yield FactRow("elfcorehdr", f"{name} p_{field}", *_fields(*pair, field), why)


def _purgatory(linux: FirstLinux, kernel: Kernel, image: Kimage) -> Iterator[FactRow]:
    """The bytes of the same object, linked by two: told by the symbols that differ, and what lies outside of any."""
    ours, theirs = _content(linux.image, "purgatory"), _content(image, "purgatory")
    loaded = image.purgatory
    if loaded is None:
        return
    start = loaded.segment.mem
    symbols = {name: PhysRange.of(phys, size) for name, (phys, size) in loaded.symbol_table().items() if size}
    differ = Counter[str]()
    for at, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            differ[next((name for name, area in symbols.items() if start + at in area), "elsewhere")] += 1
    why = {
        "sha256_digest": _OVER_SEED,
        "purgatory_sha256_digest": _OVER_SEED,
        "purgatory_self_digest": _OVER_SEED,
        "arm64_sink": "the model's user says --serial, to have something to see",
    }
    for name, area in sorted(symbols.items()):
        if name in differ:
            part = slice(area.start - start, area.end - start)
            yield FactRow("purgatory", name, _short(ours[part]), _short(theirs[part]), why.get(name, ""))
    elsewhere = differ["elsewhere"] + abs(len(ours) - len(theirs))
    yield FactRow("purgatory", "bytes outside of those that differ", str(elsewhere), "0")


def _short(data: bytes) -> str:
    return data.hex() if len(data) <= 32 else f"{data[:32].hex()}..."


def _protection(linux: FirstLinux, kernel: Kernel, image: Kimage) -> Iterator[FactRow]:
    """Which segments a store through the linear map would fault on: by the real page tables, and by the model."""
    cpu = linux.board.boot_cpu
    for segment in linux.image.segments:
        pages = range(segment.area.start, segment.area.end, kernel.config.page_size)
        absent = [cpu.translate(linux.kernel_map.linear_virt(cpu, phys)) is None for phys in pages]
        real = "mapped" if not any(absent) else "not mapped" if all(absent) else "partly mapped"
        own = image.segment(segment.name)
        there = own is not None and any(area.covers(own.area) for area in kernel.protected)
        yield FactRow("protection", segment.name, real, "not mapped" if there else "mapped")


def _real_vmcoreinfo(linux: FirstLinux) -> str:
    """The note in memory, at the address that /sys/kernel/vmcoreinfo gives."""
    phys, size = linux.records["vmcoreinfo-address.txt"].split()
    data = linux.ram.read(int(phys, 16), int(size, 16))
    found = next((note.desc for note in iterate_notes(data) if note.name == "VMCOREINFO"), b"")
    return found.decode(errors="replace")
