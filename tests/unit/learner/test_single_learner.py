"""Modules that draw random numbers: what a client draws is its own, whatever else is trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from atoll.learner import ClientWork
from atoll.models import Custom, ModelInputs
from lane_kit import Kind, block_of, lane_deltas, learner_of


def with_dropout(p: float = 0.5) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Dropout(p), torch.nn.Linear(16, 3))


def kind_of(p: float) -> Kind:
    settings = Custom("test_single_learner:with_dropout", {"p": p})
    return Kind("dropout", settings, ModelInputs("multiclass", 3, (5,)), kernel="single")


WORK = ClientWork(lr=0.1, batch_size=8, epochs=2)


def test_dropout_is_drawn_by_the_task_alone(monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    kind = kind_of(0.5)
    versions = {0: kind.version()}
    block = block_of([20, 12, 12])
    together = lane_deltas(kind, learner_of(kind, WORK), block, versions)
    torch.rand(7)  # whoever else draws
    for lane in range(3):
        (alone,) = lane_deltas(kind, learner_of(kind, WORK), block.lane(lane), versions)
        np.testing.assert_array_equal(alone.dense, together[lane].dense)


def test_dropout_is_on_while_clients_train_and_differs_between_tasks(monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    dropping, keeping = kind_of(0.5), kind_of(0.0)
    versions, block = {0: dropping.version()}, block_of([16])
    (dropped,) = lane_deltas(dropping, learner_of(dropping, WORK), block, versions)
    (kept,) = lane_deltas(keeping, learner_of(keeping, WORK), block, versions)
    assert np.abs(dropped.dense - kept.dense).max() > 1e-3
    other_task = dataclasses.replace(block, task_id=block.task_id + 1)
    (again,) = lane_deltas(dropping, learner_of(dropping, WORK), other_task, versions)
    (same_order,) = lane_deltas(keeping, learner_of(keeping, WORK), other_task, versions)
    assert np.abs(dropped.dense - again.dense).max() > 10 * np.abs(kept.dense - same_order.dense).max()


def test_the_generator_of_others_is_left_as_it_was(monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    kind = kind_of(0.5)
    before = torch.random.get_rng_state()
    learner_of(kind, WORK).train(block_of([9]), {0: kind.version()})
    assert torch.equal(torch.random.get_rng_state(), before)


class Viewing(torch.nn.Module):
    """Asks for a view that only images with channels first have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.output = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4 * 4 * 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.conv(x).view(len(x), -1))


class Flattening(Viewing):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.conv(x).flatten(1))


def test_a_module_that_needs_the_ordinary_layout_gets_it(monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    inputs = ModelInputs("multiclass", 3, (3, 6, 4))
    found = []
    for name in ("Viewing", "Flattening"):
        kind = Kind(name, Custom(f"test_single_learner:{name}"), inputs, kernel="single")
        (delta,) = lane_deltas(kind, learner_of(kind, WORK), block_of([17]), {0: kind.version()})
        found.append(delta.dense)
    np.testing.assert_allclose(*found, atol=1e-6)
