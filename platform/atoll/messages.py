"""Frozen records that cross rooms and processes: NumPy arrays and plain values, never tensors, never actors.

Shape legend: L lanes of a block, P dense parameters (flat), R rows of an embedding table, M metric sums.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

__all__ = [
    "Block",
    "BlockResult",
    "ModelVersion",
    "PartialSum",
    "RowSum",
    "Table",
    "VersionedTable",
    "model_digest",
    "whole",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

#: A step that changes more than this part of a table's rows copies the table: cheaper than remembering rows.
_LARGE_STEP = 1 / 8
#: So many times as many rows as were changed: sorting these costs less than a pass over a mark for each row.
_FEW_ROWS = 64


class VersionedTable:
    """One version of an embedding table, in memory that it shares with the versions made from it (Baker's arrays).

    The newest version owns the array; each older one knows the rows in which it differs from the next. References run
    from old to new only: a version that nobody holds takes its rows along, and memory is one table plus the rows
    changed since the oldest version that is held. A value never changes for whoever holds it. Not for several threads.

    Args:
        array: float32 [R, dim]; never written to.
    """

    __slots__ = ("_array", "_undo", "changed_rows", "shape")
    dtype = np.dtype(np.float32)

    def __init__(self, array: F32) -> None:
        self.shape: tuple[int, ...] = array.shape
        #: rows changed by all steps so far: the difference of two versions bounds in how many rows they differ
        self.changed_rows = 0
        self._array: F32 | None = array.view()
        self._array.flags.writeable = False
        #: rows (ascending, unique), their values here, the next version
        self._undo: tuple[I64, F32, VersionedTable] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole table."""
        return int(np.prod(self.shape)) * 4

    def __getitem__(self, rows: I64) -> F32:
        """The values of these rows, float32 [len(rows), dim], as a copy."""
        array, undone = self._path()
        found: F32 = array[np.asarray(rows, dtype=np.int64)]
        for own, values in reversed(undone):
            place = np.searchsorted(own, rows)
            place[place == own.size] = 0
            hit = own[place] == rows
            found[hit] = values[place[hit]]
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.float32]:
        """The whole table, always as a copy: the array itself changes with the next step."""
        if copy is False:
            raise ValueError("a versioned table has no array of its own")
        array, undone = self._path()
        found = array.copy()
        for own, values in reversed(undone):
            found[own] = values
        return found if dtype is None else found.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[type[VersionedTable], tuple[F32]]:
        return VersionedTable, (np.asarray(self),)

    def stepped(self, rows: I64, values: F32) -> VersionedTable:
        """The version with these rows (ascending, unique) replaced; this one stays what it is.

        Example:
            >>> first = VersionedTable(np.zeros((9, 1), dtype=np.float32))
            >>> second = first.stepped(np.array([3]), np.float32([[1]]))
            >>> float(first[np.array([3])][0, 0]), float(second[np.array([3])][0, 0])
            (0.0, 1.0)
        """
        if not rows.size:
            return self
        if self._array is None or rows.size > self.shape[0] * _LARGE_STEP:
            array = np.asarray(self)
            array[rows] = values
            return VersionedTable(array)
        array = self._array if self._array.flags.writeable else self._array.copy()
        new = VersionedTable(array)
        new._array, new.changed_rows = array, self.changed_rows + rows.size
        self._array, self._undo = None, (rows, array[rows], new)
        array[rows] = values
        return new

    def older(self, rows: I64, values: F32) -> VersionedTable:
        """A version before this one, that differs from it in these rows (ascending, unique) at most."""
        if not rows.size:
            return self
        old = VersionedTable(np.empty(self.shape, dtype=np.float32)[:0])
        old.shape, old.changed_rows = self.shape, self.changed_rows - rows.size
        old._array, old._undo = None, (rows, values, self)
        return old

    def differing(self, other: VersionedTable) -> I64 | None:
        """Rows (ascending) outside of which both are equal; None: not of one line, or so many that it does not pay."""
        for start, end in ((self, other), (other, self)):
            parts: list[I64] = []
            count, node = 0, start
            while node is not end and node._undo is not None and count <= self.shape[0] // 2:
                rows, _, node = node._undo
                parts.append(rows)
                count += rows.size
            if node is end:
                return _union(parts, self.shape[0])
        return None

    def _path(self) -> tuple[F32, list[tuple[I64, F32]]]:
        """The newest version's array, and what to undo of it, this version's rows first."""
        node, undone = self, []
        while node._array is None and node._undo is not None:
            rows, values, node = node._undo
            undone.append((rows, values))
        return cast("F32", node._array), undone


def _union(parts: list[I64], num_rows: int) -> I64:
    """The rows of all parts, ascending; each part ascends and is unique. Not sorted where there are many."""
    if len(parts) == 1:
        return parts[0]
    if sum(part.size for part in parts) * _FEW_ROWS < num_rows:
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
    is_changed = np.zeros(num_rows, dtype=np.bool_)
    for part in parts:
        is_changed[part] = True
    return np.flatnonzero(is_changed)


Table = F32 | VersionedTable


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Weights after `version` server steps.

    Attributes:
        version: number of server steps that made it; 0 first.
        dense: float32 [P], every parameter that is not an embedding table, flat, in the model shape's order.
        tables: float32 [R, dim] each, the embedding tables in the model shape's order. Both forms are read by
            `table[rows]` and, whole, by `np.asarray(table)`.
    """

    version: int
    dense: F32
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Up to W lanes that train together: membership and lane order are decided by the plan.

    Lanes are sorted by num_examples, longest first; every array has one element per lane.

    Attributes:
        block_id: consecutive from 0 in plan order; the idempotency key of the work.
        task_id: int64, (slot or round) << 32 | (ordinal or position).
        client_id: int64.
        start_version: int32, what the task downloaded.
        step: int32, the server step its delta contributes to.
        num_examples: int64, training examples of the client, ≥ 1.
        weight: float64, staleness weight times example weight.
        example_weight: float64, what the lane adds to the divisor of its server step.
    """

    block_id: int
    task_id: I64
    client_id: I64
    start_version: I32
    step: I32
    num_examples: I64
    weight: F64
    example_weight: F64

    @property
    def num_lanes(self) -> int:
        """Number of real lanes, 1 … W."""
        return len(self.task_id)

    def lane(self, index: int) -> Block:
        """The block of this one lane: the client alone, as a replay trains it."""
        at = slice(index, index + 1)
        arrays = {name: getattr(self, name)[at] for name in self.__slots__ if name != "block_id"}
        return Block(self.block_id, **arrays)


@dataclass(frozen=True, slots=True)
class RowSum:
    """Exact sum over the rows of one embedding table: `values[i]` belongs to row `rows[i]`; rows ascend, unique."""

    rows: I64
    values: I64


@dataclass(frozen=True, slots=True)
class PartialSum:
    """What one block contributes to one server step: exact integers on the plan's grid.

    Attributes:
        step: the server step it belongs to.
        num_lanes: tasks summed here, diverged ones included.
        num_diverged: tasks zeroed because their delta was not finite or over the declared bound.
        lost_weight: Σ example_weight of the diverged lanes, in metric-grid units (2**-24).
        dense: int64 [P], Σ weight · delta / grid.
        tables: one RowSum per embedding table.
        metrics: int64 [M], sums of the learner's metrics (see `learner.METRICS`) on the metric grid.
    """

    step: int
    num_lanes: int
    num_diverged: int
    lost_weight: int
    dense: I64
    tables: tuple[RowSum, ...]
    metrics: I64


@dataclass(frozen=True, slots=True)
class BlockResult:
    """All partial sums of one block, or of several merged by the worker that trained them.

    Attributes:
        block_ids: the blocks that are summed here: the idempotency key.
        partials: one per server step, steps ascending.
    """

    block_ids: tuple[int, ...]
    partials: tuple[PartialSum, ...]


def model_digest(model: ModelVersion) -> str:
    """SHA-256 (hex) of the weights' bytes and shapes; two models with one digest are equal bit for bit."""
    digest = hashlib.sha256()
    for array in (model.dense, *map(np.asarray, model.tables)):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def whole(model: ModelVersion) -> ModelVersion:
    """The same weights with every table as an array of its own: what leaves the run."""
    return replace(model, tables=tuple(np.asarray(table) for table in model.tables))
