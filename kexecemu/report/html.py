"""One run as one self-contained HTML file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from kexecemu.scenario.runner import Result

__all__ = ["render"]


def render(result: Result) -> str:
    """The report of a run as one HTML document that needs nothing from outside itself."""
    environment = Environment(
        loader=PackageLoader("kexecemu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.html").render(result=result, end=result.end)
