"""What is not modelled: one list for the documentation, `kexecemu list limits` and what is said at run time."""

from typing import Final, NamedTuple

from kexecemu.shown import shown

__all__ = ["LIMITS", "Limit", "told"]


@shown("name")
class Limit(NamedTuple):
    """Something that real machines and kernels have or do and this has not; asked: a user may ask for it unawares.

    Then it is a warning at run time; else it is so of every run, or refused.
    """

    name: str
    meaning: str
    asked: bool = False


LIMITS: Final = (
    Limit(
        "caches",
        "Caches, and so stale lines and the price of running with caches off. MMU-off accesses are not held "
        "to Device memory's rules by the engine; KEXECEMU_CHECK_ACCESSES=1 watches a purgatory's for it.",
    ),
    Limit(
        "VHE",
        "The engine does not redirect the registers; the purgatory's tests show it in QEMU.",
    ),
    Limit(
        "EL2",
        "The first kernel runs and hands over at EL1; the purgatory at EL2 is run by its tests, and in QEMU.",
    ),
    Limit(
        "entered-only",
        "A real Linux without --capture linux is checked, started and stopped at its first word.",
    ),
    Limit(
        "real-linux",
        "Of a machine for real kernels: PCIe, network, the GICv3's ITS, EL2 and EL3, pages of 16 KiB (as "
        "Cortex-A57), more than one CPU in the capture kernel.",
    ),
    Limit(
        "other-devices",
        "What a board has besides UART, timers, PSCI and interrupt controller: a real Linux finds registers "
        "that read as zero there.",
        asked=True,
    ),
    Limit(
        "firmware-ram",
        "Where firmware puts the RAM that a tree leaves to it: here it is where the memory node or what is "
        "reserved says that it begins, around registers and buses. /sys/firmware/fdt of a machine has it.",
        asked=True,
    ),
    Limit(
        "mute-purgatory",
        "A purgatory that reports on another console than a PL011: its verdict is read from memory, as ever.",
    ),
    Limit(
        "console",
        "Consoles that a board's tree may name but PL011, print and take nothing typed; of kinds that are not "
        "known nothing is seen.",
        asked=True,
    ),
    Limit(
        "IMA",
        "What IMA has measured beside boot_aggregate (IMA_KEXEC=y has that one in its list).",
    ),
    Limit(
        "crash-hotplug",
        "CPUs and memory that come and go while an image is loaded.",
    ),
    Limit(
        "kexec_load-reboot",
        "kexec_file_load does it.",
    ),
    Limit(
        "KHO",
        "Of kexec handover (KEXEC_HANDOVER=y, kho=on): what is handed over, a boot that gets it, whether "
        "debugfs has finalized it, and the content of the page linux,kho-fdt, whose place is the model's own. "
        "The scratch areas are equal to those of a real 7.3 built small; per-CPU areas of more than 64 KiB "
        "may move them by one alignment, and a percentage in kho_scratch= by one or two.",
        asked=True,
    ),
    Limit(
        "cma-segments",
        "Of an image for a reboot in the CMA area (6.17): what devices hold of the area; a load that is "
        "refused gives its places back, and what is behind a segment's end is zeros, neither of which 7.3 "
        "sees to.",
    ),
    Limit(
        "dm-crypt",
        "Which keys there are and where chance puts them; their number decides the size. A load that finds no "
        "room for them at first goes on as if the kernel freed its copy once only, which 7.3 does not.",
    ),
    Limit(
        "52-bits",
        "CPUs with 52-bit addresses (LPA2) and mem_section with PAGE_EXTENSION, which VMCOREINFO tells of; a "
        "kernel built for 52 bits finds that its CPU has 48.",
    ),
    Limit(
        "kexec-tools",
        "LZMA (Debian's is built without), and a kernel in ELF for a reboot. What it unwraps (gzip, zboot, "
        "uImage), cuts off or refuses is as in its 2.0.25 and 2.0.29.",
    ),
    Limit(
        "buddy-allocator",
        "At run time: a dump has its lists as the boot leaves them, but for the tasks' page and up to 16 GiB.",
    ),
    Limit(
        "KASLR",
        "The model kernel runs where it was linked to; a device tree's kaslr-seed moves nothing.",
    ),
    Limit(
        "NUMA",
        "Nodes part memory, headers and early allocations as they do in real kernels; in guest memory, and so "
        "in a dump, there is one node with its zones. Nodes that are none (numa=fake=) are not made.",
        asked=True,
    ),
    Limit(
        "ACPI",
        "The tables: CPUs, nodes, console and name are those that the boot log tells of, what IORT says of "
        "DMA is not known, and no real Linux is followed there as capture kernel.",
        asked=True,
    ),
    Limit(
        "UEFI",
        "The calls into it, and what its tables with firmware's resources, keys and the TPM's log reserve; "
        "its memory map is machine.efi_map.",
        asked=True,
    ),
    Limit(
        "iomem",
        "A machine by its /proc/iomem: what firmware has taken of memory is known for the command line it ran "
        "with.",
        asked=True,
    ),
    Limit(
        "spin-tables",
        "CPUs that firmware parks: here they are off when they stop, where real ones stay in the old kernel.",
        asked=True,
    ),
    Limit(
        "cpu-numbers",
        "CPUs are numbered one after the other, where a real kernel leaves out the numbers of nodes behind "
        "which others come and that it makes nothing of: of a method that it does not know, or told twice.",
        asked=True,
    ),
    Limit(
        "parameters",
        "Parameters of the command line that move the crash region or change a panic and are not known here: "
        "areas for nodes (cma_pernuma, numa_cma), huge pages (hugetlb_cma), named memory (reserve_mem), "
        "memory tests, ZONE_MOVABLE by kernelcore= and movablecore=, notifiers before the crash kernel, "
        "protected KVM.",
        asked=True,
    ),
    Limit(
        "interrupts",
        "Interrupt controller and timer in the model kernel: its interrupts, the stop IPI at a crash and the "
        "one of panic_force_cpu=, are delivered by hand. CPUs that do not hear them (machine.stuck_cpus) cost "
        "the crash its second and are warned of, or are stopped by a pseudo-NMI where there is one "
        "(ARM64_PSEUDO_NMI=y, 6.12 and later; what 6.7 to 6.11 do with one is not known here).",
    ),
    Limit(
        "SDEI",
        "The last rung of 7.3's stop ladder: it needs firmware that the board has not.",
        asked=True,
    ),
    Limit(
        "unlike-CPUs",
        "FEAT_BBM (machine.bbm) is of all alike, so no kernel has to take the linear map down to pages when a "
        "second CPU comes that cannot have its blocks split. CPUs are Cortex-A57s whatever a tree names.",
    ),
    Limit(
        "redirected-panic",
        "A campaign over a panic that is handed on (panic_force_cpu=).",
    ),
    Limit(
        "early-allocations",
        "They are modelled as far as they move a crashkernel reservation: page tables, the unflattened device "
        "tree, a node's data, the memory map, CMA (CMA_SIZE_MBYTES, 64 in Debian's and 0 here), with sizes "
        "as in Debian's kernels. "
        "Per-CPU areas and the like are not. The model's image is a small one: a real kernel's text takes "
        "blocks where the rest is pages, some 16 tables less, and where that decides, a crash region is 2 MiB "
        "off (992M on 6.12). compare-linux gives the model the real one's size.",
    ),
)
"""In the order in which they are told."""

_ASKED: Final = {one.name for one in LIMITS if one.asked}


def told(limit: str, words: str) -> str:
    """What is said of a limit at run time, in one line; KeyError for one that is not in the list as such."""
    if limit not in _ASKED:
        raise KeyError(limit)
    return words
