"""What Linux reads of signatures, as grammars: crypto/asymmetric_keys/{pkcs7,x509,x509_akid,mscode}.asn1, and of the
keys and values themselves: crypto/{rsapubkey,ecdsasignature}.asn1.

The types are those of RFC 5652, RFC 5280 and Authenticode, where the kernel does not simplify them; an action is called
as the kernel's is, in lower case. tests/real/test_kernel_parsers.py holds the programs against those that the kernel's
own compiler makes of its own grammars.
"""

from kexecemu.formats.asn1 import (
    BIT_STRING,
    BOOLEAN,
    GENERALIZED_TIME,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SET,
    UTC_TIME,
    Grammar,
    Part,
    any_,
    choice,
    explicit,
    of,
    prim,
    seq,
)

__all__ = ["ECDSA_SIGNATURE", "MSCODE", "PKCS7", "RSA_PUBKEY", "X509", "X509_AKID", "X509_AKID_6_1"]


def _name(note_oid: str, segment: str = "") -> Part:
    """An X.500 name."""
    assertion = seq(prim(OBJECT_IDENTIFIER, note_oid), any_(segment))
    return of(of(assertion, SET), shared=True)


def _pkcs7() -> Part:
    oid = prim(OBJECT_IDENTIFIER, "pkcs7_note_oid")
    algorithm = seq(oid, any_().optional(), shared=True)
    encryption = seq(oid, any_().optional())
    content_info = seq(oid.and_("pkcs7_note_oid"), explicit(0, any_("pkcs7_note_data")).optional())
    certificate = any_("pkcs7_extract_cert")
    # PKCS#6 is read as X.509, and revocation lists as lists of certificates.
    certificates = choice(of(choice(certificate, certificate), SET).as_(0), of(certificate).as_(2))
    revoked = of(certificate, shared=True)
    issuer = of(of(seq(oid, any_()), SET)).and_("pkcs7_sig_note_issuer")
    signer_id = choice(
        seq(issuer, prim(INTEGER).and_("pkcs7_sig_note_serial")),
        prim(OCTET_STRING, "pkcs7_sig_note_skid").as_(0),
    )
    attribute = seq(oid, of(any_("pkcs7_sig_note_authenticated_attr"), SET), shared=True)
    attributes = choice(
        of(attribute, SET).as_(0).and_("pkcs7_sig_note_set_of_authattrs"), explicit(2, of(attribute))
    )
    unsigned = seq(prim(OBJECT_IDENTIFIER), of(any_(), SET), shared=True)
    signer = seq(
        prim(INTEGER, "pkcs7_note_signerinfo_version"),
        signer_id,
        algorithm.and_("pkcs7_sig_note_digest_algo"),
        attributes.optional(),
        encryption.and_("pkcs7_sig_note_pkey_algo"),
        prim(OCTET_STRING, "pkcs7_sig_note_signature"),
        choice(of(unsigned, SET).as_(1), of(unsigned).as_(3)).optional(),
        act="pkcs7_note_signed_info",
        shared=True,
    )
    signed_data = seq(
        prim(INTEGER, "pkcs7_note_signeddata_version"),
        choice(of(algorithm, SET), of(algorithm)),
        content_info.and_("pkcs7_note_content"),
        certificates.optional().and_("pkcs7_note_certificate_list"),
        choice(of(revoked, SET).as_(1), of(revoked).as_(3)).optional(),
        choice(of(signer, SET), of(signer)),
    )
    return seq(oid.and_("pkcs7_check_content_type"), explicit(0, signed_data).optional())


def _x509() -> Part:
    oid = prim(OBJECT_IDENTIFIER, "x509_note_oid")
    algorithm = seq(oid, any_("x509_note_params").optional(), shared=True)
    name = _name("x509_note_oid", "x509_extract_name_segment")
    time = choice(prim(UTC_TIME), prim(GENERALIZED_TIME))
    extension = seq(oid, prim(BOOLEAN).optional(), prim(OCTET_STRING, "x509_process_extension"))
    signed = seq(
        explicit(0, prim(INTEGER)).optional(),
        prim(INTEGER).and_("x509_note_serial"),
        algorithm.and_("x509_note_sig_algo"),
        name.and_("x509_note_issuer"),
        seq(time.and_("x509_note_not_before"), time.and_("x509_note_not_after")),
        name.and_("x509_note_subject"),
        seq(algorithm, prim(BIT_STRING, "x509_extract_key_data")),
        prim(BIT_STRING).as_(1).optional(),
        prim(BIT_STRING).as_(2).optional(),
        explicit(3, of(extension)).optional(),
    )
    return seq(signed.and_("x509_note_tbs_certificate"), algorithm, prim(BIT_STRING, "x509_note_signature"))


def _directory_name() -> Part:
    assertion = seq(prim(OBJECT_IDENTIFIER, "x509_note_oid"), any_("x509_extract_name_segment"))
    return of(of(assertion, SET)).and_("x509_akid_note_name")


def _akid(*general_name: Part) -> Part:
    return seq(
        prim(OCTET_STRING, "x509_akid_note_kid").as_(0).optional(),
        of(choice(*general_name)).as_(1).optional(),
        prim(INTEGER, "x509_akid_note_serial").as_(2).optional(),
    )


def _general_name() -> list[Part]:
    text, oid = prim(OCTET_STRING), prim(OBJECT_IDENTIFIER)
    return [
        seq(oid, explicit(0, any_())).as_(0),
        text.as_(1),
        text.as_(2),
        explicit(3, any_()),
        explicit(4, _directory_name()),
        seq(explicit(0, any_()).optional(), explicit(1, any_())).as_(5),
        text.as_(6),
        text.as_(7),
        oid.as_(8),
    ]


def _general_name_6_1() -> list[Part]:
    """As it was before 6.12: all explicit, which no certificate is."""
    text, ia5 = prim(OCTET_STRING), prim(0x16)
    inside = [any_(), ia5, ia5, any_(), _directory_name(), any_(), ia5, text, prim(OBJECT_IDENTIFIER)]
    return [explicit(number, part) for number, part in enumerate(inside)]


def _mscode() -> Part:
    algorithm = seq(prim(OBJECT_IDENTIFIER, "mscode_note_digest_algo"), any_().optional())
    return seq(
        seq(prim(OBJECT_IDENTIFIER, "mscode_note_content_type"), any_()),
        seq(algorithm, prim(OCTET_STRING, "mscode_note_digest")),
    )


PKCS7 = Grammar("signature", _pkcs7())
X509 = Grammar("certificate", _x509())
X509_AKID = Grammar("authorityKeyIdentifier", _akid(*_general_name()))
X509_AKID_6_1 = Grammar("authorityKeyIdentifier", _akid(*_general_name_6_1()))
MSCODE = Grammar("Authenticode", _mscode())
RSA_PUBKEY = Grammar("RSA key", seq(prim(INTEGER, "rsa_get_n"), prim(INTEGER, "rsa_get_e")))
_PAIR = seq(prim(INTEGER, "ecdsa_get_signature_r"), prim(INTEGER, "ecdsa_get_signature_s"))
ECDSA_SIGNATURE = Grammar("ECDSA value", _PAIR)
