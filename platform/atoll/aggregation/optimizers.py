"""Server optimizers: a mean delta and a state in, the next weights and state out; element by element, NumPy float32.

The mean delta is start − local, so it acts as a gradient and every optimizer descends it. Moments are kept in float32
like the weights; nothing depends on how parameters are split over arrays.
Source of the adaptive ones: Reddi et al. 2021, "Adaptive federated optimization", algorithm 2 (no bias correction).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atoll.schedules import ConstantRate, Rate

__all__ = ["Adagrad", "Adam", "ServerOptimizer", "ServerSgd", "State", "Yogi"]

F32 = npt.NDArray[np.float32]
#: Moment arrays of one parameter array; empty for optimizers without memory.
State = tuple[F32, ...]


class ServerOptimizer(Protocol):
    """Frozen record of two pure functions over one parameter array."""

    @property
    def is_sparse(self) -> bool:
        """True where a zero mean delta leaves weights and state as they are: untouched table rows may be skipped."""
        ...

    def init(self, weights: F32) -> State:
        """State before the first server step; same shape and dtype as `weights`, per moment."""
        ...

    def step(self, weights: F32, mean_delta: F32, state: State, step: int) -> tuple[F32, State]:
        """(next weights, next state) of server step `step`; inputs are not changed."""
        ...


@dataclass(frozen=True, slots=True)
class ServerSgd:
    """w ← w − lr · m, m ← momentum · m + delta: FedAvg (lr 1, momentum 0), FedAvgM, FedBuff's usual choice."""

    lr: float = 1.0
    momentum: float = 0.0
    schedule: Rate = field(default_factory=ConstantRate)

    @property
    def is_sparse(self) -> bool:
        """Without momentum, rows without delta stay."""
        return self.momentum == 0.0

    def init(self, weights: F32) -> State:
        """One momentum buffer, or none."""
        return (np.zeros_like(weights),) if self.momentum else ()

    def step(self, weights: F32, mean_delta: F32, state: State, step: int) -> tuple[F32, State]:
        """Polyak momentum as in torch.optim.SGD without dampening.

        Example:
            >>> ServerSgd(lr=0.5).step(np.float32([1.0]), np.float32([1.0]), (), 0)[0]
            array([0.5], dtype=float32)
        """
        lr = np.float32(self.lr * self.schedule.factor(step))
        if not self.momentum:
            return weights - lr * mean_delta, ()
        velocity = np.float32(self.momentum) * state[0] + mean_delta
        return weights - lr * velocity, (velocity,)


@dataclass(frozen=True, slots=True)
class Adam:
    """FedAdam: m ← β₁m + (1−β₁)δ, v ← β₂v + (1−β₂)δ², w ← w − lr · m / (√v + eps)."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    schedule: Rate = field(default_factory=ConstantRate)
    is_sparse = False

    def init(self, weights: F32) -> State:
        """m = 0, v = eps² (the paper's v₋₁ ≥ τ²)."""
        return np.zeros_like(weights), np.full_like(weights, self.eps**2)

    def step(self, weights: F32, mean_delta: F32, state: State, step: int) -> tuple[F32, State]:
        """Algorithm 2, line for Adam."""
        second = np.float32(self.beta2) * state[1] + np.float32(1 - self.beta2) * np.square(mean_delta)
        return _adaptive(self, weights, mean_delta, state[0], np.asarray(second, dtype=np.float32), step)


@dataclass(frozen=True, slots=True)
class Adagrad:
    """FedAdagrad: v ← v + δ², w ← w − lr · m / (√v + eps), with m ← β₁m + (1−β₁)δ."""

    lr: float = 0.01
    beta1: float = 0.0
    eps: float = 1e-3
    schedule: Rate = field(default_factory=ConstantRate)
    is_sparse = False

    def init(self, weights: F32) -> State:
        """m = 0, v = eps²."""
        return np.zeros_like(weights), np.full_like(weights, self.eps**2)

    def step(self, weights: F32, mean_delta: F32, state: State, step: int) -> tuple[F32, State]:
        """Algorithm 2, line for Adagrad."""
        return _adaptive(self, weights, mean_delta, state[0], state[1] + np.square(mean_delta), step)


@dataclass(frozen=True, slots=True)
class Yogi:
    """FedYogi: v ← v − (1−β₂) δ² sign(v − δ²)."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    schedule: Rate = field(default_factory=ConstantRate)
    is_sparse = False

    def init(self, weights: F32) -> State:
        """m = 0, v = eps²."""
        return np.zeros_like(weights), np.full_like(weights, self.eps**2)

    def step(self, weights: F32, mean_delta: F32, state: State, step: int) -> tuple[F32, State]:
        """Algorithm 2, line for Yogi."""
        square = np.square(mean_delta)
        second = state[1] - np.float32(1 - self.beta2) * square * np.sign(state[1] - square)
        return _adaptive(self, weights, mean_delta, state[0], np.asarray(second, dtype=np.float32), step)


def _adaptive(
    optimizer: Adam | Adagrad | Yogi, weights: F32, mean_delta: F32, first: F32, second: F32, step: int
) -> tuple[F32, State]:
    """The part that Adam, Adagrad and Yogi share: first moment and scaled step."""
    beta1 = np.float32(optimizer.beta1)
    first = beta1 * first + (np.float32(1) - beta1) * mean_delta
    lr = np.float32(optimizer.lr * optimizer.schedule.factor(step))
    moved = weights - lr * first / (np.sqrt(second) + np.float32(optimizer.eps))
    return np.asarray(moved, dtype=np.float32), (np.asarray(first, dtype=np.float32), second)
