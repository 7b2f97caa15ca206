"""Whether one signature holds, with the errno that Linux has for each way of not holding.

cryptography decides. Where it says no, the arithmetic is done once more, only to learn at which of its steps the
kernel would have stopped (public_key_verify_signature(), crypto/rsa-pkcs1pad.c, crypto/rsa.c, crypto/ecdsa.c).
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from errno import EBADMSG, EINVAL, EKEYREJECTED, ENOENT, ENOPKG

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from kexecemu.errors import KexecError
from kexecemu.formats.x509 import PublicKey, SignatureAlgorithm
from kexecemu.shown import shown

__all__ = ["CryptoModules", "Signature", "is_of_kind", "public_key_verify_signature"]

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "md5": hashes.MD5(),
    "sha1": hashes.SHA1(),
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_RSA_KEY_BITS = (512, 1024, 1536, 2048, 3072, 4096)


@shown()
@dataclass(frozen=True)
class CryptoModules:
    """What the kernel was built with: digest algorithms by name, and CONFIG_CRYPTO_ECDSA."""

    hashes: Set[str] = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
    ecdsa: bool = True

    def digest(self, algorithm: str, *pieces: bytes) -> bytes:
        """A digest. KexecError(ENOPKG) for an algorithm that is not built in."""
        if algorithm not in self.hashes or algorithm not in _HASHES:
            raise KexecError(
                ENOPKG, "crypto_alloc_shash", f"digest algorithm {algorithm} is not in this kernel"
            )
        sum_ = hashlib.new(algorithm)
        for piece in pieces:
            sum_.update(piece)
        return sum_.digest()


@shown()
@dataclass(frozen=True)
class Signature:
    """A signature's value, how it was made, and the digest that it is about."""

    algorithm: SignatureAlgorithm
    digest: bytes
    value: bytes = field(repr=False)


def is_of_kind(key: PublicKey, algorithm: SignatureAlgorithm) -> bool:
    """A key of this kind can have made such a signature. ECDSA signatures do not say the curve, keys do."""
    return key.algorithm == algorithm.key or (
        algorithm.key == "ecdsa" and key.algorithm.startswith("ecdsa-nist-")
    )


def public_key_verify_signature(key: PublicKey, signature: Signature, crypto: CryptoModules) -> None:
    """Return if the key made the signature, else raise KexecError with the kernel's errno.

    EKEYREJECTED another digest was signed, or the key is of another kind; EINVAL the value is no RSA signature by
    that key, or the key itself cannot be used; EBADMSG the padding or the encoding is wrong; ENOENT no such
    algorithm in this kernel.
    """
    step = "public_key_verify_signature"
    kind = signature.algorithm.key
    if not is_of_kind(key, signature.algorithm):
        raise KexecError(EKEYREJECTED, step, f"signed with {kind}, but the key is for {key.algorithm}")
    if kind == "ecdsa" and not crypto.ecdsa:
        raise KexecError(ENOENT, step, "the kernel is built without CONFIG_CRYPTO_ECDSA")
    try:
        loaded = serialization.load_der_public_key(key.encoded)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KexecError(EINVAL, step, f"the public key cannot be used ({error})") from error
    if isinstance(loaded, rsa.RSAPublicKey):
        _verify_rsa(loaded, signature)
    elif isinstance(loaded, ec.EllipticCurvePublicKey):
        _verify_ecdsa(loaded, signature)
    else:
        raise KexecError(EINVAL, step, "the public key is not of the kind that it says")


def _verify_rsa(key: rsa.RSAPublicKey, signature: Signature) -> None:
    algorithm = _HASHES[signature.algorithm.hash]
    numbers = key.public_numbers()
    # rsa_check_key_length() counts whole 64-bit limbs.
    if -(-numbers.n.bit_length() // 64) * 64 not in _RSA_KEY_BITS:
        raise KexecError(EINVAL, "rsa_set_pub_key", f"an RSA key of {key.key_size} bits")
    try:
        key.verify(signature.value, signature.digest, padding.PKCS1v15(), utils.Prehashed(algorithm))
        return
    except InvalidSignature:
        pass
    step = "pkcs1pad_verify"
    size = (numbers.n.bit_length() + 7) // 8
    value = int.from_bytes(signature.value, "big")
    if len(signature.value) != size:
        raise KexecError(EINVAL, step, f"an RSA value of {len(signature.value)} bytes with a key of {size}")
    if value >= numbers.n:
        raise KexecError(EINVAL, step, "the RSA value is not below the modulus")
    block = pow(value, numbers.e, numbers.n).to_bytes(size, "big")
    if block[0] != 0:
        # What any damaged or foreign value comes to, but for one in 256.
        raise KexecError(EINVAL, step, "the RSA value was not made by this key")
    pad, separator, info = block[2:].partition(b"\0")
    prefix = _DIGEST_INFO[signature.algorithm.hash]
    if block[1] != 1 or len(pad) < 8 or pad.strip(b"\xff") or not separator or not info.startswith(prefix):
        raise KexecError(EBADMSG, step, "the RSA value has not the padding of PKCS#1, or not this digest's")
    raise KexecError(EKEYREJECTED, step, "the RSA value signs another digest")


def _verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: Signature) -> None:
    step = "ecdsa_verify"
    try:
        algorithm = ec.ECDSA(utils.Prehashed(_HASHES[signature.algorithm.hash]))
        key.verify(signature.value, signature.digest, algorithm)
        return
    except InvalidSignature:
        pass
    except UnsupportedAlgorithm as error:
        raise KexecError(EINVAL, step, f"the public key cannot be used ({error})") from error
    try:
        r, s = utils.decode_dss_signature(signature.value)
    except ValueError as error:
        raise KexecError(EBADMSG, step, "the ECDSA value is no pair of integers") from error
    if not (0 < r < 1 << key.key_size and 0 < s < 1 << key.key_size):
        raise KexecError(EBADMSG, step, "the ECDSA value is out of the curve's range")
    raise KexecError(EKEYREJECTED, step, "the ECDSA value signs another digest, or was made by another key")


# The DigestInfo in front of each digest in a PKCS#1 block [RFC 8017, 9.2].
_DIGEST_INFO = {
    "md5": bytes.fromhex("3020300c06082a864886f70d020505000410"),
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha224": bytes.fromhex("302d300d06096086480165030402040500041c"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
