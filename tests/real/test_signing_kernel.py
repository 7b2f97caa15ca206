"""A real kernel with CONFIG_KEXEC_SIG, booted in QEMU, judges images that verify-image takes and refuses."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import signing
from kernel_parsers.mutate import mutated
from signing import SIGNER, der_of, good, pe_image

from kexecemu.errors import InputError, KexecError
from kexecemu.fetch.cache import cache_folder
from kexecemu.formats import x509
from kexecemu.formats.algorithms import LINUX_6_12
from kexecemu.formats.cpio import CpioEntry, build
from kexecemu.kbuild.build import BuildPlan, BuiltKernel, find_built
from kexecemu.kbuild.options import fragment
from kexecemu.kbuild.qemu import Qemu, QemuMachine, find_qemu
from kexecemu.kernel.load.kexec_image import image_probe
from kexecemu.kernel.signature.keyring import Keyring, SystemKeyrings
from kexecemu.kernel.signature.policy import KexecSignaturePolicy, Lockdown
from kexecemu.kernel.signature.public_key import CryptoModules
from kexecemu.kernel.signature.signature import verify_pefile_signature
from kexecemu.linux.shared_libraries import program_files

pytestmark = pytest.mark.real

# A place in the kernel for one more certificate, so that no path of a machine gets into the build; fs-verity is only
# there because it selects SYSTEM_DATA_VERIFICATION, which nobody can choose.
_YES = """
KEXEC_SIG KEXEC_IMAGE_VERIFY_SIG EFI SIGNED_PE_FILE_VERIFICATION KEYS ASYMMETRIC_KEY_TYPE
ASYMMETRIC_PUBLIC_KEY_SUBTYPE X509_CERTIFICATE_PARSER PKCS7_MESSAGE_PARSER SYSTEM_TRUSTED_KEYRING
SYSTEM_EXTRA_CERTIFICATE CRYPTO_SHA1 CRYPTO_SHA256 CRYPTO_SHA512 CRYPTO_RSA CRYPTO_ECDSA SECURITY SECURITYFS
SECURITY_LOCKDOWN_LSM FS_VERITY FS_VERITY_BUILTIN_SIGNATURES
"""
CONFIG = [*(f"{name}=y" for name in _YES.split()), 'LSM="lockdown"']
BUILD = "kexecemu kernel build 6.12 --series none " + " ".join(f"--config '{line}'" for line in CONFIG)

CMDLINE = 'console=ttyAMA0 crashkernel=64M loglevel=4 cryptomgr.notests dyndbg="file kexec_file.c +p" nokaslr'
LIMIT_SECONDS = 600
MUTANTS = 250

INIT = """#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t securityfs security /sys/kernel/security
/bin/busybox dmesg -c | /bin/busybox grep "Loaded X.509" > /dev/ttyAMA0
judge() {
    for image in /images/*; do
        /bin/busybox dmesg -c > /dev/null
        said=$(/bin/kexec -s -p $image --append=quiet 2>&1) && status=0 || status=$?
        errno=$(/bin/busybox dmesg -c | /bin/busybox sed -n 's/.*verification failed (-\\([0-9]*\\)).*/\\1/p')
        echo "judged: $1 ${image##*/} status $status errno ${errno:-0} $said" > /dev/ttyAMA0
    done
}
judge none
echo integrity > /sys/kernel/security/lockdown
judge integrity
echo "judged: all" > /dev/ttyAMA0
/bin/busybox poweroff -f
"""


@pytest.fixture(scope="module")
def kernel() -> BuiltKernel:
    """The kernel; skips with the command that builds it."""
    try:
        found = find_built(BuildPlan("6.12", (), fragment("4k", CONFIG)), cache_folder())
    except InputError as error:
        pytest.skip(str(error))
    if found is None:
        pytest.skip(f"no kernel with CONFIG_KEXEC_SIG: run {BUILD}")
    return found


def with_certificate(kernel: BuiltKernel, certificate: bytes) -> bytes:
    """The Image with a certificate that it trusts: scripts/insert-sys-cert.c, for a raw Image."""
    image = bytearray(kernel.image.read_bytes())
    symbols = {}
    for line in (kernel.folder / "System.map").read_text().splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    place, used, size = (
        symbols[name] - symbols["_text"]
        for name in ("system_extra_cert", "system_extra_cert_used", "system_certificate_list_size")
    )
    assert struct.unpack_from("<I", image, used) == (0,)
    image[place : place + len(certificate)] = certificate
    struct.pack_into("<I", image, used, len(certificate))
    struct.pack_into("<Q", image, size, struct.unpack_from("<Q", image, size)[0] + len(certificate))
    return bytes(image)


def images() -> dict[str, bytes]:
    """What is judged, by name: good ones, bad ones, and damaged messages of which some are still taken."""
    found = {"good": good().data, **{name: make() for name, make in signing.BAD_IMAGES.items()}}
    found["ec"] = signing.signed(pe_image(), signing.EC_SIGNER, "ec", key_algorithm="ecdsa-sha256")
    chain = [der_of(one) for one in (signing.LEAF, signing.INTERMEDIATE)]
    found["chain"] = signing.signed(pe_image(), signing.LEAF, certificates=chain)
    found["sha3"] = signing.signed(pe_image(), digest="sha3-256")
    found["sha224"] = signing.signed(pe_image(), digest="sha224")
    found["own"] = signing.signed(pe_image(), certificates=[der_of(SIGNER), der_of(signing.CA)])
    message = signing.message(pe_image())
    # Each tag of the message the other way, constructed or primitive.
    for offset in range(len(message)):
        if message[offset] in (0x02, 0x04, 0x05, 0x06, 0x30, 0x31, 0xA0) and offset < 0x60:
            changed = signing.flip(message, offset, 0x20)
            found[f"tag-{offset:03x}"] = signing.attach(pe_image(), changed)
    chosen = random.Random(61)
    for number in range(MUTANTS):
        found[f"mutant-{number:03}"] = signing.attach(pe_image(), mutated(chosen, message))
    return found


def initramfs(folder: Path, kexec: Path, packages: Path, busybox: Path) -> Path:
    files = program_files(kexec, packages) | {"bin/busybox": busybox}
    entries = [CpioEntry.directory(name) for name in ("bin", "dev", "proc", "sys", "lib", "images")]
    entries += [CpioEntry.directory("lib/aarch64-linux-gnu"), CpioEntry.device("dev/console", 5, 1)]
    entries += [CpioEntry.file(name, path.read_bytes(), executable=True) for name, path in files.items()]
    entries += [CpioEntry.link("bin/sh", "busybox"), CpioEntry.file("init", INIT.encode(), executable=True)]
    entries += [CpioEntry.file(f"images/{name}", data) for name, data in images().items()]
    path = folder / "initrd"
    path.write_bytes(build(entries))
    return path


@pytest.fixture(scope="module")
def judged(
    kernel: BuiltKernel,
    fetched: Callable[[str], Path],
    busybox: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, str], tuple[int, int, str]]]:
    """Status of kexec -s -p, errno in the log, and kexec's words, by lockdown and image's name."""
    folder = tmp_path_factory.mktemp("signing")
    kexec = fetched("kexec-tools")
    (folder / "Image").write_bytes(with_certificate(kernel, der_of(signing.CA)))
    packages = cache_folder() / "kexec-tools"
    command = QemuMachine("cortex-a57").command(find_qemu())
    command += ["-kernel", str(folder / "Image"), "-append", CMDLINE]
    command += ["-initrd", str(initramfs(folder, kexec, packages, busybox))]
    with Qemu(command) as qemu:
        assert qemu.wait_for(["judged: all", "Kernel panic"], LIMIT_SECONDS) == "judged: all", qemu.console[
            -3000:
        ]
        console = qemu.console
    assert "Loaded X.509 cert 'kexecemu test CA: " in console
    lines = re.findall(r"^judged: (\w+) (\S+) status (\d+) errno (\d+) ?(.*)$", console, re.MULTILINE)
    yield {(lock, name): (int(status), int(errno), said) for lock, name, status, errno, said in lines}


KEYRINGS = SystemKeyrings(Keyring.of("test", [x509.parse(der_of(signing.CA), LINUX_6_12)]))
CRYPTO = CryptoModules(CryptoModules().hashes | {"sha3-256", "sha3-384", "sha3-512"}, algorithms=LINUX_6_12)


def errno_of(image: bytes) -> int:
    try:
        verify_pefile_signature(image, KEYRINGS.builtin, crypto=CRYPTO)
    except KexecError as error:
        assert error.errno is not None
        return error.errno
    return 0


def probed() -> dict[str, bytes]:
    """Those that get as far as a verification."""
    found = {}
    for name, image in images().items():
        try:
            image_probe(image)
        except KexecError:
            continue
        found[name] = image
    return found


def test_the_kernel_says_of_each_image_what_verify_image_says(
    judged: dict[tuple[str, str], tuple[int, int, str]],
) -> None:
    expected = {name: errno_of(image) for name, image in probed().items()}
    assert {name: judged["none", name][1] for name in expected} == expected
    # arm64 has no CONFIG_KEXEC_SIG_FORCE: the image is loaded all the same.
    assert {judged["none", name][0] for name in expected} == {0}
    assert sum(errno == 0 for errno in expected.values()) > 20
    assert len(set(expected.values())) > 8


def test_under_lockdown_it_refuses_what_the_policy_refuses(
    judged: dict[tuple[str, str], tuple[int, int, str]],
) -> None:
    policy = KexecSignaturePolicy(sig=True, lockdown=Lockdown.INTEGRITY, keyrings=KEYRINGS, crypto=CRYPTO)
    for name, image in probed().items():
        status, _, said = judged["integrity", name]
        try:
            policy.check(image, lambda line: None)
        except KexecError as error:
            assert error.name == "EPERM"
            assert status != 0 and "Operation not permitted" in said, (name, status, said)
        else:
            assert (status, said) == (0, ""), name
