"""kexecemu verify-image: would a kernel that trusts these certificates take this image's signature?"""

from __future__ import annotations

import json as json_module
import re
import sys
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from kexecemu.errors import FormatError, InputError, KexecError
from kexecemu.formats import authenticode, cms, image, pe, x509
from kexecemu.formats.cms import SignedData
from kexecemu.formats.x509 import Certificate
from kexecemu.kernel.keyring import Keyring
from kexecemu.kernel.signature import VerifiedImage, signature_message, verify_pefile_signature

__all__ = ["verify_image_command"]

_VERIFIED, _REFUSED = 0, 1
_MAX_CERTIFICATES = 16 << 20
# Certificates are read by our own parser only: a library that refuses one of a bundle would refuse them all.
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def verify_image_command(
    image: Annotated[Path, typer.Argument(help="A signed arm64 Image.")],
    ca: Annotated[
        list[Path],
        typer.Option("--ca", help="A trusted certificate, PEM (one or several) or DER; repeatable."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify an Image's signature as kexec_file_load would: exit status 0 if it is good, 1 if it is refused."""
    data = _read_image(image)
    keyring = Keyring.of("--ca", [certificate for path in ca for certificate in _read_certificates(path)])
    verified: VerifiedImage | None = None
    refusal: KexecError | None = None
    try:
        verified = verify_pefile_signature(data, keyring)
    except KexecError as error:
        refusal = error
    found = _report(data, verified, refusal)
    sys.stdout.write(json_module.dumps(found, indent=2) + "\n" if json else _text(found))
    raise typer.Exit(_VERIFIED if verified else _REFUSED)


def _read_image(path: Path) -> bytes:
    data = _read(path)
    if data[:2] == b"\x1f\x8b":
        raise InputError(f"{path}: compressed with gzip; a signature is on what is inside")
    if not pe.is_pe(data) and not image.has_magic(data):
        raise InputError(f"{path}: neither an arm64 Image nor a PE file")
    return data


def _read_certificates(path: Path) -> Sequence[Certificate]:
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
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _report(data: bytes, verified: VerifiedImage | None, refusal: KexecError | None) -> dict[str, Any]:
    """What is known of the signature, good or bad; what cannot be told is None."""
    message = _message(data)
    signer = message.signers[0] if message else None
    carried = message.certificates if message else ()
    certificate = next((one for one in carried if signer and one.id == signer.signer_id), None)
    if certificate is None and verified is not None:
        certificate = verified.trusted_by.certificate  # the message carries none: the key itself is trusted
    signed = _signed_digest(message)
    trusted_by = verified.trusted_by.certificate if verified else None
    return {
        "verified": verified is not None,
        "signer": certificate.subject_name if certificate else None,
        "issuer": certificate.issuer_name if certificate else None,
        "serial": certificate.serial.hex() if certificate else None,
        "signing_time": _time(signer.signing_time if signer else None),
        "digest_algorithm": signed[0] if signed else None,
        "signed_digest": signed[1].hex() if signed else None,
        "pe_digest": _pe_digest(data, signed[0] if signed else "sha256"),
        "trusted_by": trusted_by.subject_name if trusted_by else None,
        "error": None
        if refusal is None
        else {
            "errno": refusal.name,
            "number": refusal.errno,
            "step": refusal.step,
            "reason": refusal.reason,
        },
    }


def _message(data: bytes) -> SignedData | None:
    try:
        return cms.parse(signature_message(data))
    except (KexecError, FormatError):
        return None


def _signed_digest(message: SignedData | None) -> tuple[str, bytes] | None:
    if message is None or message.content is None:
        return None
    try:
        signed = authenticode.parse(message.content.encoded)
    except FormatError:
        return None
    return signed.algorithm, signed.digest


def _pe_digest(data: bytes, algorithm: str) -> str | None:
    try:
        return pe.digest(pe.parse(data), algorithm).hex()
    except (FormatError, ValueError):  # hashlib may lack md4
        return None


def _time(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return None


def _text(found: dict[str, Any]) -> str:
    error = found["error"]
    verdict = (
        "verified" if error is None else f"refused: {error['reason']} ({error['errno']} from {error['step']})"
    )
    labels = {
        "signer": "signer",
        "issuer": "issuer",
        "signing_time": "signed at",
        "digest_algorithm": "digest",
        "pe_digest": "PE digest",
        "trusted_by": "trusted by",
    }
    lines = [f"{label + ':':<12}{found[key]}" for key, label in labels.items() if found[key] is not None]
    return "\n".join([verdict, *lines]) + "\n"
