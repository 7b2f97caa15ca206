"""The kernel's own decoder and parsers, compiled for this machine from Debian's linux-source, against ours.

A million messages and more: python -m tests.kernel_parsers --count 1000000 (see tests/kernel_parsers/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import signing
from kernel_parsers import build, compare, corpus, findings, flips, mutate
from kernel_parsers.build import KernelParsers

from kexecemu.errors import InputError
from kexecemu.fetch.cache import cache_folder
from kexecemu.formats import oid, pe, x509
from kexecemu.formats.algorithms import LINUX_6_12, RELEASES, Algorithms
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.signature import signature_message, verify_pefile_signature

pytestmark = pytest.mark.real

COUNT = 20_000


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Algorithms:
    return RELEASES[request.param]


@pytest.fixture(scope="module")
def parsers_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Algorithms], KernelParsers]:
    """A release's parsers, built once; the test skips where its source has not been fetched."""
    built: dict[str, KernelParsers] = {}

    def parsers(release: Algorithms) -> KernelParsers:
        if release.release not in built:
            if tool := build.missing_tool():
                pytest.skip(f"{tool} is not installed")
            try:
                tarball = build.tarball_of(release.release, cache_folder())
            except InputError as error:
                pytest.skip(str(error))
            folder = tmp_path_factory.mktemp(f"linux-{release.release}")
            build.take_sources(tarball, folder / "source")
            built[release.release] = build.build(folder / "source", folder / "built")
        return built[release.release]

    return parsers


@pytest.fixture(scope="module")
def kernel(release: Algorithms, parsers_of: Callable[[Algorithms], KernelParsers]) -> KernelParsers:
    return parsers_of(release)


def test_our_programs_are_those_that_the_kernels_compiler_makes(
    kernel: KernelParsers, release: Algorithms
) -> None:
    for name, grammar in zip(build.GRAMMARS, findings.grammars_of(release), strict=True):
        assert build.operations(kernel.tables[name]) == list(grammar.ops), name


def test_our_registry_is_the_kernels(kernel: KernelParsers, release: Algorithms) -> None:
    listed = re.findall(r"\bOID_\w+,\s*/\* ([\d.]+) \*/", kernel.registry)
    assert release.registered == {oid.encode(dotted) for dotted in listed}


def test_the_parsers_say_the_same_of_every_message(kernel: KernelParsers, release: Algorithms) -> None:
    result = compare.compare_parsers(kernel, release, compare.parser_mutants(1), COUNT)
    assert result.differences == []
    # Both answers and every errno of a parser come often enough to mean something.
    assert result.said[0] > COUNT // 10
    assert all(result.said[errno] > 10 for errno in findings.ASN1_ERRNOS.values())


def test_the_decoder_calls_the_same_actions_with_the_same_values(
    kernel: KernelParsers, release: Algorithms
) -> None:
    grammars = findings.grammars_of(release)
    result = compare.compare_decoder(kernel, grammars, compare.decoder_mutants(1), COUNT)
    assert result.differences == []
    assert min(result.said.values()) > COUNT // 10


def _one_by_one(messages: list[bytes]) -> Iterator[tuple[int, bytes]]:
    for message in messages:
        for offset in range(len(message)):
            for bit in range(8):
                yield findings.MESSAGE, signing.flip(message, offset, 1 << bit)


def test_every_single_flipped_bit_of_a_message_is_told_the_same(
    kernel: KernelParsers, release: Algorithms
) -> None:
    messages = [corpus.messages()[0]]
    result = compare.compare_parsers(kernel, release, _one_by_one(messages), 8 * len(messages[0]))
    assert result.differences == []


def test_every_identifier_means_the_same_in_every_place(kernel: KernelParsers, release: Algorithms) -> None:
    kinds = [(findings.MESSAGE, corpus.messages()[0]), (findings.CONTENT, corpus.contents()[0])]
    kinds += [(findings.CERTIFICATE, one) for one in corpus.certificates()[1:4]]
    items = [(kind, changed) for kind, data in kinds for changed in mutate.with_other_identifiers(data)]
    result = compare.compare_parsers(kernel, release, iter(items), len(items))
    assert result.differences == []


# ---- Debian's kernel


def test_every_flipped_bit_of_debians_message_is_told_the_same(
    debian_kernel: Path, parsers_of: Callable[[Algorithms], KernelParsers]
) -> None:
    message = signature_message(debian_kernel.read_bytes())
    result = compare.compare_parsers(
        parsers_of(LINUX_6_12), LINUX_6_12, _one_by_one([message]), 8 * len(message)
    )
    assert result.differences == []


def test_flips_of_what_debian_signed_are_refused(debian_kernel: Path, fetched: Callable[[str], Path]) -> None:
    # Twenty thousand over all of it take some minutes: python -m tests.kernel_parsers --flips 20000
    data = debian_kernel.read_bytes()
    keyring = Keyring.of("debian", [x509.parse(fetched("shim").read_bytes())])
    verify_pefile_signature(data, keyring)
    assert flips.accepted(data, keyring, flips.chosen_flips(data, 1, 100)) == []
    assert flips.accepted(data, keyring, flips.message_flips(data, 1, 400)) == []


def test_a_flips_digest_is_that_of_the_flipped_file(debian_kernel: Path) -> None:
    data = debian_kernel.read_bytes()
    digests = flips.Digests(data)
    known = [(digests.of(flip), flip) for flip in flips.chosen_flips(data, 2, 12)]
    compared = [(found, pe.digest(pe.parse(flip.of(data)), "sha256")) for found, flip in known if found]
    assert len(compared) > 8
    assert all(found == wanted for found, wanted in compared)
