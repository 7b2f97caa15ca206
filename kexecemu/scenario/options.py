"""THE table of options: what decides a load, each option once, with its name, type, default, words and help.

The fields of Setup are the table. Made from it are the tables of a scenario file and their JSON Schema
(kexecemu.scenario.schema), the options of the command line with their completion (kexecemu.commands.options), the words
of a line that has a crash again, and the documentation. A name is the same everywhere: the field rng_ready is the key
rng_ready in [kernel] of a scenario, and --rng-ready.

A new option is a field of Setup, and of kexecemu.scenario.given.SetupChanges for type checkers.
"""

# ruff: noqa: RUF009 -- what is called in Setup gives its fields
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, get_type_hints

from kexecemu.data import PURGATORIES
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era, Protection, Way
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.kernel.load.dm_crypt import KEYS_MAX
from kexecemu.scenario.option import Option
from kexecemu.shown import shown

__all__ = ["MODEL_ALONE", "OPTIONS", "Setup", "check_first", "check_keys", "check_modules", "check_way"]
__all__ += ["given_options"]


def _option(table: str, default: Any, help: str, metavar: str = "", **more: Any) -> Any:
    """The field of an option: where its table in a scenario file is, its default, and what else is known of it."""
    option = {"option": Option(table, help, metavar, **more)}
    if callable(default):
        return field(default_factory=default, metadata=option)
    return field(default=default, metadata=option)


_machine, _kernel, _load = partial(_option, "machine"), partial(_option, "kernel"), partial(_option, "load")
_CONFIG = {name: {"type": "string", "default": value} for name, value in KNOWN_OPTIONS.items()}


@shown()
@dataclass(frozen=True)
class Setup:
    """Everything that decides a load: the options, as `kexecemu crash --help` explains them.

    Paths may be strings; None is what holds where nothing is given. purgatory may also be True, for the one that ships,
    and False. Raises InputError for values that are none, and for those that mean nothing to the first kernel.
    """

    ram: str | int | None = _machine(
        None,
        'RAM, in bytes or as "1G". With dtb: what the tree leaves to firmware to fill in.',
        "SIZE",
        otherwise="1G",
    )
    cpus: int | None = _machine(
        None, "Number of CPUs. With dtb: as many as it has.", "N", otherwise=1, schema={"minimum": 1}
    )
    gic: int | None = _machine(
        None,
        "Version of the interrupt controller.",
        "2|3",
        without="2 for up to 8 CPUs, else 3; with dtb, the one that it has",
        schema={"enum": [2, 3]},
    )
    bbm: int = _machine(
        0,
        "The CPUs' level of FEAT_BBM: kernels from 6.18 on split blocks live at 2 (CPUs of their list), from 7.3 on "
        "also at 3; the board's Cortex-A57 has none.",
        "0-3",
        only="model",
        schema={"minimum": 0, "maximum": 3},
    )
    dtb: Path | None = _machine(
        None,
        "A device tree blob that describes another board.",
        "FILE",
        without="the board's own",
        only="model",
    )
    efi_map: Path | None = _machine(
        None,
        "The boot log of a machine that UEFI starts, with the memory map that efi=debug prints; with its dtb, which is "
        "/sys/firmware/fdt.",
        "FILE",
        without="memory is what the device tree says",
        only="model",
    )
    iomem: Path | None = _machine(
        None,
        "/proc/iomem, as root reads it, of a kernel of this era that runs on the machine of dtb: memory and the place "
        "of the kernel are what it says, and for the tree's own command line the crash region.",
        "FILE",
        without="what the boot makes of the machine",
        only="model",
    )
    stuck_cpus: tuple[int, ...] = _machine(
        (),
        "CPUs that cannot be stopped: they hear no interrupt once the first kernel crashes.",
        "N,...",
    )
    era: str = _kernel(
        "6.4",
        "The stretch of history whose rules hold, by a release (kexecemu list eras).",
        "RELEASE",
        only="model",
        axis=True,
        schema={"enum": [one.value for one in Era]},
    )
    cmdline: str | None = _kernel(
        None,
        "The first kernel's command line, with crashkernel=. With dtb: the one in the tree.",
        "TEXT",
        otherwise="crashkernel=256M",
    )
    protection: str | None = _kernel(
        None,
        "What keeps stray stores off the loaded image: nothing (none), its PTEs invalid (pte), its PTEs read-only "
        "(readonly), or its PTEs invalid where blocks are split live, so that only those around it are (bbml2).",
        "WAY",
        without="what the era does by itself",
        only="model",
        axis=True,
        schema={"enum": [one.value for one in Protection]},
    )
    purgatory: bool | str | Path | None = _kernel(
        "default",
        '"default" is the one that ships, "core" the same without its options, "none" is none, anything else the '
        'path of an object file. With a real Linux: "kexec-tools", or "none" for no checks.',
        "FILE",
        names=(*PURGATORIES, "none", "kexec-tools"),
        real=("kexec-tools", "none"),
        axis=True,
        schema={"examples": [*PURGATORIES, "none"]},
    )
    config: Mapping[str, str] = _kernel(
        dict,
        "Kconfig options that change what the kernel does: y, n, a number or a word (kexecemu list configs).",
        "NAME=VALUE",
        complete="configs",
        only="model",
        schema={"properties": _CONFIG},
    )
    rng_ready: bool = _kernel(
        False,
        "Random numbers are ready at the load: the crash kernel gets seeds by its device tree.",
        only="model",
    )
    linux: Path | None = _kernel(
        None,
        "A real Linux as the first kernel, which loads by kexec-tools: an Image, or fetched:NAME.",
        "FILE",
        without="the model",
        complete="fetched",
        schema={"examples": ["fetched:kernel"]},
    )
    kernel: Path | None = _load(
        None,
        "The crash kernel: an arm64 Image, or fetched:NAME.",
        "FILE",
        without="the capture stub that ships; Debian's where capture is linux",
        complete="fetched",
    )
    initrd: Path | None = _load(
        None,
        'Its initrd; "none" is no initrd.',
        "FILE",
        without="a small one; one that copies the dump to a disk where capture is linux",
        names=("none",),
    )
    modules: Path | None = _load(
        None,
        "The crash kernel's modules, for the initrd that copies the dump: its lib/modules/RELEASE, or what has that "
        "below it.",
        "DIR",
        without="those of a kernel that was fetched",
    )
    initrd_size: str | int | None = _load(
        None,
        'Make the initrd this large, in bytes or as "16M", by a second archive.',
        "SIZE",
        without="as it is",
        only="model",
    )
    append: str | None = _load(
        None,
        "The crash kernel's command line. With dtb and a real Linux, earlycon and cpuidle.off come first.",
        "TEXT",
        otherwise="console=ttyAMA0 nr_cpus=1 reset_devices irqpoll",
    )
    dm_crypt_keys: int = _load(
        0,
        "Number of dm-crypt's keys for the capture kernel, in a segment at a random place (kexec_file_load, from 7.1).",
        "N",
        only="model",
        schema={"minimum": 0, "maximum": KEYS_MAX},
    )
    syscall: str | None = _load(
        None,
        "Who prepares the image: the kernel, or (kexec_load) kexec-tools, which brings its own purgatory.",
        "CALL",
        without="kexec_file_load, and with a real first kernel kexec_load",
        words=("kexec_file_load", "kexec_load"),
        axis=True,
    )
    way: str = _load(
        "purgatory",
        "Who checks the image before it starts: a purgatory with a map of its own, one that is entered with the MMU on "
        "over a map made at the load (purgatory-trans-pgd), or the dying kernel (machine-kexec).",
        "WAY",
        words=tuple(one.value for one in Way),
        only="model",
        axis=True,
    )
    capture: str = _load(
        "stub",
        "What is followed: the stub, which goes through the dump, or (linux) a real capture kernel to its end.",
        "KIND",
        words=("stub", "linux"),
        real=("linux",),
        axis=True,
    )
    seed: int = _option("", 0, "What all randomness comes from.", "N")

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.checked(getattr(self, name)))
        check_first(given_options(self))

    @property
    def call(self) -> str:
        """The system call that loads: most real kernels have no other than kexec_load."""
        return self.syscall or ("kexec_file_load" if self.linux is None else "kexec_load")

    def value(self, name: str) -> Any:
        """The value that holds where no device tree says another: what was given, or what then holds."""
        value = getattr(self, name)
        return OPTIONS[name].otherwise if value is None else value


def _options() -> dict[str, Option]:
    kinds, found = get_type_hints(Setup), {}
    for one in fields(Setup):
        own = {
            "name": one.name,
            "kind": kinds[one.name],
            "default": {} if one.default is MISSING else one.default,
        }
        found[one.name] = replace(one.metadata["option"], **own)
    return found


OPTIONS: Final[Mapping[str, Option]] = _options()
"""The table by name, in the order in which options are told."""


def given_options(setup: Setup) -> dict[str, Any]:
    """The options whose values are not the defaults."""
    values = {name: getattr(setup, name) for name in OPTIONS}
    return {name: value for name, value in values.items() if value != OPTIONS[name].default}


def check_keys(keys: int, syscall: str | None) -> None:
    """InputError for keys that the system call has no place for."""
    if keys and syscall == "kexec_load":
        raise InputError("load.dm_crypt_keys: kexec_load takes what user space brings, and knows no keys")


def check_modules(modules: Path | None, initrd: Path | None, linux: bool) -> None:
    """InputError for modules that nothing takes; linux: the capture kernel is a real one."""
    if modules is not None and initrd is not None:
        raise InputError(
            "load.modules goes into the initrd that copies the dump, and another initrd is given"
        )
    if modules is not None and not linux:
        raise InputError(
            "load.modules means nothing where the capture kernel is the stub (load.capture is linux)"
        )


def check_way(way: str, syscall: str | None) -> None:
    """InputError for a way of checking that means nothing to the system call."""
    if way != Way.PURGATORY.value and syscall == "kexec_load":
        raise InputError(f"load.way {way}: kexec_load brings a purgatory of user space's own")


MODEL_ALONE: Final = "means nothing where the first kernel is a real one (kernel.linux)"


def check_first(given: Mapping[str, Any]) -> None:
    """InputError for an option, by its name with the value given, that means nothing to the first kernel."""
    real = given.get("linux") is not None
    for name, value in given.items():
        option = OPTIONS[name]
        if not real:
            continue
        if option.only == "model":
            raise InputError(f"{option.key} {MODEL_ALONE}")
        if option.real and value not in option.real:
            words = " or ".join(option.real)
            raise InputError(f"{option.key} is {words} where the first kernel is a real one, not {value!r}")
    if real and given.get("syscall") == "kexec_file_load" and given.get("purgatory") == "kexec-tools":
        raise InputError(
            "kernel.purgatory: kexec-tools brings its own to kexec_load, and none to kexec_file_load"
        )
