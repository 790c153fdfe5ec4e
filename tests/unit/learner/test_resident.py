"""What stays on a device between blocks; a pretended one: torch's `meta` where no values matter, else the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atoll.data import client_table
from atoll.learner import ClientWork, Learner, SingleLearner
from atoll.learner.resident import ResidentExamples, ResidentVersions, on_device, resident_examples
from atoll.messages import ModelVersion
from atoll.models import Custom, Mlp, ModelInputs, build_model, init_version
from cluster_kit import people
from lane_kit import GRID, SEED, block_of

CPU, FAR = torch.device("cpu"), torch.device("meta")


def version(number: int, size: int = 4) -> ModelVersion:
    return ModelVersion(number, np.full(size, number, dtype=np.float32))


def test_a_version_goes_to_the_device_once() -> None:
    held = ResidentVersions(FAR, budget_bytes=1000)
    models = [version(0), version(1)]
    held.stacked(models)
    first = held.dense(models[0])
    assert held.stacked([models[1], models[0]]).shape == (2, 4)
    assert held.dense(models[0]) is first
    assert len(held) == 2


def test_the_least_recently_used_go_first() -> None:
    held = ResidentVersions(FAR, budget_bytes=2 * 16)
    zero, one, two = map(version, range(3))
    kept = held.dense(zero), held.dense(one)
    held.stacked([zero])
    held.stacked([two])
    assert len(held) == 2
    assert held.dense(zero) is kept[0]
    assert held.dense(one) is not kept[1]


def test_one_number_with_other_weights_is_another_version() -> None:
    """A replay, or a run after this one in the same process."""
    held = ResidentVersions(CPU, budget_bytes=1000)
    model = version(3)
    assert held.dense(model).tolist() == [3.0] * 4
    assert held.dense(replace(model, dense=model.dense + 1)).tolist() == [4.0] * 4


def test_what_one_block_needs_is_there_whatever_it_takes() -> None:
    held = ResidentVersions(FAR, budget_bytes=0)
    assert held.stacked([version(0), version(1), version(2)]).shape == (3, 4)
    assert len(held) == 0


def test_on_cpus_nothing_is_kept() -> None:
    held = ResidentVersions(CPU)
    models = [version(1), version(0)]
    assert held.stacked(models).tolist() == [[1.0] * 4, [0.0] * 4]
    assert len(held) == 0


@pytest.mark.parametrize("pixels", [False, True])
def test_resident_examples_are_those_of_gather(pixels: bool) -> None:
    stream = np.random.default_rng(1)
    x = stream.integers(0, 256, (50, 3)).astype(np.uint8) if pixels else stream.standard_normal((50, 3))
    table = client_table(x, stream.integers(0, 4, 50), np.repeat(np.arange(5), 10), task="multiclass")
    table.x.flags.writeable = False  # as a memory-mapped file
    clients, positions = np.array([4, 0, 7]), np.broadcast_to(np.arange(13), (3, 13))
    resident = resident_examples(table, CPU, budget_bytes=10**6)
    assert resident is not None
    found, expected = resident(clients, positions), table.gather(clients, positions)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(found[name], torch.Tensor)
        assert found[name].numpy().dtype == value.dtype
        assert found[name].numpy().tobytes() == value.tobytes(), name


def test_codes_stay_on_the_host() -> None:
    resident = ResidentExamples(people(), CPU)
    clients, positions = np.array([1, 2]), np.broadcast_to(np.arange(4), (2, 4))
    assert isinstance(resident(clients, positions)["c"], np.ndarray)
    assert resident(clients, positions)["c"].tolist() == people().gather(clients, positions)["c"].tolist()


def test_examples_that_do_not_fit_or_are_generated_stay_where_they_are() -> None:
    table = people()
    assert resident_examples(table, CPU, budget_bytes=table.x.nbytes) is None
    assert resident_examples(table, CPU) is None, "nothing to gain on a CPU"
    assert resident_examples(object(), FAR, budget_bytes=10**9) is None


@pytest.mark.parametrize("name", ["lanes", "single"])
def test_learners_train_resident_examples_to_the_same_bits(name: str) -> None:
    x = np.random.default_rng(2).standard_normal((60, 5))
    table = client_table(x, np.arange(60) % 3, np.repeat(np.arange(6), 10), task="multiclass")
    inputs = ModelInputs("multiclass", 3, (5,))
    settings = Mlp((6,)) if name == "lanes" else Custom("lane_kit:two_layers")
    block = block_of([10, 10, 10], first_client=0)
    versions = {0: init_version(settings, inputs, SEED)}
    results = []
    for gather in (table.gather, ResidentExamples(table, CPU)):
        make = Learner if name == "lanes" else SingleLearner
        learner = make(
            model=build_model(settings, inputs), gather=gather, work=ClientWork(0.1, epochs=2, batch_size=4), grid=GRID,
            seed=SEED,
        )  # fmt: skip
        results.append(learner.train(block, versions))
    for one, other in zip(results[0].partials, results[1].partials, strict=True):
        assert one.dense.tobytes() == other.dense.tobytes()
        assert one.metrics.tobytes() == other.metrics.tobytes()


def test_on_device_leaves_tensors_alone() -> None:
    there = torch.ones(3)
    assert on_device(there, CPU) is there
    assert on_device(np.ones((4, 2))[::2], CPU).is_contiguous()
