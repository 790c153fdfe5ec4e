"""What every staleness weight and example weight keeps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from atoll.aggregation import (
    ConstantStaleness,
    EqualWeight,
    ExampleCount,
    LogExamples,
    PolynomialStaleness,
    SqrtExamples,
    ThresholdStaleness,
    Weighting,
)

STALENESS = [ConstantStaleness(), PolynomialStaleness(0.5), PolynomialStaleness(1.0), ThresholdStaleness(3, 0.25)]
EXAMPLES = [EqualWeight(), ExampleCount(), SqrtExamples(), LogExamples()]
TAU = np.arange(50)


@pytest.mark.parametrize("rule", STALENESS, ids=repr)
def test_staleness_weights(rule) -> None:
    found = rule.weight(TAU)
    assert found.dtype == np.float64
    assert found[0] == 1.0, "a fresh update weighs 1"
    assert (np.diff(found) <= 0).all(), "older never weighs more"
    assert ((found > 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found[::2], rule.weight(TAU[::2]))
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize("rule", EXAMPLES, ids=repr)
def test_example_weights(rule) -> None:
    found = rule.weight(np.array([1, 10, 1000]))
    assert found.dtype == np.float64
    assert (found > 0).all()
    assert (np.diff(found) >= 0).all()
    assert rule.is_equal == bool((found == 1).all())
    assert Weighting(ConstantStaleness(), rule).largest(1000) == found[-1]


def test_polynomial_is_fedbuffs() -> None:
    np.testing.assert_allclose(PolynomialStaleness().weight(np.array([0, 3, 99])), [1.0, 0.5, 0.1])


def test_divisor_ignores_staleness() -> None:
    weight, example_weight = Weighting(PolynomialStaleness(), ExampleCount())(np.array([0, 3]), np.array([4, 6]))
    np.testing.assert_allclose(weight, [4.0, 3.0])
    np.testing.assert_allclose(example_weight, [4.0, 6.0])
