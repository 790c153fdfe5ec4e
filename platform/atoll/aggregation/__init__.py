"""Buffers, exact sums, staleness and example weights, server optimizers; no ray, no I/O."""

from atoll.aggregation.aggregator import Aggregator, AggregatorState, Rule, Step, metric_values
from atoll.aggregation.exact import add_exact, add_partials, merge_results, merge_rows
from atoll.aggregation.optimizers import Adagrad, Adam, ServerOptimizer, ServerSgd, State, Yogi
from atoll.aggregation.weights import (
    ConstantStaleness,
    EqualWeight,
    ExampleCount,
    ExampleWeight,
    LogExamples,
    PolynomialStaleness,
    SqrtExamples,
    StalenessWeight,
    ThresholdStaleness,
    Weighting,
)

__all__ = [
    "Adagrad",
    "Adam",
    "Aggregator",
    "AggregatorState",
    "ConstantStaleness",
    "EqualWeight",
    "ExampleCount",
    "ExampleWeight",
    "LogExamples",
    "PolynomialStaleness",
    "Rule",
    "ServerOptimizer",
    "ServerSgd",
    "SqrtExamples",
    "StalenessWeight",
    "State",
    "Step",
    "ThresholdStaleness",
    "Weighting",
    "Yogi",
    "add_exact",
    "add_partials",
    "merge_results",
    "merge_rows",
    "metric_values",
]
