"""What a kernel with KHO puts into an image for a reboot: kho_fill_kimage() and kho_add_chosen()."""

from collections.abc import Mapping

from kexecemu.errors import MachineError
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image.kimage import KHO_SCRATCH, Kimage
from kexecemu.kernel.load.kexec_core import add_buffer

__all__ = ["chosen_properties", "fill_kimage"]

_ALIGN = 64 << 10


def fill_kimage(state: KernelState, image: Kimage) -> None:
    """kho_fill_kimage(): the array of scratch areas goes first, but for IMA's list. KexecError(EADDRNOTAVAIL)."""
    kho = state.kho
    if kho is None:
        raise MachineError("kexec handover is off")
    add_buffer(
        image,
        KHO_SCRATCH,
        kho.array,
        len(kho.array),
        _ALIGN,
        region=None,
        scratch=kho.areas,
        era=state.config.release,
        page_size=state.config.page_size,
    )


def chosen_properties(state: KernelState, image: Kimage) -> Mapping[str, tuple[int, int] | None] | None:
    """kho_add_chosen(): properties of /chosen with what they are, or None to delete one; None where KHO is not built.

    What they are is a physical address and a size in bytes.
    """
    if not state.config.enabled("KEXEC_HANDOVER"):
        return None
    scratch = image.segment(KHO_SCRATCH)
    if scratch is None or state.kho is None:
        return {"linux,kho-fdt": None, "linux,kho-scratch": None}
    return {
        "linux,kho-fdt": (state.kho.fdt_phys, state.config.page_size),
        "linux,kho-scratch": (scratch.mem, scratch.bufsz),
    }
