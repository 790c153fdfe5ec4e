"""Which clients of the population a part (a cluster) is made of: disjoint parts without a stored membership table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import Problem, SpecError

__all__ = ["Everyone", "ListedMembers", "Members", "RandomMembers", "SizedMembers"]

I64 = npt.NDArray[np.int64]


class Members(Protocol):
    """A bijection between 0 … count − 1 and the client ids of one part of the population."""

    def count(self, size: int) -> int:
        """Number of members among the ids 0 … size − 1."""

    def client(self, index: I64, size: int) -> I64:
        """Client id of the index-th member; shape of index."""


@dataclass(frozen=True)
class Everyone:
    """The whole population."""

    def count(self, size: int) -> int:
        """`size`. Purity: pure."""
        return size

    def client(self, index: I64, size: int) -> I64:
        """The index itself. Purity: pure."""
        del size
        return index


@dataclass(frozen=True)
class RandomMembers:
    """Part `cluster` of `num_clusters` equal parts, drawn by a keyed permutation in O(1) memory.

    Sizes differ by one at most. Membership is a function of (seed, id) alone.

    Errors: SpecError where cluster is not in [0, num_clusters).
    """

    seed: int
    cluster: int
    num_clusters: int

    def __post_init__(self) -> None:
        if not 0 <= self.cluster < self.num_clusters:
            raise SpecError([Problem("clusters", f"{self.cluster} of {self.num_clusters}", "0 ≤ cluster < count")])

    def count(self, size: int) -> int:
        """ceil or floor of size / num_clusters. Purity: pure."""
        return max(0, (size - self.cluster + self.num_clusters - 1) // self.num_clusters)

    def client(self, index: I64, size: int) -> I64:
        """The permuted id. Purity: pure."""
        place = np.asarray(index, dtype=np.int64) * self.num_clusters + self.cluster
        return rng.permute(rng.key(self.seed, "cluster"), place, size)


@dataclass(frozen=True)
class SizedMembers:
    """Part `cluster` of parts of given sizes, drawn by a keyed permutation that is cut at the cumulative sizes; O(1).

    Membership is a function of (seed, id) alone. The sizes sum to the population; of a smaller population the last
    parts have less, of a larger one some clients are in no part.

    Errors: SpecError where a size is negative or cluster is not in [0, number of sizes).
    """

    seed: int
    cluster: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.cluster < len(self.sizes) or min(self.sizes) < 0:
            got = f"{self.cluster} of sizes {self.sizes}"
            raise SpecError([Problem("clusters", got, "sizes ≥ 0, and 0 ≤ cluster < their number")])

    def count(self, size: int) -> int:
        """The part's size. Purity: pure."""
        return min(self.sizes[self.cluster], max(0, size - self._first))

    def client(self, index: I64, size: int) -> I64:
        """The permuted id. Purity: pure."""
        place = np.asarray(index, dtype=np.int64) + self._first
        return rng.permute(rng.key(self.seed, "cluster"), place, size)

    @property
    def _first(self) -> int:
        return sum(self.sizes[: self.cluster])


@dataclass(frozen=True, eq=False)
class ListedMembers:
    """The clients whose data row is listed: id % period in `rows` (period D = clients in the data).

    Args:
        rows: int64, strictly ascending, in [0, period).
        period: number of clients in the data.

    Errors: SpecError.
    """

    rows: I64
    period: int

    def __post_init__(self) -> None:
        rows = np.array(self.rows, dtype=np.int64)
        fits = rows.ndim == 1 and (not rows.size or (rows[0] >= 0 and rows[-1] < self.period))
        if not fits or (np.diff(rows) <= 0).any():
            raise SpecError([Problem("clusters", f"{rows.size} rows", f"ascending rows in [0, {self.period})")])
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)

    def count(self, size: int) -> int:
        """Number of ids below size whose row is listed. Purity: pure."""
        whole, rest = divmod(size, self.period)
        return whole * len(self.rows) + int(np.searchsorted(self.rows, rest))

    def client(self, index: I64, size: int) -> I64:
        """Ascending ids. Purity: pure."""
        del size
        lap, row = np.divmod(np.asarray(index, dtype=np.int64), len(self.rows))
        return np.asarray(lap * self.period + self.rows[row], dtype=np.int64)
