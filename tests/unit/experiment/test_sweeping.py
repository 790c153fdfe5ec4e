"""Sweeps in this process: stopped and repeated they make each trial once, and end as if nothing had happened."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll import spec as sp
from atoll.errors import ClientWorkError, Interrupted, MembersFailed, SpecError
from atoll.experiment import SweepRun, list_runs, resume_sweep
from atoll.experiment import sweeping as sweeping_module
from atoll.tracking import child_runs
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.usefixtures("_no_plots")

TWELVE = ("client.lr=0.03,0.1,0.3,1.0", "aggregation.server_optimizer.lr=0.5,1.0,2.0")
Watch = Callable[[list[dict[str, float]]], None]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.tracking.render.comparison_pictures", lambda *args, **options: {})


@pytest.fixture
def base(mlflow_uri: str) -> dict[str, Any]:
    return tiny(
        tracking={"uri": mlflow_uri, "experiment": "sweeps"},
        runtime={"kind": "inline", "lanes": 4, "snapshot_every_s": 0.0},
        evaluation={"every_steps": 3, "metrics": ["loss", "auc"], "per_client": False},
    )


def outcome(found: SweepRun) -> dict[str, Any]:
    """What must be equal, whatever was stopped on the way and however many ran at the same time."""
    models = {one.number: [run.model_digest for run in one.runs] for one in found.trials}
    states = [(one.number, one.values, one.scores, one.state, one.timeline_digest) for one in found.trials]
    best = None if found.best is None else found.best.number
    return {"models": models, "trials": states, "best": best, "moves": found.moves_timeline}


def children(found: SweepRun) -> list[tuple[str, str, str]]:
    """(arm, seed, status) of every run that MLflow has under the sweep's."""
    store = mlflow_client(found.tracking_uri)
    runs = [store.get_run(run_id) for run_id in child_runs(found.tracking_uri, found.parent_run_id)]
    return sorted((run.data.tags["fl.arm"], run.data.tags["fl.seed"], run.info.status) for run in runs)


class Storm:
    """Lets so many groups pass, then strikes: at the beginning of the next, or in its middle."""

    def __init__(self, groups: int, strike: Callable[[], None], *, in_middle: bool = False) -> None:
        self.left, self.strike, self.in_middle, self.has_struck = groups, strike, in_middle, False

    def __call__(self, label: str, runs: Sequence[tuple[str, sp.Spec]]) -> Watch | None:
        self.left -= 1
        if self.left >= 0:
            return None
        if self.in_middle:
            return self._watch
        self.strike()
        return None

    def _watch(self, figures: list[dict[str, float]]) -> None:
        if not self.has_struck and any(one.get("step", 0) >= 1 for one in figures):
            self.has_struck = True
            self.strike()


class PowerCut(BaseException):
    """Nobody expects it, nobody tidies up."""


def power_cut() -> None:
    raise PowerCut


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_twelve_trials_stopped_twice_and_repeated_are_twelve(base: dict[str, Any], tmp_path: Path) -> None:
    expected = atoll.sweep(base, *TWELVE, at_once=1, key="calm", runs_folder=tmp_path)
    again: dict[str, Any] = {"at_once": 2, "key": "mine", "runs_folder": tmp_path}
    with pytest.raises(PowerCut):
        atoll.sweep(base, *TWELVE, on_group=Storm(2, power_cut), **again)
    assert len(list((tmp_path / "mine").glob("t*"))) == 4
    with pytest.raises(Interrupted, match=r"Go on with: atoll resume .*mine"):
        atoll.sweep(base, *TWELVE, on_group=Storm(3, sigterm, in_middle=True), **again)
    (entry,) = [one for one in list_runs(tmp_path) if one.name == "mine"]
    assert (entry.kind, entry.state, entry.advice) == ("sweep", "interrupted", "atoll resume mine")
    assert 4 <= entry.step < 12
    found = atoll.sweep(base, *TWELVE, **again)
    assert outcome(found) == outcome(expected)
    assert children(found) == [(f"t{number:03d}", "3", "FINISHED") for number in range(12)]
    assert len({run.run_id for one in found.trials for run in one.runs}) == 12
    entry = list_runs(tmp_path)[-1]
    assert (entry.name, entry.state, entry.step, entry.stop, entry.advice) == ("mine", "finished", 12, 12, "")


def test_what_is_done_is_not_done_again(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("client.lr=0.1,0.3,1.0",)
    first = atoll.sweep(base, *arguments, runs_folder=tmp_path)
    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    seen: list[str] = []
    monkeypatch.setattr(sweeping_module, "session_for", lambda *_: pytest.fail("no workers are needed"))
    second = atoll.sweep(
        base, *arguments, at_once=3, on_group=lambda label, runs: seen.append(label), runs_folder=tmp_path
    )
    assert second == first
    assert not seen
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == results
    third = resume_sweep(Path(first.folder))
    assert third == first
    rows = mlflow_client(first.tracking_uri).get_metric_history(first.parent_run_id, "sweep/auc")
    assert [(row.step, row.value) for row in sorted(rows, key=lambda row: row.step)] == [
        (one.number, one.score) for one in first.trials
    ]


def test_the_parent_run_and_the_report(base: dict[str, Any], tmp_path: Path) -> None:
    found = atoll.sweep(base, "client.lr=0.03,1.0", seeds=2, metric="loss", key="s", runs_folder=tmp_path)
    assert found.best is not None
    assert found.best.score == min(one.score for one in found.trials)
    for one in found.trials:
        last = [dict(run.metrics)["eval/loss"] for run in one.runs]
        assert one.score == pytest.approx(sum(last) / 2)
    store = mlflow_client(found.tracking_uri)
    parent = store.get_run(found.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["best.client.lr"] == f"{found.best.values['client.lr']}"
    assert parent.data.params["best.trial"] == str(found.best.number)
    assert parent.data.params["sweep.seeds"] == "[3, 4]"
    assert parent.data.tags["fl.sweep"] == "s"
    assert parent.data.metrics["sweep/best_loss"] == found.best.score
    kept = {item.path for item in store.list_artifacts(found.parent_run_id)}
    assert {"best.yaml", "trials.csv", "comparison.html", "spec.yaml"} <= kept
    rows = list(csv.DictReader(Path(found.csv).read_text().splitlines()))
    assert [(row["trial"], row["client.lr"], row["seed"]) for row in rows] == [
        ("0", "0.03", "3"), ("0", "0.03", "4"), ("1", "1.0", "3"), ("1", "1.0", "4"),
    ]  # fmt: skip
    assert "t001 lr=1" in Path(found.html).read_text()
    assert json.loads(json.dumps(found.as_dict()))["best"]["number"] == found.best.number
    best = atoll.run(found.best_spec, runs_folder=tmp_path)
    assert best.model_digest == found.best.runs[0].model_digest


def test_trials_share_timelines_where_no_key_moves_them(base: dict[str, Any], tmp_path: Path) -> None:
    found = atoll.sweep(base, "client.lr=0.1,0.3", seeds=2, runs_folder=tmp_path)
    digests = [[run.timeline_digest for run in one.runs] for one in found.trials]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]
    assert found.moves_timeline == ()
    moved = atoll.sweep(base, "client.lr=0.1,0.3", "schedule.buffer_goal=1,2", runs_folder=tmp_path)
    assert moved.moves_timeline == ("schedule.buffer_goal",)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_suggested_trials_do_not_depend_on_how_many_run_at_once(
    base: dict[str, Any], tmp_path: Path, method: str
) -> None:
    asked: dict[str, Any] = {"trials": 5, "batch": 2, "method": method}
    ranges = ("client.lr=0.01..1:log", "client.epochs=1..3:int")
    one = atoll.sweep(base, *ranges, at_once=1, key="one", runs_folder=tmp_path, **asked)
    with pytest.raises(Interrupted):
        atoll.sweep(
            base,
            *ranges,
            at_once=3,
            key="three",
            runs_folder=tmp_path,
            on_group=Storm(1, sigterm, in_middle=True),
            **asked,
        )
    three = atoll.sweep(base, *ranges, at_once=3, key="three", runs_folder=tmp_path, **asked)
    assert outcome(three) == outcome(one)
    assert len(children(three)) == 5


def test_scores_are_told_in_order_before_the_next_batch_is_asked_for(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    class Listening:
        def ask(self, count: int) -> list[dict[str, Any]]:
            heard.append(count)
            return [{"client.lr": 0.01 * (len(heard) + number)} for number in range(count)]

        def tell(self, number: int, scores: Any) -> None:
            heard.append((number, dict(scores)))

    monkeypatch.setattr(sweeping_module, "suggestions", lambda settings: Listening())
    asked: dict[str, Any] = {"trials": 5, "batch": 2, "rungs": (3,), "keep": 2, "at_once": 3}
    found = atoll.sweep(base, "client.lr=0.01..1", runs_folder=tmp_path, **asked)
    scores = [(one.number, dict(one.scores)) for one in found.trials]
    assert heard == [2, *scores[:2], 2, *scores[2:4], 1, *scores[4:]]
    assert [len(told) for _, told in scores[:4]].count(2) == 2


# ---- rungs ----------------------------------------------------------------------------------------------------------

NINE = ("client.lr=0.03,0.3,1.0", "aggregation.server_optimizer.lr=0.5,1.0,2.0")


def test_only_the_best_go_on_from_a_rung_and_exactly(base: dict[str, Any], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rungs": (2, 4), "keep": 3, "at_once": 2, "runs_folder": tmp_path}
    expected = atoll.sweep(base, *NINE, key="calm", **asked)
    steps = sorted((one.step for one in expected.trials), reverse=True)
    assert steps == [7, 4, 4] + [2] * 6
    assert [len(one.scores) for one in expected.trials if one.state == "finished"] == [3]
    at_first = {one.number: one.scores[2] for one in expected.trials}
    best_three = sorted(at_first, key=lambda number: -(at_first[number] or 0))[:3]
    assert {one.number for one in expected.trials if one.step > 2} == set(best_three)
    assert expected.best is not None
    straight = atoll.run(expected.best_spec, runs_folder=tmp_path)
    assert straight.model_digest == expected.best.runs[0].model_digest
    for groups, strike in ((3, power_cut), (3, sigterm), (1, power_cut)):
        with pytest.raises((PowerCut, Interrupted)):
            atoll.sweep(base, *NINE, key="mine", on_group=Storm(groups, strike, in_middle=True), **asked)
    found = atoll.sweep(base, *NINE, key="mine", **asked)
    assert outcome(found) == outcome(expected)
    assert children(found) == [(f"t{number:03d}", "3", "FINISHED") for number in range(9)]
    assert atoll.sweep(base, *NINE, key="mine", **asked) == found


def test_each_batch_of_bayes_has_rungs_of_its_own(base: dict[str, Any], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"trials": 6, "batch": 3, "rungs": (2,), "keep": 3, "runs_folder": tmp_path}
    found = atoll.sweep(base, "client.lr=0.01..1:log", **asked)
    assert [sum(one.step == 7 for one in found.trials[first : first + 3]) for first in (0, 3)] == [1, 1]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_another_sweep_under_the_same_key(base: dict[str, Any], tmp_path: Path) -> None:
    atoll.sweep(base, "client.lr=0.1,0.3", key="mine", runs_folder=tmp_path)
    before = (tmp_path / "mine" / "spec.yaml").read_bytes()
    with pytest.raises(SpecError, match=r"need the client, space that it was begun with.*another --key"):
        atoll.sweep(base, "client.lr=0.1,0.4", "client.batch_size=5", key="mine", runs_folder=tmp_path)
    assert (tmp_path / "mine" / "spec.yaml").read_bytes() == before
    atoll.run(base, key="taken", runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"key: got 'taken'; need a key that is free"):
        atoll.sweep(base, "client.lr=0.1,0.4", key="taken", runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"key: got 'mine'; need a key that is free"):
        atoll.run(base, key="mine", runs_folder=tmp_path)


def test_a_stored_study_that_does_not_agree(base: dict[str, Any], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"trials": 2, "key": "mine", "runs_folder": tmp_path}
    atoll.sweep(base, "client.lr=0.1..1", **asked)
    path = tmp_path / "mine" / "sweep.json"
    facts = json.loads(path.read_text())
    facts["trials"][1]["values"]["client.lr"] = 0.5
    facts["sampler"] = "optuna 0.1"
    path.write_text(json.dumps(facts))
    with pytest.raises(SpecError, match=r"trial 1: got .*0\.5.*; need the same values.*optuna 0\.1 suggested then"):
        atoll.sweep(base, "client.lr=0.1..1", **asked)


def test_runs_that_fail_are_named_and_go_on_when_repeated(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweeping_module.run_together

    def failing(wanted: Sequence[Any], **more: Any) -> list[Any]:
        ended = real(wanted, **more)
        broken = [one.spec.client.lr == 0.3 for one in wanted]
        return [ClientWorkError("no such sensor") if bad else one for bad, one in zip(broken, ended, strict=True)]

    monkeypatch.setattr(sweeping_module, "run_together", failing)
    with pytest.raises(MembersFailed, match=r"1 of 3 runs did not finish(.|\n)*t001-s3: no such sensor") as caught:
        atoll.sweep(base, "client.lr=0.1,0.3,1.0", at_once=1, key="mine", runs_folder=tmp_path)
    assert any("atoll resume" in note for note in caught.value.__notes__)
    assert len(list(tmp_path.rglob("result.json"))) == 3, "the others were made all the same"
    monkeypatch.setattr(sweeping_module, "run_together", real)
    assert len(children(atoll.sweep(base, "client.lr=0.1,0.3,1.0", key="mine", runs_folder=tmp_path))) == 3


def test_a_trial_without_a_score_is_never_the_best(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweeping_module._Shop._value

    def diverged(shop: Any, folder: Path, rung: int) -> float:
        return math.nan if folder.name.startswith(("t000", "t002")) else real(shop, folder, rung)

    monkeypatch.setattr(sweeping_module._Shop, "_value", diverged)
    found = atoll.sweep(base, "client.lr=0.1,0.3,1.0", rungs=(2,), keep=2, runs_folder=tmp_path)
    assert [one.state for one in found.trials] == ["lost", "finished", "lost"]
    assert found.best is not None
    assert found.best.number == 1
    monkeypatch.setattr(sweeping_module._Shop, "_value", lambda *_: math.inf)
    nothing = atoll.sweep(base, "client.lr=0.1,0.4", runs_folder=tmp_path)
    assert (nothing.best, nothing.best_spec, nothing.html) == (None, "", "")
    assert list_runs(tmp_path)[-1].state == "finished"


def test_the_cost_until_a_target(base: dict[str, Any], tmp_path: Path) -> None:
    target = {"metric": "loss", "value": 0.6999}
    spec = base | {
        "stop": {"server_steps": 30, "target": target},
        "evaluation": {"every_steps": 1, "metrics": ["loss"]},
    }
    found = atoll.sweep(spec, "client.lr=0.0001,0.3,1.0", metric="client_updates", key="mine", runs_folder=tmp_path)
    assert found.trials[0].state == "lost", "a rate of 0.0001 goes nowhere"
    reached = [one for one in found.trials if one.state == "finished"]
    assert reached
    for one in reached:
        assert one.score == one.runs[0].client_updates
    assert found.best is not None
    assert found.best.score == min(one.score or math.inf for one in reached)
    assert (
        atoll.sweep(spec, "client.lr=0.0001,0.3,1.0", metric="client_updates", key="mine", runs_folder=tmp_path)
        == found
    )


# ---- a shared store -------------------------------------------------------------------------------------------------


def test_another_machine_goes_on_from_the_shared_store(base: dict[str, Any], tmp_path: Path) -> None:
    spec = base | {"runtime": {**base["runtime"], "store": str(tmp_path / "store")}}
    asked: dict[str, Any] = {"rungs": (3,), "keep": 2, "key": "mine"}
    lr = "client.lr=0.03,0.1,0.3,1.0"
    expected = atoll.sweep(base, lr, runs_folder=tmp_path / "calm", **asked)
    with pytest.raises(Interrupted):
        atoll.sweep(spec, lr, on_group=Storm(2, sigterm, in_middle=True), runs_folder=tmp_path / "first", **asked)
    shutil.rmtree(tmp_path / "first")
    found = atoll.sweep(spec, lr, runs_folder=tmp_path / "second", **asked)
    assert outcome(found) == outcome(expected)
    assert children(found) == [(f"t{number:03d}", "3", "FINISHED") for number in range(4)]
