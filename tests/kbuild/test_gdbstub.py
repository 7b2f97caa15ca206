"""QEMU's gdb stub is spoken to as GDB's manual has it: against a stub of ours that answers from a list."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kexecemu.errors import MachineError
from kexecemu.kbuild.gdbstub import GdbStub, Registers

Answer = Callable[[str], list[str]]


def packed(**values: int) -> bytes:
    registers = [values.get(f"x{number}", 0) for number in range(31)]
    return struct.pack("<33QI", *registers, values.get("sp", 0), values.get("pc", 0), values.get("cpsr", 0))


class Stub:
    """Hears packets, checks their sums, and says what it is told to."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.heard: list[str] = []
        self.stop = "T02thread:01;"
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._until_left, daemon=True)
        self._thread.start()

    def _until_left(self) -> None:
        with suppress(ConnectionError):  # whoever has heard enough goes
            self._serve()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        data = b""
        while piece := connection.recv(1000):
            data += piece
            if b"\x03" in data:
                data = data.replace(b"\x03", b"")
                connection.sendall(self.packet(self.stop))
            while match := re.search(rb"\$([^#]*)#(..)", data):
                data = data[match.end() :]
                assert int(match[2], 16) == sum(match[1]) & 0xFF
                self.heard.append(match[1].decode())
                for said in ["S05"] if match[1] == b"?" else self._answer(match[1].decode()):
                    connection.sendall(b"+" + self.packet(said))

    @staticmethod
    def packet(text: str) -> bytes:
        data = text.encode("latin-1")
        return b"$%s#%02x" % (data, sum(data) & 0xFF)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Answer], tuple[GdbStub, Stub]]]:
    made: list[GdbStub] = []

    def start(answer: Answer) -> tuple[GdbStub, Stub]:
        stub = Stub(tmp_path / "gdb", answer)
        made.append(GdbStub(tmp_path / "gdb"))
        return made[0], stub

    yield start
    for one in made:
        one.close()


def test_physical_memory_is_written_in_pieces_behind_the_page_tables(
    started: Callable[[Answer], tuple[GdbStub, Stub]],
) -> None:
    gdb, stub = started(lambda packet: ["OK"])
    gdb.write_phys(0x40001000, b"\xa5" * 1001)
    assert stub.heard[1:] == [
        "Qqemu.PhyMemMode:1",
        f"M40001000,3e8:{'a5' * 1000}",
        "M400013e8,1:a5",
        "Qqemu.PhyMemMode:0",
    ]


def test_what_is_refused_or_not_known_is_an_error(started: Callable[[Answer], tuple[GdbStub, Stub]]) -> None:
    gdb, _ = started(lambda packet: ["" if packet.startswith("Q") else "E14"])
    with pytest.raises(MachineError, match=r"Qqemu\.PhyMemMode:1: not known"):
        gdb.write_phys(0, b"x")
    with pytest.raises(MachineError, match="Z1,1000,4: E14"):
        gdb.set_breakpoint(0x1000)


def test_registers_come_in_runs_and_what_is_not_available_is_zero(
    started: Callable[[Answer], tuple[GdbStub, Stub]],
) -> None:
    text = packed(x0=0x1122, pc=0x40080000, cpsr=0x3C9).hex()
    # GDB's manual: "0* " is four zeros, since a space says three more.
    text = text.replace("0000", "0* ", 1).replace("00000000", "xxxxxxxx", 1)
    gdb, stub = started(lambda packet: [text] if packet == "g" else ["OK"])
    registers = gdb.registers(cpu=2)
    assert (registers.x[0], registers.pc, registers.el, registers.masked) == (0x1122, 0x40080000, 2, True)
    assert "Hg3" in stub.heard


def test_the_monitor_s_words_come_in_pieces_and_a_late_report_of_a_stop_is_none(
    started: Callable[[Answer], tuple[GdbStub, Stub]],
) -> None:
    said = ["T05thread:01;", "O" + b"virt ".hex(), "O" + b"machine".hex(), "OK"]
    gdb, stub = started(lambda packet: said)
    assert gdb.monitor("info version") == "virt machine"
    assert stub.heard[1] == "qRcmd," + b"info version".hex()


def test_a_stop_is_waited_for_and_made(started: Callable[[Answer], tuple[GdbStub, Stub]]) -> None:
    gdb, _ = started(lambda packet: [])
    gdb.resume()
    assert gdb.wait_for_stop(0.1) is False
    gdb.interrupt()
    assert gdb.current_cpu() == 0


@pytest.mark.parametrize(
    ("stop", "cpu"),
    [("T02thread:03;", 2), ("T05thread:p01.03;", 2), ("T05hw:;thread:p01.0b;core:1;", 10), ("S05", 0)],
)
def test_the_cpu_that_has_stopped_is_the_one_that_the_stop_names(
    started: Callable[[Answer], tuple[GdbStub, Stub]], stop: str, cpu: int
) -> None:
    """Not the one of qC: QEMU answers that with the first of all."""
    gdb, stub = started(lambda packet: ["QCp01.02"] if packet == "qC" else [])
    stub.stop = stop
    gdb.resume()
    gdb.interrupt()
    assert gdb.current_cpu() == cpu


def test_a_system_register_is_found_by_its_name_and_one_that_there_is_not_is_none(
    started: Callable[[Answer], tuple[GdbStub, Stub]],
) -> None:
    told = '<reg name="ESR_EL1" bitsize="64" regnum="135" type="int"/><reg name="ELR_EL1" bitsize="64" regnum="179"/>'

    def answer(packet: str) -> list[str]:
        if packet.startswith("qXfer:features:read:system-registers.xml:"):
            at, size = (int(word, 16) for word in packet.rpartition(":")[2].split(","))
            piece = told[at : at + min(size, 40)]
            return [("l" if at + 40 >= len(told) else "m") + piece]
        return ["0010085f00000000" if packet == "pb3" else "E01"]

    gdb, stub = started(answer)
    assert gdb.system_register("ELR_EL1") == 0x5F081000
    assert gdb.system_register("ELR_EL3") is None
    assert sum(packet.startswith("qXfer") for packet in stub.heard) == 3


def test_a_cpu_stands_where_only_its_pc_goes_round() -> None:
    first = Registers(packed(x1=7, pc=0x1000, cpsr=0x3C5))
    assert Registers(packed(x1=7, pc=0x1004, cpsr=0x3C5)).stands_as(first, 8)
    assert not Registers(packed(x1=8, pc=0x1000, cpsr=0x3C5)).stands_as(first, 8)
    assert not Registers(packed(x1=7, pc=0x1008, cpsr=0x3C5)).stands_as(first, 8)
    assert not Registers(packed(cpsr=0x385)).masked


@pytest.mark.parametrize("answer", ["E14", "abc", "00" * 10, "zz", ""])
def test_registers_that_are_none_are_an_error(
    started: Callable[[Answer], tuple[GdbStub, Stub]], answer: str
) -> None:
    gdb, _ = started(lambda packet: [answer])
    with pytest.raises(MachineError, match=r"QEMU's gdb stub (answers|gives)"):
        gdb.registers()


@pytest.mark.parametrize("answer", ["Ozz", "O414", "O\xff\xfe", "E01"])
def test_words_of_the_monitor_that_are_none_are_an_error(
    started: Callable[[Answer], tuple[GdbStub, Stub]], answer: str
) -> None:
    gdb, _ = started(lambda packet: [answer])
    with pytest.raises(MachineError, match=r"QEMU's (gdb stub|monitor)"):
        gdb.monitor("info version")


@pytest.mark.parametrize("flood", ["O41", "T05thread:01;"])
def test_a_stub_that_never_comes_to_an_end_is_left(
    started: Callable[[Answer], tuple[GdbStub, Stub]], flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kexecemu.kbuild.gdbstub._LIMIT_SECONDS", 0.5)
    monkeypatch.setattr("kexecemu.kbuild.gdbstub._WORDS_LIMIT", 2000)
    gdb, _ = started(lambda packet: [flood] * 5000)
    with pytest.raises(MachineError, match=r"does not (come to an end|answer)"):
        gdb.monitor("info version")
