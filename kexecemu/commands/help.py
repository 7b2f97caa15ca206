"""How the command line explains itself: commands by groups, options by kinds, examples, and what was wrong in one line.

The summaries are never cut off: a line that is too long goes on under its column.
"""

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

from kexecemu.suggest import did_you_mean, there_are

__all__ = ["HelpfulCommand", "HelpfulGroup", "add_command", "usage_text"]

_NAMES = {"help_option_names": ["-h", "--help"]}
_EXTRA = re.compile(r"unexpected extra argument\S* \(([^\s)]+)")


def add_command(app: Any, name: str, command: Any, group: str, examples: str) -> None:
    """Make a function a command of an app: its docstring is the help, `group` the heading that it stands under.

    examples are commands as they are typed, each with what it does in the line below.
    """
    added = app.command(
        name, cls=HelpfulCommand, rich_help_panel=group, epilog=examples, context_settings=_NAMES
    )
    added(command)


def _write_sections(formatter: Any, pairs: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Headings with two columns under each; all lists of a page have the second one at the same place."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for title, row in pairs:
        sections.setdefault(title, []).append(row)
    fitting = [len(first) for rows in sections.values() for first, _ in rows if len(first) <= 30]
    widest = max(fitting, default=0)
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl([(first.ljust(widest), second) for first, second in rows])


def _title(param: Any) -> str:
    panel = getattr(param, "rich_help_panel", None)
    return panel or ("Arguments" if param.param_type_name == "argument" else "Options")


def _argument_name(param: Any) -> str:
    name = (param.metavar or param.name or "").upper() + ("..." if param.nargs != 1 else "")
    return name if param.required else f"[{name}]"


def _record(param: Any, ctx: Any) -> tuple[str, str] | None:
    record: tuple[str, str] | None = param.get_help_record(ctx)
    named = record is not None and param.param_type_name == "argument"
    return (_argument_name(param), param.help or "") if named else record


class _Helpful:
    """What commands and groups have in common."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command's name in the line of its usage."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        names: dict[str, str] = {}
        for one in self.params:  # type: ignore[attr-defined]
            if one.param_type_name == "argument":
                names |= dict.fromkeys(one.get_usage_pieces(ctx), _argument_name(one))
        return [names.get(piece, piece) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options under their headings, and the commands of a group."""
        records = [(_title(one), _record(one, ctx)) for one in self.get_params(ctx)]  # type: ignore[attr-defined]
        pairs = [(title, record) for title, record in records if record is not None]
        # The general ones come last, behind those that have a heading of their own.
        pairs.sort(key=lambda pair: (pair[0] != "Arguments", pair[0] == "Options"))
        _write_sections(formatter, [*self._commands(ctx), *pairs])

    def _commands(self, ctx: Any) -> list[tuple[str, tuple[str, str]]]:
        return []

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, as they can be pasted."""
        lines = (self.epilog or "").splitlines()  # type: ignore[attr-defined]
        if not lines:
            return
        with formatter.section("Examples"):
            for line, what in zip(lines[::2], lines[1::2], strict=True):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                with formatter.indentation():
                    formatter.indent()
                    formatter.write_text(what)
                    formatter.dedent()


class HelpfulCommand(_Helpful, TyperCommand):
    """A command of kexecemu."""


class HelpfulGroup(_Helpful, TyperGroup):
    """kexecemu itself, or a command that has commands. Alone it prints its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in any group; without a word it is the help that is wanted."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help())
            ctx.exit(0)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order in which they were added."""
        return list(self.commands)

    def _commands(self, ctx: Any) -> list[tuple[str, tuple[str, str]]]:
        found = []
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            summary = " ".join((command.help or "").split("\n\n")[0].split())
            found.append((command.rich_help_panel or "Commands", (name, summary)))
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is meant; what is none is answered with those that there are."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command {name!r}{there_are(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def usage_text(error: Any) -> str:
    """A wrong use of the command line in one line: what is wrong, and where it is explained.

    error is one of click's, which typer carries in one module or another depending on its version; so do its words.
    """
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    option = str(getattr(error, "option_name", ""))
    words: str = error.format_message().rstrip(".")
    kind = type(error).__name__
    if kind == "BadOptionUsage":
        return f"{option} takes no value" if "not take" in words else f"{option} needs a value"
    named = ""
    if param is not None:
        named = _argument_name(param) if param.param_type_name == "argument" else param.opts[0]
    if kind == "BadParameter":
        return f"{named}: {error.message.rstrip('.')}"
    if kind == "MissingParameter":
        words = f"{named} is missing"
    elif kind == "NoSuchOption":
        known = [name for one in ctx.command.get_params(ctx) for name in one.opts] if ctx is not None else []
        words = f"no option {option}{did_you_mean(option, known)}"
    elif (extra := _EXTRA.search(words)) is not None:
        words = f"{extra[1]!r} is one argument too many"
    if ctx is None:
        return words
    _, _, command = ctx.command_path.partition(" ")
    return f"{command}{': ' if command else ''}{words}; see {ctx.command_path} --help"
