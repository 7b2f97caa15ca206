"""What the running kernel lends to kexec_file_load(): memory, headers, device tree, protection, its own variables.

This is the arm64 side of the generic load: prepare_elf_headers(), the device tree of the next kernel,
arch_kexec_protect_crashkres(), and struct kimage in guest memory, which the guest's own crash path reads.
"""

from __future__ import annotations

import struct
from dataclasses import asdict
from typing import TYPE_CHECKING

from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.devtree import RNG_SEED_SIZE, kexec_device_tree
from kexecemu.kernel.elfcorehdr import prepare_elf_headers
from kexecemu.kernel.kimage import Kimage
from kexecemu.kernel.protection import protect_crashkres, unprotect_crashkres
from kexecemu.kernel.relocation import Relocation, load_normal_segments, prepare_relocation
from kexecemu.kernel.vmcoreinfo import VMCOREINFO_BYTES, VMCOREINFO_NOTE_SIZE
from kexecemu.machine.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.kernel.model import Kernel

__all__ = ["KexecEnvironment"]

_CRASH_NOTE_SIZE = 424


@shown("crashk_res", "protected", "page_size")
class KexecEnvironment:
    """The running kernel as kexec_file.RunningKernel wants it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.protected: list[PhysRange] = []
        self._relocation: Relocation | None = None

    @property
    def config(self) -> KernelConfig:
        """The running kernel's build."""
        return self._kernel.config

    @property
    def ram(self) -> Ram:
        """Physical memory."""
        return self._kernel.ram

    @property
    def crashk_res(self) -> PhysRange | None:
        """The physical range that is reserved for the crash kernel."""
        return self._kernel.crashk_res

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        return self._kernel.config.page_size

    @property
    def total_ram_pages(self) -> int:
        """totalram_pages(): what memblock had left for the buddy allocator."""
        return sum(area.size for area in self._kernel.arch.memblock.free_ranges()) // self.page_size

    @property
    def console_phys(self) -> int:
        """Physical address of the console's PL011 (0: none)."""
        return self._kernel.console_phys

    def log(self, text: str) -> None:
        """printk()."""
        self._kernel.log(text)

    def say(self, kind: str, text: str, **facts: int | str | bool | None) -> None:
        """Record an event on the board's timeline."""
        self._kernel.say(kind, text, **facts)

    def elf_headers(self) -> bytes:
        """prepare_elf_headers() for the memory and the CPUs of this kernel."""
        reservation = self._kernel.arch.reservation
        note_phys = self._kernel.space.virt_to_phys(self._kernel.guest.read("vmcoreinfo_note"))
        count = len(self._kernel.affinities)
        return prepare_elf_headers(
            crash_notes=[(self._kernel.crash_notes_phys(cpu), _CRASH_NOTE_SIZE) for cpu in range(count)],
            vmcoreinfo_note=(note_phys, VMCOREINFO_NOTE_SIZE),
            kernel_text=(
                self._kernel.space.kimage_vaddr,
                self._kernel.space.kimage_phys,
                self._kernel.space.kimage_size,
            ),
            memory=self._kernel.arch.memblock.memory,
            exclude=[
                area for area in (reservation.crashk_res, reservation.crashk_low_res) if area is not None
            ],
            linear_virt=self._kernel.space.linear_virt,
            possible_cpus=count,
        )

    @property
    def free_memory(self) -> list[PhysRange]:
        """for_each_free_mem_range(): physical memory that memblock has not reserved, ascending."""
        return self._kernel.arch.memblock.free_ranges()

    def next_device_tree(
        self, initrd: PhysRange | None, elfcorehdr: PhysRange | None, cmdline: str | None
    ) -> bytes:
        """of_kexec_alloc_and_setup_fdt() on this kernel's own device tree."""
        reservation = self._kernel.arch.reservation
        random = self._kernel.random if self.config.rng_ready else None
        if random is None:
            self._kernel.log('RNG is not initialised: omitting "kaslr-seed" property')
            self._kernel.log('RNG is not initialised: omitting "rng-seed" property')
        return kexec_device_tree(
            self._kernel.initial_boot_params,
            old_dtb_phys=self._kernel.dtb_phys,
            initrd=(initrd.start, initrd.size) if initrd else None,
            cmdline=cmdline,
            elfcorehdr=(elfcorehdr.start, elfcorehdr.size) if elfcorehdr else None,
            crashk_res=reservation.crashk_res if elfcorehdr else None,
            crashk_low_res=reservation.crashk_low_res if elfcorehdr else None,
            kaslr_seed=random.getrandbits(64) if random else None,
            rng_seed=random.randbytes(RNG_SEED_SIZE) if random else None,
        )

    def copy_vmcoreinfo(self, safecopy: PhysRange) -> bytes:
        """crash_update_vmcoreinfo_safecopy(): the boot's vmcoreinfo into a page there; returns the text."""
        text = self._kernel.vmcoreinfo()
        self.ram.write(safecopy.start, text.ljust(VMCOREINFO_BYTES, b"\0"))
        return text

    def protect(self, image: Kimage) -> None:
        """arch_kexec_protect_crashkres() and the TLB flush that set_memory_valid() ends with."""
        assert self.crashk_res is not None
        self.protected = protect_crashkres(
            self.config.way, self._kernel.tables, self._kernel.space, image, self.crashk_res
        )
        self._flush_tlb_kernel_range()

    def unprotect(self, image: Kimage) -> None:
        """arch_kexec_unprotect_crashkres()."""
        assert self.crashk_res is not None
        unprotect_crashkres(self.config.way, self._kernel.tables, self._kernel.space, image, self.crashk_res)
        self._flush_tlb_kernel_range()
        self.protected = []

    def _flush_tlb_kernel_range(self) -> None:
        for cpu in self._kernel.board.cpus:
            if cpu.powered:
                cpu.flush_tlb()

    def publish(self, image: Kimage | None) -> None:
        """xchg(&kexec_crash_image, image): struct kimage in the guest's memory, for its crash path and for tools."""
        self._kernel.guest.write("kdump_refusal", 0)
        guard = image.guard if image is not None else None
        arch = asdict(guard) if guard is not None else {}
        self._write_kimage("kexec_crash_image", "crash_kimage_storage", image, arch)

    def publish_reboot(self, image: Kimage | None) -> None:
        """xchg(&kexec_image, image)."""
        relocation = self._relocation
        arch = asdict(relocation) if relocation is not None else {}
        self._write_kimage("kexec_image", "kimage_storage", image, arch)

    def _write_kimage(
        self, pointer: str, storage: str, image: Kimage | None, arch: dict[str, int | bytes]
    ) -> None:
        guest, layout = self._kernel.guest, self._kernel.guest.vmlinux
        if image is None:
            guest.write(pointer, 0)
            return
        guest.ram.fill(guest.phys(storage), layout.sizeof("kimage"))
        members = {"head": image.head, "start": image.start, "nr_segments": len(image.segments)}
        for name, value in members.items():
            guest.write(storage, value, layout.offsetof("kimage", name))
        for index, segment in enumerate(image.segments):
            packed = struct.pack("<4Q", 0, segment.bufsz, segment.mem, segment.memsz)
            at = guest.phys(storage) + layout.offsetof("kimage", "segment") + index * len(packed)
            guest.ram.write(at, packed)
        base = guest.phys(storage) + layout.offsetof("kimage", "arch")
        for name, content in {**arch, "dtb_mem": image.dtb_mem if image.file_mode else 0}.items():
            packed = content if isinstance(content, bytes) else struct.pack("<Q", content)
            guest.ram.write(base + layout.offsetof("kimage_arch", name), packed)
        guest.write(pointer, layout.virt(storage))

    def load_normal(self, image: Kimage) -> None:
        """kimage_load_normal_segment() for every segment, then machine_kexec_post_load()."""
        guest, memblock = self._kernel.guest, self._kernel.arch.memblock
        pages = load_normal_segments(guest, image, memblock.free_ranges(), self.page_size)
        self._relocation = prepare_relocation(
            guest, image, pages, memblock.mappable(), self._kernel.tables.fmt
        )
