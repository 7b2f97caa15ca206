"""PKCS#7 messages as Linux reads them: what is read, and of what kind each refusal is."""

from __future__ import annotations

import calendar
import shutil
import subprocess
from pathlib import Path

import pytest
import signing
from hypothesis import given
from hypothesis import strategies as st
from signing import INTEGER, OCTETS, OIDS, SEQUENCE, SET, der, oid

from kexecemu.errors import FormatError
from kexecemu.formats import cms
from kexecemu.formats.algorithms import LINUX_6_1, LINUX_6_12, Algorithms
from kexecemu.formats.ber import Asn1Error, BerFault

CONTENT = signing.indirect_data(signing.authenticode_digest(signing.pe_image()))
GOOD = signing.message(signing.pe_image())


def info(signed_attributes: list[bytes] | None = None, **options: object) -> bytes:
    attributes = signing.attributes(CONTENT) if signed_attributes is None else signed_attributes
    return signing.signer_info(signing.SIGNER, "signer", attributes, CONTENT, **options)  # type: ignore[arg-type]


def refused(message: bytes, fault: BerFault, why: str, algorithms: Algorithms = LINUX_6_1) -> None:
    with pytest.raises(Asn1Error, match=why) as error:
        cms.parse(message, algorithms)
    assert error.value.fault is fault


def test_a_message_is_read() -> None:
    message = cms.parse(GOOD)
    assert message.content is not None
    assert message.content.encoded == CONTENT
    assert [one.encoded for one in message.certificates] == [signing.der_of(signing.SIGNER)]
    (signer,) = message.signers
    assert (signer.algorithm.key, signer.algorithm.hash) == ("rsa", "sha256")
    assert signer.signer_id == message.certificates[0].id
    assert signer.signing_time == calendar.timegm(signing.SIGNED_AT.timetuple())
    assert signer.attributes == der(SET, *signing.attributes(CONTENT))


def test_openssl_finds_the_same_in_it(tmp_path: Path) -> None:
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "message"
    path.write_bytes(GOOD)
    said = subprocess.run(
        [tool, "asn1parse", "-inform", "DER", "-in", path], capture_output=True, text=True, check=True
    ).stdout
    signer = cms.parse(GOOD).signers[0]
    assert signer.message_digest is not None
    # The last value of its type is the signer's: the others belong to the content and the certificate.
    octets = [line.rpartition(":")[2] for line in said.splitlines() if "OCTET STRING" in line]
    assert octets[-2:] == [signer.message_digest.hex().upper(), signer.signature.hex().upper()]
    times = [line.rpartition(":")[2] for line in said.splitlines() if "UTCTIME" in line]
    assert times[-1] == "261124123059Z"
    serials = [line.rpartition(":")[2] for line in said.splitlines() if "INTEGER" in line]
    assert bytes.fromhex(serials[-1]) == signer.signer_id[:2]


def test_indefinite_lengths_are_read() -> None:
    message = signing.signed_data(
        CONTENT, [signing.der_of(signing.SIGNER)], [info()], outer=signing.indefinite
    )
    assert cms.parse(message) == cms.parse(GOOD)


def test_attributes_in_any_order_are_kept_as_they_lie() -> None:
    backwards = sorted(signing.attributes(CONTENT), reverse=True)
    message = signing.signed_data(CONTENT, [], [info(backwards)])
    assert cms.parse(message).signers[0].attributes == der(SET, *backwards)


def test_a_signer_may_be_named_by_its_key() -> None:
    named = info(version=3, signer_id=der(0x80, b"key identifier"))
    (signer,) = cms.parse(signing.signed_data(CONTENT, [], [named], version=3)).signers
    assert signer.by_skid
    assert signer.signer_id == b"key identifier"


def test_bytes_behind_the_message_are_ignored() -> None:
    assert cms.parse(GOOD + b"padding") == cms.parse(GOOD)


def test_a_message_without_content_is_read() -> None:
    assert cms.parse(signing.signed_data(None, [], [info()])).content is None


@pytest.mark.parametrize("kind", ["data", "msIndirectData"])
def test_the_two_content_types_that_linux_takes(kind: str) -> None:
    attributes = signing.attributes(CONTENT, content_type=kind)
    message = cms.parse(signing.signed_data(CONTENT, [], [info(attributes)], content_type=kind))
    assert message.content_type == oid(OIDS[kind])[2:]


def test_other_content_types_are_unexpected() -> None:
    refused(
        signing.signed_data(CONTENT, [], [info()], content_type="unknown"),
        BerFault.UNEXPECTED,
        "data type 1.3.6.1.4",
    )


def test_what_is_no_signed_data_is_unexpected() -> None:
    changed = GOOD.replace(oid(OIDS["signedData"]), oid(OIDS["envelopedData"]), 1)
    refused(changed, BerFault.UNEXPECTED, "is not signedData")


@pytest.mark.parametrize("version", [0, 2, 4])
def test_versions_other_than_1_and_3_are_unexpected(version: int) -> None:
    refused(
        signing.signed_data(CONTENT, [], [info()], version=version),
        BerFault.UNEXPECTED,
        "SignedData: version",
    )
    refused(
        signing.signed_data(CONTENT, [], [info(version=version)]), BerFault.UNEXPECTED, "SignerInfo: version"
    )


def test_a_signer_of_another_version_than_the_message_is_malformed() -> None:
    refused(signing.signed_data(CONTENT, [], [info(version=3)]), BerFault.MALFORMED, "version 3 in a message")
    refused(
        signing.signed_data(CONTENT, [], [info()], version=3), BerFault.MALFORMED, "version 1 in a message"
    )


def test_a_message_without_a_signer_is_unexpected() -> None:
    refused(der(SEQUENCE, oid(OIDS["signedData"])), BerFault.UNEXPECTED, "no signer")
    # A SET OF has at least one element to the kernel's decoder.
    refused(signing.signed_data(CONTENT, [], []), BerFault.MALFORMED, "cut off inside a header")


def test_a_digest_algorithm_that_linux_does_not_have_is_unsupported() -> None:
    sha256, sha3 = oid(OIDS["sha256"]), oid(OIDS["sha3-256"])
    whole = signing.signed_data(CONTENT, [], [info().replace(sha256, sha3)])
    assert cms.parse(whole, LINUX_6_12).signers[0].algorithm.hash == "sha3-256"
    refused(whole, BerFault.UNSUPPORTED, r"digest algorithm 2\.16\.840\.1\.101\.3\.4\.2\.8")


def test_a_key_algorithm_that_linux_does_not_have_is_unsupported() -> None:
    changed = info().replace(oid(OIDS["rsa"]), oid("1.2.840.113549.1.1.7"))
    refused(signing.signed_data(CONTENT, [], [changed]), BerFault.UNSUPPORTED, "key algorithm")


def test_authenticode_needs_signed_attributes() -> None:
    without = signing.signer_info(signing.SIGNER, "signer", None, CONTENT)
    refused(
        signing.signed_data(CONTENT, [], [without]),
        BerFault.MALFORMED,
        "Authenticode without signed attributes",
    )


@pytest.mark.parametrize("kind", ["contentType", "messageDigest"])
def test_signed_attributes_need_content_type_and_digest(kind: str) -> None:
    attributes = [one for one in signing.attributes(CONTENT) if oid(OIDS[kind]) not in one]
    refused(
        signing.signed_data(CONTENT, [], [info(attributes)]),
        BerFault.MALFORMED,
        "without contentType or messageDigest",
    )


@pytest.mark.parametrize("kind", ["contentType", "messageDigest", "signingTime"])
def test_a_signed_attribute_may_not_come_twice(kind: str) -> None:
    attributes = signing.attributes(CONTENT)
    again = next(one for one in attributes if oid(OIDS[kind]) in one)
    refused(signing.signed_data(CONTENT, [], [info([*attributes, again])]), BerFault.FORBIDDEN, "is repeated")


def test_a_signed_attribute_may_not_have_two_values() -> None:
    time = signing.utc_time(signing.SIGNED_AT)
    attributes = [*signing.attributes(CONTENT, signed_at=None), signing.attribute("signingTime", time, time)]
    refused(signing.signed_data(CONTENT, [], [info(attributes)]), BerFault.FORBIDDEN, "is repeated")


def test_the_content_type_attribute_must_be_the_messages() -> None:
    attributes = signing.attributes(CONTENT, content_type="data")
    refused(
        signing.signed_data(CONTENT, [], [info(attributes)]), BerFault.MALFORMED, "differs from the message's"
    )


def test_a_message_digest_must_be_an_octet_string() -> None:
    attributes = [signing.attribute("contentType", oid(OIDS["msIndirectData"]))]
    attributes.append(signing.attribute("messageDigest", der(INTEGER, b"\x05")))
    refused(signing.signed_data(CONTENT, [], [info(attributes)]), BerFault.MALFORMED, "no OCTET STRING")


def test_a_signing_time_must_be_a_time() -> None:
    attributes = [
        *signing.attributes(CONTENT, signed_at=None),
        signing.attribute("signingTime", der(OCTETS, b"now")),
    ]
    refused(signing.signed_data(CONTENT, [], [info(attributes)]), BerFault.MALFORMED, "time")


def test_attributes_of_authenticode_are_forbidden_elsewhere() -> None:
    capabilities = der(SEQUENCE, oid("1.2.840.113549.1.9.15"), der(SET, der(SEQUENCE)))
    attributes = [*signing.attributes(CONTENT), capabilities]
    assert cms.parse(signing.signed_data(CONTENT, [], [info(attributes)])).signers
    attributes = [*signing.attributes(CONTENT, content_type="data"), capabilities]
    whole = signing.signed_data(CONTENT, [], [info(attributes)], content_type="data")
    refused(whole, BerFault.FORBIDDEN, "outside of Authenticode")


def test_signed_attributes_with_one_signer_only_are_unexpected() -> None:
    one = info(signing.attributes(CONTENT, content_type="data"))
    other = signing.signer_info(signing.SIGNER, "signer", None, CONTENT)
    whole = signing.signed_data(CONTENT, [], [one, other], content_type="data")
    refused(whole, BerFault.UNEXPECTED, "and none with another")


def test_revocation_lists_are_read_as_lists_of_certificates_and_dropped() -> None:
    signers = der(SET, info())

    def with_crls(*lists: bytes) -> bytes:
        inner = der(
            SEQUENCE,
            der(INTEGER, b"\x01"),
            der(SET, signing.algorithm("sha256")),
            der(SEQUENCE, oid(OIDS["msIndirectData"]), der(0xA0, CONTENT)),
            der(0xA1, *lists),
            signers,
        )
        return der(SEQUENCE, oid(OIDS["signedData"]), der(0xA0, inner))

    seen = []
    listed = with_crls(der(SEQUENCE, signing.der_of(signing.SIGNER)))
    read = cms.parse(listed, on_certificate=seen.append)
    assert not read.certificates
    assert [one.encoded for one in seen] == [signing.der_of(signing.SIGNER)]
    refused(with_crls(der(SEQUENCE, der(SEQUENCE))), BerFault.MALFORMED, "certificate")
    for nothing in (with_crls(), with_crls(der(SEQUENCE))):
        refused(nothing, BerFault.MALFORMED, "cut off inside a header")


def test_a_bad_certificate_is_a_bad_message() -> None:
    refused(signing.signed_data(CONTENT, [der(SEQUENCE)], [info()]), BerFault.MALFORMED, "certificate")
    refused(signing.signed_data(CONTENT, [der(SET)], [info()]), BerFault.MALFORMED, "is no certificate")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        cms.parse(data)


@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=2)), min_size=1, max_size=4
    )
)
def test_any_damage_is_a_message_or_a_format_error(damage: list[tuple[int, bytes]]) -> None:
    data = GOOD
    for offset, value in damage:
        data = signing.patch(data, offset, value)
    try:
        message = cms.parse(data)
    except FormatError:
        return
    assert message.signers


@given(st.integers(0, len(GOOD) - 1))
def test_a_message_that_is_cut_off_is_malformed(size: int) -> None:
    with pytest.raises(Asn1Error) as error:
        cms.parse(GOOD[:size])
    assert error.value.fault is BerFault.MALFORMED
