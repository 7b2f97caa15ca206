"""Everything of kexecemu's that can be got at from some objects, one of each class: what a user meets at a prompt."""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import kexecemu

LIMIT = 2000
"""Characters that a repr() may have at most."""


def ours(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "kexecemu" and not isinstance(
        value, enum.Enum | BaseException | type
    )


def public_classes() -> set[type]:
    """Every class in a module's __all__."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(kexecemu.__path__, "kexecemu."):
        if "blockcount-" in module.name or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            if isinstance(getattr(loaded, name), type):
                found.add(getattr(loaded, name))
    return found


def _inside(value: object) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from list(value.values())[:50]
    elif isinstance(value, list | tuple | Set):
        yield from list(value)[:50]
    if ours(value):
        yield from vars(value).values() if hasattr(value, "__dict__") else ()
        for kind in type(value).__mro__:
            for name in getattr(kind, "__slots__", ()):
                yield getattr(value, name, None)
        for name in getattr(value, "__struct_fields__", ()):
            yield getattr(value, name)


def one_of_each(roots: Iterable[object]) -> dict[type, object]:
    """The first object of each class on the way from the roots, nearest first."""
    found: dict[type, object] = {}
    seen: set[int] = set()
    left = deque(roots)
    while left:
        value = left.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if ours(value):
            found.setdefault(type(value), value)
        left.extend(_inside(value))
    return found


def unfit(objects: Iterable[object]) -> list[str]:
    """What is wrong with the repr() of some objects, in words."""
    wrong = []
    for value in objects:
        text, name = repr(value), type(value).__name__
        if len(text) >= LIMIT:
            wrong.append(f"{name}: {len(text)} characters")
        if len(text.splitlines()) > 40:
            wrong.append(f"{name}: {len(text.splitlines())} lines")
        if type(value) in PUBLIC and f"object at {id(value):#x}" in text:
            wrong.append(f"{name}: says where it is and not what")
    return wrong


PUBLIC = public_classes()
