"""Writing /sys/kernel/kexec_crash_size: giving crash memory back (crash_shrink_memory() of kernel/kexec_core.c)."""

from dataclasses import replace
from errno import EBUSY, EINVAL, ENOENT

from kexecemu.errors import KexecError
from kexecemu.kernel.boot.start_kernel import publish_resources
from kexecemu.kernel.boot.state import KernelState
from kexecemu.machine.ranges import PhysRange

__all__ = ["crash_shrink_memory"]

_STEP = "crash_shrink_memory"


def crash_shrink_memory(state: KernelState, new_size: int) -> None:
    """Make the crash region new_size bytes long, from its start; what is behind it becomes ordinary memory.

    Raises KexecError: EBUSY while a load is under way, ENOENT with an image loaded, EINVAL for a larger size.
    """
    if state.kexec.locked:
        raise KexecError(EBUSY, _STEP, "a load is under way")
    if state.image is not None:
        raise KexecError(ENOENT, _STEP, "a crash image is loaded")
    region = state.crashk_res
    old_size = region.size if region else 0
    if new_size >= old_size:
        if new_size == old_size:
            return
        raise KexecError(EINVAL, _STEP, f"cannot grow the region from {old_size:#x} to {new_size:#x} bytes")
    assert region is not None
    page = state.config.page_size
    start = -(-region.start // page) * page
    end = -(-(start + new_size) // page) * page
    kept = PhysRange(region.start, end) if end > start else None
    state.arch = replace(state.arch, reservation=replace(state.arch.reservation, crashk_res=kept))
    state.arch.memblock.free(PhysRange(end, region.end))
    publish_resources(state)
