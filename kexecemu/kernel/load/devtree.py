"""The device tree for the kernel that is loaded: of_kexec_alloc_and_setup_fdt() of drivers/of/kexec.c.

It is the running kernel's own tree, edited. The order of the edits is the kernel's, since it decides the
bytes.
"""

from collections.abc import Mapping, Sequence
from errno import EINVAL

from kexecemu.errors import FormatError, KexecError
from kexecemu.formats.fdt import Fdt, FdtEditor, MemReserve, join_cells
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.kernel.boot.firmware import chosen_node
from kexecemu.machine.ranges import PhysRange

__all__ = ["CHOSEN_RECORD_SIZE", "FDT_EXTRA_SPACE", "RNG_SEED_SIZE", "STEP", "VERDICT_PROPERTY"]
__all__ += ["add_verdict_record", "elfcorehdr_area", "kexec_device_tree"]

STEP = "of_kexec_alloc_and_setup_fdt"
FDT_EXTRA_SPACE = 0x1000
RNG_SEED_SIZE = 128
VERDICT_PROPERTY = "linux,purgatory-verdict"
CHOSEN_RECORD_SIZE = 6 * 4 + 8 * 4 * 4  # struct purgatory_chosen_record: six cells, eight ranges of four
_IMA_PROPERTY = "linux,ima-kexec-buffer"
_PAGE_SIZE = 4096


def kexec_device_tree(
    base_dtb: bytes,
    *,
    old_dtb_phys: int,
    initrd: tuple[int, int] | None,
    cmdline: str | None,
    elfcorehdr: tuple[int, int] | None,
    crashk_res: PhysRange | None,
    crashk_low_res: PhysRange | None = None,
    crashk_cma_ranges: Sequence[PhysRange] = (),
    kaslr_seed: int | None = None,
    rng_seed: bytes | None = None,
    ima: tuple[int, int] | None = None,
    have_ima_kexec: bool = False,
    dm_crypt_keys: tuple[int, int] | None = None,
    kho: Mapping[str, tuple[int, int] | None] | None = None,
) -> bytes:
    """The packed device tree for the next kernel, made from the running kernel's one.

    base_dtb is the running kernel's (initial_boot_params) and old_dtb_phys where it lies. initrd and
    elfcorehdr are (phys, size in bytes); elfcorehdr and crashk_res are given for a crash kernel, None
    otherwise. cmdline None deletes bootargs. kaslr_seed (64 bits) and rng_seed (RNG_SEED_SIZE bytes) are
    given once the random number generator is initialised; None leaves them out, as the kernel does before. ima is
    (phys, size in bytes) of the segment for IMA's measurement list, have_ima_kexec is CONFIG_HAVE_IMA_KEXEC: an old one
    is taken out. dm_crypt_keys is (phys, bufsz) of the segment with keys; kho has the properties of kexec handover, as
    kho.chosen_properties() gives them.
    Raises KexecError(EINVAL) where libfdt would fail, and if an old initrd's start comes without its end.
    """
    try:
        size = _totalsize(base_dtb)
        fdt = FdtEditor(base_dtb, size + len(to_bytes(cmdline or "")) + FDT_EXTRA_SPACE)
        _delete_reservation(fdt, old_dtb_phys, size)
        chosen = chosen_node(fdt)
        fdt.delprop(chosen, "linux,elfcorehdr")
        fdt.delprop(chosen, "linux,usable-memory-range")
        _delete_old_initrd(fdt, chosen)
        _set_initrd(fdt, chosen, initrd)
        if elfcorehdr is not None and crashk_res is not None:
            _add_crash_part(fdt, chosen, "linux,elfcorehdr", elfcorehdr)
            if dm_crypt_keys is not None:
                _add_crash_part(fdt, chosen, "linux,dmcryptkeys", dm_crypt_keys)
            # The low range comes second always: early_init_dt_check_for_usable_mem_range() relies on the order.
            for part in filter(None, (crashk_res, crashk_low_res, *crashk_cma_ranges)):
                fdt.appendprop_addrrange(0, chosen, "linux,usable-memory-range", part.start, part.size)
        for name in kho or {}:
            fdt.delprop(chosen, name)
        for name, place in (kho or {}).items():
            if place is not None:
                fdt.appendprop_addrrange(0, chosen, name, *place)
        if cmdline is None:
            fdt.delprop(chosen, "bootargs")
        else:
            fdt.setprop(chosen, "bootargs", to_bytes(cmdline) + b"\0")
        fdt.delprop(chosen, "kaslr-seed")
        if kaslr_seed is not None:
            fdt.setprop_u64(chosen, "kaslr-seed", kaslr_seed)
        if rng_seed is not None:
            fdt.setprop(chosen, "rng-seed", rng_seed)
        fdt.setprop_empty(chosen, "linux,booted-from-kexec")
        if have_ima_kexec:
            _remove_ima_buffer(fdt, chosen)
        if ima is not None:
            fdt.appendprop_addrrange(0, chosen, _IMA_PROPERTY, *ima)
            fdt.add_mem_rsv(*ima)
        # What a purgatory found before this kernel is no news about the next one.
        fdt.delprop(chosen, VERDICT_PROPERTY)
        fdt.pack()
    except FormatError as error:
        raise KexecError(EINVAL, STEP, str(error)) from error
    return fdt.to_bytes()


def add_verdict_record(dtb: bytes) -> bytes:
    """The tree with zeros at /chosen/linux,purgatory-verdict, where the purgatory writes what it found.

    Raises KexecError(EINVAL) where libfdt would fail.
    """
    try:
        fdt = FdtEditor(dtb, _totalsize(dtb) + FDT_EXTRA_SPACE)
        fdt.setprop(chosen_node(fdt), VERDICT_PROPERTY, bytes(CHOSEN_RECORD_SIZE))
        fdt.pack()
    except FormatError as error:
        raise KexecError(EINVAL, STEP, str(error)) from error
    return fdt.to_bytes()


def _totalsize(blob: bytes) -> int:
    return int.from_bytes(blob[4:8], "big")


def _delete_reservation(fdt: FdtEditor, phys: int, size: int) -> bool:
    """Delete the first reservation that is exactly this (fdt_find_and_del_mem_rsv()); False if none is."""
    reservations = fdt.mem_reservations()
    wanted = MemReserve(phys, size)
    if wanted not in reservations:
        return False
    fdt.del_mem_rsv(reservations.index(wanted))
    return True


def _read_number(value: bytes) -> int:
    """of_read_number(prop, len / 4): whole cells, most significant first, the low 64 bits of them."""
    return int.from_bytes(value[: len(value) & -4], "big") & ((1 << 64) - 1)


def _delete_old_initrd(fdt: FdtEditor, chosen: int) -> None:
    start = fdt.getprop(chosen, "linux,initrd-start")
    if start is None:
        return
    end = fdt.getprop(chosen, "linux,initrd-end")
    if end is None:
        raise KexecError(EINVAL, STEP, "linux,initrd-start without linux,initrd-end")
    start_phys = _read_number(start)
    size = (_read_number(end) - start_phys) & ((1 << 64) - 1)
    # Boot loaders reserve the initrd either exactly or in whole pages.
    if not _delete_reservation(fdt, start_phys, size):
        _delete_reservation(fdt, start_phys, (size + _PAGE_SIZE - 1) & -_PAGE_SIZE)


def _set_initrd(fdt: FdtEditor, chosen: int, initrd: tuple[int, int] | None) -> None:
    if initrd is None:
        fdt.delprop(chosen, "linux,initrd-start")
        fdt.delprop(chosen, "linux,initrd-end")
        return
    phys, size = initrd
    # 64 bits each, whatever #address-cells says; the end is exclusive.
    fdt.setprop_u64(chosen, "linux,initrd-start", phys)
    fdt.setprop_u64(chosen, "linux,initrd-end", phys + size)
    fdt.add_mem_rsv(phys, size)


def elfcorehdr_area(tree: Fdt) -> PhysRange | None:
    """Where /chosen says that the core header is, physical; None where it does not. FormatError for a damaged tree."""
    chosen = tree.path_offset("/chosen")
    cells = tree.get_cells(chosen, "linux,elfcorehdr") if chosen is not None else None
    if not cells:
        return None
    width = tree.address_cells(0)
    return PhysRange.of(join_cells(cells[:width]), join_cells(cells[width:]))


def _add_crash_part(fdt: FdtEditor, chosen: int, name: str, part: tuple[int, int]) -> None:
    """A segment that the capture kernel is told of, and must not give away: why it says "overlapped", and no harm."""
    fdt.appendprop_addrrange(0, chosen, name, *part)
    fdt.add_mem_rsv(*part)


def _remove_ima_buffer(fdt: FdtEditor, chosen: int) -> None:
    """remove_ima_buffer(): drop what an earlier kernel measured."""
    value = fdt.getprop(chosen, _IMA_PROPERTY)
    if value is None:
        return
    split = 4 * fdt.address_cells(0)
    end = split + 4 * fdt.size_cells(0)
    fdt.delprop(chosen, _IMA_PROPERTY)
    if len(value) >= end:
        _delete_reservation(fdt, _read_number(value[:split]), _read_number(value[split:end]))
