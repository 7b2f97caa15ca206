"""Modules of a real kernel, as a distribution's package has them: which are needed, in which order, and their bytes.

modules.dep is made by depmod where a package is installed, so none is in a package; it says nothing that the
modules' own .modinfo sections do not say.
"""

import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from kexecemu.errors import FormatError, InputError
from kexecemu.formats.elf import ET_REL, read_header, read_sections

__all__ = ["DISK_MODULES", "module_order", "read_module"]

DISK_MODULES = ("virtio_mmio", "virtio_blk")
"""What a virtio disk behind virtio-mmio needs, apart from what these depend on."""


def _zstd(data: bytes) -> bytes:
    """Zstandard, by a package that only kernels of distributions need which compress so."""
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            "modules compressed by zstd need the package zstandard (pip install zstandard)"
        ) from error
    whole = zstandard.ZstdDecompressor().decompressobj()
    try:
        plain = whole.decompress(data)
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not whole.eof:
        raise EOFError("it ends before its end")
    return plain


_COMPRESSED = {".xz": lzma.decompress, ".gz": gzip.decompress, ".zst": _zstd}


def module_order(modules_folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The files of modules and of all that they depend on, each after those that it depends on.

    modules_folder is lib/modules/RELEASE of a kernel's package, with modules.builtin. A module that is built in has
    no file and is left out; "-" and "_" in a name are the same, as for modprobe. Raises InputError for a name that
    is neither a file nor built in, FormatError for a file that is no module.
    """
    builtin_list = modules_folder / "modules.builtin"
    if not builtin_list.is_file():
        raise InputError(f"{modules_folder} has no modules.builtin: is it a folder lib/modules/RELEASE?")
    builtin = {_name(Path(line)) for line in builtin_list.read_text().splitlines()}
    # Sorted, so that of two files of one name it is always the same one that counts.
    files = {_name(path): path for path in sorted(modules_folder.glob("**/*.ko*"), reverse=True)}
    order: dict[str, Path] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in order or name in builtin:
            return
        if name in above:
            raise FormatError(f"modules depend on each other: {' '.join((*above, name))}")
        if name not in files:
            wanted = f", which {above[-1]} depends on" if above else ""
            raise InputError(f"{modules_folder} has no module {name}{wanted}")
        for needed in _dependencies(files[name]):
            add(needed, (*above, name))
        order[name] = files[name]

    for name in names:
        add(name, ())
    return tuple(order.values())


def read_module(path: Path) -> bytes:
    """A module's ELF file, decompressed when its name ends in .xz, .gz or .zst: what insmod hands to the kernel.

    Raises FormatError when it cannot be decompressed, InputError for another compression, or for want of a package.
    """
    data = path.read_bytes()
    if path.suffix == ".ko":
        return data
    if path.suffix not in _COMPRESSED:
        raise InputError(f"{path.name}: modules compressed as {path.suffix} are not supported")
    try:
        return _COMPRESSED[path.suffix](data)
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path.name}: cannot be decompressed: {error}") from error


def _name(path: Path) -> str:
    """A module's name from its file's: virtio_blk for virtio-blk.ko.xz."""
    return path.name.partition(".")[0].replace("-", "_")


def _dependencies(path: Path) -> Iterator[str]:
    """The names in "depends=" of a module's .modinfo, in its order."""
    data = read_module(path)
    sections = read_sections(data, read_header(data, path.name, ET_REL), path.name)
    for section in sections:
        if section.name == ".modinfo":
            for word in section.data.split(b"\0"):
                if word.startswith(b"depends="):
                    yield from filter(None, word.removeprefix(b"depends=").decode().split(","))
