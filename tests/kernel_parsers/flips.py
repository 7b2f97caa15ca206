"""Flipped bits of a signed image: where a signature covers it, and whether each is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kexecemu.errors import KexecError
from kexecemu.formats import cms, pe
from kexecemu.kernel.signature.keyring import Keyring
from kexecemu.kernel.signature.signature import signature_message, verify_pefile_signature


@dataclass(frozen=True)
class Flip:
    """A bit of a file, by its byte's offset; message_offset is the offset in the PKCS#7 message, None outside of it."""

    offset: int
    mask: int
    message_offset: int | None

    def of(self, data: bytes) -> bytes:
        """The file with that bit inverted."""
        return b"".join(
            (data[: self.offset], bytes([data[self.offset] ^ self.mask]), data[self.offset + 1 :])
        )


def covered_by_digest(data: bytes) -> list[tuple[int, int]]:
    """The ranges that Authenticode digests, but for the checksum and the table's entry."""
    return pe.digest_ranges(pe.parse(data))


def covered_in_message(message: bytes) -> list[tuple[int, int]]:
    """The ranges of a message that its signatures cover, and the signatures."""
    parsed = cms.parse(message)
    signer, certificate = parsed.signers[0], parsed.certificates[0]
    assert parsed.content is not None and signer.attributes is not None
    values = [parsed.content.content, certificate.signed_part, certificate.signature]
    values += [signer.attributes[2:], signer.signature]
    return [(message.index(value), message.index(value) + len(value)) for value in values]


def chosen_flips(data: bytes, seed: int, count: int) -> Iterator[Flip]:
    """Flips over all covered bytes alike."""
    message = signature_message(data)
    start = data.index(message)
    ranges = [(first, end, None) for first, end in covered_by_digest(data)]
    covered = [(start + first, start + end, start) for first, end in covered_in_message(message)]
    both: Sequence[tuple[int, int, int | None]] = [*ranges, *covered]
    sizes = [end - first for first, end, _ in both]
    chosen = random.Random(seed)
    for first, end, base in chosen.choices(both, sizes, k=count):
        offset = chosen.randrange(first, end)
        yield Flip(offset, 1 << chosen.randrange(8), None if base is None else offset - base)


def message_flips(data: bytes, seed: int, count: int) -> Iterator[Flip]:
    """Flips over what is covered of the message alone."""
    message = signature_message(data)
    start, ranges = data.index(message), covered_in_message(message)
    chosen = random.Random(seed)
    for first, end in chosen.choices(ranges, [end - first for first, end in ranges], k=count):
        offset = chosen.randrange(first, end)
        yield Flip(start + offset, 1 << chosen.randrange(8), offset)


def accepted(data: bytes, keyring: Keyring, flips: Iterator[Flip]) -> list[Flip]:
    """Those that are not refused."""
    found = []
    for flip in flips:
        try:
            verify_pefile_signature(flip.of(data), keyring)
        except KexecError:
            continue
        found.append(flip)
    return found
