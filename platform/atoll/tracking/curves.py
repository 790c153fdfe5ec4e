"""Pure reading of metric histories: one metric against another, and the words and units of axes."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["AXES", "Axis", "History", "against", "byte_unit", "lower_is_better", "metric_label", "value_at"]

History = Mapping[str, Sequence[tuple[int, float]]]
"""(step, value) per metric key, steps ascending."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A cost that quality is plotted against: metric keys that are summed, a short name, a label with its unit."""

    keys: tuple[str, ...]
    name: str
    label: str


AXES = (
    Axis(("sim/hours",), "hours", "virtual hours (simulated)"),
    Axis(("sim/client_updates",), "client_updates", "client updates"),
    Axis(("sim/uplink_bytes",), "uplink_bytes", "uplink"),
)


def lower_is_better(metric: str) -> bool:
    """Whether small values of the metric are good: losses, errors and entropies.

    Example:
        >>> lower_is_better("eval/loss"), lower_is_better("eval/auc")
        (True, False)
    """
    return any(word in metric.rpartition("/")[2] for word in ("loss", "error", "entropy"))


def metric_label(metric: str) -> str:
    """How a metric is written on an axis: `eval/auc` is "AUC on held-out data"."""
    area, _, name = metric.rpartition("/")
    word = {"auc": "AUC"}.get(name, name.replace("_", " "))
    if area.startswith("eval/cluster/"):
        return f"{word} on held-out data of {area.removeprefix('eval/cluster/')}"
    return f"{word} on held-out data" if area == "eval" else word


def value_at(points: Sequence[tuple[int, float]], step: int) -> float:
    """The last value at or before `step`; 0 before the first: cumulative costs start at nothing. Purity: pure."""
    index = bisect.bisect_right(points, step, key=lambda point: point[0])
    return float(points[index - 1][1]) if index else 0.0


def against(history: History, metric: str, keys: Sequence[str]) -> tuple[list[float], list[float]]:
    """A metric's values and, for each, the sum of cumulative costs at its step.

    Returns:
        (costs, values), in step order; empty where the metric or any of the costs was never logged.

    Purity: pure.
    """
    if not all(history.get(key) for key in keys):
        return [], []
    points = history.get(metric, ())
    costs = [sum(value_at(history[key], step) for key in keys) for step, _ in points]
    return costs, [value for _, value in points]


def byte_unit(largest: float) -> tuple[float, str]:
    """Divisor and decimal unit that print `largest` bytes with one to three digits.

    Example:
        >>> byte_unit(3.2e9)
        (1000000000.0, 'GB')
    """
    for exponent, unit in ((15, "PB"), (12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if largest >= 10.0**exponent:
            return 10.0**exponent, unit
    return 1.0, "bytes"
