"""What the first kernel itself knows about the purgatory that it will start: its digest, and where to ask it early.

A purgatory cannot vouch for its own code: what is stamped there may be the comparison. The kernel that loaded it can,
because it is somebody else: it keeps a SHA-256 of the loaded purgatory (KEXEC_PURGATORY_GUARD) and compares right
before the jump, and before it asks the purgatory to check the image early (KEXEC_PURGATORY_EARLY_CHECK). No kernel
does the first; s390 does the second. Both know only a purgatory that kexec_file_load() has loaded.

What is left is damage to the guard itself (machine_kexec(), SHA-256, the digest in struct kimage), and what happens
to the purgatory between the guard's comparison and its own first instruction.
"""

import hashlib

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.image.kimage import Kimage, PurgatoryGuard
from kexecemu.kernel.image.purgatory import LoadedPurgatory

__all__ = ["check_guard", "early_check_limit", "make_guard"]

# Instructions: a slow purgatory hashes, and goes over everything again to locate damage.
_EARLY_CHECK_PER_BYTE = 300


def check_guard(config: KernelConfig) -> None:
    """InputError for a guard that could not read what it guards: under pte and bbml2 the pages are not mapped."""
    if config.enabled("KEXEC_PURGATORY_GUARD") and config.way in (Protection.PTE, Protection.BBML2):
        raise InputError(
            f"config option KEXEC_PURGATORY_GUARD=y: with protection {config.way.value} the purgatory is not mapped "
            "when the first kernel would compare it"
        )


def make_guard(image: Kimage, purgatory: LoadedPurgatory, config: KernelConfig) -> PurgatoryGuard:
    """What goes into struct kimage for a purgatory whose contents do not change any more.

    Where it is asked early it writes to its own variables, so then what lies before these is compared; else all that
    is loaded from its file. Raises InputError as check_guard(), KexecError(EINVAL) without the symbol to ask at.
    """
    check_guard(config)
    early = config.enabled("KEXEC_PURGATORY_EARLY_CHECK")
    mem, size, digest = purgatory.segment.mem, 0, bytes(32)
    if config.enabled("KEXEC_PURGATORY_GUARD"):
        size = len(purgatory.buf)
        if early:
            size = min([size, *(area.start - mem for area in purgatory.scratch())])
        digest = hashlib.sha256(purgatory.buf[:size]).digest()
    return PurgatoryGuard(mem, size, digest, purgatory.symbol_phys("purgatory_check") if early else 0)


def early_check_limit(image: Kimage | None) -> int:
    """Instructions that the early check of an image may take before it counts as hung; 0 where there is none."""
    if image is None or image.guard is None or not image.guard.purgatory_check:
        return 0
    return _EARLY_CHECK_PER_BYTE * sum(segment.memsz for segment in image.segments)
