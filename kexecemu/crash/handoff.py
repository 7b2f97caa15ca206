"""Handing the machine over: QEMU goes on from the moment of the jump out of the first kernel.

At that moment the boot CPU stands at image->start with the MMU off, and everything that can be known is memory and
registers. Both are written to a folder, with the command line that makes qemu-system-aarch64 go on from there: a
second machine that nobody here wrote, to agree or to disagree.

Memory goes to QEMU as files at their addresses. Registers need code; it lies in the board's flash, where firmware
lies, so that the RAM of both machines is the same to the last byte. QEMU also puts a device tree of its own at the
start of RAM and refuses files there: what ours has in that place lies in the flash, too, and the code copies it.
"""

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kexecemu.crash.handoff_code import FLASH_LOW, FLASH_START, LOW_SIZE, start_code
from kexecemu.errors import InputError, MachineError
from kexecemu.files import replace_file, replacing
from kexecemu.folders import replacing_folder
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine import virt
from kexecemu.machine.board import Board
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown
from kexecemu.stray.first import FirstKernel
from kexecemu.visible import json_text

__all__ = ["FILES", "Handoff", "check_board", "write_handoff"]

FILES: Final = ("ram-*.bin", "low.bin", "start.bin", "state.json", "run-qemu.sh")
"""Patterns of what is written."""

_VERSION = 1
_QEMU = "qemu-system-aarch64"
_PAGE = 4096
_CHUNK = 1 << 20
_MERGE_GAP = 16 * _PAGE  # shorter stretches of zeros are written out: fewer files


@dataclass(frozen=True)
class _Piece:
    """One file of the folder, and the physical address in QEMU at which its bytes belong."""

    name: str
    phys: int
    size: int
    sha256: str


@shown()
@dataclass(frozen=True)
class Handoff:
    """What was written: the folder, the exception level at which QEMU goes on, and the command line's words.

    The words name the files with the folder as it was given. files are all that were written.
    """

    folder: Path
    el: int
    command: list[str]
    files: tuple[Path, ...] = ()

    @property
    def script(self) -> Path:
        """The program that runs QEMU; arguments are added to the command line."""
        return self.folder / "run-qemu.sh"


def check_board(board: Board, el: int = 1) -> None:
    """Raise InputError when QEMU's virt has no board like this one."""
    if [bank.start for bank in board.ram.banks] != [virt.RAM_BASE]:
        banks = ", ".join(map(str, board.ram.banks))
        raise InputError(
            f"handoff: QEMU's virt has one bank of RAM from {virt.RAM_BASE:#x}, this board has {banks}"
        )
    if board.ram.size % virt.RAM_GRAIN:
        raise InputError(
            f"handoff: QEMU's RAM comes in pieces of {virt.RAM_GRAIN:#x} bytes, this board has {board.ram.size:#x}"
        )
    if board.uart.base_phys != virt.UART.start:
        raise InputError(
            f"handoff: QEMU's virt has its UART at {virt.UART.start:#x}, this board at {board.uart.base_phys:#x}"
        )
    if board.uart.kind != "pl011" or (board.conduit == "smc" and el == 1):
        # With EL2 it is SMC there.
        it = f"{board.uart.kind or 'none'}, and PSCI by {board.conduit}"
        raise InputError(f"handoff: QEMU's virt has a pl011, and at EL1 PSCI by hvc, this board: {it}")


def write_handoff(
    folder: Path,
    kernel: FirstKernel,
    image: Kimage,
    *,
    el: int = 1,
    alignment_checks: bool = False,
    cpu_model: str = "cortex-a57",
) -> Handoff:
    """Write the machine, whose crashing CPU stands at image.start, to a folder that is made if need be.

    el is the exception level at which QEMU goes on: 1 as here, or 2, where the other registers are the same, MMU and
    caches are off by SCTLR_EL2, and the firmware listens to SMC alone: only a device tree that says so leads there.
    alignment_checks sets SCTLR_ELx.A. cpu_model is QEMU's -cpu.

    Raises InputError for a board that QEMU's virt cannot be, or an image that is entered with the MMU on, MachineError
    when the CPU is not at that moment, OSError when a file cannot be written: then none of them is.
    """
    if el not in (1, 2):
        raise InputError(f"handoff: the exception level is 1 or 2, not {el}")
    board = kernel.board
    check_board(board, el)
    cpu = kernel.crashing_cpu
    if cpu.pc == image.start and image.table_pages:
        raise InputError("handoff: QEMU goes on with the MMU off, and way purgatory-trans-pgd leaves it on")
    if cpu.pc != image.start or cpu.sysreg("SCTLR_EL1") & 1:
        raise MachineError(
            f"handoff: cpu{cpu.index} is at {cpu.pc:#x}, not at the image's entry with the MMU off"
        )
    low = PhysRange.of(virt.RAM_BASE, min(LOW_SIZE, board.ram.size))
    with replacing_folder(folder) as new:
        pieces, copied = _write_memory(new, board.ram, low)
        places = {"low_phys": low.start, "copied": copied, "cleared": low.size}
        code = start_code(cpu.registers(), el=el, alignment_checks=alignment_checks, **places)
        replace_file(new / "start.bin", code)
        pieces.append(_Piece("start.bin", FLASH_START, len(code), hashlib.sha256(code).hexdigest()))
        words = _command(board, pieces, el, cpu_model)
        state = _state(kernel, image, pieces, el, alignment_checks, words)
        replace_file(new / "state.json", (json_text(state, indent=2) + "\n").encode())
        script = _SCRIPT.read_text(encoding="utf-8").replace("@COMMAND@", shlex.join(words))
        replace_file(new / "run-qemu.sh", script.encode(), executable=True)
    names = [*(piece.name for piece in pieces), "state.json", "run-qemu.sh"]
    files = tuple(folder / name for name in names)
    return Handoff(folder, el, _command(board, pieces, el, cpu_model, folder), files)


def _write_memory(folder: Path, ram: Ram, low: PhysRange) -> tuple[list[_Piece], int]:
    """What is not zero of RAM as files; and how many bytes of `low` the start-up code has to copy there."""
    (bank,) = ram.banks
    stretches = list(_nonzero(ram, bank))
    rest = subtract(stretches, [low])
    pieces = [_write_piece(folder, f"ram-{area.start:x}.bin", area.start, ram, area) for area in rest]
    lowest = [area for area in stretches if area.overlaps(low)]
    if not lowest:
        return pieces, 0
    area = PhysRange(low.start, min(lowest[-1].end, low.end))
    return [*pieces, _write_piece(folder, "low.bin", FLASH_LOW, ram, area)], area.size


def _nonzero(ram: Ram, within: PhysRange) -> Iterator[PhysRange]:
    """Whole pages that hold anything but zeros, joined over small gaps."""
    zeros = bytes(_PAGE)
    start = end = -1
    for touched in ram.data_ranges(within):
        for base in range(touched.start, touched.end, _CHUNK):
            chunk = ram.read(base, min(_CHUNK, touched.end - base))
            for offset in range(0, len(chunk), _PAGE):
                if chunk[offset : offset + _PAGE] == zeros:
                    continue
                page = base + offset
                if start >= 0 and page - end > _MERGE_GAP:
                    yield PhysRange(start, end)
                    start = -1
                if start < 0:
                    start = page
                end = page + _PAGE
    if start >= 0:
        yield PhysRange(start, end)


def _write_piece(folder: Path, name: str, phys: int, ram: Ram, area: PhysRange) -> _Piece:
    digest = hashlib.sha256()
    with replacing(folder / name) as file:
        for base in range(area.start, area.end, _CHUNK):
            chunk = ram.read(base, min(_CHUNK, area.end - base))
            digest.update(chunk)
            file.write(chunk)
    return _Piece(name, phys, area.size, digest.hexdigest())


def _command(
    board: Board, pieces: list[_Piece], el: int, cpu_model: str, folder: Path | None = None
) -> list[str]:
    """The command line; without a folder the files' names are relative to it."""
    cpus = len(board.cpus)
    machine = "virt" + ",virtualization=on" * (el == 2) + ",gic-version=3" * (board.gic.version == 3)
    words = [_QEMU, "-M", machine, "-cpu", cpu_model, "-m", _size(board.ram.size), "-smp", str(cpus)]
    # A reset would start it all over again.
    words += ["-no-reboot", "-nic", "none", "-display", "none", "-serial", "stdio", "-monitor", "none"]
    for piece in pieces:
        file = piece.name if folder is None else str(folder / piece.name)
        file = file.replace(",", ",,")  # QEMU's way to write a comma in a value
        words += ["-device", f"loader,file={file},addr={piece.phys:#x},force-raw=on"]
    return [*words, "-device", f"loader,addr={FLASH_START:#x},cpu-num=0"]


def _size(count: int) -> str:
    """Bytes, whole KiB, as QEMU's -m takes them."""
    shift, suffix = next(
        (shift, suffix) for shift, suffix in ((30, "G"), (20, "M"), (10, "K")) if not count & (1 << shift) - 1
    )
    return f"{count >> shift}{suffix}"


# A purgatory that stops does not switch QEMU off. That the boot CPU has stopped for good is read from the machine: all
# exceptions masked, and not one register moved in three looks, whatever the console says.
_SCRIPT = Path(__file__).with_name("run-qemu.sh")


def _state(
    kernel: FirstKernel,
    image: Kimage,
    pieces: list[_Piece],
    el: int,
    alignment_checks: bool,
    words: list[str],
) -> dict[str, Any]:
    """What state.json says: addresses are physical, ends inclusive, numbers integers."""
    board, registers = kernel.board, kernel.crashing_cpu.registers()
    general = {name: value for name, value in registers.items() if not name.isupper() and name[0] != "v"}
    return {
        "version": _VERSION,
        "entry": image.start,
        "el": el,
        "alignment_checks": alignment_checks,
        "registers": general,
        "vector_registers": {name: value for name, value in registers.items() if name[0] == "v"},
        "system_registers": {name: value for name, value in registers.items() if name.isupper()},
        "board": {
            "ram": [{"start": bank.start, "end": bank.last} for bank in board.ram.banks],
            "cpus": len(board.cpus),
            "uart": board.uart.phys.start,
        },
        "instructions": board.instructions,
        "console_bytes": len(board.uart.output),
        "kernel_entry": image.kernel_entry,
        "dtb": image.dtb_mem,
        "digest": image.digest.hex() if image.digest else None,
        "segments": [
            {"name": one.name, "mem": one.mem, "memsz": one.memsz, "bufsz": one.bufsz}
            for one in image.segments
        ],
        "files": [asdict(one) for one in pieces],
        "command": words,
    }
