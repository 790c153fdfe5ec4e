"""Whole runs against known limits: FedBuff that must be FedAvg, FedAvg that must be SGD, one rule in two forms."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.data import open_data
from atoll.experiment import as_spec
from atoll.experiment.building import parts_of
from atoll.experiment.modelling import first_version, lane_model_of
from atoll.experiment.storing import RunStore
from atoll.experiment.wiring import source_of
from atoll.learner import ClientWork, LoopClient
from atoll.messages import ModelVersion, model_digest
from atoll.runtime import MetricRow, RunResult, run_inline
from atoll.runtime.store import SqliteJournal
from atoll.tracking import RunInfo
from tiny_kit import tiny

torch.set_num_threads(1)
EQUAL = {"kind": "constant", "value_s": 60.0}


class Rows:
    """What a run left in its journal, and its timeline."""

    def __init__(self) -> None:
        self.rows: list[MetricRow] = []
        self.timeline: list[np.ndarray] = []

    def keep(self, rows: np.ndarray) -> None:
        self.timeline.append(rows)

    def close(self) -> None: ...

    def values(self, key: str) -> list[float]:
        return [value for name, _, value, _ in self.rows if name == key]


class Nobody:
    run_id = "run"

    """A publisher whom nobody reads."""

    def publish(self, rows) -> None: ...

    def upload(self, artifact, data) -> None: ...


def run(**sections: Any) -> tuple[RunResult, Rows, list[ModelVersion]]:
    """The run, its rows, and every version it made."""
    sections.setdefault("tracking", {"checkpoint_every_steps": 1})
    spec = as_spec(tiny(**sections))
    rows, models = Rows(), []

    def keep(model: ModelVersion) -> bytes:
        models.append(model)
        return b""

    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        parts = dataclasses.replace(
            parts_of(spec, store, "sqlite:///unused.db", None, RunInfo("e", "n", "k")),
            make_timeline=lambda epoch: rows,
            make_publisher=Nobody,
            encode_model=keep,
        )
        result = run_inline(parts)
        with SqliteJournal(Path(folder) / "journal.db", is_readonly=True) as journal:
            rows.rows = journal.rows()
    return result, rows, models


def population(devices: Mapping[str, Any], size: int = 60) -> dict[str, Any]:
    return {"size": size, "devices": dict(devices)}


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "lr": 0.7, "momentum": 0.9}, {"kind": "adam"}], ids=str)
def test_fedbuff_with_k_equal_c_and_equal_durations_is_fedavg(optimizer: dict[str, Any]) -> None:
    """Every buffer is then a round: the same clients' deltas, staleness 0 (fedbuff.md 11.1), on every step.

    The two schedules draw their clients by different keys, so everybody takes part in both: N = K = C, once a round.
    """
    everybody = population(EQUAL, size=6)
    sgd_only = {"lr": 0.1, "batch_size": 64}  # one batch: the order of examples, keyed by task, does not matter
    fedbuff, rows, steps = run(
        population=everybody,
        client=sgd_only,
        schedule={"kind": "async", "concurrency": 6, "buffer_goal": 6, "sampling": "without_replacement"},
        aggregation={"kind": "fedbuff", "server_optimizer": optimizer},
    )
    fedavg, _, rounds = run(
        population=everybody,
        client=sgd_only,
        schedule={"kind": "sync", "cohort": 6},
        aggregation={"kind": "fedavg", "server_optimizer": optimizer},
    )
    assert rows.values("staleness/mean") == [0.0] * 7
    assert fedbuff.virtual_hours == fedavg.virtual_hours
    for step, round_ in zip(steps, rounds, strict=True):
        assert step.version == round_.version
        np.testing.assert_allclose(step.dense, round_.dense, atol=1e-6)


def test_one_client_at_a_time_is_sequential_sgd() -> None:
    """K = C = 1, server rate 1: every version is where the client ended: one long SGD over the clients."""
    sections = {
        "population": population(EQUAL),
        "schedule": {"kind": "async", "concurrency": 1, "buffer_goal": 1},
        "runtime": {"kind": "inline", "lanes": 1},
    }
    _, rows, versions = run(**sections)
    spec = as_spec(tiny(**sections))
    data = open_data(source_of(spec))
    model = lane_model_of(spec, data.shape)
    loop = LoopClient(model=model, gather=data.gather, work=ClientWork(0.1, batch_size=4), seed=spec.seed)
    current = first_version(spec, data.shape)
    tasks = np.concatenate(rows.timeline)
    assert len(versions) == len(tasks) == 7
    for task, version in zip(tasks, versions, strict=True):
        delta = loop.train(int(task["task_id"]), int(task["client_id"]), int(task["num_examples"]), current)
        current = ModelVersion(version.version, current.dense - delta.dense)
        np.testing.assert_allclose(version.dense, current.dense, atol=1e-5)


def test_sum_with_rate_over_k_is_mean_with_rate() -> None:
    """(sum, η/K) ≡ (mean, η): two conventions of the field (fedbuff.md 2.1)."""
    found = []
    for normalizer, lr in (("mean", 0.8), ("sum", 0.8 / 3)):
        optimizer = {"kind": "sgd", "lr": lr, "momentum": 0.5}
        result, *_ = run(
            schedule={"kind": "async", "concurrency": 8, "buffer_goal": 3},
            aggregation={"kind": "fedbuff", "normalizer": normalizer, "server_optimizer": optimizer},
        )
        found.append(result.model.dense)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_constant_staleness_weight_at_staleness_zero_is_any_weight() -> None:
    """In rounds nobody is stale: s(0) = 1 whatever the rule, to the bit."""
    schedule = {"kind": "async", "concurrency": 4, "buffer_goal": 4}
    digests = set()
    for staleness in ({"kind": "constant"}, {"kind": "polynomial"}, {"kind": "threshold", "cutoff": 0}):
        result, *_ = run(
            population=population(EQUAL), schedule=schedule, aggregation={"kind": "fedbuff", "staleness": staleness}
        )
        digests.add(model_digest(result.model))
    assert len(digests) == 1


def test_fedasync_mixing_is_the_average_of_models() -> None:
    """K = C = 1 and α = 1: the server takes the client's model; both forms agree where nobody is stale."""
    found = []
    for form in ("mixing", "delta"):
        result, *_ = run(
            population=population(EQUAL),
            schedule={"kind": "async", "concurrency": 1, "buffer_goal": 1},
            aggregation={"kind": "fedasync", "form": form, "alpha": 1.0},
        )
        found.append(result.model.dense)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [{"kind": "async", "concurrency": 8, "buffer_goal": 2}, {"kind": "sync", "cohort": 4, "over_selection": 0.5}],
    ids=["async", "sync"],
)
def test_a_run_of_50_steps_is_the_first_half_of_one_of_100(schedule: dict[str, Any]) -> None:
    """Same digests of plan, timeline and model at step 50, and the same rows up to it."""
    rule = {"kind": "fedbuff" if schedule["kind"] == "async" else "fedavg"}
    fixed = {"schedule": schedule, "aggregation": rule, "evaluation": {"every_steps": 10, "metrics": ["loss"]}}
    short, short_rows, _ = run(stop={"server_steps": 50}, **fixed)
    _, long_rows, versions = run(stop={"server_steps": 100}, **fixed)
    assert model_digest(next(v for v in versions if v.version == 50)) == model_digest(short.model)
    science = [
        {(key, step): value for key, step, value, _ in rows.rows if not key.startswith("wall_")}
        for rows in (short_rows, long_rows)
    ]
    assert science[0] == {key: value for key, value in science[1].items() if key[1] <= 50}
    target = {"metric": "loss", "value": 0.0}
    stopped, *_ = run(stop={"server_steps": 50, "target": target}, **fixed)
    assert (stopped.plan_digest, stopped.timeline_digest) == (short.plan_digest, short.timeline_digest)


def test_a_client_that_diverges_is_zeroed_counted_and_keeps_its_place() -> None:
    """A bound below every delta: all are zeroed, the model stays, the steps close on time (design 9.2)."""
    result, rows, versions = run(aggregation={"kind": "fedbuff", "delta_bound": 1e-9})
    assert result.num_diverged == result.client_updates == 14
    assert rows.values("train/diverged") == [2.0] * 7
    assert len({version.dense.tobytes() for version in versions}) == 1
    assert result.model.version == 7
