"""What the parsers of a release of Linux know: algorithms by their identifiers, and which extensions are checked.

From the tables in pkcs7_parser.c, x509_cert_parser.c, mscode_parser.c and linux/oid_registry.h of each release. That a
parser knows an algorithm does not mean that the kernel was built with it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.formats import grammars, oid
from kexecemu.formats.asn1 import Grammar
from kexecemu.shown import shown

__all__ = [
    "LINUX_6_1",
    "LINUX_6_12",
    "LINUX_7_3",
    "RELEASES",
    "Algorithms",
    "SignatureAlgorithm",
    "algorithms_of",
]


@dataclass(frozen=True)
class SignatureAlgorithm:
    """How something is signed: "rsa", "ecdsa" or another kind of key, with a digest of this name."""

    key: str
    hash: str


@shown("release")
@dataclass(frozen=True)
class Algorithms:
    """What one release's parsers know.

    registered       all that look_up_OID() finds; where an algorithm belongs, what it does not find is malformed
    digests          what a signer may have digested with
    signer_keys      what a signer may have signed with, and of which kind the key is
    signatures       what a certificate may be signed with
    public_keys      the kind of a certificate's key; elliptic curves are named by curves
    content_digests  what Authenticode may have digested the image with
    reads_usage      keyUsage and basicConstraints of a certificate must be well-formed
    authority        the grammar of authorityKeyIdentifier
    """

    release: str
    registered: frozenset[bytes]
    digests: Mapping[bytes, str]
    signer_keys: Mapping[bytes, str]
    signatures: Mapping[bytes, SignatureAlgorithm]
    public_keys: Mapping[bytes, str]
    curves: Mapping[bytes, str]
    content_digests: Mapping[bytes, str]
    reads_usage: bool
    authority: Grammar


_NIST = "2.16.840.1.101.3.4"
_SHA = {
    "sha1": "1.3.14.3.2.26",
    "sha256": f"{_NIST}.2.1",
    "sha384": f"{_NIST}.2.2",
    "sha512": f"{_NIST}.2.3",
    "sha224": f"{_NIST}.2.4",
}
_SHA3 = {"sha3-256": f"{_NIST}.2.8", "sha3-384": f"{_NIST}.2.9", "sha3-512": f"{_NIST}.2.10"}
_MD = {"md4": "1.2.840.113549.2.4", "md5": "1.2.840.113549.2.5"}
_SM3 = {"sm3": "1.2.156.10197.1.401"}
_STREEBOG = {"streebog256": "1.2.643.7.1.1.2.2", "streebog512": "1.2.643.7.1.1.2.3"}

# By kind of key and digest.
_RSA = {
    ("rsa", "sha1"): "1.2.840.113549.1.1.5",
    ("rsa", "sha256"): "1.2.840.113549.1.1.11",
    ("rsa", "sha384"): "1.2.840.113549.1.1.12",
    ("rsa", "sha512"): "1.2.840.113549.1.1.13",
    ("rsa", "sha224"): "1.2.840.113549.1.1.14",
}
_ECDSA = {
    ("ecdsa", "sha1"): "1.2.840.10045.4.1",
    ("ecdsa", "sha224"): "1.2.840.10045.4.3.1",
    ("ecdsa", "sha256"): "1.2.840.10045.4.3.2",
    ("ecdsa", "sha384"): "1.2.840.10045.4.3.3",
    ("ecdsa", "sha512"): "1.2.840.10045.4.3.4",
}
_RSA_SHA3 = {("rsa", f"sha3-{bits}"): f"{_NIST}.3.{arc}" for bits, arc in ((256, 14), (384, 15), (512, 16))}
_ECDSA_SHA3 = {
    ("ecdsa", f"sha3-{bits}"): f"{_NIST}.3.{arc}" for bits, arc in ((256, 10), (384, 11), (512, 12))
}
# The kernel's number of it; elsewhere that is MD5 with RSA.
_RSA_MD4 = {("rsa", "md4"): "1.2.840.113549.1.1.4"}
_SM2 = {("sm2", "sm3"): "1.2.156.10197.1.501"}
_ECRDSA = {("ecrdsa", "streebog256"): "1.2.643.7.1.1.3.2", ("ecrdsa", "streebog512"): "1.2.643.7.1.1.3.3"}
_ML_DSA = {(f"mldsa{size}", "none"): f"{_NIST}.3.{arc}" for size, arc in ((44, 17), (65, 18), (87, 19))}

_RSA_KEY = {"1.2.840.113549.1.1.1": "rsa"}
_ECRDSA_KEYS = {"1.2.643.7.1.1.1.1": "ecrdsa", "1.2.643.7.1.1.1.2": "ecrdsa"}
_SM2_KEY = {"1.2.156.10197.1.301": "sm2"}
_CURVES = {
    "1.2.840.10045.3.1.1": "ecdsa-nist-p192",
    "1.2.840.10045.3.1.7": "ecdsa-nist-p256",
    "1.3.132.0.34": "ecdsa-nist-p384",
}
_P521 = {"1.3.132.0.35": "ecdsa-nist-p521"}

# Registered in all releases, and nothing that any table here has: names, extensions, mechanisms of other subsystems.
_OTHERS = """
1.2.840.10030.4.3 1.2.840.10040.4.1 1.2.840.113549.1.9.16.2.11 1.2.840.48018.1.2.2 1.2.840.113554.1.2.2
1.2.840.113554.1.2.2.3 1.3.6.1.4.1.311.16.4 1.3.6.1.4.1.311.2.2.10 1.3.6.1.5.5.2 1.3.6.1.5.2.5 1.3.5.1.5.2.7
1.3.6.1.5.5.14 1.3.6.1.5.5.7.1.1 2.5.4.4 2.5.4.6 2.5.4.7 2.5.4.8 2.5.4.11 2.5.4.12 2.5.4.13 2.5.4.41 2.5.4.42
2.5.4.43 2.5.4.44 2.5.29.17 2.5.29.18 2.5.29.31 2.5.29.32 2.5.29.37 1.2.752.43.14.2 1.2.752.43.14.3
1.2.643.2.2.35.1 1.2.643.2.2.35.2 1.2.643.2.2.35.3 1.2.643.7.1.2.1.1.1 1.2.643.7.1.2.1.1.2 1.2.643.7.1.2.1.1.3
1.2.643.7.1.2.1.1.4 1.2.643.7.1.2.1.2.1 1.2.643.7.1.2.1.2.2 1.2.643.7.1.2.1.2.3 1.2.156.10197.1.301
1.2.156.10197.1.501 1.2.156.10197.1.504 2.23.133.10.1.3 2.23.133.10.1.4 2.23.133.10.1.5
"""
_MD2_MD3 = "1.2.840.113549.1.1.2 1.2.840.113549.1.1.3 1.2.840.113549.2.2"
_NEGOEX = "1.3.6.1.4.1.311.2.2.30"


def _by_oid(*tables: Mapping[str, str]) -> dict[bytes, str]:
    return {oid.encode(dotted): name for table in tables for name, dotted in table.items()}


def _named(*tables: Mapping[str, str]) -> dict[bytes, str]:
    return {oid.encode(dotted): name for table in tables for dotted, name in table.items()}


def _signatures(*tables: Mapping[tuple[str, str], str]) -> dict[bytes, SignatureAlgorithm]:
    return {
        oid.encode(dotted): SignatureAlgorithm(*pair) for table in tables for pair, dotted in table.items()
    }


def _keys(*tables: Mapping[tuple[str, str], str]) -> dict[bytes, str]:
    """The kind of key alone: to a signer, its digest is told apart."""
    return {oid.encode(dotted): key for table in tables for (key, _), dotted in table.items()}


def _registered(others: str, *tables: Mapping[bytes, object]) -> frozenset[bytes]:
    named = [value for value in vars(oid).values() if isinstance(value, bytes)]
    return frozenset([*named, *map(oid.encode, others.split()), *(one for table in tables for one in table)])


def _linux_6_1() -> Algorithms:
    digests = _by_oid(_MD, _SHA, _SM3, _STREEBOG)
    signer_keys = _named(_RSA_KEY, _ECRDSA_KEYS) | _keys(_ECDSA, _SM2)
    signatures = _signatures(_RSA_MD4, _RSA, _ECDSA, _ECRDSA, _SM2)
    public_keys = _named(_RSA_KEY, _ECRDSA_KEYS, _SM2_KEY)
    # SM2 may also stand where a curve does.
    curves = _named(_CURVES, _SM2_KEY)
    registered = _registered(f"{_OTHERS} {_MD2_MD3}", digests, signer_keys, signatures, public_keys, curves)
    content = _by_oid(_MD, _SHA)
    rest = (False, grammars.X509_AKID_6_1)
    return Algorithms(
        "6.1", registered, digests, signer_keys, signatures, public_keys, curves, content, *rest
    )


def _since_6_12(release: str, more: Mapping[tuple[str, str], str]) -> Algorithms:
    digests = _by_oid(_SHA, _SHA3, _SM3, _STREEBOG)
    signer_keys = _named(_RSA_KEY, _ECRDSA_KEYS) | _keys(_ECDSA, _ECDSA_SHA3, more)
    signatures = _signatures(_RSA, _RSA_SHA3, _ECDSA, _ECDSA_SHA3, _ECRDSA, more)
    public_keys = _named(_RSA_KEY, _ECRDSA_KEYS) | _keys(more)
    curves = _named(_CURVES, _P521)
    registered = _registered(f"{_OTHERS} {_NEGOEX}", digests, signer_keys, signatures, public_keys, curves)
    content = _by_oid({name: _SHA[name] for name in ("sha1", "sha256", "sha384", "sha512")}, _SHA3)
    rest = (True, grammars.X509_AKID)
    return Algorithms(
        release, registered, digests, signer_keys, signatures, public_keys, curves, content, *rest
    )


LINUX_6_1 = _linux_6_1()
LINUX_6_12 = _since_6_12("6.12", {})
LINUX_7_3 = _since_6_12("7.3", _ML_DSA)
RELEASES: Mapping[str, Algorithms] = {one.release: one for one in (LINUX_6_1, LINUX_6_12, LINUX_7_3)}
"""By release: those that the parsers have been held against."""

# From when on: SHA-3 came in 6.7, ML-DSA in 7.0. What 6.4 to 6.6 check of key usage beyond 6.1 is not told apart.
_SINCE = {(0, 0): LINUX_6_1, (6, 7): LINUX_6_12, (7, 0): LINUX_7_3}


def algorithms_of(release: str) -> Algorithms:
    """What the parsers of a release know, as 6.12: those of the newest that is known and not newer. InputError."""
    found = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", release, re.ASCII)
    if found is None:
        raise InputError(f"{release!r} is no release of Linux, as 6.12")
    version = int(found[1]), int(found[2])
    return _SINCE[max(since for since in _SINCE if since <= version)]
