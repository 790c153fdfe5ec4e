"""Exact integer sums: order, grouping and retries cannot change them; overflow raises."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from atoll.errors import AggregationError
from atoll.messages import BlockResult, PartialSum, RowSum

__all__ = ["add_exact", "add_partials", "merge_results", "merge_rows"]

I64 = npt.NDArray[np.int64]
_INT64_MAX = 2**63 - 1
_ROWS_AT_ONCE = 1024


def add_exact(total: I64, part: I64) -> I64:
    """Total + part, in place, or AggregationError where a coordinate would leave int64.

    Args:
        total: int64, changed in place and returned.
        part: int64, same shape.

    Raises:
        AggregationError: names the first coordinate; `total` is then not usable.

    Example:
        >>> add_exact(np.array([1, 2]), np.array([3, 4]))
        array([4, 6])
    """
    if _largest(total) + _largest(part) <= _INT64_MAX:
        return np.add(total, part, out=total)
    before = total.copy()
    np.add(total, part, out=total)
    # Two's complement: the sum overflowed where both terms have the sign that the sum lacks.
    overflowed = ((before ^ total) & (part ^ total)) < 0
    if overflowed.any():
        where = int(np.argmax(overflowed))
        raise AggregationError(
            f"exact sum, coordinate {where}: {before.flat[where]} + {part.flat[where]} leaves int64. "
            "The declared bounds do not hold: raise aggregation.delta_bound or lower the buffer goal."
        )
    return total


def _largest(values: I64) -> int:
    """Largest absolute value, as a Python integer (−2⁶³ has no int64 counterpart)."""
    return max(int(values.max()), -int(values.min())) if values.size else 0


def add_partials(total: PartialSum, part: PartialSum) -> PartialSum:
    """Exact sum of two partial sums of one server step; may change the arrays of `total` in place.

    Raises:
        AggregationError: a coordinate would leave int64.
    """
    pairs = zip(total.tables, part.tables, strict=True)
    return PartialSum(
        step=total.step,
        num_lanes=total.num_lanes + part.num_lanes,
        num_diverged=total.num_diverged + part.num_diverged,
        lost_weight=total.lost_weight + part.lost_weight,
        dense=add_exact(total.dense, part.dense),
        tables=tuple(merge_rows([one, other]) for one, other in pairs),
        metrics=add_exact(total.metrics, part.metrics),
    )


def merge_results(results: Sequence[BlockResult]) -> BlockResult:
    """One result out of several: what a worker sends for all blocks of a call. Bits do not depend on the grouping."""
    if len(results) == 1:
        return results[0]
    sums: dict[int, PartialSum] = {}
    for result in results:
        for partial in result.partials:
            known = sums.get(partial.step)
            sums[partial.step] = partial if known is None else add_partials(known, partial)
    ids = tuple(block_id for result in results for block_id in result.block_ids)
    return BlockResult(ids, tuple(sums[step] for step in sorted(sums)))


def merge_rows(parts: Sequence[RowSum]) -> RowSum:
    """The exact sum of one or more RowSums of one table; rows ascend, unique; independent of the order of `parts`.

    Raises:
        AggregationError: a coordinate would leave int64.
    """
    return functools.reduce(_merged, parts)


def _merged(one: RowSum, other: RowSum) -> RowSum:
    """Sum of two: both ascend, so the smaller one is looked up in the other, and nothing is sorted."""
    if one.rows.size < other.rows.size:
        one, other = other, one
    if not other.rows.size:
        return one
    place = np.searchsorted(one.rows, other.rows)
    is_shared = one.rows[np.minimum(place, one.rows.size - 1)] == other.rows
    shared, fresh = np.flatnonzero(is_shared), np.flatnonzero(~is_shared)
    # where the rows of each stand in the sum
    of_fresh = place[fresh] + np.arange(fresh.size)
    is_known = np.ones(one.rows.size + fresh.size, dtype=np.bool_)
    is_known[of_fresh] = False
    of_one = np.flatnonzero(is_known)
    rows = np.empty(is_known.size, dtype=np.int64)
    rows[of_one], rows[of_fresh] = one.rows, other.rows[fresh]
    values = np.empty((is_known.size, one.values.shape[1]), dtype=np.int64)
    values[of_one], values[of_fresh] = one.values, other.values[fresh]
    of_shared = of_one[place[shared]]
    # by parts: what is gathered on the way stays in the cache
    for begin in range(0, shared.size, _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        values[of_shared[part]] = add_exact(values[of_shared[part]], other.values[shared[part]])
    return RowSum(rows, values)
