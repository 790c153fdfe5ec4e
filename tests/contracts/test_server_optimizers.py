"""What every server optimizer keeps, and what each is in the literature."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from atoll.aggregation import Adagrad, Adam, ServerSgd, Yogi
from atoll.schedules import ConstantRate, CosineRate, InverseSqrtRate, StepRate

OPTIMIZERS = [ServerSgd(0.5), ServerSgd(0.5, 0.9), Adam(0.1), Adagrad(0.1), Adagrad(0.1, beta1=0.9), Yogi(0.1)]
RNG = np.random.Generator(np.random.Philox(5))
WEIGHTS = RNG.normal(size=(3, 4)).astype(np.float32)
DELTAS = [RNG.normal(size=(3, 4)).astype(np.float32) for _ in range(5)]


def run(optimizer, weights: np.ndarray, deltas: list[np.ndarray]) -> np.ndarray:
    state = optimizer.init(weights)
    for step, delta in enumerate(deltas):
        weights, state = optimizer.step(weights, delta, state, step)
    return weights


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
class TestEveryOptimizer:
    def test_keeps_dtype_shape_and_inputs(self, optimizer) -> None:
        before, delta = WEIGHTS.copy(), DELTAS[0].copy()
        state = optimizer.init(WEIGHTS)
        weights, state_after = optimizer.step(WEIGHTS, delta, state, 0)
        assert weights.dtype == np.float32
        assert weights.shape == WEIGHTS.shape
        assert [(s.dtype, s.shape) for s in state_after] == [(s.dtype, s.shape) for s in state]
        np.testing.assert_array_equal(WEIGHTS, before)
        np.testing.assert_array_equal(delta, DELTAS[0])

    def test_descends(self, optimizer) -> None:
        weights, _ = optimizer.step(WEIGHTS, np.ones_like(WEIGHTS), optimizer.init(WEIGHTS), 0)
        assert (weights < WEIGHTS).all()

    def test_is_elementwise(self, optimizer) -> None:
        whole = run(optimizer, WEIGHTS, DELTAS)
        halves = [run(optimizer, WEIGHTS[:, cut], [d[:, cut] for d in DELTAS]) for cut in (slice(2), slice(2, 4))]
        np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))

    def test_pickles_and_repeats(self, optimizer) -> None:
        again = pickle.loads(pickle.dumps(optimizer))
        np.testing.assert_array_equal(run(optimizer, WEIGHTS, DELTAS), run(again, WEIGHTS, DELTAS))

    def test_sparse_claim_holds(self, optimizer) -> None:
        """Where it says that a zero delta changes nothing, it must not."""
        weights, _ = optimizer.step(WEIGHTS, np.zeros_like(WEIGHTS), optimizer.init(WEIGHTS), 0)
        assert not optimizer.is_sparse or np.array_equal(weights, WEIGHTS)


@pytest.mark.parametrize(("ours", "momentum"), [(ServerSgd(0.5), 0.0), (ServerSgd(0.5, 0.9), 0.9)], ids=repr)
def test_sgd_is_torchs(ours, momentum: float) -> None:
    parameter = torch.nn.Parameter(torch.tensor(WEIGHTS))
    theirs = torch.optim.SGD([parameter], lr=0.5, momentum=momentum)
    for delta in DELTAS:
        parameter.grad = torch.tensor(delta)
        theirs.step()
    np.testing.assert_allclose(run(ours, WEIGHTS, DELTAS), parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_adaptive_by_hand() -> None:
    """One coordinate, one step, from algorithm 2 of Reddi et al. with v₋₁ = eps²."""
    w, d, eps = np.float32([1.0]), np.float32([2.0]), 1e-3
    m = 0.1 * 2
    v = {"adam": 0.99 * eps**2 + 0.01 * 4, "adagrad": eps**2 + 4, "yogi": eps**2 + 0.01 * 4}
    for name, optimizer, first in (("adam", Adam(0.1), m), ("yogi", Yogi(0.1), m), ("adagrad", Adagrad(0.1), 2.0)):
        expected = 1.0 - 0.1 * first / (np.sqrt(v[name]) + eps)
        np.testing.assert_allclose(run(optimizer, w, [d]), [expected], rtol=1e-5)


def test_schedules() -> None:
    assert ConstantRate().factor(9) == 1.0
    assert [StepRate(2, 0.5).factor(s) for s in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert CosineRate(10, 0.1).factor(0) == 1.0
    assert CosineRate(10, 0.1).factor(5) == pytest.approx(0.55)
    assert CosineRate(10, 0.1).factor(99) == pytest.approx(0.1)
    assert [InverseSqrtRate(4).factor(s) for s in (0, 3, 15)] == [0.25, 1.0, 0.5]
    halved = run(ServerSgd(1.0, schedule=StepRate(1, 0.5)), np.float32([0.0]), [np.float32([1.0])] * 2)
    np.testing.assert_allclose(halved, [-1.5])
