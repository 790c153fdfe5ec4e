"""What every over-arch keeps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy.special import expit

from atoll.aggregation import Logistic, Mean, Median, MlpOver, OverArch, WeightedMean, fit
from atoll.errors import SpecError

KINDS = {
    "mean": Mean(),
    "median": Median(),
    "weighted_mean": WeightedMean(),
    "logistic": Logistic(0.5),
    "mlp": MlpOver((5, 3), 0.5),
}
FITTED = [name for name in KINDS if name not in ("mean", "median")]
every_kind = pytest.mark.parametrize("kind", KINDS)
fitted_kind = pytest.mark.parametrize("kind", FITTED)


def rows(num: int = 400, leaves: int = 4, width: int = 1, seed: int = 0):
    """Leaves that see the truth through noise of different strength, and labels."""
    stream = np.random.default_rng(seed)
    truth = 1.5 * stream.normal(size=num)
    y = (stream.random(num) < expit(truth)).astype(np.int64)
    noise = stream.normal(size=(num, leaves, width)) * (0.5 + 0.4 * np.arange(leaves))[None, :, None]
    return truth[:, None, None] + noise, y


def loss(logits, y) -> float:
    return float(np.logaddexp(0.0, (1 - 2 * y) * logits).mean())


@every_kind
def test_same_bits_twice_and_inputs_are_not_written(kind) -> None:
    z, y = rows()
    z.setflags(write=False)
    y.setflags(write=False)
    first, second = fit(KINDS[kind], z, y, 3), fit(KINDS[kind], z, y, 3)
    assert first.kind == kind
    assert first.digest == second.digest
    found = first.apply(z)
    assert found.dtype == np.float64
    assert found.shape == (len(z),)
    assert found.tobytes() == second.apply(z).tobytes()


@every_kind
def test_order_of_rows_plays_no_part(kind) -> None:
    z, y = rows()
    order = np.random.default_rng(1).permutation(len(y))
    assert fit(KINDS[kind], z, y, 3).digest == fit(KINDS[kind], z[order], y[order], 3).digest


@every_kind
def test_better_than_the_worst_leaf(kind) -> None:
    z, y = rows()
    new_z, new_y = rows(2000, seed=9)
    over_arch = fit(KINDS[kind], z, y, 3)
    assert loss(over_arch.apply(new_z), new_y) < max(loss(new_z[:, leaf, 0], new_y) for leaf in range(4))


@every_kind
def test_one_leaf(kind) -> None:
    z, y = rows(leaves=1)
    found = fit(KINDS[kind], z, y, 3).apply(z)
    if kind in ("mean", "median", "weighted_mean"):
        assert found.tobytes() == z[:, 0, 0].tobytes()
    else:
        assert loss(found, y) <= loss(z[:, 0, 0], y) + 1e-9, "a fitted layer may calibrate it"


@every_kind
def test_rows_one_by_one(kind) -> None:
    z, y = rows()
    over_arch = fit(KINDS[kind], z, y, 3)
    alone = np.concatenate([over_arch.apply(z[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, over_arch.apply(z)[:20], rtol=1e-12)
    assert over_arch.apply(z[:0]).shape == (0,)


@every_kind
def test_storage(kind) -> None:
    z, y = rows()
    over_arch = fit(KINDS[kind], z, y, 3)
    file = io.BytesIO()
    np.savez(file, **over_arch.arrays())
    file.seek(0)
    with np.load(file) as stored:
        again = OverArch.from_arrays(kind, dict(stored))
    assert again.digest == over_arch.digest
    assert again.apply(z).tobytes() == over_arch.apply(z).tobytes()


@fitted_kind
def test_digest_sees_every_bit(kind) -> None:
    z, y = rows()
    over_arch = fit(KINDS[kind], z, y, 3)
    seen = {over_arch.digest}
    for name, array in over_arch.arrays().items():
        changed = array.copy()
        changed.ravel()[0] = np.nextafter(changed.ravel()[0], np.inf)
        seen.add(OverArch.from_arrays(kind, over_arch.arrays() | {name: changed}).digest)
    assert len(seen) == 1 + len(over_arch.arrays())


@fitted_kind
def test_refuses_what_cannot_be_fitted(kind) -> None:
    z, y = rows(10)
    with pytest.raises(SpecError, match="no rows"):
        fit(KINDS[kind], z[:0], y[:0], 3)
    with pytest.raises(SpecError, match="10 rows, 0 of label 1 and 10 of label 0"):
        fit(KINDS[kind], z, 0 * y, 3)
    z[:2, 3] = np.nan
    z[1, 1] = np.inf
    with pytest.raises(SpecError, match=r"in 2 of 10 rows, said by leaves \[1, 3\]") as caught:
        fit(KINDS[kind], z, 0 * y, 3)
    assert len(caught.value.problems) == 2, "all at once"


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_layers_alone_are_the_function_for_wide_inputs(kind) -> None:
    z, y = rows(width=6)
    z = 100 + 7 * z
    z[:, 2, 4] = 5.0  # a dead unit
    over_arch = fit(KINDS[kind], z, y, 3)
    inputs = z.reshape(len(z), 24)
    for weight, bias in over_arch.layers[:-1]:
        inputs = np.maximum(inputs @ weight.T + bias, 0)
    weight, bias = over_arch.layers[-1]
    np.testing.assert_array_equal(over_arch.apply(z), (inputs @ weight.T + bias)[:, 0])
    assert np.isfinite(over_arch.apply(z)).all()
    assert loss(over_arch.apply(z), y) < loss(np.zeros(len(y)), y)


@pytest.mark.parametrize("kind", ["mean", "median", "weighted_mean"])
def test_means_are_of_logits(kind) -> None:
    z, y = rows(width=2)
    with pytest.raises(ValueError, match="rows, leaves, 1"):
        fit(KINDS[kind], z, y, 3).apply(z)


@pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0])
def test_logistic_is_the_optimum(l2) -> None:
    z, y = rows()
    ((weight, bias),) = fit(Logistic(l2), z, y, 3).layers
    inputs = z[:, :, 0]
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    standard, scaled = (inputs - mean) / std, weight[0] * std
    error = expit(standard @ scaled + bias[0] + weight[0] @ mean) - y
    np.testing.assert_allclose(standard.T @ error + l2 * scaled, 0.0, atol=1e-8)
    assert abs(error.sum()) < 1e-8, "no penalty on the intercept"


def test_logistic_of_labels_that_a_leaf_tells_apart() -> None:
    z, _ = rows()
    y = (z[:, 0, 0] > 0.3).astype(np.int64)
    found = fit(Logistic(1e-8), z, y, 3).apply(z)
    assert np.isfinite(found).all()
    assert ((found > 0) == (y == 1)).all()


@pytest.mark.parametrize("leaves", [2, 5, 30])
@pytest.mark.parametrize("boldness", [0.01, 1.0, 1e4])
def test_weighted_mean_is_the_optimum(leaves, boldness) -> None:
    z, y = rows(leaves=leaves)
    z = z * boldness
    weights = fit(WeightedMean(), z, y, 3).weights
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    slope = z[:, :, 0].T @ (expit(z[:, :, 0] @ weights) - y) / len(y)
    # the gap bounds how much a better point could gain, since the loss is convex
    assert weights @ slope - slope.min() < 1e-6 * max(1.0, boldness)


def test_weighted_mean_leaves_out_what_is_useless_and_shares_among_equals() -> None:
    z, y = rows(3000, leaves=3)
    z[:, 1] = z[:, 0]
    z[:, 2, 0] = 5 * np.random.default_rng(4).normal(size=len(y))
    first, second, useless = fit(WeightedMean(), z, y, 3).weights
    assert first == pytest.approx(second, abs=1e-6)
    assert useless < 0.05


def test_only_the_mlp_knows_the_seed() -> None:
    z, y = rows()
    changed = {kind for kind in KINDS if fit(KINDS[kind], z, y, 3).digest != fit(KINDS[kind], z, y, 4).digest}
    assert changed == {"mlp"}
