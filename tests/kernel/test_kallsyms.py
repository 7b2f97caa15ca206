"""The kernel's table of its own symbols in guest memory, read as kernel/kallsyms.c reads it, and by drgn."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from kernel_bench import boot

from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.base.vmlinux import guest_vmlinux

Read = Callable[[int, int], bytes]
RELEASES = [era.value for era in Era]


def kallsyms(vmcoreinfo: str, read: Read) -> dict[str, tuple[str, int]]:
    """kallsyms_expand_symbol() and kallsyms_sym_address() over all of it: by name, type and address."""
    at = {name: int(virt, 16) for name, virt in re.findall(r"SYMBOL\((kallsyms_\w+)\)=(\w+)", vmcoreinfo)}
    (count,) = struct.unpack("<I", read(at["kallsyms_num_syms"], 4))
    index = struct.unpack("<256H", read(at["kallsyms_token_index"], 512))
    offsets = struct.unpack(f"<{count}i", read(at["kallsyms_offsets"], 4 * count))
    base_at = at.get("kallsyms_relative_base")
    base = None if base_at is None else int.from_bytes(read(base_at, 8), "little")

    def token(byte: int) -> bytes:
        return read(at["kallsyms_token_table"] + index[byte], 64).partition(b"\0")[0]

    found: dict[str, tuple[str, int]] = {}
    place = at["kallsyms_names"]
    for number in range(count):
        low, high = read(place, 2)
        place += 1
        if low & 0x80:
            low, place = low & 0x7F | high << 7, place + 1
        text = b"".join(token(byte) for byte in read(place, low)).decode()
        place += low
        address = (
            at["kallsyms_offsets"] + 4 * number + offsets[number] if base is None else base + offsets[number]
        )
        found.setdefault(text[1:], (text[0], address))
    assert len(found) > 200
    return found


def linked(path: Path) -> dict[str, int]:
    """Global functions and objects of the image, as pyelftools reads the file."""
    with path.open("rb") as file:
        symbols = list(ELFFile(file).get_section_by_name(".symtab").iter_symbols())
    return {
        one.name: one["st_value"]
        for one in symbols
        if one["st_info"]["bind"] == "STB_GLOBAL"
        and one["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
        and not one.name.startswith("kallsyms_")
    }


@pytest.mark.parametrize("options", [{}, {"ARM64_16K_PAGES": "y"}], ids=["4k", "16k"])
@pytest.mark.parametrize("release", RELEASES)
def test_every_symbol_can_be_found_from_memory_and_vmcoreinfo_alone(
    release: str, options: dict[str, str]
) -> None:
    with boot(era=release, options=options) as kernel:
        text = kernel.vmcoreinfo().decode()
        found = kallsyms(text, kernel.guest.read_virt)
        wanted = linked(guest_vmlinux(KernelConfig(release, options=options)).path)
        assert len(wanted) > 150
        assert {name: found[name][1] for name in wanted if name in found} == wanted
        assert found["panic"][0] == "T" and found["linux_banner"][0] == "R"
        assert found["init_task"][0] == "D" and found["init_pg_dir"][0] == "B"
        addresses = [address for _, address in found.values()]
        assert addresses == sorted(addresses)
        # And what it leads to is there: the era's own words.
        assert kernel.guest.read_virt(found["linux_banner"][1], 13) == b"Linux version"
        assert ("kallsyms_relative_base" in text) is (KernelConfig(release).release < Era.V7_0)


def test_names_are_compressed() -> None:
    with boot() as kernel:
        found = kallsyms(kernel.vmcoreinfo().decode(), kernel.guest.read_virt)
        at = {name: kernel.guest.vmlinux.virt(name) for name in ("kallsyms_names", "kallsyms_token_table")}
        size = kernel.guest.vmlinux.elf.symbol_table["kallsyms_names"].size
        packed = kernel.guest.read_virt(at["kallsyms_names"], size).rstrip(b"\0")
        assert len(packed) < 0.7 * sum(len(name) + 2 for name in found)


@pytest.mark.parametrize("release", ["6.1", "6.6", "6.12", "7.3"])
def test_drgn_finds_symbols_without_a_file(release: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed (pip install drgn)")
    import drgn
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    vmcore = tmp_path / "vmcore"
    command = (
        "crash",
        "--era",
        release,
        "--ram",
        "256M",
        "--cmdline",
        "crashkernel=64M",
        "--vmcore",
        str(vmcore),
    )
    subprocess.run([sys.executable, "-m", "kexecemu", *command], check=True, capture_output=True)
    program = drgn.Program()
    program.set_core_dump(vmcore)
    program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    wanted = linked(guest_vmlinux(KernelConfig(release)).path)
    for name in ("panic", "init_task", "write_sysrq_trigger", "prb"):
        assert program.symbol(name).address == wanted[name]
    assert program.symbol(wanted["panic"] + 4).name == "panic"
