"""A CPU's store that met a fault, by what the kernel says as it dies."""

from kexecemu.kbuild.qemu_ends import store_fault

_CONSOLE = """\
first: store at 0x78001000
[    4.128790] Unable to handle kernel paging request at virtual address ffff000038001000
[    4.129000] Mem abort info:
[    4.129100]   ESR = 0x0000000096000046
[    4.133238] CPU: 1 UID: 0 PID: 62 Comm: dd Kdump: loaded Not tainted 7.3.4 #6 PREEMPTLAZY
"""


def test_the_fault_is_the_one_that_the_kernel_tells_of() -> None:
    fault = store_fault(_CONSOLE)
    assert fault is not None
    assert (fault.cpu, fault.esr, fault.far, fault.el) == (1, 0x96000046, 0xFFFF000038001000, 1)
    assert fault.ec == 0x25  # a data abort without a change of level


def test_a_panic_without_a_fault_is_none() -> None:
    assert store_fault("[    1.142762] Kernel panic - not syncing: sysrq triggered crash\n") is None
