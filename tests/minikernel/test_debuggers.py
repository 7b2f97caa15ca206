# SPDX-License-Identifier: GPL-2.0-or-later
"""A crashed minikernel's memory as drgn and gdb see it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest

BACKTRACE = [
    "__crash_kexec",
    "panic",
    "sysrq_handle_crash",
    "__handle_sysrq",
    "write_sysrq_trigger",
    "host_call",
]


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """A guest of two CPUs after sysrq-c, and its vmcore."""
    from minikernel_guest import Guest
    from minikernel_vmcore import crashed_guest

    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    return crashed_guest(Guest(cpus=2), path), path


def test_gdb_finds_the_way_into_the_crash_and_the_values_that_it_left(crash):
    guest, path = crash
    program = shutil.which("gdb-multiarch")
    if program is None:
        pytest.skip("gdb-multiarch is not installed")
    commands = ["bt", "output kexec_crash_image->start", "output panic_cpu", "x/s task_bash.comm"]
    done = subprocess.run(
        [program, "-q", "-nx", "-batch", str(guest.vmlinux), "-c", str(path)]
        + [word for command in commands for word in ("-ex", command)],
        capture_output=True,
        text=True,
        check=True,
    )
    frames = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert [name for name in BACKTRACE if any(f"{name} (" in frame for frame in frames)] == BACKTRACE
    # Values that only the run has: gdb reads others from vmlinux when a core does not have them.
    assert str(guest.entry_phys) in done.stdout
    assert "{counter = 0}" in done.stdout


@pytest.fixture(scope="module")
def prog(crash):
    """The same in drgn."""
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed")
    import drgn

    guest, path = crash
    program = drgn.Program()
    program.set_core_dump(path)
    program.load_debug_info([guest.vmlinux])
    return program


def test_drgn_lists_the_tasks(prog):
    from drgn.helpers.linux.pid import find_task, for_each_task

    tasks = [(task.pid.value_(), task.comm.string_().decode()) for task in for_each_task(prog)]
    assert tasks == [(1, "init"), (2, "kthreadd"), (9, "kworker/0:1"), (57, "bash")]
    assert [find_task(prog, pid).comm.string_().decode() for pid, _ in tasks] == [name for _, name in tasks]
    assert find_task(prog, 57).parent.comm.string_() == b"init"


def test_drgn_walks_the_family_tree_and_the_task_list(prog):
    from drgn.helpers.linux.list import list_for_each_entry

    def names(head, member):
        return [
            task.comm.string_().decode() for task in list_for_each_entry("struct task_struct", head, member)
        ]

    assert names(prog["init_task"].tasks.address_of_(), "tasks") == [
        "init",
        "kthreadd",
        "kworker/0:1",
        "bash",
    ]
    assert names(prog["init_task"].children.address_of_(), "sibling") == ["init", "kthreadd"]
    assert names(prog["task_kthreadd"].children.address_of_(), "sibling") == ["kworker/0:1"]


def test_drgn_reads_the_log_in_full(crash, prog):
    from drgn.helpers.linux.printk import get_printk_records

    records = get_printk_records(prog)
    assert "".join(record.text.decode() + "\n" for record in records) == crash[0].console
    assert [record.seq for record in records] == list(range(len(records)))


def test_drgn_unwinds_the_crashed_task_and_an_idle_cpu(prog):
    from drgn.helpers.linux.sched import cpu_curr, idle_task

    frames = [frame.name for frame in prog.crashed_thread().stack_trace()]
    assert [name for name in frames if name in BACKTRACE] == BACKTRACE
    assert cpu_curr(prog, 0).comm.string_() == b"bash"
    idle = [frame.name for frame in prog.stack_trace(idle_task(prog, 1))]
    assert idle[:4] == ["cpu_do_idle", "do_idle", "secondary_start_kernel", "__secondary_switched"]


def test_drgn_walks_the_page_tables_and_the_cpu_masks(crash, prog):
    from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_present_cpu
    from drgn.helpers.linux.mm import follow_phys

    guest, _ = crash
    init_mm = prog["init_mm"].address_of_()
    assert follow_phys(init_mm, guest.virt("linux_banner")).value_() == guest.phys("linux_banner")
    assert (list(for_each_online_cpu(prog)), list(for_each_present_cpu(prog))) == ([0, 1], [0, 1])
