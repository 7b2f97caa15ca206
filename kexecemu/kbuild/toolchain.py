"""What a kernel is built with: a compiler for arm64, and the tools that its Makefiles start."""

import platform
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kexecemu.children import child
from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["COMPILERS", "Toolchain"]

COMPILERS = ("gcc", "clang")
_VERSION_SECONDS = 20

# Programs, and the Debian packages that have them.
_TOOLS = {"make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "tar": "tar", "xz": "xz-utils"}
_CROSS = "aarch64-linux-gnu-"
_GCC = {"gcc": "gcc", f"{_CROSS}gcc": "gcc-aarch64-linux-gnu", f"{_CROSS}ld": "binutils-aarch64-linux-gnu"}
_CLANG = {"clang": "clang", "ld.lld": "lld", "llvm-ar": "llvm", "llvm-nm": "llvm", "llvm-objcopy": "llvm"}
# Only what signs modules or reads certificates includes OpenSSL.
_SIGNING = ("MODULE_SIG", "SYSTEM_TRUSTED_KEYRING", "SYSTEM_DATA_VERIFICATION", "IMA_APPRAISE_MODSIG")
_OPENSSL = "#include <openssl/opensslv.h>\n"


@shown()
@dataclass(frozen=True)
class Toolchain:
    """name is one of COMPILERS. gcc is a cross compiler, on an arm64 machine its own one."""

    name: str = "gcc"

    def __post_init__(self) -> None:
        if self.name not in COMPILERS:
            raise InputError(f"--compiler {self.name!r} is not one of {', '.join(COMPILERS)}")

    @property
    def _prefix(self) -> str:
        return "" if platform.machine() in ("aarch64", "arm64") else _CROSS

    def words(self) -> list[str]:
        """What make is told of it."""
        return (
            ["ARCH=arm64", "LLVM=1"]
            if self.name == "clang"
            else ["ARCH=arm64", f"CROSS_COMPILE={self._prefix}"]
        )

    def release(self) -> str:
        """The first line of what the compiler says of its version; InputError where it is missing, or says nothing."""
        self.check({})
        program = "clang" if self.name == "clang" else f"{self._prefix}gcc"
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with child([program, "--version"], **pipes, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            timer = threading.Timer(_VERSION_SECONDS, process.kill)
            timer.start()
            data: bytes = process.stdout.read(4096)
            timer.cancel()
        said = data.decode(errors="replace").partition("\n")[0].strip()
        if not said:
            raise InputError(f"{program} --version says nothing: it is no compiler")
        return said

    def check(self, options: Mapping[str, str]) -> None:
        """InputError with the apt-get command that brings what this machine lacks for a kernel with these options."""
        compiler = _CLANG if self.name == "clang" else {**_GCC}
        if not self._prefix:
            compiler = {name: package for name, package in compiler.items() if not name.startswith(_CROSS)}
        tools = {**_TOOLS, **compiler}
        missing = {name: package for name, package in tools.items() if shutil.which(name) is None}
        if any(options.get(name, "n") != "n" for name in _SIGNING) and not _has_openssl():
            missing["openssl/opensslv.h"] = "libssl-dev"
        if missing:
            packages = " ".join(dict.fromkeys(missing.values()))
            raise InputError(f"building Linux needs {', '.join(missing)}: apt-get install {packages}")


def _has_openssl() -> bool:
    command = ["cc", "-E", "-x", "c", "-", "-o", "/dev/null"]
    try:
        return not subprocess.run(
            command, input=_OPENSSL, capture_output=True, text=True, check=False
        ).returncode
    except OSError:
        return False
