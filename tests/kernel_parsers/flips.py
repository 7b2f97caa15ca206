"""Flipped bits of a signed image: where a signature covers it, and whether each is refused."""

from __future__ import annotations

import hashlib
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


class Digests:
    """Digests of an image with one bit flipped: each goes on from that of what lies before the bit.

    Of a large kernel most bits lie where a verification does nothing but digest them, so that twenty thousand of them
    are an hour of digesting what was digested before.
    """

    _STEP = 1 << 18

    def __init__(self, data: bytes) -> None:
        file = pe.parse(data)
        self._ranges = covered_by_digest(data)
        self._stream = memoryview(b"".join(data[first:end] for first, end in self._ranges))
        self._before = [hashlib.sha256()]
        for at in range(0, len(self._stream), self._STEP):
            self._before.append(self._before[-1].copy())
            self._before[-1].update(self._stream[at : at + self._STEP])
        self._header = file.header_size
        self.whole = pe.digest(file, "sha256")
        assert self._before[-1].digest() == self.whole

    def of(self, flip: Flip) -> bytes | None:
        """The digest; None where the bit may change more than that: in the headers or in the message."""
        if flip.message_offset is not None or flip.offset < self._header:
            return None
        place = 0
        for first, end in self._ranges:
            if first <= flip.offset < end:
                place += flip.offset - first
                break
            place += end - first
        step = place // self._STEP
        digest = self._before[step].copy()
        digest.update(self._stream[step * self._STEP : place])
        digest.update(bytes([self._stream[place] ^ flip.mask]))
        digest.update(self._stream[place + 1 :])
        return digest.digest()


def accepted_of_many(data: bytes, keyring: Keyring, flips: Iterator[Flip], every: int = 50) -> list[Flip]:
    """Those whose digest is the one that was signed; for other bits, and for each so many, all of a verification."""
    digests = Digests(data)
    found = []
    for number, flip in enumerate(flips):
        digest = digests.of(flip)
        if digest is None or number % every == 0:
            found += accepted(data, keyring, iter([flip]))
        elif digest == digests.whole:
            found.append(flip)
    return found
