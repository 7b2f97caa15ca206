"""A kernel of ours in QEMU with another init than the one that loads and crashes: for scripts beside this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kexecemu.folders import temporary_folder
from kexecemu.formats.cpio import CpioEntry, build
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kbuild.qemu import Qemu, QemuMachine
from kexecemu.kbuild.qemu_load import boot_command
from kexecemu.kbuild.trial import Trial, setup_of


@contextmanager
def booted(
    built: BuiltKernel,
    machine: QemuMachine,
    folder: str,
    files: Mapping[str, bytes],
    cmdline: str = "",
    *,
    its: bool = True,
) -> Iterator[Qemu]:
    """From the first instruction on. The folder, with these files, is unpacked over the usual initramfs; init is one.

    its: the machine's GICv3 has an interrupt translation service, as is usual.
    """
    entries = [CpioEntry.directory(folder)]
    entries += [CpioEntry.file(f"{folder}/{name}", data, executable=True) for name, data in files.items()]
    with temporary_folder("kexecemu-init-") as scratch:
        command = boot_command(setup_of(Trial(built, dump=False, words=cmdline)), machine, scratch)
        initrd = scratch / "initrd"
        first = initrd.read_bytes()
        initrd.write_bytes(first + bytes(-len(first) % 512) + build(entries))
        command[-1] += f" rdinit=/{folder}/init"
        if not its:
            command[command.index("-M") + 1] += ",its=off"
        with Qemu(command) as qemu:
            yield qemu
