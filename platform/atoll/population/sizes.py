"""How many training examples a client has, and which quantile of the population that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import Problem, SpecError
from atoll.population.normal import ndtri

__all__ = ["ClientSizes", "DrawnSizes", "FunctionSizes", "Sizes"]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


class Sizes(Protocol):
    """A data volume per client: a pure function of (seed, client id)."""

    def num_examples(self, seed: int, ids: I64) -> I64:
        """Training examples, ≥ 0, of each client; shape of ids."""

    def size_quantile(self, seed: int, ids: I64) -> F64:
        """Where each client's data volume lies in the population, uniform over clients in (0, 1); shape of ids."""


def _between(below: I64, equal: I64, total: int, stream: int, ids: I64) -> F64:
    """Mid-rank with ties spread by a keyed uniform, so that it is uniform in (0, 1) whatever the ties."""
    return np.asarray((below + equal * rng.uniform(stream, ids)) / total, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class ClientSizes:
    """The data's own counts: client `id` has `counts[id % D]` examples.

    Args:
        counts: int64 [D], D ≥ 1, each ≥ 0.

    Errors: SpecError.
    """

    counts: I64

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.int64)
        if counts.ndim != 1 or counts.size == 0 or counts.min() < 0 or counts.max() > 2**31 - 1:
            raise SpecError([Problem("data", f"counts of shape {counts.shape}", "one count in [0, 2³¹) per client")])
        ordered = np.sort(counts)
        below = np.searchsorted(ordered, counts, side="left")
        for name, value in (
            ("counts", counts),
            ("_below", below),
            ("_equal", np.searchsorted(ordered, counts, side="right") - below),
        ):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    def num_examples(self, seed: int, ids: I64) -> I64:
        """`counts[ids % D]`; the seed is not used. Purity: pure."""
        del seed
        return np.asarray(self.counts[ids % len(self.counts)], dtype=np.int64)

    def size_quantile(self, seed: int, ids: I64) -> F64:
        """Rank of the count among all D, ties spread by a keyed uniform. Purity: pure."""
        row = ids % len(self.counts)
        below, equal = self.__dict__["_below"][row], self.__dict__["_equal"][row]
        return _between(below, equal, len(self.counts), rng.key(seed, "size_tie"), ids)


@dataclass(frozen=True)
class DrawnSizes:
    """Counts drawn from a law, for populations without stored data.

    Args:
        kind: `constant`: every client has round(median) examples; `log_normal`: exp(N(ln median, sigma²)), rounded,
            at least 1 and at most max_examples.
        median: examples, ≥ 1.
        sigma: standard deviation of the logarithm, ≥ 0.
        max_examples: upper limit, ≥ 1.

    Errors: SpecError.
    """

    kind: Literal["constant", "log_normal"] = "constant"
    median: float = 1.0
    sigma: float = 0.0
    max_examples: int = 2**31 - 1

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in ("constant", "log_normal"):
            problems.append(Problem("sizes.kind", repr(self.kind), "constant or log_normal"))
        if not 1 <= self.median < 2**31:
            problems.append(Problem("sizes.median", repr(self.median), "1 or more examples"))
        if not 0 <= self.sigma < 100:
            problems.append(Problem("sizes.sigma", repr(self.sigma), "a number in [0, 100)"))
        if not 1 <= self.max_examples < 2**31:
            problems.append(Problem("sizes.max_examples", repr(self.max_examples), "a whole number in [1, 2³¹)"))
        if problems:
            raise SpecError(problems)

    def num_examples(self, seed: int, ids: I64) -> I64:
        """One draw per client, keyed by (seed, "size", id). Purity: pure."""
        if self.kind == "constant":
            return np.full(np.shape(ids), min(max(1, round(self.median)), self.max_examples), dtype=np.int64)
        with np.errstate(over="ignore"):
            drawn = self.median * np.exp(self.sigma * ndtri(self.size_quantile(seed, ids)))
        return np.asarray(np.clip(np.rint(drawn), 1, self.max_examples), dtype=np.int64)

    def size_quantile(self, seed: int, ids: I64) -> F64:
        """The uniform number that the count is drawn from. Purity: pure."""
        return rng.uniform(rng.key(seed, "size"), ids)


@dataclass(frozen=True, eq=False)
class FunctionSizes:
    """Counts from another room's pure function, such as a data source that generates its clients.

    Args:
        function: int64 ids [...] → int64 examples [...], pure.
        identity: names the function exactly; enters the timeline's digest.
        sample: how many ids, spread over [0, size), estimate the distribution for `size_quantile`.
        size: population size that the sample is taken from.
    """

    function: Callable[[I64], I64]
    identity: str
    size: int
    sample: int = 4096

    def num_examples(self, seed: int, ids: I64) -> I64:
        """`function(ids)`; the seed is not used. Purity: as the function's."""
        del seed
        return np.asarray(self.function(ids), dtype=np.int64)

    def size_quantile(self, seed: int, ids: I64) -> F64:
        """Rank within the sample, ties spread by a keyed uniform; error about 1 / √sample. Purity: pure."""
        ordered = self.__dict__.get("_ordered")
        if ordered is None:
            draw = rng.integers(rng.key(0, "size_sample"), self.size, np.arange(min(self.sample, 4 * self.size)))
            ordered = np.sort(self.num_examples(seed, draw))
            object.__setattr__(self, "_ordered", ordered)
        counts = self.num_examples(seed, ids)
        below = np.searchsorted(ordered, counts, side="left")
        equal = np.searchsorted(ordered, counts, side="right") - below
        # half a pseudo-count at either end keeps counts that the sample never saw strictly inside (0, 1)
        inside = _between(below, equal, len(ordered), rng.key(seed, "size_tie"), ids)
        return np.asarray((inside * len(ordered) + 0.5) / (len(ordered) + 1), dtype=np.float64)
