"""What every side of the benchmark trains: the same models, the same pool of made-up clients, the same local SGD.

NumPy and the standard library, torch where a model is asked for: it runs in the environment of every side. Client
number `id` holds the arrays of `id % pool`, so that a population of any size costs no memory. Dropout of W2's model is
left out on all sides: random numbers are no part of what is compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["WORKLOADS", "Clock", "Workload", "arguments", "binary_loss", "torch_model"]

#: rounds before the clock starts: compilers and caches are warm then
WARM_ROUNDS = 2


@dataclass(frozen=True)
class Workload:
    """One kind of client work: local SGD, one epoch, examples in batches.

    Attributes:
        examples, batch: of a client, of a local step.
        x_shape: of one example.
        codes: values of each categorical column.
        outputs: logits; 1 is a binary task.
        cohort: of a round, where nothing else is said.
        pool: clients whose arrays exist.
        floats: forward and backward, floating-point operations of one client, in millions.
    """

    name: str
    examples: int
    batch: int
    x_shape: tuple[int, ...]
    codes: tuple[int, ...]
    outputs: int
    cohort: int
    pool: int
    floats: float
    lr: float = 0.05

    def arrays(self) -> dict[str, np.ndarray]:
        """The pool: x [pool, examples, *x_shape] float32, y [pool, examples] and c [pool, examples, codes] int64. Pure.

        Every code occurs when there are rows enough: what is learnt from a column is as large as said.
        """
        draw, rows = np.random.default_rng(1), self.pool * self.examples
        x = draw.standard_normal((self.pool, self.examples, *self.x_shape), dtype=np.float32)
        if len(self.x_shape) == 3:
            # what a picture's bytes can say: atoll reads bytes
            x = np.clip(np.rint(x * 40 + 128), 0, 255).astype(np.uint8).astype(np.float32) / np.float32(255)
        y = draw.integers(0, max(2, self.outputs), (self.pool, self.examples))
        columns = [draw.permutation(rows) % size for size in self.codes]
        c = np.stack(columns, axis=1).reshape(self.pool, self.examples, -1) if columns else None
        return {"x": x, "y": y} if c is None else {"x": x, "y": y, "c": c}


WORKLOADS = {
    one.name: one
    for one in (
        Workload("W1", 32, 8, (64,), (), 10, 100, 512, 0.647),
        Workload("W2", 50, 10, (3, 32, 32), (), 10, 50, 64, 4970.0),
        Workload("W3", 20, 10, (18,), (10_000, 100), 1, 200, 512, 0.172),
        Workload("W3-million", 20, 10, (18,), (10**6, 100), 1, 200, 50_000, 0.172),
    )
}


def torch_model(name: str) -> Any:
    """The workload's torch module: module(x), or module(x, c). 4,810, 1,626,442 and 163,249 parameters."""
    import torch
    from torch import nn

    if name == "W1":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if name == "W2":
        return nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(12544, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    class Dlrm(nn.Module):
        """Two tables, one vector of the numbers, their dot products, two layers."""

        def __init__(self, codes: tuple[int, ...]) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(size, 16) for size in codes])
            self.bottom = nn.Linear(18, 16)
            self.top = nn.Sequential(nn.Linear(19, 64), nn.ReLU(), nn.Linear(64, 1))
            for table in self.tables:
                nn.init.normal_(table.weight, std=0.1)

        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            u = self.bottom(x).relu()
            v, w = (table(c[..., at]) for at, table in enumerate(self.tables))
            dots = torch.stack([(u * v).sum(-1), (u * w).sum(-1), (v * w).sum(-1)], dim=-1)
            return self.top(torch.cat([u, dots], dim=-1)).squeeze(-1)

    return Dlrm(WORKLOADS[name].codes)


def binary_loss(workload: Workload) -> Any:
    """loss(logits, y), the mean over a batch."""
    from torch.nn import functional

    if workload.outputs > 1:
        return functional.cross_entropy
    return lambda logits, y: functional.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))


def arguments(story: str | None, *extra: tuple[str, Mapping[str, Any]]) -> argparse.Namespace:
    """What every side is asked: a workload, a cohort, a population, for how long; `began` is when it was started."""
    parser = argparse.ArgumentParser(description=story, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--cohort", type=int, default=None)
    parser.add_argument("--population", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="measured after the first two rounds")
    parser.add_argument("--began", type=float, default=time.monotonic(), help="time.monotonic() of whoever starts it")
    for name, options in extra:
        parser.add_argument(name, **options)
    options = parser.parse_args()
    options.workload = WORKLOADS[options.workload]
    options.cohort = options.cohort or options.workload.cohort
    return options


class Clock:
    """Counts rounds, and knows when enough were seen: as many seconds as asked for and two rounds at least."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._seconds, self._began = options.seconds, options.began
        self._ends: list[float] = []
        self._clients: list[int] = []

    @property
    def is_over(self) -> bool:
        """Whether the side may stop."""
        timed = len(self._ends) - WARM_ROUNDS
        return timed >= 2 and self._ends[-1] - self._ends[WARM_ROUNDS - 1] >= self._seconds

    def round(self, clients: int) -> bool:
        """A round with `clients` updates is over; whether the side may stop."""
        self._ends.append(time.monotonic())
        self._clients.append(clients)
        return self.is_over

    def tell(self) -> None:
        """Prints the result."""
        spent = self._ends[-1] - self._ends[WARM_ROUNDS - 1]
        found = {
            "clients_per_s": sum(self._clients[WARM_ROUNDS:]) / spent,
            "start_s": self._ends[0] - self._began,
            "rounds": len(self._ends) - WARM_ROUNDS,
        }
        print(json.dumps(found), flush=True)
