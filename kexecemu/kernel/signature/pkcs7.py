"""A PKCS#7 message against itself: is its content what was signed, and do its certificates fit together?

Follows crypto/asymmetric_keys/pkcs7_verify.c, and x509_public_key.c for what is done with a certificate once it is
read, with their order and their errnos. Whether anybody is trusted comes after: pkcs7_trust.py. Dates of
a certificate are only held against the signing time: the kernel does not ask its clock, which may not be set yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EBADMSG, EINVAL, EKEYREJECTED, EMSGSIZE, ENOPKG

from kexecemu.errors import KexecError
from kexecemu.formats import cms, oid, x509
from kexecemu.formats.ber import Asn1Error, BerFault
from kexecemu.formats.cms import SignedData, SignerInfo
from kexecemu.formats.x509 import Certificate
from kexecemu.kernel.signature.keyring import Blacklist
from kexecemu.kernel.signature.public_key import CryptoModules, Signature, public_key_verify_signature
from kexecemu.shown import shown

__all__ = ["ASN1_ERRNOS", "MessageCertificate", "MessageSigner", "Pkcs7Message", "parse_message"]
__all__ += ["x509_key_preparse"]

ASN1_ERRNOS = {
    BerFault.MALFORMED: EBADMSG,
    BerFault.UNSUPPORTED: ENOPKG,
    BerFault.UNEXPECTED: EINVAL,
    BerFault.FORBIDDEN: EKEYREJECTED,
}
_MAX_MESSAGE = 65535  # asn1_ber_decoder() counts in 16 bits


@shown("certificate")
class MessageCertificate:
    """A certificate of the message, and what becomes known of it on the way.

    signature is None where the kernel has no algorithm for it (unsupported_sig); signer is the certificate in the
    message that signed it, itself for the root of a chain.
    """

    def __init__(self, certificate: Certificate, crypto: CryptoModules, blacklist: Blacklist) -> None:
        self.certificate = certificate
        self.blacklisted = False
        self.seen = False
        self.signer: MessageCertificate | None = None
        self.signature: Signature | None = None
        if certificate.algorithm.hash == "none":  # ML-DSA digests for itself
            self.signature = Signature(certificate.algorithm, certificate.signed_part, certificate.signature)
        with suppress(KexecError):
            digest = crypto.digest(certificate.algorithm.hash, certificate.signed_part)
            self.signature = Signature(certificate.algorithm, digest, certificate.signature)
            self.blacklisted = digest in blacklist.tbs_digests
        self.self_signed = self._is_self_signed(crypto)

    def _is_self_signed(self, crypto: CryptoModules) -> bool:
        """x509_check_for_self_signed(). Raises KexecError for one that says so and is not."""
        certificate = self.certificate
        step = "x509_check_for_self_signed"
        if certificate.subject != certificate.issuer:
            return False
        authority_id, authority_skid = certificate.authority_id, certificate.authority_skid
        if authority_id is not None or authority_skid is not None:
            by_skid = certificate.skid is not None and certificate.skid == authority_skid
            by_id = certificate.id == authority_id
            if not by_skid and not by_id:
                return False
            if by_skid != by_id and authority_id is not None and authority_skid is not None:
                raise KexecError(EKEYREJECTED, step, "the certificate's authority is itself by one name only")
        if self.signature is None:
            return False
        public_key_verify_signature(certificate.public_key, self.signature, crypto)
        return True


def x509_key_preparse(data: bytes, crypto: CryptoModules) -> Certificate:
    """x509_key_preparse(): a certificate on its way into a keyring, which must not be self-signed and badly so.

    Raises KexecError as x509_cert_parse() does.
    """
    try:
        certificate = x509.parse(data, crypto.algorithms)
    except Asn1Error as error:
        raise KexecError(ASN1_ERRNOS[error.fault], "x509_cert_parse", str(error)) from error
    MessageCertificate(certificate, crypto, Blacklist())
    return certificate


@shown()
@dataclass
class MessageSigner:
    """A signer's block, and what becomes known of it on the way."""

    info: SignerInfo
    certificate: MessageCertificate | None = None
    signature: Signature | None = None
    blacklisted: bool = False
    unsupported_crypto: bool = False


def parse_message(message: bytes, crypto: CryptoModules, blacklist: Blacklist) -> Pkcs7Message:
    """pkcs7_parse_message(): read a message, and check those of its certificates that signed themselves.

    Raises KexecError: EMSGSIZE longer than 64 KiB; EBADMSG malformed; EINVAL not a SignedData that Linux handles;
    ENOPKG unsupported algorithms; EKEYREJECTED repeated attributes, a bad self-signed certificate.
    """
    step = "pkcs7_parse_message"
    if len(message) > _MAX_MESSAGE:
        raise KexecError(EMSGSIZE, step, f"a message of {len(message)} bytes")
    checked: list[MessageCertificate] = []
    try:
        parsed = cms.parse(
            message,
            crypto.algorithms,
            lambda certificate: checked.append(MessageCertificate(certificate, crypto, blacklist)),
        )
    except Asn1Error as error:
        raise KexecError(ASN1_ERRNOS[error.fault], step, str(error)) from error
    # Revocation lists come later, and their certificates are dropped.
    return Pkcs7Message(parsed, crypto, checked[: len(parsed.certificates)])


@shown("certificates", "signers")
class Pkcs7Message:
    """One message on its way through verification."""

    def __init__(
        self, parsed: SignedData, crypto: CryptoModules, certificates: Sequence[MessageCertificate]
    ) -> None:
        self.parsed = parsed
        self._crypto = crypto
        self.certificates = certificates
        self.signers = [MessageSigner(info) for info in parsed.signers]

    @property
    def signer_certificates(self) -> Sequence[Certificate]:
        """The certificates of the signers, as far as the message carries them; after verify()."""
        return [one.certificate.certificate for one in self.signers if one.certificate]

    def verify(self) -> None:
        """pkcs7_verify() for a kexec PE signature: does the message agree with itself?

        Raises KexecError: EKEYREJECTED not Authenticode, another messageDigest, signed outside of the certificate's
        validity, a bad or blacklisted signature; EBADMSG a messageDigest of another length; ENOPKG when nothing
        could be checked for want of algorithms; what public_key_verify_signature() raises.
        """
        step = "pkcs7_verify"
        if self.parsed.content_type != oid.MS_INDIRECT_DATA:
            raise KexecError(EKEYREJECTED, step, "not an Authenticode signature")
        failure: KexecError | None = KexecError(ENOPKG, step, "no signature that this kernel can check")
        for signer in self.signers:
            refusal: KexecError | None = None
            try:
                self._verify_one(signer)
            except KexecError as error:
                refusal = error
            if signer.blacklisted:
                if failure is not None and failure.errno == ENOPKG:
                    failure = KexecError(EKEYREJECTED, step, "a certificate of the signature is blacklisted")
                continue
            if refusal is None:
                failure = None
            elif refusal.errno == ENOPKG:
                signer.unsupported_crypto = True
            else:
                raise refusal
        if failure is not None:
            raise failure

    def _verify_one(self, signer: MessageSigner) -> None:
        """pkcs7_verify_one()."""
        info = signer.info
        step = "pkcs7_verify_one"
        signer.signature = Signature(info.algorithm, self._digest(info), info.signature)
        # pkcs7_find_key(): by serial number and issuer only, so that one named by its skid is never found.
        signer.certificate = next(
            (one for one in self.certificates if one.certificate.id == info.signer_id), None
        )
        if signer.certificate is None:
            return  # it may be in a keyring
        certificate = signer.certificate.certificate
        if info.signing_time is not None and not (
            certificate.not_before <= info.signing_time <= certificate.not_after
        ):
            raise KexecError(EKEYREJECTED, step, "signed outside of the certificate's validity")
        public_key_verify_signature(certificate.public_key, signer.signature, self._crypto)
        self._verify_sig_chain(signer)

    def _digest(self, info: SignerInfo) -> bytes:
        """pkcs7_digest(): of the signed attributes, once the one about the content is found true."""
        step = "pkcs7_digest"
        content = self.parsed.content.content if self.parsed.content else b""
        digest = self._crypto.digest(info.algorithm.hash, content)
        if info.attributes is None:
            return digest
        if info.message_digest is None:
            raise KexecError(EKEYREJECTED, step, "no messageDigest")
        if len(info.message_digest) != len(digest):
            raise KexecError(EBADMSG, step, f"a messageDigest of {len(info.message_digest)} bytes")
        if info.message_digest != digest:
            raise KexecError(EKEYREJECTED, step, "the message digest does not match")
        return self._crypto.digest(info.algorithm.hash, info.attributes)

    def _verify_sig_chain(self, signer: MessageSigner) -> None:
        """pkcs7_verify_sig_chain(): from the signer upwards as far as the message's certificates go."""
        for one in self.certificates:
            one.seen = False
        current = signer.certificate
        while current is not None:
            current.seen = True
            if current.blacklisted:
                signer.blacklisted = True
                return
            if current.self_signed:
                if current.signature is not None:
                    current.signer = current
                return
            issuer = self._find_issuer(current.certificate)
            if issuer is None or issuer.seen or current.signature is None:
                return
            public_key_verify_signature(issuer.certificate.public_key, current.signature, self._crypto)
            current.signer = issuer
            current = issuer

    def _find_issuer(self, certificate: Certificate) -> MessageCertificate | None:
        by_id, by_skid = certificate.authority_id, certificate.authority_skid
        if by_id is None:
            certificates = self.certificates if by_skid is not None else ()
            return next((one for one in certificates if one.certificate.skid == by_skid), None)
        found = next((one for one in self.certificates if one.certificate.id == by_id), None)
        if found is not None and by_skid is not None and found.certificate.skid != by_skid:
            reason = "an authority's two names are two certificates"
            raise KexecError(EKEYREJECTED, "pkcs7_verify_sig_chain", reason)
        return found
