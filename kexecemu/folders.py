"""Folders that are written: their files come into them all together, or not at all."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from kexecemu.attributes import append_only
from kexecemu.files import OURS, name_as_given
from kexecemu.interrupt import undoing
from kexecemu.opened import named

__all__ = ["folder_hindrance", "replacing_folder", "temporary_folder"]


@contextmanager
def temporary_folder(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A folder that goes when the block ends, and when Ctrl-C ends the process in it."""
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=place) as name,
        undoing(partial(shutil.rmtree, name, ignore_errors=True)),
    ):
        yield Path(name)


def folder_hindrance(path: str | os.PathLike[str]) -> str:
    """Why files cannot be written into a folder, which is made where there is none; "" when they can."""
    try:
        folder = _resolved(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder)  # a name that is too long, links in a circle
    except OSError as error:
        return error.strerror or str(error)
    above = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    what = "" if above == folder else f"{_as_given(above, Path(path))} "
    if not above.is_dir():
        return f"{what}is not a folder"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"no permission to write into {what or 'it'}".rstrip()
    if append_only(str(above)):
        return f"nothing in {what or 'it'} can be renamed".replace("  ", " ")
    return _no_room(above, what.strip() or "it")


def _no_room(folder: Path, called: str) -> str:
    """/proc and its like have the permission, and no room; a file system with blocks is not touched."""
    if os.statvfs(folder).f_blocks:
        return ""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=OURS, dir=folder))
    except OSError as error:
        return f"no folder can be made in {called}: {error.strerror}"
    return ""


def _resolved(path: str | os.PathLike[str]) -> Path:
    """A folder's place, without links. OSError for MISSING/.., which is no folder, whatever a look at its text says."""
    parts = Path(named(path)).parts
    if os.pardir in parts:
        last = len(parts) - parts[::-1].index(os.pardir)
        os.stat(Path(*parts[:last]))
    return Path(os.path.realpath(path))


def _as_given(above: Path, path: Path) -> Path:
    """A folder above a path, in the words of that path."""
    return next((one for one in path.parents if os.path.realpath(one) == str(above)), above)


@contextmanager
def replacing_folder(path: str | os.PathLike[str], without: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write files into, which all come into the folder of that name when the block ends well, or none.

    It is made where there is none. Other files in it stay, but for those with a name in `without`. OSError names the
    path that was given.
    """
    name = named(path)
    target = _resolved(name)
    missing = [one for one in target.parents if not one.exists()]
    scratch = None
    try:
        above = next(one for one in (target, *target.parents) if one.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = _scratch_folder(target if target.is_dir() else target.parent)
        with undoing(partial(shutil.rmtree, scratch, ignore_errors=True)):
            yield scratch
        if target.is_dir():
            _move_in(scratch, target, without)
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            os.rename(scratch, target)
    except BaseException as error:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for one in missing:
            with suppress(OSError):
                one.rmdir()
        if isinstance(error, OSError):
            name_as_given(error, name)
        raise


def _scratch_folder(beside: Path) -> Path:
    for number in range(1 << 20):
        folder = beside / f"{OURS}{os.getpid()}.{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise OSError(errno.EEXIST, "too many folders that others have left", str(beside))


def _move_in(scratch: Path, target: Path, without: Collection[str]) -> None:
    """Every file of a folder into another one; if one cannot be, all is as it was before."""
    names = sorted(one.name for one in scratch.iterdir())
    before = scratch / "before"
    before.mkdir()
    for name in (*names, *without):
        with suppress(FileNotFoundError):
            found = (target / name).lstat()
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "is no regular file", str(target / name))
            if name in names:
                (scratch / name).chmod(found.st_mode & 0o777 | (scratch / name).stat().st_mode & 0o111)
    try:
        for name in dict.fromkeys((*names, *without)):
            with suppress(FileNotFoundError):
                os.replace(target / name, before / name)
            if name in names:
                os.replace(scratch / name, target / name)
    except BaseException:
        for name in names:
            if not (scratch / name).exists():
                os.replace(target / name, scratch / name)
        for one in before.iterdir():
            os.replace(one, target / one.name)
        raise
