"""What the plan knows of server steps ahead of training, worked out for many steps together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["StepPlan", "Used", "step_plans"]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One server step as the plan knows it ahead of training.

    Attributes:
        step: the server step, 0 first; it turns version `step` into version `step + 1`.
        closed_us: virtual time at which its buffer is full.
        fill_us: virtual time since the previous step closed.
        num_lanes: tasks whose deltas it sums, ≥ 1.
        divisor: Σ example weight over them.
        staleness_mean: mean staleness of them.
        staleness_p95: 95th percentile of it.
        num_failed: participations that ended without effect since the previous step closed.
        wasted_us: device time these spent.
        used_us: device time that the used tasks spent.
        start_versions: distinct start versions, ascending.
        start_weights: Σ weight per distinct start version (the mixing form of FedAsync needs it).
    """

    step: int
    closed_us: int
    fill_us: int
    num_lanes: int
    divisor: float
    staleness_mean: float
    staleness_p95: float
    num_failed: int
    wasted_us: int
    used_us: int
    start_versions: npt.NDArray[np.int32]
    start_weights: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Used:
    """The used tasks of consecutive steps in event order, and what they weigh; one element each.

    Attributes:
        rows: timeline.ROW.
        weight: staleness weight times example weight.
        example_weight: what each adds to the divisor.
    """

    rows: npt.NDArray[np.void]
    weight: F64
    example_weight: F64


def step_plans(
    first_step: int,
    opened_us: int,
    closed_us: I64,
    offsets: I64,
    is_used: npt.NDArray[np.bool_],
    busy_us: I64,
    used: Used,
) -> list[StepPlan]:
    """One StepPlan per step.

    Args:
        first_step: number of the first.
        opened_us: when the step before closed.
        closed_us: [steps].
        offsets: [steps + 1], rows of each step among all rows, failures included.
        is_used: [rows].
        busy_us: [rows], finish − start.
        used: the rows where is_used.

    Purity: pure.
    """
    split = _before(is_used, offsets)  # used rows of each step
    all_us, used_us = _before(busy_us, offsets), _before(np.where(is_used, busy_us, 0), offsets)
    lanes, busy, good = np.diff(split), np.diff(all_us), np.diff(used_us)
    step = np.repeat(np.arange(len(lanes), dtype=np.int64), lanes)
    version = used.rows["start_version"].astype(np.int64)
    staleness = step + first_step - version
    # unique pairs (step, version), each step's versions ascending
    pairs, where = np.unique((step << 32) | version, return_inverse=True)
    weights = np.bincount(where, weights=used.weight, minlength=len(pairs)).astype(np.float64)
    versions = (pairs & 0xFFFFFFFF).astype(np.int32)
    cuts = np.searchsorted(pairs >> 32, np.arange(len(lanes) + 1))
    columns = (
        closed_us, np.diff(closed_us, prepend=opened_us), lanes, np.diff(_before(staleness, split)) / lanes,
        _percentile_95(step, staleness, split), np.diff(offsets) - lanes, busy - good, good,
    )  # fmt: skip
    plans = []
    for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        closed, fill, num_lanes, mean, p95, num_failed, wasted, useful = values
        # a sum's bits depend on its order: step by step, as every replay of it
        divisor = float(used.example_weight[split[index] : split[index + 1]].sum())
        own = slice(cuts[index], cuts[index + 1])
        plans.append(
            StepPlan(
                first_step + index, closed, fill, num_lanes, divisor, mean, p95, num_failed, wasted, useful,
                versions[own], weights[own],
            )
        )  # fmt: skip
    return plans


def _before(values: npt.NDArray[np.generic], offsets: I64) -> I64:
    """Σ values[: offset] for each offset; whole numbers, so that differences are exact."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums.take(offsets)


def _percentile_95(step: I64, staleness: I64, split: I64) -> F64:
    """np.percentile(staleness, 95) of each step, bit for bit."""
    ordered = np.sort((step << 32) | staleness) & 0xFFFFFFFF
    last = np.diff(split) - 1
    place = last * 0.95
    low = np.floor(place).astype(np.int64)
    share = place - low
    a, b = ordered[split[:-1] + low], ordered[split[:-1] + np.minimum(low + 1, last)]
    return np.asarray(np.where(share >= 0.5, b - (b - a) * (1 - share), a + (b - a) * share), dtype=np.float64)
