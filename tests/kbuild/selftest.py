#!/usr/bin/env python3
"""The series' kselftest, run by the shell of a kernel that has the series, in QEMU.

    python tests/kbuild/selftest.py 7.3

The script and the kernel's own kexec_common_lib.sh go into a second initramfs, which the kernel unpacks over the first;
its configuration lies where the library looks for a module folder's. Exit status 1 unless the script passes, skips
where there is no purgatory or where loading is not allowed, and leaves nothing loaded where it fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile

from own_init import booted

from kexecemu.commands.kernel_given import built_kernel
from kexecemu.fetch.cache import cache_folder
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kbuild.qemu import QemuMachine
from kexecemu.kbuild.series import series_path
from kexecemu.kbuild.source import find_source

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
{before}
IMAGE=/boot/Image INITRD=/boot/initrd sh ./{script}
status=$?
echo "selftest: loaded $(cat /sys/kernel/kexec_crash_loaded)"
echo "selftest: status $status"
poweroff -f
"""


# A kexec that fails the third time, before the real one.
_FAILING = r"""mkdir bin
export KEXEC=$(command -v kexec) PATH=/selftest/bin:$PATH
printf "#!/bin/sh\necho x >> calls\n[ \$(wc -l < calls) = 3 ] || exec $KEXEC \"\$@\"\nexit 1" > bin/kexec
chmod +x bin/kexec"""
_LOCKED = """\
mkdir /locked
mount -t tmpfs securityfs /locked
echo "none [integrity] confidentiality" > /locked/lockdown"""
_OFF = (b"CONFIG_ARM64_KEXEC_PURGATORY=y", b"# CONFIG_ARM64_KEXEC_PURGATORY is not set")
_FORCED = (b"CONFIG_ARM64_KEXEC_PURGATORY=y", b"CONFIG_ARM64_KEXEC_PURGATORY=y\nCONFIG_KEXEC_SIG_FORCE=y")
# What is so, a line of the configuration changed, what is done before, the exit status.
CASES = (
    ("with the series", None, "", 0),
    ("its option said to be off", _OFF, "", 4),
    ("signatures said to be required", _FORCED, "", 4),
    ("loading disabled", None, "echo 1 > /proc/sys/kernel/kexec_load_disabled", 4),
    ("loading limited", None, "echo 5 > /proc/sys/kernel/kexec_load_limit_panic", 4),
    ("locked down, as it seems", None, _LOCKED, 4),
    ("the third load fails", None, _FAILING, 1),
)


def library(version: str) -> bytes:
    """The kernel's own, out of the source's archive."""
    with tarfile.open(find_source(version, cache_folder())) as archive:
        for member in archive:
            if member.name.endswith(_LIBRARY):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise SystemExit(f"{version}: no {_LIBRARY} in the source")


def run(built: BuiltKernel, shell_library: bytes, config: bytes, before: str = "") -> str:
    """What the console says from the script's start."""
    files = {
        "init": _INIT.format(script=_SCRIPT, before=before).encode(),
        _SCRIPT: (series_path().parent / "files" / _SCRIPT).read_bytes(),
        "kexec_common_lib.sh": shell_library,
        "config": config,
    }
    with booted(built, QemuMachine(), "selftest", files) as qemu:
        qemu.wait_for(("selftest: status ", "Kernel panic"), _SECONDS)
        qemu.pump(0.2)
        return qemu.console


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="6.12 or 7.3, which has been built")
    version = parser.parse_args().version
    built = built_kernel(version, None, "4k", None, "gcc")
    config = (built.folder / "config").read_bytes()
    good = True
    shell_library = library(version)
    for what, changed, before, expected in CASES:
        one = re.sub(rb"(?m)^%b$" % changed[0], changed[1], config) if changed is not None else config
        console = run(built, shell_library, one, before)
        said = [
            line for line in console.splitlines() if line and not re.match(r"\[ *\d", line)
        ]  # but the kernel's
        print(f"{version}, {what}:", *said[-10:], sep="\n    ", flush=True)
        good = good and f"selftest: status {expected}" in said and "selftest: loaded 0" in said
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
