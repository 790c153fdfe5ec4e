"""Weights that the timeline alone decides: staleness weights and example-count weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "ConstantStaleness",
    "EqualWeight",
    "ExampleCount",
    "ExampleWeight",
    "LogExamples",
    "PolynomialStaleness",
    "SqrtExamples",
    "StalenessWeight",
    "ThresholdStaleness",
    "Weighting",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class StalenessWeight(Protocol):
    """s(τ) in [0, 1] with s(0) = 1, elementwise over int64 staleness."""

    def weight(self, staleness: I64) -> F64:
        """s(τ), float64, same shape."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantStaleness:
    """s(τ) = 1."""

    def weight(self, staleness: I64) -> F64:
        """Ones."""
        return np.ones(staleness.shape, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class PolynomialStaleness:
    """s(τ) = (1 + τ)^(−exponent); FedBuff and Papaya use exponent 0.5 (arXiv 2111.04877, appendix E.2)."""

    exponent: float = 0.5

    def weight(self, staleness: I64) -> F64:
        """(1 + τ)^(−exponent)."""
        return np.asarray((1.0 + staleness) ** -self.exponent, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ThresholdStaleness:
    """s(τ) = 1 up to `cutoff`, `value_after` beyond."""

    cutoff: int
    value_after: float

    def weight(self, staleness: I64) -> F64:
        """1 where τ ≤ cutoff, else value_after."""
        return np.where(staleness <= self.cutoff, 1.0, self.value_after)


class ExampleWeight(Protocol):
    """A weight by the client's number of training examples, > 0 for n ≥ 1."""

    #: True where every client weighs 1: the divisor then stays K even when a client diverges.
    is_equal: bool

    def weight(self, num_examples: I64) -> F64:
        """Weight per client, float64, same shape."""
        ...


@dataclass(frozen=True, slots=True)
class EqualWeight:
    """1 for every client."""

    is_equal = True

    def weight(self, num_examples: I64) -> F64:
        """Ones."""
        return np.ones(num_examples.shape, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ExampleCount:
    """n, as FedAvg (McMahan et al. 2017, algorithm 1)."""

    is_equal = False

    def weight(self, num_examples: I64) -> F64:
        """The n of each client."""
        return num_examples.astype(np.float64)


@dataclass(frozen=True, slots=True)
class SqrtExamples:
    """√n."""

    is_equal = False

    def weight(self, num_examples: I64) -> F64:
        """√n."""
        return np.sqrt(num_examples.astype(np.float64))


@dataclass(frozen=True, slots=True)
class LogExamples:
    """log10(1 + n)."""

    is_equal = False

    def weight(self, num_examples: I64) -> F64:
        """log10(1 + n)."""
        return np.asarray(np.log10(1.0 + num_examples), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a task counts: scale · s(τ) · e(n) in the sum, e(n) in the divisor.

    With scale 1 the mean is Σ s(τ) e(n) delta / Σ e(n): under equal weights FedBuff's Σ s(τ) delta / K, and a stale
    cohort takes a smaller step (never re-normalised by Σ s). Callable, so that the plan needs not know this room.
    """

    staleness: StalenessWeight
    examples: ExampleWeight
    #: constant factor on every weight, not on the divisor: FedAsync's mixing rate α
    scale: float = 1.0

    def __call__(self, staleness: I64, num_examples: I64) -> tuple[F64, F64]:
        """(weight, example weight) per task.

        Example:
            >>> weigh = Weighting(PolynomialStaleness(0.5), EqualWeight())
            >>> weigh(np.array([0, 3]), np.array([9, 9]))
            (array([1. , 0.5]), array([1., 1.]))
        """
        example_weight = self.examples.weight(num_examples)
        return self.scale * self.staleness.weight(staleness) * example_weight, example_weight

    def largest(self, max_examples: int) -> float:
        """An upper bound of one task's weight, for the exact grid."""
        return self.scale * float(self.examples.weight(np.array([max(max_examples, 1)], dtype=np.int64))[0])
