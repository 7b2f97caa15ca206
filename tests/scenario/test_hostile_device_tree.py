"""Any bytes as device tree: a boot and a load, or one clear refusal; never a traceback, never a hang."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexecemu.errors import InputError, KexecError
from kexecemu.formats.fdt import Fdt, build, reg64
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.setup import Setup, prepare

TREE = virt_device_tree(
    [PhysRange.of(0x40000000, 128 << 20)], 2, 0x09000000, cmdline="crashkernel=32M rodata=on"
)
STRUCT, STRINGS = Fdt(TREE).off_dt_struct, Fdt(TREE).off_dt_strings


def outcome(path: Path) -> str:
    try:
        prepare(Setup(dtb=path, era="6.1"))
    except (InputError, KexecError) as error:
        assert str(error)
        return "refused"
    return "loaded"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(TREE) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_damaged_tree_is_loaded_with_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(TREE)
    for at, value in changes:
        data[at] = value
    path = tmp_path / "dtb"
    path.write_bytes(data)
    outcome(path)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    regs=st.lists(
        st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=3
    ),
    shift=st.sampled_from([0, 12, 16, 21, 30]),
)
def test_any_memory_nodes_are_a_board_or_refused(
    regs: list[tuple[int, int]], shift: int, tmp_path: Path
) -> None:
    mask = -1 << shift & (1 << 64) - 1
    path = tmp_path / "dtb"
    path.write_bytes(
        build(
            {
                "#address-cells": 2,
                "#size-cells": 2,
                "memory": {
                    "device_type": "memory",
                    "reg": b"".join(reg64(start & mask, size & mask) for start, size in regs),
                },
                "chosen": {"bootargs": "crashkernel=32M rodata=on"},
            }
        )
    )
    outcome(path)


def test_the_undamaged_tree_is_loaded_with(tmp_path: Path) -> None:
    path = tmp_path / "dtb"
    path.write_bytes(TREE)
    assert outcome(path) == "loaded"


@pytest.mark.parametrize("length", [0, 1, 39, 40, STRUCT, STRINGS, len(TREE) - 1])
def test_a_cut_tree_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "dtb"
    path.write_bytes(TREE[:length])
    assert outcome(path) == "refused"
