"""kexecemu purgatory: info shows what an object is made of and who could load it; check tries it against faults."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from elftools.elf.enums import ENUM_RELOC_TYPE_AARCH64

from kexecemu.arguments import contents
from kexecemu.commands.help import HelpfulGroup, add_command
from kexecemu.commands.options import JsonOption, flag, option
from kexecemu.commands.outputs import print_json
from kexecemu.commands.purgatory_build import BUILD_EXAMPLES, build
from kexecemu.data import PURGATORIES, purgatory_path
from kexecemu.errors import InputError, KexecError
from kexecemu.formats.elfrel import RelocatableObject, object_or_embedded
from kexecemu.kernel.base.kconfig import split_options
from kexecemu.kernel.image.purgatory import link_at, parse_purgatory
from kexecemu.kernel.image.relocate import SUPPORTED_TYPES
from kexecemu.machine.virt import RAM_BASE
from kexecemu.visible import lines_text

__all__ = ["app", "describe_purgatory"]

app = typer.Typer(
    cls=HelpfulGroup,
    rich_markup_mode=None,
    help="Look at a purgatory, try it, and build one.",
    epilog="kexecemu purgatory info /usr/sbin/kexec\nWhat the one inside kexec-tools' program is made of.\n"
    "kexecemu purgatory check default mine.ro\nWhat yours finds, beside the one that ships.",
)

_SHF_ALLOC, _SHF_EXECINSTR, _SHT_NOBITS = 2, 4, 8
_RELOCATIONS = {0: "R_ARM_NONE", **{kind: name for name, kind in ENUM_RELOC_TYPE_AARCH64.items()}}
_TRIAL_PHYS = RAM_BASE  # any page will do to see whether it links

# What each interface wants of a purgatory: symbol and size in bytes, and whether a loader cannot do without it.
_INTERFACES = {
    "kernel": (
        ("purgatory_sha_regions", 256, True),
        ("purgatory_sha256_digest", 32, True),
        ("purgatory_kernel_entry", 8, False),
        ("purgatory_uart_base", 8, False),
        ("purgatory_dtb", 8, False),
        ("purgatory_policy", 8, False),
        ("purgatory_psci_conduit", 8, False),
        ("purgatory_no_mmu", 8, False),
        ("purgatory_no_crypto", 8, False),
        ("purgatory_region_digests", 512, False),
        ("purgatory_page_digests", 8, False),
        ("purgatory_copy", 8, False),
        ("purgatory_chosen", 8, False),
        ("purgatory_self_digest", 32, False),
        ("purgatory_verdict", 392, False),
    ),
    "kexec-tools": (
        ("sha256_regions", 256, True),
        ("sha256_digest", 32, True),
        ("arm64_kernel_entry", 8, True),
        ("arm64_dtb_addr", 8, True),
        ("arm64_sink", 8, True),
        ("skip_checks", 4, False),
    ),
}


def describe_purgatory(obj: RelocatableObject) -> dict[str, Any]:
    """Everything that `purgatory info` prints: sizes in bytes, symbols by interface, relocation types by count."""
    loaded = {one.index: one for one in obj.sections if one.flags & _SHF_ALLOC}
    counts: Counter[int] = Counter()
    for index, relas in obj.relocations.items():
        if obj.sections[index].info in loaded:
            counts.update(rela.type for rela in relas)
    return {
        "sections": [
            {key: getattr(one, key) for key in ("name", "size", "align")}
            | {"executable": bool(one.flags & _SHF_EXECINSTR), "nobits": one.type == _SHT_NOBITS}
            for one in loaded.values()
        ],
        "interface": _interface(obj),
        "symbols": {
            kind: {name: _found(obj, name, size) for name, size, _ in wanted}
            for kind, wanted in _INTERFACES.items()
        },
        "relocations": {str(kind): counts[kind] for kind in sorted(counts)},
        "relocation_names": {str(kind): _RELOCATIONS.get(kind, f"type {kind}") for kind in sorted(counts)},
        "unsupported_relocations": sorted(kind for kind in counts if kind not in SUPPORTED_TYPES),
        **_trial(obj),
    }


def _found(obj: RelocatableObject, name: str, size: int) -> str:
    symbol = obj.global_symbol(name)
    if symbol is None or not symbol.shndx:
        return "missing"
    if symbol.shndx < len(obj.sections) and obj.sections[symbol.shndx].type == _SHT_NOBITS:
        return "in bss: cannot be set"
    return "ok" if symbol.size == size else f"{symbol.size} bytes instead of {size}"


def _interface(obj: RelocatableObject) -> str | None:
    """Whose loader could set all that it must."""
    for kind, wanted in _INTERFACES.items():
        if all(_found(obj, name, size) == "ok" for name, size, needed in wanted if needed):
            return kind
    return None


def _trial(obj: RelocatableObject) -> dict[str, Any]:
    """Link it at some page, as a loader would."""
    try:
        linked = link_at(obj, _TRIAL_PHYS)
    except KexecError as error:
        return {"bufsz": None, "memsz": None, "entry_offset": None, "links": str(error)}
    sizes = {"bufsz": len(linked.buf), "memsz": linked.segment.memsz}
    return {**sizes, "entry_offset": linked.entry - _TRIAL_PHYS, "links": True}


def _read(file: Path) -> RelocatableObject:
    """The object in a file, or inside a `kexec` binary; InputError or KexecError when there is none."""
    return parse_purgatory(object_or_embedded(contents(file, "purgatory")), str(file))


def _path(name: str | Path) -> Path:
    return purgatory_path(str(name)) if str(name) in PURGATORIES else Path(name)


_OBJECT = (
    "A purgatory object (ET_REL, aarch64), or kexec-tools' kexec with one inside; "
    "'default' is the one that ships, 'core' the same without its options."
)


def info(file: Annotated[Path, typer.Argument(help=_OBJECT)], json: JsonOption = False) -> None:
    """Print sections, symbols, relocations and size; exit status 1 if no loader could use the object."""
    found = describe_purgatory(_read(_path(file)))
    usable = found["links"] is True and found["interface"] is not None
    if json:
        print_json(found)
    else:
        sys.stdout.write(_text(file, found))
    raise typer.Exit(0 if usable else 1)


_REQUIRE = (
    "caught, boots, no-missed, no-false-alarm, no-hung, no-trapped, no-trap-reported or no-misboot: exit with 1 "
    "and name the rows where it is not so; with commas or repeated."
)


def check(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Purgatory objects or kexec binaries, or 'default' or 'core' for those that ship."
        ),
    ],
    config: Annotated[list[str] | None, flag("config")] = None,
    require: Annotated[list[str] | None, option("--require", _REQUIRE, "WORD")] = None,
    json: JsonOption = False,
) -> None:
    """Try purgatories against a fixed set of faults and print what they made of each, side by side."""
    from kexecemu.commands.purgatory_check import parse_requirements, print_checks, progress_of
    from kexecemu.scenario.purgatory_bench import check_purgatory

    options = split_options(config or ())
    required = parse_requirements(require or ())
    paths = [_path(name) for name in files]
    objects = [_read(path) for path in paths]
    interfaces = [_usable(path, obj) for path, obj in zip(paths, objects, strict=True)]
    with progress_of(len(files)) as progress:
        checks = [
            check_purgatory(
                name if name in PURGATORIES else path.name, path, obj, interface, options, progress
            )
            for name, path, obj, interface in zip(files, paths, objects, interfaces, strict=True)
        ]
    raise typer.Exit(0 if print_checks(checks, json, required) else 1)


def _usable(path: Path, obj: RelocatableObject) -> str:
    """The object's interface; InputError for one that nobody could load."""
    found = describe_purgatory(obj)
    if found["links"] is not True:
        raise InputError(f"purgatory {path}: does not link: {found['links']}")
    if found["interface"] is None:
        raise InputError(f"purgatory {path}: has the symbols of no interface that a loader knows")
    return str(found["interface"])


def _text(file: Path, found: dict[str, Any]) -> str:
    lines = [f"{file}", ""]
    lines += [f"{'section':<24}{'size':>8}{'align':>7}"]
    for one in found["sections"]:
        kind = " code" if one["executable"] else " bss" if one["nobits"] else ""
        lines.append(f"{one['name']:<24}{one['size']:>8}{one['align']:>7}{kind}")
    lines += ["", f"interface     {found['interface'] or 'none that a loader knows'}"]
    for symbols in found["symbols"].values():
        if any(state != "missing" for state in symbols.values()):
            lines += [f"  {name:<28}{state}" for name, state in symbols.items()]
    names, unsupported = found["relocation_names"], found["unsupported_relocations"]
    lines += ["", f"{'relocation':<32}{'type':>6}{'count':>7}"] if names else ["", "relocations   none"]
    for kind, count in found["relocations"].items():
        refused = " unsupported" if int(kind) in unsupported else ""
        lines.append(f"{names[kind]:<32}{kind:>6}{count:>7}{refused}")
    lines.append("")
    if found["links"] is True:
        lines.append(f"loaded        {found['bufsz']} bytes, {found['memsz']} in memory")
        lines.append(f"entry         at offset {found['entry_offset']:#x}")
    else:
        lines.append(f"does not link {found['links']}")
    return lines_text(lines)


_INFO_EXAMPLES = """\
kexecemu purgatory info purgatory.ro
What it is made of, and who could load it.
kexecemu purgatory info /usr/sbin/kexec
The one inside kexec-tools' program.
"""
_CHECK_EXAMPLES = """\
kexecemu purgatory check default mine.ro
Your own beside the one that ships.
kexecemu purgatory check mine.ro --config KEXEC_PURGATORY_MMU=n --json
Without caches; one JSON object.
"""
add_command(app, "info", info, "Commands", _INFO_EXAMPLES)
add_command(app, "check", check, "Commands", _CHECK_EXAMPLES)
add_command(app, "build", build, "Commands", BUILD_EXAMPLES)
