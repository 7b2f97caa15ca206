"""Whether one signature holds, with the errno that Linux has for each way of not holding.

RSA is arithmetic, done as the kernel does it; for elliptic curves cryptography decides. Keys and values are taken out
of their encoding by the kernel's decoder, which takes more than DER (public_key_verify_signature(),
crypto/rsa-pkcs1pad.c, crypto/rsa.c, crypto/rsa_helper.c, crypto/ecdsa.c).
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from errno import EBADMSG, EINVAL, EKEYREJECTED, ENOENT, ENOPKG

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from kexecemu.errors import KexecError
from kexecemu.formats import ber, grammars
from kexecemu.formats.algorithms import LINUX_6_1, Algorithms, SignatureAlgorithm
from kexecemu.formats.asn1 import Grammar
from kexecemu.formats.ber import Asn1Error, Element
from kexecemu.formats.x509 import PublicKey
from kexecemu.shown import shown

__all__ = ["CURVE_ORDERS", "CryptoModules", "Signature", "is_of_kind", "public_key_verify_signature"]

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "md5": hashes.MD5(),
    "sha1": hashes.SHA1(),
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha3-256": hashes.SHA3_256(),
    "sha3-384": hashes.SHA3_384(),
    "sha3-512": hashes.SHA3_512(),
}
_RSA_KEY_BITS = (512, 1024, 1536, 2048, 3072, 4096)
CURVE_ORDERS = {
    192: 0xFFFFFFFFFFFFFFFFFFFFFFFF99DEF836146BC9B1B4D22831,
    256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    384: (1 << 384) - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D,
    521: (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
}
"""The curves' orders by their size in bits [FIPS 186-4, D.1.2]."""
# Other kinds of key only sign digests of their own (software_key_determine_akcipher()).
_DIGESTS = {"sm2": ("sm3",), "ecrdsa": ("streebog256", "streebog512")}


@shown()
@dataclass(frozen=True)
class CryptoModules:
    """What the kernel was built with: digest algorithms by name, CONFIG_CRYPTO_ECDSA, and what its parsers know."""

    hashes: Set[str] = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
    ecdsa: bool = True
    algorithms: Algorithms = LINUX_6_1

    def digest(self, algorithm: str, *pieces: bytes) -> bytes:
        """A digest. KexecError(ENOPKG) for an algorithm that is not built in."""
        if algorithm not in self.hashes or algorithm not in _HASHES:
            raise KexecError(
                ENOPKG, "crypto_alloc_shash", f"digest algorithm {algorithm} is not in this kernel"
            )
        sum_ = hashlib.new(algorithm.replace("-", "_"))
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
    that key, or the key itself cannot be used; EBADMSG the padding or an encoding is wrong; ENOENT no such algorithm
    in this kernel.
    """
    step = "public_key_verify_signature"
    kind, digest = signature.algorithm.key, signature.algorithm.hash
    if not is_of_kind(key, signature.algorithm):
        raise KexecError(EKEYREJECTED, step, f"signed with {kind}, but the key is for {key.algorithm}")
    if kind in _DIGESTS and digest not in _DIGESTS[kind]:
        raise KexecError(EINVAL, "software_key_determine_akcipher", f"{kind} with a digest of {digest}")
    if kind not in ("rsa", "ecdsa"):
        raise KexecError(ENOENT, step, f"the kernel is built without {kind}")
    if kind == "rsa":
        _verify_rsa(key, signature)
        return
    if not crypto.ecdsa:
        raise KexecError(ENOENT, step, "the kernel is built without CONFIG_CRYPTO_ECDSA")
    try:
        loaded = serialization.load_der_public_key(key.encoded)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KexecError(EINVAL, step, f"the public key cannot be used ({error})") from error
    assert isinstance(loaded, ec.EllipticCurvePublicKey)  # it goes by the same OID as is_of_kind()
    _verify_ecdsa(loaded, signature)


class _Pair:
    """What the actions of rsapubkey.asn1 and ecdsasignature.asn1 note: two integers, each as its octets."""

    def __init__(self, grammar: Grammar, step: str, data: bytes) -> None:
        self.first = self.second = b""
        try:
            ber.decode(grammar, self, data)
        except Asn1Error as error:
            raise KexecError(EBADMSG, step, str(error)) from error

    def rsa_get_n(self, value: Element) -> None:
        self.first = value.content
        if not self.first:
            raise KexecError(EINVAL, "rsa_get_n", "an RSA key without a modulus")

    def rsa_get_e(self, value: Element) -> None:
        self.second = value.content
        if not 0 < len(self.second) <= len(self.first):
            raise KexecError(EINVAL, "rsa_get_e", "an RSA key with an exponent of no or too many bytes")

    def ecdsa_get_signature_r(self, value: Element) -> None:
        self.first = value.content

    def ecdsa_get_signature_s(self, value: Element) -> None:
        self.second = value.content


def _verify_rsa(key: PublicKey, signature: Signature) -> None:
    pair = _Pair(grammars.RSA_PUBKEY, "rsa_set_pub_key", key.key)
    modulus, exponent = (int.from_bytes(one, "big") for one in (pair.first, pair.second))
    # Keys are counted in whole 64-bit limbs, here and for the value.
    bits = -(-modulus.bit_length() // 64) * 64
    if bits not in _RSA_KEY_BITS:
        raise KexecError(EINVAL, "rsa_set_pub_key", f"an RSA key of {modulus.bit_length()} bits")
    step, size = "pkcs1pad_verify", bits // 8
    value = int.from_bytes(signature.value, "big")
    if len(signature.value) != size:
        raise KexecError(EINVAL, step, f"an RSA value of {len(signature.value)} bytes with a key of {size}")
    if not 1 < value < modulus - 1:
        raise KexecError(EINVAL, step, "the RSA value is not below the modulus")
    block = pow(value, exponent, modulus).to_bytes(size, "big")
    if block[0] != 0:
        # What any damaged or foreign value comes to, but for one in 256.
        raise KexecError(EINVAL, step, "the RSA value was not made by this key")
    pad, separator, info = block[2:].partition(b"\0")
    prefix = _DIGEST_INFO[signature.algorithm.hash]
    if block[1] != 1 or len(pad) < 8 or pad.strip(b"\xff") or not separator or not info.startswith(prefix):
        raise KexecError(EBADMSG, step, "the RSA value has not the padding of PKCS#1, or not this digest's")
    if info[len(prefix) :] != signature.digest:
        raise KexecError(EKEYREJECTED, step, "the RSA value signs another digest")


def _verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: Signature) -> None:
    step = "ecdsa_verify"
    pair = _Pair(grammars.ECDSA_SIGNATURE, step, signature.value)
    # ecdsa_get_signature_rs() runs within the decoder; nothing that it refuses is refused otherwise before.
    room = -(-key.key_size // 64) * 8
    for one in (pair.first, pair.second):
        if not one or len(one) > room + 1 or (len(one) > room and one[0]):
            raise KexecError(EINVAL, "ecdsa_get_signature_rs", f"an ECDSA integer of {len(one)} bytes")
    r, s = (int.from_bytes(one, "big") for one in (pair.first, pair.second))
    if not (0 < r < CURVE_ORDERS[key.key_size] and 0 < s < CURVE_ORDERS[key.key_size]):
        raise KexecError(EBADMSG, step, "the ECDSA value is out of the curve's range")
    try:
        algorithm = ec.ECDSA(utils.Prehashed(_HASHES[signature.algorithm.hash]))
        key.verify(utils.encode_dss_signature(r, s), signature.digest, algorithm)
    except UnsupportedAlgorithm as error:
        raise KexecError(EINVAL, step, f"the public key cannot be used ({error})") from error
    except InvalidSignature:
        reason = "the ECDSA value signs another digest, or was made by another key"
        raise KexecError(EKEYREJECTED, step, reason) from None


# The DigestInfo in front of each digest in a PKCS#1 block [RFC 8017, 9.2].
_DIGEST_INFO = {
    "md5": bytes.fromhex("3020300c06082a864886f70d020505000410"),
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha224": bytes.fromhex("302d300d06096086480165030402040500041c"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
    "sha3-256": bytes.fromhex("3031300d060960864801650304020805000420"),
    "sha3-384": bytes.fromhex("3041300d060960864801650304020905000430"),
    "sha3-512": bytes.fromhex("3051300d060960864801650304020a05000440"),
}
