"""The purgatory on a machine that nobody here wrote: QEMU's virt board, with alignment checking on.

With the MMU off QEMU lets unaligned accesses pass; with SCTLR_EL1.A set they fault, as they do on silicon.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.purgatory.conftest import Bench

QEMU = shutil.which("qemu-system-aarch64")
PHYS, DATA, KERNEL_ENTRY, START = 0x48000000, 0x44000000, 0x46000000, 0x47000000
UART = 0x09000000

# mrs x9, SCTLR_EL1; orr x9, x9, #2; msr SCTLR_EL1, x9; isb; b PHYS
SWITCH_ALIGNMENT_CHECK_ON = struct.pack(
    "<5I", 0xD5381009, 0xB27F0129, 0xD5181009, 0xD5033FDF, 0x14000000 | (PHYS - START - 16) >> 2
)
# mov w0, #0x84000000; orr w0, w0, #8; hvc #0: PSCI SYSTEM_OFF
POWER_OFF = struct.pack("<3I", 0x52B08000, 0x321D0000, 0xD4000002)


@pytest.mark.real
@pytest.mark.skipif(QEMU is None, reason="qemu-system-aarch64 is not installed")
@pytest.mark.parametrize(
    ("start", "flip"), [(0, False), (3, False), (0, True)], ids=["match", "odd", "mismatch"]
)
def test_qemu_runs_it_with_alignment_checking(
    bench_at: Callable[[int], Bench], tmp_path: Path, start: int, flip: bool
) -> None:
    bench = bench_at(PHYS)
    data = random.Random(1).randbytes(100_001)
    digest = hashlib.sha256(data).digest()
    region = struct.pack("<QQ", DATA + start, len(data))
    image = bench.image_with([(DATA + start, len(data))], digest, KERNEL_ENTRY, UART)
    assert region in image
    files = {
        PHYS: image,
        DATA: bytes(start) + bytes([data[0] ^ flip]) + data[1:],
        KERNEL_ENTRY: POWER_OFF,
        START: SWITCH_ALIGNMENT_CHECK_ON,
    }
    command = [
        str(QEMU),
        "-M",
        "virt",
        "-cpu",
        "cortex-a57",
        "-m",
        "256M",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]
    for phys, content in files.items():
        path = tmp_path / f"{phys:x}"
        path.write_bytes(content)
        command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
    command += ["-device", f"loader,addr={START:#x},cpu-num=0", "-monitor", "none"]

    if flip:
        # It stops for good, as it should: give it a while.
        with pytest.raises(subprocess.TimeoutExpired) as ended:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=4)
        assert b"digests do NOT match" in (ended.value.stdout or b"")
        assert f"found    {hashlib.sha256(files[DATA]).hexdigest()}".encode() in (ended.value.stdout or b"")
    else:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30)
        assert done.stdout.decode() == (
            f"purgatory: checking 1 regions, {len(data):#x} bytes\r\npurgatory: digests match\r\n"
        )
