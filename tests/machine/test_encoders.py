"""The encoders of conftest.py, read back by capstone."""

from __future__ import annotations

import struct

import capstone


def test_capstone_reads_back_what_the_tests_encode(a64):
    words = {
        a64.NOP: "nop",
        a64.WFI: "wfi",
        a64.ISB: "isb",
        a64.DSB: "dsb sy",
        a64.ERET: "eret",
        a64.RET: "ret",
        a64.TLBI_VMALLE1: "tlbi vmalle1",
        a64.movz(1, 0x1234): "movz x1, #0x1234",
        a64.movk(2, 0xFFFF, 32): "movk x2, #0xffff, lsl #32",
        a64.add(1, 2, 3): "add x1, x2, #3",
        a64.sub(4, 5, 0xFFF): "sub x4, x5, #0xfff",
        a64.load(1, 2, 16): "ldr x1, [x2, #0x10]",
        a64.store(3, 4): "str x3, [x4]",
        a64.store_word(3, 4, 4): "str w3, [x4, #4]",
        a64.store_byte(3, 4, 1): "strb w3, [x4, #1]",
        a64.b(-4): "b #0xffc",
        a64.bl(8): "bl #0x1008",
        a64.cbz(3, 12): "cbz x3, #0x100c",
        a64.cbnz(3, -8): "cbnz x3, #0xff8",
        a64.br(9): "br x9",
        a64.svc(1): "svc #1",
        a64.hvc(): "hvc #0",
        a64.smc(): "smc #0",
        a64.brk(0x5A5A): "brk #0x5a5a",
        a64.mrs(7, "FAR_EL1"): "mrs x7, far_el1",
        a64.msr("TTBR1_EL1", 8): "msr ttbr1_el1, x8",
        a64.daifclr(2): "msr daifclr, #2",
    }
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    for word, expected in words.items():
        (insn,) = decoder.disasm(struct.pack("<I", word), 0x1000)
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        if expected.startswith("movz"):
            expected = expected.replace("movz", "mov")
        assert text == expected
