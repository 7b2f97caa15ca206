"""The model's part of start_kernel(): what the guest's boot code stops for (see host_calls.py).

Each function works on a kernel whose boot CPU stands at the guest function of the same name; what it decides goes into
guest memory, and into state.arch what a kernel computes once.
"""

from functools import partial

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import COMMAND_LINE_SIZE, kaslr_disabled, parameter
from kexecemu.kernel.boot.cpus import smp_init_cpus
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.efi_init import efi_init
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.firmware import bootargs_of
from kexecemu.kernel.boot.late_memblock import allocate_late
from kexecemu.kernel.boot.mm_init import mm_init
from kexecemu.kernel.boot.resources import alloc_resources, publish_resources
from kexecemu.kernel.boot.setup_memory import alloc_table, arm64_memblock_init, setup_memory
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.timekeeping import timekeeping_init
from kexecemu.kernel.boot.vmcoreinfo import VMCOREINFO_NOTE_SIZE, note_size, vmcoreinfo_text, write_note
from kexecemu.kernel.memory.kho import reserve_scratch
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES
from kexecemu.kernel.memory.pageattr import mark_linear_data_alias
from kexecemu.machine.psci import AFFINITY_MASK

__all__ = ["kernel_init_freeable", "setup_arch"]


def setup_arch(state: KernelState) -> None:
    """setup_arch(): device tree, memblock, reservation and linear map; the boot messages of that part."""
    guest = state.guest
    tree = Fdt(state.initial_boot_params)
    boot_command_line = bootargs_of(tree)[: COMMAND_LINE_SIZE - 1]
    bootargs = boot_command_line.decode("utf-8", "backslashreplace")
    _take_seeds(state, bootargs)
    memblock = early_init_dt_scan(
        tree, state.config, state.log, required=state.efi is None and state.running is None
    )
    if state.machine_model:
        state.log(f"Machine model: {state.machine_model}")
    page = state.config.page_size
    early = parse_early_param(state.config, bootargs, state.log)
    state.panic_force_cpu, state.kho_early = early.panic_force_cpu, early.kho
    guest.ram.write(guest.phys("boot_command_line"), boot_command_line + b"\0")
    pointer_phys = guest.space.virt_to_phys(state.board.boot_cpu.x(0))
    guest.ram.write_u64(pointer_phys, guest.vmlinux.virt("boot_command_line"))
    guest.write("memstart_addr", state.space.phys_offset)
    guest.write("page_offset", -(1 << state.space.va_bits))
    layout = state.layout
    if state.efi is not None:
        efi_init(memblock, tree, state.efi, state.config, bootargs, state.log)
    initrd = state.efi.initrd if state.efi is not None else None
    if state.running is not None:
        state.running.apply(memblock)
        initrd = state.running.initrd
    reserved = arm64_memblock_init(
        memblock, tree, state.dtb_phys, bootargs, early, state.space, layout, state.config, state.log, initrd
    )

    def alloc_cleared() -> int:
        phys = alloc_table(memblock, page)
        state.ram.fill(phys, page)
        return phys

    state.early.use(alloc_cleared)
    state.arch = setup_memory(
        memblock,
        bootargs,
        early,
        state.config,
        state.space,
        layout,
        state.early.swapper,
        Fdt(state.initial_boot_params),
        reserved,
        state.log,
        state.board.bbm,
        state.acpi,
        state.running.reservation if state.running is not None else None,
    )
    for area in state.running.iomem.reserved if state.running is not None else ():
        memblock.reserve(area)
    alloc_resources(state)
    described = tree if state.acpi is None else None
    boot = state.board.boot_cpu.mpidr & AFFINITY_MASK
    state.cpus = smp_init_cpus(described, bootargs, len(state.board.cpus), state.log, boot)
    _publish_cpus(state)
    _setup_command_line(state, boot_command_line)
    _alloc_vmcoreinfo_note(state)
    state.log(f"Kernel command line: {bootargs}")
    late = partial(_kho_memory_init, state)
    state.free_memory = mm_init(guest, state.arch, state.config, state.early.fmt, late)
    publish_resources(state)
    oops = parameter(bootargs, "oops")
    guest.write_u32("panic_on_oops", int(oops == "panic" or state.config.enabled("PANIC_ON_OOPS")))


def _alloc(state: KernelState, size: int, align: int, what: str) -> int:
    """memblock_alloc(), which panics where there is no room: physical, zeroed."""
    phys = state.arch.memblock.phys_alloc_range(size, align)
    if not phys:
        raise InputError(f"RAM is too small for {what}")
    state.ram.fill(phys, size)
    return phys


def _setup_command_line(state: KernelState, boot_command_line: bytes) -> None:
    """setup_command_line(): copies in the linear map, one to keep and one that parameters point into."""
    size = len(boot_command_line) + 1
    saved, _static = (_alloc(state, size, SMP_CACHE_BYTES, "its command line") for _ in range(2))
    state.ram.write(saved, boot_command_line)
    state.guest.write("saved_command_line", state.space.linear_virt(saved))


def _alloc_vmcoreinfo_note(state: KernelState) -> None:
    """A note for larger pages than 4 KiB, which is what the guest's own buffer is for."""
    page = state.config.page_size
    if note_size(page) > VMCOREINFO_NOTE_SIZE:
        size = align_up(note_size(page), page)
        phys = _alloc(state, size, page, f"a note of {size:#x} bytes")
        state.guest.write("vmcoreinfo_note", state.space.linear_virt(phys))


def _publish_cpus(state: KernelState) -> None:
    guest, count = state.guest, len(state.cpus.affinities)
    guest.write("__cpu_present_mask", (1 << state.cpus.present) - 1)
    guest.write("__cpu_possible_mask", (1 << count) - 1)
    guest.write_u32("nr_cpu_ids", count)
    guest.write_u32("setup_max_cpus", state.cpus.max_cpus)
    for index, affinity in enumerate(state.cpus.affinities):
        guest.write("cpu_logical_map", affinity, 8 * index)


def _take_seeds(state: KernelState, bootargs: str) -> None:
    """get_kaslr_seed() and early_init_dt_scan_chosen(): what is secret does not stay in the device tree.

    The seed of the image's place becomes 0, unless nokaslr lets nobody read it; the random numbers' is overwritten by
    NOPs.
    """
    tree = FdtEditor(state.initial_boot_params)
    chosen = tree.path_offset("/chosen")
    if chosen is None:
        return
    seed = tree.getprop(chosen, "kaslr-seed")
    fields = [state.config.release.rules.nokaslr_field]
    if seed is not None and len(seed) == 8 and not kaslr_disabled(bootargs, fields):
        tree.setprop(chosen, "kaslr-seed", bytes(8))
    tree.nop_property(chosen, "rng-seed")
    state.ram.write(state.dtb_phys, tree.to_bytes())


def kernel_init_freeable(state: KernelState) -> None:
    """The rest of the boot: timekeeping_init(), crash_save_vmcoreinfo_init(), and at its end mark_rodata_ro()."""
    timekeeping_init(state.guest, state.now_ns)
    text = vmcoreinfo_text(state.guest, state.config)
    state.store_vmcoreinfo(text)
    write_note(state.guest, text)
    places = state.tables, state.space, state.config
    mark_linear_data_alias(*places, state.boot_command_line, state.arch.plan)
    state.flush_tlb_kernel_range()


def _kho_memory_init(state: KernelState) -> None:
    """kho_memory_init(): the last that memblock is asked for, and the array where the next kernel is told of it."""
    if not state.kho_early.enable:
        return
    memblock, limit = state.arch.memblock, state.arch.dma_phys_limit
    allocate_late(
        memblock,
        page=state.config.page_size,
        cpus=len(state.cpus.affinities),
        dma_phys_limit=limit,
        pages=state.arch.nr_kernel_pages,
    )
    state.kho = reserve_scratch(state.config, memblock, limit, state.kho_early, state.log)
    if state.kho is not None:
        state.ram.write(state.kho.array_phys, state.kho.array)
        areas = ", ".join(str(area) for area in state.kho.areas)
        state.say("kho", f"kexec handover: scratch areas {areas}")
