"""The first kernel's guest image: its symbols, its structures and where it lies in guest RAM."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kexecemu.data import fixture_path
from kexecemu.formats import elfimage
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["GuestKernel", "Vmlinux", "guest_vmlinux", "load_vmlinux"]

_UTS_LENGTH = 65  # __NEW_UTS_LEN and its end
_HVC, _SMC = (0xD4000002).to_bytes(4, "little"), (0xD4000003).to_bytes(4, "little")  # hvc #0, smc #0


@shown()
@dataclass(frozen=True)
class Vmlinux:
    """A linked guest kernel: virtual addresses of symbols, offsets of structure members in bytes."""

    path: Path
    elf: elfimage.ElfImage
    layout: dict[str, Any]

    def virt(self, symbol: str) -> int:
        """The virtual address at which a symbol is linked; KeyError when there is none."""
        return self.elf.symbols[symbol]

    def sizeof(self, struct: str) -> int:
        """Size of a structure in bytes."""
        return int(self.layout["structs"][struct]["size"])

    def offsetof(self, struct: str, member: str) -> int:
        """Offset of a structure's member in bytes."""
        return int(self.members(struct)[member])

    def members(self, struct: str) -> Mapping[str, int]:
        """Offsets of all of a structure's members, in bytes: which there are depends on the era."""
        found: Mapping[str, int] = self.layout["structs"][struct]["members"]
        return found

    def bitfield_shift(self, struct: str, member: str) -> int:
        """By how many bits a member is above the beginning of the word that it is a part of."""
        return int(self.layout["structs"][struct]["bitfields"][member]["shift"])

    @property
    def build_id(self) -> str:
        """The GNU build id in hex, as VMCOREINFO carries it."""
        return self.elf.build_id.hex() if self.elf.build_id else ""

    @property
    def size(self) -> int:
        """Bytes from _text to _end."""
        return self.virt("_end") - self.virt("_text")

    def string(self, virt: int) -> str:
        """The C string that is linked at a virtual address, whatever memory holds there; "" where nothing is."""
        for segment in self.elf.segments:
            if 0 <= virt - segment.vaddr < len(segment.data):
                return segment.data[virt - segment.vaddr :].partition(b"\0")[0].decode("utf-8", "replace")
        return ""

    def describe(self, virt: int, *, backtrace: bool = False) -> str:
        """%pS of a virtual address: symbol+0xoffset/0xsize, the size up to the next symbol's address.

        backtrace is %pSb: a return address belongs to the call before it, which may be a function's last instruction.
        """
        names = _sorted_symbols(self.path)
        if not self.virt("_text") <= virt - backtrace < self.virt("_end"):
            return f"{virt:#x}"
        address, name = names[bisect_right(names, (virt - backtrace, "\uffff")) - 1]
        after = bisect_right(names, (address, "\uffff"))
        end = names[after][0] if after < len(names) else self.virt("_end")
        return f"{name}+{virt - address:#x}/{end - address:#x}"


@cache
def _sorted_symbols(path: Path) -> list[tuple[int, str]]:
    symbols = load_vmlinux(path).elf.symbols
    return sorted((virt, name) for name, virt in symbols.items() if not name.startswith("$"))


@cache
def load_vmlinux(path: Path | None = None) -> Vmlinux:
    """Read the guest kernel that ships (or another with the same interface) and the layout beside it."""
    path = path or fixture_path("guests/vmlinux")
    layout = json.loads(path.with_name(f"{path.name}.layout.json").read_text())
    return Vmlinux(path, elfimage.parse(path.read_bytes()), layout)


def guest_vmlinux(config: KernelConfig) -> Vmlinux:
    """The guest kernel that ships for a configuration: its era's structures, linked where its page size wants it."""
    small = "-16k" if config.vabits_actual < 48 else ""
    return load_vmlinux(fixture_path(f"guests/{config.release.rules.guest}{small}"))


@shown("area", "vmlinux")
class GuestKernel:
    """The image in guest RAM: variables are read and written where the CPU sees them, and nowhere else."""

    def __init__(self, vmlinux: Vmlinux, ram: Ram, space: AddressSpace) -> None:
        self.vmlinux = vmlinux
        self.ram = ram
        self.space = space

    def load(self, era: Era, conduit: str = "hvc") -> None:
        """Copy the ELF segments to their physical places, bss cleared (what a boot loader and head.S do).

        What is linked says that it is the release whose structures it has: here it gets the era's. Its calls of PSCI
        are those of the board, "hvc" or "smc", patched as Linux patches its SMCCC conduit.
        """
        base = self.vmlinux.virt("_text")
        for segment in self.vmlinux.elf.segments:
            phys = segment.vaddr - base + self.space.kimage_phys
            self.ram.write(phys, segment.data)
            if segment.memsz > segment.filesz:
                self.ram.fill(phys + segment.filesz, segment.memsz - segment.filesz)
        if conduit == "smc":
            self._call_by_smc()
        release_phys = self.phys("init_uts_ns") + self.vmlinux.offsetof("new_utsname", "release")
        linked = self.ram.read_cstring(release_phys, _UTS_LENGTH)
        release = f"{era.value}.0-kexecemu".encode()
        self.ram.write(release_phys, release.ljust(_UTS_LENGTH, b"\0"))
        banner_phys, size = self.phys("linux_banner"), self.vmlinux.elf.symbol_table["linux_banner"].size
        banner = self.ram.read_cstring(banner_phys, size).replace(linked, release)
        self.ram.write(banner_phys, banner.ljust(size, b"\0"))

    def _call_by_smc(self) -> None:
        start, end = self.phys("_stext"), self.phys("_etext")
        text = self.ram.read(start, end - start)
        for at in range(0, len(text), 4):
            if text[at : at + 4] == _HVC:
                self.ram.write(start + at, _SMC)

    @property
    def area(self) -> PhysRange:
        """The physical range from _text to _end."""
        return PhysRange.of(self.space.kimage_phys, self.vmlinux.size)

    def phys(self, symbol: str) -> int:
        """Physical address of a symbol."""
        return (self.vmlinux.virt(symbol) - self.space.kimage_voffset) % (1 << 64)

    def read(self, symbol: str, offset: int = 0) -> int:
        """The u64 at a symbol plus an offset in bytes."""
        return self.ram.read_u64(self.phys(symbol) + offset)

    def write(self, symbol: str, value: int, offset: int = 0) -> None:
        """Set the u64 at a symbol plus an offset in bytes."""
        self.ram.write_u64(self.phys(symbol) + offset, value % (1 << 64))

    def read_u32(self, symbol: str, offset: int = 0) -> int:
        """The u32 at a symbol plus an offset in bytes."""
        return self.ram.read_u32(self.phys(symbol) + offset)

    def write_u32(self, symbol: str, value: int, offset: int = 0) -> None:
        """Set the u32 at a symbol plus an offset in bytes."""
        self.ram.write_u32(self.phys(symbol) + offset, value % (1 << 32))

    def read_virt(self, virt: int, length: int) -> bytes:
        """`length` bytes at a kernel virtual address (linear map or image; arithmetic, no table walk)."""
        return self.ram.read(self.space.virt_to_phys(virt), length)

    def string(self, virt: int, limit: int = 256) -> str:
        """The C string at a kernel virtual address, at most `limit` bytes."""
        return self.ram.read_cstring(self.space.virt_to_phys(virt), limit).decode("utf-8", "replace")
