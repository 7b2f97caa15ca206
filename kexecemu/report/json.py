"""A run or a load as the one JSON object that --json prints; programs rely on its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kexecemu.capture.verdict import VerdictFlags, describe_damage
from kexecemu.kernel.kimage import Kimage
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.lab import End, Kernel
from kexecemu.scenario.runner import Result

if TYPE_CHECKING:
    from kexecemu.scenario.first_linux_run import LinuxResult

__all__ = [
    "dump_object",
    "image_object",
    "linux_object",
    "load_object",
    "result_object",
    "run_object",
    "to_text",
]


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


def load_object(kernel: Kernel, image: Kimage, seed: int) -> dict[str, Any]:
    """What `kexecemu load --json` prints. Addresses are physical, as integers; ends are inclusive."""
    return {
        **image_object(kernel, image),
        "console": kernel.board.uart.text,
        "instructions": kernel.board.instructions,
        "seed": seed,
        "vmlinux": str(kernel.guest.vmlinux.path),
    }


def run_object(result: Result | LinuxResult, vmcore: Path | None, vmlinux: Path | None) -> dict[str, Any]:
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


def result_object(result: Result, vmcore: Path | None) -> dict[str, Any]:
    """What `kexecemu run --json` and `kexecemu crash --json` print."""
    verdict = result.end.verdict
    return {
        **run_object(result, vmcore, result.kernel.guest.vmlinux.path),
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
    }


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


def to_text(value: dict[str, Any]) -> str:
    """The object as indented JSON with a final newline."""
    return json.dumps(value, indent=2) + "\n"
