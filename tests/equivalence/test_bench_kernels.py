"""What `scripts/bench workloads` compares atoll with does the work of the plain loop: the same sum of deltas."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    import bench_kernels

    # the same functions, without twenty seconds of compilation each
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield bench_kernels
    for name in ("bench_kernels", "work"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("name", "kernel", "tolerance"),
    [
        ("W1", "numpy", 1e-4),
        ("W1", "compiled", 1e-4),
        ("W3", "compiled", 1e-3),
        ("W2", "shared", 1e-3),
        ("W2", "shared-bf16", 0.15),
    ],
)
def test_kernels_equal_the_loop(kernels: Any, name: str, kernel: str, tolerance: float) -> None:
    from work import WORKLOADS

    workload = WORKLOADS[name]
    clients, make = kernels.KERNELS[name][kernel]
    draw = np.random.default_rng(7)
    ids = draw.integers(0, workload.pool, clients)
    rows = ids[:, None] * workload.examples + draw.random((clients, workload.examples)).argsort(axis=1)
    one_by_one = iter(rows[:, None])
    sums = []
    for width, factory, order in (
        (1, kernels.loop, lambda: next(one_by_one)),
        (clients, make, lambda: rows),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = factory(workload, order, width)
        with torch.set_grad_enabled(width == 1):
            for _ in range(clients // width):
                made.train()
        sums.append(np.concatenate([np.asarray(part).ravel() for part in made.total]))
    plain, fast = sums
    assert np.linalg.norm(plain) > 0.05
    assert np.linalg.norm(fast - plain) < tolerance * np.linalg.norm(plain)
