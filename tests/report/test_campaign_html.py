"""The report of a campaign: whole, well-formed, safe, the same each time, and with every number where it belongs."""

from __future__ import annotations

import math
import re

import pytest
from campaign_summaries import disagreeing, made_up_summary
from html_page import Page

from kexecemu.campaign.stats import Figure, Interval, clopper_pearson
from kexecemu.campaign.summary import AreaHits
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_html import render_campaign
from kexecemu.report.campaign_picture import AXIS_WIDTH, STRIP_WIDTH, axis_of, strip_of
from kexecemu.report.campaign_words import dump_headline

_FETCHING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}


@pytest.fixture(scope="module")
def summary():
    return made_up_summary()


@pytest.fixture(scope="module")
def document(summary) -> str:
    return render_campaign(summary)


@pytest.fixture(scope="module")
def page(document) -> Page:
    return Page(document)


@pytest.mark.parametrize("make", [made_up_summary, disagreeing, lambda: made_up_summary(faults=3)])
def test_the_page_is_well_formed(make):
    page = Page(render_campaign(make()))
    assert page.misnested == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_asks_for_nothing_from_outside_and_has_no_script(document, page):
    assert not _FETCHING & {tag for tag, _ in page.tags}
    assert "http" not in document.lower()
    assert "@import" not in document
    assert not [one for one in re.findall(r"url\(([^)]*)\)", document) if not one.startswith("#")]
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]


def test_equal_campaigns_give_equal_pages_whatever_the_clock_said(document):
    assert render_campaign(made_up_summary(seconds=77.7, audit_seconds=0.1)) == document
    assert render_campaign(made_up_summary(seed=2)) != document


def test_dark_is_there_for_those_who_ask_for_it(document):
    dark = document[document.index("prefers-color-scheme: dark", document.index("--captured")) :]
    for outcome in Outcome:
        assert f"--{outcome.value}: #" in dark[: dark.index("}\n}")]


def test_words_of_the_scenario_and_of_faults_are_escaped(page, document):
    assert "with <purgatory> & without page protection" in page.text
    assert "engine: <unmapped> & lost" in page.text
    assert "<purgatory>" not in document


def test_what_was_run_stands_on_top_with_what_the_figures_rest_on(summary, page):
    for part in ("campaign-16m", "20,000", "3,298,534,883,328", "uniform-1", "0.1.0", "5f2c9b1e5f2c"):
        assert part in page.text[: page.text.index("Outcomes")]
    based = re.findall(r"Based on ([^\n]*)", page.text)
    assert len(based) >= 5
    for line in based:
        for part in ("20,000", "3,298,534,883,328", "uniform-1", "seed 1", "0.1.0", "5f2c9b1e5f2c"):
            assert part in line


def test_every_outcome_has_a_row_with_count_share_and_interval(summary, page):
    for outcome in Outcome:
        row = page.row(outcome.value, f"{summary.outcomes[outcome]:,}")
        assert row[5] == outcome.meaning
        if summary.outcomes[outcome]:
            ends = [100 * end for end in clopper_pearson(summary.outcomes[outcome], 20_000)]
            shown = [float(word) for word in re.findall(r"[\d.]+", row[4])]
            assert shown == pytest.approx(ends, rel=0.02, abs=0.06)
        else:
            assert (row[3], row[4]) == ("none", "at most 0.015 %")


def test_all_counts_by_each_dimension_are_there(summary, page):
    columns = [one.value for one in Outcome if summary.outcomes[one]]
    for table in summary.by.values():
        for key, counts in table.items():
            wanted = [f"{counts.get(one, 0):,}" for one in columns] + [f"{sum(counts.values()):,}"]
            assert any(row[0].startswith(key) and row[1:] == wanted for row in page.rows)


def test_the_worst_can_be_copied_and_the_worst_of_all_come_first(summary, page):
    assert page.commands == [summary.reproducer(one) for one in summary.worst]
    assert all(command.startswith("kexecemu replay ") for command in page.commands)
    folded = [tag for tag, _ in page.tags if tag == "details"]
    assert len(folded) == 5


@pytest.mark.parametrize(
    ("make", "tone", "said"),
    [
        (made_up_summary, "caught", "375 of 20,000 did harm undetected"),
        (disagreeing, "bad", "not to be believed"),
        (
            lambda: made_up_summary(
                outcomes={one.value: 20_000 * (one is Outcome.DETECTED) for one in Outcome}, worst=()
            ),
            "good",
            "none did harm undetected",
        ),
    ],
)
def test_the_badge_says_how_it_went(make, tone, said):
    page = Page(render_campaign(make()))
    assert [one["class"] for one in page.having("badge")] == [f"badge {tone}"]
    assert said in page.text


def test_the_audit_is_green_red_or_neither():
    for make, css in (
        (made_up_summary, "audit"),
        (disagreeing, "audit bad"),
        (lambda: made_up_summary(audited=0), "audit quiet"),
    ):
        assert [one["class"] for one in Page(render_campaign(make())).having("audit")] == [css]
    page = Page(render_campaign(disagreeing()))
    assert "decided as detected (hash), but it is silent: the digests <match>" in page.text
    assert "kexecemu replay dma.byte.1.initrd+5.after-load campaign-16m" in page.commands


def test_the_fault_space_is_described_area_by_area(summary, page):
    for area in summary.areas:
        hits = sum(sum(cell.values()) for cell in area.cells)
        row = page.row(area.name, f"{area.start:#x}", f"{area.end - 1:#x}")
        assert row[4:6] == [f"{hits:,}", area.kind]


def test_both_drawings_speak_to_those_who_cannot_see_them(summary, page):
    pictures = [one for tag, one in page.tags if tag == "svg"]
    assert all("aria-label" in one or "aria-labelledby" in one for one in pictures)
    assert "dtb: 487 detected, 17 masked, 4 silent;" in page.text  # the strip's description
    labels = " ".join(str(one.get("aria-label")) for one in pictures)
    assert "silent: 0.30 %, 0.23 to 0.39 %" in labels


# -- geometry ---------------------------------------------------------------------------------------------------------


def figure(low: float, middle: float, high: float, at_most: float | None = None) -> Figure:
    return Figure("x", 0 if at_most else 1, Interval(low, middle, high), made_up_summary().basis, at_most)


def test_a_decade_is_as_wide_as_any_other_and_the_whole_stands_at_the_end():
    axis = axis_of({"silent": figure(2e-4, 1e-3, 2e-3), "detected": figure(0.99, 0.995, 1.0)})
    assert axis.first == -4
    assert [axis.x(10.0**-at) for at in range(5)] == pytest.approx(
        [AXIS_WIDTH * (4 - at) / 4 for at in range(5)], abs=0.01
    )
    assert [label for _, label in axis.ticks] == ["100", "10", "1", "0.1", "0.01"]
    assert axis.x(0.0) == 0.0


def test_a_mark_is_an_interval_around_its_share_or_a_bound_alone():
    axis = axis_of({"a": figure(1e-3, 1e-2, 1e-1), "b": figure(0.0, 0.0, 4e-6, at_most=3e-6)})
    mark = axis.mark(figure(1e-3, 1e-2, 1e-1))
    assert mark.middle is not None
    assert mark.middle - mark.low == pytest.approx(mark.high - mark.middle, abs=0.02)
    bound = axis.mark(figure(0.0, 0.0, 4e-6, at_most=3e-6))
    assert (bound.low, bound.middle) == (0.0, None)
    assert 0.0 < bound.high == axis.x(3e-6)


def test_the_strip_is_in_the_order_of_address_and_nothing_overlaps(summary):
    strip = strip_of(summary.areas)
    assert [place.area for place in strip.places] == list(summary.areas)
    for one, other in zip(strip.places, strip.places[1:], strict=False):
        assert one.x + one.width < other.x
    last = strip.places[-1]
    assert strip.left == strip.places[0].x
    assert last.x + last.width == pytest.approx(strip.right, abs=0.1)


def test_every_fault_is_in_one_bin_of_its_outcomes_lane(summary):
    strip = strip_of(summary.areas)
    dumps = [f"dump {dump}" for dump, count in summary.dumps.items() if count]
    outcomes = [one for one in Outcome if summary.outcomes[one]]
    assert [lane.outcome for lane in strip.lanes] == [*outcomes, *dumps]
    counts = {**summary.outcomes, **{f"dump {dump}": count for dump, count in summary.dumps.items()}}
    for lane in strip.lanes:
        assert lane.count == counts[lane.outcome]
        told = [re.search(r": ([\d,]+) of ([\d,]+) faults? " + lane.outcome, one.title) for one in lane.bins]
        assert sum(int(match[1].replace(",", "")) for match in told if match) == lane.count


def test_a_bin_says_where_it_is_and_is_stronger_the_more_of_its_faults_ended_so():
    cells = ({"detected": 4}, {"detected": 3, "silent": 1}, {}, {"silent": 100})
    strip = strip_of([AreaHits("dtb", 0x1000, 0x2000, "hashed", cells)])
    detected, silent = strip.lanes
    assert [one.title for one in silent.bins] == [
        "dtb 0x1400 to 0x17ff: 1 of 4 faults silent",
        "dtb 0x1c00 to 0x1fff: 100 of 100 faults silent",
    ]
    assert [one.opacity for one in detected.bins] == [1.0, round(0.45 + 0.55 * math.sqrt(0.75), 2)]
    assert silent.bins[1].opacity == 1.0
    # What was not hit is blank: two stretches, with the empty cell between them.
    (first, width), (second, _) = strip.sampled
    assert first + width < second
    assert second == silent.bins[1].x


def test_a_region_in_many_pieces_still_fits():
    areas = [
        AreaHits(f"piece-{at}", at * 8192, at * 8192 + 4096, "free", ({"latent": 1},)) for at in range(60)
    ]
    strip = strip_of(areas)
    last = strip.places[-1]
    assert last.x + last.width <= STRIP_WIDTH
    assert not any(place.named for place in strip.places)
    assert sum(lane.count for lane in strip.lanes) == 60


def test_a_region_without_a_hit_and_a_campaign_of_one_kind_are_drawn_too():
    empty = strip_of([AreaHits("dtb", 0, 8, "edge", ({},) * 8)])
    assert (empty.lanes, empty.sampled) == ([], [])
    page = Page(render_campaign(made_up_summary(areas=())))
    assert page.misnested == []


def test_what_became_of_the_dumps_is_told_with_intervals_and_by_outcome(summary, page, document):
    for dump, count in summary.dumps.items():
        (row,) = [row for row in page.rows if row[0] == f"dump {dump}"]
        assert row[1] == f"{count:,}"
        assert row[-1] == Dump(dump).meaning
    for outcome, counts in summary.outcome_dumps.items():
        told = [f"{counts.get(dump.value, 0):,}" for dump in Dump]
        assert [outcome, *told, f"{sum(counts.values()):,}"] in page.rows
    assert dump_headline(summary) in page.text
    assert "dump: none &lt;because&gt; of it" in document


def test_a_summary_that_says_nothing_of_dumps_has_no_empty_tables_of_them():
    bare = made_up_summary(dumps={}, dump_figures={}, outcome_dumps={})
    assert "What became of the dump" not in Page(render_campaign(bare)).text


def test_what_the_purgatory_reported_is_not_called_harm_that_nobody_noticed():
    trapped = {**dict.fromkeys((one.value for one in Outcome), 0), "trapped": 3, "detected": 7}
    all_reported = made_up_summary(outcomes=trapped, reported=3)
    assert "none did harm undetected" in Page(render_campaign(all_reported)).text
    assert (
        "1 of 20,000 did harm undetected"
        in Page(render_campaign(made_up_summary(outcomes=trapped, reported=2))).text
    )
