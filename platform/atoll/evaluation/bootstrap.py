"""Quality of logits on rows, and the relative gain of one model over another with a paired bootstrap interval.

Clients are resampled, not rows: the rows of one client depend on one another. Every model is measured on the same
resamples, so that what is common to all of them cancels.

Shape legend: R rows, C clients, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll import rng

__all__ = ["QUALITIES", "Gain", "Scores", "all_gains", "gains", "is_lower_better", "qualities", "relative_gain"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: what is told of every model, in the order of tables
QUALITIES = ("auc", "normalized_entropy", "loss", "accuracy")
_LEVEL = (2.5, 97.5)
#: numbers of one temporary array
_CHUNK = 2**19


@dataclass(frozen=True, eq=False)
class Scores:
    """What several models say of the same rows.

    Attributes:
        labels: int64 [R], 0 and 1.
        client: int64 [R].
        logits: model → float64 [R].
    """

    labels: I64
    client: I64
    logits: Mapping[str, F64]


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one model is than another.

    Attributes:
        value: mean over seeds of the relative gain within a seed; positive is better, for every metric.
        low: 2.5 % percentile over resampled clients, all seeds together; NaN without resamples.
        high: 97.5 % percentile.
        by_seed: the gain within each seed; the interval says nothing of their spread.
        left_out: resamples that the interval is not of: in some seed they have rows of one class alone, or none, or
            the baseline's value is 0.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    left_out: int = 0


def is_lower_better(quality: str) -> bool:
    """Whether small values are good: loss and normalized_entropy."""
    return quality in ("loss", "normalized_entropy")


def relative_gain(quality: str, value: float, base: float) -> float:
    """value / base − 1; for losses 1 − value / base: positive is better. NaN over a base of 0.

    Example:
        >>> round(relative_gain("auc", 0.72, 0.70), 4), round(relative_gain("loss", 0.55, 0.50), 4)
        (0.0286, -0.1)
    """
    if not base:
        return math.nan
    return 1.0 - value / base if is_lower_better(quality) else value / base - 1.0


def qualities(labels: I64, logits: F64) -> dict[str, float]:
    """AUC (ties count half), log loss over the entropy of the base rate, log loss and accuracy (of logit > 0) on rows.

    NaN where a metric is not defined: all of them without rows or with logits that are not finite, the first two with
    one class alone.

    Purity: pure.
    """
    whole = _resampled(labels, np.zeros(len(labels), dtype=np.int64), logits, np.ones((1, 1)))
    return {name: float(values[0]) for name, values in whole.items()}


def gains(seeds: Sequence[Scores], model: str, baseline: str, resamples: int, seed: int) -> dict[str, Gain]:
    """The gain of `model` over `baseline` per quality, over the seeds that have both.

    Args:
        seeds: one entry per seed; rows and clients may differ between seeds.
        model: name in `logits`.
        baseline: name in `logits`.
        resamples: B; 0: no intervals.
        seed: key of the resamples: equal keys and clients give equal resamples.

    Returns:
        {} where no seed has both.

    Purity: pure.
    """
    return all_gains(seeds, [model], baseline, resamples, seed).get(model, {})


def all_gains(
    seeds: Sequence[Scores], models: Sequence[str], baseline: str, resamples: int, seed: int
) -> dict[str, dict[str, Gain]]:
    """`gains` of many models; the baseline is resampled once.

    Purity: pure.
    """
    clients = np.unique(np.concatenate([one.client for one in seeds])) if seeds else np.empty(0, dtype=np.int64)
    counts = _counts(len(clients), resamples, seed)
    told: dict[str, list[tuple[dict[str, float], dict[str, F64]]]] = {}
    for one in seeds:
        if baseline not in one.logits:
            continue
        place = np.searchsorted(clients, one.client)
        base_whole = qualities(one.labels, one.logits[baseline])
        base = _resampled(one.labels, place, one.logits[baseline], counts)
        for model in models:
            if model not in one.logits:
                continue
            whole = qualities(one.labels, one.logits[model])
            again = base if model == baseline else _resampled(one.labels, place, one.logits[model], counts)
            value = {name: relative_gain(name, whole[name], base_whole[name]) for name in QUALITIES}
            told.setdefault(model, []).append((value, {name: _ratios(name, again, base) for name in QUALITIES}))
    return {model: {name: _gain(name, found) for name in QUALITIES} for model, found in told.items()}


def _gain(name: str, found: Sequence[tuple[dict[str, float], dict[str, F64]]]) -> Gain:
    by_seed = tuple(value[name] for value, _ in found)
    spread = np.mean([ratios[name] for _, ratios in found], axis=0)
    known = spread[np.isfinite(spread)]
    low, high = np.percentile(known, _LEVEL) if len(known) else (math.nan, math.nan)
    return Gain(float(np.mean(by_seed)), float(low), float(high), by_seed, len(spread) - len(known))


def _ratios(name: str, again: Mapping[str, F64], base: Mapping[str, F64]) -> F64:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = again[name] / base[name]
    # one class alone, which AUC does not know: left out of every interval, so that all are of the same resamples
    ratio = np.where(np.isnan(base["auc"]), np.nan, ratio)
    return np.asarray(1.0 - ratio if is_lower_better(name) else ratio - 1.0, dtype=np.float64)


def _counts(num_clients: int, resamples: int, seed: int) -> F64:
    """How often each client is drawn, [B, C]: as many draws as clients, with replacement."""
    if not num_clients or not resamples:
        return np.ones((0, num_clients))
    draw = rng.generator(seed, "bootstrap")
    return draw.multinomial(num_clients, np.full(num_clients, 1.0 / num_clients), size=resamples).astype(np.float64)


def _resampled(labels: I64, place: I64, logits: F64, counts: F64) -> dict[str, F64]:
    """Every quality under every resample, [B] each; rows count as often as their client `place` [R] is drawn."""
    num_clients = counts.shape[1]
    if not np.isfinite(logits).all():
        return {name: np.full(len(counts), np.nan) for name in QUALITIES}
    losses = np.logaddexp(0.0, logits) - labels * logits
    sums = [
        counts @ np.bincount(place, weights=values, minlength=num_clients)
        for values in (np.ones(len(labels)), labels, losses, (logits > 0) == (labels == 1))
    ]
    rows, positive, loss, right = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = positive / rows
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        found = {"loss": loss / rows, "accuracy": right / rows, "normalized_entropy": loss / rows / entropy}
    found["auc"] = _weighted_auc(labels, place, logits, counts)
    return {name: found[name] for name in QUALITIES}


def _weighted_auc(labels: I64, place: I64, logits: F64, counts: F64) -> F64:
    """[B]: chance that a drawn row of class 1 stands above a drawn row of class 0; ties count half.

    The rows of class 0 are sorted once; what stands below a row of class 1 is then one difference of a running sum.
    """
    is_positive = labels == 1
    order = np.argsort(logits[~is_positive], kind="stable")
    negative = logits[~is_positive][order]
    below = np.searchsorted(negative, logits[is_positive], side="left")
    up_to = np.searchsorted(negative, logits[is_positive], side="right")
    low_place, high_place = place[~is_positive][order], place[is_positive]
    has_ties = bool((below != up_to).any())
    drawn = np.ascontiguousarray(counts.T)
    found = np.empty(len(counts))
    for part in _parts(len(counts), max(len(labels), 1)):
        some = np.ascontiguousarray(drawn[:, part])
        running = np.zeros((len(negative) + 1, some.shape[1]))
        np.cumsum(some[low_place], axis=0, out=running[1:])
        weight = some[high_place]
        beaten = running[below]
        if has_ties:
            beaten = (beaten + running[up_to]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found[part] = np.einsum("ij,ij->j", weight, beaten) / (weight.sum(0) * running[-1])
    return found


def _parts(total: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // width)
    for begin in range(0, total, step):
        yield slice(begin, begin + step)
