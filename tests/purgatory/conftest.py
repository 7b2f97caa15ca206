"""A board just large enough for the purgatory, which notices every access that silicon would refuse."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64
from unicorn.unicorn_const import UC_HOOK_BLOCK

TOP = Path(__file__).resolve().parents[2]

RAM, RAM_SIZE = 0x40000000, 0x400000
PURGATORY = 0x403FC000  # where a real 6.1 kernel puts it: high in the region, not at its very end
UART = 0x09000000
KERNEL_ENTRY = 0x40200000
DTB = 0x40380000

R_LD_PREL_LO19, R_ADR_PREL_LO21, R_CALL26 = 273, 274, 283

Region = tuple[int, int]


@dataclass(frozen=True)
class Loaded:
    """purgatory.ro laid out and relocated for one address, as kexec_load_purgatory() does."""

    image: bytes
    memsz: int
    symbols: dict[str, Region]  # address, size


def load(path: Path, phys: int) -> Loaded:
    """A loader of its own, so that the product's loader and the purgatory do not share a mistake.

    It knows the three relocations that a purgatory of the tiny code model may have, and nothing else.
    """
    elf = ELFFile(BytesIO(path.read_bytes()))
    addresses: dict[int, int] = {}
    image = bytearray()
    alloc = [(i, s) for i, s in enumerate(elf.iter_sections()) if s["sh_flags"] & 2]
    for index, section in (pair for pair in alloc if pair[1]["sh_type"] != "SHT_NOBITS"):
        image += bytes(-len(image) % section["sh_addralign"])
        addresses[index] = phys + len(image)
        image += section.data()
    end = phys + len(image)
    for index, section in (pair for pair in alloc if pair[1]["sh_type"] == "SHT_NOBITS"):
        end += -end % section["sh_addralign"]
        addresses[index] = end
        end += section["sh_size"]

    symtab = elf.get_section_by_name(".symtab")
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_RELA" or section["sh_info"] not in addresses:
            continue
        for relocation in section.iter_relocations():
            symbol = symtab.get_symbol(relocation["r_info_sym"])
            place = addresses[section["sh_info"]] + relocation["r_offset"]
            target = addresses[symbol["st_shndx"]] + symbol["st_value"] + relocation["r_addend"]
            offset = target - place
            at = place - phys
            (word,) = struct.unpack_from("<I", image, at)
            kind = relocation["r_info_type"]
            if kind == R_LD_PREL_LO19:
                assert offset % 4 == 0
                word |= (offset >> 2 & 0x7FFFF) << 5
            elif kind == R_ADR_PREL_LO21:
                word |= (offset & 3) << 29 | (offset >> 2 & 0x7FFFF) << 5
            elif kind == R_CALL26:
                word |= offset >> 2 & 0x3FFFFFF
            else:
                raise AssertionError(f"relocation type {kind}")
            struct.pack_into("<I", image, at, word)
    symbols = {
        symbol.name: (addresses[symbol["st_shndx"]] + symbol["st_value"], symbol["st_size"])
        for symbol in symtab.iter_symbols()
        if symbol["st_shndx"] in addresses and symbol.name
    }
    return Loaded(bytes(image), end - phys, symbols)


@dataclass(frozen=True)
class Verdict:
    """struct purgatory_verdict, read back."""

    magic: bytes
    version: int
    state: int
    bytes_hashed: int
    expected: bytes
    found: bytes


@dataclass
class Run:
    """What a run of the purgatory came to."""

    pc: int
    registers: dict[str, int]
    console: bytes
    verdict: Verdict
    instructions: int
    foreign: list[Region]  # data accesses outside of image, regions and UART
    unaligned: list[Region]


@dataclass
class Bench:
    """One purgatory in an otherwise empty machine."""

    loaded: Loaded
    phys: int
    memory: list[tuple[int, bytes]] = field(default_factory=list)
    fifo_full_reads: int = 0  # how often FR says "full" before each byte

    def put(self, phys: int, data: bytes) -> Region:
        """Put bytes into RAM, and return the region they are."""
        self.memory.append((phys, data))
        return phys, len(data)

    def image_with(self, regions: list[Region], digest: bytes, entry: int, uart: int) -> bytes:
        """The segment as loaded: code, symbols set, zeros where the stack is."""
        image = bytearray(self.loaded.image) + bytes(self.loaded.memsz - len(self.loaded.image))
        packed = b"".join(struct.pack("<QQ", *region) for region in regions)
        for name, value in {
            "purgatory_sha_regions": packed.ljust(256, b"\0"),
            "purgatory_sha256_digest": digest,
            "purgatory_kernel_entry": struct.pack("<Q", entry),
            "purgatory_uart_base": struct.pack("<Q", uart),
        }.items():
            address, size = self.loaded.symbols[name]
            assert size == len(value)
            image[address - self.phys : address - self.phys + size] = value
        return bytes(image)

    def run(
        self,
        regions: list[Region],
        digest: bytes,
        *,
        entry: int = KERNEL_ENTRY,
        uart: int = UART,
        watch: bool = True,
        before: Callable[[Uc], None] | None = None,
        limit: int = 0,
    ) -> Run:
        """Enter at purgatory_start by the kernel's contract; end at the kernel's entry or the stop loop."""
        uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        uc.mem_map(RAM, RAM_SIZE)
        uc.mem_write(RAM, b"\xa5" * RAM_SIZE)  # nobody clears memory for a purgatory
        for phys, data in self.memory:
            uc.mem_write(phys, data)
        uc.mem_write(self.phys, self.image_with(regions, digest, entry, uart))

        console = bytearray()
        waits = [self.fifo_full_reads]

        def uart_read(_uc: Uc, offset: int, size: int, _data: object) -> int:
            assert (offset, size) == (0x18, 4)
            waits[0] -= 1
            return 0x20 if waits[0] >= 0 else 0

        def uart_write(_uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
            assert (offset, size) == (0, 4)
            assert waits[0] < 0, "a byte was sent into a full FIFO"
            console.append(value)
            waits[0] = self.fifo_full_reads

        uc.mmio_map(UART, 0x1000, uart_read, None, uart_write, None)

        own = (self.phys, self.phys + self.loaded.memsz)
        readable = [own, (UART, UART + 0x1000), *((start, start + size) for start, size in regions)]
        writable = [own, (UART, UART + 0x1000)]
        foreign: list[Region] = []
        unaligned: list[Region] = []

        def on_access(allowed: list[Region]) -> Callable[..., None]:
            def hook(_uc: Uc, _access: int, address: int, size: int, _value: int, _data: object) -> None:
                if not any(start <= address and address + size <= end for start, end in allowed):
                    foreign.append((address, size))
                if address % size:
                    unaligned.append((address, size))

            return hook

        if watch:
            uc.hook_add(UC_HOOK_MEM_READ, on_access(readable))
            uc.hook_add(UC_HOOK_MEM_WRITE, on_access(writable))
        instructions = [0]

        def on_block(_uc: Uc, _address: int, size: int, _data: object) -> None:
            instructions[0] += size // 4

        uc.hook_add(UC_HOOK_BLOCK, on_block)
        stop = self.loaded.symbols["purgatory_stop"][0]
        for end in (stop, KERNEL_ENTRY):
            uc.hook_add(UC_HOOK_CODE, lambda uc, *_: uc.emu_stop(), begin=end, end=end)

        # The contract: x0 = dtb, x1..x3 = 0, all else junk.
        for index in range(31):
            uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), 0xBAD0000 + index)
        uc.reg_write(arm64.UC_ARM64_REG_SP, 0xBAD)
        uc.reg_write(arm64.UC_ARM64_REG_X0, DTB)
        for index in (1, 2, 3):
            uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), 0)
        if before:
            before(uc)
        uc.emu_start(self.loaded.symbols["purgatory_start"][0], 0, count=limit)

        address, size = self.loaded.symbols["purgatory_verdict"]
        verdict = struct.unpack("<8sIIQ32s32s", uc.mem_read(address, size))
        registers = {f"x{i}": uc.reg_read(getattr(arm64, f"UC_ARM64_REG_X{i}")) for i in range(31)}
        registers["sp"] = uc.reg_read(arm64.UC_ARM64_REG_SP)
        return Run(
            pc=uc.reg_read(arm64.UC_ARM64_REG_PC),
            registers=registers,
            console=bytes(console),
            verdict=Verdict(*verdict),
            instructions=instructions[0],
            foreign=foreign,
            unaligned=unaligned,
        )


def build_by(compiler: str, out: Path) -> Path:
    """Build the purgatory by the compiler named, or skip the test where that compiler is missing."""
    if compiler == "gcc" and shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("aarch64-linux-gnu-gcc is not installed")
    if compiler == "zig":
        pytest.importorskip("ziglang")
    command = [sys.executable, "fixtures/build.py", "--compiler", compiler, "--out", str(out), "purgatory"]
    subprocess.run(command, cwd=TOP, check=True)
    return out / "purgatory"


@pytest.fixture(scope="session")
def gcc_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with gcc's purgatory.ro and purgatory.chk."""
    return build_by("gcc", tmp_path_factory.mktemp("gcc"))


@pytest.fixture(scope="session", params=["shipped", "gcc"])
def purgatory_ro(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The object that ships, and gcc's: what one does the other has to do."""
    if request.param == "gcc":
        yield request.getfixturevalue("gcc_build") / "purgatory.ro"
    else:
        yield TOP / "purgatory" / "purgatory.ro"


@pytest.fixture
def bench_at(purgatory_ro: Path) -> Callable[[int], Bench]:
    """Machines with the purgatory loaded at the physical address given."""
    return lambda phys: Bench(load(purgatory_ro, phys), phys)


@pytest.fixture
def bench(bench_at: Callable[[int], Bench]) -> Bench:
    """A machine with the purgatory loaded."""
    return bench_at(PURGATORY)
