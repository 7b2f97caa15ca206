"""The report of two campaigns side by side: every pair counted, and the drawing true to the table."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from campaign_summaries import PAIRS as OUTCOMES
from campaign_summaries import made_up_comparison as comparison
from campaign_summaries import made_up_header as header
from campaign_summaries import made_up_summary
from html_page import Page

from kexecemu.campaign.compare import Comparison, Pair
from kexecemu.campaign.stats import Figure, Interval
from kexecemu.report.campaign_html import render_campaign, render_comparison
from kexecemu.report.comparison_picture import dump_turn_of, flow_of, turn_of


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_comparison(comparison()))


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(page):
    assert page.misnested == []
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & attributes.keys()
    assert "http" not in render_comparison(comparison()).lower()
    assert render_comparison(comparison()) == render_comparison(comparison())


def test_both_are_named_and_what_the_figures_rest_on_is_said(page):
    assert "protection none, purgatory default against protection pte, purgatory <default>" in page.text
    assert f"Based on {comparison().basis}." in page.text
    assert "purgatory <default>" not in render_comparison(comparison())


def test_two_of_one_kind_are_told_apart_as_first_and_second():
    same = comparison(second=header("none", "default"))
    text = Page(render_comparison(same)).text
    assert "the first (none, purgatory default) against the second (none, purgatory default)" in text


def test_every_pair_of_outcomes_is_counted(page):
    columns = ["prevented", "detected", "latent", "silent", "error"]
    (head,) = [row for row in page.rows if row[1:6] == columns]
    assert head[6] == "faults"
    for here, counts in OUTCOMES.items():
        wanted = [str(counts.get(column, 0)) for column in columns] + [str(sum(counts.values()))]
        assert [here, *wanted] in page.rows


def test_what_each_catches_alone_has_its_interval_or_its_bound(page):
    first, second = [row for row in page.rows if "does harm" in row[0]]
    assert first[0].startswith("protection none, purgatory default, where protection pte")
    assert (first[1], first[3], first[4]) == ("2", "0.10 %", "0.01 to 0.20 %")
    assert (second[1], second[3], second[4]) == ("0", "none", "at most 0.15 %")
    assert "probability of 1.5e-31 (McNemar" in page.text


def test_an_example_can_be_run_in_either_campaign(page):
    assert "kexecemu replay dma.byte.1.dtb+5.after-load 'a b.toml'" in page.text
    assert "kexecemu replay dma.byte.1.dtb+5.after-load 'a b.toml' --protection pte" in page.text
    assert "Caught with protection none, purgatory default alone" in page.text
    assert "Caught with protection pte" not in page.text


def test_the_page_of_one_campaign_shows_the_comparison_where_there_is_one():
    whole = Page(render_campaign(made_up_summary(), comparison()))
    assert whole.misnested == []
    assert ("h2", {"id": "comparison"}) in whole.tags
    assert ["silent", "120", "0", "0", "40", "0", "160"] in whole.rows
    ids = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("h2", {"id": "comparison"}) not in Page(render_campaign(made_up_summary())).tags


# -- the drawing ------------------------------------------------------------------------------------------------------


def test_each_column_counts_every_fault_once():
    flow = flow_of(OUTCOMES)
    total = sum(sum(counts.values()) for counts in OUTCOMES.values())
    assert sum(node.count for node in flow.left) == sum(node.count for node in flow.right) == total
    assert [node.outcome for node in flow.left] == ["detected", "latent", "silent", "trapped"]
    assert [node.outcome for node in flow.right] == ["prevented", "detected", "latent", "silent", "error"]
    assert {(one.first, one.second): one.count for one in flow.ribbons} == {
        (here, there): count for here, counts in OUTCOMES.items() for there, count in counts.items()
    }


def test_a_ribbon_begins_and_ends_within_its_nodes_and_none_covers_another_there():
    flow = flow_of(OUTCOMES)
    for side, nodes in (("first", flow.left), ("second", flow.right)):
        for node in nodes:
            spans = []
            for one in flow.ribbons:
                if getattr(one, side) == node.outcome:
                    numbers = [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", one.path)]
                    # M x,y C x,y x,y x,y V y C x,y x,y x,y: the corners are y 1, 7, 8 and 14
                    spans.append((numbers[1], numbers[14]) if side == "first" else (numbers[7], numbers[8]))
            spans.sort()
            assert node.y - 0.01 <= spans[0][0]
            assert spans[-1][1] <= node.y + node.height + 0.03
            for (_, end), (begin, _) in pairwise(spans):
                assert begin >= end - 0.02


def test_breadth_grows_with_the_root_of_the_count():
    flow = flow_of({"detected": {"detected": 900, "prevented": 100}})
    left = {one.second: one for one in flow.ribbons}
    high = {}
    for outcome, one in left.items():
        numbers = [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", one.path)]
        high[outcome] = numbers[14] - numbers[1]
    assert high["detected"] == pytest.approx(3 * high["prevented"], rel=0.01)


@pytest.mark.parametrize(
    ("first", "second", "turn"),
    [
        ("silent", "prevented", "first"),
        ("hung", "latent", "first"),
        ("detected", "misboot", "second"),
        ("silent", "trapped", ""),
        ("detected", "latent", ""),
        ("silent", "error", ""),
        ("error", "detected", ""),
    ],
)
def test_a_ribbon_is_strong_where_one_side_alone_does_harm(first, second, turn):
    assert turn_of(first, second) == turn
    (ribbon,) = flow_of({first: {second: 1}}).ribbons
    assert ribbon.turn == turn


def test_nothing_to_compare_is_drawn_as_nothing():
    flow = flow_of({})
    assert (flow.left, flow.right, flow.ribbons) == ([], [], [])


DUMPS = {
    "true": {"true": 900, "wrong": 3, "none": 4},
    "wrong": {"true": 1, "wrong": 2, "none": 0},
    "none": {"true": 70, "wrong": 0, "none": 20},
}


def with_dumps() -> Comparison:
    basis = made_up_summary().basis
    return comparison(
        dumps=DUMPS,
        true_first=Figure("x", 7, Interval(1e-3, 7e-3, 9e-3), basis),
        true_second=Figure("y", 71, Interval(5e-2, 7e-2, 9e-2), basis),
        even_dumps=1e-12,
        examples_true_second=(
            Pair("dma.byte.1.initrd+5.after-load", "detected", "detected", "none", "true"),
        ),
    )


def test_two_campaigns_that_differ_in_their_dumps_alone_are_shown_to():
    page = Page(render_comparison(with_dumps()))
    assert page.misnested == []
    for here, counts in DUMPS.items():
        told = [f"{count:,}" for count in counts.values()]
        assert [f"dump {here}", *told, f"{sum(counts.values()):,}"] in page.rows
    assert "a probability of 1e-12" in page.text
    assert "detected in the first, detected in the second; dump none and true" in page.text
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_a_ribbon_of_dumps_is_strong_where_one_side_alone_has_a_true_one():
    words = ["dump true", "dump wrong", "dump none"]
    for here in words:
        for there in words:
            (ribbon,) = flow_of({here: {there: 1}}, dump_turn_of, words).ribbons
            expected = (
                "" if (here == words[0]) == (there == words[0]) else "second" if here == words[0] else "first"
            )
            assert ribbon.turn == expected


def test_a_trap_that_was_reported_is_drawn_as_what_the_comparison_counted():
    table = {"trapped": {"silent": 4}}
    told = comparison(outcomes=table, turns={"trapped": {"silent": "second"}})
    assert "harm silent" in render_comparison(told)
    assert (
        "harm"
        not in re.findall(r'<td class="number([^"]*)">4</td>', render_comparison(comparison(outcomes=table)))[
            0
        ]
    )
