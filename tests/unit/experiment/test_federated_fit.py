"""Over-archs by federated learning: what leaves say is the clients' data, and what comes out joins the leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import aggregation as agg
from atoll import spec as sp
from atoll.data import ClientData, LeafOutputsSource, open_data
from atoll.data.leaf_outputs import read_scaling
from atoll.errors import SpecError
from atoll.evaluation import outputs
from atoll.experiment import Run, plan, run, splitting
from atoll.experiment.federated_fit import over_arch_from, over_arch_spec, write_leaf_outputs
from atoll.experiment.judging import judge
from atoll.experiment.modelling import lane_model_of
from atoll.experiment.study import EnsembleArm, Study, study_of
from atoll.messages import ModelVersion
from judging_kit import data_of, ensemble_spec, trained

pytestmark = pytest.mark.usefixtures("_no_plots")
FIT: dict[str, Any] = {
    "kind": "federated",
    "client": {"lr": 0.3, "batch_size": 4},
    "schedule": {"kind": "sync", "cohort": 20},
    "aggregation": {"kind": "fedavg"},
    "stop": {"server_steps": 40},
}
BUFFERED = {
    **FIT,
    "schedule": {"kind": "async", "concurrency": 10, "buffer_goal": 5},
    "aggregation": {"kind": "fedbuff"},
}
Made = tuple[sp.Spec, Study, EnsembleArm, dict[str, ModelVersion], ClientData]


def made(over_arch: dict[str, Any], fit: dict[str, Any] = FIT, **sections: Any) -> Made:
    spec = ensemble_spec(ensemble={"over_arch": over_arch, "fit": fit, "resamples": 100}, comparison=None, **sections)
    study = study_of(spec, data_of)
    arm = next(arm for arm in study.arms if arm.role == "ensemble")
    return spec, study, arm, trained(study), data_of(spec)


def written(one: Made, folder: Path) -> LeafOutputsSource:
    _, study, arm, models, data = one
    return write_leaf_outputs(arm, study.members, data, models, folder)


def said(one: Made, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Outputs [R, N, K] as they are."""
    _, study, arm, models, data = one
    kind = arm.spec.ensemble.over_arch.inputs  # type: ignore[union-attr]
    specs = {member.name: member.spec for member in study.members}
    return np.stack(
        [outputs(lane_model_of(specs[name], data.shape), models[name], arrays, kind=kind) for name in arm.members],
        axis=1,
    )


@pytest.mark.parametrize("inputs", ["logits", "penultimate"])
def test_every_row_of_every_client_is_what_the_leaves_say(inputs: str, tmp_path: Path) -> None:
    one = made({"kind": "logistic", "inputs": inputs})
    data, source = one[4], written(one, tmp_path)
    leaf_data = open_data(source)
    mean, std = read_scaling(source)
    assert leaf_data.num_clients == data.num_clients
    np.testing.assert_array_equal(leaf_data.counts(), data.counts())
    for client in range(data.num_clients):
        positions = np.arange(data.counts()[client])[None]
        raw, own = (each.gather(np.array([client]), positions) for each in (data, leaf_data))
        z = said(one, {"x": raw["x"][0]})
        np.testing.assert_allclose(own["x"][0] * std + mean, z.reshape(len(z), -1), atol=1e-5)
        np.testing.assert_array_equal(own["y"], raw["y"])
    for name, part in data.held_out().items():
        own_part = leaf_data.held_out()[name]
        z = said(one, part.arrays)
        np.testing.assert_allclose(own_part.arrays["x"] * std + mean, z.reshape(len(z), -1), atol=1e-5)
        np.testing.assert_array_equal(own_part.client, part.client)
        np.testing.assert_array_equal(own_part.train_examples, part.train_examples)
    z = said(one, splitting.server_rows(one[2].spec, data).arrays)
    np.testing.assert_allclose(mean, z.reshape(len(z), -1).mean(0), rtol=1e-9)


def test_the_same_rows_are_measured_on_and_nobody_elses(tmp_path: Path) -> None:
    one = made({"kind": "logistic"})
    fit = over_arch_spec(one[2], written(one, tmp_path))
    leaf_data = open_data(written(one, tmp_path))
    expected = splitting.test_rows(one[2].spec, one[4])
    np.testing.assert_array_equal(splitting.test_rows(fit, leaf_data).client, expected.client)


def test_without_server_rows_the_training_rows_scale(tmp_path: Path) -> None:
    one = made({"kind": "logistic"}, evaluation={"metrics": ["loss"]})
    leaf_data = open_data(written(one, tmp_path))
    np.testing.assert_allclose(leaf_data.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(leaf_data.x.std(0), 1, atol=1e-5)


def test_the_file_is_a_function_of_leaves_and_data(tmp_path: Path) -> None:
    one = made({"kind": "logistic"})
    first, second = written(one, tmp_path / "a"), written(one, tmp_path / "b")
    assert first.digest == second.digest == open_data(first).identity
    assert Path(first.path).name == Path(second.path).name
    assert repr(first) == repr(second)
    models = dict(one[3])
    name = one[2].members[0]
    models[name] = replace(models[name], dense=models[name].dense + 1)
    assert write_leaf_outputs(one[2], one[1].members, one[4], models, tmp_path / "a").digest != first.digest


def test_a_file_that_is_there_is_taken_and_one_that_was_changed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made({"kind": "logistic"})
    source = written(one, tmp_path)
    path = Path(source.path)
    before = path.stat().st_mtime_ns
    assert written(one, tmp_path) == source
    assert path.stat().st_mtime_ns == before
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["y"] = 1 - arrays["y"]
    np.savez(path, **arrays)
    with pytest.raises(SpecError, match=r"data\.digest.*has changed"):
        open_data(source)
    assert written(one, tmp_path) == source
    open_data(source)
    path.write_bytes(b"something else")
    with pytest.raises(SpecError, match=r"data\.path"):
        open_data(source)


def test_a_leaf_that_diverged_is_told_with_counts(tmp_path: Path) -> None:
    one = made({"kind": "logistic"})
    name = one[2].members[0]
    one[3][name] = replace(one[3][name], dense=np.full_like(one[3][name].dense, np.nan))
    with pytest.raises(SpecError, match=r"rows of which a leaf of .* says NaN"):
        written(one, tmp_path)


def fitted(one: Made, folder: Path, uri: str) -> tuple[Run, LeafOutputsSource]:
    source = written(one, folder)
    spec = over_arch_spec(one[2], source)
    spec = sp.derived(spec, {"tracking.uri": uri})
    return run(spec, runs_folder=folder), source


@pytest.mark.parametrize(
    ("over_arch", "fit"),
    [
        ({"kind": "logistic"}, FIT),
        ({"kind": "logistic", "inputs": "penultimate"}, BUFFERED),
        ({"kind": "mlp", "hidden": [4, 3]}, FIT),
    ],
)
def test_an_ordinary_run_fits_it(
    over_arch: dict[str, Any], fit: dict[str, Any], tmp_path: Path, mlflow_uri: str
) -> None:
    one = made(over_arch, fit)
    arm, data = one[2], one[4]
    done, source = fitted(one, tmp_path, mlflow_uri)
    version = done.model()
    joined = over_arch_from(version, arm, source)
    assert joined.kind == over_arch["kind"]
    test = splitting.test_rows(arm.spec, data)
    z = said(one, test.arrays)
    # what it says is what the run's own model says of the same rows, standardised
    spec, leaf_data = over_arch_spec(arm, source), open_data(source)
    own = splitting.test_rows(spec, leaf_data).arrays
    expected = outputs(lane_model_of(spec, leaf_data.shape), version, own, kind="logits")[:, 0]
    np.testing.assert_allclose(joined.apply(z), expected, atol=1e-4)
    labels = test.arrays["y"]
    loss = float(np.mean(np.logaddexp(0, expected) - labels * expected))
    assert done.metrics["eval/loss"] == pytest.approx(loss, abs=1e-5)
    assert agg.OverArch.from_arrays(joined.kind, joined.arrays()).digest == joined.digest


def test_it_learns_and_is_judged(tmp_path: Path, mlflow_uri: str) -> None:
    one = made({"kind": "logistic"})
    _, study, arm, models, _ = one
    done, source = fitted(one, tmp_path, mlflow_uri)
    joined = over_arch_from(done.model(), arm, source)
    judgement = judge(study, data_of, models, {}, {arm.name: joined})
    (own,) = judgement.arms
    assert own.over_arch.digest == joined.digest
    assert own.fitted_on == "fitted by federated learning"
    assert own.joined["loss"] < own.mean["loss"]
    assert len(judgement.left_out) == len(study.arms) - 1


def test_the_run_is_ordinary_and_does_not_care_where_the_file_lies(tmp_path: Path) -> None:
    one = made({"kind": "mlp", "hidden": [4]}, BUFFERED, population={"size": 30, "device_memory_bytes": 1_000_000})
    first, second = (over_arch_spec(one[2], written(one, tmp_path / name)) for name in ("a", "b"))
    assert sp.digest(first) == sp.digest(second)
    assert first.data != second.data
    assert plan(first).plan_digest == plan(second).plan_digest
    assert (first.ensemble, first.clusters.kind, first.population.device_memory_bytes) == (None, "single", None)
    assert (first.population.size, first.stop.server_steps, first.seed) == (30, 40, one[0].seed)
    assert sp.parse(sp.to_dict(first)) == first


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (
            {**FIT, "schedule": {"kind": "sync", "cohort": 41}},
            "fit.schedule.cohort: got 41 tasks at once; need at most",
        ),
        (
            {**FIT, "schedule": {"kind": "sync", "cohort": 40, "over_selection": 0.1}},
            "fit.schedule.cohort: got 44 tasks at once; need at most the population's 40 clients",
        ),
        (
            {**BUFFERED, "schedule": {"kind": "async", "concurrency": 50, "buffer_goal": 5}},
            "fit.schedule.concurrency: got 50 tasks at once",
        ),
    ],
)
def test_a_fit_that_the_clients_cannot_carry_is_refused_before_anything_is_trained(
    fit: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SpecError, match=expected):
        made({"kind": "logistic"}, fit)
