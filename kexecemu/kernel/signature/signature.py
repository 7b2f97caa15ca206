"""Is a kernel image signed by somebody whom this kernel trusts? In the kernel's order, with the kernel's errnos.

Follows crypto/asymmetric_keys/verify_pefile.c, mscode_parser.c and certs/system_keyring.c. Two of its
properties surprise and are kept: whether the signer is trusted is asked before the image is digested, so an image
that is both foreign and tampered with gives ENOKEY; and a signature that is damaged gives EINVAL, because the RSA code
says so before any comparison is made.
"""

from dataclasses import dataclass
from errno import EBADMSG, EKEYREJECTED, ELIBBAD, EMSGSIZE, ENODATA, ENOKEY
from pathlib import Path

from kexecemu.arguments import contents, instance
from kexecemu.errors import FormatError, KexecError
from kexecemu.formats import asn1, authenticode, pe
from kexecemu.formats.authenticode import IndirectData
from kexecemu.formats.ber import Asn1Error
from kexecemu.formats.pe import CertificateTable, PeFile
from kexecemu.formats.x509 import Certificate
from kexecemu.kernel.signature.keyring import Blacklist, Key, Keyring, SystemKeyrings
from kexecemu.kernel.signature.pkcs7 import ASN1_ERRNOS, Pkcs7Message, parse_message
from kexecemu.kernel.signature.pkcs7_trust import validate_trust
from kexecemu.kernel.signature.public_key import CryptoModules
from kexecemu.shown import shown

__all__ = ["VerifiedImage", "kexec_kernel_verify_pe_sig", "signature_message", "verify_pefile_signature"]

_ENOTSUPP = 524  # not EOPNOTSUPP, and without a name in userspace


@shown()
@dataclass(frozen=True)
class VerifiedImage:
    """What a verified signature says. signers are the certificates that the message carries for its signers."""

    digest_algorithm: str
    digest: bytes
    signers: tuple[Certificate, ...]
    signing_time: int | None
    trusted_by: Key
    keyring: str


def kexec_kernel_verify_pe_sig(
    image: bytes, keyrings: SystemKeyrings, crypto: CryptoModules | None = None
) -> VerifiedImage:
    """kexec_kernel_verify_pe_sig(): the built-in and secondary keys, and on ENOKEY the firmware's.

    Raises KexecError as verify_pefile_signature() does.
    """
    try:
        return verify_pefile_signature(image, keyrings.trusted, keyrings.blacklist, crypto)
    except KexecError as error:
        if error.errno != ENOKEY or keyrings.platform is None:
            raise
    return verify_pefile_signature(image, keyrings.platform, keyrings.blacklist, crypto)


def verify_pefile_signature(
    image: bytes | str | Path,
    keyring: Keyring,
    blacklist: Blacklist | None = None,
    crypto: CryptoModules | None = None,
) -> VerifiedImage:
    """verify_pefile_signature(): the image's Authenticode signature against one keyring; image may be a path.

    Raises KexecError: ELIBBAD no PE file; ENODATA not signed; ENOTSUPP another kind of certificate; EMSGSIZE a
    signature of more than 64 KiB; what verify_pkcs7_signature() raises; EBADMSG or ENOPKG it signs no PE file, or
    with an unknown digest; EKEYREJECTED the image is not the one that was signed.
    """
    crypto = crypto or CryptoModules()
    image = contents(image, "image")
    instance(keyring, Keyring, "keyring")
    file, table = _parse_binary(image)
    message = _strip_sig_wrapper(file, table)
    content, pkcs7, key = verify_pkcs7_signature(message, keyring, blacklist or Blacklist(), crypto)
    signed = _mscode_parse(content, crypto)
    digest = _digest_pe(file, signed, crypto)
    signers, when = tuple(pkcs7.signer_certificates), pkcs7.parsed.signers[0].signing_time
    return VerifiedImage(signed.algorithm, digest, signers, when, key, keyring.name)


def verify_pkcs7_signature(
    message: bytes, keyring: Keyring, blacklist: Blacklist, crypto: CryptoModules
) -> tuple[bytes, Pkcs7Message, Key]:
    """verify_pkcs7_signature(): a message with its content, against itself and then against a keyring.

    Returns the content, the message read, and the key that vouches for it.
    Raises KexecError as parse_message(), Pkcs7Message.verify() and validate_trust() do; EKEYREJECTED also for a key
    on the revocation list; ENODATA for a message without content.
    """
    step = "verify_pkcs7_signature"
    pkcs7 = parse_message(message, crypto, blacklist)
    pkcs7.verify()
    if blacklist.revoked is not None and _is_key_on_revocation_list(pkcs7, blacklist.revoked, crypto):
        raise KexecError(EKEYREJECTED, step, "the signature's key is on the revocation list")
    trusted_by = validate_trust(pkcs7, keyring, crypto)
    if pkcs7.parsed.content is None:
        raise KexecError(ENODATA, step, "the message has no content")
    return pkcs7.parsed.content.encoded, pkcs7, trusted_by


def _is_key_on_revocation_list(pkcs7: Pkcs7Message, revoked: Keyring, crypto: CryptoModules) -> bool:
    """is_key_on_revocation_list(): does a revoked key vouch for the message? Whatever goes wrong means no."""
    try:
        validate_trust(pkcs7, revoked, crypto)
    except KexecError:
        return False
    return True


def signature_message(image: bytes) -> bytes:
    """The PKCS#7 message of a signed image, not looked into. Raises KexecError if there is none."""
    return _strip_sig_wrapper(*_parse_binary(image))


def _parse_binary(image: bytes) -> tuple[PeFile, CertificateTable]:
    """pefile_parse_binary()."""
    step = "pefile_parse_binary"
    try:
        file = pe.parse(image)
        table = file.certificate_table()
        if table is None:
            raise KexecError(ENODATA, step, "unsigned PE binary")
        _ = file.sections  # their number is checked last
    except FormatError as error:
        raise KexecError(ELIBBAD, step, str(error)) from error
    return file, table


def _strip_sig_wrapper(file: PeFile, table: CertificateTable) -> bytes:
    """pefile_strip_sig_wrapper(): the message in the certificate table."""
    step = "pefile_strip_sig_wrapper"
    try:
        wrapper = file.win_certificate(table)
    except FormatError as error:
        raise KexecError(ELIBBAD, step, "signature wrapper too short") from error
    if wrapper.length > table.size:
        reason = f"signature wrapper bigger than sig len ({table.size:x} > {wrapper.length:x})"
        raise KexecError(ELIBBAD, step, reason)
    if wrapper.revision != pe.WIN_CERT_REVISION_2_0:
        raise KexecError(_ENOTSUPP, step, "signature is not revision 2.0")
    if wrapper.type != pe.WIN_CERT_TYPE_PKCS_SIGNED_DATA:
        raise KexecError(_ENOTSUPP, step, "signature certificate type is not PKCS")
    # Unsigned arithmetic: a length below the wrapper's own makes a signature of nearly 4 GiB, not an error.
    size = (wrapper.length - pe.WIN_CERTIFICATE_SIZE) & 0xFFFFFFFF
    if size < 4:
        raise KexecError(EKEYREJECTED, step, "signature data missing")
    start = table.offset + pe.WIN_CERTIFICATE_SIZE
    # The message says its own length; what is left of the table is padding.
    needed = _message_length(file.data[start : start + 4].ljust(4, b"\0"), size)
    if needed is None:
        raise KexecError(EMSGSIZE, step, "a signature of more than 64 KiB")
    if 0xFFFF < needed <= size:
        raise KexecError(EMSGSIZE, "asn1_ber_decoder", "a signature of more than 64 KiB")
    if needed > size or start + needed > len(file.data):
        raise KexecError(ELIBBAD, step, "signature data not PKCS#7")
    return file.data[start : start + needed]


def _message_length(head: bytes, size: int) -> int | None:
    """How long the sequence is that begins so, in `size` bytes; more than these for no sequence, None for too long."""
    if head[0] != asn1.SEQUENCE:
        return size + 1
    if head[1] < 0x80:
        return head[1] + 2
    if head[1] == 0x80:
        return size  # an indefinite length: its end is not looked for here
    if head[1] == 0x81:
        return head[2] + 3
    return int.from_bytes(head[2:4], "big") + 4 if head[1] == 0x82 else None


def _mscode_parse(content: bytes, crypto: CryptoModules) -> IndirectData:
    """mscode_parse()."""
    try:
        return authenticode.parse(content, crypto.algorithms)
    except Asn1Error as error:
        raise KexecError(ASN1_ERRNOS[error.fault], "mscode_parse", str(error)) from error


def _digest_pe(file: PeFile, signed: IndirectData, crypto: CryptoModules) -> bytes:
    """pefile_digest_pe(): the image's own digest, which must be the one that was signed."""
    step = "pefile_digest_pe"
    empty = crypto.digest(signed.algorithm)
    if len(signed.digest) != len(empty):
        raise KexecError(EBADMSG, step, f"digest size mismatch ({len(empty)} != {len(signed.digest)})")
    try:
        digest = pe.digest(file, signed.algorithm)
    except FormatError as error:
        raise KexecError(ELIBBAD, step, str(error)) from error
    if digest != signed.digest:
        raise KexecError(EKEYREJECTED, step, "digest mismatch")
    return digest
