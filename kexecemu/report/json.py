"""A run or a load as the one JSON object that --json prints; programs rely on its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from kexecemu.campaign.version import own_version
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.verdict import VerdictFlags, describe_damage
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import Injection

__all__ = [
    "SCHEMA",
    "account_object",
    "dump_object",
    "image_object",
    "linux_object",
    "load_object",
    "result_object",
    "run_object",
]

SCHEMA = 1
"""The form of these objects. It changes when a key goes or means something else, not when one is added."""


def _range(area: PhysRange | None) -> dict[str, int] | None:
    return {"start": area.start, "end": area.last} if area is not None else None


class Reserved(Protocol):
    """A kernel with crash memory, the model or a real one."""

    @property
    def crashk_res(self) -> PhysRange | None:
        """Where the crash kernel's memory is, physical."""

    @property
    def crashk_low_res(self) -> PhysRange | None:
        """The low part of it, if there are two."""


def image_object(kernel: Reserved, image: Kimage) -> dict[str, Any]:
    """What was reserved and loaded: the keys that all accounts have."""
    return {
        "crashkernel": _range(kernel.crashk_res),
        "crashkernel_low": _range(kernel.crashk_low_res),
        "segments": [
            {"name": one.name, "mem": one.mem, "memsz": one.memsz, "bufsz": one.bufsz}
            for one in image.segments
        ],
        "entry": image.start,
        "digest": image.digest.hex() if image.digest else None,
    }


def _made_by(kernel: Kernel | None) -> dict[str, Any]:
    """Which kexecemu it was, and as what it played the first kernel; None of that where that one was a real Linux."""
    return {
        "era": kernel.config.release.value if kernel is not None else None,
        "protection": kernel.config.way.value if kernel is not None else None,
        "version": own_version(),
        "schema": SCHEMA,
    }


def load_object(kernel: Kernel, image: Kimage, seed: int) -> dict[str, Any]:
    """What `kexecemu load --json` prints. Addresses are physical, as integers; ends are inclusive."""
    return {
        **image_object(kernel, image),
        "console": kernel.board.uart.text,
        "instructions": kernel.board.instructions,
        "seed": seed,
        "vmlinux": str(kernel.guest.vmlinux.path),
        **_made_by(kernel),
    }


def _injection(one: Injection) -> dict[str, Any]:
    """A stray write: what was asked for, and what memory held at phys before and right after it, as hex digits."""
    return {
        "at": one.fault.at,
        "by": one.fault.by.value,
        "when": one.fault.when_word,
        "width": one.fault.width,
        "phys": one.phys,
        "length": one.fault.length,
        "before": one.before.hex(),
        "after": one.after.hex(),
        "changed": one.changed,
        "exception": one.exception.description if one.exception is not None else None,
    }


def account_object(result: Result, scenario: str | None) -> dict[str, Any]:
    """What the account for people has as well: how it was named, what happened in order, why it ended as it did."""
    end = result.end
    return {
        "reason": end.reason,
        "name": result.name,
        "scenario": scenario,
        **_made_by(result.model),
        "injections": [_injection(one) for one in end.injections],
        "timeline": [event.as_object() for event in end.timeline],
    }


def run_object(result: Result, vmcore: Path | None, vmlinux: Path | None) -> dict[str, Any]:
    """The keys that every run has, up to what a purgatory of ours found. Paths are None for what there is not."""
    end = result.end
    return {
        "outcome": end.outcome.value,
        "as_expected": result.as_expected,
        **image_object(result.kernel, result.image),
        "damage": [
            {"segment": one.segment, "offset": one.offset, "length": one.length} for one in end.damage
        ],
        "console": end.console,
        "instructions": end.instructions,
        "seed": result.seed,
        "vmlinux": str(vmlinux) if vmlinux is not None else None,
        "vmcore": str(vmcore) if vmcore is not None else None,
    }


def dump_object(end: End) -> dict[str, str]:
    """The second answer, which every run has as well."""
    return {"dump": end.dump.value, "dump_reason": end.dump_reason}


def result_object(result: Result, vmcore: Path | None, scenario: str | None = None) -> dict[str, Any]:
    """What `kexecemu run --json` and `kexecemu crash --json` print. scenario is how it was named."""
    verdict, model = result.end.verdict, result.model
    return {
        **run_object(result, vmcore, model.guest.vmlinux.path if model is not None else None),
        "verdict": None
        if verdict is None
        else {
            "state": verdict.state.name.lower(),
            "bytes_hashed": verdict.bytes_hashed,
            "expected": verdict.expected.hex(),
            "found": verdict.found.hex(),
            "flags": [flag.name.lower() for flag in VerdictFlags if flag in verdict.flags and flag.name],
            "damaged": describe_damage(verdict, result.image),
            "damaged_pages": verdict.damaged_pages,
            "damage": [{"start": one.start, "end": one.last} for one in verdict.damage if one.size],
        },
        **dump_object(result.end),
        "mismatches": result.mismatches,
        "linux": linux_object(result.end),
        **_first_linux(result),
        **account_object(result, scenario),
    }


def _first_linux(result: Result) -> dict[str, Any]:
    """What a real first kernel calls itself."""
    return {"first_linux": result.kernel.release} if isinstance(result.kernel, FirstLinux) else {}


def linux_object(end: End) -> dict[str, Any] | None:
    """The account of a real capture kernel, None where there was none.

    The digest of a load is of what was read; same says whether memory was so.
    """
    run = end.capture.linux if end.capture is not None else None
    if run is None:
        return None
    return {
        "end": run.end.value,
        "where": run.where,
        "release": run.release,
        "instructions": run.instructions,
        "vmcore_bytes": run.vmcore.size if run.vmcore is not None else None,
        "loads": [
            {
                "start": load.phys.start,
                "end": load.phys.last,
                "sha256": load.sha256,
                "same": load in run.crashed,
            }
            for load in run.read
        ],
    }
