"""The arm64 side of a load, done to a running kernel: core header, device tree, protection, and its struct kimage.

Followed: prepare_elf_headers() and load_other_segments() of arch/arm64/kernel/machine_kexec_file.c,
of_kexec_alloc_and_setup_fdt(), arch_kexec_protect_crashkres(), and the exchange of kexec_crash_image in
kernel/kexec_file.c. The guest's own crash path reads what is written here.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.vmcoreinfo import VMCOREINFO_BYTES, note_size
from kexecemu.kernel.image.kimage import IND_DONE, Kimage, pack_segments
from kexecemu.kernel.image.protection import protect_crashkres, protected_areas, unprotect_crashkres
from kexecemu.kernel.load.devtree import RNG_SEED_SIZE, kexec_device_tree
from kexecemu.kernel.load.elfcorehdr import prepare_elf_headers
from kexecemu.kernel.load.relocation import Relocation, load_normal_segments, prepare_relocation
from kexecemu.kernel.memory.memblock import across_pages
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["copy_vmcoreinfo", "elf_headers", "kexec_tools_elf_headers", "load_normal", "next_device_tree"]
__all__ += ["sysfs_cpus"]
__all__ += ["protect", "protected", "publish", "publish_reboot", "unprotect"]

_CRASH_NOTE_SIZE = 424


def elf_headers(state: KernelState, cma: Sequence[PhysRange] = ()) -> bytes:
    """prepare_elf_headers() for the memory and the CPUs of this kernel: the core's header, whole pages.

    cma is what the capture kernel will take of it besides crashkernel memory.
    """
    cpus = state.cpus
    count = len(cpus.affinities) if state.config.release.rules.notes_of_possible_cpus else cpus.present
    return _core_header(state, count, state.arch.memblock.mappable(), cma)


def kexec_tools_elf_headers(state: KernelState) -> bytes:
    """The same as kexec-tools make it, of the CPUs that /sys shows and "System RAM" in /proc/iomem."""
    return _core_header(state, sysfs_cpus(state), state.arch.system_ram, ())


def sysfs_cpus(state: KernelState) -> int:
    """How many CPUs have a folder in /sys/devices/system/cpu."""
    present = state.config.release.rules.sysfs_has_present_cpus
    return state.cpus.present if present else len(state.cpus.affinities)


def _core_header(
    state: KernelState, notes: int, memory: Sequence[PhysRange], cma: Sequence[PhysRange]
) -> bytes:
    guest, space, reservation = state.guest, state.space, state.arch.reservation
    note_phys = space.virt_to_phys(guest.read("vmcoreinfo_note"))
    return prepare_elf_headers(
        crash_notes=[(state.crash_notes_phys(cpu), _CRASH_NOTE_SIZE) for cpu in range(notes)],
        vmcoreinfo_note=(note_phys, note_size(state.config.page_size)),
        kernel_text=(space.kimage_vaddr, space.kimage_phys, space.kimage_size),
        memory=memory,
        exclude=[
            area for area in (reservation.crashk_res, reservation.crashk_low_res, *cma) if area is not None
        ],
        linear_virt=space.linear_virt,
        possible_cpus=len(state.cpus.affinities),
    )


def next_device_tree(
    state: KernelState,
    initrd: PhysRange | None,
    elfcorehdr: PhysRange | None,
    cmdline: str | None,
    ima: PhysRange | None = None,
    dm_crypt_keys: PhysRange | None = None,
    kho: Mapping[str, tuple[int, int] | None] | None = None,
) -> bytes:
    """of_kexec_alloc_and_setup_fdt() and fdt_pack() on this kernel's own device tree.

    initrd is the exact range of its bytes, elfcorehdr None for an ordinary image, ima where the list of
    measurements will be, None without, dm_crypt_keys the exact range of the keys, kho the
    properties of kexec handover; all physical.
    """
    reservation = state.arch.reservation
    kaslr_seed, rng_seed = _seeds(state)
    return kexec_device_tree(
        state.initial_boot_params,
        old_dtb_phys=state.dtb_phys,
        initrd=(initrd.start, initrd.size) if initrd else None,
        cmdline=cmdline,
        elfcorehdr=(elfcorehdr.start, elfcorehdr.size) if elfcorehdr else None,
        crashk_res=reservation.crashk_res if elfcorehdr else None,
        crashk_low_res=reservation.crashk_low_res if elfcorehdr else None,
        crashk_cma_ranges=reservation.cma,
        kaslr_seed=kaslr_seed,
        rng_seed=rng_seed,
        ima=(ima.start, ima.size) if ima else None,
        have_ima_kexec=state.config.enabled("IMA"),
        dm_crypt_keys=(dm_crypt_keys.start, dm_crypt_keys.size) if dm_crypt_keys else None,
        kho=kho,
    )


def _seeds(state: KernelState) -> tuple[int, bytes] | tuple[None, None]:
    """kaslr-seed and rng-seed, in the order in which they are drawn; neither before the generator is ready."""
    if not state.config.rng_ready:
        for seed in ("kaslr-seed", "rng-seed"):
            state.log(f'RNG is not initialised: omitting "{seed}" property')
        return None, None
    return state.config.seeds or (state.random.getrandbits(64), state.random.randbytes(RNG_SEED_SIZE))


def copy_vmcoreinfo(state: KernelState, safecopy: PhysRange) -> bytes:
    """kimage_crash_copy_vmcoreinfo(): the boot's vmcoreinfo into a page of the crash region; returns the text."""
    text = state.vmcoreinfo()
    state.ram.write(safecopy.start, text.ljust(VMCOREINFO_BYTES, b"\0"))
    return text


def protect(state: KernelState, image: Kimage) -> None:
    """arch_kexec_protect_crashkres() and the TLB flush that set_memory_valid() ends with."""
    assert state.crashk_res is not None
    places = state.tables, state.space, image, state.crashk_res
    protect_crashkres(state.config, *places, splits=state.arch.plan.splits)
    state.flush_tlb_kernel_range()


def unprotect(state: KernelState, image: Kimage) -> None:
    """arch_kexec_unprotect_crashkres()."""
    assert state.crashk_res is not None
    places = state.tables, state.space, image, state.crashk_res
    unprotect_crashkres(state.config, *places, splits=state.arch.plan.splits)
    state.flush_tlb_kernel_range()


def protected(state: KernelState) -> list[PhysRange]:
    """Physical ranges that the loaded image's protection keeps stores out of, as the page tables say it now."""
    if state.image is None or state.crashk_res is None:
        return []
    return protected_areas(state.config.way, state.tables, state.space, state.image, state.crashk_res)


def publish(state: KernelState, image: Kimage | None) -> None:
    """xchg(&kexec_crash_image, image): struct kimage in the guest's memory, for its crash path and for tools.

    And crash_update_vmcoreinfo_safecopy(): where the dying kernel will write instead of its own vmcoreinfo.
    """
    guest = state.guest
    guest.write("kdump_refusal", 0)
    safecopy = image.vmcoreinfo_safecopy if image is not None else 0
    guest.write("vmcoreinfo_data_safecopy", state.space.linear_virt(safecopy) if safecopy else 0)
    guard = asdict(image.guard) if image is not None and image.guard is not None else {}
    arch = guard | image.arch_members if image is not None else {}
    _write_kimage(state, "kexec_crash_image", "crash_kimage_storage", image, arch)


def publish_reboot(state: KernelState, image: Kimage | None, relocation: Relocation | None) -> None:
    """xchg(&kexec_image, image)."""
    arch = asdict(relocation) if relocation is not None else {}
    _write_kimage(state, "kexec_image", "kimage_storage", image, arch)


def _write_kimage(
    state: KernelState, pointer: str, storage: str, image: Kimage | None, arch: dict[str, int | bytes]
) -> None:
    guest, layout = state.guest, state.guest.vmlinux
    if image is None:
        guest.write(pointer, 0)
        return
    guest.ram.fill(guest.phys(storage), layout.sizeof("kimage"))
    safecopy = image.vmcoreinfo_safecopy
    members = {
        "head": image.head,
        "start": image.start,
        "nr_segments": len(image.segments),
        "control_page": image.control_page,
        "control_code_page": state.free_memory.page_virt(image.control_code_page),
        "vmcoreinfo_data_copy": state.space.linear_virt(safecopy) if safecopy else 0,
        "type": image.crash | image.file_mode << layout.bitfield_shift("kimage", "file_mode"),
    }
    for name, value in members.items():
        guest.write(storage, value, layout.offsetof("kimage", name))
    for name in ("control_pages", "dest_pages", "unusable_pages"):  # INIT_LIST_HEAD()
        at = layout.offsetof("kimage", name)
        for link in ("next", "prev"):
            guest.write(storage, layout.virt(storage) + at, at + layout.offsetof("list_head", link))
    guest.ram.write(guest.phys(storage) + layout.offsetof("kimage", "segment"), pack_segments(image.segments))
    base = guest.phys(storage) + layout.offsetof("kimage", "arch")
    # Only kexec_file_load() knows which segment is the device tree.
    for name, content in {**arch, "dtb_mem": image.dtb_mem if image.file_mode else 0}.items():
        packed = content if isinstance(content, bytes) else struct.pack("<Q", content)
        guest.ram.write(base + layout.offsetof("kimage_arch", name), packed)
    guest.write(pointer, layout.virt(storage))


def load_normal(state: KernelState, image: Kimage) -> Relocation | None:
    """kimage_load_normal_segment() for every segment, then machine_kexec_post_load(): None for nothing to be moved."""
    guest, memblock = state.guest, state.arch.memblock
    free = subtract(memblock.free_ranges(), [state.free_memory.slab])
    pages = load_normal_segments(guest, image, free, state.config.page_size)
    if image.head & IND_DONE:
        return None
    mapped = across_pages(memblock.mappable(), state.config.page_size)
    return prepare_relocation(guest, image, pages, mapped, state.tables.fmt)
