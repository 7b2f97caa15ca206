"""The builder of initramfs archives, with files of our own; tests/real/test_initramfs.py has the real ones."""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from kexecemu.errors import FormatError, InputError
from kexecemu.linux.initramfs import (
    APPLETS,
    build_initramfs,
    busybox_applets,
    capture_initramfs,
    first_kernel_initramfs,
)
from kexecemu.linux.kernel_modules import module_order, read_module
from kexecemu.linux.module_folder import module_folder
from kexecemu.linux.shared_libraries import program_files

ET_REL, ET_DYN = 1, 3
SHT_PROGBITS, SHT_STRTAB, SHT_DYNAMIC = 1, 3, 6


def newc(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name, (mode, contents, device numbers), in the archive's order: cpio(5)'s "new ASCII" form."""
    members = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, length = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        data = at + 110 + length + -(110 + length) % 4
        if name == "TRAILER!!!":
            return members
        assert name not in members
        members[name] = (mode, archive[data : data + size], (major, minor))
        at = data + size + -size % 4


def elf(kind: int, sections: list[tuple[str, int, bytes, int]]) -> bytes:
    """A small aarch64 ELF file with sections of a name, type, contents and sh_link."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    rows = [bytes(64)]
    body = b""
    for name, section, data, link in [*sections, (".shstrtab", SHT_STRTAB, names, 0)]:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", at, section, 0, 0, 64 + len(body), len(data), link, 0, 1, 0))
        body += data
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = struct.pack(
        "<HHIQQQIHHHHHH", kind, 183, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1
    )
    return ident + head + body + b"".join(rows)


def module(*depends: str) -> bytes:
    info = b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"
    return elf(ET_REL, [(".modinfo", SHT_PROGBITS, info, 0)])


def dynamic(*needed: str) -> bytes:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    entries = b"".join(struct.pack("<QQ", 1, strings.index(name.encode())) for name in needed) + bytes(16)
    return elf(ET_DYN, [(".dynstr", SHT_STRTAB, strings, 0), (".dynamic", SHT_DYNAMIC, entries, 1)])


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """What the builder looks at in a busybox: the table of names."""
    path = tmp_path / "busybox"
    names = ["[", "[[", *sorted({*APPLETS, "vi"})]
    path.write_bytes(b"\x7fELF, and code\0" + "\0".join(names).encode() + b"\0\0and more\0")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    """Make lib/modules/RELEASE with files, whose folders are made as well."""

    def make(files: Mapping[str, bytes]) -> Path:
        folder = tmp_path / "6-arm64"
        for name, data in {"modules.builtin": b"", **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    return make


def test_an_archive_has_what_every_init_needs(busybox: Path) -> None:
    members = newc(build_initramfs("#!/bin/sh\nexec sh\n", busybox=busybox, applets=["sh", "vi"]))
    assert members["init"][:2] == (stat.S_IFREG | 0o755, b"#!/bin/sh\nexec sh\n")
    assert members["bin/busybox"][:2] == (stat.S_IFREG | 0o755, busybox.read_bytes())
    assert members["bin/sh"][:2] == (stat.S_IFLNK | 0o777, b"busybox")
    assert members["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert members["dev/null"] == (stat.S_IFCHR | 0o666, b"", (1, 3))
    folders = {name for name, (mode, *_) in members.items() if stat.S_ISDIR(mode)}
    assert folders == {"bin", "dev", "mnt", "proc", "sys", "tmp"}
    assert set(members) - folders == {"init", "bin/busybox", "bin/sh", "bin/vi", "dev/console", "dev/null"}


def test_every_folder_comes_before_what_lies_in_it(busybox: Path) -> None:
    files = {"a/b/c/file": b"1", "a/file": b"2", "proc/own": b"3"}
    names = list(newc(build_initramfs(b"", busybox=busybox, files=files)))
    for index, name in enumerate(names):
        assert "/" not in name or name.rpartition("/")[0] in names[:index], name


def test_the_same_inputs_in_any_order_give_the_same_bytes(busybox: Path) -> None:
    one = build_initramfs("x", busybox=busybox, files={"a": b"1", "b/c": b"2"})
    other = build_initramfs("x", busybox=busybox, files={"b/c": b"2", "a": b"1"})
    assert one == other
    assert one != build_initramfs("x", busybox=busybox, files={"a": b"1", "b/c": b"3"})


def test_a_program_can_be_executed_and_bytes_only_when_they_are_named(busybox: Path, tmp_path: Path) -> None:
    program, text = tmp_path / "program", tmp_path / "text"
    for path, mode in ((program, 0o755), (text, 0o644)):
        path.write_bytes(path.name.encode())
        path.chmod(mode)
    files = {"bin/program": program, "text": text, "bytes": b"bytes", "named": b"", "named-text": text}
    named = ["named", "named-text"]
    members = newc(build_initramfs(b"", busybox=busybox, files=files, executable=named))
    modes = {name: members[name][0] & 0o777 for name in files}
    assert modes == {"bin/program": 0o755, "text": 0o644, "bytes": 0o644, "named": 0o755, "named-text": 0o755}
    assert members["bin/program"][1] == b"program"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", ""])
def test_a_path_that_leaves_the_archive_or_is_not_plain_is_refused(name: str, busybox: Path) -> None:
    with pytest.raises(InputError, match="is no path inside an initramfs"):
        build_initramfs(b"", busybox=busybox, files={name: b""})


@pytest.mark.parametrize("name", ["init", "bin/sh", "bin/busybox", "dev/null", "bin", "init/x", "proc"])
def test_what_an_archive_has_of_its_own_is_not_replaced(name: str, busybox: Path) -> None:
    with pytest.raises(InputError):
        build_initramfs(b"", busybox=busybox, files={name: b""})


def test_an_applet_that_the_busybox_lacks_is_refused_by_name(busybox: Path) -> None:
    with pytest.raises(InputError, match=r"busybox has no emacs nano$"):
        build_initramfs(b"", busybox=busybox, applets=["sh", "nano", "emacs"])


def test_what_has_no_table_of_applets_is_no_busybox() -> None:
    assert busybox_applets(b"x\0[\0[[\0cat\0sh\0\0x") == ("[", "[[", "cat", "sh")
    for data in (b"", b"\x7fELF", b"x\0[\0[[\0cat\0sh"):
        with pytest.raises(FormatError, match="no busybox"):
            busybox_applets(data)


def test_modules_are_named_so_that_they_sort_in_the_order_given(busybox: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.ko" for name in "zyxwvutsrqpo"]
    for path in paths:
        path.write_bytes(path.name.encode())
    members = newc(build_initramfs(b"", busybox=busybox, modules=paths))
    there = sorted(name for name in members if name.endswith(".ko"))
    assert there[0] == "modules/00-z.ko"
    assert [members[name][1].decode() for name in there] == [path.name for path in paths]


def test_a_module_comes_after_what_it_depends_on_however_deep(tree: Callable[..., Path]) -> None:
    drivers = {"blk": ["virtio", "ring"], "ring": ["virtio"], "virtio": [], "mmio": ["ring"], "other": []}
    folder = tree({f"kernel/drivers/{name}.ko": module(*needs) for name, needs in drivers.items()})
    assert [path.stem for path in module_order(folder, ["blk", "mmio"])] == ["virtio", "ring", "blk", "mmio"]
    assert [path.stem for path in module_order(folder, ["mmio", "blk"])] == ["virtio", "ring", "mmio", "blk"]
    assert module_order(folder, []) == ()


def test_a_module_that_is_built_in_is_left_out_wherever_it_is_needed(tree: Callable[..., Path]) -> None:
    folder = tree(
        {
            "modules.builtin": b"kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-ring.ko\n",
            "kernel/drivers/block/virtio_blk.ko": module("virtio", "virtio_ring"),
        }
    )
    assert [path.name for path in module_order(folder, ["virtio", "virtio_blk"])] == ["virtio_blk.ko"]


def test_dash_and_underscore_are_the_same_in_a_module_s_name(tree: Callable[..., Path]) -> None:
    folder = tree({"kernel/virtio-rng.ko": module("rng_core"), "kernel/rng-core.ko": module()})
    assert [path.name for path in module_order(folder, ["virtio_rng"])] == ["rng-core.ko", "virtio-rng.ko"]
    assert module_order(folder, ["virtio-rng"]) == module_order(folder, ["virtio_rng"])


def test_modules_are_decompressed_to_be_read_and_in_the_archive(
    tree: Callable[..., Path], busybox: Path
) -> None:
    plain = module()
    folder = tree(
        {
            "a.ko.xz": lzma.compress(module("b")),
            "b.ko.gz": gzip.compress(module("c")),
            "c.ko": plain,
            "d.ko.zst": zstandard.compress(module("a")),
        }
    )
    order = module_order(folder, ["d"])
    assert [path.name for path in order] == ["c.ko", "b.ko.gz", "a.ko.xz", "d.ko.zst"]
    members = newc(build_initramfs(b"", busybox=busybox, modules=order))
    assert members["modules/00-c.ko"][1] == plain
    assert members["modules/01-b.ko"][1] == module("c")
    assert members["modules/02-a.ko"][1] == module("b")
    assert members["modules/03-d.ko"][1] == module("a")


def test_a_module_that_cannot_be_had_is_named_with_what_wants_it(tree: Callable[..., Path]) -> None:
    folder = tree({"a.ko": module("b")})
    with pytest.raises(InputError, match=r"has no module b, which a depends on$"):
        module_order(folder, ["a"])
    with pytest.raises(InputError, match=r"has no module c$"):
        module_order(folder, ["c"])
    with pytest.raises(InputError, match=r"has no modules\.builtin"):
        module_order(folder / "nowhere", ["a"])


def test_modules_that_depend_on_each_other_are_refused(tree: Callable[..., Path]) -> None:
    folder = tree({"a.ko": module("b"), "b.ko": module("a")})
    with pytest.raises(FormatError, match="depend on each other: a b a"):
        module_order(folder, ["a"])


PACK = {".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("name", [f"a.ko{suffix}" for suffix in PACK])
def test_a_damaged_compressed_module_is_a_format_error(name: str, tree: Callable[..., Path]) -> None:
    packed = PACK[Path(name).suffix](module())
    for data in (b"no such thing", packed[:-9], packed[:20] + b"\xff\xff\xff" + packed[23:]):
        with pytest.raises(FormatError, match="cannot be decompressed"):
            read_module(tree({name: data}) / name)


def test_other_compressions_are_refused_by_name(tree: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"compressed as \.lz4"):
        read_module(tree({"a.ko.lz4": b""}) / "a.ko.lz4")


def test_without_the_package_for_zstd_it_is_named(
    tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match="need the package zstandard"):
        read_module(tree({"a.ko.zst": zstandard.compress(module())}) / "a.ko.zst")


BANNER = b"junk Linux version %s (gcc is no release)\0 Linux version 9 without a bracket"


@pytest.mark.parametrize(
    "below", ["lib/modules/6.12.1-arm64", "usr/lib/modules/6.12.1-arm64", "6.12.1-arm64"]
)
def test_the_modules_of_a_kernel_are_found_below_any_usual_place(tmp_path: Path, below: str) -> None:
    for name in (below, str(Path(below).with_name("6.12.1-other"))):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "modules.builtin").write_text("")
    image = BANNER % b"6.12.1-arm64"
    assert module_folder(tmp_path, image) == tmp_path / below
    assert module_folder(tmp_path / below, image) == tmp_path / below
    with pytest.raises(InputError, match=r"kernel's own, 7\.0; there are: 6\.12\.1-arm64, 6\.12\.1-other$"):
        module_folder(tmp_path, BANNER % b"7.0")
    with pytest.raises(InputError, match=r"kernel's own, 7\.0; there are: 6\.12\.1-arm64$"):
        module_folder(tmp_path / below, BANNER % b"7.0")
    with pytest.raises(InputError, match="the kernel does not say its release; there are: 6"):
        module_folder(tmp_path, b"says nothing")
    assert module_folder(tmp_path / below, b"says nothing") == tmp_path / below


def test_what_has_no_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package.deb").write_bytes(b"")
    with pytest.raises(InputError, match="is no folder: unpack a package first"):
        module_folder(tmp_path / "package.deb", BANNER % b"7.0")
    with pytest.raises(InputError, match="there are: none"):
        module_folder(tmp_path, BANNER % b"7.0")


LOADER = "ld-linux-aarch64.so.1"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Packages with a program that needs a library that needs another, and with a library that nobody needs."""
    root = tmp_path / "packages"
    files = {
        "sbin/kexec": dynamic("libz.so.1", "libc.so.6"),
        "usr/lib/aarch64-linux-gnu/libz.so.1": dynamic("libm.so.6", "libc.so.6"),
        "usr/lib/aarch64-linux-gnu/libunused.so.1": dynamic("libmissing.so"),
        "lib/aarch64-linux-gnu/libm.so.6": dynamic("libc.so.6"),
        "lib/aarch64-linux-gnu/libc.so.6": dynamic(LOADER),
        f"lib/aarch64-linux-gnu/{LOADER}": dynamic(),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "sbin/kexec").chmod(0o755)
    return root


def test_a_program_comes_with_its_libraries_and_theirs_and_no_others(packages: Path) -> None:
    files = program_files(packages / "sbin/kexec", packages)
    assert set(files) == {
        "bin/kexec",
        f"lib/{LOADER}",
        "lib/aarch64-linux-gnu/libc.so.6",
        "lib/aarch64-linux-gnu/libm.so.6",
        "lib/aarch64-linux-gnu/libz.so.1",
    }
    assert all(path.name == name.rpartition("/")[2] for name, path in files.items())


def test_a_library_that_is_missing_is_named_with_what_needs_it(packages: Path) -> None:
    (packages / "lib/aarch64-linux-gnu/libm.so.6").unlink()
    with pytest.raises(InputError, match=r"has no library libm\.so\.6, which libz\.so\.1 needs"):
        program_files(packages / "sbin/kexec", packages)


def test_what_is_no_dynamic_program_is_refused(packages: Path) -> None:
    (packages / "sbin/kexec").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(FormatError, match="kexec: no ELF file"):
        program_files(packages / "sbin/kexec", packages)
    (packages / "sbin/kexec").write_bytes(module())
    with pytest.raises(FormatError, match="ELF type 1"):
        program_files(packages / "sbin/kexec", packages)


def test_the_first_kernel_has_the_crash_kernel_and_kexec_s_words_one_in_a_line(
    packages: Path, busybox: Path
) -> None:
    def build(
        *options: str, cmdline: str = "quiet  x='a b'"
    ) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
        return newc(
            first_kernel_initramfs(
                busybox=busybox,
                kexec=packages / "sbin/kexec",
                packages=packages,
                image=b"image",
                initrd=b"initrd",
                cmdline=cmdline,
                options=options,
            )
        )

    members = build("-c", "--no-checks")
    assert members["kexec.conf"][1].decode().splitlines() == [
        "-c",
        "--no-checks",
        "-p",
        "--command-line=quiet  x='a b'",
        "--initrd=/boot/initrd",
        "/boot/Image",
    ]
    assert (members["boot/Image"][1], members["boot/initrd"][1]) == (b"image", b"initrd")
    assert stat.S_IMODE(members["bin/kexec"][0]) == 0o755
    with pytest.raises(InputError, match="line break"):
        build(cmdline="a\nb")


@pytest.mark.parametrize("first", [False, True])
def test_the_inits_use_no_program_that_is_not_in_the_archive(
    first: bool, packages: Path, busybox: Path
) -> None:
    if first:
        archive = first_kernel_initramfs(
            busybox=busybox, kexec=packages / "sbin/kexec", packages=packages, image=b"", initrd=b""
        )
    else:
        archive = capture_initramfs(busybox=busybox)
    members = newc(archive)
    script = members["init"][1].decode() + members["common.sh"][1].decode()
    of_the_shell = {
        "case",
        "cd",
        "esac",
        "while",
        "do",
        "done",
        "read",
        "if",
        "then",
        "fi",
        "for",
        "set",
        "else",
        "exec",
    }
    of_the_shell |= {"continue", "return", "shift", ":", ".", "[", "in"}
    own = {line.partition("(")[0] for line in script.splitlines() if line.endswith("() {")}
    there = {name.removeprefix("bin/") for name in members if name.startswith("bin/")}
    unknown = {}
    for line in script.splitlines():
        for command in (
            line.partition("#")[0].replace("$(", "|").replace("||", "|").replace("&&", "|").split("|")
        ):
            word = command.split()[0] if command.split() else ":"
            if word.isalpha() and word.islower() and word not in of_the_shell | own | there:
                unknown[word] = line
    assert not unknown


def test_an_init_says_who_it_is_and_reads_what_both_have_in_common(busybox: Path) -> None:
    members = newc(capture_initramfs(busybox=busybox))
    assert members["init"][1].startswith(b"#!/bin/sh\n")
    assert b"\nname=kdump\n. /common.sh\n" in members["init"][1]
    assert "common.sh" in members
    assert stat.S_IMODE(members["bin/vmcopy"][0]) == 0o755
    assert not any(name.startswith("modules/") for name in members)
