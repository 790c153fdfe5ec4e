"""Buffers, exact sums, staleness and example weights, server optimizers, over-archs; no ray, no I/O."""

from atoll.aggregation.aggregator import Aggregator, AggregatorState, Rule, Step, metric_values
from atoll.aggregation.ensembles import (
    Logistic,
    Mean,
    Median,
    MlpOver,
    OverArch,
    OverArchSettings,
    WeightedMean,
    fit,
)
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
    "Logistic",
    "Mean",
    "Median",
    "MlpOver",
    "OverArch",
    "OverArchSettings",
    "PolynomialStaleness",
    "Rule",
    "ServerOptimizer",
    "ServerSgd",
    "SqrtExamples",
    "StalenessWeight",
    "State",
    "Step",
    "ThresholdStaleness",
    "WeightedMean",
    "Weighting",
    "Yogi",
    "add_exact",
    "add_partials",
    "fit",
    "merge_results",
    "merge_rows",
    "metric_values",
]
