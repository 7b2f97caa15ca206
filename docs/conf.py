"""Sphinx's settings for these pages; .ci/docs builds them, without a warning."""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "kexecemu"
author = "the kexecemu authors"
copyright = "GPL-2.0-or-later"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "plain_docstrings", "generated_pages"]
exclude_patterns = ["_build"]
nitpicky = True
# Python's own names and other packages' have no page here.
# Keys of scenarios are Annotated with their description, which is no class of ours.
nitpick_ignore_regex = [(r"py:.*", r"(?!kexecemu\.).*"), (r"py:class", r".*\.Annotated")]
# A name that the package hands on is where it is made, and in the package too.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "kexecemu"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def setup(app: Sphinx) -> None:
    """Commands are shown as they are typed: a shell's colours make noise of numbers and options."""
    app.add_lexer("sh", TextLexer)
