"""What is known of an Image's signature, told to people and to programs."""

from datetime import UTC, datetime
from typing import Any

from kexecemu.errors import FormatError, KexecError
from kexecemu.formats import authenticode, cms, pe
from kexecemu.formats.algorithms import LINUX_6_1, Algorithms
from kexecemu.formats.cms import SignedData
from kexecemu.kernel.signature.policy import KexecSignaturePolicy
from kexecemu.kernel.signature.signature import VerifiedImage, signature_message
from kexecemu.visible import lines_text

__all__ = ["signature_object", "signature_text"]


def signature_object(
    data: bytes,
    verified: VerifiedImage | None,
    refusal: KexecError | None,
    algorithms: Algorithms = LINUX_6_1,
) -> dict[str, Any]:
    """What is known of an image's signature, good or bad; what cannot be told is None. The object of --json."""
    message = _message(data, algorithms)
    signer = message.signers[0] if message else None
    carried = message.certificates if message else ()
    certificate = next((one for one in carried if signer and one.id == signer.signer_id), None)
    if certificate is None and verified is not None:
        certificate = verified.trusted_by.certificate  # the message carries none: the key itself is trusted
    algorithm, digest = _signed_digest(message, algorithms) or (None, b"")
    trusted_by = verified.trusted_by.certificate if verified else None
    return {
        "verified": verified is not None,
        "signer": certificate.subject_name if certificate else None,
        "issuer": certificate.issuer_name if certificate else None,
        "serial": certificate.serial.hex() if certificate else None,
        "signing_time": _time(signer.signing_time if signer else None),
        "digest_algorithm": algorithm,
        "signed_digest": digest.hex() if algorithm is not None else None,
        "pe_digest": _pe_digest(data, algorithm or "sha256"),
        "trusted_by": trusted_by.subject_name if trusted_by else None,
        "error": _error(refusal),
    }


def policy_object(policy: KexecSignaturePolicy, data: bytes) -> dict[str, Any]:
    """What kexec_file_load() does with an image under a policy: whether it loads it, else its error, and its log."""
    log: list[str] = []
    refusal: KexecError | None = None
    try:
        policy.check(data, log.append)
    except KexecError as error:
        refusal = error
    return {
        "loaded": refusal is None,
        "error": _error(refusal),
        "log": log,
        "sig_enforce": policy.sig_enforce,
        "lockdown": policy.lockdown.value,
        "ima_appraise": policy.ima_appraise,
    }


def _error(refusal: KexecError | None) -> dict[str, Any] | None:
    if refusal is None:
        return None
    return {"errno": refusal.name, "number": refusal.errno, "step": refusal.step, "reason": refusal.reason}


def _message(data: bytes, algorithms: Algorithms) -> SignedData | None:
    try:
        return cms.parse(signature_message(data), algorithms)
    except (KexecError, FormatError):
        return None


def _signed_digest(message: SignedData | None, algorithms: Algorithms) -> tuple[str, bytes] | None:
    if message is None or message.content is None:
        return None
    try:
        signed = authenticode.parse(message.content.encoded, algorithms)
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


def signature_text(found: dict[str, Any]) -> str:
    """The same for people."""
    error = found["error"]
    verdict = "verified"
    if error is not None:
        verdict = f"refused: {error['reason']} ({error['errno']} from {error['step']})"
    labels = {"signer": "signer", "issuer": "issuer", "signing_time": "signed at"}
    labels |= {"digest_algorithm": "digest", "pe_digest": "PE digest", "trusted_by": "trusted by"}
    lines = [f"{label + ':':<12}{found[key]}" for key, label in labels.items() if found[key] is not None]
    return lines_text([verdict, *lines, *_policy_lines(found.get("policy"))])


def _policy_lines(policy: dict[str, Any] | None) -> list[str]:
    if policy is None:
        return []
    error = policy["error"]
    said = "loaded" if error is None else f"refused: {error['errno']} from {error['step']}"
    lines = [f"kexec_file_load: {said}", *(f"    {line}" for line in policy["log"])]
    if policy["ima_appraise"]:
        lines.append("    IMA appraises the file by its security.ima as well, which is not looked at here")
    return lines
