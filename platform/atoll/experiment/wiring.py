"""From the spec to the records of each room: plain translation, one function per room, torch-free."""

from __future__ import annotations

import math

import numpy as np

from atoll import aggregation as agg
from atoll import data as da
from atoll import population as po
from atoll import schedules as sc
from atoll import spec as sp
from atoll import timeline as tl
from atoll.data.columns import read_columns
from atoll.errors import Problem, SpecError
from atoll.experiment.clustering import clustering_of
from atoll.plan import Grid

__all__ = [
    "grid_of",
    "population_of",
    "rate_of",
    "rule_of",
    "schedule_of",
    "source_of",
    "tasks_per_step",
    "weighting_of",
]

_US = 1_000_000


def source_of(spec: sp.Spec) -> da.DataSource:
    """Which data the clients hold."""
    data = spec.data
    match data:
        case sp.FlightsData():
            return da.Flights(weather=data.weather)
        case sp.MovielensData():
            return da.Movielens(data.threshold, data.history, data.user_id, data.holdout, data.unseen, data.path)
        case sp.ShakespeareData():
            return da.Shakespeare(stride=data.stride)
        case sp.ParquetData():
            return da.ParquetSource(
                data.path, data.client_column, data.label_column, data.features, data.categories, data.task,
                data.holdout, data.unseen, attributes=data.attributes,
            )  # fmt: skip
        case sp.ArraysData():
            return da.ArraysSource(data.path, _partition_of(data.partition), data.clients, spec.seed)
        case sp.SyntheticData():
            size = int(spec.population.size)  # the spec refuses `data` here
            examples: da.ConstantExamples | da.LogNormalExamples
            if isinstance(data.examples, sp.ConstantExamples):
                examples = da.ConstantExamples(data.examples.count)
            else:
                examples = da.LogNormalExamples(data.examples.median, data.examples.sigma, data.examples.max)
            return da.SyntheticSource(
                num_clients=size,
                num_features=data.features,
                num_classes=data.classes,
                categories=data.categories,
                examples=examples,
                feature_heterogeneity=data.feature_heterogeneity,
                label_heterogeneity=data.label_heterogeneity,
                seed=spec.seed,
            )
        case sp.CustomData():
            return da.CustomSource(data.factory, dict(data.arguments))
        case sp.LeafOutputsData():
            return da.LeafOutputsSource(data.path, data.digest)


def _partition_of(partition: sp.Partition) -> da.Partition:
    match partition:
        case sp.IidPartition():
            return da.Iid()
        case sp.DirichletPartition():
            return da.Dirichlet(partition.alpha)
        case sp.ShardsPartition():
            return da.Shards(partition.per_client)
        case sp.QuantitySkewPartition():
            return da.QuantitySkew(partition.sigma)


def population_of(spec: sp.Spec, data: da.ClientData) -> po.Population:
    """Who exists: the data's clients, or `population.size` ids that map onto them; of these, the cluster `only`."""
    size = data.num_clients if spec.population.size == "data" else spec.population.size
    counts = data.counts()
    sizes: po.Sizes
    sizes = po.ClientSizes(counts) if counts is not None else po.FunctionSizes(data.num_examples, data.identity, size)
    devices = spec.population.devices
    return po.Population(
        seed=spec.seed,
        size=size,
        devices=po.Devices(
            law=_law_of(devices),
            per_example_s=devices.per_example_s,
            overhead_s=devices.overhead_s,
            dropout=devices.dropout,
            jitter_sigma=devices.jitter_sigma,
            size_correlation=devices.size_correlation,
            timeout_s=devices.timeout_s,
        ),
        sizes=sizes,
        availability=_availability_of(spec.population.availability),
        members=_members_of(spec, data),
    )


def _members_of(spec: sp.Spec, data: da.ClientData) -> po.Members:
    if spec.clusters.only is None:
        return po.Everyone()
    clustering = clustering_of(spec, data)
    return clustering.members(clustering.index(spec.clusters.only))


def _law_of(devices: sp.Devices) -> po.Law:
    match devices:
        case sp.ConstantDevices():
            return po.Constant(devices.value_s)
        case sp.HalfNormalDevices():
            return po.HalfNormal(devices.scale_s, devices.min_s)
        case sp.ExponentialDevices():
            return po.Exponential(devices.mean_s)
        case sp.LogNormalDevices():
            return po.LogNormal(devices.median_s, devices.sigma)
        case sp.PapayaDevices():
            return po.PapayaHistogram()
        case sp.TableDevices():
            place = "population.devices"
            values = read_columns(devices.path, (devices.column,), place)[devices.column]
            if values.dtype.kind not in "iuf":
                found = Problem(f"{place}.column", repr(devices.column), "a column of numbers", "it holds seconds")
                raise SpecError([found])
            return po.Table(tuple(float(value) for value in values))


def _availability_of(availability: sp.Availability) -> po.Availability:
    match availability:
        case sp.AlwaysAvailability():
            return po.Always()
        case sp.DiurnalAvailability():
            return po.Diurnal(availability.start_hour, availability.hours, availability.spread_hours)
        case sp.IntervalsAvailability():
            columns = read_columns(availability.path, ("client", "start_s", "end_s"), "population.availability")
            _, row = np.unique(columns["client"], return_inverse=True)
            order = np.lexsort((columns["start_s"], row))
            starts, ends = (np.rint(columns[name][order] * 1e6).astype(np.int64) for name in ("start_s", "end_s"))
            offsets = np.concatenate(([0], np.cumsum(np.bincount(row)))).astype(np.int64)
            return po.Intervals(starts, ends, offsets, round(availability.period_s * _US))


def schedule_of(spec: sp.Spec) -> tl.Schedule:
    """Who starts when."""
    schedule = spec.schedule
    if isinstance(schedule, sp.AsyncSchedule):
        return tl.AsyncSchedule(schedule.concurrency, schedule.buffer_goal, schedule.max_staleness, schedule.sampling)
    deadline_us = None if schedule.deadline_s is None else round(schedule.deadline_s * _US)
    return tl.SyncSchedule(schedule.cohort, schedule.over_selection, deadline_us, schedule.sampling)


def tasks_per_step(spec: sp.Spec) -> int:
    """Most tasks that one server step sums."""
    schedule = spec.schedule
    return schedule.buffer_goal if isinstance(schedule, sp.AsyncSchedule) else schedule.cohort


def weighting_of(spec: sp.Spec) -> agg.Weighting:
    """What each task counts."""
    match spec.aggregation:
        case sp.FedBuff(staleness=staleness, weighting=weighting):
            return agg.Weighting(_staleness_of(staleness), _examples_of(weighting))
        case sp.FedAvg(weighting=weighting):
            return agg.Weighting(agg.ConstantStaleness(), _examples_of(weighting))
        case sp.FedAsync(staleness=staleness, alpha=alpha):
            return agg.Weighting(_staleness_of(staleness), agg.EqualWeight(), scale=alpha)


def _staleness_of(staleness: sp.Staleness) -> agg.StalenessWeight:
    match staleness:
        case sp.ConstantStaleness():
            return agg.ConstantStaleness()
        case sp.PolynomialStaleness():
            return agg.PolynomialStaleness(staleness.exponent)
        case sp.ThresholdStaleness():
            return agg.ThresholdStaleness(staleness.cutoff, staleness.value_after)


def _examples_of(weighting: sp.Weighting) -> agg.ExampleWeight:
    rules: dict[str, agg.ExampleWeight] = {
        "equal": agg.EqualWeight(),
        "examples": agg.ExampleCount(),
        "sqrt": agg.SqrtExamples(),
        "log": agg.LogExamples(),
    }
    return rules[weighting.kind]


def rate_of(rate: sp.Rate) -> sc.Rate:
    """A learning-rate schedule."""
    match rate:
        case sp.ConstantRate():
            return sc.ConstantRate()
        case sp.StepRate():
            return sc.StepRate(rate.every_steps, rate.factor)
        case sp.CosineRate():
            return sc.CosineRate(rate.total_steps, rate.final)
        case sp.InverseSqrtRate():
            return sc.InverseSqrtRate(rate.warmup_steps)


def rule_of(spec: sp.Spec) -> agg.Rule:
    """How a full buffer becomes the next version."""
    aggregation = spec.aggregation
    optimizer = _optimizer_of(aggregation.server_optimizer)
    shrinks = not weighting_of(spec).examples.is_equal
    if isinstance(aggregation, sp.FedAsync):
        return agg.Rule(optimizer, "mean", aggregation.form, shrinks)
    return agg.Rule(optimizer, aggregation.normalizer, "delta", shrinks)


def _optimizer_of(optimizer: sp.ServerOptimizer) -> agg.ServerOptimizer:
    rate = rate_of(optimizer.schedule)
    match optimizer:
        case sp.SgdOptimizer():
            return agg.ServerSgd(optimizer.lr, optimizer.momentum, rate)
        case sp.AdamOptimizer():
            return agg.Adam(optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.eps, rate)
        case sp.AdagradOptimizer():
            return agg.Adagrad(optimizer.lr, optimizer.beta1, optimizer.eps, rate)
        case sp.YogiOptimizer():
            return agg.Yogi(optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.eps, rate)


def grid_of(spec: sp.Spec, data: da.ClientData) -> Grid:
    """The exact grid: from the declared bound per client delta and the largest sum of weights of a step."""
    counts = data.counts()
    if counts is not None:
        most = int(counts.max())
    elif isinstance(spec.data, sp.SyntheticData):
        examples = spec.data.examples
        most = examples.count if isinstance(examples, sp.ConstantExamples) else examples.max
    else:
        most = 2**20
    weight_bound = math.ceil(tasks_per_step(spec) * weighting_of(spec).largest(most))
    return Grid.for_plan(spec.aggregation.delta_bound, float(weight_bound))
