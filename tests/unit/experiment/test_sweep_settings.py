"""A sweep is refused before anything starts, with all that is wrong; what is not said is as usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.errors import SpecError
from atoll.experiment.sweep_settings import Asked, default_key, planned, settled, spec_at
from tiny_kit import tiny

LR = "client.lr=0.1,0.3"


def problems(*arguments: str, spec: dict[str, Any] | None = None, **asked: Any) -> str:
    with pytest.raises(SpecError) as caught:
        settled(spec or tiny(), arguments, Asked(**asked))
    return str(caught.value)


def test_what_is_usual() -> None:
    _, grid = settled(tiny(), [LR, "schedule.buffer_goal=1,2,3"], Asked())
    assert (grid.method, grid.num_trials, grid.batch, grid.seeds) == ("grid", 6, 6, (3,))
    assert (grid.metric, grid.is_falling, grid.rungs) == ("auc", False, (7,))
    base, bayes = settled(tiny(), ["client.lr=0.01..1:log", "seed=5"], Asked(trials=10, seeds=2, metric="loss"))
    assert (bayes.method, bayes.batch, bayes.seeds, bayes.is_falling) == ("bayes", 4, (5, 6), True)
    assert base.seed == bayes.seed == 5
    _, listed = settled(tiny(), [LR], Asked(trials=10))
    assert listed.method == "bayes"
    _, rungs = settled(tiny(), [LR], Asked(rungs=(2, 5)))
    assert rungs.rungs == (2, 5, 7)
    assert settled(tiny(), [LR], Asked(rungs=(2, 7)))[1].rungs == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "asked", "told"),
    [
        ([LR], {"trials": 3}, None),
        ([LR], {"method": "grid", "trials": 3}, "trials: got 3; need 2. a grid makes all its 2"),
        ([LR], {"method": "tpe"}, "method: got 'tpe'; need one of grid, random, bayes"),
        (["client.lr=0.1..1"], {"method": "grid"}, "client.lr: got a range; need values"),
        (["client.lr=0.1..1"], {}, "trials: got none; need how many trials bayes may make"),
        ([LR], {"seeds": 0}, "seeds: got 0"),
        ([LR], {"keep": 1}, "keep: got 1; need a number from 2"),
        ([LR], {"batch": 0}, "batch: got 0"),
        ([LR], {"metric": "accuracy"}, "metric: got 'accuracy'; need one of evaluation.metrics (loss, auc)"),
        ([LR], {"metric": "hours"}, "need a stop.target"),
        ([LR], {"rungs": (5, 3)}, "rungs: got 5,3; need server steps from 1 to 7, ascending"),
        ([LR], {"rungs": (0, 3)}, "rungs: got 0,3"),
        ([LR], {"rungs": (8,)}, "rungs: got 8"),
    ],
)
def test_options(arguments: list[str], asked: dict[str, Any], told: str | None) -> None:
    if told is None:
        settled(tiny(), arguments, Asked(**asked))
    else:
        assert told in problems(*arguments, **asked)


def test_a_target_and_a_cost_until_it() -> None:
    spec = tiny(stop={"server_steps": 7, "target": {"metric": "loss", "value": 0.5}})
    assert "null for a sweep by quality" in problems(LR, spec=spec)
    _, settings = settled(spec, [LR], Asked(metric="hours"))
    assert settings.is_falling
    assert "none for a cost until a target" in problems(LR, spec=spec, metric="hours", rungs=(3,))


def test_neither_arms_nor_ensembles() -> None:
    arms = {"comparison": {"seeds": [1], "arms": {"a": {}}, "baseline": "a"}}
    assert "comparison: got arms a; need null for a sweep" in problems(LR, spec=tiny(**arms))
    clusters = {"kind": "random", "count": 2}
    evaluation = {"every_steps": 3, "metrics": ["loss", "auc"], "server_share": 0.4}
    ensemble = tiny(clusters=clusters, evaluation=evaluation, ensemble={})
    assert "ensemble: got an ensemble, clusters by random" in problems(LR, spec=ensemble)


def test_everything_that_is_wrong_at_once() -> None:
    found = problems("client.lr=1..0", "seed=1,2", spec=tiny(stop={"server_steps": -1}), seeds=0)
    assert [line.split(":")[0] for line in found.splitlines()] == ["client.lr", "seed", "stop.server_steps", "seeds"]


def refused(tmp_path: Path, *arguments: str, **asked: Any) -> str:
    with pytest.raises(SpecError) as caught:
        atoll.sweep(tiny(), *arguments, runs_folder=tmp_path / "runs", **asked)
    assert not (tmp_path / "runs").exists()
    return str(caught.value)


def test_every_trial_is_checked_before_the_first_one_starts(tmp_path: Path) -> None:
    found = refused(tmp_path, "client.lr=0.1,-1,nope", "schedule.buffer_goal=1,2,9")
    lines = found.splitlines()
    assert len(lines) == 3, "each once, in however many trials it is"
    for told in ("client.lr: got -1", "client.lr: got 'nope'", "schedule.buffer_goal: got 9"):
        assert any(line.startswith(told) for line in lines), told


def test_corners_of_a_range_are_checked(tmp_path: Path) -> None:
    found = refused(tmp_path, "schedule.buffer_goal=1..9:int", "client.lr=-1..1", trials=1)
    assert "schedule.buffer_goal: got 9" in found
    assert "client.lr: got -1" in found


def test_fractions_where_whole_numbers_are_wanted(tmp_path: Path) -> None:
    found = refused(tmp_path, "schedule.buffer_goal=1..5", trials=2, method="random")
    assert "schedule.buffer_goal=low..high:int gives whole numbers" in found


def test_what_the_plan_alone_knows_is_checked_too(tmp_path: Path) -> None:
    assert "runtime.memory_bytes" in refused(tmp_path, "client.lr=0.1,0.2", "runtime.memory_bytes=100")


def test_later_batches_leave_out_what_is_wrong() -> None:
    base, settings = settled(tiny(), ["schedule.buffer_goal=1,2"], Asked())
    good, bad = planned(base, settings, 4, [{"schedule.buffer_goal": 2}, {"schedule.buffer_goal": 9}], is_strict=False)
    assert good.report is not None
    assert (bad.number, bad.report) == (5, None)
    assert "schedule.buffer_goal: got 9" in bad.why


def test_the_spec_of_a_trial() -> None:
    base, _ = settled(tiny(), [LR], Asked())
    one = spec_at(base, {"client.lr": 0.3, "model.hidden": [4, 4]}, 9, 5, "n")
    assert (one.client.lr, one.model.hidden, one.seed, one.stop.server_steps, one.name) == (0.3, (4, 4), 9, 5, "n")
    assert one.tracking.experiment == "tiny"


def test_the_name_that_a_sweep_gives_itself() -> None:
    def key(*arguments: str, spec: dict[str, Any] | None = None, **asked: Any) -> str:
        return default_key(*settled(spec or tiny(), arguments, Asked(**asked)))

    usual = key(LR)
    assert usual.startswith("tiny-sweep-")
    same = tiny(tracking={"uri": "sqlite:///other.db"}, runtime={"kind": "ray", "workers": 2, "lanes": 4})
    assert key(LR, spec=same) == usual
    others = [key(LR, "client.batch_size=2"), key("client.lr=0.1,0.2"), key(LR, seeds=2), key(LR, rungs=(3,))]
    others += [key(LR, metric="loss"), key(LR, trials=2), key(LR, trials=2, batch=1), key(LR, "stop.server_steps=8")]
    assert len({usual, *others}) == 9
