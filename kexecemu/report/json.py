"""A run or a load as the one JSON object that --json prints; programs rely on its keys."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kexecemu.campaign.version import own_version
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.verdict import Verdict, VerdictFlags, describe_damage
from kexecemu.kernel.base.config import Way
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.procfs import proc_iomem, sysfs
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import Injection

__all__ = ["SCHEMA", "load_object", "range_object", "result_object"]

SCHEMA = 1
"""The form of these objects. It changes when a key goes or means something else, not when one is added."""


def range_object(area: PhysRange | None) -> dict[str, int] | None:
    """A range with its inclusive end."""
    return {"start": area.start, "end": area.last} if area is not None else None


def _image(kernel: Kernel | FirstLinux, image: Kimage | None) -> dict[str, Any]:
    """What was reserved and loaded: the keys that all accounts have."""
    segments = image.segments if image is not None else []
    return {
        "crashkernel": range_object(kernel.crashk_res),
        "crashkernel_low": range_object(kernel.crashk_low_res),
        "segments": [
            {key: getattr(one, key) for key in ("name", "mem", "memsz", "bufsz")} for one in segments
        ],
        "entry": image.start if image is not None else None,
        "digest": image.digest.hex() if image is not None and image.digest else None,
    }


def _made_by(kernel: Kernel | None) -> dict[str, Any]:
    """Which kexecemu it was, and as what it played the first kernel; None of that where that one was a real Linux."""
    return {
        "era": kernel.config.release.value if kernel is not None else None,
        "protection": kernel.config.way.value if kernel is not None else None,
        "way": Way(kernel.config.check_way).value if kernel is not None else None,
        "version": own_version(),
        "schema": SCHEMA,
    }


def load_object(
    kernel: Kernel, image: Kimage | None, seed: int, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """What `kexecemu load --json` prints. Addresses are physical, as integers; ends are inclusive.

    image is None where nothing was loaded; warnings are about the files.
    """
    return {
        **_image(kernel, image),
        "console": kernel.board.uart.text,
        "instructions": kernel.board.instructions,
        "seed": seed,
        "vmlinux": str(kernel.guest.vmlinux.path),
        **_made_by(kernel),
        "crashkernel_cma": [range_object(area) for area in kernel.crashk_cma_ranges],
        "iomem": proc_iomem(kernel),
        "sysfs": sysfs(kernel),
        "messages": [line.partition("] ")[2] for line in kernel.board.uart.text.splitlines()],
        "vmcoreinfo": kernel.vmcoreinfo().decode(errors="backslashreplace"),
        "warnings": [*kernel.warned, *warnings],
        "config": {**kernel.config.options, "ARM64_VA_BITS": str(kernel.config.va_bits)},
    }


def _injection(one: Injection) -> dict[str, Any]:
    """A stray write: what was asked for, and what memory held at phys before and right after it, as hex digits.

    cpu is the CPU that stored, null where none did.
    """
    return {
        "at": one.fault.at,
        "by": one.fault.by.value,
        "cpu": one.cpu,
        "when": one.fault.when_word,
        "width": one.fault.width,
        "phys": one.phys,
        "length": one.fault.length,
        "before": one.before.hex(),
        "after": one.after.hex(),
        "changed": one.changed,
        "exception": one.exception.description if one.exception is not None else None,
    }


def result_object(result: Result, vmcore: Path | None, scenario: str | None = None) -> dict[str, Any]:
    """What `kexecemu run --json` and `kexecemu crash --json` print. vmcore is where the dump is, None without one.

    scenario is how it was named; first_linux is what a real first kernel calls itself.
    """
    kernel, model, end = result.kernel, result.model, result.end
    return {
        "outcome": end.outcome.value,
        "as_expected": result.as_expected,
        **_image(kernel, result.image),
        "damage": [asdict(one) for one in end.damage],
        "console": end.console,
        "instructions": end.instructions,
        "seed": result.seed,
        "vmlinux": str(model.guest.vmlinux.path) if model is not None else None,
        "vmcore": str(vmcore) if vmcore is not None else None,
        "verdict": _verdict(end.verdict, result.image) if end.verdict is not None else None,
        "dump": end.dump.value,
        "dump_reason": end.dump_reason,
        "mismatches": result.mismatches,
        "linux": _linux(end),
        **({"first_linux": kernel.release} if isinstance(kernel, FirstLinux) else {}),
        "reason": end.reason,
        "warnings": list(model.warned) if model is not None else [],
        "name": result.name,
        "scenario": scenario,
        **_made_by(model),
        "injections": [_injection(one) for one in end.injections],
        "timeline": [event.as_object() for event in end.timeline],
    }


def _verdict(verdict: Verdict, image: Kimage) -> dict[str, Any]:
    return {
        "state": verdict.state.name.lower(),
        "bytes_hashed": verdict.bytes_hashed,
        "expected": verdict.expected.hex(),
        "found": verdict.found.hex(),
        "flags": [flag.name.lower() for flag in VerdictFlags if flag in verdict.flags and flag.name],
        "damaged": describe_damage(verdict, image),
        "damaged_pages": verdict.damaged_pages,
        "damage": [range_object(one) for one in verdict.damage if one.size],
    }


def _linux(end: End) -> dict[str, Any] | None:
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
        "unshown": run.unshown,
        "vmcore_bytes": run.vmcore.size if run.vmcore is not None else None,
        "loads": [
            {**(range_object(one.phys) or {}), "sha256": one.sha256, "same": one in run.crashed}
            for one in run.read
        ],
    }
