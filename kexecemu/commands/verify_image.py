"""kexecemu verify-image: would a kernel that trusts these certificates take this image's signature?"""

from __future__ import annotations

import re
import sys
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexecemu.commands.options import JsonOption, option
from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError, KexecError
from kexecemu.files import read_file
from kexecemu.kernel.base.kconfig import split_options

if TYPE_CHECKING:
    from kexecemu.formats.x509 import Certificate
    from kexecemu.kernel.signature.public_key import CryptoModules
    from kexecemu.kernel.signature.signature import VerifiedImage

__all__ = ["EXAMPLES", "verify_image_command"]

EXAMPLES = """\
kexecemu verify-image vmlinuz --ca debian-uefi-ca.pem
Who signed it, and would a kernel take it?
kexecemu verify-image Image --ca one.der --ca two.pem --json
Trust either of two; one JSON object.
kexecemu verify-image Image --ca ca.pem --cmdline lockdown=integrity
Would a locked down kernel load it? The errno is that of kexec_file_load().
kexecemu verify-image Image --ca ca.pem --era 6.12 --config KEXEC_SIG_FORCE=y
What one that enforces signatures says.
"""

_CA = "A trusted certificate, PEM (one or several) or DER; repeatable."
_CONFIG = "A kernel built so: KEXEC_SIG, KEXEC_SIG_FORCE, KEXEC_IMAGE_VERIFY_SIG, IMA_...; repeatable."
_CMDLINE = "A kernel booted so: lockdown=, ima_policy=, ima_appraise= count."
_SECURE_BOOT = (
    "The firmware booted the kernel in secure boot mode (with IMA_ARCH_POLICY=y, signatures are enforced)."
)
_ERA = "Whose parsers read the signature: a release of Linux. (default: 6.1)"
_POLICY = "Would kexec_file_load() load it?"
_MAX_CERTIFICATES = 16 << 20
# Certificates are read by our own parser only: a library that refuses one of a bundle would refuse them all.
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def verify_image_command(
    image: Annotated[Path, typer.Argument(help="A signed arm64 Image.")],
    ca: Annotated[list[Path], option("--ca", _CA, "FILE")],
    json: JsonOption = False,
    era: Annotated[str | None, option("--era", _ERA, "RELEASE")] = None,
    config: Annotated[list[str] | None, option("--config", _CONFIG, "NAME=VALUE", _POLICY)] = None,
    cmdline: Annotated[str | None, option("--cmdline", _CMDLINE, "TEXT", _POLICY)] = None,
    secure_boot: Annotated[bool, option("--secure-boot", _SECURE_BOOT, panel=_POLICY)] = False,
) -> None:
    """Verify an Image's signature as kexec_file_load would: exit status 0 if it is good, 1 if it is refused.

    With options of a policy, whether the image is loaded under that policy decides the exit status.
    """
    from kexecemu.formats.algorithms import algorithms_of
    from kexecemu.kernel.signature.keyring import Keyring, SystemKeyrings
    from kexecemu.kernel.signature.policy_options import policy_of
    from kexecemu.kernel.signature.public_key import CryptoModules
    from kexecemu.kernel.signature.signature import verify_pefile_signature
    from kexecemu.report.signature import policy_object, signature_object, signature_text

    crypto = CryptoModules(algorithms=algorithms_of(era or "6.1"))
    policy = None
    if config is not None or cmdline is not None or secure_boot:
        policy = policy_of(split_options(config or []), cmdline or "", secure_boot=secure_boot)
    data = _read_image(image)
    keyring = Keyring.of("--ca", [one for path in ca for one in _read_certificates(path, crypto)])
    if policy is not None:
        policy = replace(policy, keyrings=SystemKeyrings(keyring), crypto=crypto)
    verified: VerifiedImage | None = None
    refusal: KexecError | None = None
    try:
        verified = verify_pefile_signature(data, keyring, crypto=crypto)
    except KexecError as error:
        refusal = error
    found = signature_object(data, verified, refusal, crypto.algorithms)
    good = verified is not None
    if policy is not None:
        found["policy"] = policy_object(policy, data)
        good = found["policy"]["loaded"]
    if json:
        print_json(found)
    else:
        sys.stdout.write(signature_text(found))
    raise typer.Exit(0 if good else 1)


def _read_image(path: Path) -> bytes:
    from kexecemu.formats import image, kernel_file, pe

    data = _read(path)
    if not pe.is_pe(data) and not image.has_magic(data):
        kind = kernel_file.kernel_file(data)
        inside = f": {kind}; a signature is on what is inside" if kind is not None else ""
        raise InputError(f"{path}: neither an arm64 Image nor a PE file{inside}")
    return data


def _read_certificates(path: Path, crypto: CryptoModules) -> Sequence[Certificate]:
    from kexecemu.kernel.signature.pkcs7 import x509_key_preparse

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
    found, refusal = [], ""
    for der in ders:
        try:
            found.append(x509_key_preparse(der, crypto))
        except KexecError as error:
            # load_certificate_list() goes on to the next one as well ("Problem loading in-kernel X.509 certificate").
            refusal = error.reason
    if not found:
        raise InputError(f"{path}: no certificate that a kernel reads ({refusal})")
    return found


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
