"""Comparison of runs: target, costs, medians, ratios, and what is never hidden."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.tracking import (
    MlflowTracker,
    Row,
    RunInfo,
    RunSummary,
    Target,
    child_runs,
    compare,
    insert_between,
    load_run,
    summary_tags,
    to_csv,
    to_html,
    to_markdown,
    to_text,
)
from atoll.tracking.curves import against, byte_unit, value_at

AUC = Target("auc", 0.7)


def history(values, hours_per_step=1.0, every=10):
    """Evaluations at 0, every, 2·every …; costs at every server step: 20 updates, 200 bytes up, 300 down a step."""
    last = every * (len(values) - 1)
    steps = range(1, last + 1)
    return {
        "eval/auc": [(every * i, value) for i, value in enumerate(values)],
        "sim/hours": [(s, s * hours_per_step) for s in steps],
        "sim/client_updates": [(s, 20.0 * s) for s in steps],
        "sim/uplink_bytes": [(s, 200.0 * s) for s in steps],
        "sim/downlink_bytes": [(s, 300.0 * s) for s in steps],
    }


def run(arm, seed, values, hours_per_step=1.0, target=AUC, **more):
    return RunSummary(f"{arm}-{seed}", f"{arm} run", arm, seed, history(values, hours_per_step), target, **more)


SLOW = [run("sync", seed, [0.5, 0.6, 0.7, 0.75], 4.0) for seed in (1, 2, 3)]
FAST = [run("async", 1, [0.5, 0.7, 0.8]), run("async", 2, [0.5, 0.6, 0.71]), run("async", 3, [0.5, 0.6, 0.69, 0.7])]


def arm_of(comparison, name):
    return next(arm for arm in comparison.arms if arm.name == name)


def test_costs_are_those_of_the_first_evaluation_that_reaches_the_target():
    arm = arm_of(compare([run("a", 1, [0.5, 0.7, 0.6, 0.9], 2.0)]), "a")
    (outcome,) = arm.runs
    assert outcome.reached_step == 10
    assert outcome.costs == {"hours": 20.0, "client_updates": 200.0, "traffic_bytes": 5000.0, "server_steps": 10.0}
    assert outcome.final == 0.9


def test_a_loss_is_reached_from_above():
    losses = RunSummary("r", "r", "", None, {"eval/loss": [(0, 0.9), (5, 0.4), (9, 0.5)]}, Target("loss", 0.5))
    (arm,) = compare([losses]).arms
    assert arm.runs[0].reached_step == 5
    assert math.isnan(arm.costs["hours"].median)


def test_the_model_before_the_first_step_costs_nothing():
    (arm,) = compare([run("a", 1, [0.8, 0.9])]).arms
    assert arm.costs["hours"].median == 0.0


def test_medians_ranges_and_ratios_over_seeds():
    comparison = compare(SLOW + FAST, "sync")
    fast = arm_of(comparison, "async")
    assert (fast.costs["hours"].low, fast.costs["hours"].median, fast.costs["hours"].high) == (10.0, 20.0, 30.0)
    assert fast.ratios["hours"] == pytest.approx(20.0 / 80.0)
    assert arm_of(comparison, "sync").ratios["hours"] == 1.0
    assert fast.final_ratio == pytest.approx(0.71 / 0.75)
    assert fast.typical.run.run_id == "async-2"


def test_a_run_that_never_reaches_is_counted_as_infinite_and_told():
    comparison = compare([*SLOW, *FAST[:1], run("async", 8, [0.5, 0.6]), run("async", 9, [0.5])], "sync")
    arm = arm_of(comparison, "async")
    assert (arm.num_reached, len(comparison.missed)) == (1, 2)
    assert arm.costs["hours"].median == math.inf
    assert math.isnan(arm.ratios["hours"])
    for text in (to_text(comparison, 200), to_markdown(comparison), to_html(comparison)):
        assert "1 of 3" in text
        assert "never" in text
        assert "seeds 8, 9; ended at 0.5 – 0.6" in text
    assert [row["hours"] for row in csv.DictReader(io.StringIO(to_csv(comparison)))][-1] == "inf"


def test_a_run_that_was_never_evaluated_is_told_too():
    empty = RunSummary("x", "x", "", None, {}, AUC)
    comparison = compare([*SLOW, empty])
    assert "x (never evaluated)" in to_markdown(comparison)
    assert "<html" in to_html(compare([empty]))


def test_without_a_target_value_costs_are_of_the_whole_run():
    comparison = compare([run("a", 1, [0.5, 0.6], target=None)], target=Target("eval/auc"))
    assert comparison.arms[0].costs["client_updates"].median == 200.0
    assert comparison.missed == ()
    text = to_markdown(comparison)
    assert "whole runs" in text
    assert "reached" not in text.splitlines()[0]


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        ([], {}, "at least one run"),
        ([SLOW[0], SLOW[0]], {}, "each run once"),
        (SLOW, {"baseline": "x"}, "sync"),
        ([SLOW[0], run("b", 1, [0.5], target=Target("auc", 0.8))], {}, "one target"),
        ([run("a", 1, [0.5], target=None)], {}, "no target"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, options, words):
    with pytest.raises(SpecError, match=words):
        compare(runs, **options)


def test_arms_keep_the_given_order_and_runs_without_one_stand_alone():
    alone = RunSummary("z", "zeta", "", None, history([0.7]), AUC)
    assert [arm.name for arm in compare([alone, *FAST, *SLOW]).arms] == ["zeta", "async", "sync"]


@given(st.permutations(range(6)))
def test_the_order_of_runs_never_changes_an_arm(order):
    everything = SLOW + FAST
    shuffled = compare([everything[i] for i in order], "sync")
    straight = compare(everything, "sync")
    assert {arm.name: arm for arm in shuffled.arms} == {arm.name: arm for arm in straight.arms}


def test_markdown_is_one_table_whatever_the_names():
    text = to_markdown(compare([run("a|b", 1, [0.7]), run("c\nd", 1, [0.7])]))
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_page_is_one_file_and_escapes_names():
    page = to_html(compare([run("<script>x</script>", 1, [0.5, 0.7], digests={"plan": "ab" * 32})]), "a & b")
    assert "<script" not in page
    assert "a &amp; b" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert "plan abababababab" in page


def test_csv_has_one_full_line_per_run():
    rows = list(csv.DictReader(io.StringIO(to_csv(compare(SLOW + FAST, "sync")))))
    assert len(rows) == 6
    assert float(rows[3]["hours"]) == 10.0
    assert rows[0]["run_id"] == "sync-1"


def test_text_goes_between_its_markers_and_nowhere_else():
    document = "a\n<!-- begin t -->\nold\n<!-- end t -->\nb\n"
    once = insert_between(document, "t", "| new |\n")
    assert once == "a\n<!-- begin t -->\n| new |\n<!-- end t -->\nb\n"
    assert insert_between(once, "t", "| new |\n") == once
    for broken in ("", "<!-- end t --><!-- begin t -->", document + document):
        with pytest.raises(SpecError):
            insert_between(broken, "t", "x")


@given(st.lists(st.integers(0, 50), unique=True).map(sorted), st.integers(-1, 60))
def test_value_at_is_the_last_one_not_after(steps, step):
    points = [(s, float(s + 1)) for s in steps]
    assert value_at(points, step) == max([value for s, value in points if s <= step], default=0.0)


def test_a_cost_that_was_never_logged_gives_no_curve():
    assert against({"eval/auc": [(1, 0.5)]}, "eval/auc", ("sim/hours",)) == ([], [])


@pytest.mark.parametrize(("size", "unit"), [(0, "bytes"), (999, "bytes"), (1000, "kB"), (5e6, "MB"), (2e16, "PB")])
def test_bytes_are_printed_in_a_unit_that_fits(size, unit):
    assert byte_unit(size)[1] == unit


def test_runs_come_back_from_mlflow_as_they_were_published(mlflow_uri):
    parent = MlflowTracker(mlflow_uri).start(RunInfo("e", "sweep", "s"))
    wanted = []
    for given_run in (SLOW[0], FAST[0]):
        tracker = MlflowTracker(mlflow_uri)
        tags = summary_tags(given_run.arm, given_run.seed, AUC, {"plan": "p" * 64})
        run_id = tracker.start(RunInfo("e", given_run.name, given_run.run_id, tags=tags, parent_run_id=parent))
        tracker.publish([Row(key, s, v, 5) for key, points in given_run.history.items() for s, v in points])
        # a recomputed row with another value and a later time: the first one stands
        tracker.publish([Row("eval/auc", 0, 0.99, 6)])
        digests = {"plan": "p" * 64}
        wanted.append(
            RunSummary(
                run_id,
                given_run.name,
                given_run.arm,
                given_run.seed,
                given_run.history,
                Target("eval/auc", 0.7),
                digests,
            )
        )
    ids = child_runs(mlflow_uri, parent)
    assert [load_run(mlflow_uri, run_id) for run_id in ids] == wanted
    with pytest.raises(SpecError, match="run id"):
        load_run(mlflow_uri, "0" * 32)
