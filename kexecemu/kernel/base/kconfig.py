"""The build options of a kernel that change what the model does: what there are, with their defaults and values."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kexecemu.arguments import text
from kexecemu.errors import InputError
from kexecemu.suggest import did_you_mean

__all__ = ["CHOICES", "KNOWN_OPTIONS", "OptionRow", "check_option", "option_rows", "split_options"]

# Kconfig names that change what the model does, with their defaults (arm64 defconfig unless said) and what they mean.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "ARM64_4K_PAGES": ("y", "pages of 4 KiB; the three sizes exclude each other"),
    "ARM64_16K_PAGES": ("n", "pages of 16 KiB"),
    "ARM64_64K_PAGES": ("n", "pages of 64 KiB"),
    "ARM64_PSEUDO_NMI": (
        "n",
        "interrupts that reach CPUs with interrupts off: by a GICv3, and irqchip.gicv3_pseudo_nmi=1",
    ),
    "ARM64_VA_BITS": ("era", "bits of the kernel's addresses: 48 before 6.9, then 52, unless given"),
    "ARM64_VA_BITS_48": ("n", "the same, as Kconfig has it"),
    "ARM64_VA_BITS_52": ("n", "the same; a CPU here has 48 bits, and the kernel finds that out"),
    "CMA": ("y", "areas of memory that can be had in one piece; crashkernel=X,cma needs it"),
    "CMA_SIZE_MBYTES": ("0", "size of the default CMA area; Debian has 64, 0 keeps small machines simple"),
    "DEBUG_PAGEALLOC_ENABLE_DEFAULT": (
        "n",
        "debug_pagealloc= is on unless said: base pages in the linear map",
    ),
    "HUGETLB_PAGE": ("y", "huge pages, and so CMA areas that begin and end with one"),
    "IMA": (
        "n",
        "what is read and run is measured; an older kernel's list of that is taken out of the next one's tree",
    ),
    "IMA_KEXEC": ("n", "IMA's measurement list goes to the next kernel, as the first segment of its image"),
    "IMA_KEXEC_EXTRA_MEMORY_KB": (
        "0",
        "room behind that list for what is measured until the reboot, 40 at most; 0: half a page",
    ),
    "KEXEC_BUF_GARBAGE": (
        "n",
        "a mistake of 6.16 and 6.17, no option: what the stack has decides that segments lie at random places",
    ),
    "KEXEC_FILE": ("y", "kexec_file_load() is there"),
    "KEXEC_HANDOVER": (
        "n",
        "kho=on keeps memory over a kexec: scratch areas, which ordinary images are loaded to",
    ),
    "KEXEC_HANDOVER_ENABLE_DEFAULT": ("n", "kho=on unless said"),
    # What a purgatory of purgatory/purgatory.h can be told; not in any kernel.
    "KEXEC_PURGATORY_CHOSEN": (
        "n",
        "the verdict in the next /chosen; y for policies that go on, unless given",
    ),
    "KEXEC_PURGATORY_COPY": ("n", "a second copy of the image, to repair it from"),
    "KEXEC_PURGATORY_CRYPTO": ("y", "SHA-2 instructions where the CPU has them"),
    "KEXEC_PURGATORY_EARLY_CHECK": ("n", "asked by the panicking kernel before it stops the other CPUs"),
    "KEXEC_PURGATORY_GUARD": ("n", "compared with its digest by the first kernel before it is started"),
    "KEXEC_PURGATORY_MMU": ("y", "caches on for the check"),
    "KEXEC_PURGATORY_PAGE_DIGESTS": ("n", "a table of the digests of all pages, to say which one it is"),
    "KEXEC_PURGATORY_POLICY": ("stop", "what to do when the check fails"),
    "KFENCE": ("n", "the memory error detector; its pool has pages of its own"),
    "KFENCE_NUM_OBJECTS": (
        "255",
        "guarded allocations at a time: the pool has two pages for each, and two more",
    ),
    "KFENCE_SAMPLE_INTERVAL": (
        "100",
        "milliseconds between guarded allocations; 0: off at boot, a late pool needs base pages all over",
    ),
    "MEMORY_FAILURE": ("y", "pages of broken memory have a flag, and VMCOREINFO says which"),
    "NUMA": ("y", "nodes, and so memory for what is known of each"),
    "PANIC_ON_OOPS": ("n", "an oops panics"),
    "RODATA_FULL_DEFAULT_ENABLED": ("y", "rodata=full unless said: the linear map by base pages"),
    "ZONE_DEVICE": ("n", "a zone of memory that devices bring; Debian's kernels have it from 6.12 on"),
    "ZONE_DMA": ("y", "the zone of what the narrowest DMA master reaches"),
    "ZONE_DMA32": ("y", "the zone below 4 GiB; as ZONE_DMA unless given: few kernels have one alone"),
}
KNOWN_OPTIONS: Mapping[str, str] = {name: default for name, (default, _) in _OPTIONS.items()}


# Options that are one word of several; the position is what the purgatory is told (enum purgatory_policy).
CHOICES: Mapping[str, tuple[str, ...]] = {
    "ARM64_VA_BITS": ("era", "48", "52"),
    "KEXEC_PURGATORY_POLICY": ("stop", "reset", "off", "return", "boot", "repair"),
}


# Numbers that Kconfig has a range for.
_RANGES: Mapping[str, tuple[int, int]] = {
    "IMA_KEXEC_EXTRA_MEMORY_KB": (0, 40),
    "KFENCE_NUM_OBJECTS": (1, 65535),
}


class OptionRow(NamedTuple):
    """A line of the list of options: default, what else it can be, and what it is about."""

    name: str
    default: str
    values: str
    meaning: str


def option_rows() -> list[OptionRow]:
    """All options that the model knows, sorted by name."""
    rows = []
    for name, (default, meaning) in sorted(_OPTIONS.items()):
        kind = "a number" if default.isdigit() else "y or n"
        rows.append(OptionRow(name, default, ", ".join(CHOICES.get(name, (kind,))), meaning))
    return rows


def check_option(name: str, value: str) -> str:
    """An option's name without CONFIG_; InputError when the model knows none of that name, or it has no such value."""
    short = text(name, "config option").removeprefix("CONFIG_")
    text(value, f"config option {name}")
    if short not in KNOWN_OPTIONS:
        like = did_you_mean(short, KNOWN_OPTIONS)
        known = ", ".join(sorted(KNOWN_OPTIONS))
        raise InputError(f"config option {name} is not one that the model knows{like}; known are {known}")
    if short in CHOICES:
        if value not in CHOICES[short]:
            like = did_you_mean(value, CHOICES[short])
            raise InputError(
                f"config option {name} is one of {', '.join(CHOICES[short])}, not {value!r}{like}"
            )
    elif KNOWN_OPTIONS[short].isdigit():
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise InputError(f"config option {name} takes a number below 10^9, not {value!r}")
        least, most = _RANGES.get(short, (int(value), int(value)))
        if int(value) < least:
            raise InputError(f"config option {name} is {least} at least, not {value}")
        if int(value) > most:
            raise InputError(f"config option {name} is {most} at most, not {value}")
    elif value not in ("y", "n"):
        raise InputError(f"config option {name} is y or n, not {value!r}")
    return short


def split_options(given: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts, as --config takes them, for KernelConfig's options; InputError for one without its sign."""
    options: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name:
            raise InputError(f"--config {item!r}: write NAME=VALUE, for example ZONE_DMA=n")
        if options.setdefault(name, value) != value:
            raise InputError(f"--config {item!r}: {name} is {options[name]!r} already")
    return options
