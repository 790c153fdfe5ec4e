"""Every kind that a spec may name becomes the record of its room, with the spec's values in the right fields."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from atoll import aggregation as agg
from atoll import data as da
from atoll import models as mo
from atoll import population as po
from atoll import schedules as sc
from atoll import spec as sp
from atoll import timeline as tl
from atoll.data import open_data
from atoll.errors import SpecError
from atoll.experiment.modelling import (
    client_work_of,
    first_version,
    inputs_of,
    kernel_of,
    kernel_problems,
    lane_model_of,
    lanes_of,
    settings_of,
    shape_of,
)
from atoll.experiment.wiring import (
    grid_of,
    population_of,
    rate_of,
    rule_of,
    schedule_of,
    source_of,
    tasks_per_step,
    weighting_of,
)
from tiny_kit import tiny


def parsed(**sections) -> sp.Spec:
    return sp.parse(tiny(**sections))


PARQUET = {
    "kind": "parquet", "path": "d.parquet", "client_column": "who", "label_column": "y", "features": ["a", "b"],
    "categories": ["c"], "task": "multiclass", "holdout": 0.3, "unseen": 0.25,
}  # fmt: skip
MOVIELENS = {
    "kind": "movielens", "path": "ml", "threshold": 5, "history": 10, "user_id": True, "holdout": 0.3, "unseen": 0.25,
}  # fmt: skip
ARRAYS = {"kind": "arrays", "path": "a.npz", "clients": 7}
SYNTHETIC = {
    "kind": "synthetic", "features": 3, "classes": 4, "categories": [10, 20], "feature_heterogeneity": 0.5,
    "label_heterogeneity": 0.25, "examples": {"kind": "constant", "count": 9},
}  # fmt: skip
LOG_NORMAL = {"kind": "log_normal", "median": 11.0, "sigma": 0.5, "max": 99}
LOSS = {"metrics": ["loss"]}
FROM_DATA = {"size": "data"}


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        ({"kind": "flights", "weather": False}, {"kind": "mlp"}, da.Flights(weather=False)),
        ({"kind": "shakespeare", "stride": 5}, {"kind": "char_lstm"}, da.Shakespeare(stride=5)),
        (MOVIELENS, {"kind": "mlp"}, da.Movielens(5, 10, True, 0.3, 0.25, "ml")),
        ({**PARQUET, "attributes": ["d"]}, {"kind": "mlp"},
         da.ParquetSource("d.parquet", "who", "y", ("a", "b"), ("c",), "multiclass", 0.3, 0.25, attributes=("d",))),
        (PARQUET, {"kind": "mlp"},
         da.ParquetSource("d.parquet", "who", "y", ("a", "b"), ("c",), "multiclass", 0.3, 0.25)),
        (ARRAYS, {"kind": "mlp"}, da.ArraysSource("a.npz", da.Iid(), 7, 3)),
        (ARRAYS | {"partition": {"kind": "dirichlet", "alpha": 0.7}}, {"kind": "mlp"},
         da.ArraysSource("a.npz", da.Dirichlet(0.7), 7, 3)),
        (ARRAYS | {"partition": {"kind": "shards", "per_client": 5}}, {"kind": "mlp"},
         da.ArraysSource("a.npz", da.Shards(5), 7, 3)),
        (ARRAYS | {"partition": {"kind": "quantity_skew", "sigma": 1.5}}, {"kind": "mlp"},
         da.ArraysSource("a.npz", da.QuantitySkew(1.5), 7, 3)),
        ({"kind": "custom", "factory": "a.b:c", "arguments": {"n": 1}}, {"kind": "mlp"},
         da.CustomSource("a.b:c", {"n": 1})),
    ],
    ids=lambda value: str(value.get("kind", "")) if isinstance(value, dict) else "",
)  # fmt: skip
def test_data(data, model, expected) -> None:
    assert source_of(parsed(data=data, model=model, population=FROM_DATA, evaluation=LOSS)) == expected


def test_fields_that_came_later_leave_the_digest_as_it_was() -> None:
    def digest(kernel: str = "lanes", precision: str = "float32", **data) -> str:
        client = {"lr": 0.1, "batch_size": 4, "precision": precision}
        sections = {"runtime": {"kind": "inline", "lanes": 4, "kernel": kernel}, "client": client}
        return sp.digest(parsed(data=PARQUET | data, population=FROM_DATA, evaluation=LOSS, **sections))

    # of the same spec before `attributes` and `kernel` were there: all blocks were trained by lanes
    assert digest() == "8f944496cd4ef27b0f630f03f231250459a45ebf8c030cc991473bded036c321"
    assert digest(attributes=["d"]) != digest()
    assert digest(kernel="auto") != digest()
    assert digest(precision="bfloat16") != digest()


def test_synthetic_data_has_as_many_clients_as_the_population() -> None:
    found = source_of(parsed(data=SYNTHETIC, population={"size": 123}, evaluation=LOSS))
    assert found == da.SyntheticSource(
        num_clients=123, num_features=3, num_classes=4, categories=(10, 20), examples=da.ConstantExamples(9),
        feature_heterogeneity=0.5, label_heterogeneity=0.25, seed=3,
    )  # fmt: skip
    skewed = source_of(parsed(data={"kind": "synthetic", "examples": LOG_NORMAL}))
    assert isinstance(skewed, da.SyntheticSource)
    assert skewed.examples == da.LogNormalExamples(11.0, 0.5, 99)


@pytest.mark.parametrize(
    ("devices", "law"),
    [
        ({"kind": "constant", "value_s": 5.0}, po.Constant(5.0)),
        ({"kind": "half_normal", "scale_s": 7.0, "min_s": 2.0}, po.HalfNormal(7.0, 2.0)),
        ({"kind": "exponential", "mean_s": 8.0}, po.Exponential(8.0)),
        ({"kind": "log_normal", "median_s": 9.0, "sigma": 0.3}, po.LogNormal(9.0, 0.3)),
        ({"kind": "papaya"}, po.PapayaHistogram()),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_devices(devices, law) -> None:
    shared = {
        "per_example_s": 0.5, "overhead_s": 3.0, "dropout": 0.25, "jitter_sigma": 0.1, "size_correlation": -0.5,
        "timeout_s": 600.0,
    }  # fmt: skip
    spec = parsed(population={"size": 60, "devices": devices | shared})
    assert population_of(spec, open_data(source_of(spec))).devices == po.Devices(law=law, **shared)


def test_measured_devices(tmp_path) -> None:
    path = tmp_path / "times.parquet"
    pq.write_table(pa.table({"seconds": [3.0, 1.0, 2.0], "name": ["a", "b", "c"]}), path)
    devices = {"kind": "table", "path": str(path), "column": "seconds"}
    spec = parsed(population={"size": 60, "devices": devices})
    law = population_of(spec, open_data(source_of(spec))).devices.law
    assert [float(law.quantile(np.array([u]))[0]) for u in (0.0, 0.999999)] == [1.0, 3.0]
    wrong = parsed(population={"size": 60, "devices": devices | {"column": "name"}})
    with pytest.raises(SpecError, match=r"population\.devices\.column: got 'name'; need a column of numbers"):
        population_of(wrong, open_data(source_of(wrong)))


def test_availability(tmp_path) -> None:
    def availability_of(availability):
        spec = parsed(population={"size": 60, "availability": availability})
        return population_of(spec, open_data(source_of(spec))).availability

    assert availability_of({"kind": "always"}) == po.Always()
    diurnal = {"kind": "diurnal", "start_hour": 20.0, "hours": 6.0, "spread_hours": 1.0}
    assert availability_of(diurnal) == po.Diurnal(20.0, 6.0, 1.0)
    path = tmp_path / "windows.csv"
    path.write_text("client,start_s,end_s\nb,50,60\na,10,20\nb,0,5\n")
    found = availability_of({"kind": "intervals", "path": str(path), "period_s": 100.0})
    assert isinstance(found, po.Intervals)
    assert found.offsets.tolist() == [0, 1, 3]
    assert found.starts_us.tolist() == [10_000_000, 0, 50_000_000]
    assert found.ends_us.tolist() == [20_000_000, 5_000_000, 60_000_000]
    assert found.period_us == 100_000_000


def test_a_population_of_the_data_or_of_its_own_size() -> None:
    spec = parsed(data={"kind": "flights"}, population=FROM_DATA)
    data = open_data(source_of(spec))
    everyone = population_of(spec, data)
    assert (everyone.size, everyone.seed) == (data.num_clients, 3)
    assert everyone.num_examples(np.arange(9)).tolist() == data.counts()[:9].tolist()
    more = population_of(parsed(data={"kind": "flights"}, population={"size": 10**6}), data)
    assert more.size == 10**6
    far = np.array([0, data.num_clients, 10**6 - 1])
    assert more.num_examples(far).tolist() == data.num_examples(far).tolist()


def test_generated_sizes_are_the_datas_own() -> None:
    spec = parsed(data={"kind": "synthetic", "examples": LOG_NORMAL})
    data = open_data(source_of(spec))
    ids = np.arange(60)
    assert population_of(spec, data).num_examples(ids).tolist() == data.num_examples(ids).tolist()


def test_schedules() -> None:
    options = {"max_staleness": 5, "sampling": "without_replacement"}
    spec = parsed(schedule={"kind": "async", "concurrency": 9, "buffer_goal": 3} | options)
    assert schedule_of(spec) == tl.AsyncSchedule(9, 3, 5, "without_replacement")
    assert tasks_per_step(spec) == 3
    sync = {"kind": "sync", "cohort": 6, "over_selection": 0.5, "deadline_s": 1.5, "sampling": "with_replacement"}
    spec = parsed(schedule=sync, aggregation={"kind": "fedavg"})
    assert schedule_of(spec) == tl.SyncSchedule(6, 0.5, 1_500_000, "with_replacement")
    assert tasks_per_step(spec) == 6
    plain = parsed(schedule={"kind": "sync", "cohort": 6}, aggregation={"kind": "fedavg"})
    assert schedule_of(plain) == tl.SyncSchedule(6, 0.0, None, "without_replacement")


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        ({"kind": "constant"}, agg.ConstantStaleness()),
        ({"kind": "polynomial", "exponent": 2.0}, agg.PolynomialStaleness(2.0)),
        ({"kind": "threshold", "cutoff": 4, "value_after": 0.5}, agg.ThresholdStaleness(4, 0.5)),
    ],
)
@pytest.mark.parametrize(
    ("weighting", "examples"),
    [("equal", agg.EqualWeight()), ("examples", agg.ExampleCount()), ("sqrt", agg.SqrtExamples()),
     ("log", agg.LogExamples())],
)  # fmt: skip
def test_weights(staleness, expected, weighting, examples) -> None:
    spec = parsed(aggregation={"kind": "fedbuff", "staleness": staleness, "weighting": {"kind": weighting}})
    assert weighting_of(spec) == agg.Weighting(expected, examples)
    assert rule_of(spec).divergence_shrinks_divisor == (weighting != "equal")


def test_weights_of_fedavg_and_fedasync() -> None:
    sync = {"kind": "sync", "cohort": 6}
    spec = parsed(schedule=sync, aggregation={"kind": "fedavg", "weighting": {"kind": "examples"}})
    assert weighting_of(spec) == agg.Weighting(agg.ConstantStaleness(), agg.ExampleCount())
    each = {"kind": "async", "concurrency": 9, "buffer_goal": 1}
    spec = parsed(schedule=each, aggregation={"kind": "fedasync", "alpha": 0.25, "form": "delta"})
    assert weighting_of(spec) == agg.Weighting(agg.PolynomialStaleness(0.5), agg.EqualWeight(), scale=0.25)
    assert (rule_of(spec).form, rule_of(spec).normalizer) == ("delta", "mean")
    assert rule_of(parsed(schedule=each, aggregation={"kind": "fedasync"})).form == "mixing"


@pytest.mark.parametrize("normalizer", ["mean", "sum"])
def test_the_normalizer_reaches_the_rule(normalizer) -> None:
    assert rule_of(parsed(aggregation={"kind": "fedbuff", "normalizer": normalizer})).normalizer == normalizer


RATES = [
    ({"kind": "constant"}, sc.ConstantRate()),
    ({"kind": "step", "every_steps": 4, "factor": 0.5}, sc.StepRate(4, 0.5)),
    ({"kind": "cosine", "total_steps": 9, "final": 0.1}, sc.CosineRate(9, 0.1)),
    ({"kind": "inverse_sqrt", "warmup_steps": 3}, sc.InverseSqrtRate(3)),
]


@pytest.mark.parametrize(("rate", "expected"), RATES, ids=lambda value: getattr(value, "kind", ""))
def test_rates_of_client_and_server(rate, expected) -> None:
    server = {"kind": "sgd", "schedule": rate}
    spec = parsed(client={"lr": 0.1, "schedule": rate}, aggregation={"kind": "fedbuff", "server_optimizer": server})
    assert rate_of(spec.client.schedule) == expected
    assert client_work_of(spec).schedule == expected
    assert rule_of(spec).optimizer == agg.ServerSgd(1.0, 0.0, expected)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"kind": "sgd", "lr": 0.5, "momentum": 0.9}, agg.ServerSgd(0.5, 0.9, sc.ConstantRate())),
        ({"kind": "adam", "lr": 0.5, "beta1": 0.8, "beta2": 0.7, "eps": 0.1},
         agg.Adam(0.5, 0.8, 0.7, 0.1, sc.ConstantRate())),
        ({"kind": "adagrad", "lr": 0.5, "beta1": 0.8, "eps": 0.1}, agg.Adagrad(0.5, 0.8, 0.1, sc.ConstantRate())),
        ({"kind": "yogi", "lr": 0.5, "beta1": 0.8, "beta2": 0.7, "eps": 0.1},
         agg.Yogi(0.5, 0.8, 0.7, 0.1, sc.ConstantRate())),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_server_optimizers(optimizer, expected) -> None:
    assert rule_of(parsed(aggregation={"kind": "fedbuff", "server_optimizer": optimizer})).optimizer == expected


def test_the_grid_holds_the_largest_sum_that_a_step_can_have() -> None:
    weights = {"kind": "fedbuff", "weighting": {"kind": "examples"}, "delta_bound": 10.0}
    spec = parsed(data={"kind": "synthetic", "examples": LOG_NORMAL}, aggregation=weights)
    grid = grid_of(spec, open_data(source_of(spec)))
    assert (grid.delta_bound, grid.weight_bound) == (10.0, 2 * 99)
    flights = parsed(data={"kind": "flights"}, population=FROM_DATA, aggregation=weights)
    data = open_data(source_of(flights))
    assert grid_of(flights, data).weight_bound == 2 * int(data.counts().max())
    equal = parsed(aggregation={"kind": "fedbuff"})
    assert grid_of(equal, open_data(source_of(equal))).weight_bound == 2
    assert 10.0 * grid.weight_bound * grid.scale <= 2**62


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"kind": "logistic"}, mo.Logistic()),
        ({"kind": "mlp", "hidden": [5, 6], "embedding_dim": 3}, mo.Mlp((5, 6), 3)),
        ({"kind": "cnn", "channels": [4]}, mo.Cnn((4,))),
        ({"kind": "char_lstm", "embedding": 4, "hidden": 5, "layers": 1}, mo.CharLstm(4, 5, 1)),
        ({"kind": "custom", "factory": "a:b", "arguments": {"n": 2}}, mo.Custom("a:b", {"n": 2})),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_models(model, expected) -> None:
    data = {"cnn": ARRAYS, "char_lstm": {"kind": "shakespeare"}}.get(model["kind"], {"kind": "flights"})
    assert settings_of(parsed(model=model, data=data, population=FROM_DATA, evaluation=LOSS)) == expected


def test_shape_and_lanes() -> None:
    spec = parsed(data=SYNTHETIC, evaluation=LOSS)
    data = open_data(source_of(spec))
    inputs = inputs_of(data.shape)
    assert (inputs.num_outputs, inputs.category_sizes) == (4, (10, 20))
    shape = shape_of(spec, data.shape)
    assert lane_model_of(spec, data.shape).shape == shape
    assert lanes_of(spec, shape) == 4
    auto = parsed(data=SYNTHETIC, evaluation=LOSS, runtime={"kind": "inline", "lanes": "auto"})
    assert 1 <= lanes_of(auto, shape) <= 1024


def test_client_work() -> None:
    client = {
        "lr": 0.5, "epochs": 2, "batch_size": 8, "momentum": 0.9, "weight_decay": 0.01, "proximal_mu": 0.1,
        "short_batch_scaling": True, "precision": "bfloat16",
    }  # fmt: skip
    work = client_work_of(parsed(client=client))
    assert {name: getattr(work, name) for name in client} == client


def test_weights_to_start_from(tmp_path) -> None:
    spec = parsed()
    data = open_data(source_of(spec))
    drawn = first_version(spec, data.shape)
    assert drawn.version == 0
    assert not np.array_equal(drawn.dense, first_version(parsed(seed=4), data.shape).dense)
    path = tmp_path / "w.safetensors"
    changed = type(drawn)(42, drawn.dense + 1, drawn.tables)
    mo.save_version(path, changed, shape_of(spec, data.shape))
    found = first_version(parsed(model={"kind": "mlp", "hidden": [8], "init_from": str(path)}), data.shape)
    assert found.version == 0
    assert np.array_equal(found.dense, changed.dense)
    assert math.isfinite(float(found.dense.sum()))


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3))


def with_dropout() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))


def recurrent() -> torch.nn.Module:
    return torch.nn.GRU(4, 3)


@pytest.mark.parametrize(
    ("model", "cpu", "cuda"),
    [
        ({"kind": "logistic"}, "compiled", "lanes"),
        ({"kind": "mlp"}, "compiled", "lanes"),
        ({"kind": "wide_deep"}, "compiled", "lanes"),
        ({"kind": "dlrm"}, "compiled", "lanes"),
        ({"kind": "cnn"}, "single", "lanes"),
        ({"kind": "char_lstm"}, "single", "lanes"),
        ({"kind": "custom", "factory": "test_wiring:small"}, "lanes", "lanes"),
        ({"kind": "custom", "factory": "test_wiring:recurrent"}, "single", "lanes"),
        ({"kind": "custom", "factory": "test_wiring:with_dropout"}, "single", "single"),
    ],
    ids=str,
)
def test_the_kernel_that_auto_takes(model, cpu, cuda, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    data = {"cnn": ARRAYS, "char_lstm": {"kind": "shakespeare"}}.get(model["kind"], {"kind": "flights"})
    arguments = {"model": model, "data": data, "population": FROM_DATA, "evaluation": LOSS}
    assert kernel_of(parsed(**arguments, runtime={"kind": "inline"})) == cpu
    on_gpu = {"kind": "ray", "device_class": "cuda", "gpus_per_worker": 1}
    assert kernel_of(parsed(**arguments, runtime=on_gpu)) == cuda
    half = parsed(**arguments, runtime={"kind": "inline"}, client={"lr": 0.1, "precision": "bfloat16"})
    assert kernel_of(half) == ("lanes" if cpu == "compiled" else cpu)


def test_lanes_cannot_draw_for_each_client_alone(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = {"kind": "custom", "factory": "test_wiring:with_dropout"}
    arguments = {"model": model, "data": {"kind": "flights"}, "population": FROM_DATA, "evaluation": LOSS}
    (problem,) = kernel_problems(parsed(**arguments, runtime={"kind": "inline", "kernel": "lanes"}))
    assert problem.path == "runtime.kernel"
    assert not kernel_problems(parsed(**arguments, runtime={"kind": "inline", "kernel": "single"}))
