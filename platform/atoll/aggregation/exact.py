"""Exact integer sums: order, grouping and retries cannot change them; overflow raises."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from atoll.errors import AggregationError
from atoll.messages import RowSum

__all__ = ["add_exact", "merge_rows"]

I64 = npt.NDArray[np.int64]


def add_exact(total: I64, part: I64) -> I64:
    """total + part, in place, or AggregationError where a coordinate would leave int64.

    Args:
        total: int64, changed in place and returned.
        part: int64, same shape.

    Raises:
        AggregationError: names the first coordinate; `total` is then not usable.

    Example:
        >>> add_exact(np.array([1, 2]), np.array([3, 4]))
        array([4, 6])
    """
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


def merge_rows(parts: list[RowSum], width: int) -> RowSum:
    """The exact sum of several RowSums of one table; rows ascend, unique; independent of the order of `parts`.

    Args:
        parts: any number, also none.
        width: columns of the table.

    Raises:
        AggregationError: a coordinate would leave int64.
    """
    if not parts:
        return RowSum(np.empty(0, dtype=np.int64), np.empty((0, width), dtype=np.int64))
    if len(parts) == 1:
        return parts[0]
    rows, where = np.unique(np.concatenate([part.rows for part in parts]), return_inverse=True)
    values = np.zeros((rows.size, width), dtype=np.int64)
    begin = 0
    for part in parts:
        # Rows of one part are unique, so fancy assignment adds each exactly once.
        index = where[begin : begin + part.rows.size]
        values[index] = add_exact(values[index], part.values)
        begin += part.rows.size
    return RowSum(rows, values)
