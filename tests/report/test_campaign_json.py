"""The JSON object of a campaign: the keys that others rely on, and nothing that differs but the clock."""

from __future__ import annotations

import json

from campaign_summaries import disagreeing, made_up_summary

from kexecemu.campaign.fault import CampaignFault
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_json import campaign_object

CONTRACT = {
    "population",
    "faults",
    "outcomes",
    "intervals",
    "injections_per_second",
    "audited",
    "audit_disagreements",
}
CLOCK = {"injections_per_second", "seconds", "audit_seconds"}


def test_the_keys_that_others_rely_on_are_there_and_survive_json():
    summary = made_up_summary()
    value = json.loads(json.dumps(campaign_object(summary)))
    assert value.keys() >= CONTRACT
    assert value["population"] == 3_298_534_883_328
    assert value["faults"] == sum(value["outcomes"].values()) == 20_000
    assert list(value["outcomes"]) == list(value["intervals"]) == [outcome.value for outcome in Outcome]
    assert value["injections_per_second"] == 10_000
    assert value["audited"] == 300
    assert value["audit_disagreements"] == 0


def test_an_interval_holds_its_estimate_and_one_of_nothing_has_a_bound():
    value = campaign_object(made_up_summary())
    for outcome, interval in value["intervals"].items():
        assert 0 <= interval["low"] <= interval["estimate"] <= interval["high"] <= 1
        if value["outcomes"][outcome]:
            assert interval["at_most"] is None
            assert interval["estimate"] == value["outcomes"][outcome] / 20_000
        else:
            assert interval["estimate"] == 0
            assert 0 < interval["at_most"] < interval["high"]


def test_what_a_figure_rests_on_is_in_the_object():
    value = campaign_object(made_up_summary())
    assert (value["seed"], value["version"], value["sampler"]) == (1, "0.1.0", "uniform-1")
    assert value["config_hash"] == "5f2c9b1e" * 8
    assert value["interval_method"] == "Clopper-Pearson, 95%"


def test_every_dimension_counts_every_fault():
    value = campaign_object(made_up_summary())
    for table in value["by"].values():
        assert sum(count for counts in table.values() for count in counts.values()) == 20_000


def test_ends_of_areas_are_inclusive():
    areas = {one["name"]: one for one in campaign_object(made_up_summary())["areas"]}
    assert (areas["kernel"]["start"], areas["kernel"]["end"]) == (0x6000_0000, 0x608F_FFFF)


def test_the_worst_are_faults_with_the_command_that_runs_them():
    for one in campaign_object(made_up_summary())["worst"]:
        assert CampaignFault.parse(one["fault"]).id == one["fault"]
        assert one["reproducer"].split() == ["kexecemu", "replay", one["fault"], "campaign-16m"]


def test_a_disagreement_is_counted_and_told():
    value = campaign_object(disagreeing())
    assert value["audit_disagreements"] == 1
    (one,) = value["disagreements"]
    assert (one["decided"], one["run"]) == ("detected", "silent")
    assert one["reproducer"] == "kexecemu replay dma.byte.1.initrd+5.after-load campaign-16m"


def test_only_the_clock_differs_between_two_runs_of_one_campaign():
    one = campaign_object(made_up_summary())
    other = campaign_object(made_up_summary(seconds=3.0, audit_seconds=4.0))
    assert {key for key in one if one[key] != other[key]} == CLOCK
    assert campaign_object(made_up_summary(seconds=0.0))["injections_per_second"] is None


def test_dumps_are_counted_with_intervals_and_by_outcome():
    value = campaign_object(made_up_summary())
    assert list(value["dumps"]) == list(value["dump_intervals"]) == ["true", "wrong", "none"]
    assert sum(value["dumps"].values()) == 20_000
    for outcome, counts in value["outcome_dumps"].items():
        assert sum(counts.values()) == value["outcomes"][outcome]
    for dump, interval in value["dump_intervals"].items():
        assert interval["low"] <= value["dumps"][dump] / 20_000 <= interval["high"]
    assert all(one["dump"] and one["dump_reason"] for one in value["worst"])
    assert value["reported"] == 0
