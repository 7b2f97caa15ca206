"""What real kernels made of the memory that UEFI gave them, and what the model makes of it."""

from __future__ import annotations

import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.cpus import cpu_count
from kexecemu.kernel.boot.efi_init import efi_ram, read_efi_map
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.linux.rows import Same, compare_messages
from kexecemu.machine.board import Board

DATA = Path(__file__).parents[1] / "data" / "efi"
RECORDS = [path for path in sorted(DATA.glob("*.txt.gz")) if not path.name.startswith("iomem")]
# Debian's kernels have no kexec_file_load.
BY_FILE = [path for path in RECORDS if "-file-" in path.name]
_TOP = re.compile(r"^(\w+-\w+ : (?:System RAM|reserved)|\s*\w+-\w+ : Crash kernel)$", re.M)
_TIME = re.compile(r"^\[ *\d+\.\d+\] ")


@dataclass(frozen=True)
class Record:
    """One boot of a real kernel."""

    name: str
    parts: dict[str, str]
    dtb: bytes

    @property
    def era(self) -> str:
        return ".".join(self.name.rpartition("-")[2].split(".")[:2])

    @property
    def image(self) -> bytes:
        told = json.loads(self.parts["image"])
        return bytes.fromhex(told["head"]).ljust(told["size"], b"\0")

    @property
    def initrd(self) -> bytes:
        return b"\x5a" * json.loads(self.parts["image"])["initrd"]

    @property
    def by_efi(self) -> bool:
        return "efi: Processing EFI memory map" in self.parts["dmesg"]

    def boot(self, **config: Any) -> KernelModel:
        """The model on the same machine."""
        log, tree = self.parts["dmesg"].encode(), Fdt(self.dtb)
        by_efi = self.by_efi
        banks = efi_ram(read_efi_map(log)) if by_efi else memory_ranges(tree)
        cpus = int(re.findall(r"-smp (\d+)", self.parts["machine"])[0])
        assert cpus == cpu_count(tree) or self.name.startswith("acpi")
        options = json.loads(self.parts["image"])["config"]
        return KernelModel.boot(
            Board(banks, cpus),
            KernelConfig(self.era, options=options, rng_ready=True, **config),
            cmdline=self.parts["cmdline"].strip(),
            dtb=self.dtb,
            efi_map=log if by_efi else None,
        )


@pytest.fixture(params=RECORDS, ids=lambda path: path.name.removesuffix(".txt.gz"), scope="module")
def record(request: pytest.FixtureRequest) -> Record:
    path: Path = request.param
    name = path.name.removesuffix(".txt.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    parts = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", text, re.M | re.S))
    return Record(name, parts, gzip.decompress((DATA / f"{name}.dtb.gz").read_bytes()))


def test_memory_zones_nodes_and_the_crash_region_are_those_of_the_real_kernel(record: Record) -> None:
    with record.boot() as kernel:
        said = kernel.board.uart.text
        rows = list(compare_messages(record.parts["dmesg"], said))
        differ = [row for row in rows if row.same is not Same.EQUAL]
        if len(kernel.arch.nodes) > 1:  # the guest's own code counts one: that is warned of
            differ = [row for row in differ if not row.model.startswith("smp: Brought up 1 node")]
        assert differ == []
        assert len(rows) > 8
        assert _TOP.findall(proc_iomem(kernel)) == _TOP.findall(record.parts["iomem"])
        lines = [_TIME.sub("", line).rstrip() for line in said.splitlines()]
        patterns = ["node \\d+ \\[", "NUMA: (?!NODE_DATA|Faking|No NUMA|Initialized|.*disabled)"]
        for begins in patterns + ["efi: (?!memattr)"] * record.by_efi:
            lines_of = [line for line in record.parts["dmesg"].splitlines() if re.match(begins, line)]
            assert [line for line in lines if re.match(begins, line)] == lines_of
        assert all("NUMA" in one or "IORT" in one for one in kernel.not_modelled())


def test_kexec_tools_put_segments_and_headers_where_the_real_ones_did(record: Record) -> None:
    real, append = record.parts["kexec"], json.loads(record.parts["image"])["append"]
    if "rc 255" in real:  # "setup_2nd_dtb: kaslr-seed is not wiped to 0"
        with record.boot() as kernel, pytest.raises(InputError, match="kaslr-seed is not wiped"):
            kernel.kexec_tools_load(record.image, record.initrd, append)
        return
    found = dict(re.findall(r"^segment\[(\d\]\.\w+) *= (\w+)$", real, re.M))
    names = ("kernel", "initrd", "dtb", "purgatory", "elfcorehdr")
    want = {
        name: tuple(int(found[f"{index}].{what}"], 16) for what in ("mem", "bufsz", "memsz"))
        for index, name in enumerate(names)
    }
    headers = re.findall(r"^Elf header: p_type = 1, .*p_paddr = (\w+) .*p_memsz = (\w+)$", real, re.M)
    with record.boot() as kernel:
        image = kernel.kexec_tools_load(record.image, record.initrd, append)
        got = {one.name: (one.mem, one.bufsz, one.memsz) for one in image.segments}
        # The purgatory is another one.
        assert got.pop("purgatory")[0] == want.pop("purgatory")[0]
        assert got == want
        core = image.segment("elfcorehdr")
        assert core is not None
        loads = [
            (one.header.p_paddr, one.header.p_memsz)
            for one in ELFFile(io.BytesIO(bytes(core.buf))).iter_segments()
            if one.header.p_type == "PT_LOAD"
        ]
        assert loads[1:] == [(int(start, 16), int(size, 16)) for start, size in headers]


@pytest.mark.parametrize("record", BY_FILE, indirect=True, ids=lambda path: path.name)
def test_kexec_file_load_puts_segments_where_the_real_one_did(record: Record) -> None:
    pattern = r"Loaded (elf core header|\w+) at (\w+) bufsz=(\w+) memsz=(\w+)"
    want = {
        name.replace("elf core header", "elfcorehdr"): tuple(int(one, 16) for one in numbers)
        for name, *numbers in re.findall(pattern, record.parts["file"])
    }
    with record.boot(purgatory=None) as kernel:
        image = kernel.kexec_file_load(
            record.image, record.initrd, cmdline=json.loads(record.parts["image"])["append"]
        )
        assert image is not None
        assert {one.name: (one.mem, one.bufsz, one.memsz) for one in image.segments} == want


def test_there_are_records() -> None:
    assert len(RECORDS) > 1
