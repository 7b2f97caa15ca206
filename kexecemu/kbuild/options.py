"""The configuration of a small Linux that can load a crash kernel by kexec_file_load, and be one.

It is a fragment over allnoconfig: what is not asked for here, and not selected by what is, is left out. A build takes
some minutes of a processor instead of hours, and boots in a second.
"""

import re
from collections.abc import Iterable, Mapping

from kexecemu.errors import InputError

__all__ = ["PAGES", "fragment", "fragment_text", "not_taken", "parse_lines", "with_defaults"]

PAGES: Mapping[str, str] = {"4k": "ARM64_4K_PAGES", "16k": "ARM64_16K_PAGES", "64k": "ARM64_64K_PAGES"}
"""--pages, and the option that makes pages of that size."""

# A line of a .config: it sets an option, or says that it is off.
_SET = re.compile(r"^CONFIG_(\w+)=(.*)$")
_VALUE = re.compile(r'[ynm]|-?\d+|0[xX][0-9a-fA-F]+|"[^"\\]*"', re.ASCII)
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")

# By what it is for; all are set to y.
_WANTED = {
    "the crash": "KEXEC_FILE CRASH_DUMP PROC_VMCORE PROC_KCORE MAGIC_SYSRQ RELOCATABLE RANDOMIZE_BASE",
    "the machine": "SMP ARM_PSCI_FW ARM_GIC ARM_GIC_V3 OF ZONE_DMA ZONE_DMA32 PRINTK",
    "its console": "TTY SERIAL_AMBA_PL011 SERIAL_AMBA_PL011_CONSOLE SERIAL_EARLYCON",
    "a disk for the dump": "BLOCK BLK_DEV VIRTIO_MENU VIRTIO_MMIO VIRTIO_BLK",
    "an init": "BLK_DEV_INITRD RD_GZIP BINFMT_ELF BINFMT_SCRIPT MULTIUSER FUTEX EPOLL POSIX_TIMERS EVENTFD SHMEM",
    "its files": "PROC_FS PROC_SYSCTL SYSFS DEVTMPFS TMPFS DEVMEM SYSCTL FILE_LOCKING ADVISE_SYSCALLS MEMBARRIER",
    "words": "KALLSYMS PRINTK_TIME BUG DEBUG_KERNEL DYNAMIC_DEBUG",
    "a series of ours": "ARM64_KEXEC_PURGATORY ARM64_KEXEC_PURGATORY_REPORT CRYPTO CRYPTO_SHA256",
    "the CPU": (
        "ARM64_VA_BITS_48 ARM64_HW_AFDBM ARM64_PAN ARM64_PTR_AUTH ARM64_BTI ARM64_E0PD ARM64_SVE ARM64_SME "
        "ARM64_GCS "
        "UNMAP_KERNEL_AT_EL0"
    ),
}
# What some releases have no choice of: always there, or not to be had.
_IF_THERE: tuple[str, ...] = ("ARM64_PAN", "ARM64_SME", "ARM64_GCS", "SYSCTL", "PROC_SYSCTL")
_IF_THERE += ("ARM64_KEXEC_PURGATORY", "ARM64_KEXEC_PURGATORY_REPORT")
_SERIES = "ARM64_KEXEC_PURGATORY"  # how the names of options begin that a series of ours brings


def parse_lines(lines: Iterable[str]) -> dict[str, str]:
    """Lines as in a .config, by option without CONFIG_: X=y, CONFIG_X=y, X=n; InputError for another one."""
    found = {}
    for line in lines:
        off = _UNSET.match(line.strip())
        match = _SET.match("CONFIG_" + line.strip().removeprefix("CONFIG_"))
        if off is not None:
            found[off[1]] = "n"
        elif match is not None and _VALUE.fullmatch(match[2]):
            found[match[1]] = match[2]
        else:
            raise InputError(f"--config {line!r} is no line of a kernel's configuration: as KASAN=y")
        if not any(letter.isupper() for letter in line.strip().removeprefix("CONFIG_")):
            raise InputError(f"--config {line!r}: options are written in capitals, as KASAN=y")
    return found


def fragment(pages: str = "4k", more: Iterable[str] = ()) -> dict[str, str]:
    """What is asked for, by option without CONFIG_; more are lines as in a .config, and win.

    InputError for pages of a size that arm64 has not, and for what is no such line.
    """
    if pages not in PAGES:
        raise InputError(f"--pages {pages!r} is not one of {', '.join(PAGES)}")
    wanted = {name: "y" for names in _WANTED.values() for name in names.split()}
    wanted |= {
        "EXPERT": "y",
        PAGES[pages]: "y",
        "LOCALVERSION": '"-kexecemu"',
        "HZ_PERIODIC": "n",
        "NO_HZ_IDLE": "y",
    }
    return wanted | parse_lines(more)


def fragment_text(wanted: Mapping[str, str]) -> str:
    """As a file for KCONFIG_ALLCONFIG."""
    return "".join(
        f"# CONFIG_{name} is not set\n" if value == "n" else f"CONFIG_{name}={value}\n"
        for name, value in wanted.items()
    )


def read_config(text: str) -> dict[str, str]:
    """A .config, by option without CONFIG_; options that are off are not in it."""
    return {match[1]: match[2] for line in text.splitlines() if (match := _SET.match(line))}


def with_defaults(config: str, wanted: Mapping[str, str]) -> str:
    """A .config of allnoconfig without what it says of a series' own options, which are to be as the series has them.

    Those that are asked for stay.
    """
    lines = config.splitlines(keepends=True)
    off = [_UNSET.match(line.strip()) for line in lines]
    return "".join(
        line
        for line, match in zip(lines, off, strict=True)
        if match is None or not match[1].startswith(_SERIES) or match[1] in wanted
    )


def not_taken(wanted: Mapping[str, str], config: str) -> list[str]:
    """What was asked for and is otherwise in a .config, as "X=y (is n)"; those that were asked for as n may be gone."""
    held = read_config(config)
    wrong = []
    for name, value in wanted.items():
        now = held.get(name, "n")
        if now != value and not (name in _IF_THERE and now == "n"):
            wrong.append(f"{name}={value} (is {now})")
    return wrong
