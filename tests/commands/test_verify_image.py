"""kexecemu verify-image: exit statuses, the two outputs, certificates in all forms, bad input in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import signing
import typer

from kexecemu.commands.verify_image import verify_image_command
from kexecemu.errors import InputError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Images and certificates by name."""
    for name, data in {
        "signed": signing.good().data,
        "tampered": signing.BAD_IMAGES["tampered"](),
        "unsigned": signing.pe_image(),
        "ca.pem": signing.pem_of(signing.CA),
        "ca.der": signing.der_of(signing.CA),
        "bundle.pem": signing.pem_of(signing.STRANGER, signing.CA),
        "stranger.pem": signing.pem_of(signing.STRANGER),
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def command(image: Path, *certificates: Path, json_output: bool = False) -> int:
    """The exit status."""
    with pytest.raises(typer.Exit) as exit_:
        verify_image_command(image, list(certificates), json_output)
    return exit_.value.exit_code


def report(capsys: pytest.CaptureFixture[str], image: Path, *certificates: Path) -> dict[str, Any]:
    command(image, *certificates, json_output=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("certificate", ["ca.pem", "ca.der", "bundle.pem"])
def test_a_good_image_exits_with_0(files: Path, certificate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files / "signed", files / certificate) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "verified"
    assert "signer:     CN=kexecemu test signer" in said
    assert "issuer:     CN=kexecemu test CA" in said
    assert "signed at:  2026-11-24T12:30:59Z" in said
    assert "digest:     sha256" in said
    assert f"PE digest:  {signing.authenticode_digest(signing.pe_image()).hex()}" in said
    assert "trusted by: CN=kexecemu test CA" in said


def test_certificates_of_several_files_are_all_trusted(files: Path) -> None:
    assert command(files / "signed", files / "stranger.pem", files / "ca.der") == 0


@pytest.mark.parametrize(
    ("image", "certificate", "errno"),
    [
        ("signed", "stranger.pem", "ENOKEY"),
        ("tampered", "ca.pem", "EKEYREJECTED"),
        ("unsigned", "ca.pem", "ENODATA"),
    ],
)
def test_a_refused_image_exits_with_1(
    files: Path, image: str, certificate: str, errno: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(files / image, files / certificate) == 1
    assert f"({errno} from " in capsys.readouterr().out.splitlines()[0]


def test_json_has_it_all(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = signing.authenticode_digest(signing.pe_image()).hex()
    assert report(capsys, files / "signed", files / "ca.pem") == {
        "verified": True,
        "signer": "CN=kexecemu test signer",
        "issuer": "CN=kexecemu test CA",
        "serial": "2000",
        "signing_time": "2026-11-24T12:30:59Z",
        "digest_algorithm": "sha256",
        "signed_digest": digest,
        "pe_digest": digest,
        "trusted_by": "CN=kexecemu test CA",
        "error": None,
    }


def test_json_of_a_refusal_says_which_step_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, files / "tampered", files / "ca.pem")
    assert found["verified"] is False
    assert found["trusted_by"] is None
    assert found["signed_digest"] == signing.authenticode_digest(signing.pe_image()).hex()
    assert found["pe_digest"] != found["signed_digest"]
    assert found["error"] == {
        "errno": "EKEYREJECTED",
        "number": 129,
        "step": "pefile_digest_pe",
        "reason": "digest mismatch",
    }


@pytest.mark.parametrize("name", sorted(signing.BAD_IMAGES))
def test_every_bad_image_is_refused_in_both_outputs(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image, certificate = tmp_path / "Image", tmp_path / "ca.pem"
    image.write_bytes(signing.BAD_IMAGES[name]())
    certificate.write_bytes(signing.pem_of(signing.CA))
    assert command(image, certificate) == 1
    assert capsys.readouterr().out.startswith("refused: ")
    assert report(capsys, image, certificate)["error"]["number"] > 0


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither an arm64 Image nor a PE file"),
        (b"text", "neither an arm64 Image nor a PE file"),
        (gzip.compress(b"an Image", mtime=0), "compressed with gzip"),
        (b"\x7fELF" + bytes(100), "neither an arm64 Image nor a PE file"),
    ],
)
def test_a_file_that_is_no_image_is_bad_input(files: Path, data: bytes, why: str) -> None:
    (files / "other").write_bytes(data)
    with pytest.raises(InputError, match=why):
        verify_image_command(files / "other", [files / "ca.pem"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        signing.der_of(signing.CA)[:-1],
    ],
)
def test_a_file_that_is_no_certificate_is_bad_input(files: Path, data: bytes) -> None:
    (files / "other").write_bytes(data)
    with pytest.raises(InputError, match="no certificate") as error:
        verify_image_command(files / "signed", [files / "other"])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_bad_input(files: Path) -> None:
    for image, certificate in (("missing", "ca.pem"), ("signed", "missing"), (".", "ca.pem")):
        with pytest.raises(InputError, match=r"No such file|is a directory"):
            verify_image_command(files / image, [files / certificate])


def test_a_certificate_that_a_kernel_cannot_read_does_not_spoil_the_others_of_a_bundle(files: Path) -> None:
    # A validity in a form that X.509 does not allow for its year, as a root in the wild has it: cut out of a good one.
    from base64 import encodebytes

    der = signing.der_of(signing.STRANGER)
    # The second UTCTime (0x17, 13 bytes) is notAfter; month 99 is none.
    first = der.index(b"\x17\x0d")
    second = der.find(b"\x17\x0d", first + 15)
    at = second if second >= 0 else first
    bad = der[: at + 4] + b"99" + der[at + 6 :]
    text = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(bad) + b"-----END CERTIFICATE-----\n"
    (files / "alone.pem").write_bytes(text)
    (files / "mixed.pem").write_bytes(text + signing.pem_of(signing.CA))
    with pytest.raises(InputError, match="no certificate"):
        verify_image_command(files / "signed", [files / "alone.pem"])
    assert command(files / "signed", files / "mixed.pem") == 0


def test_a_certificate_that_did_not_sign_itself_as_it_says_is_not_trusted(files: Path) -> None:
    # x509_check_for_self_signed(), when the key is loaded: -129, and it never gets into the keyring.
    damaged = signing.flip(signing.der_of(signing.CA), -1)
    (files / "damaged.der").write_bytes(damaged)
    with pytest.raises(
        InputError, match=r"no certificate that a kernel reads \(the RSA value was not made by this key"
    ):
        verify_image_command(files / "signed", [files / "damaged.der"])
    # Whoever else signed a certificate is not asked: it may be trusted as it is.
    (files / "signer.der").write_bytes(signing.flip(signing.der_of(signing.SIGNER), -1))
    assert command(files / "signed", files / "signer.der") == 0


def policy(
    capsys: pytest.CaptureFixture[str], image: Path, certificate: Path, *config: str, **options: Any
) -> tuple[int, dict[str, Any]]:
    """The exit status, and what --json says of the policy."""
    with pytest.raises(typer.Exit) as exit_:
        verify_image_command(image, [certificate], True, config=list(config) or None, **options)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["policy"]
    return exit_.value.exit_code, found


# Under what, then what becomes of an image with a good signature, and the errno for one without any.
POLICIES: list[tuple[list[str], dict[str, Any], str | None]] = [
    (["KEXEC_SIG=y"], {}, None),
    (["KEXEC_SIG=n"], {"cmdline": "lockdown=confidentiality"}, None),
    (["CONFIG_KEXEC_SIG_FORCE=y"], {}, "ENODATA"),
    (["IMA_ARCH_POLICY=y"], {}, None),
    (["IMA_ARCH_POLICY=y"], {"secure_boot": True}, "ENODATA"),
    ([], {"secure_boot": True}, None),
    ([], {"cmdline": "quiet lockdown=integrity"}, "EPERM"),
    ([], {"cmdline": "lockdown=confidentiality lockdown=integrity"}, "EPERM"),
    ([], {"cmdline": "lockdown=integrity ima_policy=tcb|secure_boot"}, None),
    ([], {"cmdline": "lockdown=integrity ima_policy=secure_boot ima_appraise=log"}, "EPERM"),
    ([], {"cmdline": "lockdown=integrity ima_policy=secure_boot ima_appraise=enforce"}, None),
    (["IMA_APPRAISE_REQUIRE_KEXEC_SIGS=y"], {"cmdline": "lockdown=integrity"}, None),
    (["IMA_APPRAISE_REQUIRE_KEXEC_SIGS=y"], {"cmdline": "lockdown=integrity ima_appraise=off"}, "EPERM"),
    (["KEXEC_SIG_FORCE=y"], {"cmdline": "lockdown=integrity"}, "ENODATA"),
]


@pytest.mark.parametrize(("config", "options", "errno"), POLICIES)
def test_a_policy_decides_what_becomes_of_an_image(
    files: Path,
    config: list[str],
    options: dict[str, Any],
    errno: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, found = policy(capsys, files / "unsigned", files / "ca.pem", *config, **options)
    assert (status, found["loaded"]) == ((0, True) if errno is None else (1, False))
    assert (found["error"] or {}).get("errno") == errno
    status, found = policy(capsys, files / "signed", files / "ca.pem", *config, **options)
    assert (status, found["loaded"], found["log"]) == (0, True, [])


def test_a_loader_that_cannot_verify_refuses_even_a_good_image_where_that_is_enforced(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = policy(
        capsys, files / "signed", files / "ca.pem", "KEXEC_IMAGE_VERIFY_SIG=n", "KEXEC_SIG_FORCE=y"
    )
    assert (status, found["error"]["errno"]) == (1, "EKEYREJECTED")


def test_without_a_policy_there_is_none_in_the_object(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "policy" not in report(capsys, files / "unsigned", files / "ca.pem")


def test_the_text_says_what_the_load_did_and_its_log(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        verify_image_command(files / "unsigned", [files / "ca.pem"], cmdline="lockdown=integrity")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "kexec_file_load: refused: EPERM from kimage_validate_signature",
        "    Lockdown: kexec: kexec of unsigned images is restricted; see man kernel_lockdown.7",
    ]
    with pytest.raises(typer.Exit):
        verify_image_command(files / "unsigned", [files / "ca.pem"], cmdline="ima_policy=secure_boot")
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "kexec_file_load: loaded",
        "    kexec_file: kernel signature verification failed (-61).",
        "    IMA appraises the file by its security.ima as well, which is not looked at here",
    ]


@pytest.mark.parametrize(("era", "status"), [("6.1", 0), ("6.6", 0), ("6.12", 1), ("7.3", 1), ("8.0", 1)])
def test_an_era_has_its_own_parsers(files: Path, era: str, status: int) -> None:
    # SHA-224 of an image: to Authenticode as 6.1 reads it, not any more once SHA-3 had come.
    (files / "sha224").write_bytes(signing.signed(signing.pe_image(), digest="sha224"))
    with pytest.raises(typer.Exit) as exit_:
        verify_image_command(files / "sha224", [files / "ca.pem"], era=era)
    assert exit_.value.exit_code == status
