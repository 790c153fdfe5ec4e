"""From client deltas to exact partial sums: bound, weigh, sum in float64, round once to the grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.learner.partials import LOSS_BOUND, LaneFacts, partials_of
from atoll.learner.rows import TouchedRows
from atoll.messages import Block, PartialSum, RowSum
from atoll.plan import Grid

__all__ = ["partial_sums"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: Elements summed at a time, to keep the float64 copy in the second-level cache.
_CHUNK = 1 << 16


def partial_sums(
    block: Block,
    deltas_LP: Tensor,
    rows: TouchedRows | None,
    mean_loss: F64,
    local_steps: I64,
    grid: Grid,
    epochs: int,
) -> tuple[PartialSum, ...]:
    """Exact sums of a block, one per server step it contributes to.

    A lane whose delta or loss is NaN or infinite, or whose delta's L2 norm (table rows included) is over the grid's
    bound, becomes zero before the sum, is counted, and its example weight goes to `lost_weight` (design.md 9.2).
    Dense coordinates: Σ weight · delta in float64, rounded once. Table rows: rounded per lane, summed as integers.

    Args:
        block: the lanes.
        deltas_LP: float32 [L, P], start − local.
        rows: touched rows whose `start` holds their deltas, or None.
        mean_loss: float64 [L].
        local_steps: int64 [L].
        grid: the plan's grid.
        epochs: passes, for the count of examples.
    """
    # In float32: five times as fast, and a norm that overflows it is over every bound.
    norm_sq = torch.linalg.vector_norm(deltas_LP, dim=1).cpu().numpy().astype(np.float64) ** 2
    if rows is not None:
        per_row = np.square(rows.start, dtype=np.float64).sum(axis=1)
        norm_sq = norm_sq + _lane_totals(per_row, rows.lane_offsets)
    norm = np.sqrt(norm_sq)
    is_healthy = np.isfinite(norm) & (norm <= grid.delta_bound) & np.isfinite(mean_loss)
    is_healthy &= np.abs(mean_loss) <= LOSS_BOUND
    if not is_healthy.all():
        keep = torch.from_numpy(is_healthy).to(deltas_LP.device)
        deltas_LP = torch.where(keep.unsqueeze(1), deltas_LP, torch.zeros_like(deltas_LP))
        norm = np.where(is_healthy, norm, 0.0)
        mean_loss = np.where(is_healthy, mean_loss, 0.0)
    steps = np.unique(block.step)
    members = block.step[None, :] == steps[:, None]
    dense = _dense_sums(deltas_LP, members * block.weight, grid)
    facts = LaneFacts(mean_loss, norm, is_healthy, local_steps, epochs * block.num_examples)
    tables = [
        () if rows is None else (_row_sum(rows, is_member & is_healthy, block.weight, grid),) for is_member in members
    ]
    return partials_of(block, steps, dense, tables, facts)


def _dense_sums(deltas_LP: Tensor, weights: F64, grid: Grid) -> I64:
    """int64 [steps, P]: weights [steps, L] times deltas, in float64, rounded once."""
    weights_SL = torch.from_numpy(weights * grid.scale).to(deltas_LP.device)
    out = np.empty((weights.shape[0], deltas_LP.shape[1]), dtype=np.int64)
    width = max(_CHUNK // len(deltas_LP), 512)
    for begin in range(0, deltas_LP.shape[1], width):
        part = deltas_LP[:, begin : begin + width].double()
        out[:, begin : begin + width] = (weights_SL @ part).round_().to(torch.int64).cpu().numpy()
    return out


def _row_sum(rows: TouchedRows, is_member: npt.NDArray[np.bool_], weight: F64, grid: Grid) -> RowSum:
    lane = np.repeat(np.arange(len(is_member)), np.diff(rows.lane_offsets))
    chosen = is_member[lane]
    units = np.rint(rows.start[chosen] * (weight[lane[chosen]] * grid.scale)[:, None]).astype(np.int64)
    found, where = np.unique(rows.rows[chosen], return_inverse=True)
    order = np.argsort(where, kind="stable")
    begins = np.searchsorted(where[order], np.arange(found.size))
    values = np.add.reduceat(units[order], begins, axis=0) if found.size else units[:0]
    return RowSum(found, values)


def _lane_totals(per_row: F64, lane_offsets: I64) -> F64:
    """Sums of each lane's own rows; every lane has some. A running sum would carry one lane's NaN into the next."""
    return np.asarray(np.add.reduceat(per_row, lane_offsets[:-1]), dtype=np.float64)
