"""A page as Python's own HTML parser sees it, for tests of reports."""

from __future__ import annotations

from html.parser import HTMLParser

__all__ = ["NestedPage", "Page"]


class NestedPage(HTMLParser):
    """Tags with attributes, and what was not closed in order. Subclasses say which may go without an end, and look."""

    void: frozenset[str] = frozenset()
    """Elements of HTML that have no end tag."""
    svg_empty: frozenset[str] = frozenset()
    """Foreign elements that may close themselves: HTML ignores the slash."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.svg_empty:
            self.misnested.append(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misnested.append(f"</{tag}>")


class Page(NestedPage):
    """And rows of tables, text, and commands to copy."""

    void = frozenset({"meta", "br"})
    svg_empty = frozenset({"rect", "circle", "path", "line"})

    def __init__(self, document: str) -> None:
        self.rows: list[list[str]] = []
        self.commands: list[str] = []
        self.in_command = False
        self.text = ""
        super().__init__(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "code":
            self.in_command = ("class", "command") in attrs
            self.commands += [""] if self.in_command else []

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if ("td" in self.open or "th" in self.open) and "svg" not in self.open:
            self.rows[-1][-1] += data
        if self.open[-1:] == ["code"] and self.in_command:
            self.commands[-1] += data

    def row(self, *begin: str) -> list[str]:
        """The first row that begins with these cells."""
        return next(row for row in self.rows if tuple(row[: len(begin)]) == begin)

    def having(self, css: str) -> list[dict[str, str | None]]:
        """The attributes of all tags that have a class."""
        return [one for _, one in self.tags if css in str(one.get("class", "")).split()]
