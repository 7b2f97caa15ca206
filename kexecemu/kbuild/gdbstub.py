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
        answer = self._receive(_LIMIT_SECONDS)
        while (
            answer is not None
            and packet != "?"
            and answer[:1] in ("T", "S")
            and not packet.startswith("vCont")
        ):
            answer = self._receive(_LIMIT_SECONDS)
        if answer is None:
            raise MachineError(f"QEMU's gdb stub does not answer {packet[:20]!r}")
        return answer

    def monitor(self, command: str) -> str:
        """What QEMU's monitor prints of a command."""
        self._send(f"qRcmd,{command.encode().hex()}")
        said = b""
        while True:
            answer = self._receive(_LIMIT_SECONDS)
            if answer is None:
                raise MachineError(f"QEMU's monitor does not answer {command!r}")
            if answer == "OK":
                return said.decode(errors="replace")
            if answer.startswith("O"):
                said += bytes.fromhex(answer[1:])
            elif answer[:1] not in ("T", "S"):
                raise MachineError(f"QEMU's monitor: {command}: {answer}")

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
        return Registers(bytes.fromhex(self.ask("g").replace("x", "0")))

    def system_register(self, name: str) -> int | None:
        """Of the CPU whose registers were asked for last, by the architecture's name; None for one that it has not."""
        if self._system is None:
            told = self._read_file("system-registers.xml")
            self._system = {match[1]: int(match[2]) for match in _SYSTEM.finditer(told)}
        number = self._system.get(name)
        if number is None:
            return None
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    def _read_file(self, name: str) -> str:
        """One of the files that say which registers there are; "" where there is none."""
        text, more = "", True
        while more:
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
        with suppress(OSError):  # who ends behind his last answer
            self._socket.sendall(b"+")
        # A byte, "*", and a character that says how often it comes again.
        packet = _RUN.sub(lambda run: run[1] * (run[2][0] - 28), match[1]).decode("latin-1")
        if (thread := _THREAD.match(packet)) is not None:
            self._stopped = int(thread[1], 16) - 1
        return packet
