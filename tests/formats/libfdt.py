"""The real libfdt by ctypes: the oracle for everything that edits or checks a device tree."""

from __future__ import annotations

import ctypes
import ctypes.util

NAME = ctypes.util.find_library("fdt")


class Libfdt:
    """libfdt's functions on one buffer; each returns libfdt's own result, negative for an error."""

    def __init__(self, blob: bytes, bufsize: int) -> None:
        self._lib = ctypes.CDLL(NAME)
        self.buffer = (ctypes.c_char * bufsize)()
        self.opened = self._lib.fdt_open_into(ctypes.c_char_p(blob), self.buffer, bufsize)

    @staticmethod
    def check_full(blob: bytes) -> int:
        result: int = ctypes.CDLL(NAME).fdt_check_full(ctypes.c_char_p(blob), ctypes.c_size_t(len(blob)))
        return result

    def path_offset(self, path: str) -> int:
        result: int = self._lib.fdt_path_offset(self.buffer, path.encode("latin-1"))
        return result

    def call(self, function: str, *args: int | str | bytes) -> int:
        """Call fdt_<function>(fdt, ...); strings become C strings, bytes a pointer and a length."""
        converted: list[object] = []
        for arg in args:
            if isinstance(arg, bytes):
                converted += [ctypes.c_char_p(arg), ctypes.c_int(len(arg))]
            elif isinstance(arg, str):
                converted.append(ctypes.c_char_p(arg.encode("latin-1")))
            else:
                # All of libfdt's integers fit in a register; the callee looks at the width that it has.
                converted.append(ctypes.c_uint64(arg & ((1 << 64) - 1)))
        result: int = getattr(self._lib, f"fdt_{function}")(self.buffer, *converted)
        return result

    @property
    def data(self) -> bytes:
        return bytes(self.buffer.raw)
