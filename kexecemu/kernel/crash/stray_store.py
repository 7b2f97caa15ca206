"""Stray stores by whoever can still make them: a CPU of the first kernel executes each one at EL1.

cpu       the boot CPU through the linear map: in a kworker while the kernel lives, in the middle of its panic later
alias     the same through a second, writable mapping of the page, as patch_map() of arch/arm64/kernel/patching.c makes
          one: the page table's entry of fixmap slot FIX_TEXT_POKE0 is written, and taken away again after the store
late-cpu  a CPU that has not heard crash_smp_send_stop(), while the boot CPU is in the purgatory or in another kernel
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kexecemu.errors import InputError
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.crash.execution import CALL_LIMIT, Execution
from kexecemu.kernel.crash.stray_write import in_stray_write, stray_pieces
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL
from kexecemu.kernel.memory.sparsemem import vmemmap_range
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.mmu import PageTables

__all__ = ["WRITERS", "late_cpu_number", "store"]

_TTBR_ADDRESS = (1 << 48) - 2  # BADDR; the lowest bit is CnP

WRITERS = ("cpu", "alias", "late-cpu")
"""Who can make a stray store."""


def store(
    state: KernelState, execution: Execution, phys: int, data: bytes, width: int, by: str, *, alive: bool
) -> GuestException | None:
    """Store data at a physical address, width bytes (1, 2, 4 or 8) at a time; the exception that ended it, or None.

    alive says that the boot CPU is idle in this kernel. Where a store of the boot CPU faults, the guest's vectors take
    the exception: Execution.stray_write() and store_in_panic() say what comes of it. Raises InputError where no such
    CPU runs this kernel any more.
    """
    if by == "late-cpu":
        return _store_late(state, state.space.linear_virt(phys), data, width)
    if not alive and not execution.in_panic:
        raise InputError(f"no store by {by}: the boot CPU does not run the first kernel any more")
    cpu, write = state.crashing_cpu, execution.stray_write if alive else execution.store_in_panic
    seen = len(cpu.exceptions)
    if by == "cpu":
        write(state.space.linear_virt(phys), data, width)
    else:
        page = state.config.page_size
        at = 0
        while at < len(data) and len(cpu.exceptions) == seen:
            piece = data[at : at + page - (phys + at) % page]
            with patch_map(state, phys + at) as virt:
                write(virt, piece, width)
            at += len(piece)
    return next(iter(cpu.exceptions[seen:]), None)


def _fix_text_poke0(state: KernelState) -> int:
    """__fix_to_virt(FIX_TEXT_POKE0) of asm/fixmap.h: behind 4 MiB for the device tree, and earlycon.

    FIXADDR_TOP is 32 MiB below the memory map as long as that is at the end, then 8 MiB below the end of all addresses.
    """
    page, space = state.config.page_size, state.space
    fixaddr_top = (
        (1 << 64) - (8 << 20) if space.vmemmap_at_end else vmemmap_range(space, page)[0] - (32 << 20)
    )
    return fixaddr_top - ((4 << 20) // page + 2) * page


@contextmanager
def patch_map(state: KernelState, phys: int) -> Iterator[int]:
    """patch_map() and patch_unmap(): the virtual address of a second, writable mapping of the byte at phys.

    Behind it the tables are what they were: those on the way are spare ones of the image's bss, and zero again.
    """
    page, guest = state.config.page_size, state.guest
    virt = _fix_text_poke0(state)
    spare = iter(state.early.spare)
    tables = PageTables(guest.ram, state.early.fmt, guest.phys("swapper_pg_dir"), lambda: next(spare))
    before = tables.walk(virt).steps
    tables.map(virt, phys - phys % page, page, PAGE_KERNEL, blocks=False, contiguous=False)
    try:
        yield virt + phys % page
    finally:
        for _, entry_phys, descriptor in before:
            guest.ram.write_u64(entry_phys, descriptor)
        for table in tables.tables:
            guest.ram.fill(table, page)
        state.flush_tlb_kernel_range()


def late_cpu_number(state: KernelState) -> int:
    """The CPU that did not stop: the first of those that are stuck, or else the second one is taken for one."""
    return min(state.board.stuck_cpus - {state.crashing_cpu.index}, default=1)


def late_cpu(state: KernelState) -> Cpu:
    """That CPU, with its EL1 state of the first kernel.

    InputError where the machine has no second CPU, or another kernel has got hold of it.
    """
    if len(state.board.cpus) < 2:
        raise InputError("no store by late-cpu: it is a second one, and this machine has one CPU")
    cpu = state.board.cpus[late_cpu_number(state)]
    if cpu is state.crashing_cpu:
        raise InputError(f"no store by late-cpu: cpu{cpu.index} is the one that crashes")
    swapper = state.guest.phys("swapper_pg_dir")
    if not cpu.instructions or cpu.sysreg("TTBR1_EL1") & _TTBR_ADDRESS != swapper:
        raise InputError(f"no store by late-cpu: cpu{cpu.index} does not run the first kernel")
    return cpu


def _store_late(state: KernelState, virt: int, data: bytes, width: int) -> GuestException | None:
    """By a CPU that has not heard the IPI.

    The model's CPUs hear it. For the time of the store the second one is powered with the registers that it had when
    it went off, which are those of the first kernel with its MMU on; then all of it is put back, its count of
    instructions as well: it runs beside the others. A store that faults ends there, nothing of a handler runs.
    """
    cpu, guest = late_cpu(state), state.guest
    before = cpu.save()
    fault = None
    try:
        cpu.powered = True
        for piece in stray_pieces(guest, virt, data, width):
            with in_stray_write(cpu, guest, piece):
                stop = cpu.run(stops={guest.vmlinux.virt("host_return")}, limit=CALL_LIMIT, deliver=False)
            if stop.kind is not CpuStopKind.BREAKPOINT:
                fault = stop.fault
                break
    finally:
        cpu.restore(before)
    return fault
