"""Linking and placing a purgatory: kexec_load_purgatory() and its symbol access (kernel/kexec_file.c).

A purgatory is a relocatable ELF object; the kernel is its linker. The order is its own: sizes first
(kexec_purgatory_setup_kbuf()), then a place, then section addresses (kexec_purgatory_setup_sechdrs()), then relocations
(kexec_apply_relocations()).
"""

from collections.abc import Callable
from errno import EINVAL, ENOEXEC, ENOMEM

from kexecemu.errors import FormatError, InputError, KexecError
from kexecemu.formats import elfrel
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.image.relocate import relocate
from kexecemu.kernel.image.segment import Segment
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.suggest import did_you_mean

__all__ = ["LoadedPurgatory", "link_at", "parse_purgatory"]

_SHT_NULL, _SHT_RELA, _SHT_NOBITS, _SHT_REL = 0, 4, 8, 9
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_STT_FILE, _STT_SECTION = 4, 3

_BUFFER_MAX = 1 << 30  # alignments may ask for any size; a purgatory has pages

Placer = Callable[[bytearray, int, int], Segment]


def parse_purgatory(data: bytes, name: str = "purgatory") -> elfrel.RelocatableObject:
    """Read a purgatory object; raises KexecError(ENOEXEC) with the reason when it is none for aarch64."""
    try:
        return elfrel.parse(data)
    except FormatError as error:
        raise KexecError(ENOEXEC, "kexec_load_purgatory", f"{name}: {error}") from error


@shown("entry", "segment", "buf")
class LoadedPurgatory:
    """struct purgatory_info: the linked image of a purgatory, its place and its symbols.

    `place` is called with (buffer, memsz, align) in bytes and returns the segment that it became; that is
    kexec_add_buffer() with the caller's limits.
    """

    def __init__(self, obj: elfrel.RelocatableObject, place: Placer) -> None:
        self._obj = obj
        self._offsets: dict[int, int] = {}  # section index -> offset in the buffer; NOBITS have none
        self._addresses: dict[int, int] = {}  # section index -> physical address
        bufsz, memsz, align = self._measure()
        self.buf = bytearray(bufsz)
        self.segment = place(self.buf, memsz, align)
        self.entry = self._lay_out()
        self._relocate()

    def _allocated(self) -> list[elfrel.Section]:
        return [one for one in self._obj.sections if one.flags & _SHF_ALLOC and one.type != _SHT_NULL]

    def _measure(self) -> tuple[int, int, int]:
        """kexec_purgatory_setup_kbuf(): sizes of the buffer and in memory, and the alignment, all in bytes."""
        bufsz = bss_size = 0
        buf_align = bss_align = 1
        for section in self._allocated():
            align = max(section.align, 1)
            if section.type == _SHT_NOBITS:
                bss_align = max(bss_align, align)
                bss_size = align_up(bss_size, align) + section.size
            else:
                buf_align = max(buf_align, align)
                bufsz = align_up(bufsz, align) + section.size
        if not bufsz:
            raise KexecError(EINVAL, "kexec_load_purgatory", "purgatory: nothing in it is to be loaded")
        bufsz = align_up(bufsz, bss_align)
        if bufsz > _BUFFER_MAX:
            reason = f"purgatory: its sections and alignments take {bufsz:#x} bytes"
            raise KexecError(ENOMEM, "kexec_load_purgatory", reason)
        return bufsz, bufsz + bss_size, max(buf_align, bss_align)

    def _lay_out(self) -> int:
        """kexec_purgatory_setup_sechdrs(): copy the sections to their places; returns the entry's physical address."""
        base = self.segment.mem
        offset, bss_addr = 0, base + len(self.buf)
        start = self._obj.entry
        found_by_entry = False
        symbol = self._find_symbol("purgatory_start")
        entry_section = symbol.shndx if symbol else None
        entry: int | None = None
        for section in self._allocated():
            if section.type == _SHT_NOBITS:
                bss_addr = align_up(bss_addr, section.align)
                self._addresses[section.index] = bss_addr
                bss_addr += section.size
                continue
            offset = align_up(offset, section.align)
            if section.flags & _SHF_EXECINSTR:
                if symbol and section.index == entry_section and symbol.value < section.size:
                    entry = base + offset + symbol.value
                elif not found_by_entry and section.addr <= start < section.addr + section.size:
                    found_by_entry = True
                    start = start - section.addr + base + offset
            self.buf[offset : offset + section.size] = section.data
            self._addresses[section.index] = base + offset
            self._offsets[section.index] = offset
            offset += section.size
        if entry is None and not found_by_entry:
            reason = "purgatory: no purgatory_start in executable code"
            raise KexecError(ENOEXEC, "kexec_purgatory_setup_sechdrs", reason)
        return start if entry is None else entry

    def _relocate(self) -> None:
        """kexec_apply_relocations(): every RELA section whose target is loaded."""
        step = "arch_kexec_apply_relocations_add"
        for section in self._obj.sections:
            if section.type not in (_SHT_RELA, _SHT_REL):
                continue
            if max(section.info, section.link) >= len(self._obj.sections):
                reason = "purgatory: relocation section has no target"
                raise KexecError(ENOEXEC, "kexec_apply_relocations", reason)
            if section.info not in self._offsets:
                continue
            if section.type == _SHT_REL:
                reason = "purgatory: REL relocation unsupported."
                raise KexecError(ENOEXEC, "arch_kexec_apply_relocations", reason)
            target = self._obj.sections[section.info]
            buf_at, phys = self._offsets[target.index], self._addresses[target.index]
            for rela in self._obj.relocations[section.index]:
                at = rela.offset
                where = f"purgatory: {target.name}+{at:#x}"
                value = self._symbol_value(rela.symbol, step, where)
                if at >= target.size:
                    raise KexecError(ENOEXEC, step, f"{where} is outside its section")
                relocate(rela.type, self.buf, buf_at + at, phys + at, value, rela.addend)

    def _symbol_value(self, index: int, step: str, where: str) -> int:
        """S of a relocation: the physical address of symbol number `index`."""
        if index >= len(self._obj.symbols):
            raise KexecError(ENOEXEC, step, f"{where}: no symbol number {index}")
        symbol = self._obj.symbols[index]
        name = symbol.name or "(section)"
        if symbol.shndx == _SHN_UNDEF:
            if index == 0:
                return 0
            raise KexecError(ENOEXEC, step, f"{where}: Undefined symbol: {name}")
        if symbol.shndx == _SHN_COMMON:
            raise KexecError(ENOEXEC, step, f"{where}: symbol '{name}' in common section")
        if symbol.shndx == _SHN_ABS:
            return symbol.value
        if symbol.shndx not in self._addresses:
            raise KexecError(ENOEXEC, step, f"{where}: Invalid section {symbol.shndx} for symbol {name}")
        return symbol.value + self._addresses[symbol.shndx]

    def _find_symbol(self, name: str) -> elfrel.Symbol | None:
        """kexec_purgatory_find_symbol(): global and defined, or None."""
        symbol = self._obj.global_symbol(name)
        if symbol is None or symbol.shndx == _SHN_UNDEF or symbol.shndx >= len(self._obj.sections):
            return None
        return symbol

    def has_symbol(self, name: str) -> bool:
        """True for a global symbol that is defined in some section."""
        return self._find_symbol(name) is not None

    def _slot(self, name: str, size: int) -> int:
        step = "kexec_purgatory_get_set_symbol"
        symbol = self._find_symbol(name)
        if symbol is None:
            raise KexecError(EINVAL, step, f"purgatory: symbol {name} does not exist")
        if symbol.size != size:
            reason = f"symbol {name} size mismatch: expected {size} actual {symbol.size}"
            raise KexecError(EINVAL, step, reason)
        offset = self._offsets.get(symbol.shndx)
        if offset is None:
            raise KexecError(EINVAL, step, f"symbol {name} is in a bss section. Cannot set")
        if offset + symbol.value + size > len(self.buf):
            raise KexecError(EINVAL, step, f"symbol {name} lies outside its section")
        return offset + symbol.value

    def symbol_offset(self, name: str) -> int:
        """Where in buf a global symbol lies; KexecError(EINVAL) when there is none, or in a bss section."""
        symbol = self._find_symbol(name)
        return self._slot(name, symbol.size if symbol is not None else 0)

    def section_offset(self, name: str) -> int:
        """Where in buf the section of a global symbol begins; errors as in symbol_offset()."""
        symbol = self._find_symbol(name)
        return self.symbol_offset(name) - (symbol.value if symbol is not None else 0)

    def symbol_size(self, name: str) -> int:
        """st_size of a global symbol in bytes, 0 if there is none."""
        symbol = self._find_symbol(name)
        return 0 if symbol is None else symbol.size

    def scratch(self) -> list[PhysRange]:
        """What the purgatory itself may write when it runs: its writable sections, but not what the loader sets."""
        set_by_loader = self._find_symbol("purgatory_sha_regions")
        return [
            PhysRange.of(self._addresses[section.index], section.size)
            for section in self._allocated()
            if section.flags & _SHF_WRITE
            and section.size
            and (set_by_loader is None or section.index != set_by_loader.shndx)
        ]

    def set_symbol(self, name: str, value: bytes) -> None:
        """kexec_purgatory_get_set_symbol(get_value=false): write a variable of the purgatory before it is loaded.

        Raises KexecError(EINVAL) when it is missing, has another size, or lies in a bss section.
        """
        at = self._slot(name, len(value))
        self.buf[at : at + len(value)] = value

    def symbol_phys(self, name: str) -> int:
        """kexec_purgatory_get_symbol_addr(): the physical address of a global symbol; KexecError(EINVAL) if none."""
        symbol = self._find_symbol(name)
        if symbol is None or symbol.shndx not in self._addresses:
            reason = f"purgatory: symbol {name} does not exist"
            raise KexecError(EINVAL, "kexec_purgatory_get_symbol_addr", reason)
        return self._addresses[symbol.shndx] + symbol.value

    def target(self, base: str) -> PhysRange:
        """For purgatory:SYMBOL: from a symbol, of any linkage, to the segment's end; InputError for none."""
        name, symbols = base.removeprefix("purgatory:"), self.symbol_table()
        if name not in symbols:
            like = did_you_mean(name, symbols)
            raise InputError(f"target {base}: the purgatory has no symbol {name}{like}")
        return PhysRange(symbols[name][0], self.segment.area.end)

    def symbol_table(self) -> dict[str, tuple[int, int]]:
        """All named symbols that were loaded, local ones too: name to (physical address, size in bytes)."""
        table: dict[str, tuple[int, int]] = {}
        for symbol in self._obj.symbols:
            if not symbol.name or symbol.name.startswith("$") or symbol.type in (_STT_FILE, _STT_SECTION):
                continue
            if symbol.shndx in self._addresses:
                table[symbol.name] = (self._addresses[symbol.shndx] + symbol.value, symbol.size)
        return table


def link_at(obj: elfrel.RelocatableObject, phys: int) -> LoadedPurgatory:
    """Link an object at a page, whatever memory there is: to see whether it can be, and how large it is."""
    return LoadedPurgatory(
        obj, lambda buf, memsz, align: Segment("purgatory", buf, phys, align_up(memsz, 4096))
    )
