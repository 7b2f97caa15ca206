"""What real kernels said of edited trees: memory, zones, CMA, /reserved-memory, and where the crash region is."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from kernel_bench import boot

from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.cpus import cpu_count
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.linux.rows import Same, compare_messages

DATA = Path(__file__).parents[1] / "data" / "device-trees"
RECORDS = sorted(DATA.glob("*.txt.gz"))
OPTIONS = {"CMA_SIZE_MBYTES": "64"}
_RAM = re.compile(r"^(\s*\w+-\w+) : (System RAM|Crash kernel)$", re.M)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".txt.gz"))
def test_the_model_says_what_the_real_kernel_said(path: Path) -> None:
    name, _, release = path.name.removesuffix(".txt.gz").rpartition("-")
    era = {"6.1.192": "6.1", "6.12.118": "6.12", "7.3.4": "7.3"}[release]
    cmdline, _, record = gzip.decompress(path.read_bytes()).decode().partition("\n")
    dtb = gzip.decompress((DATA / f"{name}.dtb.gz").read_bytes())
    # Debian's kernels have the zone from 6.12 on.
    options = OPTIONS | ({} if era == "6.1" else {"ZONE_DEVICE": "y"})
    with boot(era, cmdline, cpus=cpu_count(Fdt(dtb)), dtb=dtb, options=options) as kernel:
        # The records end before the other CPUs are started.
        said = "".join(
            line for line in kernel.board.uart.text.splitlines(keepends=True) if "smp: Brought" not in line
        )
        rows = list(compare_messages(record, said))
        assert [row for row in rows if row.same is not Same.EQUAL] == []
        assert len(rows) > 8
        assert _RAM.findall(proc_iomem(kernel)) == _RAM.findall(record)


def test_there_are_records() -> None:
    assert RECORDS
