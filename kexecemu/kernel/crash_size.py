"""Writing /sys/kernel/kexec_crash_size: giving crash memory back (crash_shrink_memory() of kernel/kexec_core.c)."""

from dataclasses import replace
from errno import EBUSY, EINVAL, ENOENT

from kexecemu.errors import KexecError
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.boot.resources import publish_resources
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.memory.crashkernel import CrashReservation
from kexecemu.machine.ranges import PhysRange

__all__ = ["crash_get_memory_size", "crash_shrink_memory"]

_STEP = "crash_shrink_memory"


def crash_get_memory_size(state: KernelState) -> int:
    """crash_get_memory_size(): bytes of crash memory, as kexec_crash_size reads; before 6.5 without the low part."""
    low = state.crashk_low_res if state.config.release.rules.counts_low_region else None
    return sum(area.size for area in (state.crashk_res, low) if area is not None)


def crash_shrink_memory(state: KernelState, new_size: int) -> None:
    """Make crash memory new_size bytes (rounded up to pages); the rest becomes ordinary memory.

    The end of the main region goes first. Where that does not do, from 6.5 on, all of it goes, and the end of the low
    one, which then is the main one.
    Raises KexecError: EBUSY while a load is under way, ENOENT with an image loaded, EINVAL for a larger size.
    """
    if state.kexec.locked:
        raise KexecError(EBUSY, _STEP, "a load is under way")
    if state.image is not None:
        raise KexecError(ENOENT, _STEP, "a crash image is loaded")
    old_size = crash_get_memory_size(state)
    kept_size = align_up(new_size, state.config.page_size)
    asked = kept_size if state.config.release.rules.counts_low_region else new_size
    if asked >= old_size:
        if asked == old_size:
            return
        raise KexecError(EINVAL, _STEP, f"cannot grow the region from {old_size:#x} to {new_size:#x} bytes")
    old = state.arch.reservation
    low = old.crashk_low_res if state.config.release.rules.counts_low_region else None
    low_size = low.size if low is not None else 0
    new = replace(old, crashk_res=_shrunk(old.crashk_res, max(kept_size - low_size, 0)))
    if low_size > kept_size:
        new = replace(new, crashk_low_res=_shrunk(low, kept_size))
    if low is not None and new.crashk_res is None:
        new = replace(new, crashk_res=new.crashk_low_res, crashk_low_res=None)
    back = _given_back(old, new)
    for area in back:
        state.arch.memblock.free(area)
    state.arch = replace(state.arch, reservation=replace(new, released=(*old.released, *back)))
    publish_resources(state)
    state.free_memory.publish()


def _shrunk(area: PhysRange | None, size: int) -> PhysRange | None:
    """__crash_shrink_memory()."""
    return PhysRange.of(area.start, size) if area is not None and size else None


def _given_back(old: CrashReservation, new: CrashReservation) -> list[PhysRange]:
    kept = [one for one in (new.crashk_res, new.crashk_low_res) if one is not None]
    found = []
    for area in (old.crashk_res, old.crashk_low_res):
        if area is not None:
            end = next((one.end for one in kept if one.start == area.start), area.start)
            found.append(PhysRange(end, area.end))
    return [one for one in found if one.size]
