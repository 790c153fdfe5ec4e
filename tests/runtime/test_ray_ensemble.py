"""An ensemble on Ray whose processes are killed, all leaves' coordinator among them, ends as the undisturbed one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ray_kit import Orders, facts, kill, on_ray, one_ray_at_a_time, spec_of

import atoll
from atoll import spec as sp
from atoll.experiment import EnsembleRun
from atoll.experiment.records import ENSEMBLE_FILE
from atoll.tracking.mlflow_tracker import client as mlflow_client

pytestmark = pytest.mark.ray

ENSEMBLE = {"controls": {"single": {}, "equal_updates": None, "random": None, "large": None}, "resamples": 50}


def spec(uri: str, **sections) -> sp.Spec:
    evaluation = {"every_steps": 10, "metrics": ["loss", "auc"], "server_share": 0.4}
    clusters = {"kind": "data_volume", "count": 3}
    common = {"clusters": clusters, "evaluation": evaluation, "ensemble": ENSEMBLE, "stop": {"server_steps": 90}}
    return sp.parse(spec_of(uri, **{**common, **sections}))


def everything(found: EnsembleRun, uri: str) -> dict:
    """Digests and rows of every member, the judgement, and what MLflow has of every arm."""
    store = mlflow_client(uri)
    experiment = store.get_run(found.parent_run_id).info.experiment_id
    children = store.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found.parent_run_id}'")
    members = {one.run_id for one in found.runs.values()}
    arms = {
        run.info.run_name: {
            key: [(row.step, row.value) for row in store.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in children
        if run.info.run_id not in members
    }
    kept = json.loads((Path(found.folder) / ENSEMBLE_FILE).read_text())["judgement"]
    return {"runs": {name: facts(one, uri) for name, one in found.runs.items()}, "arms": arms, "judgement": kept}


@pytest.mark.usefixtures("_orders_folder")
def test_nobody_can_tell_which_processes_were_killed(uri: str, folder: Path, orders: Orders) -> None:
    expected = everything(atoll.run_ensemble(spec(uri), runs_folder=folder), uri)
    assert len(expected["runs"]) == 1 + 3 and len(expected["arms"]) == 2  # noqa: PT018
    kinds = ["coordinator", "pool", "tracker", "coordinator", "pool"]
    done: list[str] = []

    def on_group(label: str, runs: Sequence[tuple[str, sp.Spec]]) -> Callable[[list[dict[str, float]]], None]:
        del label

        def disturb(figures: list[dict[str, float]]) -> None:
            steps = sum(one.get("step", 0) for one in figures)
            wanted = 12 * (len(done) + 1) * len(runs)
            if kinds and len(runs) > 1 and steps >= wanted and kill(kinds[0]):
                done.append(kinds.pop(0))

        return disturb

    with one_ray_at_a_time():
        orders.give("slow", "0.01")
        disturbed = spec(uri, runtime=on_ray(2))
        found = atoll.run_ensemble(disturbed, key="storm", on_group=on_group, runs_folder=folder)
    assert not kinds, f"too late to be called the middle: {kinds}"
    assert everything(found, uri) == expected
