"""A kernel of ours in QEMU, from the start to the moment when it has loaded its crash kernel and waits."""

import time
from pathlib import Path

from kexecemu.errors import InputError
from kexecemu.kbuild.qemu import Qemu, QemuMachine, find_qemu
from kexecemu.kbuild.qemu_ends import PANIC_END
from kexecemu.kbuild.trial import Loaded
from kexecemu.linux.first_boot import WAITING, LinuxSetup, first_cmdline, first_initrd, first_page_size
from kexecemu.linux.first_found import find_load
from kexecemu.linux.first_load import read_load
from kexecemu.linux.first_purgatory import built_in_purgatory
from kexecemu.linux.first_records import believed, crash_kernel, last_words, split_records
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import RAM_BASE

__all__ = ["LIMIT_SECONDS", "boot_command", "last_line", "loaded_in"]

_END = "\nfirst: end: "
_LINE_SECONDS = 5.0  # for what stands behind it
LIMIT_SECONDS = 120.0
"""For the boot, and for the capture kernel. A boot takes some seconds."""


def boot_command(setup: LinuxSetup, machine: QemuMachine, folder: Path) -> list[str]:
    """QEMU's command line, with files that are written to the folder; InputError for a CPU without such pages."""
    machine.check_pages(first_page_size(setup.image))
    # A kernel in somebody's own tree may be built anew meanwhile: QEMU gets the one that was read.
    (folder / "Image").write_bytes(setup.image)
    (folder / "initrd").write_bytes(first_initrd(setup))
    words = " ".join(word for word in (first_cmdline(setup), machine.words) if word)
    files = ["-kernel", str(folder / "Image"), "-initrd", str(folder / "initrd")]
    return [*machine.command(find_qemu()), *files, "-append", words]


def _hear_line(qemu: Qemu, start: int) -> None:
    """The rest of the line that begins there."""
    end = time.monotonic() + _LINE_SECONDS
    while "\n" not in qemu.console[start:] and not qemu.ended and time.monotonic() < end:
        qemu.pump(0.05)


def loaded_in(qemu: Qemu, setup: LinuxSetup) -> Loaded:
    """Boot, until the crash kernel is loaded and init waits for a line; the machine is stopped then.

    InputError where the kernel does not come so far, MachineError where QEMU does not.
    """
    hit = qemu.wait_for((f"\n{WAITING}\n", _END, PANIC_END), LIMIT_SECONDS)
    if hit == _END:
        _hear_line(qemu, qemu.console.rfind(_END.strip()))
    if hit is None or WAITING not in hit:
        qemu.check_running()
        raise InputError(f"the kernel has loaded no crash kernel: {last_words(qemu.console)}")
    with believed():
        region, _ = crash_kernel(split_records(qemu.console).get("iomem.txt", ""))
        if region is None:
            raise InputError("the kernel has reserved no crashkernel memory")
        ram = Ram([PhysRange.of(RAM_BASE, int(str(setup.ram).removesuffix("M")) << 20)])
    qemu.copy_memory(region, ram)
    with believed():
        page_size, obj = first_page_size(setup.image), built_in_purgatory(setup.image)
        said = find_load(ram, region, setup.crash_image, page_size, obj)
        files = {"kernel": setup.crash_image, "initrd": setup.crash_initrd}
        checks = obj is not None
        image = read_load(ram, said, files, region, page_size=page_size, checks=checks, built_in=obj)
    return Loaded(ram, region, image, obj)


def last_line(console: str) -> str:
    """That has something in it."""
    lines = [line for line in console.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
