"""An arm64 crash lab: see, break and measure kexec and kdump.

    from kexecemu import Board, Kernel, KernelConfig

    board = Board(ram="1G", cpus=2)
    kernel = Kernel.boot(board, KernelConfig("6.4", purgatory=True), cmdline="crashkernel=256M")

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's, without an import in which Ctrl-C would find nobody
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from kexecemu.crash.dump import Dump
    from kexecemu.crash.end import End
    from kexecemu.crash.kernel import Kernel
    from kexecemu.crash.outcome import Outcome
    from kexecemu.errors import InputError, KexecemuError, KexecError
    from kexecemu.kernel.base.config import Era, KernelConfig, Protection
    from kexecemu.kernel.image.kimage import KEXEC_FILE_NO_INITRAMFS, KEXEC_FILE_ON_CRASH, KEXEC_FILE_UNLOAD
    from kexecemu.machine.board import Board
    from kexecemu.scenario.read import read_scenario
    from kexecemu.scenario.runner import run_scenario
    from kexecemu.scenario.schema import Scenario
    from kexecemu.stray.fault import By, Fault, When

    __version__: str

_HOMES = {
    "kexecemu.crash.dump": ("Dump",),
    "kexecemu.crash.end": ("End",),
    "kexecemu.crash.kernel": ("Kernel",),
    "kexecemu.crash.outcome": ("Outcome",),
    "kexecemu.errors": ("InputError", "KexecError", "KexecemuError"),
    "kexecemu.kernel.base.config": ("Era", "KernelConfig", "Protection"),
    "kexecemu.kernel.image.kimage": ("KEXEC_FILE_NO_INITRAMFS", "KEXEC_FILE_ON_CRASH", "KEXEC_FILE_UNLOAD"),
    "kexecemu.machine.board": ("Board",),
    "kexecemu.scenario.read": ("read_scenario",),
    "kexecemu.scenario.runner": ("run_scenario",),
    "kexecemu.scenario.schema": ("Scenario",),
    "kexecemu.stray.fault": ("By", "Fault", "When"),
}

__all__ = [
    "KEXEC_FILE_NO_INITRAMFS",
    "KEXEC_FILE_ON_CRASH",
    "KEXEC_FILE_UNLOAD",
    "Board",
    "By",
    "Dump",
    "End",
    "Era",
    "Fault",
    "InputError",
    "Kernel",
    "KernelConfig",
    "KexecError",
    "KexecemuError",
    "Outcome",
    "Protection",
    "Scenario",
    "When",
    "read_scenario",
    "run_scenario",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version(home: Path | None = None) -> str:
    """The release of the package in a folder. A checkout says so itself: what is installed may be another one."""
    from configparser import ConfigParser
    from configparser import Error as ConfigParserError
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    checkout = ConfigParser()
    try:
        checkout.read((home or Path(__file__).parent).parent / "setup.cfg", encoding="utf-8")
        if checkout.get("metadata", "name") == "kexecemu":
            return checkout.get("metadata", "version")
    except (ConfigParserError, UnicodeDecodeError):
        pass  # not a checkout of ours
    try:
        return version("kexecemu")
    except PackageNotFoundError:
        return "unknown"
