#!/usr/bin/env python3
"""The series in many configurations of the kernel, both compilers: does the purgatory build and link, without a word?

    python tests/kbuild/configurations.py 7.3
    python tests/kbuild/configurations.py 6.12 --compiler clang --only kasan,lto

What is instrumented in a kernel must not be in a purgatory, which has no runtime for it: each configuration is
configured whole, and built as far as the purgatory and the files that the series edits. A configuration that the
compiler or the kernel has not is named with the reason; where there is none it is wrong. Exit status 1 for a warning,
an error, an undefined symbol or a relocation that the loader does not know.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

from kexecemu.fetch.cache import cache_folder
from kexecemu.kbuild.options import fragment, with_defaults
from kexecemu.kbuild.series import apply_series, find_series
from kexecemu.kbuild.source import find_source, unpack_source

# Name: what is asked for. A name without "=" is one that must have been taken. "|" is for what has another name by now.
_OPTIONS = [f"ARM64_KEXEC_PURGATORY_{name}" for name in ("CACHES", "SHA2", "REPORT")]
CONFIGURATIONS = {
    "usual": "",
    "no caches": f"{_OPTIONS[0]}=n",
    "no SHA-2": f"{_OPTIONS[1]}=n",
    "no report": f"{_OPTIONS[2]}=n",
    "core": " ".join(f"{one}=n" for one in _OPTIONS),
    "off": "ARM64_KEXEC_PURGATORY=n",
    "kexec_load alone": "KEXEC_FILE=n SUSPEND PM KEXEC",
    "ima and kho": "SECURITY TCG_TPM INTEGRITY IMA IMA_KEXEC KEXEC_HANDOVER CMA DMA_CMA",
    "kasan": "KASAN KASAN_GENERIC UBSAN KCOV DEBUG_FS",
    "gcov": "DEBUG_FS GCOV_KERNEL GCOV_PROFILE_ALL",
    "ftrace": "FTRACE FUNCTION_TRACER DYNAMIC_FTRACE STACKPROTECTOR STACKPROTECTOR_STRONG FORTIFY_SOURCE",
    "pac and bti": "ARM64_PTR_AUTH ARM64_PTR_AUTH_KERNEL ARM64_BTI ARM64_BTI_KERNEL",
    "scs": "SHADOW_CALL_STACK",
    "init": "INIT_STACK_ALL_PATTERN",
    "lto": "LTO_CLANG_THIN LTO_NONE=n CFI|CFI_CLANG",
    "16k": "ARM64_4K_PAGES=n ARM64_16K_PAGES",
    "64k": "ARM64_4K_PAGES=n ARM64_64K_PAGES",
    "big endian": "CPU_BIG_ENDIAN CPU_LITTLE_ENDIAN=n",
}
# What there is not, and why: of everything else it is an error.
_MISSING = {
    ("gcc", "lto"): "clang's",
    ("clang", "gcov"): "GCOV_PROFILE_ALL wants gcc's",
    ("7.3", "big endian"): "BROKEN since 6.18",
    ("6.12", "ima and kho"): "no KHO yet",
    ("gcc", "pac and bti"): "BTI for the kernel wants another gcc",
}
_FILES = ("machine_kexec.o", "machine_kexec_file.o", "kexec_image.o", "kexec_purgatory.o")
# make asks sparse about __typeof_unqual__ and, where it does not know that, does without: then C=1 is nothing.
_WARNINGS = ("W=1", "C=1", "CHECK=sparse -D__typeof_unqual__=__typeof__")
_OURS = re.compile(r"arch/arm64/(purgatory/|kernel/kexec_purgatory)|^failed$")
_REFUSED = "C=1 specified, but"
_RELOCATIONS = {273, 274, 279, 280, 282, 283}  # those of kexec_purgatory.c


class Tree:
    """A source with the series applied, and make in it."""

    def __init__(self, source: Path, compiler: str) -> None:
        self.source = source
        suffix = compiler.removeprefix("clang")
        cross = "" if os.uname().machine == "aarch64" else "aarch64-linux-gnu-"
        tools = f"LLVM={suffix or 1}" if compiler.startswith("clang") else f"CROSS_COMPILE={cross}"
        self.words = ["make", "-s", "-C", str(source), "ARCH=arm64", tools]

    def make(self, out: Path, *targets: str, **more: str) -> str:
        """What it says; a line "failed" at its end where it did."""
        command = [*self.words, f"O={out}", f"-j{os.cpu_count() or 1}", *targets]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**os.environ, **more}
        )
        said = (done.stdout + done.stderr).strip()
        return f"{said}\nfailed" if done.returncode else said

    def configure(self, out: Path, wanted: dict[str, str]) -> list[str]:
        """Which of the options asked for were not taken."""
        out.mkdir(parents=True, exist_ok=True)  # the tools of the one before are good for this one, too
        asked = out / "wanted"
        names = {one: value for name, value in wanted.items() for one in name.split("|")}
        asked.write_text("".join(f"CONFIG_{name}={value}\n" for name, value in names.items()))
        said = self.make(out, "allnoconfig", KCONFIG_ALLCONFIG=str(asked))
        file = out / ".config"
        file.write_text(with_defaults(file.read_text(), wanted))
        said += self.make(out, "olddefconfig")
        if said.endswith("failed"):
            raise SystemExit(f"{said}\nthe kernel cannot be configured")
        on = {line.removeprefix("CONFIG_") for line in file.read_text().splitlines()}
        return [
            name
            for name, value in wanted.items()
            if value == "y" and not any(f"{one}=y" in on for one in name.split("|"))
        ]


def relocations(obj: Path) -> set[int]:
    """The types in it."""
    with obj.open("rb") as file:
        sections = ELFFile(file).iter_sections("SHT_RELA")
        return {rela["r_info_type"] for section in sections for rela in section.iter_relocations()}


def build(
    tree: Tree, out: Path, wanted: dict[str, str], asked: dict[str, str], more: list[str]
) -> tuple[bool | None, str]:
    """Whether it is as it should be, None if it is not to be had; and a word on it."""
    missing = [one for one in tree.configure(out, wanted) if asked.get(one) == "y"]
    if missing:
        return None, f"not to be had here: {', '.join(missing)}"
    config = (out / ".config").read_text()
    there = "CONFIG_ARM64_KEXEC_PURGATORY=y" in config
    files = _FILES if "CONFIG_KEXEC_FILE=y" in config else _FILES[:1]
    targets = [f"arch/arm64/kernel/{file}" for file in files if there or file != "kexec_purgatory.o"]
    ours = ["arch/arm64/purgatory/", "arch/arm64/kernel/kexec_purgatory.o"] if there else []
    said = tree.make(out, *ours, *targets)
    if more and ours:  # the kernel's own files have warnings of their own
        looked = tree.make(out, *more, *ours)
        if _REFUSED in looked:
            raise SystemExit(f"{looked}\nmake C=1 looks at nothing: it needs sparse (apt-get install sparse)")
        said += "".join(f"\n{line}" for line in looked.splitlines() if _OURS.search(line))
    ours = [
        line
        for line in said.splitlines()
        if re.search(r"warning|error|undefined|failed", line, re.IGNORECASE)
    ]
    if ours:
        return False, ours[0]
    if not there:
        return True, "builds, without a purgatory"
    types = relocations(out / "arch/arm64/purgatory/purgatory.ro")
    if types - _RELOCATIONS:
        return False, f"relocations {sorted(types - _RELOCATIONS)} that the loader does not know"
    size = (out / "arch/arm64/purgatory/purgatory.ro").stat().st_size
    return True, f"builds and links, {size:,} bytes, {len(types)} types of relocations"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version")
    parser.add_argument("--compiler", default="gcc", help="gcc, clang, or clang-19 for that version of LLVM")
    parser.add_argument("--only", default="", help="names of configurations, with commas")
    parser.add_argument("--warnings", action="store_true", help="with W=1 and C=1, which needs sparse")
    given = parser.parse_args()
    wrong = left_out = 0
    words = set()
    with tempfile.TemporaryDirectory(prefix="kexecemu-configurations-") as name:
        folder = Path(name)
        unpack_source(find_source(given.version, cache_folder()), folder / "src")
        apply_series(find_series("purgatory"), given.version, folder / "src")
        tree = Tree(folder / "src", given.compiler)
        more = [*_WARNINGS] if given.warnings else []
        for title, text in CONFIGURATIONS.items():
            if given.only and title not in given.only.split(","):
                continue
            asked = dict((*one.split("="), "y")[:2] for one in text.split())
            good, word = build(tree, folder / "out", {**fragment(), **asked}, asked, more)
            kinds = (given.version, re.sub(r"-\d+$", "", given.compiler))
            if good is None:
                why = next((_MISSING[one, title] for one in kinds if (one, title) in _MISSING), "")
                good, left_out = bool(why), left_out + bool(why)
                word += f" ({why})" if why else ""
            if title in ("usual", "no caches", "no SHA-2", "no report", "core") and good:
                good = word not in words  # an option that makes no difference was not switched
                words.add(word)
            wrong += not good
            print(
                f"{given.version} {given.compiler:<9} {title:<17} {'' if good else 'WRONG: '}{word}",
                flush=True,
            )
    print(f"{wrong} wrong, {left_out} not to be had")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
