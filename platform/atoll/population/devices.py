"""How long a client takes, and how its participation ends."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import Problem, SpecError
from atoll.population.laws import Law
from atoll.population.normal import ndtr, ndtri
from atoll.population.sizes import Sizes

__all__ = ["Devices", "Draw", "Outcome"]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

_MAX_S = 2.0**32  # 136 years: keeps sums of microseconds far from 2⁶³


class Outcome(enum.IntEnum):
    """How a task ended; everything but USED contributes to no server step."""

    USED = 0
    """Arrived, and counted in a buffer or a round."""
    DROPPED = 1
    """The client failed while working."""
    TIMED_OUT = 2
    """Execution was cut at `Devices.timeout_s`."""
    INTERRUPTED = 3
    """The client's availability window ended first."""
    ABORTED = 4
    """Sync: the round closed while it was running."""
    STALE = 5
    """Async: its staleness passed the maximum while it was running."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What participations would take if nothing outside the device stopped them; one element each.

    Attributes:
        duration_us: int64, ≥ 1.
        outcome: uint8, USED, DROPPED or TIMED_OUT.
        num_examples: int64.
    """

    duration_us: I64
    outcome: U8
    num_examples: I64


@dataclass(frozen=True)
class Devices:
    """Speed and reliability of all devices.

    A client's base time is a lasting property: `law.quantile(u)` with u keyed by (seed, "device", id). One
    participation executes for `(base + per_example_s · num_examples) · exp(jitter_sigma · z)` seconds, z normal and
    keyed by the task, and lasts `overhead_s + min(execution, timeout_s)`.

    Attributes:
        law: distribution of the base time.
        per_example_s: seconds per training example, ≥ 0.
        overhead_s: download, upload and check-in per participation, ≥ 0; never cut by the timeout.
        dropout: probability in [0, 1) that a participation fails, at a uniform fraction of its duration.
        jitter_sigma: log standard deviation between participations of one client, ≥ 0.
        size_correlation: ρ in [−1, 1] of a Gaussian copula between base time and data volume.
        timeout_s: execution beyond this many seconds is cut (TIMED_OUT); None for never.

    Errors: SpecError on construction, all problems at once.
    """

    law: Law
    per_example_s: float = 0.0
    overhead_s: float = 0.0
    dropout: float = 0.0
    jitter_sigma: float = 0.0
    size_correlation: float = 0.0
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        problems = [
            Problem(f"devices.{name}", repr(value), "a finite number ≥ 0")
            for name, value in (
                ("per_example_s", self.per_example_s),
                ("overhead_s", self.overhead_s),
                ("jitter_sigma", self.jitter_sigma),
            )
            if not (math.isfinite(value) and value >= 0)
        ]
        if not 0 <= self.dropout < 1:
            problems.append(
                Problem("devices.dropout", repr(self.dropout), "a probability in [0, 1)", "at 1 no buffer ever fills")
            )
        if not -1 <= self.size_correlation <= 1:
            problems.append(Problem("devices.size_correlation", repr(self.size_correlation), "a number in [−1, 1]"))
        if self.timeout_s is not None and not self.timeout_s > 0:
            problems.append(Problem("devices.timeout_s", repr(self.timeout_s), "seconds > 0, or null"))
        if problems:
            raise SpecError(problems)

    def base_s(self, seed: int, ids: I64, sizes: Sizes) -> F64:
        """Seconds of each client without examples, jitter and overhead: by (seed, id) alone. Purity: pure."""
        u = rng.uniform(rng.key(seed, "device"), ids)
        if self.size_correlation:
            rho = self.size_correlation
            z = rho * ndtri(sizes.size_quantile(seed, ids)) + math.sqrt(1.0 - rho * rho) * ndtri(u)
            u = np.clip(ndtr(z), 2.0**-54, 1.0 - 2.0**-53)
        return self.law.quantile(u)

    def draw(self, seed: int, ids: I64, task_ids: I64, cluster: int, sizes: Sizes) -> Draw:
        """Duration and outcome of one participation per element; ids and task_ids of one shape.

        Purity: pure; an element depends on its own (seed, cluster, id, task id) alone.
        """
        num_examples = sizes.num_examples(seed, ids)
        execution_s = self.base_s(seed, ids, sizes)
        if self.per_example_s:
            execution_s = execution_s + self.per_example_s * num_examples
        if self.jitter_sigma:
            z = ndtri(rng.uniform(rng.key(seed, "jitter", cluster), task_ids))
            execution_s = execution_s * np.exp(self.jitter_sigma * z)
        outcome = np.zeros(np.shape(ids), dtype=np.uint8)
        if self.timeout_s is not None:
            outcome[execution_s > self.timeout_s] = Outcome.TIMED_OUT
            execution_s = np.minimum(execution_s, self.timeout_s)
        duration_s = np.minimum(execution_s + self.overhead_s, _MAX_S)
        if self.dropout:
            stream = rng.key(seed, "dropout", cluster)
            dropped = rng.uniform(stream, task_ids) < self.dropout
            outcome[dropped] = Outcome.DROPPED
            fraction = rng.uniform(rng.key(seed, "dropout_time", cluster), task_ids[dropped])
            duration_s[dropped] *= fraction
        duration_us = np.maximum(np.rint(duration_s * 1e6).astype(np.int64), 1)
        return Draw(duration_us, outcome, num_examples)
