"""The account of a campaign on a terminal: every count is there, with what it rests on, in whole lines."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from campaign_summaries import disagreeing, made_up_summary
from rich.console import Console

from kexecemu.campaign.stats import Figure, Interval
from kexecemu.campaign.summary import Summary
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_text import print_campaign
from kexecemu.report.campaign_words import HOW_WORDS, interval_text, share_text, tone_of


def printed(summary: Summary, width: int = 80) -> str:
    out = StringIO()
    print_campaign(Console(file=out, width=width), summary)
    return out.getvalue()


@pytest.fixture(scope="module")
def summary() -> Summary:
    return made_up_summary()


@pytest.fixture(scope="module")
def text(summary) -> str:
    return printed(summary)


def test_every_outcome_has_its_count_and_its_interval(summary, text):
    for outcome in Outcome:
        (line,) = re.findall(rf"^{outcome} .*\b{outcome.meaning}$", text, re.MULTILINE)
        words = line.split()
        assert words[1] == f"{summary.outcomes[outcome]:,}"
        if summary.outcomes[outcome]:
            low, high = (float(line[: line.index(" %", at)].split()[-1]) for at in (0, line.rindex(" to ")))
            assert low <= float(share_text(summary.figures[outcome]).removesuffix(" %")) <= high
            assert " to " in line
        else:
            assert re.search(r"none +at most 0\.015 %", line)


def test_a_table_stands_under_its_population_sample_seed_version_and_configuration(summary, text):
    lines = text.splitlines()
    tables = [
        number
        for number, line in enumerate(lines)
        if re.match(r"(outcome|dump|segment|kind|writer|model|moment|how) .*\bfaults\b", line)
    ]
    assert len(tables) == 4 + len(summary.by)
    for number in tables:
        basis = lines[number - 1]
        for part in ("20,000", "3,298,534,883,328", "uniform-1", "seed 1", "kexecemu 0.1.0", "5f2c9b1e5f2c"):
            assert part in basis


def test_no_number_is_cut_off_and_no_line_folded_however_narrow_the_terminal(summary, text):
    assert printed(summary, 40) == text
    assert "…" not in text
    for table in summary.by.values():
        for key, counts in table.items():
            pattern = rf"^{key}((?: +[\d,]+)+)$"
            rows = [
                [int(word.replace(",", "")) for word in row.split()]
                for row in re.findall(pattern, text, re.MULTILINE)
            ]
            assert any(row[-1] == sum(row[:-1]) == sum(counts.values()) for row in rows)


def test_segments_come_in_the_order_of_address(text):
    order = ["kernel", "initrd", "crashkernel-free", "dtb", "crashkernel", "purgatory", "elfcorehdr"]
    found = [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in order]
    assert [name for name in found if name in order][: len(order)] == order


def test_the_worst_come_first_and_each_with_the_line_that_runs_it_again(summary, text):
    lines = text.splitlines()
    commands = [line.strip() for line in lines if line.startswith("           kexecemu replay ")]
    by_token = {summary.reproducer(one): one for one in summary.worst}
    shown = [by_token[command].outcome for command in commands]
    assert shown == [
        outcome for outcome in ("silent", "misboot", "hung", "trapped", "error") for _ in range(3)
    ]
    rest = sum(summary.outcomes[outcome] - 3 for outcome in set(shown))
    assert f"  and {rest:,} more" in lines


def test_the_sentence_on_top_counts_all_faults(summary, text):
    (line,) = [line for line in text.splitlines() if line.startswith("Of 20,000 stray writes: ")]
    counts = {
        word: int(number.replace(",", "")) for number, word in re.findall(r"([\d,]+) ([a-z]+)[,;.]", line)
    }
    assert counts == {outcome: count for outcome, count in summary.outcomes.items() if count}


def test_a_campaign_without_harm_says_so():
    quiet = made_up_summary(
        outcomes={one.value: 20_000 if one is Outcome.DETECTED else 0 for one in Outcome}, worst=()
    )
    text = printed(quiet)
    assert (
        "Of 20,000 stray writes: none that does harm undetected (silent, misboot, hung or trapped); " in text
    )
    assert "the worst  none is silent, misboot, hung, trapped or error" in text


def test_a_dimension_with_one_value_takes_a_line_and_no_table(summary):
    whole = {"dma": dict(summary.outcomes)}
    text = printed(made_up_summary(by={**summary.by, "writer": whole}))
    assert "\nwho wrote  dma in all of them\n" in text
    assert not [line for line in text.splitlines() if line.split()[:1] == ["writer"]]


def test_how_each_was_found_is_counted_and_explained(summary, text):
    for how, count in summary.how.items():
        assert re.search(rf"^{how} +{count:,}  {re.escape(HOW_WORDS[how])}$", text, re.MULTILINE)


def test_an_audit_that_agrees_and_one_that_does_not_are_told_apart(text):
    assert "run to the end: every one ended as decided." in text
    wrong = printed(disagreeing())
    assert "1 ended otherwise, so this campaign cannot be believed." in wrong
    assert "  detected by hash, but silent: the digests <match>\n" in wrong
    assert "    kexecemu replay dma.byte.1.initrd+5.after-load campaign-16m\n" in wrong


def test_a_campaign_that_was_not_audited_says_that(summary):
    decided = 20_000 - summary.how["run"]
    assert f"{decided:,} faults decided without a run, and none of them audited." in printed(
        made_up_summary(audited=0)
    )


def test_the_speed_is_told_apart_from_the_audits_time_and_left_out_when_nothing_was_timed(text):
    assert "10,000 injections a second (20,000 faults in 2.0 s); the audit took 31.4 s besides" in text
    assert "injections a second" not in printed(made_up_summary(seconds=0.0))


def test_weights_are_mentioned_where_there_are_any(summary, text):
    assert "weighted" not in text
    basis = made_up_summary().basis
    stratified = type(basis)(
        *(getattr(basis, one) for one in basis.__slots__[:5]), "stratified-1", basis.method
    )
    assert "each stratum's share is weighted with its size" in printed(made_up_summary(basis=stratified))


def test_words_of_the_scenario_are_no_markup():
    text = printed(made_up_summary(name="a [bold]name[/bold] [red]", scenario="odd [name].toml"))
    assert text.startswith("a [bold]name[/bold] [red]\nscenario odd [name].toml; ")


@pytest.mark.parametrize(
    ("low", "estimate", "high", "share", "between"),
    [
        (0.9980, 0.9981, 0.9982, "99.810 %", "99.800 to 99.820 %"),
        (0.0, 0.5, 1.0, "50.0 %", "0.0 to 100.0 %"),
        (1e-7, 1e-6, 4e-6, "0.00010 %", "0.00001 to 0.00040 %"),
        (0.25, 0.25, 0.25, "25.000 %", "25.000 to 25.000 %"),
        (3.2e-7, 6.4e-6, 0.94, "0.0006 %", "0.00003 to 94.0 %"),
    ],
)
def test_a_share_has_the_digits_that_its_interval_bears(summary, low, estimate, high, share, between):
    figure = Figure("x", 3, Interval(low, estimate, high), summary.basis)
    assert share_text(figure) == share
    assert interval_text(figure) == between


def test_what_was_never_seen_has_a_bound_and_no_share(summary):
    figure = Figure("silent", 0, Interval(0.0, 0.0, 3.7e-6), summary.basis, at_most=3.0e-6)
    assert share_text(figure) == "none"
    assert interval_text(figure) == "at most 0.00030 %"


def test_each_outcome_has_a_tone():
    assert {tone_of(outcome) for outcome in ("silent", "misboot", "hung", "trapped")} == {"bad"}
    assert {tone_of(outcome) for outcome in Outcome} == {"good", "caught", "quiet", "bad", "none"}


def test_what_was_given_to_change_the_scenario_is_said_and_given_to_the_replay_too():
    text = printed(made_up_summary(options="--protection pte"))
    assert "\nscenario campaign-16m --protection pte; protection " in text
    assert text.count(" campaign-16m --protection pte\n") == 15  # of the worst, all that are shown


def test_dumps_have_their_figures_and_outcomes_their_dumps(summary, text):
    for dump, count in summary.dumps.items():
        assert re.search(rf"^dump {dump} +{count:,} +\S+ % .* % +taken|lost", text, re.MULTILINE)
    silent = summary.outcome_dumps["silent"]
    assert re.search(rf"^silent +{silent['true']:,} +{silent['wrong']:,} +0 +", text, re.MULTILINE)
    assert "dump: wrong <because> of it" in text
