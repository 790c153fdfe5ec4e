"""Running totals that turn a closed step into metric values."""

from __future__ import annotations

from atoll.aggregation import Step, metric_values

__all__ = ["Ledger"]


class Ledger:
    """Totals over the steps closed so far; deterministic, since it reads the plan and exact sums only.

    Args:
        model_bytes: one model, float32: what one participation downloads and one client update uploads.
        metric_names: names of the learner's metric sums, in their order.
    """

    def __init__(self, model_bytes: int, metric_names: tuple[str, ...]) -> None:
        self._model_bytes, self._names = model_bytes, metric_names
        self.client_updates = self.participations = self.num_diverged = 0
        self._wasted_us = self._used_us = self._staleness_sum = 0.0

    @property
    def mean_staleness(self) -> float:
        """Mean over all client updates so far."""
        return self._staleness_sum / max(self.client_updates, 1)

    def add(self, step: Step) -> dict[str, float]:
        """Adds a closed step; returns its metrics, `wall_*` left to the caller."""
        plan = step.plan
        self.client_updates += plan.num_lanes
        self.participations += plan.num_lanes + plan.num_failed
        self.num_diverged += step.num_diverged
        self._wasted_us += plan.wasted_us
        self._used_us += plan.used_us
        self._staleness_sum += plan.staleness_mean * plan.num_lanes
        sums = metric_values(step, self._names)
        healthy = max(plan.num_lanes - step.num_diverged, 1)
        return {
            "train/loss": sums["loss_sum"] / healthy,
            "train/diverged": float(step.num_diverged),
            "update/norm": step.update_norm,
            "update/client_norm_mean": sums["delta_norm_sum"] / healthy,
            "staleness/mean": plan.staleness_mean,
            "staleness/p95": plan.staleness_p95,
            "buffer/fill_s": plan.fill_us / 1e6,
            "sim/hours": plan.closed_us / 3.6e9,
            "sim/client_updates": float(self.client_updates),
            "sim/uplink_bytes": float(self.client_updates * self._model_bytes),
            "sim/downlink_bytes": float(self.participations * self._model_bytes),
            "sim/wasted_share": self._wasted_us / max(self._wasted_us + self._used_us, 1.0),
        }
