"""An initramfs of a real busybox, unpacked by that busybox and by real kernels; the inits in QEMU, crash and all."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.fetch.cache import fetched_folder, kernel_modules
from kexecemu.linux.initramfs import (
    CAPTURE_CMDLINE,
    CAPTURE_DONE,
    CRASH_LOADED,
    NO_VMCORE,
    busybox_applets,
    capture_initramfs,
    first_kernel_initramfs,
)
from kexecemu.linux.kernel_modules import DISK_MODULES, module_order, read_module
from kexecemu.linux.shared_libraries import program_files

pytestmark = pytest.mark.real

QEMU = shutil.which("qemu-system-aarch64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-aarch64 is not installed")

MIB = 1 << 20
RAM = 512 * MIB
CRASHKERNEL = 160 * MIB
LIMIT_SECONDS = 60


def test_busybox_itself_unpacks_the_archive_that_it_is_in(
    initramfs: Path, busybox: Path, arm64_program: list[str], tmp_path: Path
) -> None:
    cpio = [*arm64_program, str(busybox), "cpio"]
    with open(initramfs, "rb") as archive:
        listing = subprocess.run([*cpio, "-tv"], stdin=archive, capture_output=True, text=True, check=True)
    rows = {line.split()[-1]: line.split() for line in listing.stdout.splitlines() if "->" not in line}
    assert {"bin", "dev", "proc", "sys", "dev/console", "bin/busybox", "init"} == set(rows)
    assert rows["dev/console"][0] == "crw-------"
    with open(initramfs, "rb") as archive:
        subprocess.run(
            [*cpio, "-id", "bin/busybox", "bin/sh", "init"],
            stdin=archive,
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
    assert (tmp_path / "bin/busybox").read_bytes() == busybox.read_bytes()
    assert (tmp_path / "bin/sh").resolve() == (tmp_path / "bin/busybox").resolve()
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    done = subprocess.run(
        [*arm64_program, str(tmp_path / "bin/busybox"), "echo", "it runs"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "it runs\n"


@needs_qemu
def test_a_real_kernel_boots_to_its_init_and_powers_off(initramfs: Path, debian_kernel: Path) -> None:
    machine = ["-M", "virt", "-cpu", "cortex-a57", "-m", "512M", "-nic", "none", "-no-reboot"]
    console = ["-display", "none", "-serial", "stdio", "-monitor", "none"]
    boot = [
        "-kernel",
        str(debian_kernel),
        "-initrd",
        str(initramfs),
        "-append",
        "console=ttyAMA0 quiet panic=-1",
    ]
    done = subprocess.run(
        [str(QEMU), *machine, *console, *boot],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    release = debian_kernel.name.removeprefix("vmlinuz-")
    assert f"init: up on {release}\n" in done.stdout.replace("\r", ""), done.stdout[-2000:]
    assert "Power down" in done.stdout
    assert "vmcore" not in done.stdout, "this is no capture kernel"


@dataclass(frozen=True)
class RealKernel:
    """A fetched kernel: its Image, and lib/modules/RELEASE."""

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        return self.modules.name


@pytest.fixture(scope="module", params=["kernel", "kernel-trixie", "kernel-6.18", "kernel-backports"])
def kernel(request: pytest.FixtureRequest, fetched: Callable[[str], Path]) -> RealKernel:
    """Linux 6.1, with virtio as modules; 6.12 and what is newest, with half of it built in and compressed modules."""
    image, modules = fetched(request.param), kernel_modules(request.param)
    assert modules is not None
    return RealKernel(image, modules)


@dataclass(frozen=True)
class Kexec:
    """kexec-tools' program, and the packages with its libraries."""

    program: Path
    packages: Path


@pytest.fixture(scope="module")
def kexec(fetched: Callable[[str], Path]) -> Kexec:
    """kexec-tools, fetched."""
    program, packages = fetched("kexec-tools"), fetched_folder("kexec-tools")
    assert packages is not None
    return Kexec(program, packages)


@pytest.fixture(scope="module")
def first(kernel: RealKernel, busybox: Path, kexec: Kexec) -> Callable[..., bytes]:
    """The first kernel's archive, with the same kernel to capture."""

    def build(*options: str, cmdline: str = CAPTURE_CMDLINE) -> bytes:
        return first_kernel_initramfs(
            busybox=busybox,
            kexec=kexec.program,
            packages=kexec.packages,
            image=kernel.image,
            initrd=capture_initramfs(busybox=busybox, modules_folder=kernel.modules),
            cmdline=cmdline,
            options=["--kexec-syscall", *options],
            modules_folder=kernel.modules,
        )

    return build


class Machine:
    """QEMU's virt board, with a disk or without."""

    def __init__(self, folder: Path, kernel: RealKernel, *, disk_size: int = 0, board: str = "virt") -> None:
        self.disk = folder / "disk"
        self._initrd = folder / "initrd"
        self._command = [
            str(QEMU),
            "-M",
            f"{board},gic-version=2",
            "-cpu",
            "cortex-a57",
            "-m",
            str(RAM // MIB),
        ]
        self._command += ["-nic", "none", "-no-reboot", "-kernel", str(kernel.image)]
        self._command += ["-display", "none", "-serial", "stdio", "-monitor", "none"]
        if disk_size:
            with open(self.disk, "wb") as file:
                file.truncate(disk_size)
            drive = f"file={self.disk},format=raw,if=none,id=disk"
            self._command += ["-global", "virtio-mmio.force-legacy=false"]
            self._command += ["-drive", drive, "-device", "virtio-blk-device,drive=disk"]

    def run(self, initrd: bytes, *words: str, cpus: int = 1) -> list[str]:
        """The console's lines until the power is off; a line is typed where one is waited for."""
        self._initrd.write_bytes(initrd)
        cmdline = ["console=ttyAMA0", f"crashkernel={CRASHKERNEL // MIB}M", "cryptomgr.notests", *words]
        more = ["-smp", str(cpus), "-initrd", str(self._initrd), "-append", " ".join(cmdline)]
        command = ["timeout", str(LIMIT_SECONDS), *self._command, *more]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip())
                if lines[-1].endswith(": waiting for a line"):
                    # Not earlier: before the kernel has its driver, what is typed is lost.
                    process.stdin.write("go on\n")
                    process.stdin.flush()
        assert any(line.endswith("reboot: Power down") for line in lines), "\n".join(lines[-30:])
        return lines


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def said(lines: Sequence[str], who: str) -> list[str]:
    """What one of the inits said, without its name."""
    return [line.removeprefix(f"{who}: ") for line in lines if line.startswith(f"{who}: ")]


def test_the_applets_are_those_that_the_busybox_lists(busybox: Path, arm64_program: list[str]) -> None:
    done = subprocess.run(
        [*arm64_program, str(busybox), "--list"], capture_output=True, text=True, check=True
    )
    assert list(busybox_applets(busybox.read_bytes())) == done.stdout.split()


def test_the_modules_of_a_disk_are_found_in_a_real_kernel_s_package(kernel: RealKernel) -> None:
    order = module_order(kernel.modules, DISK_MODULES)
    names = [path.name.partition(".")[0] for path in order]
    if kernel.release.startswith("6.1."):
        assert {*names[:2]} == {"virtio", "virtio_ring"}
        assert names[2:] == ["virtio_mmio", "virtio_blk"]
    else:
        assert names == ["virtio_mmio", "virtio_blk"]  # the rest is built in
    for path in order:
        assert f"\0vermagic={kernel.release} ".encode() in read_module(path)


def test_kexec_runs_with_no_more_than_the_files_that_it_is_given(
    kexec: Kexec, arm64_program: list[str], tmp_path: Path
) -> None:
    if not arm64_program:
        pytest.skip("on this machine the loader would find libraries of its own")
    for name, path in program_files(kexec.program, kexec.packages).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    # -L: the loader and all libraries are looked for below this folder.
    done = subprocess.run(
        [*arm64_program, "-L", str(tmp_path), str(tmp_path / "bin/kexec"), "--version"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("kexec-tools ")


@needs_qemu
@pytest.mark.parametrize(("cpus", "copy"), [(1, "vmcopy"), (2, "vmcopy"), (1, "dd")])
def test_a_real_kernel_crashes_and_its_memory_is_on_the_disk(
    cpus: int, copy: str, kernel: RealKernel, first: Callable[..., bytes], tmp_path: Path
) -> None:
    machine = Machine(tmp_path, kernel, disk_size=RAM)
    # Digests take QEMU eight seconds; the crash kernel is intact here without them.
    lines = machine.run(
        first("--no-checks", cmdline=f"{CAPTURE_CMDLINE} kexecemu.copy={copy}"), "kexecemu.wait=1", cpus=cpus
    )
    assert CRASH_LOADED in lines
    assert lines.index(CRASH_LOADED) < lines.index("first: waiting for a line") < lines.index("first: crash")
    up, *rest = said(lines, "kdump")
    assert up == f"Linux {kernel.release} is up"
    size = int(rest[0].removeprefix("/proc/vmcore has ").removesuffix(" bytes"))
    assert rest[1] == f"OSRELEASE={kernel.release}"
    assert re.fullmatch(r"CRASHTIME=\d{9,}", rest[2])
    assert f"kdump: {rest[-1]}" == f"{CAPTURE_DONE}, {size} bytes to /dev/vda"

    with open(machine.disk, "rb") as file:
        core = ELFFile(file)
        assert core["e_type"] == "ET_CORE"
        notes, text, *memory = core.iter_segments()
        kinds = [note["n_name"] for note in notes.iter_notes()]
        assert kinds == ["CORE"] * cpus + ["VMCOREINFO"]
        # All of RAM but the crash kernel's, each byte once, and the kernel's text a second time.
        iomem = [line.split()[2:5] for line in lines if line.startswith("first: iomem ")]
        areas = {what: [int(end, 16) for end in area.split("-")] for area, _, what in iomem}
        ram, crash = areas["System"], areas["Crash"]
        assert crash[1] + 1 - crash[0] == CRASHKERNEL
        assert [(one["p_paddr"], one["p_paddr"] + one["p_memsz"]) for one in memory] == [
            (ram[0], crash[0]),
            (crash[1] + 1, ram[1] + 1),
        ]
        assert all(one["p_filesz"] == one["p_memsz"] for one in (text, *memory))
        assert memory[-1]["p_offset"] + memory[-1]["p_filesz"] == size
        # One linear map, and the text is the Image where the linear map has it, too.
        assert len({one["p_vaddr"] - one["p_paddr"] for one in memory}) == 1
        assert text["p_vaddr"] % (2 * MIB) == 0
        # Its head is given back to the page allocator by 6.1, and code is patched, but not the banner.
        image = kernel.image.read_bytes()
        banner = image.index(f"Linux version {kernel.release}".encode())
        expected = image[banner : banner + 100]
        assert _read(file, text["p_offset"] + banner, 100) == expected
        assert (
            _read(file, memory[0]["p_offset"] + text["p_paddr"] - memory[0]["p_paddr"] + banner, 100)
            == expected
        )


@needs_qemu
def test_a_kernel_that_no_crash_has_started_says_that_it_has_no_vmcore(
    kernel: RealKernel, busybox: Path, tmp_path: Path
) -> None:
    archive = capture_initramfs(busybox=busybox, modules_folder=kernel.modules)
    lines = Machine(tmp_path, kernel).run(archive)
    assert f"kdump: {said(lines, 'kdump')[-1]}".startswith(NO_VMCORE)


@needs_qemu
@pytest.mark.parametrize("disk_size", [0, 64 * MIB])
def test_without_a_disk_that_is_large_enough_the_dump_is_not_said_to_be_done(
    disk_size: int, kernel: RealKernel, first: Callable[..., bytes], tmp_path: Path
) -> None:
    lines = Machine(tmp_path, kernel, disk_size=disk_size).run(first("--no-checks"))
    end = said(lines, "kdump")[-1]
    if disk_size:
        assert "dd: error writing '/dev/vda': No space left on device" in said(lines, "kdump")
        assert "vmcopy: status 7, trying dd" in said(lines, "kdump")
        assert end.startswith("end: status 1, ")
    else:
        assert end == "end: headers read, nothing copied"
    assert not any(line.startswith(CAPTURE_DONE) for line in lines)


@needs_qemu
def test_records_of_a_load_are_the_same_with_the_kernel_s_own_kallsyms(
    kernel: RealKernel, first: Callable[..., bytes], tmp_path: Path
) -> None:
    if kernel.release.startswith("6.1."):
        pytest.skip("this kernel's kallsyms has no _text")
    records = []
    for kallsyms in ("short", "real"):
        # Without a seed there is no KASLR, so both have the same addresses. nokaslr will not do: 6.12 then leaves the
        # seed in the device tree, and kexec refuses to hand that on.
        machine = Machine(tmp_path, kernel, disk_size=8 * MIB, board="virt,dtb-randomness=off")
        words = ["kexecemu.records=disk", "kexecemu.crash=0", f"kexecemu.kallsyms={kallsyms}"]
        lines = machine.run(first("-d", "--no-checks"), *words)
        assert said(lines, "first")[-1] == "end: loaded, no crash wanted"
        with tarfile.open(machine.disk) as tar:
            files = {one.name: tar.extractfile(one) for one in tar}
            records.append({name: file.read() for name, file in files.items() if file is not None})
    for record in records:
        assert set(record) == {
            "dmesg.txt",
            "fdt.dtb",
            "iomem.txt",
            "kexec.txt",
            "vmcoreinfo-address.txt",
            "vmcoreinfo.txt",
        }
        assert record["fdt.dtb"][:4] == b"\xd0\x0d\xfe\xed"
        assert record["vmcoreinfo.txt"].startswith(f"OSRELEASE={kernel.release}\n".encode())
    of_interest = re.compile(rb"^(?:kernel symbol|[^:]*Elf header|va_bits|page_offset).*$", re.MULTILINE)
    short, real = (of_interest.findall(record["kexec.txt"]) for record in records)
    assert len(short) > 6
    assert short == real
