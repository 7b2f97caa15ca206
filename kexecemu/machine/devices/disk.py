"""Where a disk's sectors are: in memory, in a file, or in a file with what is written kept aside."""

import ctypes
import errno
import mmap
import os
import stat
import weakref
from collections.abc import Sequence
from typing import Self

from kexecemu.errors import InputError, MachineError
from kexecemu.files import replacing

__all__ = ["SECTOR", "Disk"]

SECTOR = 512
"""Bytes of a sector."""

_CHUNK = 1 << 20
_IOV_MAX = 1024
_ZEROS = bytes(_CHUNK)

_MAP_NORESERVE = 0x4000  # newer Pythons name it in mmap

# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, which os.posix_fallocate() cannot ask for.
_PUNCH = 1 | 2

Buffer = bytes | bytearray | memoryview


class _File:
    """Sectors in an open file, by offset in bytes; the disk has checked the bounds."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # A disk that nobody closed gives its memory back with its last user.
        self._let_go = weakref.finalize(self, os.close, fd)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # 2 GiB and more come in pieces
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file has become shorter")
            data += more
        return data

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        for first in range(0, len(parts), _IOV_MAX):
            some = [memoryview(part).cast("B") for part in parts[first : first + _IOV_MAX]]
            while some:
                done = os.pwritev(self._fd, some, offset)
                offset += done
                while some and done >= some[0].nbytes:
                    done -= some.pop(0).nbytes
                if some:
                    some[0] = some[0][done:]

    def punch(self, offset: int, length: int) -> bool:
        """Make a hole, which reads as zeros; False if that cannot be done here."""
        libc = ctypes.CDLL(None)
        off_t = ctypes.c_int64
        return bool(libc.fallocate(self._fd, _PUNCH, off_t(offset), off_t(length)) == 0)

    def next_data(self, offset: int) -> int | None:
        """The first offset from here on that is in no hole; None if there is none."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: no data up to the end; anything else: a file system that does not know about holes.
            return None if error.errno == errno.ENXIO else offset

    def close(self) -> None:
        self._let_go()


class _Memory(_File):
    """Sectors in memory: whole pages of zeros take none, and most of a dump is that."""

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        kept = list[memoryview]()
        for part in parts:
            data = memoryview(part).cast("B")
            if data.nbytes < mmap.PAGESIZE or data[0] or data[-1] or bytearray(data.nbytes) != data:
                kept.append(data)
                continue
            super().write(offset, kept)
            offset += sum(one.nbytes for one in kept)
            kept.clear()
            if not self.punch(offset, data.nbytes):
                super().write(offset, [data])
            offset += data.nbytes
        super().write(offset, kept)


class _PrivateFile(_File):
    """The file stays as it is: the host's kernel keeps a copy of each page that is written."""

    def __init__(self, fd: int, size: int) -> None:
        # Without MAP_NORESERVE, a large disk would need as much free memory although hardly a page is written.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        self._map = mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        for part in parts:
            data = memoryview(part).cast("B")
            self._map[offset : offset + data.nbytes] = data
            offset += data.nbytes

    def punch(self, offset: int, length: int) -> bool:
        return False

    def next_data(self, offset: int) -> int | None:
        return offset

    def close(self) -> None:
        self._map.close()


class Disk:
    """A disk of whole sectors of 512 bytes. Offsets and lengths are in bytes, and need not be multiples of that.

    A new disk is all zeros and takes memory only for what is written to it.
    """

    def __init__(self, size: int) -> None:
        """A disk in memory; InputError if size is not a positive multiple of 512."""
        _check_size(size, "a disk")
        fd = os.memfd_create("kexecemu-disk", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            raise MachineError(f"the host cannot hold a disk of {size:#x} bytes: {error}") from error
        self._set_up(_Memory(fd), size, read_only=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, private: bool = False) -> Self:
        """A disk whose sectors are those of a file or block device, which is neither made nor changed in size.

        With private, what is written is kept in memory and lost with the disk, and the file stays as it is. Whoever
        makes the file shorter meanwhile ends this process (SIGBUS), as with any mapped file.
        Raises InputError if it cannot be opened or is not made of whole sectors.
        """
        try:
            fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only or private else os.O_RDWR))
        except OSError as error:
            raise InputError(f"cannot open the disk {os.fspath(path)}: {error.strerror}") from error
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise InputError(f"{os.fspath(path)} is neither a file nor a block device")
            size = os.lseek(fd, 0, os.SEEK_END)
            _check_size(size, os.fspath(path))
            store = _PrivateFile(fd, size) if private else _File(fd)
        except BaseException:
            os.close(fd)
            raise
        if private:
            os.close(fd)  # the mapping has its own
        disk = cls.__new__(cls)
        disk._set_up(store, size, read_only)
        return disk

    def _set_up(self, store: _File, size: int, read_only: bool) -> None:
        self._store: _File | None = store
        self.size = size
        """Bytes."""
        self.read_only = read_only
        """True if write() and zero() are refused."""

    def close(self) -> None:
        """Give memory and file back; the disk cannot be used afterwards."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _within(self, offset: int, length: int) -> _File:
        if self._store is None:
            raise MachineError("the disk is closed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise MachineError(f"no {length:#x} bytes at {offset:#x} on a disk of {self.size:#x}")
        return self._store

    def _writable(self, offset: int, length: int) -> _File:
        if self.read_only:
            raise MachineError("the disk is read-only")
        return self._within(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; MachineError beyond the end, OSError when the host cannot."""
        return self._within(offset, length).read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data` at `offset`; MachineError beyond the end or if read-only, OSError when the host cannot."""
        self.write_parts(offset, [data])

    def write_parts(self, offset: int, parts: Sequence[Buffer]) -> None:
        """Store several buffers one behind the other, in one go where the host can; errors as write()."""
        length = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)
        self._writable(offset, length).write(offset, parts)

    def zero(self, offset: int, length: int) -> None:
        """Make `length` bytes from `offset` zeros, without keeping them where the host can; errors as write()."""
        store = self._writable(offset, length)
        if length and not store.punch(offset, length):
            for at in range(offset, offset + length, _CHUNK):
                store.write(at, [_ZEROS[: offset + length - at]])

    def copy_to(self, path: str | os.PathLike[str], length: int | None = None) -> None:
        """Write the first `length` bytes (all of them, if None) to a file: the whole of it or nothing, sparse.

        MachineError if the disk is shorter, OSError if the file cannot be written.
        """
        length = self.size if length is None else length
        store = self._within(0, length)
        with replacing(path) as file:
            done = 0
            while done < length and (at := store.next_data(done)) is not None and at < length:
                chunk = store.read(at, min(_CHUNK, length - at))
                if chunk != _ZEROS[: len(chunk)]:
                    file.seek(at)
                    file.write(chunk)
                done = at + len(chunk)
            file.truncate(length)


def _check_size(size: int, what: str) -> None:
    if size <= 0 or size % SECTOR:
        raise InputError(f"{what} of {size} bytes is not made of whole sectors of {SECTOR}")
