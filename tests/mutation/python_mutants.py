# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that can be put into kexecemu's Python: one place in the syntax tree, one change each."""

from __future__ import annotations

import ast
import copy
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutants import ROOT, rows_of

HERE = Path(__file__).parent
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
ERRNOS = {
    "EINVAL": "ENOEXEC", "ENOEXEC": "EINVAL", "ENOMEM": "EINVAL", "EADDRNOTAVAIL": "EINVAL", "EPERM": "EACCES",
    "EACCES": "EPERM", "EBUSY": "EINVAL", "ENOKEY": "EKEYREJECTED", "EKEYREJECTED": "ENOKEY", "ELIBBAD": "ENODATA",
    "ENODATA": "ELIBBAD", "EMSGSIZE": "ELIBBAD", "EBADMSG": "EINVAL", "ENOENT": "EINVAL", "ENOSYS": "EPERM",
}  # fmt: skip


@dataclass(frozen=True)
class PythonMutant:
    """One change: text is the whole module with it; old and new are its line before and after."""

    path: str  # from the root of the checkout
    function: str  # qualified name, "" for what a module or a class does as it is imported
    line: int
    kind: str
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.old} -> {self.new}"

    @property
    def key(self) -> str:
        """As in the file of equivalent ones: without the line's number, which changes."""
        return "\t| ".join((self.path, self.function, self.old, self.new))

    @property
    def name(self) -> str:
        """Of this very module with this very change."""
        return hashlib.sha256(f"{self.path}\0{self.text}".encode()).hexdigest()[:32]


class Source:
    """A module that can be changed in one place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = (ROOT / path).read_bytes()
        self.tree = ast.parse(self.data)
        self.dump = ast.dump(self.tree)
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = [line.strip() for line in self.data.decode().splitlines()]
        self.functions = functions_of(self.tree)

    def function_at(self, line: int) -> str:
        """The innermost function of a line."""
        return next((name for first, last, name in reversed(self.functions) if first <= line <= last), "")

    def becomes(self, node: ast.expr | ast.stmt, kind: str, new: str) -> PythonMutant | None:
        """This source with a node written anew; None where that is no Python, or means the same."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        text = (self.data[:start] + new.encode() + self.data[end:]).decode()
        try:
            if ast.dump(ast.parse(text)) == self.dump:
                return None
        except (SyntaxError, ValueError):
            return None
        # Statements over several lines are shown as one.
        before = self.data[self.starts[node.lineno - 1] : start].decode()
        after = self.data[end : self.starts[node.end_lineno]].decode()
        old = " ".join(
            self.data[self.starts[node.lineno - 1] : self.starts[node.end_lineno]].decode().split()
        )
        shown = " ".join((before + new + after).split())
        function = self.function_at(node.lineno)
        return PythonMutant(self.path, function, node.lineno, kind, old, shown, text)

    def line_becomes(self, old: str, new: str) -> PythonMutant:
        """With one whole line written anew, the first that is like that."""
        if old not in self.lines:
            raise SystemExit(f"no such line in {self.path}: {old}")
        number = self.lines.index(old) + 1
        start, end = self.starts[number - 1], self.starts[number]
        text = (
            self.data[:start].decode()
            + self.data[start:end].decode().replace(old, new)
            + self.data[end:].decode()
        )
        compile(text, self.path, "exec")
        return PythonMutant(self.path, self.function_at(number), number, "by hand", old, new, text)


def functions_of(tree: ast.Module) -> list[tuple[int, int, str]]:
    """Lines, both included, and qualified name of every function, outer ones first."""
    found: list[tuple[int, int, str]] = []

    def walk(node: ast.AST, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = above
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{above}.{child.name}".lstrip(".")
                if not isinstance(child, ast.ClassDef):
                    found.append((child.body[0].lineno, child.end_lineno or 0, name))
            walk(child, name)

    walk(tree, "")
    return sorted(found, key=lambda one: (one[0], -one[1]))


def enums() -> dict[str, list[str]]:
    """The members of every enumeration of the house, by its name."""
    found = {}
    for path in sorted((ROOT / "kexecemu").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
                targets = [one for part in node.body if isinstance(part, ast.Assign) for one in part.targets]
                found[node.name] = [one.id for one in targets if isinstance(one, ast.Name)]
    return found


Change = tuple[ast.expr | ast.stmt, str, str]


def changes(node: ast.AST, boolean: bool, known: dict[str, list[str]]) -> Iterator[Change]:
    """What can be done to one node; boolean: the function returns one."""

    def other(**fields: object) -> str:
        changed = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(changed, name, value)
        text = ast.unparse(changed)
        return f"({text})" if isinstance(node, ast.expr) else text

    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                for new in COMPARISONS[type(operator)]:
                    yield node, "compare", other(ops=[*node.ops[:index], new(), *node.ops[index + 1 :]])
        case ast.BinOp() if type(node.op) in ARITHMETIC and not is_text(node.left):
            yield node, "arithmetic", other(op=ARITHMETIC[type(node.op)]())
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield node, "arithmetic", other(op=ARITHMETIC[type(node.op)]())
            yield node, "dropped", "pass"
        case ast.BoolOp():
            yield node, "boolean", other(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for index in range(len(node.values)):
                rest = node.values[:index] + node.values[index + 1 :]
                yield node, "boolean", f"({ast.unparse(rest[0])})" if len(rest) == 1 else other(values=rest)
        case ast.UnaryOp(op=ast.Not()):
            yield node, "boolean", f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool(value)):
            yield node, "constant", str(not value)
        case ast.Constant(value=int(value)):
            yield from ((node, "constant", f"({value + step})") for step in (1, -1))
        case ast.Return(value=None) | ast.Raise() | ast.Continue() | ast.Break():
            yield node, "dropped", "pass"
        case ast.Return(value=ast.expr() as value) if not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            yield node, "return", f"return not ({ast.unparse(value)})" if boolean else "return None"
        case ast.If() | ast.IfExp():
            yield from ((node.test, "condition", word) for word in ("True", "False"))
        case ast.While():
            yield node.test, "condition", "False"
        case ast.Expr(value=value) if not isinstance(value, ast.Constant):
            yield node, "dropped", "pass"
        case ast.Assign(targets=targets) if all(
            isinstance(one, ast.Attribute | ast.Subscript) for one in targets
        ):
            yield node, "dropped", "pass"
        case ast.Call(func=ast.Name(id="min" | "max")):
            pass  # in whichever order
        case ast.Call(args=[first, second, *rest]) if not any(
            isinstance(one, ast.Starred) for one in node.args
        ):
            yield node, "swapped", other(args=[second, first, *rest])
        case ast.Attribute(value=ast.Name(id=name)) if node.attr in known.get(name, ()):
            yield from ((node, "member", f"{name}.{one}") for one in known[name] if one != node.attr)
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES or name in ERRNOS:
            yield node, "name", NAMES.get(name) or f"__import__('errno').{ERRNOS[name]}"
    if isinstance(node, ast.comprehension):
        yield from ((one, "condition", "True") for one in node.ifs)


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def visited(node: ast.AST, boolean: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """The nodes that do something: no imports, annotations, texts of errors, asserts, protocols."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
        return
    children = list(ast.iter_child_nodes(node))
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            boolean = node.returns is not None and ast.unparse(node.returns) == "bool"
            defaults = [one for one in node.args.kw_defaults if one is not None]
            children = [*node.args.defaults, *defaults, *node.body]
        case ast.ClassDef() if any("Protocol" in ast.unparse(base) for base in node.bases):
            return
        case ast.ClassDef():
            children = list(node.body)
        case ast.AnnAssign():
            children = [node.value] if node.value is not None else []
        case ast.Raise(exc=ast.Call() as call):
            children = [one for one in call.args if not isinstance(one, ast.Constant)]
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AugAssign(target=ast.Name(id="__all__")):
            return
    yield node, boolean
    for child in children:
        yield from visited(child, boolean)


def of_source(source: Source, known: dict[str, list[str]]) -> dict[str, list[Change]]:
    """All of a module's changes, by their kinds."""
    found: dict[str, list[Change]] = {}
    for node, boolean in visited(source.tree):
        for change in changes(node, boolean, known):
            found.setdefault(change[1], []).append(change)
    return found


def sources(rooms: Sequence[str]) -> list[str]:
    """The modules of these rooms, or these modules: names below kexecemu/, with no end."""
    found: list[str] = []
    for room in rooms:
        path = ROOT / "kexecemu" / room
        paths = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        if not all(one.is_file() for one in paths):
            raise SystemExit(f"no room kexecemu/{room}, and no module")
        found += [str(one.relative_to(ROOT)) for one in paths if one.name != "__init__.py"]
    return list(dict.fromkeys(found))


def drawn(paths: Sequence[str], count: int, seed: int) -> list[PythonMutant]:
    """So many mutants, one a line, of each kind about as many as there are kinds that are left; 0: all that there are.

    A module is drawn by its number of lines, then a kind, then one of its mutants.
    """
    draw, known = random.Random(seed), enums()
    loaded = [Source(path) for path in paths]
    weights = [len(one.lines) for one in loaded]
    if not count:
        every = [
            (one, change) for one in loaded for kind in of_source(one, known).values() for change in kind
        ]
        return [mutant for one, change in every if (mutant := one.becomes(*change)) is not None]
    left: dict[str, dict[str, list[Change]]] = {}
    found: dict[tuple[str, int], PythonMutant] = {}
    while len(found) < count and any(weights):
        (number,) = draw.choices(range(len(loaded)), weights)
        source = loaded[number]
        if source.path not in left:
            left[source.path] = of_source(source, known)
        kinds = left[source.path]
        if not kinds:
            weights[number] = 0
            continue
        kind = draw.choice(sorted(kinds))
        mutant = source.becomes(*kinds[kind].pop(draw.randrange(len(kinds[kind]))))
        if not kinds[kind]:
            del kinds[kind]
        if mutant is not None:
            found.setdefault((mutant.path, mutant.line), mutant)
    return list(found.values())


def by_hand() -> list[PythonMutant]:
    """Faults of kinds that once went unnoticed."""
    return [Source(path).line_becomes(old, new) for path, old, new in rows_of(HERE / "rooms_by_hand.txt", 3)]


def equivalents() -> dict[str, str]:
    """Mutants that no run can tell from the original, by their keys: the reason."""
    return {"\t| ".join(row[:4]): row[4] for row in rows_of(HERE / "rooms_equivalent.txt", 5)}
