"""Partial sums from exact sums and what each lane reports: the part that all learners share.

Shape legend: L lanes of a block, P dense parameters, S server steps, M metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll.errors import AggregationError
from atoll.messages import Block, PartialSum, RowSum
from atoll.plan import METRIC_EXPONENT

__all__ = ["LOSS_BOUND", "LaneFacts", "partials_of"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_METRIC_SCALE = 2.0**METRIC_EXPONENT
#: A mean loss beyond this counts as diverged: it could not be summed exactly on the metric grid.
LOSS_BOUND = 1e6


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What each lane reports, one element per lane.

    Attributes:
        mean_loss: mean training loss over its local steps.
        norm: L2 norm of its delta, table rows included.
        is_healthy: whether it counts; the values of the others may be anything.
        local_steps: steps made.
        num_seen: examples seen, epochs times examples.
    """

    mean_loss: F64
    norm: F64
    is_healthy: npt.NDArray[np.bool_]
    local_steps: I64
    num_seen: I64


def partials_of(
    block: Block, steps: npt.NDArray[np.int32], dense: I64, tables: Sequence[tuple[RowSum, ...]], facts: LaneFacts
) -> tuple[PartialSum, ...]:
    """Partial sums from the exact sums of the weights and what is known of each lane.

    Args:
        block: the lanes.
        steps: int32 [S], ascending, the server steps of the lanes.
        dense: int64 [S, P].
        tables: per step the sums of its tables.
        facts: per lane.

    Raises:
        AggregationError: a client metric does not fit its grid.
    """
    is_healthy = facts.is_healthy
    values = np.stack([facts.mean_loss, facts.norm, facts.norm * facts.norm, facts.num_seen, facts.local_steps])
    # not multiplied: what a diverged lane reports may be NaN
    metrics = _metric_units(np.where(is_healthy, values, 0.0))
    lost = np.rint(block.example_weight * ~is_healthy * _METRIC_SCALE).astype(np.int64)
    found = []
    for index, step in enumerate(steps):
        is_member = block.step == step
        found.append(
            PartialSum(
                step=int(step),
                num_lanes=int(is_member.sum()),
                num_diverged=int((~is_healthy & is_member).sum()),
                lost_weight=int(lost[is_member].sum()),
                dense=dense[index],
                tables=tables[index],
                metrics=metrics[:, is_member].sum(axis=1),
            )
        )
    return tuple(found)


def _metric_units(values: F64) -> I64:
    """Values [M, L] on the metric grid.

    Raises:
        AggregationError: their sum over lanes does not fit int64 (a delta_bound beyond reason).
    """
    units = np.rint(values * _METRIC_SCALE)
    if units.sum(axis=1).max() >= 2.0**62:
        raise AggregationError(
            f"a client metric of {values.max():.3g} does not fit the exact metric grid (2**-{METRIC_EXPONENT} in "
            "int64); lower aggregation.delta_bound, so that such clients count as diverged"
        )
    return units.astype(np.int64)
