"""The form of a scenario file: TOML, read strictly, so that a misspelt key is refused and not ignored.

What each key means stands at the key: `kexecemu schema` and the documentation are made from it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from kexecemu.arguments import instance
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictFlags, VerdictState
from kexecemu.data import fixture_path, shipped_scenarios
from kexecemu.errors import InputError
from kexecemu.files import read_file
from kexecemu.kernel.config import KNOWN_OPTIONS, Era, Protection
from kexecemu.scenario.toml_lines import at_line, validation_text
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, When, parse_hex
from kexecemu.suggest import did_you_mean

__all__ = ["Expect", "Matrix", "Scenario", "find_scenario", "read_scenario", "shipped_scenarios"]

if TYPE_CHECKING:
    # To a type checker they are text; msgspec looks at the values.
    FlagName: TypeAlias = str
    StateName: TypeAlias = str
else:
    FlagName = Literal[tuple(flag.name.lower() for flag in VerdictFlags)]
    StateName = Literal[tuple(state.name.lower() for state in VerdictState)]

# KernelConfig refuses other words, in its own.
EraName = Annotated[str, msgspec.Meta(extra_json_schema={"enum": [era.value for era in Era]})]
ProtectionName = Annotated[str, msgspec.Meta(extra_json_schema={"enum": [way.value for way in Protection]})]
SyscallName = Literal["kexec_file_load", "kexec_load"]
CaptureName = Literal["stub", "linux"]
_SEGMENTS = ["kernel", "elfcorehdr", "initrd", "dtb", "purgatory"]


def _key(text: str, /, **more: Any) -> msgspec.Meta:
    """What a key means, and more of JSON Schema; otherwise is what holds without the key, where None stands for it."""
    return msgspec.Meta(description=text, extra_json_schema=more or None)


@shown()
class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table in which every key must be known."""


class Machine(_Table, frozen=True):
    """The board."""

    ram: Annotated[
        str | int | None,
        _key('RAM, in bytes or as "1G". Not together with dtb, which says it.', otherwise="1G"),
    ] = None
    cpus: Annotated[
        int | None, _key("Number of CPUs. With dtb: as many as it has.", otherwise=1, minimum=1)
    ] = None
    gic: Annotated[
        int | None,
        _key("Version of the interrupt controller. With dtb: the one that it has.", otherwise=2, enum=[2, 3]),
    ] = None
    dtb: Annotated[
        str | None,
        _key(
            "A device tree blob that describes another board; a path from the scenario's folder. "
            "Without it: the board's own tree."
        ),
    ] = None
    stuck_cpus: Annotated[
        list[int],
        _key(
            "Numbers of CPUs that hear no interrupt once a real Linux crashes, so that it cannot stop them. "
            "Only with kernel.linux."
        ),
    ] = []


class KernelTable(_Table, frozen=True):
    """The first kernel, the one that crashes."""

    era: Annotated[
        EraName, _key("The kernel whose rules hold, by the release that stands for a stretch of history.")
    ] = "6.4"
    cmdline: Annotated[
        str | None,
        _key(
            "Its command line, with crashkernel=. With machine.dtb: the one in the tree.",
            otherwise="crashkernel=256M",
        ),
    ] = None
    protection: Annotated[
        ProtectionName | None,
        _key(
            "What keeps stray stores off the loaded image: nothing, its PTEs invalid (pte), read-only, or read-only "
            "with blocks split around the region alone (bbml2). Without it: what the era does by itself."
        ),
    ] = None
    purgatory: Annotated[
        str | bool,
        _key(
            '"default" is the one that ships, "none" is none, anything else the path of an object file. '
            'Where the first kernel is a real one: "kexec-tools", or "none" for no checks.',
            examples=["default", "none"],
        ),
    ] = "default"
    config: Annotated[
        dict[str, str],
        _key(
            "Kconfig options that change what the kernel does: y, n, a number or a word, each as a string.",
            properties={name: {"type": "string", "default": value} for name, value in KNOWN_OPTIONS.items()},
        ),
    ] = {}
    rng_ready: Annotated[
        bool,
        _key(
            "The random number generator is ready at the load: the crash kernel gets seeds by its device tree."
        ),
    ] = False
    linux: Annotated[
        str | None,
        _key(
            "A real Linux as the first kernel, which loads by kexec-tools: the path of an Image, or fetched:NAME. "
            "Without it: the model.",
            examples=["fetched:kernel"],
        ),
    ] = None


class Load(_Table, frozen=True):
    """What is loaded for the crash, and by which system call. Paths start at the scenario's folder."""

    kernel: Annotated[
        str | None,
        _key(
            "The crash kernel, an arm64 Image: a path, or fetched:NAME for one that was fetched. "
            "Without it: the capture stub that ships; Debian's where capture is linux."
        ),
    ] = None
    initrd: Annotated[
        str | None,
        _key(
            'Its initrd; "none" is no initrd. Without it: a small one; one that copies the dump to a disk where '
            "capture is linux."
        ),
    ] = None
    initrd_size: Annotated[
        str | int | None,
        _key('Make the initrd this large, in bytes or as "16M", by a second archive. Without it: as it is.'),
    ] = None
    append: Annotated[str, _key("The crash kernel's command line.")] = (
        "console=ttyAMA0 nr_cpus=1 reset_devices irqpoll"
    )
    syscall: Annotated[
        SyscallName,
        _key(
            "Who prepares the image: the kernel, or (kexec_load) kexec-tools, which brings its own purgatory."
        ),
    ] = "kexec_file_load"
    capture: Annotated[
        CaptureName,
        _key("What is followed: the stub, which goes through the dump, or a real capture kernel to its end."),
    ] = "stub"


class FaultTable(_Table, frozen=True):
    """One stray write: either bytes to write, or bits to flip."""

    at: Annotated[
        str,
        _key(
            "Where: a segment, a symbol of the purgatory, a part of the crash region, or a physical address; + an "
            "offset.",
            examples=[
                "initrd+0x1000",
                "purgatory:purgatory_sha256_digest+4",
                "crashkernel-free",
                "0x7ebd3000",
            ],
        ),
    ]
    by: Annotated[By, _key("Who writes: a CPU through the page tables, or DMA behind them.")] = By.CPU
    write: Annotated[
        str | None,
        _key("The bytes, as hex digits. Give this or flip.", pattern=r"^(0[xX])?[0-9a-fA-F_ ]+$"),
    ] = None
    flip: Annotated[
        int | None,
        _key("A mask of the bits to invert in one byte. Give this or write.", minimum=1, maximum=255),
    ] = None
    when: Annotated[
        When, _key("The moment. After the check, at the purgatory's jump, only DMA still writes.")
    ] = When.AFTER_LOAD
    width: Annotated[int, _key("Bytes that a CPU writes by one store.", enum=[1, 2, 4, 8])] = 1

    def fault(self) -> Fault:
        """The fault that the table describes; InputError when it is none."""
        data = parse_hex(self.write, f"fault at {self.at}: write") if self.write is not None else None
        return Fault(self.at, data, self.flip, self.by, self.when, self.width)


class Crash(_Table, frozen=True):
    """The crash."""

    message: Annotated[str, _key("The panic message.")] = "sysrq triggered crash"


class CampaignTable(_Table, frozen=True):
    """Which faults `kexecemu campaign` draws from: each place, model, writer and moment with each."""

    where: Annotated[
        tuple[str, ...],
        _key(
            "Where: all segments, one by its name, the unused part of the crash region, the edges of segments, or the "
            "whole region."
        ),
    ] = ("segments",)
    models: Annotated[tuple[str, ...], _key("What is written: names of fault models.")] = ("bit-flip",)
    by: Annotated[tuple[str, ...], _key("Who writes.")] = ("cpu",)
    moments: Annotated[
        tuple[str, ...],
        _key(
            "When. hashing-128 is halfway through what the purgatory hashes (in 256ths), hashing 16 steps of it, "
            "capture-1000 so many instructions into the capture kernel."
        ),
    ] = ("after-load",)
    sampling: Annotated[
        Literal["uniform", "stratified"],
        _key("How faults are drawn: each with the same chance, or the same number from each kind of place."),
    ] = "uniform"


class Expect(_Table, frozen=True):
    """How the crash must end: a test fails and `kexecemu run` exits with 1 where it does not."""

    outcome: Annotated[Outcome, _key("The outcome.")]
    segment: Annotated[
        str | None, _key("A segment that must be damaged. Without it: any or none.", examples=_SEGMENTS)
    ] = None
    console: Annotated[list[str], _key("Pieces of text that the console must hold.")] = []
    segments: Annotated[
        list[str], _key("Segments that must be damaged, all of them.", examples=[_SEGMENTS])
    ] = []
    console_absent: Annotated[list[str], _key("Pieces of text that the console must not hold.")] = []
    verdict: Annotated[
        list[FlagName], _key("Flags that must be set in the record that the purgatory leaves in memory.")
    ] = []
    verdict_state: Annotated[
        StateName | None,
        _key("How far the purgatory's check must have come, by its record. Without it: anywhere."),
    ] = None
    dump: Annotated[
        Dump | None,
        _key(
            "What must have become of the dump: taken and equal to the crashed memory (true), taken and not equal "
            "(wrong), lost or refused (none). Without it: anything."
        ),
    ] = None


class Except(Expect, frozen=True):
    """What the cells that it names are expected to end in, in place of all of [expect]; the last that fits counts."""

    era: Annotated[EraName | None, _key("Cells with this era. Without it: with any.")] = None
    protection: Annotated[
        ProtectionName | None, _key("Cells with this protection. Without it: with any.")
    ] = None
    purgatory: Annotated[str | None, _key("Cells with this purgatory. Without it: with any.")] = None
    syscall: Annotated[SyscallName | None, _key("Cells with this system call. Without it: with any.")] = None
    capture: Annotated[CaptureName | None, _key("Cells with this capture kernel. Without it: with any.")] = (
        None
    )


class Matrix(_Table, frozen=True):
    """One scenario over several kernels: a crash, and a test, for each combination of the values."""

    era: Annotated[list[EraName], _key("In place of kernel.era.")] = []
    protection: Annotated[list[ProtectionName], _key("In place of kernel.protection.")] = []
    purgatory: Annotated[list[str], _key("In place of kernel.purgatory.")] = []
    syscall: Annotated[list[SyscallName], _key("In place of load.syscall.")] = []
    capture: Annotated[list[CaptureName], _key("In place of load.capture.")] = []
    except_: Annotated[
        list[Except],
        _key("Cells that end otherwise than [expect] says: what they are, and what is expected."),
    ] = msgspec.field(name="except", default_factory=list)


class Scenario(_Table, frozen=True):
    """A scenario of kexecemu: a kernel that loads a crash image, stray writes, a crash, and how it must end."""

    schema: Annotated[Literal[1], _key("The version of this form.")]
    name: Annotated[str, _key("What happens, in a sentence.")]
    seed: Annotated[int, _key("What all randomness comes from.")] = 0
    machine: Annotated[Machine, _key("The board.")] = Machine()
    kernel: Annotated[KernelTable, _key("The first kernel, the one that crashes.")] = KernelTable()
    load: Annotated[Load, _key("What is loaded for the crash, and how.")] = Load()
    fault: Annotated[
        list[FaultTable], _key("Stray writes, in the order in which they happen at a moment.")
    ] = []
    crash: Annotated[Crash, _key("The crash.")] = Crash()
    campaign: Annotated[CampaignTable, _key("Which faults a campaign draws from.")] = CampaignTable()
    expect: Annotated[Expect | None, _key("How it must end. Without it: in any way.")] = None
    matrix: Annotated[Matrix | None, _key("Run it once for each combination of these. Without it: once.")] = (
        None
    )


def find_scenario(name: str | Path) -> Path:
    """The path of a scenario: a TOML file, or the name of one that ships. InputError when there is neither."""
    name = str(instance(name, (str, Path), "scenario"))
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        return path
    shipped = fixture_path(f"scenarios/{name}.toml")
    if not shipped.is_file():
        known = shipped_scenarios()
        like = did_you_mean(name, known)
        raise InputError(f"no scenario {name!r}{like}: give a .toml file or one of {', '.join(known)}")
    return shipped


def read_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario file, or one that ships, by its name. Raises InputError that names file and key."""
    from kexecemu.scenario.checks import checks_of

    path = path if isinstance(path, Path) else find_scenario(path)
    try:
        text = read_file(path).decode()
        data: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"scenario {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"scenario {path}: {error}") from error
    try:
        scenario = msgspec.convert(data, Scenario)
    except msgspec.ValidationError as error:
        raise InputError(f"scenario {path}: {validation_text(error, text, Scenario)}") from error
    for where, check in checks_of(data, scenario):
        try:
            check()
        except InputError as error:
            # A refusal of a key says so in front: "machine.stuck_cpus: ...".
            named = tuple(str(error).split(":")[0].split(" ")[0].split("."))
            key = named if not where and len(named) > 1 else where
            raise InputError(f"scenario {path}: {at_line(text, key, error)}") from error
    return scenario
