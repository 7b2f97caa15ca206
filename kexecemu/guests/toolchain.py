"""Compilers of guest code: what a target is, flags with their reasons, and clang or gcc to do it.

The clang is the one in the pinned ziglang wheel: the same bytes everywhere. gcc is for whoever has that.
"""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kexecemu.children import run_child
from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["MMU_OFF_CFLAGS", "MMU_OFF_CLANG", "MMU_OFF_GCC", "ZIGLANG"]
__all__ += ["BuildError", "Derived", "Link", "Target", "Toolchain", "build_target"]

ZIGLANG = "0.17.1"


@shown()
@dataclass(frozen=True)
class Link:
    """One run of the linker over a target's objects.

    `output` is relative to the top of the tree. A by-product (`committed=False`) is made and thus checked in
    every build, but lands only in --out. `inputs` are outputs of earlier links to use instead of the objects.
    """

    output: str
    flags: Sequence[str]
    committed: bool = True
    inputs: Sequence[str] = ()


@dataclass(frozen=True)
class Derived:
    """A file made from a linked one by Python: make(linked, output), both absolute."""

    source: str
    output: str
    make: Callable[[Path, Path], None]


@shown()
@dataclass(frozen=True)
class Target:
    """One guest: sources (C and preprocessed assembly, relative to the top), how to compile, how to link.

    `asmflags` go to the assembler sources, `cflags` to C; `clang` and `gcc` are what only one of them knows.
    """

    name: str
    sources: Sequence[str]
    cflags: Sequence[str]
    asmflags: Sequence[str]
    clang: Sequence[str]
    gcc: Sequence[str]
    links: Sequence[Link]
    derived: Sequence[Derived] = ()
    of_source: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # flags for one source more than the others

    def committed(self) -> list[str]:
        """Paths of what this target keeps in the tree."""
        return [link.output for link in self.links if link.committed] + [d.output for d in self.derived]


# Code that runs with the MMU off sees all of memory as Device-nGnRnE: an unaligned access faults whatever
# SCTLR_ELx.A says, DC ZVA faults, exclusives are unpredictable; and nobody has switched the FP unit on.
MMU_OFF_CFLAGS = (
    "-std=gnu11",
    "-O2",  # the speed of SHA-256 is the time a crashed machine stands still; -O0 is six times slower
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # as Linux: what an option would do is an empty function without it
    "-Werror",
    "-ffreestanding",  # no C library, and main() is nothing special
    "-fno-builtin",  # no call turned into one of a library function that we do not have
    "-mgeneral-regs-only",  # FP/SIMD registers may trap: CPACR_EL1 is whatever the dead kernel left
    "-mstrict-align",  # never merge byte accesses into a wider unaligned one
    "-fno-stack-protector",  # its guard lives in the dead kernel's task or in an undefined symbol
    "-fno-unwind-tables",  # .eh_frame is an allocated section full of PREL32 relocations, for nobody
    "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing",  # records in foreign memory are read through casts
    "-fno-common",  # a loader refuses SHN_COMMON symbols
    "-fno-jump-tables",  # tables of addresses need relocations in .rodata
)

MMU_OFF_CLANG = (
    # zig turns a CPU model into an explicit feature list that follows -mgeneral-regs-only, which would switch
    # FP and SIMD on again: take both out of the model.
    "-mcpu=generic-neon-fp_armv8",
    "-fno-vectorize",  # clang's loop vectoriser; moot without SIMD, kept for whoever changes the line above
    "-fno-slp-vectorize",
    "-fno-sanitize=all",  # zig's default of trapping UBSan leaves brk instructions and handlers
    "-mno-outline-atomics",  # helpers that test for LSE are undefined symbols
    "-mbranch-protection=none",  # no PAC keys are set up here; BTI is off with the MMU
    "-fno-addrsig",  # keeps .llvm_addrsig out of a relocatable output
)

MMU_OFF_GCC = (
    "-march=armv8-a",
    "-fno-tree-vectorize",  # GCC 12 at -O2 vectorised SHA-256 once and made kexec-tools' purgatory hang
    "-fno-tree-loop-distribute-patterns",  # no loop turned back into a call of memset or memcpy
    "-mno-outline-atomics",
    "-mbranch-protection=none",
    "-fno-pic",  # distributions make PIE the default, and that wants a GOT
    "-fno-pie",
)


class BuildError(InputError):
    """A compiler or linker is missing, of the wrong version, or refused its input."""


def _gcc_prefix() -> str:
    """What stands before gcc and ld: the cross compiler's, or nothing where all code is for arm64."""
    for prefix, there in (("aarch64-linux-gnu-", True), ("", platform.machine() == "aarch64")):
        if there and all(shutil.which(f"{prefix}{tool}") for tool in ("gcc", "ld")):
            return prefix
    raise BuildError("aarch64-linux-gnu-gcc is not installed: apt-get install gcc-aarch64-linux-gnu")


class Toolchain:
    """How to compile one source and how to link, with one of the two compilers: "zig" (its clang) or "gcc".

    Sources are named relative to `top`; `cache` is a folder for the compiler alone. BuildError where it is missing.
    """

    def __init__(self, compiler: str, top: Path, cache: Path) -> None:
        self.compiler = compiler
        self.top = top
        self._prefixes = {str(top): "."}
        # A private cache: nothing that an earlier build left can reach the output.
        self.environment = {
            **os.environ,
            "ZIG_GLOBAL_CACHE_DIR": str(cache),
            "ZIG_LOCAL_CACHE_DIR": str(cache),
            "SOURCE_DATE_EPOCH": "0",
            "LC_ALL": "C",
        }
        if compiler == "zig":
            self._cc = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-freestanding-none"]
            self._ld = [sys.executable, "-m", "ziglang", "ld.lld", "-m", "aarch64elf"]
            # Its headers are named in debug information, too, and it may be installed anywhere.
            spec = importlib.util.find_spec("ziglang")
            if spec is None or spec.origin is None:
                raise BuildError(f"clang is not here: pip install ziglang=={ZIGLANG}")
            for package in (Path(spec.origin).parent, Path(spec.origin).resolve().parent):
                self._prefixes[str(package)] = "ziglang"
                if package.is_relative_to(top):  # as zig calls it then, in a .venv of the checkout, say
                    self._prefixes[str(package.relative_to(top))] = "ziglang"
            if (found := self._run([sys.executable, "-m", "ziglang", "version"]).strip()) != ZIGLANG:
                raise BuildError(
                    f"clang of ziglang {ZIGLANG} is needed for the same bytes, and here is {found}: "
                    f"pip install ziglang=={ZIGLANG}"
                )
        else:
            prefix = _gcc_prefix()
            self._cc = [f"{prefix}gcc"]
            # Assemblers and linkers of the GNU kind warn about RWX segments in what is no user program.
            self._ld = [f"{prefix}ld", "-m", "aarch64linux", "--no-warn-rwx-segments"]

    def _run(self, command: list[str]) -> str:
        done = run_child(command, cwd=self.top, env=self.environment, text=True)
        if done.returncode:
            raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def compile(self, target: Target, source: str, output: Path) -> None:
        """Compile or assemble `source`, relative to the top, into the object `output`."""
        output.parent.mkdir(parents=True, exist_ok=True)
        flags = target.asmflags if source.endswith(".S") else target.cflags
        flags = (*flags, *target.of_source.get(source, ()))
        if self.compiler == "gcc" or not source.endswith(".S"):
            flags = (*flags, *(target.clang if self.compiler == "zig" else target.gcc))
        # Debug information and __FILE__ name the source as seen from the top, wherever that is.
        where = [f"-ffile-prefix-map={path}={name}" for path, name in self._prefixes.items()]
        self._run([*self._cc, *flags, *where, "-c", source, "-o", str(output)])

    def link(self, link: Link, inputs: Sequence[Path], output: Path) -> None:
        """Link `inputs` into `output`. Linker scripts in the flags are named relative to the top."""
        output.parent.mkdir(parents=True, exist_ok=True)
        self._run([*self._ld, *link.flags, "-o", str(output), *map(str, inputs)])


def build_target(target: Target, tools: Toolchain, stage: Path) -> None:
    """Make everything `target` names below `stage`, which mirrors the tree; BuildError with the compiler's words."""
    objects = []
    for source in target.sources:
        objects.append(stage / "objects" / target.name / f"{source}.o")
        tools.compile(target, source, objects[-1])
    for link in target.links:
        tools.link(link, [stage / name for name in link.inputs] or objects, stage / link.output)
    for derived in target.derived:
        (stage / derived.output).parent.mkdir(parents=True, exist_ok=True)
        derived.make(stage / derived.source, stage / derived.output)
