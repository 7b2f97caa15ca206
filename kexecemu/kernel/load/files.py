"""An open file as the kernel sees it, as far as kernel_read_file_from_fd() can refuse it (fs/kernel_read_file.c)."""

from dataclasses import dataclass
from errno import EACCES, EBADF, EFBIG, EINVAL, EIO, ETXTBSY

from kexecemu.arguments import contents
from kexecemu.errors import KexecError
from kexecemu.shown import shown

__all__ = ["KEXEC_FILE_SIZE_MAX", "FileOrBytes", "OpenFile", "kernel_read_file"]

KEXEC_FILE_SIZE_MAX = 4 << 30
_STEP = "kernel_read_file_from_fd"


@shown()
@dataclass(frozen=True)
class OpenFile:
    """One open file: its bytes, or a path that they are read from.

    readable        FMODE_READ: it was not opened O_WRONLY
    regular         it is a regular file, no directory, pipe or device
    open_for_write  somebody has it open for writing
    size            what the inode says in bytes, where that is not what can be read (None: len(data))
    lsm_denies      a security module refuses to let the kernel read it (security_kernel_read_file())
    """

    data: bytes
    readable: bool = True
    regular: bool = True
    open_for_write: bool = False
    size: int | None = None
    lsm_denies: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", contents(self.data, "file"))


FileOrBytes = OpenFile | bytes | None
"""What user space passes by descriptor, or just its bytes; None is a descriptor that is not open."""


def kernel_read_file(name: str, file: FileOrBytes, limit: int = KEXEC_FILE_SIZE_MAX) -> bytes:
    """The contents of a file that user space passed by descriptor.

    limit is in bytes. Raises KexecError with the errno of the first thing wrong, in the kernel's order: EBADF, EINVAL
    (no regular file), ETXTBSY, EACCES, EINVAL (empty), EFBIG, EIO (fewer bytes than the inode promised).
    """
    if file is None:
        raise KexecError(EBADF, _STEP, f"{name}: bad file descriptor")
    if not isinstance(file, OpenFile):
        file = OpenFile(file)
    there = len(file.data)
    size = there if file.size is None else file.size
    for wrong, errno, why in (
        (not file.readable, EBADF, "the descriptor is not open for reading"),
        (not file.regular, EINVAL, "not a regular file"),
        (file.open_for_write, ETXTBSY, "the file is open for writing"),
        (file.lsm_denies, EACCES, "a security module refuses the file"),
        (size <= 0, EINVAL, "the file is empty"),
        (size > limit, EFBIG, f"{size:#x} bytes, {limit:#x} at most"),
        (there < size, EIO, f"only {there:#x} of {size:#x} bytes could be read"),
    ):
        if wrong:
            step = "security_kernel_read_file" if errno == EACCES else _STEP
            raise KexecError(errno, step, f"{name}: {why}")
    return file.data
