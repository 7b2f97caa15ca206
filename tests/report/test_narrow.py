"""The reports on a telephone, 390 pixels wide: nothing is cut off, whatever is too wide can be scrolled and says so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign_summaries import made_up_comparison, made_up_summary
from html_page import NestedPage

from kexecemu.report.campaign_html import render_campaign, render_comparison
from kexecemu.report.html import render

REPORTS: dict[str, Callable[..., str]] = {
    "run": lambda run: render(run("dma-under-pte")),
    "campaign": lambda run: render_campaign(made_up_summary()),
    "comparison": lambda run: render_comparison(made_up_comparison()),
}
WIDTH = 390
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# In a frame of that width: what reaches beyond it and cannot be scrolled, and the tables that have to be.
LOOK = """
<body><script>
const frame = document.createElement("iframe");
frame.width = WIDTH; frame.height = 800; frame.style.border = 0; frame.src = "report.html";
frame.onload = () => {
  const page = frame.contentDocument, style = one => frame.contentWindow.getComputedStyle(one);
  const scrolls = one => { for (one = one.parentElement; one; one = one.parentElement)
    if (["auto", "scroll"].includes(style(one).overflowX)) return true; return false; };
  const cut = [...page.querySelectorAll("body *")].filter(one =>
    one.getBoundingClientRect().right > WIDTH + 1 && !one.closest("svg") && !scrolls(one));
  const wide = [...page.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1);
  const found = document.createElement("pre");
  found.textContent = JSON.stringify({
    width: page.documentElement.scrollWidth, cut: cut.map(one => one.outerHTML.slice(0, 80)),
    wide: wide.map(one => one.firstElementChild.className) });
  document.body.append(found);
};
document.body.append(frame);
</script>
"""


class _Tables(NestedPage):
    """What each table is in, and the cells of those that become blocks."""

    void = frozenset({"meta", "br"})
    svg_empty = frozenset({"rect", "circle", "path", "line", "polygon"})

    def __init__(self, document: str) -> None:
        self.around: list[str] = []
        self.tables: list[tuple[str, str]] = []
        self.cells: list[dict[str, str | None]] = []
        super().__init__(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        css = str(dict(attrs).get("class") or "")
        if tag == "table":
            self.tables.append((css, self.around[-1]))
        if tag == "td" and "stack" in self.tables[-1][0].split():
            self.cells.append(dict(attrs))
        if tag not in self.void:
            self.around.append(css)

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        self.around.pop()


@pytest.mark.parametrize("name", REPORTS)
def test_every_table_can_be_scrolled_or_is_made_for_a_narrow_screen(name, run):
    document = REPORTS[name](run)
    page = _Tables(document)
    narrow = re.search(r"@media \(max-width: 34rem\) \{\n(.*?)\n\}", document, re.DOTALL)
    assert narrow and page.tables
    for css, around in page.tables:
        assert around == "scroll" or f".{css}" in narrow[1] or css == "phases", css
    assert ".scroll { overflow-x: auto;" in document


@pytest.mark.parametrize("name", ["run", "campaign"])
def test_a_row_that_becomes_a_block_names_its_values(name, run):
    page = _Tables(REPORTS[name](run))
    assert page.cells
    for number, cell in enumerate(page.cells):
        named = cell.get("data-is") or "purpose" in str(cell.get("class"))
        assert named or cell.get("class") == "nowrap", f"cell {number}: {cell}"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(
    ("name", "wide"),
    [("run", []), ("campaign", ["matrix pairs", "matrix"]), ("comparison", ["matrix pairs"])],
)
def test_a_browser_of_390_pixels_cuts_nothing_off(name: str, wide: list[str], run, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(REPORTS[name](run))
    look = tmp_path / "look.html"
    look.write_text(LOOK.replace("WIDTH", str(WIDTH)))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--allow-file-access-from-files", "--virtual-time-budget=8000", "--dump-dom", look.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert shown, done.stderr
    found = json.loads(shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["width"] <= WIDTH
    assert found["cut"] == []
    # Counts by outcome are as broad as there are outcomes; all else is folded.
    assert found["wide"] == wide
