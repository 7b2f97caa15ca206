"""The form of a scenario file: TOML, read strictly, so that a misspelt key is refused and not ignored."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from kexecemu.data import fixture_path, shipped_scenarios
from kexecemu.errors import InputError
from kexecemu.faults.fault import By, Fault, When, parse_hex
from kexecemu.faults.outcome import Outcome
from kexecemu.kernel.config import KernelConfig, check_option
from kexecemu.machine.board import check_numbers, parse_size
from kexecemu.scenario.toml_lines import at_line, validation_text
from kexecemu.suggest import did_you_mean

__all__ = ["Scenario", "find_scenario", "read_scenario", "shipped_scenarios"]


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table in which every key must be known."""


class Machine(_Table, frozen=True):
    """[machine]: ram in bytes or as "1G"; cpus; dtb a device tree blob that describes another board.

    gic is the version of the interrupt controller, 2 (the default, or what dtb says) or 3.
    stuck_cpus are numbers of CPUs that hear no interrupt once a real Linux crashes, so that it cannot stop them.
    """

    ram: str | int | None = None
    cpus: int | None = None
    gic: int | None = None
    dtb: str | None = None
    stuck_cpus: list[int] = []


class KernelTable(_Table, frozen=True):
    """[kernel]: the first kernel. config holds Kconfig names, values "y", "n", a number or a word as a string.

    linux makes it a real one, which loads by kexec-tools: a path, or "fetched:NAME". Its purgatory is "kexec-tools", or
    "none" for one that checks nothing.
    """

    era: str = "6.4"
    cmdline: str | None = None
    protection: str | None = None
    purgatory: str | bool = "default"
    config: dict[str, str] = {}
    rng_ready: bool = False
    linux: str | None = None


class Load(_Table, frozen=True):
    """[load]: what is loaded for the crash, and by which system call.

    Paths are relative to the scenario file; initrd "none" is no initrd. With kexec_load it is kexec-tools that places
    the segments and brings the purgatory. initrd_size, in bytes or as "16M", makes the initrd that large by a second
    archive. capture "linux" follows a real capture kernel to its end; kernel and initrd are then Debian's and one that
    copies the dump to a disk, unless told otherwise. A kernel "fetched:NAME" is one that `kexecemu fetch` has
    put into its cache.
    """

    kernel: str | None = None
    initrd: str | None = None
    initrd_size: str | int | None = None
    append: str = "console=ttyAMA0 nr_cpus=1 reset_devices irqpoll"
    syscall: Literal["kexec_file_load", "kexec_load"] = "kexec_file_load"
    capture: Literal["stub", "linux"] = "stub"


class FaultTable(_Table, frozen=True):
    """[[fault]]: one stray write; write is hex digits, flip a mask of bits in one byte."""

    at: str
    by: By = By.CPU
    write: str | None = None
    flip: int | None = None
    when: When = When.AFTER_LOAD
    width: int = 1

    def fault(self) -> Fault:
        """The fault that the table describes; InputError when it is none."""
        data = parse_hex(self.write, f"fault at {self.at}: write") if self.write is not None else None
        return Fault(self.at, data, self.flip, self.by, self.when, self.width)


class Crash(_Table, frozen=True):
    """[crash]: the panic message."""

    message: str = "sysrq triggered crash"


class CampaignTable(_Table, frozen=True):
    """[campaign]: which faults `kexecemu campaign` draws from; see kexecemu.campaign.plan, which checks the words.

    where: "segments", a segment's name, "crashkernel-free", "edges", "crashkernel". models: names of fault models. by:
    who writes. moments: when; "hashing-128" is halfway through what is hashed and "hashing" 16 steps of it,
    "capture-1000" so many instructions into the capture kernel.
    """

    where: tuple[str, ...] = ("segments",)
    models: tuple[str, ...] = ("bit-flip",)
    by: tuple[str, ...] = ("cpu",)
    moments: tuple[str, ...] = ("after-load",)
    sampling: Literal["uniform", "stratified"] = "uniform"


class Expect(_Table, frozen=True):
    """[expect]: the outcome, and optionally a damaged segment and pieces of text that the console must hold."""

    outcome: Outcome
    segment: str | None = None
    console: list[str] = []


class Scenario(_Table, frozen=True):
    """A whole scenario file. `source` is not part of the file: where it came from."""

    schema: Literal[1]
    name: str
    seed: int = 0
    machine: Machine = Machine()
    kernel: KernelTable = KernelTable()
    load: Load = Load()
    fault: list[FaultTable] = []
    crash: Crash = Crash()
    campaign: CampaignTable = CampaignTable()
    expect: Expect | None = None


def find_scenario(name: str) -> Path:
    """The path of a scenario: a TOML file, or the name of one that ships. InputError when there is neither."""
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        return path
    shipped = fixture_path(f"scenarios/{name}.toml")
    if not shipped.is_file():
        known = shipped_scenarios()
        like = did_you_mean(name, known)
        raise InputError(f"no scenario {name!r}{like}: give a .toml file or one of {', '.join(known)}")
    return shipped


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario file. Raises InputError that names the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
        data: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"scenario {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"scenario {path}: {error}") from error
    try:
        scenario = msgspec.convert(data, Scenario)
    except msgspec.ValidationError as error:
        raise InputError(f"scenario {path}: {validation_text(error, text, Scenario)}") from error
    for where, check in _checks(data, scenario):
        try:
            check()
        except InputError as error:
            # A refusal of a key says so in front: "machine.stuck_cpus: ...".
            named = tuple(str(error).split(":")[0].split(" ")[0].split("."))
            key = named if not where and len(named) > 1 else where
            raise InputError(f"scenario {path}: {at_line(text, key, error)}") from error
    return scenario


def _checks(
    data: dict[str, Any], scenario: Scenario
) -> Iterator[tuple[tuple[str | int, ...], Callable[[], object]]]:
    """What the form alone does not say, with the path of the key that it is about, () where the words name it."""
    machine, kernel = scenario.machine, scenario.kernel
    yield (), partial(_check_linux, data, scenario)
    yield ("seed",), partial(_check_seed, scenario.seed)
    yield ("kernel", "era"), partial(KernelConfig, kernel.era)
    yield ("kernel", "protection"), partial(KernelConfig, protection=kernel.protection)
    for name, value in kernel.config.items():
        yield ("kernel", "config", name), partial(check_option, name, value)
    yield ("kernel", "config"), partial(KernelConfig, options=kernel.config)
    yield ("machine", "cpus"), partial(check_numbers, 1 if machine.cpus is None else machine.cpus, 2)
    yield ("machine", "gic"), partial(check_numbers, 1, 2 if machine.gic is None else machine.gic)
    yield ("machine", "ram"), partial(_check_size, "machine.ram", machine.ram)
    yield ("load", "initrd_size"), partial(_check_size, "load.initrd_size", scenario.load.initrd_size)
    for number, table in enumerate(scenario.fault):
        yield ("fault", number), table.fault


_LARGEST_SEED = (1 << 64) - 1  # what a device tree's seed for a real kernel is made of


def _check_seed(seed: int) -> None:
    if (
        not 0 <= seed <= _LARGEST_SEED
    ):  # Python's generators make no difference between a number and its negative
        raise InputError(f"seed: a number from 0 to {_LARGEST_SEED:#x}, not {seed}")


def _check_size(key: str, size: str | int | None) -> None:
    try:
        if size is not None:
            parse_size(size)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


# What means something to a real first kernel; all else is the model's.
_LINUX_KEYS = {
    "machine": ("ram", "cpus", "gic", "stuck_cpus"),
    "kernel": ("linux", "cmdline", "purgatory"),
    "load": ("kernel", "initrd", "append", "syscall", "capture"),
    "crash": (),
    "campaign": (),
}


def _check_linux(data: dict[str, Any], scenario: Scenario) -> None:
    """InputError for keys that make no sense with a real first kernel, or only with one."""
    if scenario.kernel.linux is None:
        if scenario.machine.stuck_cpus:
            raise InputError(
                "machine.stuck_cpus needs a real first kernel (kernel.linux): only its CPUs can be stuck"
            )
        return
    for table, known in _LINUX_KEYS.items():
        for key in data.get(table, {}):
            if key not in known:
                raise InputError(
                    f"{table}.{key} means nothing where the first kernel is a real one (kernel.linux)"
                )
    given = {
        "kernel.purgatory": (data["kernel"].get("purgatory", "kexec-tools"), ("kexec-tools", "none")),
        "load.syscall": (data.get("load", {}).get("syscall", "kexec_load"), ("kexec_load",)),
        "load.capture": (data.get("load", {}).get("capture", "linux"), ("linux",)),
    }
    for key, (value, possible) in given.items():
        if value not in possible:
            words = " or ".join(possible)
            raise InputError(f"{key} is {words} where the first kernel is a real one, not {value!r}")
    if scenario.load.initrd == "none":
        raise InputError("load.initrd: a real capture kernel needs an initrd that takes the dump")
    cmdline = scenario.kernel.cmdline or ""
    if any(word == "quiet" or word.startswith("loglevel=") for word in cmdline.split()):
        raise InputError(
            "kernel.cmdline: the first kernel must say on its console that it is left: no quiet, no loglevel="
        )
    if any(table.when is When.AFTER_CHECK for table in scenario.fault):
        raise InputError("a fault after-check needs the model: a real purgatory's jump is not stopped at")
