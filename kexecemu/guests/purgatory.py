"""The purgatory and its options: what each is made of and needs, and how an object with a choice of them is built."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kexecemu.data import purgatory_sources
from kexecemu.errors import InputError
from kexecemu.folders import temporary_folder
from kexecemu.guests.toolchain import (
    MMU_OFF_CFLAGS,
    MMU_OFF_CLANG,
    MMU_OFF_GCC,
    Link,
    Target,
    Toolchain,
    build_target,
)
from kexecemu.shown import shown
from kexecemu.suggest import did_you_mean

__all__ = ["CORE", "OPTIONS", "PurgatoryOption", "build_purgatory", "chosen_options", "code_lines"]
__all__ += ["files_of", "purgatory_target", "sources_of"]

CORE = ("entry.S", "purgatory.c", "sha256.c")
"""What every purgatory is compiled from. entry.S first: a loader that looks for nothing but the first byte of .text
still enters correctly."""

_CORE_HEADERS = ("el.h", "options.h", "purgatory.h", "types.h", "sha256.h", "sha256-k.h", "purgatory.lds")
_HEADERS = {
    "mmu.c": ("sysreg.h",),
    "sha2.c": ("sysreg.h",),
    "report.c": ("report.h",),
    "record.c": ("record.h", "sysreg.h"),
    "locate.c": ("locate.h",),
}
_CALLERS = ("policy", "early")  # PURGATORY_CALLER in options.h


@shown()
@dataclass(frozen=True)
class PurgatoryOption:
    """One option: what it is for, the sources it is compiled from, and the options it cannot be without."""

    summary: str
    sources: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def is_answer(self) -> bool:
        """It has something to say of an exception, or somebody to answer: PURGATORY_TRAP in options.h."""
        return bool({"report.c", "record.c", "policy.c", "early.c"} & set(self.sources))


OPTIONS: dict[str, PurgatoryOption] = {
    "caches": PurgatoryOption("MMU and caches on while it hashes", ("mmu.c", "mmu-enable.S")),
    "sha2": PurgatoryOption("the CPU's own instructions for SHA-256", ("sha2.c", "sha256-ce.S")),
    "report": PurgatoryOption("says on a PL011 what it finds", ("report.c", "console.c")),
    "record": PurgatoryOption("and in a record in memory", ("record.c",)),
    "locate": PurgatoryOption("which region it is, which pages", ("locate.c",), ("record",)),
    "chosen": PurgatoryOption("tells it the kernel that it starts", ("chosen.c",), ("record",)),
    "policy": PurgatoryOption("reset, off, return or boot anyway", ("policy.c",)),
    "repair": PurgatoryOption("from a second copy", ("repair.c",), ("locate", "policy")),
    "early": PurgatoryOption("purgatory_check, for a kernel that is alive", ("early.c",)),
}
"""In the order in which they are named and linked; each is a macro PURGATORY_NAME in purgatory/options.h."""

_ANSWERS = ("trap.c", "trap.S")  # trap.S is a part of entry.S


def chosen_options(wanted: Iterable[str] | None = None, without: Iterable[str] = ()) -> tuple[str, ...]:
    """The options of a purgatory, those that they need among them, in the order of OPTIONS.

    None stands for all of them. `without` takes out, and what needs that goes with it; InputError for a name that is
    none, and for one that is wanted and cannot be had without another.
    """
    out = _names(without)
    for name, option in OPTIONS.items():
        if any(one in out for one in option.needs):
            out.add(name)
    if wanted is None:
        return tuple(name for name in OPTIONS if name not in out)
    chosen = _names(wanted)
    for name in reversed(OPTIONS):
        if name in chosen:
            chosen.update(OPTIONS[name].needs)
    if both := [name for name in OPTIONS if name in chosen & out]:
        raise InputError(
            f"option {both[-1]} of the purgatory is wanted, and cannot be had without what is left out"
        )
    return tuple(name for name in OPTIONS if name in chosen)


def _names(given: Iterable[str]) -> set[str]:
    names = {name.strip() for name in given}
    for name in sorted(names):
        if name not in OPTIONS:
            like = did_you_mean(name, OPTIONS)
            raise InputError(f"{name!r} is no option of the purgatory; they are {', '.join(OPTIONS)}{like}")
    return names


def sources_of(options: Sequence[str]) -> tuple[str, ...]:
    """What is compiled for a purgatory with these options, in the order of the link."""
    answers = ("trap.c",) if any(OPTIONS[name].is_answer for name in options) else ()
    return (*CORE, *answers, *(source for name in options for source in OPTIONS[name].sources))


def files_of(options: Sequence[str]) -> tuple[str, ...]:
    """sources_of(), and what they include: the headers that are the core's or belong to what is compiled."""
    sources = sources_of(options)
    more = [header for source in sources for header in _HEADERS.get(source, ())]
    more += ["trap.S"] if "trap.c" in sources else []
    more += ["caller.h"] if set(_CALLERS) & set(options) else []
    return (*_CORE_HEADERS, *sources, *dict.fromkeys(more))


def code_lines(text: str) -> int:
    """Lines of C or assembly that are neither blank nor comment."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"(^|\s)//.*", "", text)
    return sum(bool(line.strip()) for line in text.splitlines())


def purgatory_target(options: Sequence[str], output: str, name: str = "purgatory") -> Target:
    """How to build a purgatory with these options into `output`, relative to the folder above purgatory/."""
    macros = tuple(f"-DPURGATORY_{name.upper()}" for name in options)
    return Target(
        name=name,
        sources=tuple(f"purgatory/{source}" for source in sources_of(options)),
        cflags=(
            *MMU_OFF_CFLAGS,
            "-mcmodel=tiny",  # ADR and LDR (literal) reach all of it: no ADRP (A53 erratum 843419), no GOT
            "-g0",  # no debug sections: they bring ABS32 and ABS64 relocations
            "-fno-optimize-sibling-calls",  # a jump to another function is a fourth type of relocation, for nothing
            "-Os",  # less to read, and less to be stamped on; behind the -O2 above
            *macros,
        ),
        of_source={
            "purgatory/sha256.c": ("-O2",)
        },  # 64 rounds a block: here a crashed machine spends its time
        asmflags=("-g0", "-Ipurgatory", *macros),
        clang=MMU_OFF_CLANG,
        gcc=MMU_OFF_GCC,
        links=(
            Link(
                output,
                (
                    "-r",  # ET_REL: the kernel's loader places it and applies the relocations
                    "-T",
                    "purgatory/purgatory.lds",  # read-only parts first, the self digest behind them
                    "-e",
                    "purgatory_start",
                    "-z",
                    "nodefaultlib",
                    "--strip-debug",
                ),
            ),
            # The complete link that -r does not do: an undefined symbol would be found only when it is loaded.
            Link(
                str(Path(output).with_suffix(".chk")),
                ("-e", "purgatory_start", "-z", "nodefaultlib", "--no-undefined"),
                committed=False,
                inputs=(output,),
            ),
        ),
    )


def build_purgatory(options: Sequence[str], compiler: str = "zig") -> bytes:
    """The object with these options, from the sources that ship, by the compiler named; BuildError as Toolchain says.

    By "zig" all options give the bytes of purgatory.ro, none those of core.ro.
    """
    with temporary_folder("kexecemu-build-") as temporary:
        stage = temporary / "stage"
        tools = Toolchain(compiler, purgatory_sources().parent, temporary / "cache")
        build_target(purgatory_target(options, "built.ro"), tools, stage)
        return (stage / "built.ro").read_bytes()
