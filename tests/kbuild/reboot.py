#!/usr/bin/env python3
"""An ordinary kexec by kexec_file_load() of a kernel with the series, in QEMU: checked, and the next kernel comes up.

    python tests/kbuild/reboot.py 7.3
    python tests/kbuild/reboot.py 7.3 --config CMA=y --config DMA_CMA=y --cmdline cma=128M

Where there is CMA memory, a kernel without the purgatory puts the segments there, and computes no digest: without
patch 3's image->no_cma (--series) nothing is checked then. At EL1, with a hypervisor's stub at
EL2 and with VHE, on three CPUs of QEMU; the interrupt controller has no ITS, whose tables outlive a
kexec only with EFI. Exit status 1 unless each says that the digests match and the next kernel's init runs.
"""

from __future__ import annotations

import argparse
import sys

from own_init import booted

from kexecemu.commands.kernel_given import built_kernel
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kbuild.qemu import QemuMachine

_SECONDS = 90
_UP = "kdump: Linux "  # the capture kernel's init, which is the next one's here
_INIT = b"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
kexec -s -l /boot/Image --initrd=/boot/initrd --append="console=ttyAMA0" || poweroff -f
echo "reboot: loaded $(cat /sys/kernel/kexec_loaded)"
kexec -e
"""
_MACHINES = (
    ("max", "el1"),
    ("max", "el2"),
    ("max", "vhe"),
    ("neoverse-v1", "vhe"),
    ("cortex-a57", "el1"),
    ("cortex-a57", "el2"),
)
_SAYS = ("reboot: loaded 1", "purgatory: checking", "purgatory: digests match", _UP)


def run(built: BuiltKernel, machine: QemuMachine, cmdline: str) -> str:
    """What the console says until the next kernel is up."""
    with booted(built, machine, "reboot", {"init": _INIT}, cmdline, its=False) as qemu:
        qemu.wait_for((f"\n{_UP}", "purgatory: stopped", "Kernel panic", "Power down"), _SECONDS)
        qemu.pump(0.2)
        return qemu.console


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="6.12 or 7.3, which has been built")
    parser.add_argument("--series", default=None, help="another one than ours")
    parser.add_argument("--config", action="append", default=[], help="as it was built with")
    parser.add_argument("--cmdline", default="", help="more words for the first kernel")
    given = parser.parse_args()
    built = built_kernel(given.version, given.series, "4k", given.config, "gcc")
    wrong = 0
    for cpu, el in _MACHINES:
        lines = run(built, QemuMachine(cpu, el, ram="1G"), given.cmdline).splitlines()
        missing = [said for said in _SAYS if not any(line.startswith(said) for line in lines)]
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        what = f"no {missing[0]!r}; last {last!r}" if missing else "checked, and up"
        print(f"{given.version} {cpu:<12} {el}: {what}", flush=True)
        wrong += bool(missing)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
