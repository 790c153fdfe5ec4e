"""Frozen records that cross rooms and processes: NumPy arrays and plain values, never tensors, never actors.

Shape legend: L lanes of a block, P dense parameters (flat), R rows of an embedding table, M metric sums.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Block", "BlockResult", "ModelVersion", "PartialSum", "RowSum", "model_digest"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Weights after `version` server steps.

    Attributes:
        version: number of server steps that made it; 0 first.
        dense: float32 [P], every parameter that is not an embedding table, flat, in the model shape's order.
        tables: float32 [R, dim] each, the embedding tables in the model shape's order.
    """

    version: int
    dense: F32
    tables: tuple[F32, ...] = ()


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
    for array in (model.dense, *model.tables):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
