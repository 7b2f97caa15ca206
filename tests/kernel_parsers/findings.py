"""What kexecemu's parsers find, told as shim/oracle.c and shim/counting.c tell it, to be compared."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EMSGSIZE
from typing import Any
from zlib import crc32

from kexecemu.formats import asn1, authenticode, ber, cms, grammars, oid, x509
from kexecemu.formats.algorithms import Algorithms
from kexecemu.formats.ber import Asn1Error, Element
from kexecemu.kernel.signature.pkcs7 import ASN1_ERRNOS

_MISSING = b"-"
MESSAGE, CERTIFICATE, CONTENT = 0, 1, 2


def _number(value: int) -> bytes:
    return struct.pack("<q", value)


def _certificate(one: x509.Certificate) -> Iterator[bytes | None]:
    yield from (one.signed_part, one.serial, one.issuer, one.subject)
    yield from (_number(one.not_before), _number(one.not_after))
    yield from (one.algorithm.key.encode(), one.algorithm.hash.encode(), one.signature)
    yield from (one.public_key.algorithm.encode(), one.public_key.key)
    yield from (one.skid, one.authority_id, one.authority_skid)


def _signer(one: cms.SignerInfo) -> Iterator[bytes | None]:
    yield from (one.signer_id, one.algorithm.key.encode(), one.algorithm.hash.encode(), one.signature)
    yield one.attributes
    if one.attributes is not None:
        yield one.message_digest
    yield _number(one.signing_time or 0)


def _content(data: bytes, algorithms: Algorithms) -> Iterator[bytes | None]:
    found = authenticode.parse(data, algorithms)
    yield from (found.algorithm.encode(), found.digest)


def _message(data: bytes, algorithms: Algorithms) -> Iterator[bytes | None]:
    read = cms.parse(data, algorithms)
    yield _number(read.content_type == oid.MS_INDIRECT_DATA)
    for certificate in read.certificates:
        yield from _certificate(certificate)
    for signer in read.signers:
        yield from _signer(signer)
    if read.content is None:
        yield None
        return
    yield read.content.content
    try:
        yield from list(_content(read.content.encoded, algorithms))
        yield _number(0)
    except Asn1Error as error:
        yield _number(-ASN1_ERRNOS[error.fault])


def finding(kind: int, data: bytes, algorithms: Algorithms) -> tuple[int, int]:
    """The errno, 0 for what was read; and the CRC over what was found."""
    if len(data) > 0xFFFF:
        return EMSGSIZE, 0
    crc = 0
    try:
        if kind == MESSAGE:
            pieces = list(_message(data, algorithms))
        elif kind == CERTIFICATE:
            pieces = list(_certificate(x509.parse(data, algorithms)))
        else:
            pieces = list(_content(data, algorithms))
    except Asn1Error as error:
        return ASN1_ERRNOS[error.fault], 0
    for piece in pieces:
        one = _MISSING if piece is None else piece
        crc = crc32(one, crc32(struct.pack("<I", len(one)), crc))
    return 0, crc


class Calls:
    """Any action: it notes that it was called, and with what."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self._numbers = numbers
        self.count = self.crc = 0

    def __getattr__(self, name: str) -> Any:
        number = self._numbers[name]

        def called(value: Element) -> None:
            self.count += 1
            words = [number]
            if name != "pkcs7_note_certificate_list":
                words += [value.start - value.at, value.start, value.end - value.start]
            self.crc = crc32(struct.pack(f"<{len(words)}I", *words), self.crc)

        return called


def grammars_of(algorithms: Algorithms) -> list[asn1.Grammar]:
    """A release's, in the order of build.GRAMMARS."""
    certificates = [grammars.PKCS7, grammars.X509, algorithms.authority, grammars.MSCODE]
    return [*certificates, grammars.RSA_PUBKEY, grammars.ECDSA_SIGNATURE]


def calls(grammar: asn1.Grammar, data: bytes, numbers: dict[str, int]) -> tuple[int, int, int]:
    """1 if the decoder refuses, how many actions it called, and the CRC over them."""
    context = Calls(numbers)
    try:
        ber.decode(grammar, context, data)
    except Asn1Error:
        return 1, context.count, context.crc
    return 0, context.count, context.crc
