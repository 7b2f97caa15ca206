"""The script that gathers a machine's facts: under each shell, on a made-up machine full of secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.formats.fdt import Fdt, NodeSpec, build, cells

SCRIPT = Path(__file__).parents[2] / "kexecemu/doctor/collect.sh"
SHELLS = {"sh": ["sh"], "dash": ["dash"], "bash": ["bash", "--posix"], "ash": ["busybox", "ash"]}
RELEASE = "6.12.1-arm64"
SEED, MAC, RAW_MAC = b"\x8a\x01\xfe\xdc\xba\x98\x76\x54", "02:ab:cd:ef:00:11", b"\x02\xab\xcd\xef\x00\x11"
SECRETS = [
    b"attic-17",
    b"SN-0042X",
    MAC.encode(),
    RAW_MAC,
    SEED,
    b"10.1.2.3",
    b"0a1b2c3d-1111-2222-3333-0123456789ab",
]
SECRETS += [b"kdump@vault"]


def tree() -> bytes:
    root: NodeSpec = {
        "#address-cells": cells(1),
        "#size-cells": cells(1),
        "serial-number": b"SN-0042X\0",
        "memory@40000000": {"reg": cells(0x40000000, 0x40000000)},
        "chosen": {"kaslr-seed": SEED, "rng-seed": SEED * 8, "bootargs": b"crashkernel=256M\0"},
        "ethernet@1": {"local-mac-address": RAW_MAC, "reg": cells(1, 1)},
    }
    return build(root)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The files of a machine, with what names it in all of them."""
    files: Mapping[str, str | bytes] = {
        "proc/cmdline": f"root=UUID={SECRETS[6].decode()} ip=10.1.2.3 crashkernel=256M\n",
        "proc/iomem": "40000000-7fffffff : System RAM\n  60000000-6fffffff : Crash kernel\n",
        "proc/sys/kernel/kexec_load_disabled": "0\n",
        "proc/sys/kernel/panic": "10",
        "proc/sys/kernel/hostname": "attic-17\n",
        "proc/sys/kernel/osrelease": f"{RELEASE}\n",
        "proc/device-tree/serial-number": b"SN-0042X\0",
        "proc/device-tree/chosen/kaslr-seed": SEED,
        "proc/device-tree/chosen/rng-seed": SEED * 8,
        "proc/device-tree/ethernet@1/local-mac-address": RAW_MAC,
        "sys/kernel/kexec_crash_size": "268435456\n",
        "sys/firmware/fdt": tree(),
        "sys/class/watchdog/watchdog0/identity": "sbsa\n",
        f"boot/config-{RELEASE}": "CONFIG_KEXEC=y\n",
        f"boot/vmlinuz-{RELEASE}": b"kernel",
        f"var/lib/kdump/initrd.img-{RELEASE}": b"kdump's",
        f"boot/initrd.img-{RELEASE}": b"usual",
        "etc/os-release": "ID=debian\n",
        "etc/default/kdump-tools": "USE_KDUMP=1\n",
        "etc/kdump.conf": "# a comment\nssh kdump@vault\npath /var/crash\n",
        "kexec.log": "Trying to load\nattic-17 says so\n",
    }
    root = tmp_path / "root"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    bin = tmp_path / "bin"
    bin.mkdir()
    says = {
        "uname": f"echo 'Linux {RELEASE} aarch64'",
        "dmesg": f"echo '[    0.1] eth0: {MAC} on attic-17'; echo '[    0.2] Serial Number: ZZ9'",
    }
    for name, script in says.items():
        (bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin / name).chmod(0o755)
    return root


def collect(machine: Path, *words: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    program = shutil.which(SHELLS[shell][0])
    if program is None:
        pytest.skip(f"no {SHELLS[shell][0]} here")
    folder = machine.parent
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "KDUMP_FACTS_ROOT": str(machine)}
    command = [program, *SHELLS[shell][1:], str(SCRIPT), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def facts(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as found:
        members = [one for one in found if one.isfile()]
        opened = {one.name.removeprefix("kdump-facts/"): found.extractfile(one) for one in members}
        return {name: file.read() for name, file in opened.items() if file is not None}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gathers_the_facts_and_none_of_the_secrets(machine: Path, shell: str) -> None:
    before = {path: path.read_bytes() for path in machine.rglob("*") if path.is_file()}
    done = collect(machine, "-o", "out.tar", "-k", "root/kexec.log", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    tar = machine.parent / "out.tar"
    assert done.stdout.splitlines()[-1] == f"{tar}: {tar.stat().st_size} bytes"
    assert tar.stat().st_mode & 0o777 == 0o600
    for secret in SECRETS:
        assert secret not in tar.read_bytes(), secret
    found = facts(tar)
    assert found["format"] == b"kexecemu doctor 1\n"
    assert found["cmdline"] == b"root=UUID=UUID ip=IP crashkernel=256M\n"
    assert found["iomem"] == before[machine / "proc/iomem"]
    if shell != "ash":  # which has a dmesg of its own
        assert found["dmesg"] == b"[    0.1] eth0: MAC on HOST\n[    0.2] Serial Number: SERIAL\n"
    assert found["config"] == b"CONFIG_KEXEC=y\n"
    assert b"/sys/kernel/kexec_crash_size: 268435456\n" in found["sysfs"]
    assert b"/proc/sys/kernel/panic: 10\n" in found["sysfs"]
    assert b"/sys/class/watchdog/watchdog0/identity: sbsa\n" in found["sysfs"]
    assert found["kdump-conf"] == b"\nssh\npath /var/crash\n"
    assert found["kexec-d"] == b"Trying to load\nHOST says so\n"
    assert "kernel" not in found and "serial" not in found
    assert before == {path: path.read_bytes() for path in machine.rglob("*") if path.is_file()}


def test_the_device_tree_is_the_same_but_for_the_secrets(machine: Path) -> None:
    collect(machine, "-o", "out.tar")
    whole, kept = Fdt(tree()), Fdt(facts(machine.parent / "out.tar")["fdt"])
    for node in whole.nodes():
        for one in whole.properties(node.offset):
            secret = one.name in ("kaslr-seed", "rng-seed", "serial-number", "local-mac-address")
            value = whole.getprop(node.offset, one.name)
            assert value is not None
            wanted = bytes(len(value)) if secret else value
            assert kept.getprop(node.offset, one.name) == wanted, one.name


def test_the_kernel_and_kdump_s_own_initrd_come_along_when_asked_for(machine: Path) -> None:
    assert collect(machine, "-f").returncode == 0
    found = facts(machine.parent / "kdump-facts.tar")
    assert (found["kernel"], found["initrd"]) == (b"kernel", b"kdump's")


def test_what_is_not_there_is_empty_and_nothing_is_left_behind(machine: Path) -> None:
    shutil.rmtree(machine / "sys")
    shutil.rmtree(machine / "boot")
    (machine / "proc/cmdline").unlink()
    done = collect(machine)
    assert (done.returncode, done.stderr) == (0, "")
    found = facts(machine.parent / "kdump-facts.tar")
    assert (found["cmdline"], found["config"], "fdt" in found) == (b"", b"", False)
    assert sorted(path.name for path in machine.parent.iterdir()) == ["bin", "kdump-facts.tar", "root"]


@pytest.mark.parametrize("words", [["-x"], ["-o"], ["-o", "nowhere/out.tar"]])
def test_words_that_are_wrong_fail_and_write_nothing(machine: Path, words: list[str]) -> None:
    done = collect(machine, *words)
    assert done.returncode != 0 and done.stderr
    assert sorted(path.name for path in machine.parent.iterdir()) == ["bin", "root"]


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run([program, "-s", "sh", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_prints_the_script_or_writes_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["collect"]) == 0
    assert capsys.readouterr().out == SCRIPT.read_text()
    assert main(["collect", "--out", str(tmp_path / "collect.sh")]) == 0
    assert (tmp_path / "collect.sh").read_text() == SCRIPT.read_text()
    assert "written" in capsys.readouterr().out
