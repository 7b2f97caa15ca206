"""Debian's signed arm64 kernel against Debian's own CA, and against what a real kernel said about one like it."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from errno import EKEYREJECTED, ENOKEY
from pathlib import Path

import pytest
import signing
from cryptography import x509 as reference
from cryptography.hazmat.primitives.serialization import Encoding

from kexecemu.commands.verify_image import verify_image_command
from kexecemu.errors import KexecError
from kexecemu.formats import cms, pe, x509
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.signature import signature_message, verify_pefile_signature

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kernel(debian_kernel: Path) -> bytes:
    """Debian's signed kernel."""
    return debian_kernel.read_bytes()


@pytest.fixture(scope="module")
def ca_file(fetched: Callable[[str], Path]) -> Path:
    """Debian's secure boot CA, from shim-unsigned."""
    return fetched("shim")


@pytest.fixture(scope="module")
def debian(ca_file: Path) -> Keyring:
    """A keyring with Debian's CA."""
    return Keyring.of("debian", [x509.parse(ca_file.read_bytes())])


def test_debians_kernel_is_verified_by_debians_ca(kernel: bytes, debian: Keyring) -> None:
    found = verify_pefile_signature(kernel, debian)
    assert found.trusted_by.certificate.subject_text == "Debian Secure Boot CA"
    assert found.signers[0].subject_text.startswith("Debian Secure Boot Signer")


def test_it_is_foreign_to_any_other_kernel(kernel: bytes) -> None:
    # As measured on 6.1.192 with only a key of its own: -126.
    stranger = Keyring.of("other", [x509.parse(signing.der_of(signing.CA))])
    with pytest.raises(KexecError) as error:
        verify_pefile_signature(kernel, stranger)
    assert error.value.errno == ENOKEY


def test_its_parts_are_those_that_a_real_kernel_saw(kernel: bytes) -> None:
    # "PEFILE: checksum @ 98", "PEFILE: header size = 10000", "sig wrapper = { 5c0, 200, 2 }", said of 6.1.176; and of
    # its certificate "PKCS7: - fingerprint", "X.509: subjkeyid" and "X.509: authkeyid".
    file = pe.parse(kernel)
    table = file.certificate_table()
    assert table is not None
    assert (file.checksum_offset, file.header_size) == (0x98, 0x10000)
    assert file.win_certificate(table)[1:] == (0x200, 2)
    signer = cms.parse(signature_message(kernel)).certificates[0]
    if signer.subject_text != "Debian Secure Boot Signer 2022 - linux":
        pytest.skip(f"signed by {signer.subject_text}, not by the key that the real kernel saw")
    assert signer.id.hex() == (
        "32a0287f841a036fa393c1e065c43ae6b2422643311e301c0603550403131544656269616e2053656375726520426f6f74204341"
    )
    assert signer.skid == bytes.fromhex("14011249c2675ea8e5148542202005810584b25f")
    assert signer.authority_skid == bytes.fromhex("6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1")


def test_flipped_bits_in_the_kernel_are_refused(kernel: bytes, debian: Keyring) -> None:
    table = pe.parse(kernel).certificate_table()
    assert table is not None
    chosen = random.Random(61)
    checksum = range(0x98, 0x9C)
    changed = bytearray(kernel)
    for offset in [
        0,
        0x97,
        0x9C,
        0xFFFF,
        0x10000,
        table.offset - 1,
        *(chosen.randrange(table.offset) for _ in range(20)),
    ]:
        if offset in checksum:
            continue
        mask = 1 << chosen.randrange(8)
        changed[offset] ^= mask
        with pytest.raises(KexecError):
            verify_pefile_signature(bytes(changed), debian)
        changed[offset] ^= mask
    verify_pefile_signature(bytes(changed), debian)


def test_flipped_bits_in_what_is_signed_of_the_message_are_refused(kernel: bytes, debian: Keyring) -> None:
    table = pe.parse(kernel).certificate_table()
    assert table is not None
    message = signature_message(kernel)
    parsed = cms.parse(message)
    assert parsed.content is not None and parsed.signers[0].attributes is not None
    signed = [
        parsed.content.content,
        parsed.certificates[0].signed_part,
        parsed.certificates[0].signature,
        parsed.signers[0].attributes[2:],
        parsed.signers[0].signature,
    ]
    chosen = random.Random(62)
    for value in signed:
        start = kernel.index(value, table.offset)
        for _ in range(8):
            offset = start + chosen.randrange(len(value))
            with pytest.raises(KexecError):
                verify_pefile_signature(signing.flip(kernel, offset, 1 << chosen.randrange(8)), debian)


def test_an_appended_byte_is_refused(kernel: bytes, debian: Keyring) -> None:
    with pytest.raises(KexecError) as error:
        verify_pefile_signature(kernel + b"\0", debian)
    assert error.value.errno == EKEYREJECTED


def test_a_kernel_without_its_signature_is_unsigned(kernel: bytes, debian: Keyring) -> None:
    table = pe.parse(kernel).certificate_table()
    assert table is not None
    entry = struct.pack("<II", *table)
    bare = kernel[: table.offset].replace(entry, bytes(8), 1)
    with pytest.raises(KexecError) as error:
        verify_pefile_signature(bare, debian)
    assert error.value.name == "ENODATA"


def test_verify_image_says_who_signed_it(
    debian_kernel: Path, ca_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    with pytest.raises(typer.Exit) as exit_:
        verify_image_command(debian_kernel, [ca_file])
    assert exit_.value.exit_code == 0
    assert re.search(r"^signer: +CN=Debian Secure Boot Signer", capsys.readouterr().out, re.MULTILINE)


def test_other_tools_agree(debian_kernel: Path, ca_file: Path, kernel: bytes, tmp_path: Path) -> None:
    tools = [tool for tool in ("sbverify", "osslsigncode") if shutil.which(tool)]
    if not tools:
        pytest.skip("neither sbverify (Debian: sbsigntool) nor osslsigncode is installed")
    certificate = tmp_path / "ca.pem"
    loaded = reference.load_der_x509_certificate(ca_file.read_bytes())
    certificate.write_bytes(loaded.public_bytes(Encoding.PEM))
    if "sbverify" in tools:
        done = subprocess.run(
            ["sbverify", "--cert", certificate, debian_kernel], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    if "osslsigncode" in tools:
        said = subprocess.run(
            ["osslsigncode", "verify", "-CAfile", certificate, "-in", debian_kernel],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found = re.search(r"Calculated message digest *: *([0-9A-F]+)", said)
        assert found is not None, said
        assert found[1] == pe.digest(pe.parse(kernel), "sha256").hex().upper()
