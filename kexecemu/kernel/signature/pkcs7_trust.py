"""Does a trusted key vouch for a message? (crypto/asymmetric_keys/pkcs7_trust.c)

A key vouches for a signer if it is the signer's, or that of any certificate above it in the message, or if it signed
the topmost of them. It is looked up by names alone: a certificate that does not name its authority is found only if
it is in the keyring itself.
"""

from contextlib import suppress
from errno import EKEYREJECTED, ENOKEY, ENOPKG

from kexecemu.errors import KexecError
from kexecemu.kernel.signature.keyring import Key, Keyring
from kexecemu.kernel.signature.pkcs7 import MessageCertificate, MessageSigner, Pkcs7Message
from kexecemu.kernel.signature.public_key import CryptoModules, Signature, public_key_verify_signature

__all__ = ["validate_trust"]

_STEP = "pkcs7_validate_trust_one"


def validate_trust(message: Pkcs7Message, keyring: Keyring, crypto: CryptoModules) -> Key:
    """pkcs7_validate_trust(): the key that vouches for a signer, the last one's if there are several.

    The message must have been verified. Raises KexecError: EKEYREJECTED a key was found and it did not make the
    signature that it should have made; ENOPKG signers could not be checked; ENOKEY no key was found.
    """
    for certificate in message.certificates:
        certificate.seen = False
    trusted: Key | None = None
    failure = KexecError(ENOKEY, "pkcs7_validate_trust", "no signer")
    for signer in message.signers:
        try:
            trusted = _validate_trust_one(signer, keyring, crypto)
        except KexecError as error:
            if error.errno not in (ENOPKG, ENOKEY):
                raise
            if failure.errno == ENOKEY:
                failure = error
    if trusted is None:
        raise failure
    return trusted


def _validate_trust_one(signer: MessageSigner, keyring: Keyring, crypto: CryptoModules) -> Key:
    """pkcs7_validate_trust_one()."""
    if signer.unsupported_crypto:
        raise KexecError(ENOPKG, _STEP, "a signature that this kernel cannot check")
    key, signature = _climb(signer, keyring)
    if signature is None:
        raise KexecError(EKEYREJECTED, _STEP, "a signature that this kernel cannot check")
    try:
        public_key_verify_signature(key.certificate.public_key, signature, crypto)
    except KexecError as error:
        reason = f"{key.certificate.subject_text!r} is trusted, but: {error.reason}"
        raise KexecError(EKEYREJECTED, _STEP, reason) from error
    return key


def _climb(signer: MessageSigner, keyring: Keyring) -> tuple[Key, Signature | None]:
    """Go up the chain to the first certificate that a trusted key vouches for.

    The key, and the signature that it must have made. KexecError(ENOKEY) if there is none.
    """
    signature = signer.signature
    last: MessageCertificate | None = None
    current = signer.certificate
    while current is not None:
        if current.seen:
            # The kernel takes the earlier signer's verdict over; a good one has decided about the message already.
            raise KexecError(ENOKEY, _STEP, "the chain is an earlier signer's")
        current.seen = True
        # The certificate itself may be trusted; then the trusted copy must have signed what lies below it.
        with suppress(KexecError):
            return keyring.find_asymmetric_key(current.certificate.id, current.certificate.skid), signature
        if current.signer is current:
            raise KexecError(ENOKEY, _STEP, f"{_subject(current)} is self-signed, and not in {keyring.name}")
        last, signature, current = current, current.signature, current.signer
    if last is not None:
        authority = last.certificate.authority_id, last.certificate.authority_skid
        if authority != (None, None):
            try:
                return keyring.find_asymmetric_key(*authority), signature
            except KexecError as error:
                if error.errno != ENOKEY:
                    raise
    # As a last resort, a trusted key that is the signer's own, for a message without its certificate.
    try:
        return keyring.find_asymmetric_key(signer.info.signer_id), signer.signature
    except KexecError as error:
        if error.errno != ENOKEY:
            raise
        raise KexecError(ENOKEY, _STEP, _why_no_key(last, keyring)) from error


def _why_no_key(last: MessageCertificate | None, keyring: Keyring) -> str:
    if last is None:
        return f"the message carries no certificate of its signer, and {keyring.name} has no such key"
    certificate = last.certificate
    authority = certificate.authority_skid or certificate.authority_id
    if authority is None:
        return f"{_subject(last)} names no authority (authorityKeyIdentifier), and is not in {keyring.name} itself"
    return f"{_subject(last)} is vouched for by {certificate.issuer_text!r} ({authority.hex()}), not in {keyring.name}"


def _subject(one: MessageCertificate) -> str:
    return repr(one.certificate.subject_text)
