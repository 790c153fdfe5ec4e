"""Tunes every arm of an ensemble's file with one grid, on a seed and on held-out rows of its own.

    .venv/bin/python scripts/tune_fel.py configs/fel_flights.yaml [KEY=VALUE,VALUE …]

Each trial sets the grid's values for leaves and controls alike and runs the whole study with seed 100; the quality is
measured on the split that the file does not report (clients that never train, or the later rows of those that do). The
last lines name the best trial of each arm, by normalised entropy; these stand in the file. Runs in this process,
without Ray; a few minutes per trial.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import atoll
import atoll.spec as sp
from atoll.experiment import as_spec

TUNING_SEED = 100
GRID = {
    "client.lr": ("0.1", "0.3", "1.0"),
    "aggregation.server_optimizer.lr": ("1.0", "2.0"),
    "aggregation.server_optimizer.momentum": ("0.0", "0.8"),
}
METRIC = "normalized_entropy"


def main() -> None:
    path, *texts = sys.argv[1:]
    grid = {key: tuple(values.split(",")) for key, values in (text.split("=", 1) for text in texts)} or GRID
    spec = as_spec(path)
    best: dict[str, tuple[float, str]] = {}
    for values in itertools.product(*grid.values()):
        settings = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            judgement = atoll.run_ensemble(_trial(spec, settings, Path(folder)), runs_folder=folder).judgement
        for name, arm in judgement.as_dict()["arms"].items():
            found = arm["joined"]
            told = f"{arm['label']:28s} {' '.join(settings):90s}"
            print(f"{told} AUC {found['auc']:.4f} NE {found[METRIC]:.4f}", flush=True)
            if found[METRIC] < best.get(arm["label"], (float("inf"), name))[0]:
                best[arm["label"]] = found[METRIC], " ".join(settings)
    print("\nbest of each arm:")
    for label, (value, shown) in best.items():
        print(f"{label:28s} {shown:90s} NE {value:.4f}")


def _trial(spec: sp.Spec, settings: list[str], folder: Path) -> sp.Spec:
    """The file without the values that were tuned before, with these instead."""
    plain = sp.to_dict(spec)
    plain["ensemble"] |= {"leaves": {}, "controls": {}, "resamples": 0}
    plain["evaluation"]["split"] = "seen" if spec.evaluation.split == "unseen" else "unseen"
    plain["evaluation"]["per_client"] = False
    if spec.comparison is not None:
        arms = {arm: {k: v for k, v in keys.items() if k == "clusters"} for arm, keys in spec.comparison.arms.items()}
        plain["comparison"] |= {"seeds": [TUNING_SEED], "arms": arms}
    else:
        plain["seed"] = TUNING_SEED
    plain["runtime"] = {"kind": "inline"}
    plain["tracking"]["uri"] = f"sqlite:///{folder / 'tuning.db'}"
    return sp.parse(plain, settings)


if __name__ == "__main__":
    main()
