"""Data that changes between two runs of one process is read again: a run trains on what it was planned on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atoll import rng
from atoll.experiment import plan, run
from tiny_kit import tiny


def write(path: Path, seed: int) -> None:
    draw = rng.generator(seed, "test")
    x, y = draw.normal(size=(80, 4)).astype(np.float32), draw.integers(0, 2, 80)
    np.savez(path, x=x[:60], y=y[:60], x_test=x[60:], y_test=y[60:])


def test_a_file_that_changed_is_read_again(mlflow_uri: str, tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    spec = tiny(
        data={"kind": "arrays", "path": str(file), "clients": 6},
        population={"size": "data"},
        schedule={"kind": "async", "concurrency": 4, "buffer_goal": 2},
        evaluation={"metrics": ["loss"], "split": "unseen"},
        tracking={"uri": mlflow_uri},
    )
    found = []
    for seed in (1, 2):
        write(file, seed)
        planned, done = plan(spec), run(spec, runs_folder=tmp_path / "runs")
        assert done.plan_digest == planned.plan_digest
        found.append(done.model_digest)
    assert found[0] != found[1]
