"""Which CPUs a kernel has, by its tree and its command line; what became of that in real kernels' core headers."""

from __future__ import annotations

from errno import EBUSY

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import IMAGE, INITRD

from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import KexecError
from kexecemu.formats.elf import PT_NOTE
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.cpus import board_affinities, cpu_affinities, cpu_count, smp_init_cpus
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.procfs import sysfs
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

BANK = PhysRange.of(1 << 30, 256 << 20)


def board_tree(count: int, cpu: int | None = None, **properties: bytes | None) -> bytes:
    """The board's tree; of one CPU some properties are set or, where they are None, deleted."""
    editor = FdtEditor(virt_device_tree([BANK], count, 0x9000000), 32768)
    if cpu is not None:
        node = editor.path_offset(f"/cpus/cpu@{cpu:x}")
        assert node is not None
        for name, value in properties.items():
            if value is None:
                editor.delprop(node, name)
            else:
                editor.setprop(node, name, value)
    editor.pack()
    return editor.to_bytes()


def notes(core: bytes) -> int:
    """Notes of CPUs: all but VMCOREINFO's."""
    return sum(one.type == PT_NOTE for one in parse_core_header(core).program_headers) - 1


# What real kernels had: (era, CPUs, command line, tree of CPU 1, notes by kexec-tools). 6.1.192, 6.12.118, 7.3.4.
REAL = [
    ("6.1", 4, "nr_cpus=2", {}, 2),
    ("6.1", 4, "nosmp", {}, 4),
    ("7.3", 4, "nosmp numa=off", {}, 1),
    ("6.1", 3, "", {"status": b"fail\0"}, 2),
    ("7.3", 3, "", {"status": b"fail\0"}, 2),
    ("6.12", 3, "", {"device_type": None}, 3),
    ("6.1", 3, "", {"status": b"disabled\0"}, 3),
    ("7.3", 3, "maxcpus=2", {}, 3),
]


@pytest.mark.parametrize(("era", "count", "cmdline", "changed", "found"), REAL)
def test_kexec_tools_note_the_cpus_that_they_noted_on_a_real_machine(
    era: str, count: int, cmdline: str, changed: dict[str, bytes | None], found: int
) -> None:
    dtb = board_tree(count, 1, **changed)
    with Kernel.boot(
        Board([BANK], count), KernelConfig(era), cmdline=f"crashkernel=64M {cmdline}", dtb=dtb
    ) as kernel:
        segment = kernel.kexec_tools_load(IMAGE, INITRD, "panic=5").segment("elfcorehdr")
        assert segment is not None and notes(bytes(segment.buf)) == found
        assert sum(name.endswith("/crash_notes") for name in sysfs(kernel)) == found
        assert kernel.panic().outcome is Outcome.CAPTURED


@pytest.mark.parametrize(("era", "found"), [("6.1", 1), ("6.5", 1), ("6.6", 4), ("7.3", 4)])
def test_kexec_file_load_notes_present_cpus_and_from_6_6_on_possible_ones(era: str, found: int) -> None:
    with Kernel.boot(
        Board("256M", 4), KernelConfig(era), cmdline="crashkernel=64M maxcpus=0 rodata=off"
    ) as kernel:
        segment = kernel.kexec_file_load(IMAGE, INITRD, "panic=5").segment("elfcorehdr")
        assert segment is not None and notes(bytes(segment.buf)) == found
        assert "smp: Brought up 1 node, 1 CPU\n" in kernel.board.uart.text
        assert kernel.panic().outcome is Outcome.CAPTURED


@pytest.mark.parametrize(
    ("cmdline", "possible", "present"),
    [
        ("", 6, 6),
        ("nr_cpus=3", 3, 3),
        ("nr_cpus=5 nr_cpus=0x2 nr_cpus=4", 2, 2),
        ("nr_cpus=0", 6, 6),
        ("nr_cpus=-1 nr_cpus", 6, 6),
        ("nr_cpus=64", 6, 6),
        ("nr_cpus=010", 6, 6),
        ("nr_cpus=03,7", 3, 3),
        ("nosmp", 6, 1),
        ("maxcpus=0", 6, 1),
        ("maxcpus=0 maxcpus=2", 6, 6),
        ("nosmp maxcpus=many", 6, 1),
        ("nr_cpus=2 nosmp", 2, 1),
        ("nosmpx maxcpus=3", 6, 6),
    ],
)
def test_the_command_line_keeps_cpus_out(cmdline: str, possible: int, present: int) -> None:
    said: list[str] = []
    masks = smp_init_cpus(Fdt(board_tree(6)), cmdline, 6, said.append)
    assert (len(masks.affinities), masks.present) == (possible, present)
    clipped = f"Number of cores (6) exceeds configured maximum of {possible} - clipping"
    assert said == ([clipped] if possible < 6 else [])


@pytest.mark.parametrize(
    ("words", "started"),
    [
        ("maxcpus=1", 1),
        ("maxcpus=2", 2),
        ("maxcpus=4", 4),
        ("maxcpus=9", 4),
        ("maxcpus=-1", 4),
        ("maxcpus=2 nosmp", 1),
    ],
)
def test_no_more_cpus_are_started_than_the_command_line_allows(words: str, started: int) -> None:
    """A real 7.3.4 of four CPUs brings up two with maxcpus=2; all of them are present, and have notes."""
    with Kernel.boot(Board("256M", 4), KernelConfig("7.3"), cmdline=f"crashkernel=64M {words}") as kernel:
        cpus = f"{started} CPU{'s' if started > 1 else ''}"
        assert f"smp: Brought up 1 node, {cpus}\n" in kernel.board.uart.text
        assert sum(cpu.powered for cpu in kernel.board.cpus) == started
        assert sum(name.endswith("/crash_notes") for name in sysfs(kernel)) == (1 if "nosmp" in words else 4)
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        assert kernel.panic().outcome is Outcome.CAPTURED
        assert len(kernel.board.timeline.of("cpu_off")) == started - 1


def test_a_board_whose_boot_cpu_has_failed_runs_on_it_alone() -> None:
    dtb = Fdt(board_tree(3, 0, status=b"fail-hw\0"))
    said: list[str] = []
    assert smp_init_cpus(dtb, "", 3, said.append).affinities == (0,)
    assert said == ["missing boot CPU MPIDR, not enabling secondaries"]
    assert cpu_count(dtb) == 3


def test_a_tree_without_cpus_has_the_one_that_reads_it() -> None:
    tree = Fdt(build({"compatible": "x"}))
    assert (cpu_affinities(tree), cpu_count(tree)) == ([0], 1)
    said: list[str] = []
    assert smp_init_cpus(tree, "", 1, said.append).affinities == (0,)
    assert said == ["missing boot CPU MPIDR, not enabling secondaries"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cpu", "core", "cpus"]),
            st.sampled_from([None, "cpu", "cache"]),
            st.sampled_from([None, "okay", "disabled", "fail", "fail-sss", "failed"]),
        ),
        max_size=6,
    )
)
def test_a_cpu_is_what_is_called_so_or_of_that_type_and_has_not_failed(
    nodes: list[tuple[str, str | None, str | None]],
) -> None:
    children: dict[str, dict[str, object]] = {}
    expected = [0]
    for number, (name, kind, status) in enumerate([("cpu", "cpu", None), *nodes]):
        node: dict[str, object] = {"reg": cells(number)}
        if kind is not None:
            node["device_type"] = kind
        if status is not None:
            node["status"] = status
        children[f"{name}@{number:x}"] = node
        if number and (name == "cpu" or kind == "cpu") and status not in ("fail", "fail-sss"):
            expected.append(number)
    tree = build({"cpus": {"#address-cells": 1, "#size-cells": 0, **children}})  # type: ignore[dict-item]
    assert cpu_affinities(Fdt(tree)) == expected


# -- boards whose CPUs are in clusters ------------------------------------------------------------------------------


def clusters(
    *affinities: int, method: str | None = "psci", boot_method: str | None = "psci", wide: bool = False
) -> bytes:
    """A board with CPUs of these affinities, the first of which is started by firmware."""
    nodes: NodeSpec = {"#address-cells": cells(2 if wide else 1), "#size-cells": cells(0)}
    for number, affinity in enumerate(affinities):
        reg = cells(affinity >> 32, affinity & 0xFFFFFFFF) if wide else cells(affinity)
        how = method if number else boot_method
        said: NodeSpec = {} if how is None else {"enable-method": [how]}
        if how == "spin-table":
            said["cpu-release-addr"] = cells(0, 0xD8 + 8 * number)
        nodes[f"cpu@{affinity:x}"] = {"device_type": ["cpu"], "reg": reg, **said}
    return build(
        {
            "#address-cells": cells(2),
            "#size-cells": cells(2),
            "chosen": {"stdout-path": ["/serial@9000000"]},
            "memory@40000000": {"device_type": ["memory"], "reg": cells(0, BANK.start, 0, BANK.size)},
            "psci": {"compatible": ["arm,psci-1.0"], "method": ["hvc"]},
            "serial@9000000": {"compatible": ["arm,pl011"], "reg": cells(0, 0x9000000, 0, 0x1000)},
            "cpus": nodes,
        }
    )


@pytest.mark.parametrize("gic", [2, 3])
@pytest.mark.parametrize(
    ("affinities", "wide"),
    [
        ((0, 1, 0x100, 0x101), False),
        ((0x100, 0x200, 0x300), False),
        ((0x200, 0, 0x100), False),
        ((0x80000, 0x80100), False),
        ((0x100000000, 0x100000001, 0x200000000), True),
    ],
)
def test_cpus_have_the_affinities_of_the_tree_and_come_up(
    affinities: tuple[int, ...], wide: bool, gic: int
) -> None:
    dtb = clusters(*affinities, wide=wide)
    tree, count = Fdt(dtb), len(affinities)
    known = board_affinities(tree, count)
    assert sorted(known) == sorted(affinities) and known[0] == (0 if 0 in affinities else affinities[0])
    with Board([BANK], count, gic=gic, affinities=known) as board:
        kernel = Kernel.boot(board, KernelConfig("6.12"), cmdline="crashkernel=64M", dtb=dtb)
        assert f"smp: Brought up 1 node, {count} CPUs" in board.uart.text
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        assert kernel.panic().outcome is Outcome.CAPTURED
        assert len(board.timeline.of("cpu_off")) == count - 1


def test_a_board_has_as_many_affinities_as_it_is_asked_for() -> None:
    tree = Fdt(clusters(0x100, 0x200))
    assert board_affinities(tree, 1) == [0x100]
    assert board_affinities(tree, 4) == [0x100, 0x200, 0, 1]
    assert board_affinities(Fdt(build({"compatible": "x"})), 2) == [0, 1]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (None, "/cpus/cpu@1: missing enable-method property"),
        ("acme,smp", "Unsupported enable-method: acme,smp"),
        ("spin-tables", "Unsupported enable-method: spin-tables"),
    ],
)
def test_a_cpu_that_nobody_knows_how_to_start_is_none(method: str | None, said: str) -> None:
    log: list[str] = []
    assert smp_init_cpus(Fdt(clusters(0, 1, method=method)), "", 2, log.append).affinities == (0,)
    assert log == [said]


@pytest.mark.parametrize(
    ("nodes", "gaps"),
    [
        ([(0, "psci"), (1, "psci"), (2, "psci")], False),
        ([(2, "psci"), (0, "psci"), (1, "psci")], False),
        ([(0, "psci"), (1, "acme,smp"), (2, "psci")], True),
        ([(0, "psci"), (1, "psci"), (2, "acme,smp")], False),  # the last of all
        ([(0, "psci"), (1, "psci"), (1, "psci"), (2, "psci")], True),
        ([(0, "psci"), (0, "psci"), (2, "psci")], True),
        ([(0, "psci"), (1, "fail"), (2, "psci")], False),  # no CPU at all
        ([(1 << 25, "psci"), (0, "psci"), (1, "psci")], True),
    ],
)
def test_numbers_that_a_real_kernel_leaves_out_are_told_of(nodes: list[tuple[int, str]], gaps: bool) -> None:
    cpus: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(0)}
    for number, (affinity, method) in enumerate(nodes):
        said: NodeSpec = {"status": ["fail"]} if method == "fail" else {"enable-method": [method]}
        cpus[f"cpu@{number}"] = {"device_type": ["cpu"], "reg": cells(affinity), **said}
    found = smp_init_cpus(Fdt(build({"cpus": cpus})), "", 8, list[str]().append)
    assert found.gaps is gaps


def test_a_reg_is_read_in_the_cells_of_its_parent_and_what_is_no_affinity_is_none() -> None:
    """of_get_cpu_hwid(), MPIDR_HWID_BITMASK; a second thread in reg is not asked for."""

    def read(width: int, *regs: bytes | None) -> tuple[list[int], list[str]]:
        nodes: NodeSpec = {"#address-cells": cells(width), "#size-cells": cells(0)}
        for number, reg in enumerate(regs):
            usual: NodeSpec = {"device_type": ["cpu"], "enable-method": ["psci"]}
            nodes[f"cpu@{number}"] = usual if reg is None else {**usual, "reg": reg}
        said: list[str] = []
        masks = smp_init_cpus(Fdt(build({"cpus": nodes})), "", 8, said.append)
        return list(masks.affinities), said

    assert read(1, cells(0), cells(0x100, 0x101)) == ([0, 0x100], [])
    assert read(2, cells(0, 0), cells(1, 0x10000)) == ([0, 0x100010000], [])
    assert read(1, cells(0), cells(0x1000000), cells(1)) == ([0, 1], [])
    assert read(1, cells(0), None, cells(1)) == ([0, 1], [])
    assert read(2, cells(0, 0), cells(1), cells(0, 1)) == ([0, 1], [])
    missing = "missing boot CPU MPIDR, not enabling secondaries"
    assert read(0, cells(0), cells(1)) == ([0], [missing])
    duplicate = "duplicate cpu reg properties in the DT"
    assert read(1, cells(0), cells(1), cells(1)) == ([0, 1], [f"/cpus/cpu@2: {duplicate}"])
    boot = "duplicate boot cpu reg property in DT"
    assert read(1, cells(0), cells(0), cells(1)) == ([0, 1], [f"/cpus/cpu@1: {boot}"])


@pytest.mark.parametrize("address", [None, cells(0xD8)])
def test_a_cpu_of_a_spin_table_that_nobody_knows_where_it_waits_is_none(address: bytes | None) -> None:
    cpus: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(0)}
    for number in range(3):
        at = cells(0, 0xD8) if number == 1 else address
        said: NodeSpec = {} if at is None else {"cpu-release-addr": at}
        usual: NodeSpec = {"device_type": ["cpu"], "reg": cells(number), "enable-method": ["spin-table"]}
        cpus[f"cpu@{number}"] = {**usual, **said}
    log: list[str] = []
    assert smp_init_cpus(Fdt(build({"cpus": cpus})), "", 3, log.append).affinities == (0, 1)
    assert log == ["CPU 2: missing or invalid cpu-release-addr property"]


def test_cpus_of_spin_tables_are_stale_in_a_dump_and_forbid_a_reboot() -> None:
    dtb = clusters(0, 1, method="spin-table", boot_method="spin-table")
    with Board([BANK], 2) as board:
        kernel = Kernel.boot(board, KernelConfig("6.12"), cmdline="crashkernel=64M", dtb=dtb)
        assert any("spin-table" in words for words in kernel.not_modelled())
        with pytest.raises(KexecError) as error:
            kernel.kexec_file_load(IMAGE, INITRD, "panic=5", flags=0)
        assert error.value.errno == EBUSY
        assert "Can't kexec: CPUs are stuck in the kernel." in board.uart.text
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        assert kernel.panic().outcome is Outcome.CAPTURED
        assert "Some CPUs may be stale, kdump will be unreliable." in board.uart.text
    # With PSCI for the boot CPU there is a way off, and one CPU has nobody that could be stuck.
    for tree in (clusters(0, 1), clusters(0, boot_method=None)):
        assert not smp_init_cpus(Fdt(tree), "", 2, print).spin_tables
