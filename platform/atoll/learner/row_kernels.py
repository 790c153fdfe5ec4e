"""Compiled work on the rows of embedding tables that clients touch; exact, and independent of the tables' sizes.

Shape legend: L lanes, N most examples of a lane, G categorical columns, R table rows of all lanes, D width of a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from atoll import kernel_cache

__all__ = ["lane_rows", "sum_rows"]

kernel_cache.use()
_njit: Any = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


@_njit
def lane_rows(codes, num_examples, offsets, rows, lane_offsets, index):
    """Which table rows each lane touches: fills rows (ascending within a lane), lane_offsets and index; returns R.

    Args:
        codes: int64 [L, N, G]; offsets: int64 [G], a code's row is offset + code.
        rows: int64, long enough for every example's codes; lane_offsets: int64 [L + 1].
        index: int64 [L, N, G], place in rows of each code; those of padding are the lane's first.
    """
    lanes, _, columns = codes.shape
    spare = np.empty(codes.shape[1] * columns, dtype=np.int64)
    filled = 0
    for lane in range(lanes):
        lane_offsets[lane] = filled
        count = num_examples[lane]
        for n in range(count):
            for g in range(columns):
                spare[n * columns + g] = codes[lane, n, g] + offsets[g]
        own = np.sort(spare[: count * columns])
        for place in range(len(own)):
            if place == 0 or own[place] != own[place - 1]:
                rows[filled] = own[place]
                filled += 1
        mine = rows[lane_offsets[lane] : filled]
        index[lane] = lane_offsets[lane]
        for n in range(count):
            for g in range(columns):
                low, high, wanted = 0, len(mine) - 1, spare[n * columns + g]
                while low < high:
                    middle = (low + high) >> 1
                    if mine[middle] < wanted:
                        low = middle + 1
                    else:
                        high = middle
                index[lane, n, g] = lane_offsets[lane] + low
    lane_offsets[lanes] = filled
    return filled


@_njit
def sum_rows(order, rows, deltas, scale, out_rows, out):
    """Adds the deltas of equal table rows as whole numbers; returns how many different rows there are.

    Args:
        order: int64, places in rows, those of one table row together, rows ascending; what is not named adds nothing.
        rows: int64 [R]; deltas: float32 [R, D]; scale: float64 [R].
        out_rows: int64, out: int64 [at least the different rows, D], zeros.
    """
    found = -1
    for place in order:
        if found < 0 or out_rows[found] != rows[place]:
            found += 1
            out_rows[found] = rows[place]
        for d in range(deltas.shape[1]):
            out[found, d] += np.int64(np.floor(scale[place] * float(deltas[place, d]) + 0.5))
    return found + 1
