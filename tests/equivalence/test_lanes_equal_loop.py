"""The lanes train what a plain PyTorch loop trains: one module, torch.optim.SGD, one client at a time."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.learner import ClientWork, LoopClient
from atoll.schedules import CosineRate, StepRate
from lane_kit import (
    GRID,
    LEARNERS,
    SEED,
    Kind,
    block_of,
    by_name,
    gather_of,
    lane_deltas,
    learner_of,
)

RAGGED = [23, 17, 16, 16, 9, 8, 7, 1, 1]


def check(kind: Kind, work: ClientWork, sizes: list[int], start_version: list[int] | int = 0) -> None:
    block = block_of(sizes, start_version=start_version)
    versions = {int(v): kind.version(int(v)) for v in np.unique(block.start_version)}
    found = lane_deltas(kind, learner_of(kind, work), block, versions)
    loop = LoopClient(model=kind.model(), gather=gather_of(kind.inputs), work=work, seed=SEED)
    for lane, delta in enumerate(found):
        start = versions[int(block.start_version[lane])]
        want = loop.train(int(block.task_id[lane]), int(block.client_id[lane]), sizes[lane], start)
        assert np.abs(want.dense).max() > 1e-4, "a delta of nothing would prove nothing"
        np.testing.assert_allclose(delta.dense, want.dense, atol=1e-5, rtol=1e-5)
        for got, full in zip(delta.tables, want.tables, strict=True):
            # A row that the client does not hold stays, also under weight decay (ClientWork.weight_decay).
            touched = got.any(axis=1)
            np.testing.assert_allclose(got[touched], full[touched], atol=1e-5, rtol=1e-5)
            assert touched.any()
            if not work.weight_decay:
                assert not full[~touched].any()


WORKS = {
    "plain": {},
    "two_epochs": {"epochs": 2},
    "momentum": {"momentum": 0.9, "epochs": 2},
    "weight_decay": {"weight_decay": 0.1},
    "proximal": {"proximal_mu": 0.5, "epochs": 2},
    "short_batches": {"short_batch_scaling": True},
    "everything": {"momentum": 0.5, "weight_decay": 0.05, "proximal_mu": 0.2, "short_batch_scaling": True, "epochs": 2},
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.name)
def test_every_model_under_every_kind_of_work(kind: Kind, work: dict) -> None:
    check(kind, ClientWork(lr=kind.lr, batch_size=8, **work), RAGGED)


@pytest.mark.parametrize(
    "name", ["mlp", "mlp_sparse", "logistic_sparse", "custom", "mlp-compiled", "dlrm-compiled", "custom-single"]
)
def test_sizes_from_one_to_two_hundred(name: str) -> None:
    kind = by_name[name]
    sizes = [200, 199, 150, 65, 64, 63, 33, 32, 31, 2, 1, 1]
    check(kind, ClientWork(lr=kind.lr, batch_size=32, momentum=0.5, epochs=2), sizes)


@pytest.mark.parametrize("schedule", [StepRate(3, 0.5), CosineRate(10, 0.1)], ids=["step", "cosine"])
@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("name", ["mlp_sparse", "cnn_grey", "char_lstm", "mlp_sparse-compiled", "char_lstm-single"])
def test_lanes_from_different_versions_on_a_schedule(name: str, schedule: object, scaling: bool) -> None:
    kind = by_name[name]
    work = ClientWork(lr=kind.lr, batch_size=8, schedule=schedule, short_batch_scaling=scaling, momentum=0.3)
    check(kind, work, RAGGED, start_version=[4, 0, 9, 4, 4, 1, 0, 9, 2])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "name", ["mlp", "cnn_colour", "mlp_codes_only", "mlp-compiled", "mlp_codes_only-compiled", "cnn_colour-single"]
)
def test_batches_of_any_size(name: str, batch_size: int) -> None:
    kind = by_name[name]
    check(kind, ClientWork(lr=kind.lr / 2, batch_size=batch_size), [13, 12, 6, 3, 1])


@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.name)
def test_a_client_learns_the_same_alone_and_in_company(kind: Kind) -> None:
    learner, versions = learner_of(kind, ClientWork(lr=kind.lr, batch_size=8, momentum=0.5)), {0: kind.version()}
    together = lane_deltas(kind, learner, block_of(RAGGED), versions)
    for lane in (0, 4, 8):
        (alone,) = lane_deltas(kind, learner, block_of(RAGGED[lane : lane + 1], first_client=100 + lane), versions)
        np.testing.assert_allclose(alone.dense, together[lane].dense, atol=1e-5)
        for one, other in zip(alone.tables, together[lane].tables, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_one_step_of_logistic_regression_by_hand() -> None:
    kind, n, lr = by_name["logistic"], 6, 0.25
    start = kind.version()
    (delta,) = lane_deltas(kind, learner_of(kind, ClientWork(lr=lr, batch_size=8)), block_of([n]), {0: start})
    data = gather_of(kind.inputs)(np.array([100]), np.arange(n)[None])
    x, y = data["x"][0].astype(np.float64), data["y"][0]
    weight, bias = start.dense[:15].reshape(3, 5).astype(np.float64), start.dense[15:]
    scores = x @ weight.T + bias
    chance = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    error = (chance - np.eye(3)[y]) / n
    gradient = np.concatenate([(error.T @ x).reshape(-1), error.sum(axis=0)])
    np.testing.assert_allclose(delta.dense, lr * gradient, atol=1e-6)
    assert GRID.exponent >= 40
