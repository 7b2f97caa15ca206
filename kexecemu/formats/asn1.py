"""Grammars of ASN.1, and the programs that scripts/asn1_compiler.c of the kernel makes of them.

A grammar is written with the functions below and compiled into the program that kexecemu.formats.ber runs, operation by
operation the one that the kernel runs: what may be skipped, or is used twice, is a subroutine there, and which
operations a value that is missing passes over decides what the decoder takes.

Tags are identifier octets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kexecemu.shown import shown

__all__ = ["Grammar", "Op", "Part", "any_", "choice", "context", "explicit", "of", "prim", "seq"]

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

CONSTRUCTED = 0x20


class Op(NamedTuple):
    """One operation of a decoder's program.

    kind   match, end, act, maybe act, cond fail, return or complete
    tag    what is matched
    jump   a match: the subroutine for what is inside; an end: the first operation of what repeats; 0 for none
    action the method to call, "" for none
    cond   passed over where an alternative before it has matched
    skip   passed over where another value, or none, is found
    any    matches any tag
    """

    kind: str
    tag: int = 0
    jump: int = 0
    action: str = ""
    cond: bool = False
    skip: bool = False
    any: bool = False


@shown("kind", "tag")
@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a grammar; the functions below make them, optional() and as_() change them.

    act is done with the value, within the operation that matches or ends it; then, in an operation of its own, after.
    """

    kind: str
    tag: int = 0
    inside: Sequence[Part] = ()
    act: str = ""
    then: str = ""
    repeats: bool = False
    shared: bool = False
    skippable: bool = False

    def optional(self) -> Part:
        """The same, where it may be missing."""
        return replace(self, skippable=True)

    def as_(self, number: int) -> Part:
        """The same under the tag [number] IMPLICIT."""
        return replace(self, tag=context(number, constructed=bool(self.tag & CONSTRUCTED)))

    def and_(self, then: str) -> Part:
        """The same, with an action behind it."""
        return replace(self, then=then)


def context(number: int, *, constructed: bool = True) -> int:
    """The tag [number] of a grammar; constructed unless it stands in for a primitive type."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


def prim(tag: int, act: str = "") -> Part:
    """A primitive type."""
    return Part("prim", tag, act=act)


def any_(act: str = "") -> Part:
    """ANY."""
    return Part("any", act=act)


def seq(*inside: Part, act: str = "", shared: bool = False) -> Part:
    """A SEQUENCE; shared if the grammar has a name for it and uses that more than once."""
    return Part("cons", SEQUENCE, inside, act, shared=shared)


def of(part: Part, tag: int = SEQUENCE, *, act: str = "", shared: bool = False) -> Part:
    """A SEQUENCE OF, or with the tag SET a SET OF."""
    return Part("cons", tag, (part,), act, repeats=True, shared=shared)


def explicit(number: int, part: Part) -> Part:
    """A value inside the tag [number] EXPLICIT."""
    return Part("cons", context(number), (part,))


def choice(*inside: Part, then: str = "") -> Part:
    """One of several."""
    return Part("choice", inside=inside, then=then)


class Grammar:
    """A compiled grammar; name is what errors call the bytes."""

    def __init__(self, name: str, root: Part) -> None:
        self.name = name
        self.ops: Sequence[Op] = _Compiler().compile(root)


class _Compiler:
    """The second half of scripts/asn1_compiler.c: render(), render_element(), render_out_of_line_list()."""

    def __init__(self) -> None:
        self._ops: list[Op] = []
        self._subroutines: list[Part] = []  # in the order of their first use
        self._of_part: dict[int, int] = {}  # a part's identity to its subroutine's place in that list

    def compile(self, root: Part) -> tuple[Op, ...]:
        self._render(root)
        self._ops.append(Op("complete"))
        starts: list[int] = []
        while len(starts) < len(self._subroutines):
            part = self._subroutines[len(starts)]
            starts.append(len(self._ops))
            self._body(part)
            self._ops.append(Op("return"))
        return tuple(op._replace(jump=starts[~op.jump]) if op.jump < 0 else op for op in self._ops)

    def _render(self, part: Part, *, alternative: int = 0) -> None:
        """One element; alternative counts those of a choice from 1."""
        skip, cond = part.skippable or alternative > 0, alternative > 1
        if part.kind == "choice":
            for number, one in enumerate(part.inside, 1):
                self._render(one, alternative=number)
            if not part.skippable:
                self._ops.append(Op("cond fail"))
        elif part.kind != "cons":
            self._ops.append(Op("match", part.tag, 0, part.act, cond, skip, part.kind == "any"))
        elif part.shared or skip:
            self._ops.append(Op("match", part.tag, ~self._subroutine(part), "", cond, skip))
        else:
            self._ops.append(Op("match", part.tag))
            self._body(part)
        if part.then:
            self._ops.append(Op("maybe act" if skip and part.kind != "choice" else "act", action=part.then))

    def _body(self, part: Part) -> None:
        """What is inside a constructed value, and its end."""
        start = len(self._ops)
        for one in part.inside:
            self._render(one)
        self._ops.append(Op("end", 0, start if part.repeats else 0, part.act))

    def _subroutine(self, part: Part) -> int:
        # What is used in several places is one object there, or one with another tag or action behind it.
        key = id(part.inside)
        if key not in self._of_part:
            self._of_part[key] = len(self._subroutines)
            self._subroutines.append(part)
        return self._of_part[key]
