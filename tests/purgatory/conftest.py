"""A board just large enough for the purgatory, which notices every access that silicon would refuse."""

from __future__ import annotations

import enum
import hashlib
import os
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
from unicorn.arm64_const import UC_CPU_ARM64_A57 as CPU_A57
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_INTR

TOP = Path(__file__).resolve().parents[2]
# Another one in its place is tried by tests/mutation/purgatory.py.
SHIPPED = Path(os.environ.get("KEXECEMU_TEST_PURGATORY", TOP / "purgatory" / "purgatory.ro"))

RAM, RAM_SIZE = 0x40000000, 0x400000
PURGATORY = 0x403C0000  # high in the region, as a kernel puts it
UART = 0x09000000
KERNEL_ENTRY = 0x40200000
DTB = 0x40380000

R_LD_PREL_LO19, R_ADR_PREL_LO21, R_CALL26 = 273, 274, 283

Region = tuple[int, int]

# Symbols that a purgatory has by an option, and that need not be there.
OPTIONAL = {
    f"purgatory_{name}"
    for name in (
        "uart_base", "policy", "psci_conduit", "no_mmu", "no_crypto",
        "region_digests", "page_digests", "copy", "chosen",
    )
}  # fmt: skip


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
    flags: int
    damaged: int
    damaged_pages: int
    esr: int
    elr: int
    far: int
    ranges: int
    damage: list[Region]

    FORMAT = "<8sIIQ32s32sIIQQQQII32Q"

    @classmethod
    def unpack(cls, raw: bytes) -> Verdict:
        *head, ranges, _reserved = (values := struct.unpack(cls.FORMAT, raw))[:14]
        flat = values[14:]
        return cls(*head, ranges, list(zip(flat[::2], flat[1::2], strict=True))[:ranges])


NO_VERDICT = Verdict(b"", 0, 0, 0, b"", b"", 0, 0, 0, 0, 0, 0, 0, [])


class El(enum.Enum):
    """Where the purgatory is entered."""

    EL1 = 1
    EL2 = 2
    VHE = 3


@dataclass(frozen=True)
class Mode:
    """How it is to check: at which exception level, with caches on or off, by which instructions."""

    el: El = El.EL1
    mmu: bool = True
    crypto: bool = True

    def __str__(self) -> str:
        return f"{self.el.name}-{'caches' if self.mmu else 'nocaches'}-{'sha2' if self.crypto else 'scalar'}"

    @property
    def words(self) -> str:
        """How the purgatory announces it."""
        return HOW[0][self.mmu] + HOW[1][self.crypto]


MODES = [Mode(el, mmu, crypto) for el in El for mmu in (True, False) for crypto in (True, False)]
# Unicorn sets HCR_EL2.E2H and then does not redirect the registers whose names end in _EL1: VHE is QEMU's to show.
EMULATED_MODES = [mode for mode in MODES if mode.el is not El.VHE]

SCTLR_EL1, SCTLR_EL2 = (1, 0, 3, 0, 0), (1, 0, 3, 4, 0)
CPACR_EL1, CPTR_EL2 = (1, 0, 3, 0, 2), (1, 1, 3, 4, 2)
HCR_EL2, SCR_EL3 = (1, 1, 3, 4, 0), (1, 1, 3, 6, 0)
VBAR_EL1, VBAR_EL2 = (12, 0, 3, 0, 0), (12, 0, 3, 4, 0)
# cptr_el2: RES1 bits and TFP.
CPTR_TRAPS = 0x33FF | 1 << 10
HOW = {True: ", caches on", False: ""}, {True: ", SHA-2 instructions", False: ""}
EXCP_HVC, EXCP_SMC = 11, 13
LD1_16B_4 = 0x4CDF2000  # ld1 {v.16b x 4}, [x], #64: elements of a byte, which are aligned anywhere


def sysreg(uc: Uc, name: tuple[int, int, int, int, int]) -> int:
    """Read a system register: (crn, crm, op0, op1, op2)."""
    return int(uc.reg_read(arm64.UC_ARM64_REG_CP_REG, name))


def set_sysreg(uc: Uc, name: tuple[int, int, int, int, int], value: int) -> None:
    """Write a system register."""
    uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*name, value))


def enter_el(uc: Uc, el: El) -> None:
    """What a kernel that ran at this level leaves: MMU off, everything masked, FP and SIMD trapped."""
    set_sysreg(uc, SCR_EL3, 1 | 1 << 8 | 1 << 10)
    set_sysreg(uc, HCR_EL2, 1 << 31)
    uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5 if el is El.EL1 else 0x3C9)
    set_sysreg(uc, CPTR_EL2, CPTR_TRAPS if el is El.EL2 else 0x33FF)
    set_sysreg(uc, CPACR_EL1, 0)


def sctlr_of(uc: Uc, el: El) -> int:
    """SCTLR of the level that the purgatory runs at."""
    return sysreg(uc, SCTLR_EL1 if el is El.EL1 else SCTLR_EL2)


@dataclass
class Run:
    """What a run of the purgatory came to."""

    pc: int
    registers: dict[str, int]
    console: bytes
    verdict: Verdict
    instructions: int
    foreign: list[Region]  # data accesses outside of image, regions and UART
    unaligned: list[Region]  # those that Device memory refuses
    sctlr: int = 0  # at the end, of the level that it ran at
    calls: list[tuple[int, int]] = field(default_factory=list)  # (exception number, x0) of HVC and SMC
    memory: Callable[[int, int], bytes] = lambda phys, size: b""
    system: dict[str, int] = field(default_factory=dict)
    vectors: list[int] = field(default_factory=list)  # q0 to q31


@dataclass
class Bench:
    """One purgatory in an otherwise empty machine."""

    loaded: Loaded
    phys: int
    memory: list[tuple[int, bytes]] = field(default_factory=list)
    fifo_full_reads: int = 0  # how often FR says "full" before each byte
    mode: Mode = Mode()

    def put(self, phys: int, data: bytes) -> Region:
        """Put bytes into RAM, and return the region they are."""
        self.memory.append((phys, data))
        return phys, len(data)

    def image_with(
        self,
        regions: list[Region],
        digest: bytes,
        entry: int,
        uart: int,
        symbols: dict[str, bytes] | None = None,
    ) -> bytes:
        """The segment as loaded: code, symbols set, zeros where the page tables will be.

        symbols are the optional ones; purgatory_self_digest: b"" puts the right one.
        """
        image = bytearray(self.loaded.image) + bytes(self.loaded.memsz - len(self.loaded.image))
        packed = b"".join(struct.pack("<QQ", *region) for region in regions)
        values = {
            "purgatory_sha_regions": packed.ljust(256, b"\0"),
            "purgatory_sha256_digest": digest,
            "purgatory_kernel_entry": struct.pack("<Q", entry),
            "purgatory_uart_base": struct.pack("<Q", uart),
            **(symbols or {}),
        }
        own = values.pop("purgatory_self_digest", None)
        for name, value in values.items():
            if name in OPTIONAL - self.loaded.symbols.keys():
                continue
            address, size = self.loaded.symbols[name]
            assert size == len(value)
            image[address - self.phys : address - self.phys + size] = value
        if own is not None:
            at = self.loaded.symbols["purgatory_self_digest"][0] - self.phys
            image[at : at + 32] = own or hashlib.sha256(image[:at]).digest()
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
        mode: Mode | None = None,
        symbols: dict[str, bytes] | None = None,
        start: str = "purgatory_start",
        also: list[Region] | None = None,
        ends: tuple[int, ...] = (),
    ) -> Run:
        """Enter by the kernel's contract; end at the kernel's entry, the stop loop, or one of `ends`.

        `also` are places that it may read and write besides its own.
        """
        mode = mode or self.mode
        assert mode in EMULATED_MODES
        uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=CPU_A57)
        uc.ctl_exits_enabled(
            True
        )  # and there is none: with an exit address the engine fetches from there at the end
        uc.mem_map(RAM, RAM_SIZE)
        uc.mem_write(RAM, b"\xa5" * RAM_SIZE)  # nobody clears memory for a purgatory
        for phys, data in self.memory:
            uc.mem_write(phys, data)
        values = {
            "purgatory_no_mmu": struct.pack("<Q", not mode.mmu),
            "purgatory_no_crypto": struct.pack("<Q", not mode.crypto),
            **(symbols or {}),
        }
        uc.mem_write(self.phys, self.image_with(regions, digest, entry, uart, values))

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
        more = [(phys, phys + size) for phys, size in also or []]
        readable = [own, (UART, UART + 0x1000), *((phys, phys + size) for phys, size in regions), *more]
        writable = [own, (UART, UART + 0x1000), *more]
        foreign: list[Region] = []
        unaligned: list[Region] = []

        def on_access(allowed: list[Region]) -> Callable[..., None]:
            def hook(uc: Uc, _access: int, address: int, size: int, _value: int, _data: object) -> None:
                if not any(begin <= address and address + size <= end for begin, end in allowed):
                    foreign.append((address, size))
                if address % size:
                    (word,) = struct.unpack("<I", uc.mem_read(uc.reg_read(arm64.UC_ARM64_REG_PC), 4))
                    if word != LD1_16B_4 | word & 0x3FF:
                        unaligned.append((address, size))

            return hook

        if watch:
            uc.hook_add(UC_HOOK_MEM_READ, on_access(readable))
            uc.hook_add(UC_HOOK_MEM_WRITE, on_access(writable))
        instructions = [0]

        def on_block(_uc: Uc, _address: int, size: int, _data: object) -> None:
            instructions[0] += size // 4

        uc.hook_add(UC_HOOK_BLOCK, on_block)
        calls: list[tuple[int, int]] = []
        restart: list[int] = []

        def on_exception(uc: Uc, number: int, _data: object) -> None:
            if number in (EXCP_HVC, EXCP_SMC):
                calls.append((number, uc.reg_read(arm64.UC_ARM64_REG_X0)))
                uc.reg_write(arm64.UC_ARM64_REG_X0, (1 << 64) - 1)  # NOT_SUPPORTED: it has to go on by itself
                return
            # What the CPU does: vector to +0x200 of the level's VBAR. The syndrome is the engine's own business.
            restart.append(sysreg(uc, VBAR_EL1 if mode.el is El.EL1 else VBAR_EL2) + 0x200)
            uc.emu_stop()

        uc.hook_add(UC_HOOK_INTR, on_exception)
        stop = self.loaded.symbols["purgatory_stop"][0]
        for end in (stop, KERNEL_ENTRY, *ends):
            uc.hook_add(UC_HOOK_CODE, lambda uc, *_: uc.emu_stop(), begin=end, end=end)

        # The contract: x0 = dtb, x1..x3 = 0, all else junk.
        enter_el(uc, mode.el)
        for index in range(31):
            uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), 0xBAD0000 + index)
        uc.reg_write(arm64.UC_ARM64_REG_SP, 0xBAD)
        uc.reg_write(arm64.UC_ARM64_REG_X0, DTB)
        for index in (1, 2, 3):
            uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), 0)
        # The vector registers belong to somebody else. Reading and writing them here needs the unit on.
        for index in range(32):
            uc.reg_write(getattr(arm64, f"UC_ARM64_REG_Q{index}"), 0xF00D << 100 | index)
        if before:
            before(uc)
        uc.emu_start(self.loaded.symbols[start][0], 0, count=limit)
        for _ in range(3):
            if restart:
                uc.emu_start(restart.pop(), 0, count=limit)

        record = self.loaded.symbols.get("purgatory_verdict")
        registers = {f"x{i}": uc.reg_read(getattr(arm64, f"UC_ARM64_REG_X{i}")) for i in range(31)}
        registers["sp"] = uc.reg_read(arm64.UC_ARM64_REG_SP)
        return Run(
            pc=uc.reg_read(arm64.UC_ARM64_REG_PC),
            registers=registers,
            console=bytes(console),
            verdict=Verdict.unpack(bytes(uc.mem_read(*record))) if record else NO_VERDICT,
            instructions=instructions[0],
            foreign=foreign,
            unaligned=unaligned,
            sctlr=sctlr_of(uc, mode.el),
            calls=calls,
            memory=lambda phys, size: bytes(uc.mem_read(phys, size)),
            system={
                "cpacr": sysreg(uc, CPACR_EL1),
                "cptr": sysreg(uc, CPTR_EL2),
                "vbar": sysreg(uc, VBAR_EL1 if mode.el is El.EL1 else VBAR_EL2),
                "spsel": uc.reg_read(arm64.UC_ARM64_REG_PSTATE) & 1,
            },
            vectors=[uc.reg_read(getattr(arm64, f"UC_ARM64_REG_Q{i}")) for i in range(32)],
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
        yield SHIPPED


@pytest.fixture(params=[Mode(), Mode(mmu=False, crypto=False)], ids=str)
def bench_at(purgatory_ro: Path, request: pytest.FixtureRequest) -> Callable[[int], Bench]:
    """Machines with the purgatory loaded at the physical address given, as it checks by itself and at its plainest."""
    return lambda phys: Bench(load(purgatory_ro, phys), phys, mode=request.param)


@pytest.fixture
def bench(bench_at: Callable[[int], Bench]) -> Bench:
    """A machine with the purgatory loaded."""
    return bench_at(PURGATORY)
