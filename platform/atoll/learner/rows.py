"""Embedding rows that a block's clients touch: the table itself is never copied per client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll.messages import ModelVersion
from atoll.models import TableShape

__all__ = ["TouchedRows", "touched_rows"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TouchedRows:
    """Rows of one table, lane after lane.

    Attributes:
        rows: int64 [R], table row of each local row; ascending within a lane.
        lane_offsets: int64 [L + 1], local rows of lane l are lane_offsets[l] … lane_offsets[l + 1] − 1.
        index: int64 [L, N, G], local row of each example's codes; padding examples point at the lane's first row.
        start: float32 [R, dim], values in each lane's start version.
    """

    rows: I64
    lane_offsets: I64
    index: I64
    start: npt.NDArray[np.float32]


def touched_rows(
    table: TableShape,
    position: int,
    codes: I64,
    num_examples: I64,
    start_version: npt.NDArray[np.int32],
    versions: Mapping[int, ModelVersion],
) -> TouchedRows:
    """Which rows of `table` the lanes' clients touch, and where.

    Cost depends on the clients' examples, never on the table's size.

    Args:
        table: shape of the table.
        position: its place in `ModelVersion.tables`.
        codes: int64 [L, N, G], category codes of every example, padding included.
        num_examples: int64 [L].
        start_version: int32 [L].
        versions: holds every start version.
    """
    from atoll.learner.row_kernels import lane_rows

    codes, num_examples = (np.require(values, np.int64, ["C", "W"]) for values in (codes, num_examples))
    lanes = len(codes)
    rows = np.empty(int(num_examples.sum()) * codes.shape[2], dtype=np.int64)
    lane_offsets, index = np.empty(lanes + 1, dtype=np.int64), np.empty(codes.shape, dtype=np.int64)
    # Zero shares do not stop a NaN: what a lane pads with must be its own.
    rows = rows[: lane_rows(codes, num_examples, np.asarray(table.offsets), rows, lane_offsets, index)]
    lane = np.repeat(np.arange(lanes), np.diff(lane_offsets))
    start = np.empty((rows.size, table.dim), dtype=np.float32)
    row_version = start_version[lane]
    for version in np.unique(start_version).tolist():
        here = row_version == version
        start[here] = versions[version].tables[position][rows[here]]
    return TouchedRows(rows, lane_offsets, index, start)
