"""The messages, certificates and values that are mutated: every form of the grammars at least once."""

from __future__ import annotations

from collections.abc import Sequence

import signing
from cryptography import x509
from signing import INTEGER, OCTETS, OIDS, SEQUENCE, SET, der, der_of, oid

_IMAGE = signing.pe_image()
_CONTENT = signing.indirect_data(signing.authenticode_digest(_IMAGE))


def _info(kind: str = "msIndirectData", **options: object) -> bytes:
    attributes = signing.attributes(_CONTENT, content_type=kind)
    return signing.signer_info(signing.SIGNER, "signer", attributes, _CONTENT, **options)  # type: ignore[arg-type]


def _names_every_way() -> x509.Certificate:
    """A certificate whose authority is named by all kinds of GeneralName."""
    akid = x509.AuthorityKeyIdentifier(
        b"key",
        [
            x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
            x509.RFC822Name("a@b"),
            x509.DNSName("ca"),
            x509.DirectoryName(signing.CA.subject),
            x509.UniformResourceIdentifier("http://ca"),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        ],
        0x1000,
    )
    return signing.certificate("s", "signer", "kexecemu test CA", "ca", serial=5, akid=akid)


def _key_usage() -> bytes:
    builder = x509.CertificateBuilder(
        signing.name("ca"), signing.name("usage"), signing.private_key("signer").public_key(), 5
    )
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = builder.not_valid_before(signing.NOT_BEFORE).not_valid_after(signing.NOT_AFTER)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(True, 2), critical=True)
    return der_of(builder.sign(signing.private_key("ca"), signing.HASHES["sha384"]))


def certificates() -> list[bytes]:
    """Certificates by themselves."""
    return [
        *(der_of(one) for one in (signing.CA, signing.SIGNER, signing.EC_SIGNER, _names_every_way())),
        signing.version_1(signing.SIGNER, "ca"),
        _key_usage(),
    ]


def _whole(parts: Sequence[bytes]) -> bytes:
    return der(SEQUENCE, oid(OIDS["signedData"]), der(0xA0, der(SEQUENCE, *parts)))


def _written_otherwise() -> bytes:
    """All of the grammar's other alternatives: sequences for sets, revocation lists, unsigned attributes, a skid."""
    attributes = der(SEQUENCE, *signing.attributes(_CONTENT, content_type="data"))
    signer = der(
        SEQUENCE,
        der(INTEGER, b"\x03"),
        der(0x80, b"key identifier"),
        signing.algorithm("sha512"),
        der(0xA2, attributes),
        signing.algorithm("ecdsa-sha256"),
        der(OCTETS, b"\x30\x06\x02\x01\x05\x02\x01\x07"),
        der(0xA3, signing.attribute("signingTime", der(OCTETS, b"now"))),
    )
    listed = der(SEQUENCE, der_of(signing.SIGNER))
    return _whole(
        [
            der(INTEGER, b"\x03"),
            der(SEQUENCE, signing.algorithm("sha256")),
            der(SEQUENCE, oid(OIDS["data"]), der(0xA0, _CONTENT)),
            der(0xA2, der_of(signing.CA), der_of(signing.EC_SIGNER)),
            der(0xA3, listed),
            der(SEQUENCE, signer),
        ]
    )


def _with_revocation_lists() -> bytes:
    listed = der(SEQUENCE, der_of(signing.STRANGER), der_of(signing.CA))
    unsigned = der(0xA1, signing.attribute("signingTime", der(OCTETS, b"now")))
    signer = signing.content_of(_info()) + unsigned
    return _whole(
        [
            der(INTEGER, b"\x01"),
            der(SET, signing.algorithm("sha256"), signing.algorithm("sha1")),
            der(SEQUENCE, oid(OIDS["msIndirectData"]), der(0xA0, _CONTENT)),
            der(0xA0, der_of(signing.SIGNER)),
            der(0xA1, listed),
            der(SET, der(SEQUENCE, signer)),
        ]
    )


def messages() -> list[bytes]:
    """Whole messages."""
    two = [_info(), _info()]
    named = _info("data", version=3, signer_id=der(0x80, b"key identifier"))
    chain = [der_of(one) for one in (signing.LEAF, signing.INTERMEDIATE, _names_every_way())]
    return [
        signing.message(_IMAGE),
        signing.message(_IMAGE, signing.EC_SIGNER, "ec", key_algorithm="ecdsa-sha256"),
        signing.signed_data(_CONTENT, chain, two),
        signing.signed_data(_CONTENT, [], [named], version=3, content_type="data"),
        signing.signed_data(None, [der_of(signing.SIGNER)], [_info()]),
        _written_otherwise(),
        _with_revocation_lists(),
    ]


def contents() -> list[bytes]:
    """What Authenticode signs."""
    return [
        signing.indirect_data(bytes(size), name)
        for size, name in ((32, "sha256"), (20, "sha1"), (64, "sha512"))
    ]


def values() -> list[tuple[int, bytes]]:
    """For the decoder alone: the number of a grammar (build.GRAMMARS), and bytes that fit it."""
    null = b"\x05\x00"
    names = [
        der(0x82, b"ca"),
        der(0xA4, signing.CA.subject.public_bytes()),
        der(0xA0, oid("1.2.3"), der(0xA0, null)),
        der(0xA3, null),
        der(0xA5, der(0xA0, null), der(0xA1, null)),
        der(0x87, bytes(4)),
    ]
    akid = der(SEQUENCE, der(0x80, b"key"), der(0xA1, *names), der(0x82, b"\x10"))
    key = der(SEQUENCE, der(INTEGER, b"\0" + bytes(range(200, 232))), der(INTEGER, b"\x01\0\x01"))
    pair = der(SEQUENCE, der(INTEGER, bytes(range(1, 33))), der(INTEGER, bytes(range(2, 34))))
    return [
        *((0, one) for one in messages()),
        *((1, one) for one in certificates()),
        (2, akid),
        *((3, one) for one in contents()),
        (4, key),
        (5, pair),
    ]
