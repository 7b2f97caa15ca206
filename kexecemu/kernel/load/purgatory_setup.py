"""What a loader tells a purgatory: the symbols of purgatory/purgatory.h, and those of kexec-tools' purgatory.

Only purgatory_sha_regions and purgatory_sha256_digest are the kernel's own (kernel/kexec_file.c). Everything else is
set where the object has the symbol, so that an older or smaller purgatory is loaded as well.
"""

import hashlib
import struct
from collections.abc import Sequence
from errno import EINVAL

from kexecemu.errors import FormatError, InputError, KexecError
from kexecemu.formats import elfrel
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.tree_board import psci_conduit as conduit_of
from kexecemu.kernel.image.digests import (
    calculate_digest,
    described_segments,
    hashed_segments,
    pack_sha_regions,
    page_digests,
    region_digests,
)
from kexecemu.kernel.image.kimage import COPY, PAGE_DIGESTS, Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.load.devtree import VERDICT_PROPERTY
from kexecemu.machine.ranges import PhysRange

__all__ = ["check_demands", "psci_conduit", "set_kexec_tools_digest", "set_kexec_tools_places"]
__all__ += ["set_up_purgatory", "tables_text"]

_U64 = struct.Struct("<Q")

# Options, the value that asks for nothing, and the symbol without which the purgatory cannot do what is asked.
_DEMANDS = (
    ("KEXEC_PURGATORY_MMU", "y", "purgatory_no_mmu"),
    ("KEXEC_PURGATORY_CRYPTO", "y", "purgatory_no_crypto"),
    ("KEXEC_PURGATORY_POLICY", "stop", "purgatory_policy"),
    ("KEXEC_PURGATORY_PAGE_DIGESTS", "n", "purgatory_page_digests"),
    ("KEXEC_PURGATORY_COPY", "n", "purgatory_copy"),
    ("KEXEC_PURGATORY_CHOSEN", "n", "purgatory_chosen"),
    ("KEXEC_PURGATORY_EARLY_CHECK", "n", "purgatory_check"),
)
# enum purgatory_conduit by /psci's "method".
_CONDUITS = {"hvc": 1, "smc": 2}


def check_demands(obj: elfrel.RelocatableObject, config: KernelConfig) -> None:
    """InputError when the configuration asks for something that this purgatory has no symbol for."""
    for option, nothing, symbol in _DEMANDS:
        value = config.options[option]
        if value != nothing and obj.global_symbol(symbol) is None:
            raise InputError(f"config option {option}={value}: this purgatory has no symbol {symbol}")


def psci_conduit(dtb: bytes) -> int:
    """enum purgatory_conduit from the device tree's PSCI node: hvc 1, smc 2; 0 when it says neither."""
    try:
        return _CONDUITS.get(conduit_of(Fdt(dtb)) or "", 0)
    except FormatError:
        return 0


def set_kexec_tools_places(
    purgatory: LoadedPurgatory, *, sink_phys: int, kernel_phys: int, dtb_phys: int
) -> None:
    """arm64_load_other_segments(): where kexec-tools' purgatory prints and what it starts, physical addresses.

    Raises KexecError(EINVAL) when it lacks one of the symbols.
    """
    for name, value in (
        ("arm64_sink", sink_phys),
        ("arm64_kernel_entry", kernel_phys),
        ("arm64_dtb_addr", dtb_phys),
    ):
        purgatory.set_symbol(name, _U64.pack(value))


def set_kexec_tools_digest(purgatory: LoadedPurgatory, regions: Sequence[PhysRange], digest: bytes) -> None:
    """update_purgatory(): what kexec-tools' purgatory hashes, and the SHA-256 of that."""
    purgatory.set_symbol("sha256_regions", pack_sha_regions(regions))
    purgatory.set_symbol("sha256_digest", digest)


def _is_kexec_tools(purgatory: LoadedPurgatory) -> bool:
    return not purgatory.has_symbol("purgatory_sha_regions") and purgatory.has_symbol("sha256_regions")


def set_up_purgatory(
    image: Kimage,
    purgatory: LoadedPurgatory,
    config: KernelConfig,
    *,
    sink_phys: int,
    unchecked: bool = False,
) -> None:
    """kexec_calculate_store_digests(), and everything else that the purgatory takes from its loader.

    To be called when no segment of `image` changes any more. Fills the segments of page digests and of the copy,
    sets image.digest and image.sha_regions. unchecked leaves the regions empty, and the digest is that of nothing.
    Raises KexecError(EINVAL) for a purgatory without the symbols for a digest, or with one of another size.
    """
    _fill_tables(image)
    hashed = [] if unchecked else hashed_segments(image.segments)
    image.digest, image.sha_regions = calculate_digest(hashed)
    if _is_kexec_tools(purgatory):
        set_kexec_tools_places(
            purgatory, sink_phys=sink_phys, kernel_phys=image.kernel_entry, dtb_phys=image.dtb_mem
        )
        set_kexec_tools_digest(purgatory, image.sha_regions, image.digest)
        return
    purgatory.set_symbol("purgatory_sha_regions", pack_sha_regions(image.sha_regions))
    purgatory.set_symbol("purgatory_sha256_digest", image.digest)
    for name, value in _values(image, config, hashed).items():
        if purgatory.has_symbol(name):
            purgatory.set_symbol(name, value)
    _set_self_digest(purgatory)


def _fill_tables(image: Kimage) -> None:
    """The contents of the two segments that the other ones decide; they were placed as zeros of the right size."""
    described = described_segments(image.segments)
    table, copy = image.segment(PAGE_DIGESTS), image.segment(COPY)
    if table is not None:
        table.buf = page_digests(described)
    if copy is not None:
        copy.buf = b"".join(one.content() for one in described)


def _values(image: Kimage, config: KernelConfig, hashed: Sequence[Segment]) -> dict[str, bytes]:
    """The optional symbols of purgatory.h and what to set them to, the digest of itself apart; hashed: the regions."""
    table, copy, dtb = image.segment(PAGE_DIGESTS), image.segment(COPY), image.segment("dtb")
    assert dtb is not None
    tree = bytes(dtb.buf)
    image.verdict_record = _chosen_record(tree, dtb.mem)
    numbers = {
        "purgatory_dtb": image.dtb_mem,
        "purgatory_policy": config.choice("KEXEC_PURGATORY_POLICY"),
        "purgatory_psci_conduit": psci_conduit(tree),
        "purgatory_no_mmu": int(not config.enabled("KEXEC_PURGATORY_MMU")),
        "purgatory_no_crypto": int(not config.enabled("KEXEC_PURGATORY_CRYPTO")),
        "purgatory_page_digests": table.mem if table is not None else 0,
        "purgatory_copy": copy.mem if copy is not None else 0,
        "purgatory_chosen": image.verdict_record.start if image.verdict_record else 0,
        # system_supports_gcs() and system_supports_sme(): the engine's CPUs have neither.
        "purgatory_gcs": 0,
        "purgatory_sme": 0,
    }
    values = {name: _U64.pack(number) for name, number in numbers.items()}
    values["purgatory_region_digests"] = region_digests(hashed)
    return values


def _chosen_record(dtb: bytes, dtb_phys: int) -> PhysRange | None:
    """Where the value of /chosen/linux,purgatory-verdict lies in a device tree that is loaded at dtb_phys."""
    tree = Fdt(dtb)
    chosen = tree.path_offset("/chosen")
    found = None if chosen is None else tree.get_property(chosen, VERDICT_PROPERTY)
    if found is None:
        return None
    # FDT_PROP is three cells (tag, length, name), then the value.
    return PhysRange.of(dtb_phys + tree.off_dt_struct + found.offset + 12, len(found.value))


def _set_self_digest(purgatory: LoadedPurgatory) -> None:
    """purgatory_self_digest: the SHA-256 of what is linked before it, so it comes when nothing there changes more."""
    name = "purgatory_self_digest"
    if not purgatory.has_symbol(name):
        return
    start, end = purgatory.section_offset("purgatory_start"), purgatory.symbol_offset(name)
    if start > end:
        raise KexecError(EINVAL, "kexec_load_purgatory", f"purgatory: {name} lies before purgatory_start")
    purgatory.set_symbol(name, hashlib.sha256(purgatory.buf[start:end]).digest())


def tables_text(image: Kimage) -> str | None:
    """What table and copy cost, for people; None when the image has neither.

    The table takes 32 bytes for each page of 4096, which is 0.8 % of the image; the copy as much as the image itself.
    """
    total = sum(one.memsz for one in described_segments(image.segments))
    tables = (("page digests", image.segment(PAGE_DIGESTS)), ("second copy", image.segment(COPY)))
    costs = [
        f"{words}: {one.memsz:#x} bytes, {100 * one.memsz / total:.1f} % of the image"
        for words, one in tables
        if one is not None
    ]
    return "; ".join(costs) or None
