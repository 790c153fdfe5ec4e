"""`atoll plan --pools`: what the figures rest on, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.errors import SpecError
from atoll.experiment import predict
from tiny_kit import tiny

SYNC = {"schedule": {"kind": "sync", "cohort": 8}, "aggregation": {"kind": "fedavg"}, "stop": {"server_steps": 6}}
#: no evaluation but the first and the last
RARELY = {"every_steps": 1000, "metrics": ["loss"]}


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Writes an entry for a spec's model; returns the override that names it."""

    def write(spec: dict[str, Any], **figures: Any) -> str:
        from atoll.experiment.modelling import shape_of
        from atoll.experiment.opened import data_of

        resolved = atoll.experiment.as_spec(spec)
        model = shape_of(resolved, data_of(resolved).shape).identity
        entry = {"model": model, "device_class": "cpu", "kernel": "compiled", "lanes": 4, **figures}
        (tmp_path / "profile.json").write_text(json.dumps({"profile": [entry]}))
        return f"runtime.profile={tmp_path / 'profile.json'}"

    return write


MEASURED = {
    "client_updates_per_s": 10.0,
    "machine": "an abacus",
    "block_s": 0.0,
    "update_s": 1.0,
    "example_s": 0.0,
    "evaluation_s": 2.0,
}


def test_measured_costs_are_used_and_named(table: Any) -> None:
    spec = tiny(**SYNC, evaluation=RARELY)
    found = predict(spec, table(spec, **MEASURED), pools=(1, 4))
    one, four = found.predictions
    # 6 steps of 8 client updates, and the evaluations of versions 0 and 6
    assert one.wall_s == pytest.approx(6 * 8 + 2 * 2, rel=0.02)
    assert one.wall_s / 4 < four.wall_s < one.wall_s
    assert found.is_measured
    assert "an abacus" in found.assumptions[0]
    assert "NOT MEASURED" not in "".join(found.assumptions)


def test_examples_cost_in_every_epoch(table: Any) -> None:
    def wall_s(epochs: int) -> float:
        spec = tiny(**SYNC, evaluation=RARELY)
        named = table(spec, **{**MEASURED, "update_s": 0.0, "example_s": 1.0, "evaluation_s": 0.0})
        return predict(spec, named, f"client.epochs={epochs}", pools=[1]).predictions[0].wall_s

    assert wall_s(3) == pytest.approx(3 * wall_s(1), rel=0.02)


def test_without_a_table_the_assumption_is_called_one() -> None:
    found = predict(tiny(**SYNC), pools=[1])
    assert not found.is_measured
    assert "NOT MEASURED" in found.assumptions[0]
    assert "atoll tune" in found.assumptions[0]
    assert found.predictions[0].wall_s > 0


def test_an_older_table_gives_client_updates_per_second_alone(table: Any) -> None:
    spec = tiny(**SYNC, evaluation=RARELY)
    found = predict(spec, table(spec, client_updates_per_s=4.0), pools=[1])
    assert found.predictions[0].wall_s == pytest.approx(6 * 8 / 4, rel=0.02)
    assert not found.is_measured


def test_figures_that_are_no_seconds_are_refused(table: Any) -> None:
    spec = tiny(**SYNC)
    with pytest.raises(SpecError, match=r"runtime\.profile(.|\n)*update_s(.|\n)*atoll tune"):
        predict(spec, table(spec, **{**MEASURED, "update_s": -1.0}), pools=[1])


def test_a_target_is_an_assumption_too() -> None:
    text = " ".join(predict(tiny(**SYNC), pools=[1]).assumptions)
    assert "stop.target" not in text
    stop = {"server_steps": 6, "target": {"metric": "loss", "value": 0.1}}
    text = " ".join(predict(tiny(**{**SYNC, "stop": stop}), pools=[1]).assumptions)
    assert "when it reaches stop.target is not known" in text


def test_the_plan_is_that_of_plan() -> None:
    found, alone = predict(tiny(), pools=[1, 64]), atoll.plan(tiny())
    assert found.report.as_dict() == alone.as_dict()
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert [one["pools"] for one in json.loads(text)["predictions"]] == [1, 64]


def test_gpus_are_counted_in_gpu_hours() -> None:
    gpu = {"kind": "ray", "workers": 2, "device_class": "cuda", "gpus_per_worker": 0.5, "lanes": 4}
    found = predict(tiny(**SYNC, runtime=gpu), pools=[4])
    (one,) = found.predictions
    assert found.gpu_hours(one) == pytest.approx(one.pool_hours / 2)
    assert any("Every pool has a GPU" in text for text in found.assumptions)


@pytest.mark.parametrize("pools", [[], [0], [1, -2], [10**9]])
def test_numbers_of_pools_that_are_none_are_refused(pools: list[int]) -> None:
    with pytest.raises(SpecError, match="numbers of client pools"):
        predict(tiny(), pools=pools)


def test_what_is_wrong_with_the_plan_is_told_as_ever() -> None:
    with pytest.raises(SpecError, match=r"evaluation\.metrics"):
        predict(tiny(), "data.classes=3", pools=[1])
