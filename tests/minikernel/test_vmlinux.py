# SPDX-License-Identifier: GPL-2.0-or-later
"""The file: symbols, sizes and alignments that a loader, the model and crash tools rely on; and its build."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

TOP = Path(__file__).parents[2]
VMLINUX = TOP / "fixtures" / "guests" / "vmlinux"
KERNELS = sorted(path.name for path in VMLINUX.parent.glob("vmlinux*") if path.suffix != ".json")
KIMAGE_VADDR = 0xFFFF800008000000


@pytest.fixture(scope="module")
def elf():
    with VMLINUX.open("rb") as file:
        yield ELFFile(file)


@pytest.fixture(scope="module")
def symbols(elf):
    return {symbol.name: symbol for symbol in elf.get_section_by_name(".symtab").iter_symbols()}


@pytest.fixture(scope="module")
def virt(symbols):
    return lambda name: symbols[name]["st_value"]


def test_it_is_an_executable_for_aarch64_linked_at_kimage_vaddr(elf, virt):
    assert (elf["e_type"], elf["e_machine"], elf["e_entry"]) == ("ET_EXEC", "EM_AARCH64", KIMAGE_VADDR)
    assert virt("_text") == KIMAGE_VADDR
    for segment in elf.iter_segments("PT_LOAD"):
        assert segment["p_paddr"] == segment["p_vaddr"] - KIMAGE_VADDR


def test_the_marks_of_the_image_are_in_linux_order(virt):
    marks = [
        "_text",
        "_stext",
        "__idmap_text_start",
        "__idmap_text_end",
        "_etext",
        "__start_rodata",
        "__end_rodata",
        "__init_begin",
        "_sinittext",
        "_einittext",
        "__per_cpu_start",
        "__per_cpu_end",
        "__init_end",
        "_sdata",
        "_edata",
        "__bss_start",
        "__bss_stop",
        "_end",
    ]
    addresses = [virt(name) for name in marks]
    assert addresses == sorted(addresses)
    assert virt("_stext") == KIMAGE_VADDR + 0x10000


@pytest.mark.parametrize(
    ("alignment", "names"),
    [
        (
            0x10000,
            "_etext __init_begin __init_end swapper_pg_dir idmap_pg_dir reserved_pg_dir",
        ),
        (0x4000, "init_stack idle_stacks"),
        (0x1000, "__idmap_text_start __per_cpu_start stray_buffer"),
        (0x800, "vectors"),
        (0x10, "setup_arch _printk host_return make_task_dead"),
    ],
)
def test_what_needs_alignment_has_it(virt, alignment, names):
    assert [name for name in names.split() if virt(name) % alignment] == []


def test_sizes_are_what_the_model_counts_on(symbols):
    sizes = {
        "boot_args": 32,
        "panic_request": 256,
        "stray_buffer": 4096,
        "swapper_pg_dir": 0x10000,
        "idmap_pg_dir": 0x10000,
        "cpu_logical_map": 64 * 8,
        "__per_cpu_offset": 64 * 8,
        "init_stack": 16384,
        "idle_stacks": 64 * 16384,
        "__log_buf": 1 << 14,
        "_printk_rb_static_descs": 24 << 7,
        "_printk_rb_static_infos": 88 << 7,
        "vmcoreinfo_data_page": 4096,
        "vmcoreinfo_note_page": 8192,
    }
    assert {name: symbols[name]["st_size"] for name in sizes} == sizes


def test_no_copy_of_the_crash_notes_crosses_a_page(start_guest):
    guest = start_guest(cpus=4)
    guest.boot()
    starts = [guest.per_cpu(guest.u64("crash_notes"), cpu) for cpu in range(4)]
    assert len(set(starts)) == 4
    for start in starts:
        assert start % 512 == 0
        assert start // 4096 == (start + 424 - 1) // 4096
        assert guest.virt("__bss_start") <= start < guest.virt("__bss_stop")


def test_call_frames_are_described_where_drgn_looks(elf):
    assert elf.get_section_by_name(".debug_frame") is not None
    assert elf.get_section_by_name(".eh_frame") is None


def test_it_has_a_build_id(elf):
    notes = [note for segment in elf.iter_segments("PT_NOTE") for note in segment.iter_notes()]
    assert [(note["n_type"], len(note["n_desc"])) for note in notes] == [("NT_GNU_BUILD_ID", 40)]


def test_it_names_no_place_on_the_machine_that_built_it(elf):
    # Sources are named from the top of the tree; an absolute directory would differ from build to build.
    directories = {
        unit.get_top_DIE().attributes["DW_AT_comp_dir"].value for unit in elf.get_dwarf_info().iter_CUs()
    }
    assert directories == {b"."}


def build(*arguments: str, kernel: str = "minikernel") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOP / "fixtures" / "build.py"), kernel, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
@pytest.mark.parametrize("name", KERNELS)
def test_its_source_builds_the_same_bytes(name):
    done = build("--check", kernel=name.replace("vmlinux", "minikernel"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="no aarch64 gcc")
def test_a_second_compiler_builds_the_same_structures_and_a_kernel_that_does_the_same(start_guest, tmp_path):
    done = build("--compiler", "gcc", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    guests = tmp_path / "fixtures" / "guests"
    layout = VMLINUX.with_name("vmlinux.layout.json")
    assert (guests / layout.name).read_text() == layout.read_text()
    results = []
    for vmlinux in (VMLINUX, guests / "vmlinux"):
        guest = start_guest(vmlinux=vmlinux, cpus=2)
        assert guest.boot() == "idle"
        guest.load_crash_image()
        assert guest.call("stray_write", 0, guest.virt("stray_buffer"), 1, 1) == "make_task_dead"
        assert guest.call("write_sysrq_trigger") == "capture"
        registers = [guest.boot_cpu.x(n) for n in range(4)]
        calls = [(cpu, name) for cpu, name, _ in guest.calls]
        results.append((guest.console, calls, registers, guest.u64("__cpu_online_mask")))
    assert results[0] == results[1]
