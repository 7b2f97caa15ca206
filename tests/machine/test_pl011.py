"""The UART, from the guest and from the host."""

from __future__ import annotations

import pytest

from kexecemu.machine.cpu import StopKind
from kexecemu.machine.pl011 import Pl011


def test_a_guest_prints_as_an_early_console_does(guest, a64):
    program = [*a64.mov(1, guest.board.uart.base_phys)]
    for char in b"ok\n":
        # wait while FR.TXFF (bit 5), then store a word to DR, as the kernel's earlycon does
        program += [0xB9401822, 0x372FFFE2, a64.movz(3, char), a64.store_word(3, 1)]
    heard = []
    guest.board.uart.listeners.append(heard.append)
    guest.start(program, a64.WFI)
    assert guest.cpu.run().kind is StopKind.IDLE
    assert guest.board.uart.output == b"ok\n"
    assert guest.board.uart.text == "ok\n"
    assert heard == [b"o", b"k", b"\n"]


def test_the_guest_reads_the_identity_of_a_pl011(guest, a64):
    program = [*a64.mov(1, guest.board.uart.base_phys + 0xFE0)]
    program += [(0xB9400020 | n << 10) + 2 + n for n in range(8)]
    guest.start(program, a64.WFI)
    guest.cpu.run()
    # AMBA: part number 0x011, designer 0x41; PrimeCell identity 0xB105F00D.
    assert [guest.cpu.x(2 + n) for n in range(8)] == [0x11, 0x10, 0x14, 0, 0x0D, 0xF0, 0x05, 0xB1]


def test_registers_read_back_what_a_driver_wrote():
    uart = Pl011()
    for offset, value in ((0x24, 13), (0x28, 1), (0x2C, 0x70), (0x30, 0x301), (0x38, 0x50)):
        uart.write(offset, 4, value)
        assert uart.read(offset, 4) == value
    uart.write(0x18, 4, 0xFFFF)
    assert uart.read(0x18, 4) == 0x90, "FR is read-only"


def test_a_sent_byte_raises_the_transmit_interrupt_until_it_is_cleared():
    uart = Pl011()
    uart.write(0x38, 4, 1 << 5)
    assert uart.read(0x40, 4) == 0
    uart.write(0, 4, ord("x"))
    assert uart.read(0x40, 4) == 1 << 5
    uart.write(0x44, 4, 1 << 5)
    assert uart.read(0x40, 4) == 0


def test_text_survives_bytes_that_are_no_text():
    uart = Pl011()
    uart.transmit(b"a\xffb")
    assert uart.text == "a�b"


def test_an_error_in_a_listener_is_not_swallowed(guest, a64):
    def broken(data):
        raise LookupError("no such window")

    guest.board.uart.listeners.append(broken)
    guest.start(a64.mov(1, guest.board.uart.base_phys), a64.store_word(0, 1), a64.WFI)
    with pytest.raises(LookupError, match="no such window"):
        guest.cpu.run()
