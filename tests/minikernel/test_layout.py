# SPDX-License-Identifier: GPL-2.0-or-later
"""vmlinux.layout.json against gdb's reading of vmlinux, and against what a real 6.1 kernel says of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
VMLINUX = TOP / "fixtures" / "guests" / "vmlinux"
LAYOUT = json.loads((TOP / "fixtures" / "guests" / "vmlinux.layout.json").read_text())
STRUCTS = LAYOUT["structs"]
TYPEDEFS = {"atomic_t", "atomic_long_t", "spinlock_t", "nodemask_t", "seqcount_t", "seqcount_raw_spinlock_t"}
REAL = TOP / "tests" / "data" / "vmcoreinfo" / "6.1.192-own.txt"

# Of these the real kernel was configured differently: two zones, per-CPU page sets, NUMA-less nodes.
OTHER_CONFIG = {"zone", "pglist_data"}


def c_type(name: str) -> str:
    return name if name in TYPEDEFS else f"struct {name}"


@pytest.fixture(scope="module")
def gdb(tmp_path_factory):
    """Evaluate commands in gdb on vmlinux; a list of outputs."""
    program = shutil.which("gdb-multiarch")
    if program is None:
        pytest.skip("gdb-multiarch is not installed")

    def run(commands: list[str]) -> list[str]:
        script = tmp_path_factory.mktemp("gdb") / "script"
        script.write_text("".join(f"echo \\n@@\\n\n{command}\n" for command in commands))
        done = subprocess.run(
            [program, "-q", "-nx", "-batch", "-x", str(script), str(VMLINUX)],
            capture_output=True,
            text=True,
            check=True,
        )
        return [part.strip() for part in done.stdout.split("\n@@\n")[1:]]

    return run


def test_gdb_finds_every_structure_and_member_where_the_layout_says(gdb):
    questions, expected = [], []
    for name, struct in STRUCTS.items():
        questions.append(f"output (long)sizeof({c_type(name)})")
        expected.append((name, None, struct["size"]))
        for member, offset in struct["members"].items():
            if member not in struct["bitfields"]:
                questions.append(f"output (long)&(({c_type(name)} *)0)->{member}")
                expected.append((name, member, offset))
    answers = gdb(questions)
    assert len(answers) == len(expected) > 400
    assert [(*key, int(answer)) for (*key, _), answer in zip(expected, answers, strict=True)] == [
        (*key, value) for *key, value in expected
    ]


def test_gdb_finds_every_bit_field_where_the_layout_says(gdb):
    fields = [
        (name, member, struct["members"][member], field)
        for name, struct in STRUCTS.items()
        for member, field in struct["bitfields"].items()
    ]
    assert len(fields) == 8
    answers = gdb([f"ptype /o {c_type(name)}" for name, *_ in fields])
    for (_, member, offset, field), answer in zip(fields, answers, strict=True):
        found = re.search(rf"(\d+): *(\d+) .* {member} : (\d+);", answer)
        assert found is not None, answer
        byte, shift, bits = map(int, found.groups())
        assert (byte * 8 + shift, bits) == (offset * 8 + field["shift"], field["bits"])


def test_gdb_counts_as_many_elements_in_each_array(gdb):
    arrays = [
        (name, member, length)
        for name, struct in STRUCTS.items()
        for member, length in struct["lengths"].items()
    ]
    members = [f"(({c_type(name)} *)0)->{member}" for name, member, _ in arrays]
    answers = gdb([f"output (long)(sizeof({member}) / sizeof({member}[0]))" for member in members])
    assert [int(answer) for answer in answers] == [length for *_, length in arrays]


def real_lines(pattern: str) -> list[tuple[str, ...]]:
    return [match.groups() for match in re.finditer(pattern, REAL.read_text(), re.MULTILINE)]


def test_structures_have_the_size_that_a_real_kernel_exports():
    sizes = {name: int(size) for name, size in real_lines(r"^SIZE\((\w+)\)=(\d+)$")}
    ours = {name: STRUCTS[name]["size"] for name in sizes if name not in OTHER_CONFIG}
    assert len(ours) >= 13
    assert ours == {name: sizes[name] for name in ours}


def test_members_are_where_a_real_kernel_exports_them():
    offsets = {
        (name, member): int(offset)
        for name, member, offset in real_lines(r"^OFFSET\((\w+)\.(\w+)\)=(\d+)$")
        if name not in OTHER_CONFIG
    }
    ours = {(name, member): STRUCTS[name]["members"][member] for name, member in offsets}
    assert len(ours) >= 38
    assert ours == offsets


def test_members_that_a_real_kernel_exports_exist_in_the_differently_configured_ones():
    for name, member, _ in real_lines(r"^OFFSET\((\w+)\.(\w+)\)=(\d+)$"):
        assert member in STRUCTS[name]["members"]


def test_every_host_function_is_a_symbol_of_its_own(start_guest):
    guest = start_guest()
    addresses = {guest.virt(name) for name in LAYOUT["host_functions"]}
    assert len(addresses) == len(LAYOUT["host_functions"])
    assert {"setup_arch", "_printk", "host_return", "make_task_dead"} < set(LAYOUT["host_functions"])


def test_the_layout_is_sorted():
    for struct in (STRUCTS, *(struct["members"] for struct in STRUCTS.values())):
        assert list(struct) == sorted(struct)
