"""SpcIndirectDataContent: which digest of which algorithm, and of what kind each refusal is."""

from __future__ import annotations

import pytest
import signing
from hypothesis import given
from hypothesis import strategies as st
from signing import NULL, OCTETS, OIDS, SEQUENCE, der, oid

from kexecemu.errors import FormatError
from kexecemu.formats import authenticode
from kexecemu.formats.algorithms import LINUX_6_1, LINUX_6_12
from kexecemu.formats.ber import Asn1Error, BerFault

DIGEST = bytes(range(32))


@pytest.mark.parametrize("name", ["sha1", "sha224", "sha256", "sha384", "sha512"])
def test_the_digest_and_its_algorithm_are_read(name: str) -> None:
    found = authenticode.parse(signing.indirect_data(DIGEST, name))
    assert (found.algorithm, found.digest) == (name, DIGEST)


def test_the_content_type_of_an_old_pesign_is_taken_too() -> None:
    data = signing.indirect_data(DIGEST, kind="msIndividualSPKeyPurpose")
    assert authenticode.parse(data).digest == DIGEST


def test_6_12_took_sha3_for_sha224() -> None:
    found = authenticode.parse(signing.indirect_data(DIGEST, "sha3-256"), LINUX_6_12)
    assert found.algorithm == "sha3-256"
    for name, algorithms, fault in (
        ("sha224", LINUX_6_12, BerFault.UNSUPPORTED),
        ("sha3-256", LINUX_6_1, BerFault.MALFORMED),
    ):
        with pytest.raises(Asn1Error) as error:
            authenticode.parse(signing.indirect_data(DIGEST, name), algorithms)
        assert error.value.fault is fault


@pytest.mark.parametrize("kind", ["unknown", "data"])
def test_other_content_types_are_malformed(kind: str) -> None:
    with pytest.raises(Asn1Error, match="no PE image") as error:
        authenticode.parse(signing.indirect_data(DIGEST, kind=kind))
    assert error.value.fault is BerFault.MALFORMED


@pytest.mark.parametrize(
    ("algorithm", "fault"),
    [
        ("1.2.840.113549.1.1.1", BerFault.UNSUPPORTED),  # RSA: in the kernel's registry, and no digest
        ("1.2.156.10197.1.401", BerFault.UNSUPPORTED),  # SM3
        ("1.3.6.1.4.1.311.2.1.123", BerFault.MALFORMED),
    ],
)
def test_no_digest_is_unsupported_if_linux_knows_it_and_malformed_if_not(
    algorithm: str, fault: BerFault
) -> None:
    kind = der(SEQUENCE, oid(OIDS["msPeImageData"]), der(SEQUENCE))
    info = der(SEQUENCE, der(SEQUENCE, oid(algorithm), NULL), der(OCTETS, DIGEST))
    with pytest.raises(Asn1Error) as error:
        authenticode.parse(der(SEQUENCE, kind, info))
    assert error.value.fault is fault


def test_the_parameters_of_the_algorithm_may_be_missing_but_the_kinds_may_not() -> None:
    kind = der(SEQUENCE, oid(OIDS["msPeImageData"]), der(SEQUENCE))
    info = der(SEQUENCE, der(SEQUENCE, oid(OIDS["sha256"])), der(OCTETS, DIGEST))
    assert authenticode.parse(der(SEQUENCE, kind, info)).digest == DIGEST
    with pytest.raises(Asn1Error):
        authenticode.parse(der(SEQUENCE, der(SEQUENCE, oid(OIDS["msPeImageData"])), info))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        authenticode.parse(data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_any_damage_is_content_or_a_format_error(offset: int, value: int) -> None:
    good = signing.indirect_data(DIGEST)
    data = signing.patch(good, offset % len(good), bytes([value]))
    try:
        found = authenticode.parse(data)
    except FormatError:
        return
    assert found.digest in data
