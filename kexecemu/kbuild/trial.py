"""One crash of a first kernel of ours: what is booted, what is written astray, and what came of it.

It runs in QEMU (on_qemu.py) or on our own board (on_board.py). Both end in the same words, and in the same judgement
as the model's.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from kexecemu.crash.damage import Damage
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.purgatory_check import Reply, judge_reply
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryRun
from kexecemu.errors import InputError
from kexecemu.fetch.cache import fetched
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.formats.image import has_magic
from kexecemu.formats.kernel_file import no_image, truncated
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.fetched import fetched_programs
from kexecemu.linux.first_boot import LinuxSetup
from kexecemu.linux.initramfs import CAPTURE_CMDLINE, capture_initramfs
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import RAM_BASE
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault, Injection
from kexecemu.stray.target import area_of, resolve_by
from kexecemu.suggest import did_you_mean, there_are

__all__ = [
    "NO_PURGATORY",
    "Loaded",
    "Trial",
    "TrialEnd",
    "WhatIsWritten",
    "check_targets",
    "place_of",
    "setup_of",
    "trial_end",
]

_RAM, _CRASHKERNEL = "512M", "192M"
NO_PURGATORY = "no relocatable ELF object for arm64 with purgatory_start"
"""What is looked for in an Image. Linux' own loader does not ask an embedded object what machine it is for."""


@shown()
@dataclass(frozen=True)
class Loaded:
    """What a first kernel has loaded: RAM that holds the crash region, that region, the image, the purgatory's object.

    obj is None for a kernel without a purgatory.
    """

    ram: Ram
    region: PhysRange
    image: Kimage
    obj: RelocatableObject | None


WhatIsWritten = Callable[[Loaded], Sequence[Fault]]
"""The faults of one crash, which may depend on what was loaded, and where."""


@shown()
@dataclass(frozen=True)
class Trial:
    """What is booted: a kernel, and how. dump says that the capture kernel copies its dump, which is compared then."""

    kernel: BuiltKernel
    cpus: int = 1
    kaslr: bool = True
    dump: bool = True
    words: str = ""
    seed: int = 0


@shown()
@dataclass(frozen=True)
class TrialEnd:
    """What came of one crash; reply is the word of `purgatory check` for it.

    el is the exception level at which the image was entered, None where it was not. dump is None where none was
    copied, else whether it is what memory held. stood says where the machine was found where nothing else ended it.
    """

    reply: Reply
    outcome: Outcome
    image: Kimage
    injections: list[Injection]
    damage: list[Damage]
    purgatory: PurgatoryRun | None
    capture: CaptureRun | None
    console: str = field(repr=False, default="")
    el: int | None = None
    release: str = ""
    dump: bool | None = None
    stood: str = ""

    @property
    def captured(self) -> bool:
        """A capture kernel came up with a dump, which if it was copied is a true one."""
        good = self.capture is not None and self.capture.end in (CaptureEnd.DONE, CaptureEnd.HEADERS)
        return good and self.dump is not False

    def as_object(self) -> dict[str, Any]:
        """For --json."""
        verdict = self.purgatory.verdict if self.purgatory is not None else None
        return {
            "reply": self.reply.value,
            "outcome": self.outcome.value,
            "release": self.release,
            "el": self.el,
            "segments": [
                {"name": one.name, "mem": one.mem, "memsz": one.memsz, "bufsz": one.bufsz}
                for one in self.image.segments
            ],
            "entry": self.image.start,
            "kernel_entry": self.image.kernel_entry,
            "digest": self.image.digest.hex() if self.image.digest else None,
            "stamps": [
                {
                    "at": one.fault.at,
                    "phys": one.phys,
                    "before": one.before.hex(),
                    "after": one.after.hex(),
                    "when": one.fault.when_word,
                }
                for one in self.injections
            ],
            "damage": [
                {"segment": one.segment, "offset": one.offset, "length": one.length} for one in self.damage
            ],
            "purgatory": None if self.purgatory is None else self.purgatory.end.value,
            "verdict": None if verdict is None else verdict.state.name.lower(),
            "capture": None if self.capture is None else self.capture.end.value,
            "dump": None if self.dump is None else "true" if self.dump else "wrong",
            "stood": self.stood,
        }


def setup_of(trial: Trial) -> LinuxSetup:
    """Its files and words. NotFetched for busybox and kexec-tools, InputError for what is no Image."""
    image = trial.kernel.image.read_bytes()
    if not has_magic(image):
        raise InputError(f"{trial.kernel.image}: {no_image(image)}")
    if wrong := truncated(image, trial.kernel.image):
        raise InputError(wrong)
    programs = fetched_programs()
    words = [
        f"crashkernel={_CRASHKERNEL}",
        trial.words,
        "" if trial.kaslr else "nokaslr",
    ]
    append = [CAPTURE_CMDLINE, "earlycon" if trial.dump else "earlycon kexecemu.copy=no"]
    return LinuxSetup(
        image=image,
        crash_image=image,
        crash_initrd=capture_initramfs(busybox=fetched("busybox")),
        **vars(programs),
        ram=_RAM,
        cpus=trial.cpus,
        gic=3,
        cmdline=" ".join(word for word in words if word),
        append=" ".join(append),
        syscall="kexec_file_load",
        checks=False,
        seed=trial.seed,
    )


def place_of(loaded: Loaded, fault: Fault) -> PhysRange:
    """The physical bytes that a fault writes; InputError for a target that is not there."""
    image = loaded.image

    def area(base: str) -> PhysRange:
        found = area_of(loaded.region, image, base)
        if found is not None:
            return found
        if base.startswith("purgatory:") and image.purgatory is not None:
            return image.purgatory.target(base)
        known = [*(one.name for one in image.segments), "crashkernel", "crashkernel-free"]
        raise InputError(f"target {base}: no such segment{there_are(base, known)}, and physical addresses")

    return resolve_by(loaded.ram, area, fault)


def check_targets(kernel: BuiltKernel, faults: Sequence[Fault]) -> None:
    """InputError for a target that cannot be there wherever the image is loaded; it takes a boot to know more."""
    obj = kernel.built_in()
    anywhere = PhysRange.of(RAM_BASE, int(_RAM.removesuffix("M")) << 20)
    known = [
        "kernel",
        "elfcorehdr",
        "initrd",
        "dtb",
        *(["purgatory"] if obj else []),
        "crashkernel",
        "crashkernel-free",
    ]

    def area(base: str) -> PhysRange:
        name = base.removeprefix("purgatory:")
        if obj is not None and name != base:
            symbols = [one.name for one in obj.symbols if one.name]
            if name not in symbols:
                like = did_you_mean(name, symbols)
                raise InputError(f"target {base}: the purgatory has no symbol {name}{like}")
        elif obj is None and base.partition(":")[0] == "purgatory":
            raise InputError(f"target {base}: the Image has none that is known here ({NO_PURGATORY})")
        elif base not in known:
            raise InputError(
                f"target {base}: no such segment{there_are(base, known)}, and physical addresses"
            )
        return anywhere

    with closing(Ram([anywhere])) as ram:
        for fault in faults:
            resolve_by(ram, area, fault, called="RAM that there are")


def trial_end(
    outcome: Outcome,
    image: Kimage,
    injections: Sequence[Injection],
    damage: Sequence[Damage],
    purgatory: PurgatoryRun | None,
    capture: CaptureRun | None,
    **more: Any,
) -> TrialEnd:
    """With the reply that follows from the rest."""
    hit = any(True for _ in injections)
    reply = judge_reply(hit, outcome, damage, purgatory, capture)
    return TrialEnd(reply, outcome, image, list(injections), list(damage), purgatory, capture, **more)
