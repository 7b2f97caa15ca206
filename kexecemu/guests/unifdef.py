"""The purgatory's sources without some of its options: nothing is left of what a kernel does not take.

One source serves the emulator and Linux, but a patch for Linux holds no hook for what is not in it. An option that is
off leaves empty functions (and empty assembler macros) behind, so it can be taken out by rule: its conditional blocks
go, then those empty functions, then the calls of them, which stand as statements on lines of their own. What is left
compiles to the same object as the whole with the option off; a test holds it to that.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from kexecemu.guests.purgatory import OPTIONS

__all__ = ["without_options"]

# Defined by options.h where one of these is.
_DERIVED = {
    "PURGATORY_CALLER": ("policy", "early"),
    "PURGATORY_TRAP": ("policy", "early", "report", "record"),
    "PURGATORY_STATE": ("policy", "early", "record"),
}

_DIRECTIVE = re.compile(r"\s*#\s*(ifdef|ifndef|if|else|endif)\b\s*(.*?)\s*(?:/\*.*\*/\s*)?$", re.S)
_EMPTY_FUNCTION = re.compile(r"static inline (\w+) (\w+)\(.*\)\s*\{ (?:return 0; )?\}$")
_OF_OPTIONS = re.compile(
    r"^ \* Options: .*\n(?: \* .*\n)*(?: \*\n(?= \* ))?", re.M
)  # a paragraph of a comment
_EMPTY_MACRO = re.compile(r"\t\.macro\t(\w+)[^\n]*\n\t\.endm")

_Known = Mapping[str, bool]


def without_options(
    sources: Mapping[str, str], kept: Set[str], *, kernel: bool, gcs: bool = True
) -> dict[str, str]:
    """The sources, by their names, without the options that are not in kept.

    kernel says whether __KERNEL__ is defined, gcs whether that kernel knows guarded control stacks.
    """
    known = {f"PURGATORY_{name.upper()}": False for name in OPTIONS if name not in kept} | {
        "__KERNEL__": kernel,
        "PURGATORY_NO_GCS": not gcs,
    }
    known |= {macro: False for macro, options in _DERIVED.items() if not kept & set(options)}
    texts = {name: _conditionals(text, known) for name, text in sources.items()}
    texts = _without_empty(texts)
    gone = tuple(f" * {name}\t" for name in known)
    for name, text in texts.items():
        lines = (line for line in text.splitlines(keepends=True) if not line.startswith(gone))
        left = "".join(lines)
        texts[name] = _tidy(left if kept else _OF_OPTIONS.sub("", left))
    return texts


# -- conditional blocks ----------------------------------------------------------------------------------------------


@dataclass
class _Block:
    """One #if: what is known of its condition, and the lines of its branches."""

    opening: str
    value: bool | None
    branches: list[list[str]] = field(default_factory=lambda: [[]])


def _conditionals(text: str, known: _Known) -> str:
    """The text with every condition that is known resolved, and the others as short as they get."""
    stack = [_Block("", True)]
    for line in _logical_lines(text):
        found = _DIRECTIVE.match(line)
        if found is None:
            stack[-1].branches[-1].append(line)
            continue
        word, rest = found.groups()
        if word == "else":
            stack[-1].branches.append([line])
        elif word == "endif":
            block = stack.pop()
            stack[-1].branches[-1].extend(_resolved(block, line))
        else:
            stack.append(_opened(word, rest, line, known))
    [whole] = stack
    return "".join(whole.branches[0])


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with those that a directive goes on to behind a backslash."""
    waiting = ""
    for line in text.splitlines(keepends=True):
        waiting += line
        if waiting.lstrip().startswith("#") and waiting.endswith("\\\n"):
            continue
        yield waiting
        waiting = ""


def _opened(word: str, rest: str, line: str, known: _Known) -> _Block:
    if word != "if":
        value = known.get(rest)
        return _Block(line, value if value is None or word == "ifdef" else not value)
    expression = " ".join(rest.replace("\\\n", " ").split())
    value, short = _simplified(expression, known)
    if value is not None or short == expression:
        return _Block(line, value)
    alone = re.fullmatch(r"(!?)defined\((\w+)\)", short)
    return _Block(f"#if{'n' if alone[1] else ''}def {alone[2]}\n" if alone else f"#if {short}\n", None)


def _resolved(block: _Block, closing: str) -> list[str]:
    first, *others = block.branches
    if block.value is None:
        return [block.opening, *first, *(line for branch in others for line in branch), closing]
    if block.value:
        return first
    return others[0][1:] if others else []


def _simplified(expression: str, known: _Known) -> tuple[bool | None, str]:
    """Of defined(), !, && and ||, the latter two not mixed without parentheses: its value, or what is left of it."""
    for operator, decides in (("||", True), ("&&", False)):
        parts = _parts(expression, operator)
        if len(parts) == 1:
            continue
        results = [_simplified(part, known) for part in parts]
        if any(value is decides for value, _ in results):
            return decides, ""
        left = [short for value, short in results if value is None]
        return (None, f" {operator} ".join(left)) if left else (not decides, "")
    if expression.startswith("!"):
        value, short = _simplified(expression[1:], known)
        return (None, f"!{short}") if value is None else (not value, "")
    if expression.startswith("(") and expression.endswith(")"):
        value, short = _simplified(expression[1:-1], known)
        return value, f"({short})" if "|" in short or "&" in short else short
    name = re.fullmatch(r"defined\((\w+)\)", expression)
    if name is None:
        return None, expression
    return known.get(name[1]), expression


def _parts(expression: str, operator: str) -> list[str]:
    """The operands outside of parentheses."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(expression):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth and expression.startswith(operator, at):
            parts.append(expression[start:at].strip())
            start = at + len(operator)
    return [*parts, expression[start:].strip()]


# -- what is empty now -----------------------------------------------------------------------------------------------


def _without_empty(texts: Mapping[str, str]) -> dict[str, str]:
    """Without functions that do nothing and are outside of any condition, and the statements that call them.

    One that returns 0 stays where something is made of that.
    """
    texts = dict(texts)
    macros = [one for text in texts.values() for one in _EMPTY_MACRO.findall("\n".join(_always(text)))]
    for macro in macros:
        definition = re.compile(rf"\t\.macro\t{macro}\b.*\n\t\.endm\n")
        use = re.compile(rf"^\t{macro}\b.*\n", re.M)
        texts = {name: use.sub("", definition.sub("", text)) for name, text in texts.items()}
    empty = [
        found[2]
        for text in texts.values()
        for line in _always(text)
        if (found := _EMPTY_FUNCTION.match(line))
    ]
    for function in empty:
        calls = re.compile(rf"^\t+{function}\((?:[^;]*)\);\n", re.M)
        definition = re.compile(rf"^static inline \w+ {function}\(.*\n", re.M)
        without = {name: calls.sub("", text) for name, text in texts.items()}
        bare = {name: definition.sub("", text) for name, text in without.items()}
        used = any(re.search(rf"\b{function}\(", text) for text in bare.values())
        texts = without if used else bare
    return texts


def _always(text: str) -> Iterator[str]:
    """The lines that are under no condition but the header's guard and that it is not assembly."""
    depth: list[bool] = []
    for line in text.splitlines():
        found = _DIRECTIVE.match(line)
        if found is None:
            if not any(depth):
                yield line
        elif found[1] == "endif":
            depth.pop()
        elif found[1] != "else":
            depth.append(not found[2].endswith("_H") and found[2] != "__ASSEMBLER__")


def _tidy(text: str) -> str:
    """As the kernel wants it: no blank lines in pairs or inside of braces, no braces around one statement."""
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"
    text = re.sub(r"\{\n\n", "{\n", text)
    text = re.sub(r"\n\n(\t*\})", r"\n\1", text)
    text = re.sub(r"(?:\n \*)+\n \*/", "\n */", text)
    # One statement is left between braces: without them, as the kernel wants it.
    return re.sub(r"(\n(\t+)(?:for|if|while) [^\n]*\)) \{(\n[^\n{}]*;\n)\2\}\n", r"\1\3", text)
