"""The UART, from the guest and from the host."""

from __future__ import annotations

import pytest
from qtest import Qtest

from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.devices.pl011 import Pl011


def test_a_guest_prints_as_an_early_console_does(guest, a64):
    program = [*a64.mov(1, guest.board.uart.base_phys)]
    for char in b"ok\n":
        # wait while FR.TXFF (bit 5), then store a word to DR, as the kernel's earlycon does
        program += [0xB9401822, 0x372FFFE2, a64.movz(3, char), a64.store_word(3, 1)]
    heard = []
    guest.board.uart.listeners.append(heard.append)
    guest.start(program, a64.WFI)
    assert guest.cpu.run().kind is CpuStopKind.IDLE
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


# -- receiving, and the interrupt line -------------------------------------------------------------------------

DR, FR, LCR_H, IMSC, RIS, MIS, ICR = 0x00, 0x18, 0x2C, 0x38, 0x3C, 0x40, 0x44
RXFE, RXFF = 1 << 4, 1 << 6
RX, TX, RT = 1 << 4, 1 << 5, 1 << 6


def test_bytes_that_were_typed_are_received_in_order_and_none_is_lost():
    uart = Pl011()
    uart.write(LCR_H, 4, 0x70)
    typed = bytes(range(256))
    uart.feed(typed[:100])
    uart.feed(typed[100:])
    received = bytearray()
    while not uart.read(FR, 4) & RXFE:
        received.append(uart.read(DR, 4))
    assert received == typed
    assert uart.read(DR, 4) == 0
    assert uart.output == b"", "what is typed is not echoed by the hardware"


@pytest.mark.parametrize(("lcr_h", "depth"), [(0x70, 16), (0x60, 1)])
def test_the_fifo_is_full_when_it_holds_as_many_characters_as_it_has_places(lcr_h, depth):
    uart = Pl011()
    uart.write(LCR_H, 4, lcr_h)
    uart.feed(b"x" * (depth - 1))
    assert not uart.read(FR, 4) & RXFF
    uart.feed(b"yz")
    assert uart.read(FR, 4) & RXFF
    uart.read(DR, 4)
    assert uart.read(FR, 4) & RXFF, "the next one moved up from the host's side"
    uart.read(DR, 4)
    assert not uart.read(FR, 4) & RXFF


def test_the_line_is_driven_exactly_when_its_level_changes():
    levels = []
    uart = Pl011(irq=levels.append)
    uart.feed(b"a")
    assert levels == [], "masked"
    uart.write(IMSC, 4, RX | RT)
    assert levels == [True]
    uart.feed(b"b")
    uart.read(DR, 4)
    assert levels == [True], "there is still one to take"
    uart.read(DR, 4)
    assert levels == [True, False]
    uart.read(DR, 4)
    uart.write(DR, 4, ord("x"))
    assert levels == [True, False], "the transmit interrupt is masked"
    uart.write(IMSC, 4, RX | RT | TX)
    uart.write(DR, 4, ord("y"))
    assert levels == [True, False, True]
    uart.write(ICR, 4, TX)
    uart.write(IMSC, 4, 0)
    assert levels == [True, False, True, False]


def test_clearing_the_receive_interrupts_does_not_hide_a_character_that_waits():
    uart = Pl011()
    uart.feed(b"ab")
    assert uart.read(RIS, 4) == RX | RT
    uart.write(ICR, 4, 0x7FF)
    assert uart.read(RIS, 4) == RX | RT
    uart.read(DR, 4)
    uart.read(DR, 4)
    assert uart.read(RIS, 4) == 0


def test_the_masked_status_is_the_raw_one_behind_the_mask():
    uart = Pl011()
    uart.feed(b"a")
    uart.write(DR, 4, 0)
    for mask in range(0, 0x800, 0x10):
        uart.write(IMSC, 4, mask)
        assert uart.read(RIS, 4) == RX | RT | TX
        assert uart.read(MIS, 4) == (RX | RT | TX) & mask


def test_a_driver_that_sends_by_interrupt_is_called_for_every_character():
    """As amba-pl011 does: clear, send one, until there is none left, then mask."""
    pending = []
    uart = Pl011(irq=pending.append)
    text = list(b"by interrupt\n")
    uart.write(IMSC, 4, TX)
    uart.write(DR, 4, text.pop(0))
    while pending and pending[-1]:
        assert uart.read(MIS, 4) == TX
        uart.write(ICR, 4, TX)
        if text:
            uart.write(DR, 4, text.pop(0))
    assert uart.text == "by interrupt\n"
    assert pending == [True, False] * 13


def test_feeding_nothing_does_nothing():
    uart = Pl011()
    uart.feed(b"")
    assert (uart.read(FR, 4), uart.read(RIS, 4)) == (0x90, 0)


def test_the_registers_answer_as_qemu_s_do():
    """Not IFLS, DMACR and the like with bits that there are not, which QEMU cuts off in its own way."""
    levels = []
    uart = Pl011(irq=levels.append)
    with Qtest() as qemu:

        def same():
            for offset in (*range(0, 0x4C, 4), *range(0xFE0, 0x1000, 4)):
                assert uart.read(offset, 4) == qemu.read(uart.base_phys + offset), hex(offset)

        same()
        for offset, value in (
            (0x24, 13),
            (0x28, 1),
            (LCR_H, 0x70),
            (0x30, 0x301),
            (0x34, 0x12),
            (IMSC, 0x7F0),
            (DR, 0x41),
            (IMSC, RX | RT),
            (IMSC, TX),
            (ICR, RX | RT),
            (ICR, TX),
            (FR, 0xFFFF),
            (RIS, 0xFFFF),
            (MIS, 0xFFFF),
        ):
            uart.write(offset, 4, value)
            qemu.write(uart.base_phys + offset, value)
            same()
    assert levels == [True, False, True, False]
