"""What must hold of a scenario file besides its form: each check with the key that it is about, for the line number."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kexecemu.errors import InputError
from kexecemu.kernel.base.cmdline import is_one_line
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.kconfig import check_option
from kexecemu.kernel.image.kimage import SEGMENT_NAMES
from kexecemu.kernel.load.dm_crypt import check_dm_crypt_keys
from kexecemu.machine.board import check_numbers, parse_size
from kexecemu.machine.virt import check_bbm
from kexecemu.scenario.matrix import cells_of, check_matrix
from kexecemu.scenario.options import MODEL_ALONE, check_first, check_keys, check_way
from kexecemu.scenario.schema import Scenario
from kexecemu.suggest import there_are

__all__ = ["check_real", "check_segment", "checks_of"]

_LARGEST_SEED = (1 << 64) - 1  # what a device tree's seed for a real kernel is made of


def checks_of(
    data: dict[str, Any], scenario: Scenario
) -> Iterator[tuple[tuple[str | int, ...], Callable[[], object]]]:
    """What raises InputError for what cannot be, with the path of the key, () where the words name it."""
    machine, kernel = scenario.machine, scenario.kernel
    yield (), partial(_check_linux, data, scenario)
    yield ("seed",), partial(_check_seed, scenario.seed)
    yield ("kernel", "era"), partial(KernelConfig, kernel.era)
    yield ("kernel", "protection"), partial(KernelConfig, protection=kernel.protection)
    for name, value in kernel.config.items():
        yield ("kernel", "config", name), partial(check_option, name, value)
    cpus = 1 if machine.cpus is None else machine.cpus
    yield ("machine", "cpus"), partial(check_numbers, cpus, None)
    yield ("machine", "gic"), partial(check_numbers, cpus, machine.gic)
    yield ("machine", "bbm"), partial(check_bbm, machine.bbm)
    yield ("machine", "ram"), partial(_check_size, "machine.ram", machine.ram)
    yield ("load", "initrd_size"), partial(_check_size, "load.initrd_size", scenario.load.initrd_size)
    yield ("load", "way"), partial(check_way, scenario.load.way, scenario.load.syscall)
    yield (), partial(check_matrix, scenario)
    for cell in cells_of(scenario):
        first, load = cell.scenario.kernel, cell.scenario.load
        yield ("kernel", "config"), partial(KernelConfig, first.era, options=first.config)
        keys, era = load.dm_crypt_keys, KernelConfig(first.era).release
        yield ("load", "dm_crypt_keys"), partial(check_keys, keys, load.syscall)
        yield ("load", "dm_crypt_keys"), partial(check_dm_crypt_keys, keys, era)
    if scenario.expect is not None:
        if scenario.expect.segment is not None:
            yield ("expect", "segment"), partial(check_segment, scenario.expect.segment)
        for name in scenario.expect.segments:
            yield ("expect", "segments"), partial(check_segment, name)
    for number, table in enumerate(scenario.fault):
        yield ("fault", number), table.fault


def _check_linux(data: dict[str, Any], scenario: Scenario) -> None:
    """InputError for keys that make no sense with a real first kernel, or only with one."""
    tables = [data.get(table, {}) for table in ("machine", "kernel", "load")]
    given = {key: value for table in tables for key, value in table.items()}
    check_first(given)
    if scenario.kernel.linux is None:
        return
    check_real(scenario.load.initrd, scenario.kernel.cmdline)
    for table in ("crash", "campaign", "matrix"):
        for key in data.get(table, {}):
            raise InputError(f"{table}.{key} {MODEL_ALONE}")


def check_real(initrd: str | None, cmdline: str | None) -> None:
    """InputError for values with which a real first kernel leads to nothing."""
    if initrd == "none":
        raise InputError("load.initrd: a real capture kernel needs an initrd that takes the dump")
    if cmdline is not None and not is_one_line(cmdline):
        raise InputError(f"kernel.cmdline: a real kernel's is one line of printable ASCII, not {cmdline!r}")
    if any(word == "quiet" or word.startswith("loglevel=") for word in (cmdline or "").split()):
        raise InputError(
            "kernel.cmdline: the first kernel must say on its console that it is left: no quiet, no loglevel="
        )


def check_segment(name: str) -> None:
    """InputError for what is the name of no segment, whatever was loaded."""
    if name not in SEGMENT_NAMES:
        raise InputError(f"no segment {name!r}{there_are(name, SEGMENT_NAMES)}")


def _check_seed(seed: int) -> None:
    # Python's generators make no difference between a number and its negative.
    if not 0 <= seed <= _LARGEST_SEED:
        raise InputError(f"seed: a number from 0 to {_LARGEST_SEED:#x}, not {seed}")


def _check_size(key: str, size: str | int | None) -> None:
    try:
        if size is not None:
            parse_size(size)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
