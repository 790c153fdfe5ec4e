"""Figures of running experiments for Prometheus, through Ray: how busy the platform is, never what a model is worth.

Only the coordinator's process emits, every other second, and only on a Ray cluster that others look at: an embedded Ray
collects no metrics. Labels are the run's name and nothing else: one time series per run and figure.
`configs/grafana/atoll.json` shows them all.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["COUNTERS", "GAUGES", "Figures", "Gauges", "Meter", "gauges_here", "prometheus_names"]

#: wall seconds between two emissions
_EVERY_S = 2.0
#: Ray's own, of every process of a Ray
_SWITCH = "RAY_enable_metrics_collection"
#: what only grows: field of Figures → what it says
COUNTERS: Mapping[str, str] = {
    "client_updates": "client updates that a server step has used",
    "server_steps": "server steps closed",
    "busy_seconds": "seconds that client pools have spent in training and evaluation",
    "pool_seconds": "seconds that client pools had a place; busy seconds over these is the occupancy",
    "sent_bytes": "bytes of model versions sent to client pools",
}
#: what is told as it is
GAUGES: Mapping[str, str] = {
    # no counter: Ray makes a counter's series with the first loss, and whoever watches for growth would miss that one
    "pool_restarts": "client pools that were lost and replaced, over the life of the run",
    "open_blocks": "blocks that pools have or could have now: the queue",
    "outbox_rows": "metric rows that wait for the tracking service",
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One run at one moment. What only grows is over the life of the run, earlier attempts included.

    Attributes:
        client_updates: used by server steps.
        server_steps: closed.
        busy_seconds: of client pools.
        pool_seconds: that pools had a place.
        sent_bytes: of model versions, to pools.
        pool_restarts: pools lost and replaced.
        open_blocks: under way or ready.
        outbox_rows: not yet taken by the tracking service.
    """

    client_updates: float = 0.0
    server_steps: float = 0.0
    busy_seconds: float = 0.0
    pool_seconds: float = 0.0
    sent_bytes: float = 0.0
    pool_restarts: float = 0.0
    open_blocks: float = 0.0
    outbox_rows: float = 0.0


class Meter(Protocol):
    """One metric of the metrics system."""

    def add(self, value: float, run: str) -> None:
        """What has been added since the last call, > 0."""
        ...

    def set(self, value: float, run: str) -> None:
        """What it is now."""
        ...


class Gauges:
    """Turns figures into metrics, no oftener than every other second.

    A counter never goes back: a run that begins again at its last snapshot adds nothing until it is as far as it was.
    What a run had when it was first seen is where its counters begin, so that a resumed one adds no jump.

    Args:
        make_meter: (name, description, whether it only grows) → the metric; None: nothing is ever emitted.
        clock: wall seconds.
    """

    def __init__(
        self, make_meter: Callable[[str, str, bool], Meter] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meters: dict[str, Meter] = {}
        if make_meter is not None:
            self._meters = {name: make_meter(f"atoll_{name}", text, True) for name, text in COUNTERS.items()}
            self._meters |= {name: make_meter(f"atoll_{name}", text, False) for name, text in GAUGES.items()}
        self._clock = clock
        self._next = clock() if self._meters else math.inf
        #: run → its highest figures so far
        self._highest: dict[str, dict[str, float]] = {}

    def emit(self, runs: Callable[[], Mapping[str, Figures]]) -> None:
        """Emits the figures of `runs`, which is only called when it is time; for a run that has gone nothing waits."""
        now = self._clock()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._emit(runs())

    def close(self, runs: Callable[[], Mapping[str, Figures]]) -> None:
        """The last figures; then nothing waits any more."""
        if self._meters:
            self._emit(runs())
            self._emit({})

    def _emit(self, runs: Mapping[str, Figures]) -> None:
        for run, figures in runs.items():
            known = self._highest.setdefault(run, {name: getattr(figures, name) for name in COUNTERS})
            for name in COUNTERS:
                added = getattr(figures, name) - known[name]
                if added > 0:
                    self._meters[name].add(added, run)
                    known[name] += added
            for name in GAUGES:
                self._meters[name].set(getattr(figures, name), run)
        for run in self._highest.keys() - runs.keys():
            for name in GAUGES:
                self._meters[name].set(0.0, run)


def gauges_here() -> Gauges:
    """Those of this Ray; silent where it collects no metrics."""
    is_off = os.environ.get(_SWITCH, "true").lower() in ("0", "false")
    return Gauges(None if is_off else _RayMeter)


def prometheus_names() -> set[str]:
    """The metrics as Prometheus knows them: Ray puts a word before each, and one after what only grows."""
    return {f"ray_atoll_{name}_total" for name in COUNTERS} | {f"ray_atoll_{name}" for name in GAUGES}


class _RayMeter:
    """A metric of `ray.util.metrics`."""

    def __init__(self, name: str, description: str, only_grows: bool) -> None:
        from ray.util.metrics import Counter, Gauge

        self._metric: Any = (Counter if only_grows else Gauge)(name, description, tag_keys=("run",))

    def add(self, value: float, run: str) -> None:
        """See Meter."""
        self._metric.inc(value, {"run": run})

    def set(self, value: float, run: str) -> None:
        """See Meter."""
        self._metric.set(value, {"run": run})
