"""The parts of these pages that are made from the program: commands, a scenario's keys, kernel options, the API.

What stands between `<!-- generated: WHAT -->` and `<!-- end -->` in a page is for who reads the page itself; it is
replaced when the pages are built. So is a line `.. generated: MODULE` in the API's.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import plain_docstrings
from sphinx.application import Sphinx

_MARK = re.compile(
    r"^(?:<!-- generated: (?P<page>[^>]+) -->\n.*?^<!-- end -->|\.\. generated: (?P<api>[^\n]+))$",
    re.DOTALL | re.MULTILINE,
)


# -- the command line ------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    import typer

    from kexecemu.cli import app

    return "\n".join(_command(typer.main.get_command(app), "kexecemu"))


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    members = getattr(command, "commands", None)
    if members is None or name != "kexecemu":
        yield f"{'#' * len(name.split())} {name}\n"
        yield from _paragraphs(command.help or "")
    if members is None:
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```text\n{name} {usage}\n```\n"
    records = [(_panel(one), one.get_help_record(context)) for one in command.params if not _hidden(one)]
    shown = [(panel, record) for panel, record in records if record]
    if shown:
        yield f"```{{program}} {name}\n```\n"
    # Those with a heading of their own first, as in --help; sorted() keeps their order.
    heading = ""
    for panel, (option, text) in sorted(shown, key=lambda one: not one[0] and one[1][0].startswith("-")):
        if panel != heading and option.startswith("-"):
            yield f"*{panel or 'Options'}*\n"
            heading = panel
        yield from _option(option, text)
    yield from _examples(getattr(command, "epilog", None) or "")
    for member, one in (members or {}).items():
        if not one.hidden:
            yield from _command(one, f"{name} {member}")


def _hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _panel(parameter: Any) -> str:
    """The heading that an option stands under, "" for none."""
    panel = getattr(parameter, "rich_help_panel", None)
    return panel if isinstance(panel, str) else ""


def _option(option: str, text: str) -> Iterator[str]:
    if option.startswith("-"):
        yield f"````{{option}} {option}\n{_marked(text)}\n````\n"
    else:
        name, _, kind = option.partition(" ")
        yield f"`{name}` {_marked(kind)}\n: {_marked(text)}\n"


def _examples(epilog: str) -> Iterator[str]:
    """Lines of commands, each with a line below it that says what it does; or any other text."""
    lines = [line.strip() for line in epilog.splitlines() if line.strip()]
    if lines and all(line.startswith("kexecemu ") for line in lines[::2]):
        block = "\n\n".join(f"# {what}\n{line}" for line, what in zip(lines[::2], lines[1::2], strict=True))
        yield f"*Examples*\n\n```sh\n{block}\n```\n"
    else:
        yield from _paragraphs(epilog)


def _marked(text: str) -> str:
    """Plain text in Markdown: signs that would mean something escaped, but what stands in backquotes is code."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    plain = [re.sub(r"([\\`*_<>\[\]{}|#])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(one for pair in zip(plain, [*pieces[1::2], ""], strict=True) for one in pair)


def _paragraphs(text: str) -> Iterator[str]:
    """A help text: paragraphs, and those that begin with \\b (or are indented) as they stand."""
    for block in re.split(r"\n[ \t]*\n", text.split("\f")[0].strip("\n")):
        if block.lstrip(" ").startswith("\b") or block.startswith("  "):
            lines = [line for line in block.replace("\b", "").splitlines() if line.strip()]
            indent = min(len(line) - len(line.lstrip()) for line in lines)
            yield "```text\n" + "\n".join(line[indent:].rstrip() for line in lines) + "\n```\n"
        elif block.strip():
            yield _marked(block) + "\n"


# -- a scenario's keys -----------------------------------------------------------------------------------------------


def scenario_keys() -> str:
    """Every table and key of a scenario file, from the types that read it."""
    import msgspec

    from kexecemu.scenario.schema import Scenario

    schema = msgspec.json.schema(Scenario)
    types = schema["$defs"]
    top = types["Scenario"]
    plain = {name: one for name, one in top["properties"].items() if not _table_of(one, types)}
    lines = ["### At the top\n", *_keys(plain, top, types)]
    for name, one in top["properties"].items():
        table = _table_of(one, types)
        if table is not None:
            title = f"[[{name}]]" if one.get("type") == "array" else f"[{name}]"
            about = re.sub(rf"^\[*{name}\]*: ", "", inspect.cleandoc(table.get("description", "")))
            lines += [f"### `{title}`\n", *_paragraphs(about[:1].upper() + about[1:])]
            if not about and one.get("description"):
                lines.append(_marked(one["description"]) + "\n")
            lines += _keys(table["properties"], table, types)
    return "\n".join(lines)


def _table_of(one: dict[str, Any], types: dict[str, Any]) -> dict[str, Any] | None:
    """The table that a key stands for, if it is one with keys of its own."""
    for part in [one, *one.get("anyOf", ()), one.get("items", {})]:
        found = types.get(part.get("$ref", "").removeprefix("#/$defs/"))
        if found is not None and "properties" in found:
            return found  # type: ignore[no-any-return]
    return None


def _keys(keys: dict[str, Any], table: dict[str, Any], types: dict[str, Any]) -> Iterator[str]:
    for name, one in keys.items():
        facts = [_kind(one, types)]
        if name in table.get("required", ()):
            facts.append("required")
        elif "otherwise" in one:
            facts.append(f"otherwise {_value(one['otherwise'])}")
        elif one.get("default") not in (None, [], (), {}, ""):
            facts.append(f"otherwise {_value(one['default'])}")
        if one.get("description"):
            yield f"`{name}` *{'; '.join(facts)}*\n: {_marked(one['description'])}"
        else:
            yield f"`{name}`\n: {'; '.join(facts)}"
        if one.get("examples"):
            yield f"\n    For example {', '.join(_value(example) for example in one['examples'])}."
        yield ""


def _value(value: Any) -> str:
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]"
    return f"`{text}`"


def _order(word: Any) -> list[tuple[int, str]]:
    """6.4 before 6.12."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(word))]


_KINDS = {"string": "text", "integer": "a number", "boolean": "true or false", "number": "a number"}


def _kind(one: dict[str, Any], types: dict[str, Any]) -> str:
    """In words what a value may be."""
    if "$ref" in one:
        return _kind(types[one["$ref"].removeprefix("#/$defs/")], types)
    if "anyOf" in one:
        parts = [_kind(part, types) for part in one["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in one:
        words = [_value(word) for word in sorted(one["enum"], key=_order)]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if "const" in one:
        return _value(one["const"])
    if one.get("type") == "array":
        return f"a list: {_kind(one.get('items', {}), types)}"
    if one.get("type") == "object":
        return "a table of names and values"
    bounds = [
        f"from {one['minimum']:g}" if "minimum" in one else "",
        f"to {one['maximum']:g}" if "maximum" in one else "",
    ]
    return " ".join([_KINDS.get(str(one.get("type")), "a value"), *filter(None, bounds)])


# -- kernel options and eras -----------------------------------------------------------------------------------------


def kernel_options() -> str:
    """The Kconfig names that the model knows, with their defaults and the comments beside them."""
    from kexecemu.kernel.base import config

    source = inspect.getsource(config)
    comments = {
        match[1]: match[2]
        for match in re.finditer(r'^    "(\w+)": "[^"]*",?\s*#\s*(.+)$', source, re.MULTILINE)
    }
    lines = []
    for name, default in config.KNOWN_OPTIONS.items():
        lines.append(
            f"`{name}`\n: otherwise `{default}`"
            + (f"; {_marked(comments[name])}" if name in comments else "")
        )
        lines.append("")
    return "\n".join(lines)


# -- the API ---------------------------------------------------------------------------------------------------------


def room(package: str) -> str:
    """The API of a package: its modules one by one, each with the names that it makes public."""
    top = importlib.import_module(package)
    names = [package]
    if hasattr(top, "__path__") and package != "kexecemu":
        names += [one.name for one in pkgutil.walk_packages(top.__path__, f"{package}.") if _is_python(one)]
    modules = [importlib.import_module(name) for name in sorted(names)]
    lines = []
    if not getattr(top, "__all__", ()):
        lines = [f".. py:module:: {package}", "", *plain_docstrings.to_rst(_doc_lines(top)), ""]
        modules.remove(top)
    for module in modules:
        if getattr(module, "__all__", ()) or hasattr(module, "__path__"):
            lines += _module(module)
    return "\n".join(lines)


def rest() -> str:
    """The API of every module and package that no other page of the API is about."""
    import kexecemu

    pages = Path(__file__).resolve().parent.parent.glob("api/*.rst")
    told = {
        match["api"].strip() for page in pages for match in _MARK.finditer(page.read_text()) if match["api"]
    }
    found = [
        f"kexecemu.{one.name}" for one in pkgutil.iter_modules(kexecemu.__path__) if one.name != "__main__"
    ]
    return "\n".join(room(name) for name in found if name not in told)


def _is_python(one: pkgutil.ModuleInfo) -> bool:
    # A folder may hold shared libraries that are none of Python's.
    return one.ispkg or "-" not in one.name


def _doc_lines(module: ModuleType) -> list[str]:
    return inspect.cleandoc(module.__doc__ or "").splitlines()


def _module(module: ModuleType) -> Iterator[str]:
    title = module.__name__
    yield from ["", title, "-" * len(title), "", f".. py:module:: {title}", ""]
    yield from plain_docstrings.to_rst(_doc_lines(module))
    values = _assigned(module)
    for name in getattr(module, "__all__", ()):
        yield from _member(module, name, values)


def _member(module: ModuleType, name: str, values: dict[str, str]) -> Iterator[str]:
    found = getattr(module, name)
    full = f"{module.__name__}.{name}"
    home = getattr(found, "__module__", module.__name__)
    own = home == module.__name__ or not str(home).startswith("kexecemu")
    yield f".. py:currentmodule:: {module.__name__}\n"
    if not own and name not in values:
        kind = "class" if inspect.isclass(found) else "function"
        role = "class" if inspect.isclass(found) else "func"
        yield f".. py:{kind}:: {name}\n"
        about = (inspect.getdoc(found) or "").split("\n\n")[0].splitlines()
        yield from [*("   " + line for line in plain_docstrings.to_rst(about))]
        yield f"   It is :py:{role}:`{home}.{found.__qualname__}`.\n"
    elif inspect.isclass(found) and name not in values:
        yield f".. autoclass:: {full}\n   :members:"
        if found.__bases__ != (object,):
            yield "   :show-inheritance:"
        if issubclass(found, enum.Enum):
            yield "   :undoc-members:"
        yield ""
    elif (inspect.isroutine(found) or hasattr(found, "__wrapped__")) and name not in values:
        yield f".. autofunction:: {full}\n"
    else:
        yield f".. py:data:: {name}"
        value = values.get(name) or (f"{found:#x}" if type(found) is int else "")
        if value and len(value) <= 80 and "\n" not in value:
            yield f"   :value: {value}"
        yield from ["", *("   " + line for line in plain_docstrings.to_rst([values.get(f"{name} doc", "")]))]


def _assigned(module: ModuleType) -> dict[str, str]:
    """The names that a module assigns, with the source of the value; "NAME doc" has the string or comment there."""
    source = inspect.getsource(module)
    lines, body = source.splitlines(), ast.parse(source).body
    found: dict[str, str] = {}
    for node, behind in zip(body, [*body[1:], None], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if (
            not isinstance(node, ast.Assign | ast.AnnAssign)
            or not isinstance(target, ast.Name)
            or node.value is None
        ):
            continue
        found[target.id] = ast.get_source_segment(source, node.value) or ""
        comment = re.search(r"\s#:? (.+)$", lines[(node.end_lineno or 1) - 1])
        above = list(
            itertools.takewhile(lambda line: line.startswith("# "), reversed(lines[: node.lineno - 1]))
        )
        if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            found[f"{target.id} doc"] = " ".join(str(behind.value.value).split())
        elif comment:
            found[f"{target.id} doc"] = comment[1]
        elif above and not above[0].startswith("# --"):
            found[f"{target.id} doc"] = " ".join(line[2:] for line in reversed(above))
    return found


# -- Sphinx ----------------------------------------------------------------------------------------------------------

_MADE: dict[str, str] = {}


def _make(_app: Sphinx) -> None:
    # Before any page is read: autodoc changes the signatures of what it has seen, and typer would read those.
    _MADE.update(
        {"commands": commands(), "scenario keys": scenario_keys(), "kernel options": kernel_options()}
    )


def _read(_app: Sphinx, _docname: str, source: list[str]) -> None:
    def made(match: re.Match[str]) -> str:
        if match["api"]:
            return rest() if match["api"].strip() == "rest" else room(match["api"].strip())
        return _MADE[match["page"]]

    source[0] = _MARK.sub(made, source[0])


def _all_modules() -> Iterator[ModuleType]:
    import kexecemu

    for one in pkgutil.walk_packages(kexecemu.__path__, "kexecemu."):
        if _is_python(one) and not one.name.endswith(".__main__"):
            yield importlib.import_module(one.name)


def _import_types(_app: Sphinx) -> None:
    """Do the imports that are for types alone, so that every annotation can be resolved to one name."""
    for module in list(_all_modules()):
        for node in ast.parse(inspect.getsource(module)).body:
            if (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            ):
                imports = [one for one in node.body if isinstance(one, ast.ImportFrom)]
                exec(compile(ast.Module(imports, []), str(module.__file__), "exec"), module.__dict__)


def _private(_app: Sphinx, _environment: Any, node: Any, shown: Any) -> Any:
    """A name that is there but not public is text without a link; what is not there at all remains a warning."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if not module.startswith("kexecemu"):
        return None
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    return shown if hasattr(home, name) and name not in getattr(home, "__all__", ()) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of pages."""
    app.connect("builder-inited", _make)
    app.connect("builder-inited", _import_types)
    app.connect("source-read", _read)
    app.connect("missing-reference", _private)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
