"""The HTML pages: templates that escape everything that they are given, with filters for what they all show."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from kexecemu.report.campaign_words import interval_text, share_text
from kexecemu.report.picture import size_text
from kexecemu.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_page"]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("kexecemu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "size": size_text,
        "share": share_text,
        "between": interval_text,
        "number": "{:,}".format,
    }
    return found


def render_page(template: str, **values: Any) -> str:
    """The document that a template makes of values, with nothing in it that is not to be seen."""
    return visible(_environment().get_template(template).render(**values))
