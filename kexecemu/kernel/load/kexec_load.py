"""The older system call: kexec_load(2) for a crash image (do_kexec_load() of kernel/kexec.c).

User space brings the segments, a purgatory among them, and says where to start. The kernel checks that they fit into
the crash region, copies them and protects them; it knows nothing of kernels, device trees or digests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EINVAL, EPERM

from kexecemu.errors import KexecError
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image.kimage import KEXEC_ARCH_AARCH64, KEXEC_SEGMENT_MAX, Kimage, Segment
from kexecemu.kernel.load.kexec_core import sanity_check_segment_list
from kexecemu.kernel.load.kexec_file import add_control_pages, exchange
from kexecemu.kernel.load.kexec_tools import CrashLoad
from kexecemu.shown import shown

__all__ = ["KEXEC_ON_CRASH", "KexecLoadArguments", "kexec_load"]

KEXEC_ON_CRASH = 1
KEXEC_ARCH_MASK = 0xFFFF0000
KEXEC_ARCH_DEFAULT = 0


@shown()
@dataclass(frozen=True)
class KexecLoadArguments:
    """entry is a physical address; flags as in the system call, the architecture in the upper half."""

    entry: int
    segments: Sequence[Segment]
    flags: int = KEXEC_ON_CRASH | KEXEC_ARCH_AARCH64


def kexec_load(
    state: KernelState, arguments: KexecLoadArguments, *, capable: bool = True, known: CrashLoad | None = None
) -> Kimage | None:
    """kexec_load(2): each check with its errno, in the kernel's order.

    capable is CAP_SYS_BOOT; the kernel's signature policy may forbid images that nobody can verify. known is what only
    user space knows of its segments: whoever judges the crash needs it.
    An empty segment list unloads and returns None. Raises KexecError; a failed load leaves no crash kernel.
    """
    step = "kexec_load"
    flags = arguments.flags
    if not capable or state.kexec.load_disabled:
        raise KexecError(EPERM, step, "needs CAP_SYS_BOOT, and kexec_load_disabled must be 0")
    if state.kexec.signature_policy is not None:
        state.kexec.signature_policy.check_kexec_load(state.log)
    if flags & ~KEXEC_ARCH_MASK & ~state.config.release.rules.load_flags:
        raise KexecError(EINVAL, step, f"unknown flags {flags & ~KEXEC_ARCH_MASK:#x}")
    if len(arguments.segments) > KEXEC_SEGMENT_MAX:
        raise KexecError(EINVAL, step, f"{len(arguments.segments)} segments, {KEXEC_SEGMENT_MAX} at most")
    if flags & KEXEC_ARCH_MASK not in (KEXEC_ARCH_AARCH64, KEXEC_ARCH_DEFAULT):
        raise KexecError(EINVAL, step, f"flags {flags:#x} are for another architecture")
    if not flags & KEXEC_ON_CRASH:
        reason = "only a crash image can be loaded this way: use kexec_file_load for a reboot"
        raise KexecError(EINVAL, step, reason)
    return exchange(state, None if not arguments.segments else lambda: _prepare(state, arguments, known))


def _prepare(state: KernelState, arguments: KexecLoadArguments, known: CrashLoad | None) -> Kimage:
    """kimage_alloc_init(): the image object and its checks."""
    crashk_res = state.crashk_res
    entry = arguments.entry
    if crashk_res is None or entry not in crashk_res:
        reason = f"entry {entry:#x} is not inside crashkernel {crashk_res}"
        raise KexecError(EADDRNOTAVAIL, "kimage_alloc_init", reason)
    image = Kimage(crashk_res.start, list(arguments.segments), entry, file_mode=False)
    sanity_check_segment_list(image, crashk_res, state.total_ram_pages, state.config.page_size)
    add_control_pages(state, image)
    if known is not None:
        image.kernel_entry, image.dtb_mem = known.kernel_entry, known.dtb_phys
        image.digest, image.sha_regions = known.digest, known.regions
        image.purgatory = known.purgatory
    return image
