#!/usr/bin/env python3
"""The series' kselftest, run by the shell of a kernel that has the series, in QEMU.

    python tests/kbuild/selftest.py 7.3

The script and the kernel's own kexec_common_lib.sh go into a second initramfs, which the kernel unpacks over the first;
its configuration lies where the library looks for a module folder's. Exit status 1 unless the script says that it has
passed, and that it skips where the configuration has no purgatory.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from kexecemu.commands.kernel_given import built_kernel
from kexecemu.fetch.cache import cache_folder
from kexecemu.formats.cpio import CpioEntry, build
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kbuild.qemu import Qemu, QemuMachine, find_qemu
from kexecemu.kbuild.series import series_path
from kexecemu.kbuild.source import find_source
from kexecemu.kbuild.trial import Trial, setup_of
from kexecemu.linux.first_boot import first_cmdline, first_initrd

_LIBRARY = "tools/testing/selftests/kexec/kexec_common_lib.sh"
_SCRIPT = "test_kexec_purgatory.sh"
_SECONDS = 120
_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /lib/modules/$(uname -r)
cp /selftest/config /lib/modules/$(uname -r)/config
cd /selftest
IMAGE=/boot/Image INITRD=/boot/initrd sh ./{script}
echo "selftest: status $?"
poweroff -f
"""


def library(version: str) -> bytes:
    """The kernel's own, out of the source's archive."""
    with tarfile.open(find_source(version, cache_folder())) as archive:
        for member in archive:
            if member.name.endswith(_LIBRARY):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise SystemExit(f"{version}: no {_LIBRARY} in the source")


def run(built: BuiltKernel, shell_library: bytes, config: bytes) -> str:
    """What the console says from the script's start."""
    setup = setup_of(Trial(built, dump=False))
    script = (series_path().parent / "files" / _SCRIPT).read_bytes()
    files = {
        "selftest/init": _INIT.format(script=_SCRIPT).encode(),
        f"selftest/{_SCRIPT}": script,
        "selftest/kexec_common_lib.sh": shell_library,
        "selftest/config": config,
    }
    entries = [CpioEntry.directory("selftest")]
    entries += [CpioEntry.file(path, data, executable=True) for path, data in files.items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Image").write_bytes(setup.image)
        first = first_initrd(replace(setup, crash_image=setup.image))
        (folder / "initrd").write_bytes(first + bytes(-len(first) % 512) + build(entries))
        command = QemuMachine().command(find_qemu())
        command += ["-kernel", str(folder / "Image"), "-initrd", str(folder / "initrd")]
        command += ["-append", f"{first_cmdline(setup)} rdinit=/selftest/init"]
        with Qemu(command) as qemu:
            qemu.wait_for(("selftest: status ", "Kernel panic"), _SECONDS)
            qemu.pump(0.2)
            return qemu.console


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="6.12 or 7.3, which has been built")
    version = parser.parse_args().version
    built = built_kernel(version, None, "4k", None, "gcc")
    config = (built.folder / "config").read_bytes()
    off = re.sub(
        rb"(?m)^CONFIG_ARM64_KEXEC_PURGATORY=y$", b"# CONFIG_ARM64_KEXEC_PURGATORY is not set", config
    )
    good = True
    shell_library = library(version)
    for what, one, expected in (("with the series", config, 0), ("its option said to be off", off, 4)):
        console = run(built, shell_library, one)
        said = [
            line for line in console.splitlines() if line and not re.match(r"\[ *\d", line)
        ]  # but the kernel's
        print(f"{version}, {what}:", *said[-10:], sep="\n    ", flush=True)
        good = good and f"selftest: status {expected}" in said
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
