"""What can be fetched: of which packages of which release of Debian, and what of them is kept.

Everything is pinned to a release by its codename, so that two machines have the same whatever they run themselves.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kexecemu.errors import FetchError
from kexecemu.fetch.apt import Apt, run_program
from kexecemu.shown import shown

__all__ = ["EVERY", "TARGETS", "USUAL", "FetchTarget"]

_BOOKWORM = "bookworm"

# What a disk needs of a kernel: Debian's cloud kernels have all of virtio as modules.
_DISK_MODULES = ("virtio", "virtio_ring", "virtio_mmio", "virtio_blk")


@shown()
@dataclass(frozen=True)
class FetchTarget:
    """One thing to fetch: how its packages are downloaded, what of them is kept, and the file that it is about.

    keep, file and needs are patterns below the packages' root; an empty file stands for the folder itself. What was
    fetched before it was known that needs are needed lacks them, and counts as not fetched. native says that it is for
    this machine's architecture and not for arm64; old that no release has it any more, and that nobody should count on
    its being there. finish puts what was kept into its final form, where it has another.
    """

    summary: str
    download: Callable[[Apt, Path], None]
    keep: Sequence[str]
    file: str = ""
    needs: Sequence[str] = ()
    release: str = _BOOKWORM
    native: bool = False
    old: bool = False
    finish: Callable[[Path], None] | None = None

    def find(self, folder: Path) -> Path | None:
        """The file (or the folder) where it was fetched to, None if it is not there."""
        if not all(any(folder.glob(pattern)) for pattern in self.needs):
            return None
        if not self.file:
            return folder if folder.is_dir() else None
        return max(folder.glob(self.file), default=None)

    def architecture(self) -> str:
        """In Debian's words."""
        if not self.native:
            return "arm64"
        done = run_program(["dpkg", "--print-architecture"])
        return done.stdout.strip() or "amd64"


def _dumptools(release: str, what: str) -> FetchTarget:
    """The tools of a release that read a dump; of each only those that knew a kernel can be asked about it."""
    return FetchTarget(
        f"crash, makedumpfile and vmcore-dmesg for arm64, to be run under qemu-user, {what}",
        lambda apt, folder: apt.download_with_dependencies(["crash", "makedumpfile", "kexec-tools"], folder),
        ["**/bin/crash", "**/bin/makedumpfile", "**/sbin/vmcore-dmesg", "**/*.so", "**/*.so.*"],
        release=release,
    )


def _download_kernel(package: str, apt: Apt, folder: Path) -> None:
    """The kernel that a meta package stands for, in all its parts."""
    # The meta package depends on the newest kernel, whose name carries its version.
    images = [name for name in apt.dependencies(package) if name.startswith("linux-image-")]
    if not images:
        raise FetchError(f"{package} depends on no kernel")
    # Since 7.x the image is split: it depends on linux-base-R (configuration), -binary-R (vmlinuz), -modules-R.
    version = images[0].removeprefix("linux-image-")
    parts = re.compile(rf"linux-(?:.*-)?{re.escape(version)}").fullmatch
    apt.download([images[0], *filter(parts, apt.dependencies(images[0]))], folder)


def _kernel(summary: str, package: str, release: str = _BOOKWORM) -> FetchTarget:
    """The kernel that a meta package of a release stands for, with its configuration and the modules of a disk."""
    # Which modules need which is said in the modules: modules.dep is made where a package is installed. They may be
    # compressed, and one that is missing is built in.
    folder = "**/lib/modules/*"
    modules = [f"{folder}/kernel/**/{name}.ko*" for name in _DISK_MODULES]
    builtin = f"{folder}/modules.builtin"
    split = [f"usr/lib/modules/*/{name}" for name in ("vmlinuz", "config")]
    return FetchTarget(
        summary,
        partial(_download_kernel, package),
        keep=["boot/vmlinuz-*", "boot/config-*", *split, *modules, builtin],
        file="boot/vmlinuz-*",
        needs=["boot/config-*", builtin],
        release=release,
        finish=_one_layout,
    )


def _trees(summary: str, release: str) -> FetchTarget:
    """The device trees of all boards that a kernel of a release is built for."""
    return FetchTarget(
        summary,
        partial(_download_kernel, "linux-image-arm64"),
        keep=["usr/lib/linux-*/**/*.dtb", "usr/lib/modules/*/**/*.dtb"],
        needs=["usr/lib/**/*.dtb"],
        release=release,
    )


def _one_layout(kept: Path) -> None:
    """What newer packages have under usr/lib/modules/RELEASE goes to where the older ones have it."""
    for path in sorted(kept.glob("usr/lib/modules/*/*")):
        if path.name in ("vmlinuz", "config"):
            place = kept / "boot" / f"{path.name}-{path.parent.name}"
            place.parent.mkdir(exist_ok=True)
            path.rename(place)


def _old_kernel(summary: str, path: str, sha256: str, release: str) -> FetchTarget:
    """A kernel that a release had once, by its package's path in the archive."""
    usual = _kernel(summary, "", release)
    return replace(usual, download=lambda apt, folder: apt.download_old(path, sha256, folder), old=True)


# glibc's loader is given everything by the script, so that none of the machine's own libraries is taken.
_STARTER = """\
#!/bin/sh
# {name} by its own loader and libraries: this machine's may be of another release.
here=$(dirname "$(readlink -f "$0")")
exec "$here/{loader}" --library-path "{libraries}" "$here/usr/bin/{name}" {arguments}"$@"
"""


def _starter(kept: Path, name: str, arguments: str = "") -> None:
    """A script that starts the program wherever the cache lies, on a machine of any release."""
    loader = next(iter(sorted(kept.glob("**/ld-linux-*.so.*"))), None)
    if loader is None or not (kept / "usr/bin" / name).is_file():
        raise FetchError(f"{name}: it or its loader is not among its packages")
    folders = sorted({path.parent.relative_to(kept) for path in kept.glob("usr/lib/**/*.so*")})
    libraries = ":".join(f"$here/{folder}" for folder in folders)
    script = kept / name
    text = _STARTER.format(
        name=name, loader=loader.relative_to(kept), libraries=libraries, arguments=arguments
    )
    script.write_text(text)
    script.chmod(0o755)
    for link in ("bin", "sbin"):  # apt's packages of a merged /usr have no such links
        if os.path.islink(kept / link):
            (kept / link).unlink()


_CHECKERS = ("cbmc", "goto-cc", "goto-instrument")


def _checker_starters(kept: Path) -> None:
    for name in _CHECKERS:
        _starter(kept, name)


TARGETS = {
    "kernel": _kernel("Debian 12's signed cloud kernel, Linux 6.1", "linux-image-cloud-arm64"),
    "kernel-trixie": _kernel("Debian 13's, Linux 6.12", "linux-image-cloud-arm64", "trixie"),
    "kernel-backports": _kernel(
        "the newest that Debian 13 offers as a backport", "linux-image-cloud-arm64", "trixie-backports"
    ),
    "kernel-6.18": _old_kernel(
        "Linux 6.18, once Debian 13's backport: by name only, where a mirror still has it",
        "pool/main/l/linux-signed-arm64/linux-image-6.18.15+deb13-cloud-arm64_6.18.15-1~bpo13+1_arm64.deb",
        "d8769e7a5cd50d504354c1bb13d92becb004178ed1195e575d5680e33cb84c30",
        "trixie-backports",
    ),
    "kernel-16k": _kernel("Debian 13's for pages of 16 KiB", "linux-image-arm64-16k", "trixie"),
    "trees": _trees("the device trees of Debian 13's kernel, Linux 6.12: over 1,000 boards", "trixie"),
    "trees-backports": _trees("those of the newest kernel that Debian 13 offers", "trixie-backports"),
    # /usr/bin in releases with a merged /usr, /bin before.
    "busybox": FetchTarget(
        "busybox, linked statically, for arm64",
        lambda apt, folder: apt.download(["busybox-static"], folder),
        ["**/bin/busybox"],
        "**/bin/busybox",
    ),
    # /usr/sbin and /usr/lib in releases with a merged /usr, /sbin and /lib before.
    "kexec-tools": FetchTarget(
        "the program kexec for arm64 and its libraries; its purgatory is embedded in it",
        lambda apt, folder: apt.download_with_dependencies(["kexec-tools"], folder),
        ["**/sbin/kexec", "**/lib/ld-linux-aarch64.so.1", "**/lib/aarch64-linux-gnu/*.so*"],
        "**/sbin/kexec",
        needs=["**/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"],
    ),
    "dumptools": _dumptools(_BOOKWORM, "for dumps of kernels up to 6.8"),
    "dumptools-trixie": _dumptools("trixie", "for those up to 6.12"),
    "dumptools-forky": _dumptools("forky", "for later ones"),
    "shim": FetchTarget(
        "Debian's secure boot CA, which signed the kernels' signer",
        lambda apt, folder: apt.download(["shim-unsigned"], folder),
        ["usr/share/shim/debian-uefi-ca.der"],
        "usr/share/shim/debian-uefi-ca.der",
    ),
    "qemu": FetchTarget(
        "Debian 14's qemu-system-aarch64 for this machine, for -cpu max of today; nothing is installed",
        lambda apt, folder: apt.download_with_dependencies(["qemu-system-arm"], folder),
        [
            "usr/bin/qemu-system-aarch64",
            "usr/lib/*-linux-gnu*/*.so*",
            "**/ld-linux-*.so.*",
            "usr/share/qemu/*.rom",
        ],
        "qemu-system-aarch64",
        release="forky",
        native=True,
        finish=lambda kept: _starter(kept, "qemu-system-aarch64", '-L "$here/usr/share/qemu" '),
    ),
    "cbmc": FetchTarget(
        "the model checker CBMC for this machine, for proofs about the purgatory's C; nothing is installed",
        lambda apt, folder: apt.download(
            ["cbmc", "libc6", "libgcc-s1", "libstdc++6", "minisat", "zlib1g"], folder
        ),
        [
            *(f"usr/bin/{name}" for name in _CHECKERS),
            "usr/lib/*.so*",
            "usr/lib/*-linux-gnu*/*.so*",
            "**/ld-linux-*.so.*",
        ],
        "cbmc",
        release="trixie",
        native=True,
        finish=_checker_starters,
    ),
}
USUAL = ("kernel", "busybox")
EVERY = tuple(name for name, one in TARGETS.items() if not one.old)
