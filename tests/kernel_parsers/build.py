"""The kernel's ASN.1 decoder, its grammars and its parsers, compiled for this machine from Debian's linux-source."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kexecemu.errors import InputError
from kexecemu.fetch.targets import FetchTarget
from kexecemu.formats.asn1 import Op
from kexecemu.kbuild.source import find_source

HERE = Path(__file__).parent
GRAMMARS = ("pkcs7", "x509", "x509_akid", "mscode", "rsapubkey", "ecdsasignature")

_KEYS = "crypto/asymmetric_keys"
_PARSERS = ("pkcs7_parser.c", "x509_cert_parser.c", "mscode_parser.c")
_TAKEN = (
    *(f"{_KEYS}/{name}" for name in (*_PARSERS, "pkcs7_parser.h", "x509_parser.h", "verify_pefile.h")),
    *(f"{_KEYS}/{name}.asn1" for name in GRAMMARS[:4]),
    *(f"crypto/{name}.asn1" for name in GRAMMARS[4:]),
    "lib/asn1_decoder.c",
    "lib/oid_registry.c",
    "lib/build_OID_registry",
    "scripts/asn1_compiler.c",
    *(f"include/linux/{name}.h" for name in ("asn1", "asn1_ber_bytecode", "asn1_decoder", "oid_registry")),
    "include/linux/verification.h",
    "include/crypto/public_key.h",
    "include/crypto/pkcs7.h",
)
# Headers that are shim.h instead.
_SHIMMED = """
linux/kernel.h linux/module.h linux/export.h linux/slab.h linux/err.h linux/types.h linux/keyctl.h
linux/hash_info.h linux/cleanup.h linux/time.h linux/bug.h keys/asymmetric-type.h crypto/hash_info.h crypto/sha2.h
"""


@dataclass(frozen=True)
class KernelParsers:
    """The two programs, and the decoder's tables as the kernel's compiler wrote them, by grammar."""

    parsers: Path
    counting: Path
    tables: dict[str, str]
    actions: dict[str, int]
    registry: str


_6_1 = "usr/src/linux-source-6.1.tar.xz"
# `kexecemu kernel fetch` does not know 6.1, which nothing of kexecemu builds; its parsers are compared all the same.
SOURCE_6_1 = FetchTarget(
    "Linux 6.1 as bookworm builds it",
    lambda apt, folder: apt.download(["linux-source-6.1"], folder),
    [_6_1],
    _6_1,
    release="bookworm",
)


def tarball_of(release: str, cache: Path) -> Path:
    """The fetched source of a release. InputError, with the command that brings it, where there is none."""
    if release != "6.1":
        return find_source(release, cache)
    found = SOURCE_6_1.find(cache / "linux-source-6.1")
    if found is None:
        raise InputError(
            "linux-source-6.1 is not fetched yet: python -m tests.kernel_parsers --fetch --linux 6.1"
        )
    return found


def missing_tool() -> str | None:
    """What this needs and this machine lacks."""
    return next((tool for tool in ("gcc", "perl", "tar") if shutil.which(tool) is None), None)


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"


def take_sources(tarball: Path, folder: Path) -> None:
    """Unpack those few files of the kernel that are needed."""
    folder.mkdir(parents=True)
    wanted = [f"*/{name}" for name in _TAKEN]
    _run("tar", "-xf", tarball, "-C", folder, "--strip-components=1", "--wildcards", *wanted)


def build(source: Path, folder: Path) -> KernelParsers:
    """Build both programs from the kernel's files in source, into folder."""
    folder.mkdir(parents=True)
    shim = folder / "include"
    for name in _SHIMMED.split():
        (shim / name).parent.mkdir(parents=True, exist_ok=True)
        (shim / name).write_text('#include "shim.h"\n')
    # The kernel's own headers first, but for those: its include/ has them all in a full tree.
    include = [f"-I{one}" for one in (shim, HERE / "shim", folder, source / _KEYS, source / "include")]
    compiler = folder / "asn1_compiler"
    _run("gcc", "-O1", "-w", f"-I{source / 'include'}", "-o", compiler, source / "scripts/asn1_compiler.c")
    tables, actions = {}, {}
    for number, name in enumerate(GRAMMARS):
        grammar = source / (_KEYS if number < 4 else "crypto") / f"{name}.asn1"
        _run(compiler, grammar, folder / f"{name}.asn1.c", folder / f"{name}.asn1.h")
        tables[name] = (folder / f"{name}.asn1.c").read_text()
        for action in re.findall(
            r"^extern int (\w+)\(", (folder / f"{name}.asn1.h").read_text(), re.MULTILINE
        ):
            actions.setdefault(action, len(actions))
    _run("perl", source / "lib/build_OID_registry", source / "include/linux/oid_registry.h",
         folder / "oid_registry_data.c")  # fmt: skip
    # The action of a choice gets whatever value came last: nothing to compare, and nobody looks at it.
    lines = [f"ACTION({name}, {number}, {int(name != _VALUELESS)})\n" for name, number in actions.items()]
    (folder / "actions.h").write_text("".join(lines))
    (folder / "grammars.h").write_text("".join(f"GRAMMAR({name})\n" for name in GRAMMARS))
    flags = [
        "gcc",
        "-O2",
        "-w",
        "-std=gnu11",
        "-fno-strict-aliasing",
        *include,
        "-include",
        HERE / "shim/shim.h",
    ]
    decoder, registry = source / "lib/asn1_decoder.c", source / "lib/oid_registry.c"
    read = [source / _KEYS / name for name in _PARSERS]
    has_tag = int("value - hdrlen;\n\tsinfo->authattrs_len" in read[0].read_text())
    generated = [folder / f"{name}.asn1.c" for name in GRAMMARS]
    _run(*flags, f"-DATTRIBUTES_HAVE_TAG={has_tag}", "-o", folder / "parsers", HERE / "shim/oracle.c", *read,
         *generated[:4], decoder, registry)  # fmt: skip
    _run(*flags, "-o", folder / "counting", HERE / "shim/counting.c", *generated, decoder)
    text = (source / "include/linux/oid_registry.h").read_text()
    return KernelParsers(folder / "parsers", folder / "counting", tables, actions, text)


_VALUELESS = "pkcs7_note_certificate_list"


# ---- tables

_TAGS = {"BOOL": 1, "INT": 2, "BTS": 3, "OTS": 4, "OID": 6, "SEQ": 16, "SET": 17, "IA5STR": 22, "UNITIM": 23}
_TAGS |= {"GENTIM": 24}
_KINDS = {
    "ACT": "act",
    "MAYBE_ACT": "maybe act",
    "COND_FAIL": "cond fail",
    "RETURN": "return",
    "COMPLETE": "complete",
}


def operations(table: str) -> list[Op]:
    """The program in a table of the kernel's compiler, as kexecemu.formats.asn1 has programs."""
    machine = table[table.index("_machine[] = {") :]
    words = re.findall(r"^\t\[ *(\d+)\] = +(\S.*?),(?:\s*//.*)?$", machine, re.MULTILINE)
    assert [int(number) for number, _ in words] == list(range(len(words)))
    place = {}  # an octet of the program to its operation
    grouped: list[list[str]] = []
    for octet, (_, word) in enumerate(words):
        if word.startswith("ASN1_OP_"):
            place[octet] = len(grouped)
            grouped.append([])
        grouped[-1].append(word)
    return [_operation(one[0].removeprefix("ASN1_OP_"), one[1:], place) for one in grouped]


def _operation(name: str, operands: list[str], place: dict[int, int]) -> Op:
    kind = "match" if "MATCH" in name else "end" if name.startswith("END") else _KINDS[name]
    op = Op(kind, skip=name.endswith("SKIP"), any="MATCH_ANY" in name, cond=name.startswith("COND_MATCH"))
    for operand in operands:
        if tag := re.fullmatch(r"_tagn?\((\w+), (\w+), +(\w+)\)", operand):
            number = int(tag[3]) if tag[3].isdigit() else _TAGS[tag[3]]
            op = op._replace(tag={"UNIV": 0, "CONT": 0x80}[tag[1]] | 0x20 * (tag[2] == "CONS") | number)
        elif jump := re.fullmatch(r"_jump_target\((\d+)\)", operand):
            op = op._replace(jump=place[int(jump[1])])
        elif action := re.fullmatch(r"_action\(ACT_(\w+)\)", operand):
            op = op._replace(action=action[1].lower())
        else:
            raise AssertionError(operand)
    return op
