"""A setup whose first kernel is a real Linux: its files, and what it is started with."""

import warnings
from pathlib import Path

from kexecemu.arguments import contents
from kexecemu.errors import InputError
from kexecemu.formats.image import has_magic
from kexecemu.formats.kernel_file import no_image, truncated
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel, fetched_programs
from kexecemu.linux.first_boot import LinuxSetup
from kexecemu.machine.virt import check_stuck
from kexecemu.scenario.checks import check_real
from kexecemu.scenario.options import Setup, check_first, check_modules, given_options
from kexecemu.scenario.setup import Truncated

__all__ = ["linux_setup", "read_kernel"]


def read_kernel(path: Path, *, by_kexec: bool = False) -> bytes:
    """An Image from a file; InputError for one that no boot loader starts, or that is cut off.

    by_kexec: it is what a kernel is to load, and kexec takes what is cut off: that is a warning.
    """
    image = contents(path, "kernel")
    if not has_magic(image):
        raise InputError(f"kernel {path}: {no_image(image)}")
    if words := truncated(image, path):
        if not by_kexec:
            raise InputError(words)
        warnings.warn(words, Truncated, stacklevel=2)
    return image


def linux_setup(setup: Setup) -> LinuxSetup:
    """What a real first kernel is started with: the same setup, with all of its files read.

    The crash kernel is the first kernel's own Image unless [load] names another one. Raises InputError for files that
    are missing, or not fetched yet.
    """
    assert setup.linux is not None
    given = given_options(setup)
    check_first(given)
    check_real(str(setup.initrd), setup.cmdline)
    check_modules(setup.modules, setup.initrd, linux=True)
    cpus = setup.value("cpus")
    check_stuck(setup.stuck_cpus, cpus)
    first = fetched_kernel(setup.linux)
    second = first if setup.kernel is None else fetched_kernel(setup.kernel)
    image = read_kernel(first)
    programs = fetched_programs()
    return LinuxSetup(
        image=image,
        crash_image=image if second == first else read_kernel(second, by_kexec=True),
        crash_initrd=fetched_initrd(second, setup.modules)
        if setup.initrd is None
        else contents(setup.initrd, "initrd"),
        **vars(programs),
        cpus=cpus,
        gic=setup.gic,
        syscall=setup.call,
        checks=setup.call == "kexec_load" and setup.purgatory != "none",
        # What is not given is as LinuxSetup has it.
        **{name: given[name] for name in ("ram", "cmdline", "append", "stuck_cpus", "seed") if name in given},
    )
