"""QEMU's gdb stub, spoken to without a gdb: physical memory, registers, breakpoints, and QEMU's own monitor.

The remote serial protocol is in GDB's manual (appendix E); physical memory is QEMU's extension Qqemu.PhyMemMode.
"""

import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kexecemu.errors import MachineError
from kexecemu.shown import shown

__all__ = ["GdbStub", "Registers"]

_PACKET = re.compile(rb"\$([^#]*)#[0-9a-fA-F]{2}", re.DOTALL)
_RUN = re.compile(rb"(.)\*(.)", re.DOTALL)
_CORE = struct.Struct("<33QI")
_THREAD = re.compile(r"T..(?:.*;)?thread:(?:p[0-9a-f]+\.)?([0-9a-f]+);")
_SYSTEM = re.compile(r'<reg name="(\w+)"[^>]* regnum="(\d+)"')
_PIECE = 1000  # bytes in one packet
_LIMIT_SECONDS = 60
_WORDS_LIMIT = 4 << 20  # bytes of one answer


def _bytes(answer: str) -> bytes:
    """Of hexadecimal digits; MachineError for what is none: an error, E14 for one."""
    try:
        return bytes.fromhex(answer)
    except ValueError:
        raise MachineError(f"QEMU's gdb stub answers {answer[:20]!r} where digits are due") from None


@shown()
class Registers:
    """The core registers of one CPU: x (31 of them), sp, pc and cpsr."""

    def __init__(self, packed: bytes) -> None:
        values: list[int] = list(_CORE.unpack_from(packed))
        self.x, (self.sp, self.pc, self.cpsr) = values[:31], values[31:]

    @property
    def el(self) -> int:
        """The exception level."""
        return self.cpsr >> 2 & 3

    @property
    def masked(self) -> bool:
        """All exceptions are masked (PSTATE.DAIF)."""
        return self.cpsr >> 6 & 0xF == 0xF

    def stands_as(self, other: "Registers", loop: int) -> bool:
        """Nothing has changed but the PC, and that by less than a loop of so many bytes."""
        return (self.x, self.sp, self.cpsr) == (other.x, other.sp, other.cpsr) and abs(
            self.pc - other.pc
        ) < loop


class GdbStub:
    """A connection; the machine stops when it is made. idle() is called while an answer is waited for."""

    def __init__(self, path: Path, idle: Callable[[], object] = lambda: None) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_LIMIT_SECONDS)
        # A socket's path has room for about 100 characters.
        folder = os.open(path.parent, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self._read, self._idle = b"", idle
        self._system: dict[str, int] | None = None
        self._stopped = 0
        self.ask("?")

    def close(self) -> None:
        """The machine goes on or is killed, as QEMU likes."""
        self._socket.close()

    def ask(self, packet: str) -> str:
        """Send a command, and return what is answered; a report of a stop that comes before that is let go."""
        self._send(packet)
        return self._answer(f"QEMU's gdb stub does not answer {packet[:20]!r}", stops=packet == "?")

    def _answer(self, otherwise: str, *, stops: bool = False, end: float | None = None) -> str:
        """What comes until a moment of the host's time; MachineError where that is nothing but stops."""
        end = end or time.monotonic() + _LIMIT_SECONDS
        while True:
            left = end - time.monotonic()
            answer = self._receive(left) if left > 0 else None
            if answer is None:
                raise MachineError(otherwise)
            if stops or answer[:1] not in ("T", "S"):
                return answer

    def monitor(self, command: str) -> str:
        """What QEMU's monitor prints of a command."""
        self._send(f"qRcmd,{command.encode().hex()}")
        said, end = b"", time.monotonic() + _LIMIT_SECONDS
        while len(said) < _WORDS_LIMIT:
            answer = self._answer(f"QEMU's monitor does not answer {command!r}", end=end)
            if answer == "OK":
                return said.decode(errors="replace")
            if not answer.startswith("O"):
                raise MachineError(f"QEMU's monitor: {command}: {answer[:200]}")
            said += _bytes(answer[1:])
        raise MachineError(f"QEMU's monitor does not come to an end with {command!r}")

    def write_phys(self, phys: int, data: bytes) -> None:
        """Write physical memory of the stopped machine, as DMA would: no page table has a say."""
        self._ok("Qqemu.PhyMemMode:1")
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            self._ok(f"M{phys + at:x},{len(piece):x}:{piece.hex()}")
        self._ok("Qqemu.PhyMemMode:0")

    def registers(self, cpu: int | None = None) -> Registers:
        """Of one CPU by its number, or of the one that has stopped."""
        if cpu is not None:
            self._ok(f"Hg{cpu + 1:x}")
        # What is not available is given as x.
        packed = _bytes(self.ask("g").replace("x", "0"))
        if len(packed) < _CORE.size:
            raise MachineError(f"QEMU's gdb stub gives {len(packed)} bytes of registers, not {_CORE.size}")
        return Registers(packed)

    def system_register(self, name: str) -> int | None:
        """Of the CPU whose registers were asked for last, by the architecture's name; None for one that it has not."""
        if self._system is None:
            told = self._read_file("system-registers.xml")
            self._system = {match[1]: int(match[2]) for match in _SYSTEM.finditer(told)}
        number = self._system.get(name)
        if number is None:
            return None
        return int.from_bytes(_bytes(self.ask(f"p{number:x}")), "little")

    def _read_file(self, name: str) -> str:
        """One of the files that say which registers there are; "" where there is none."""
        text, more = "", True
        while more and len(text) < _WORDS_LIMIT:
            answer = self.ask(f"qXfer:features:read:{name}:{len(text):x},{_PIECE:x}")
            more = answer.startswith("m")
            text += answer[1:] if answer[:1] in ("m", "l") else ""
        return text

    def current_cpu(self) -> int:
        """The number of the CPU that the last stop was reported of. (QEMU answers qC with the first of all.)"""
        return self._stopped

    def set_breakpoint(self, address: int) -> None:
        """At an address as the CPU fetches it."""
        self._ok(f"Z1,{address:x},4")

    def clear_breakpoint(self, address: int) -> None:
        """The one at an address."""
        self._ok(f"z1,{address:x},4")

    def resume(self) -> None:
        """Let all CPUs run."""
        self._send("c")

    def wait_for_stop(self, seconds: float) -> bool:
        """A stop was reported within so many seconds of the host's time."""
        return self._receive(seconds) is not None

    def interrupt(self) -> None:
        """Stop a machine that runs."""
        self._say(b"\x03")
        if self._receive(_LIMIT_SECONDS) is None:
            raise MachineError("QEMU does not stop")

    def _ok(self, packet: str) -> None:
        answer = self.ask(packet)
        if answer != "OK":
            raise MachineError(f"QEMU's gdb stub: {packet[:40]}: {answer or 'not known'}")

    def _send(self, packet: str) -> None:
        data = packet.encode()
        self._say(b"$%s#%02x" % (data, sum(data) & 0xFF))

    def _say(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise MachineError(f"QEMU has ended: {error.strerror}") from error

    def _receive(self, seconds: float) -> str | None:
        """The next packet; None where none comes in time, or QEMU has ended."""
        end = time.monotonic() + seconds
        while (match := _PACKET.search(self._read)) is None:
            self._idle()
            left = end - time.monotonic()
            if left <= 0:
                return None
            if len(self._read) > _WORDS_LIMIT:
                raise MachineError("what should be QEMU's gdb stub is none")
            if not select.select([self._socket], [], [], min(left, 0.05))[0]:
                continue
            try:
                piece = self._socket.recv(1 << 16)
            except ConnectionError:
                piece = b""
            if not piece:
                return None
            self._read += piece
        self._read = self._read[match.end() :]
        if select.select([], [self._socket], [], 0)[1]:  # who does not listen does not get one
            with suppress(OSError):  # nor who ends behind his last answer
                self._socket.send(b"+")
        # A byte, "*", and a character that says how often it comes again.
        packet = _RUN.sub(lambda run: run[1] * (run[2][0] - 28), match[1]).decode("latin-1")
        if (thread := _THREAD.match(packet)) is not None:
            self._stopped = int(thread[1], 16) - 1
        return packet
