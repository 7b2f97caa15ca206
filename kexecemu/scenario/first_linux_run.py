"""Run a scenario whose first kernel is a real Linux: boot, load, harm, crash, compare with what was expected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kexecemu.arguments import contents
from kexecemu.crash.kernel import End
from kexecemu.crash.stages import Progress
from kexecemu.errors import InputError
from kexecemu.formats.image import has_magic, missing_bytes
from kexecemu.kernel.kimage import Kimage
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel, fetched_programs
from kexecemu.linux.first import DEFAULT_CMDLINE, DEFAULT_RAM, FirstLinux, LinuxSetup
from kexecemu.linux.initramfs import CAPTURE_CMDLINE
from kexecemu.scenario.first_linux_crash import crash
from kexecemu.scenario.given import setup_of
from kexecemu.scenario.options import given_options
from kexecemu.scenario.runner import mismatches_of
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.setup import Listener
from kexecemu.shown import shown
from kexecemu.stray.fault import When

__all__ = ["LinuxResult", "linux_setup", "read_kernel", "run_linux_scenario"]


@shown()
@dataclass(frozen=True)
class LinuxResult:
    """A finished run: the machine and what was loaded for whoever wants to look, and the end.

    mismatches says in words what was not as expected; [] when all was, or nothing was expected.
    """

    name: str
    setup: LinuxSetup
    kernel: FirstLinux
    image: Kimage
    end: End
    mismatches: list[str]
    expected: bool = False

    @property
    def seed(self) -> int:
        """What all randomness of the run came from."""
        return self.setup.seed

    @property
    def as_expected(self) -> bool:
        """Nothing was expected, or all of it came true."""
        return not self.mismatches


def read_kernel(path: Path) -> bytes:
    """An Image from a file; InputError for one that no boot loader starts, or that is cut off."""
    image = contents(path, "kernel")
    if not has_magic(image):
        raise InputError(f"kernel {path}: no arm64 Image")
    if missing := missing_bytes(image):
        raise InputError(f"kernel {path}: truncated: at least {missing:#x} bytes are missing at its end")
    return image


def linux_setup(scenario: Scenario, folder: Path, seed: int | None = None) -> LinuxSetup:
    """The setup that a scenario describes; relative paths start at `folder`, seed overrides the file's.

    The crash kernel is the first kernel's own Image unless [load] names another one. Raises InputError for files that
    are missing, or not fetched yet.
    """
    setup = setup_of(scenario, folder, seed)
    assert setup.linux is not None
    cpus = setup.value("cpus")
    wrong = [index for index in setup.stuck_cpus if not 0 <= index < cpus]
    if wrong:
        raise InputError(f"machine.stuck_cpus: the board has CPUs 0 to {cpus - 1}, not {wrong[0]}")
    first = fetched_kernel(setup.linux)
    second = first if setup.kernel is None else fetched_kernel(setup.kernel)
    image = read_kernel(first)
    programs = fetched_programs()
    return LinuxSetup(
        image=image,
        crash_image=image if second == first else read_kernel(second),
        crash_initrd=fetched_initrd(second) if setup.initrd is None else contents(setup.initrd, "initrd"),
        busybox=programs.busybox,
        kexec=programs.kexec,
        packages=programs.packages,
        ram=DEFAULT_RAM if setup.ram is None else setup.ram,
        cpus=cpus,
        gic=setup.value("gic"),
        cmdline=DEFAULT_CMDLINE if setup.cmdline is None else setup.cmdline,
        append=CAPTURE_CMDLINE if "append" not in given_options(setup) else setup.append,
        checks=setup.purgatory != "none",
        stuck_cpus=setup.stuck_cpus,
        seed=setup.seed,
    )


def run_linux_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
    console: Listener | None = None,
) -> LinuxResult:
    """Run a scenario with [kernel] linux that was read from a file in `folder`; console hears what is printed.

    Raises InputError for what cannot be used, a first kernel that loads nothing among it.
    """
    setup = linux_setup(scenario, folder, seed)
    linux = FirstLinux(setup, console)
    image = linux.load(progress)
    for moment in (When.AFTER_LOAD, When.BEFORE_PANIC):
        for table in scenario.fault:
            if table.when is moment:
                linux.inject(table.fault())
    end = crash(linux, progress)
    return LinuxResult(
        scenario.name,
        setup,
        linux,
        image,
        end,
        mismatches_of(end, scenario.expect),
        scenario.expect is not None,
    )
