"""Running totals that turn a closed step into metric values."""

from __future__ import annotations

from collections.abc import Mapping

from atoll.aggregation import Step, metric_values

__all__ = ["Ledger"]

_TOTALS = (
    "client_updates", "participations", "num_diverged", "closed_us", "wasted_us", "used_us", "staleness_sum",
)  # fmt: skip


class Ledger:
    """Totals over the steps closed so far; deterministic, since it reads the plan and exact sums only.

    Args:
        model_bytes: one model, float32: what one participation downloads and one client update uploads.
        metric_names: names of the learner's metric sums, in their order.
        totals: of the steps before, as `totals` gave them; none at the start of a run.
    """

    def __init__(
        self, model_bytes: int, metric_names: tuple[str, ...], totals: Mapping[str, float] | None = None
    ) -> None:
        self._model_bytes, self._names = model_bytes, metric_names
        self._totals: dict[str, float] = {**dict.fromkeys(_TOTALS, 0), **(totals or {})}

    def totals(self) -> dict[str, float]:
        """The totals after the last step added, plain numbers that survive JSON unchanged."""
        return dict(self._totals)

    @property
    def client_updates(self) -> int:
        """Tasks used so far."""
        return int(self._totals["client_updates"])

    @property
    def num_diverged(self) -> int:
        """Tasks zeroed so far."""
        return int(self._totals["num_diverged"])

    @property
    def virtual_hours(self) -> float:
        """When the last step closed."""
        return self._totals["closed_us"] / 3.6e9

    @property
    def mean_staleness(self) -> float:
        """Mean over all client updates so far."""
        return self._totals["staleness_sum"] / max(self.client_updates, 1)

    def add(self, step: Step) -> dict[str, float]:
        """Adds a closed step; returns its metrics, `wall_*` left to the caller."""
        plan, total = step.plan, self._totals
        total["client_updates"] += plan.num_lanes
        total["participations"] += plan.num_lanes + plan.num_failed
        total["num_diverged"] += step.num_diverged
        total["closed_us"] = plan.closed_us
        total["wasted_us"] += plan.wasted_us
        total["used_us"] += plan.used_us
        total["staleness_sum"] += plan.staleness_mean * plan.num_lanes
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
            "sim/client_updates": float(total["client_updates"]),
            "sim/uplink_bytes": float(total["client_updates"] * self._model_bytes),
            "sim/downlink_bytes": float(total["participations"] * self._model_bytes),
            "sim/wasted_share": total["wasted_us"] / max(total["wasted_us"] + total["used_us"], 1.0),
        }
