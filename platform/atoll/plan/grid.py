"""The fixed-point grid on which client deltas are summed exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atoll.errors import PlanError, Problem

__all__ = ["METRIC_EXPONENT", "Grid"]

#: Metric values of one client are rounded to 2**-METRIC_EXPONENT before they are summed as int64.
METRIC_EXPONENT = 24
#: |every sum on the grid| stays at or below 2**SUM_BITS, two bits below int64's limit.
SUM_BITS = 61


@dataclass(frozen=True, slots=True)
class Grid:
    """Grid step 2**-exponent; int64 sums on it cannot overflow while the declared bounds hold.

    Attributes:
        exponent: the grid step is 2**-exponent; may be negative.
        delta_bound: L2 norm that one client delta may have; a larger one is treated as diverged.
        weight_bound: largest possible sum of weights in one server step.
    """

    exponent: int
    delta_bound: float
    weight_bound: float

    @classmethod
    def for_plan(cls, delta_bound: float, weight_bound: float) -> Grid:
        """The finest grid on which `weight_bound` times `delta_bound` still fits.

        Args:
            delta_bound: declared L2 bound per client delta, > 0.
            weight_bound: largest sum of weights that one server step can have, > 0.

        Raises:
            PlanError: a bound is not a positive finite number, or the grid is so coarse that training drowns in it.

        Purity: pure.

        Example:
            >>> Grid.for_plan(delta_bound=1024.0, weight_bound=16.0).exponent
            47
        """
        product = delta_bound * weight_bound
        if not (0 < product < math.inf):
            raise PlanError(
                [Problem("aggregation.delta_bound", repr(delta_bound), "a positive finite bound on a client delta")]
            )
        exponent = SUM_BITS - math.ceil(math.log2(product))
        if exponent < 16:
            raise PlanError(
                [
                    Problem(
                        "aggregation.delta_bound",
                        repr(delta_bound),
                        "bounds whose product with the largest sum of weights stays below 2**45",
                        why=f"the exact grid would be 2**{-exponent}, too coarse to train on",
                        hint="lower delta_bound, the buffer goal, or use equal weighting",
                    )
                ]
            )
        return cls(exponent, delta_bound, weight_bound)

    @property
    def scale(self) -> float:
        """Grid units per 1.0, a power of two (exact in float64)."""
        return math.ldexp(1.0, self.exponent)
