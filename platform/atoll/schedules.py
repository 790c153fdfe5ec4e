"""Learning-rate schedules: a rate multiplied by a pure function of a server step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ConstantRate", "CosineRate", "InverseSqrtRate", "Rate", "StepRate"]


class Rate(Protocol):
    """A factor on the learning rate, by server step; clients use their task's start version."""

    def factor(self, step: int) -> float:
        """The factor at server step `step` ≥ 0."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """Factor 1 throughout."""

    def factor(self, step: int) -> float:
        """Always 1."""
        del step
        return 1.0


@dataclass(frozen=True, slots=True)
class StepRate:
    """Multiplied by `decay` every `every_steps` server steps."""

    every_steps: int
    decay: float

    def factor(self, step: int) -> float:
        """`decay` to the number of full periods before `step`."""
        return float(self.decay ** (step // self.every_steps))


@dataclass(frozen=True, slots=True)
class CosineRate:
    """Half a cosine from 1 to `final` over `total_steps`, then `final`."""

    total_steps: int
    final: float = 0.0

    def factor(self, step: int) -> float:
        """Loshchilov and Hutter 2017, equation 5, without restarts."""
        share = min(step / self.total_steps, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True, slots=True)
class InverseSqrtRate:
    """Linear warm-up over `warmup_steps`, then falling with the square root of the step."""

    warmup_steps: int

    def factor(self, step: int) -> float:
        """Vaswani et al. 2017, section 5.3, scaled to peak at 1."""
        warmup = max(self.warmup_steps, 1)
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
