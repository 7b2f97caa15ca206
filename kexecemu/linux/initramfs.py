"""Initramfs archives for a real Linux: a static busybox, an init script, modules and files.

Two inits come ready-made, as scripts in inits/ that can be read beside this: the capture kernel's, which copies
/proc/vmcore to a disk, and a first kernel's, which loads a crash kernel by kexec-tools and crashes. What they do is
chosen on the kernel's command line (kexecemu.NAME=VALUE), so that one archive serves many runs; each script's head
lists the names. On the console every line of theirs begins with "kdump: " or "first: "; the last one is an end mark.
"""

import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from kexecemu.data import fixture_path
from kexecemu.errors import FormatError, InputError
from kexecemu.formats.cpio import CpioEntry, build
from kexecemu.linux.kernel_modules import DISK_MODULES, module_order, read_module
from kexecemu.linux.shared_libraries import program_files

__all__ = ["APPLETS", "CAPTURE_CMDLINE", "CAPTURE_DONE", "CRASH_LOADED", "HEADERS_READ", "NO_VMCORE"]
__all__ += ["build_initramfs", "busybox_applets", "capture_initramfs", "first_kernel_initramfs"]

CRASH_LOADED = "first: crash kernel loaded"
"""The first kernel's line once the load is done: a stray write from here on is the crash kernel's loss."""

CAPTURE_DONE = "kdump: end: status 0"
"""How the capture kernel's last line begins when the whole dump is on the disk."""

NO_VMCORE = "kdump: end: no /proc/vmcore"
"""How it begins in a kernel that no crash has started."""

HEADERS_READ = "kdump: end: headers read, nothing copied"
"""How it begins where /proc/vmcore could be read and there was no disk to copy it to, or it was told not to."""

CAPTURE_CMDLINE = "console=ttyAMA0 reset_devices nr_cpus=1 cryptomgr.notests"
"""A command line for the capture kernel: one CPU, and no minute lost on self-tests of ciphers that nobody uses."""

_APPLETS = (
    "base64 cat dd dmesg echo grep gzip head insmod ls mkdir mount poweroff printf sh sleep stat sync tail tar "
    "tr uname"
)
APPLETS = tuple(_APPLETS.split())
"""The programs of busybox that the inits use, and a few to look around with."""

_INITS = Path(__file__).parent / "inits"
_DIRECTORIES = ("bin", "dev", "mnt", "proc", "sys", "tmp")


def build_initramfs(
    init: str | bytes,
    *,
    busybox: Path,
    modules: Sequence[Path] = (),
    files: Mapping[str, bytes | Path] | None = None,
    executable: Collection[str] = (),
    applets: Sequence[str] = APPLETS,
) -> bytes:
    """An archive with /init, /bin/busybox with a link for each of the applets, device nodes and the usual directories.

    modules are .ko files, compressed or not, in the order of loading: they become /modules/NN-NAME.ko, which sort in
    that order. files maps paths in the archive to contents; a Path may be executed when its owner may execute it, and
    what is named in executable always. The same inputs give the same bytes. Raises InputError for an applet that the
    busybox lacks and for paths that are taken or leave the archive.
    """
    program = busybox.read_bytes()
    missing = sorted(set(applets) - set(busybox_applets(program)))
    if missing:
        raise InputError(f"{busybox.name} has no {' '.join(missing)}")
    entries = {
        # The kernel opens the console before init can mount anything, and a shell wants somewhere to throw things.
        "dev/console": CpioEntry.device("dev/console", 5, 1),
        "dev/null": CpioEntry("dev/null", stat.S_IFCHR | 0o666, b"", 1, 3),
        "bin/busybox": CpioEntry.file("bin/busybox", program, executable=True),
    }
    for name in applets:
        entries[f"bin/{name}"] = CpioEntry.link(f"bin/{name}", "busybox")
    for number, module in enumerate(modules):
        name = f"modules/{number:02}-{module.name.partition('.')[0]}.ko"
        entries[name] = CpioEntry.file(name, read_module(module))
    script = init.encode() if isinstance(init, str) else init
    given: dict[str, CpioEntry] = {"init": CpioEntry.file("init", script, executable=True)}
    for name, content in sorted((files or {}).items()):
        if name in entries or name in given:
            raise InputError(f"the initramfs has its own /{name}")
        given[name] = _file(name, content, name in executable)
    entries.update(given)
    return build([*_directories(entries), *entries.values()])


def capture_initramfs(*, busybox: Path, modules_folder: Path | None = None) -> bytes:
    """What a capture kernel needs to copy its /proc/vmcore to the first virtio disk, and to power off.

    modules_folder is lib/modules/RELEASE of that kernel; without it only drivers that are built in are there. The
    capture kernel's command line chooses, see inits/capture.sh. Errors are those of build_initramfs() and
    module_order().
    """
    return build_initramfs(
        _script("capture.sh"),
        busybox=busybox,
        modules=_disk_modules(modules_folder),
        files={"common.sh": _script("common.sh"), "bin/vmcopy": fixture_path("guests/vmcopy")},
        executable=["bin/vmcopy"],  # an installed package may have lost its mode
    )


def first_kernel_initramfs(
    *,
    busybox: Path,
    kexec: Path,
    packages: Path,
    image: Path | bytes,
    initrd: Path | bytes,
    cmdline: str = CAPTURE_CMDLINE,
    options: Sequence[str] = ("--kexec-syscall",),
    modules_folder: Path | None = None,
) -> bytes:
    """What a first kernel needs to load a crash kernel by kexec-tools, and to crash.

    kexec is kexec-tools' dynamic program, packages the folder with its libraries; image, initrd and cmdline are the
    crash kernel's; options come before those words ("--no-checks" spares both sides the digests, "-d" says a lot).
    modules_folder is the first kernel's, needed for records on a disk only. The first kernel's command line chooses,
    see inits/first.sh. Raises InputError for an option with a line break; else errors are those of
    build_initramfs(), program_files() and module_order().
    """
    words = [*options, "-p", f"--command-line={cmdline}", "--initrd=/boot/initrd", "/boot/Image"]
    if any("\n" in word for word in words):
        raise InputError("kexec's words are one in a line: none may have a line break")
    return build_initramfs(
        _script("first.sh"),
        busybox=busybox,
        modules=_disk_modules(modules_folder),
        files={
            "common.sh": _script("common.sh"),
            "kexec.conf": "".join(f"{word}\n" for word in words).encode(),
            "boot/Image": image if isinstance(image, bytes) else image.read_bytes(),
            "boot/initrd": initrd if isinstance(initrd, bytes) else initrd.read_bytes(),
            **program_files(kexec, packages),
        },
    )


def busybox_applets(program: bytes) -> tuple[str, ...]:
    """The applets that a busybox has, in its order, from the table of names that it looks them up in.

    The table is sorted, so it begins with "[" and "[[", and an empty name ends it. Raises FormatError when there
    is none.
    """
    start = program.find(b"\0[\0[[\0")
    end = program.find(b"\0\0", start + 1)
    if start < 0 or end < 0:
        raise FormatError("no busybox: it has no table of applets")
    return tuple(program[start + 1 : end].decode(errors="replace").split("\0"))


def _script(name: str) -> bytes:
    return (_INITS / name).read_bytes()


def _disk_modules(folder: Path | None) -> tuple[Path, ...]:
    return module_order(folder, DISK_MODULES) if folder is not None else ()


def _file(name: str, content: bytes | Path, executable: bool) -> CpioEntry:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        raise InputError(f"{name!r} is no path inside an initramfs: like boot/Image")
    if isinstance(content, bytes):
        return CpioEntry.file(name, content, executable=executable)
    executable |= bool(content.stat().st_mode & stat.S_IXUSR)
    return CpioEntry.file(name, content.read_bytes(), executable=executable)


def _directories(entries: Mapping[str, CpioEntry]) -> list[CpioEntry]:
    """Every folder before what lies in it: the kernel makes none by itself."""
    names = set(_DIRECTORIES)
    for name in entries:
        names.update(str(parent) for parent in PurePosixPath(name).parents)
    names.discard(".")
    clash = sorted(names & set(entries))
    if clash:
        raise InputError(f"/{clash[0]} cannot be a file and a folder")
    return [CpioEntry.directory(name) for name in sorted(names)]
