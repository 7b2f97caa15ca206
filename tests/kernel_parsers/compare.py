"""Differential: the kernel's decoder and parsers against kexecemu's, over mutated messages.

As a command, from the folder of the sources: python -m tests.kernel_parsers --count 1000000 --seed 1 --linux 6.12
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kernel_parsers import corpus, findings
from kernel_parsers.build import KernelParsers
from kernel_parsers.mutate import mutated
from kexecemu.formats.algorithms import Algorithms
from kexecemu.formats.asn1 import Grammar

_BATCH = 4000


@dataclass
class Comparison:
    """How many messages were compared, what the kernel said of them (an errno each; 0: read), and where we differ."""

    compared: int = 0
    said: Counter[int] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def _ask(program: object, items: Sequence[tuple[int, bytes]]) -> list[tuple[int, ...]]:
    given = b"".join(struct.pack("<BI", kind, len(data)) + data for kind, data in items)
    done = subprocess.run([str(program)], input=given, capture_output=True, check=True)
    lines = done.stdout.split(b"\n")[:-1]
    assert len(lines) == len(items)
    return [tuple(map(int, line.split())) for line in lines]


def _in_batches(items: Iterator[tuple[int, bytes]], count: int) -> Iterator[list[tuple[int, bytes]]]:
    while count > 0:
        yield [next(items) for _ in range(min(count, _BATCH))]
        count -= _BATCH


def _mutants(seed: int, originals: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    chosen = random.Random(seed)
    yield from originals
    while True:
        kind, data = chosen.choice(originals)
        yield kind, mutated(chosen, data)


def originals(more: Sequence[bytes] = ()) -> list[tuple[int, bytes]]:
    """What is mutated for the parsers; more are messages from elsewhere."""
    messages = [*corpus.messages(), *more]
    found = [(findings.MESSAGE, one) for one in messages] * 2
    found += [(findings.CERTIFICATE, one) for one in corpus.certificates()]
    return found + [(findings.CONTENT, one) for one in corpus.contents()]


def compare_parsers(
    kernel: KernelParsers, algorithms: Algorithms, items: Iterator[tuple[int, bytes]], count: int
) -> Comparison:
    """pkcs7_parse_message(), x509_cert_parse() and mscode_parse(): the errno, and everything that is found."""
    result = Comparison()
    for batch in _in_batches(items, count):
        for (kind, data), wanted in zip(batch, _ask(kernel.parsers, batch), strict=True):
            found = findings.finding(kind, data, algorithms)
            _note(result, wanted[0], wanted, found, f"{kind} {data.hex()}")
    return result


def compare_decoder(
    kernel: KernelParsers, grammars: Sequence[Grammar], items: Iterator[tuple[int, bytes]], count: int
) -> Comparison:
    """asn1_ber_decoder() alone: whether it refuses, and which actions it called with what."""
    result = Comparison()
    numbers = {name.lower(): number for name, number in kernel.actions.items()}
    for batch in _in_batches(items, count):
        for (kind, data), wanted in zip(batch, _ask(kernel.counting, batch), strict=True):
            found = findings.calls(grammars[kind], data, numbers)
            _note(result, wanted[0], wanted, found, f"{kind} {data.hex()}")
    return result


def _note(result: Comparison, said: int, wanted: tuple[int, ...], found: tuple[int, ...], what: str) -> None:
    result.compared += 1
    result.said[said] += 1
    if found != wanted:
        result.differences.append(f"kernel {wanted}, kexecemu {found}: {what}")


def parser_mutants(seed: int, more: Sequence[bytes] = ()) -> Iterator[tuple[int, bytes]]:
    """Endlessly many of what the parsers read."""
    return _mutants(seed, originals(more))


def decoder_mutants(seed: int) -> Iterator[tuple[int, bytes]]:
    """Endlessly many of what the decoder reads by one of the grammars."""
    return _mutants(seed, corpus.values())
