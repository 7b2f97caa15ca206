"""The command: how many mutated messages do the kernel's parsers and kexecemu's tell differently?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from errno import errorcode
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel_parsers import build, compare, flips
from kexecemu.errors import KexecemuError
from kexecemu.fetch.cache import cache_folder, cached, fetch_targets, fetched
from kexecemu.formats import x509
from kexecemu.formats.algorithms import RELEASES
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.signature import signature_message, verify_pefile_signature


def _debian() -> list[bytes]:
    """The message of Debian's signed kernel, if that is fetched."""
    kernel = cached("kernel")
    return [] if kernel is None else [signature_message(kernel.read_bytes())]


def _compared(release: str, count: int, seed: int) -> Iterator[tuple[str, compare.Comparison]]:
    tarball = build.tarball_of(release, cache_folder())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build.take_sources(tarball, folder / "source")
        kernel = build.build(folder / "source", folder / "built")
        mutants = compare.parser_mutants(seed, _debian())
        yield "parsers", compare.compare_parsers(kernel, RELEASES[release], mutants, count)
        grammars = compare.findings.grammars_of(RELEASES[release])
        yield "decoder", compare.compare_decoder(kernel, grammars, compare.decoder_mutants(seed), count)


def _flipped(count: int, seed: int) -> int:
    """Flips of Debian's signed kernel; how many are not refused."""
    data, authority = fetched("kernel").read_bytes(), fetched("shim").read_bytes()
    keyring = Keyring.of("debian", [x509.parse(authority)])
    verify_pefile_signature(data, keyring)
    found = flips.accepted_of_many(data, keyring, flips.chosen_flips(data, seed, count))
    print(f"Debian's kernel: {count} flips of what is signed, {len(found)} not refused")
    for flip in found[:10]:
        print(f"    bit {flip.mask:#04x} of byte {flip.offset:#x}")
    return len(found)


def main(words: Sequence[str] | None = None) -> int:
    """0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel_parsers", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=20_000, help="messages for the parsers, and as many for the decoder"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--linux", choices=[*RELEASES], action="append", help="repeatable (default: all that are fetched)"
    )
    parser.add_argument("--fetch", action="store_true", help="fetch Debian's linux-source-6.1, and stop")
    parser.add_argument("--flips", type=int, help="flip that many bits of Debian's signed kernel instead")
    given = parser.parse_args(words)
    if given.fetch:
        fetch_targets({"linux-source-6.1": build.SOURCE_6_1}, cache_folder(), print)
        return 0
    if given.flips:
        return 1 if _flipped(given.flips, given.seed) else 0
    differences = 0
    for release in given.linux or RELEASES:
        try:
            for what, result in _compared(release, given.count, given.seed):
                said = ", ".join(
                    f"{errorcode.get(one, 'read')} {count}" for one, count in sorted(result.said.items())
                )
                if what == "decoder":
                    said = f"taken {result.said[0]}, refused {result.said[1]}"
                print(
                    f"{release} {what}: {result.compared} compared ({said}), {len(result.differences)} differences"
                )
                for line in result.differences[:10]:
                    print(f"    {line}")
                differences += len(result.differences)
        except KexecemuError as error:
            print(f"{release}: {error}", file=sys.stderr)
            if given.linux:
                return 2
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
