"""kexecemu verify-image: would a kernel that trusts these certificates take this image's signature?"""

from __future__ import annotations

import re
import sys
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexecemu.commands.options import JsonOption, option
from kexecemu.commands.outputs import print_json
from kexecemu.errors import FormatError, InputError, KexecError
from kexecemu.files import read_file

if TYPE_CHECKING:
    from kexecemu.formats.x509 import Certificate
    from kexecemu.kernel.signature.signature import VerifiedImage

__all__ = ["EXAMPLES", "verify_image_command"]

EXAMPLES = """\
kexecemu verify-image vmlinuz --ca debian-uefi-ca.pem
Who signed it, and would a kernel take it?
kexecemu verify-image Image --ca one.der --ca two.pem --json
Trust either of two; one JSON object.
"""

_CA = "A trusted certificate, PEM (one or several) or DER; repeatable."
_MAX_CERTIFICATES = 16 << 20
# Certificates are read by our own parser only: a library that refuses one of a bundle would refuse them all.
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def verify_image_command(
    image: Annotated[Path, typer.Argument(help="A signed arm64 Image.")],
    ca: Annotated[list[Path], option("--ca", _CA, "FILE")],
    json: JsonOption = False,
) -> None:
    """Verify an Image's signature as kexec_file_load would: exit status 0 if it is good, 1 if it is refused."""
    from kexecemu.kernel.signature.keyring import Keyring
    from kexecemu.kernel.signature.signature import verify_pefile_signature
    from kexecemu.report.signature import signature_object, signature_text

    data = _read_image(image)
    keyring = Keyring.of("--ca", [certificate for path in ca for certificate in _read_certificates(path)])
    verified: VerifiedImage | None = None
    refusal: KexecError | None = None
    try:
        verified = verify_pefile_signature(data, keyring)
    except KexecError as error:
        refusal = error
    found = signature_object(data, verified, refusal)
    if json:
        print_json(found)
    else:
        sys.stdout.write(signature_text(found))
    raise typer.Exit(0 if verified else 1)


def _read_image(path: Path) -> bytes:
    from kexecemu.formats import image, pe

    data = _read(path)
    if data[:2] == b"\x1f\x8b":
        raise InputError(f"{path}: compressed with gzip; a signature is on what is inside")
    if not pe.is_pe(data) and not image.has_magic(data):
        raise InputError(f"{path}: neither an arm64 Image nor a PE file")
    return data


def _read_certificates(path: Path) -> Sequence[Certificate]:
    from kexecemu.formats import x509

    data = _read(path)
    if len(data) > _MAX_CERTIFICATES:
        raise InputError(f"{path}: too large for certificates")
    ders = [data]
    if b"-----BEGIN" in data:
        try:
            ders = [b64decode(b"".join(block.split()), validate=True) for block in _PEM.findall(data)]
        except ValueError as error:
            raise InputError(f"{path}: no certificate in PEM ({error})") from error
        if not ders:
            raise InputError(f"{path}: no certificate in PEM (no block of that name)")
    found, refusal = [], None
    for der in ders:
        try:
            found.append(x509.parse(der))
        except FormatError as error:
            # load_certificate_list() goes on to the next one as well ("Problem loading in-kernel X.509 certificate").
            refusal = error
    if not found:
        raise InputError(f"{path}: no certificate that a kernel reads ({refusal})")
    return found


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
