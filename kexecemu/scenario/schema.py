"""The form of a scenario file: TOML, read strictly, so that a misspelt key is refused and not ignored.

What each key means stands at the key, or with the options (kexecemu.scenario.options): `kexecemu schema` and the
documentation are made from it.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictFlags, VerdictState
from kexecemu.scenario.options import OPTIONS
from kexecemu.shown import shown
from kexecemu.stray.fault import NUMBERED, By, Fault, When, parse_hex, parse_when

__all__ = ["Expect", "Matrix", "Scenario"]

if TYPE_CHECKING:
    # To a type checker they are text; msgspec looks at the values.
    FlagName: TypeAlias = str
    StateName: TypeAlias = str
else:
    FlagName = Literal[tuple(flag.name.lower() for flag in VerdictFlags)]
    StateName = Literal[tuple(state.name.lower() for state in VerdictState)]

_SEGMENTS = ["kernel", "elfcorehdr", "initrd", "dtb", "purgatory"]


def _key(text: str, /, **more: Any) -> msgspec.Meta:
    """What a key means, and more of JSON Schema; otherwise is what holds without the key, where None stands for it."""
    return msgspec.Meta(description=text, extra_json_schema=more or None)


@shown()
class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table in which every key must be known."""


class _Options(_Table, frozen=True):
    """A table of options, whose keys are those of the table of options."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def _options_of(table: str) -> type[_Options]:
    """A class with the keys of a table that are options."""
    keys = []
    for one in OPTIONS.values():
        if one.table == table:
            otherwise = {} if one.otherwise is None else {"otherwise": one.otherwise}
            default = list(one.default) if isinstance(one.default, tuple) else one.default
            about = _key(one.description, **one.schema, **otherwise)
            keys.append((one.name, Annotated[one.form, about], default))
    return msgspec.defstruct("_Keys", keys, bases=(_Options,), frozen=True)  # type: ignore[return-value]


def _with_axes(base: type[_Table], *, several: bool) -> type[_Table]:
    """A class with a key for each option that a matrix may have: for several values, or for one."""
    keys: list[Any] = []
    for one in OPTIONS.values():
        if one.axis:
            enum = {"enum": one.schema["enum"]} if "enum" in one.schema else None
            word = one.form if one.words else Annotated[str, msgspec.Meta(extra_json_schema=enum)]
            form = list[word] if several else word | None  # type: ignore[valid-type]
            about = f"Cells with this {one.name}. Without it: with any."
            about = f"In place of {one.key}." if several else about
            keys.append((one.name, Annotated[form, _key(about)], [] if several else None))
    return msgspec.defstruct("_Axes", keys, bases=(base,), frozen=True)  # type: ignore[return-value]


if TYPE_CHECKING:
    _MachineKeys: TypeAlias = _Options
    _KernelKeys: TypeAlias = _Options
    _LoadKeys: TypeAlias = _Options
    _Axes: TypeAlias = _Table
else:
    _MachineKeys, _KernelKeys, _LoadKeys = map(_options_of, ("machine", "kernel", "load"))
    _Axes = _with_axes(_Table, several=True)


class Machine(_MachineKeys, frozen=True):
    """The board. Paths start at the scenario's folder."""


class KernelTable(_KernelKeys, frozen=True):
    """The first kernel, the one that crashes."""


class Load(_LoadKeys, frozen=True):
    """What is loaded for the crash, and by which system call. Paths start at the scenario's folder."""


_WHEN = "^(" + "|".join(f"{one}-[0-9]+" if one in NUMBERED else one for one in When) + ")$"


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
    by: Annotated[
        By,
        _key(
            "Who writes: a CPU through the page tables (cpu), through another mapping of the page (alias), one that "
            "does not stop at the crash (late-cpu), or a bus master behind them all (dma)."
        ),
    ] = By.CPU
    write: Annotated[
        str | None, _key("The bytes, as hex digits. Give this or flip.", pattern=r"^(0[xX])?[0-9a-fA-F_ ]+$")
    ] = None
    flip: Annotated[
        int | None,
        _key("A mask of the bits to invert in one byte. Give this or write.", minimum=1, maximum=255),
    ] = None
    when: Annotated[
        str,
        _key(
            "The moment. hashing-128 is halfway through the purgatory's run (in 256ths), capture-1000 so many "
            "instructions into the capture kernel. From the jump on the CPUs of the first kernel have stopped: dma and "
            "late-cpu still write.",
            pattern=_WHEN,
        ),
    ] = "after-load"
    width: Annotated[int, _key("Bytes that a CPU writes by one store.", enum=[1, 2, 4, 8])] = 1

    model: Annotated[
        str | None, _key("A fault model that says what is written, by its name in `kexecemu list models`.")
    ] = None
    variant: Annotated[int, _key("Which of the model's variants.", minimum=0)] = 0

    def fault(self) -> Fault:
        """The fault that the table describes; InputError when it is none."""
        data = parse_hex(self.write, f"fault at {self.at}: write") if self.write is not None else None
        when, step = parse_when(self.when, f"fault at {self.at}: when")
        return Fault(self.at, data, self.flip, self.by, when, self.width, step, self.model, self.variant)


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


if TYPE_CHECKING:
    _Cells: TypeAlias = Expect
else:
    _Cells = _with_axes(Expect, several=False)


class Except(_Cells, frozen=True):
    """What the cells that it names are expected to end in, in place of all of [expect]; the last that fits counts."""


class Matrix(_Axes, frozen=True):
    """One scenario over several kernels: a crash, and a test, for each combination of the values."""

    except_: Annotated[
        list[Except],
        _key("Cells that end otherwise than [expect] says: what they are, and what is expected."),
    ] = msgspec.field(name="except", default_factory=list)


class Scenario(_Table, frozen=True):
    """A scenario of kexecemu: a kernel that loads a crash image, stray writes, a crash, and how it must end."""

    schema: Annotated[Literal[1], _key("The version of this form.")]
    name: Annotated[str, _key("What happens, in a sentence.")]
    seed: Annotated[int, _key(OPTIONS["seed"].description)] = 0
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
