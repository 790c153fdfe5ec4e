"""Tunes both arms of configs/quickstart.yaml with one grid: 3 parameters, 12 trials per arm, on a seed of its own.

    .venv/bin/python scripts/tune_quickstart.py [ARM …]

Prints a line per trial: virtual hours and client updates until the target. The best of each arm stands in the file.
Takes a few minutes per arm, in this process, without Ray.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import atoll
from atoll.experiment import as_spec
from atoll.spec import arms, parse, to_dict

TUNING_SEED = 100
GRID = {
    "client.lr": (0.1, 0.3),
    "aggregation.server_optimizer.lr": (1.0, 3.0),
    "aggregation.server_optimizer.momentum": (0.0, 0.5, 0.8),
}


def main() -> None:
    quickstart = as_spec("configs/quickstart.yaml")
    wanted = sys.argv[1:]
    seen = set()
    for arm, _, spec in arms(quickstart):
        if arm in seen or (wanted and arm not in wanted):
            continue
        seen.add(arm)
        for values in itertools.product(*GRID.values()):
            settings = [f"{key}={value}" for key, value in zip(GRID, values, strict=True)]
            with tempfile.TemporaryDirectory() as folder:
                fixed = [
                    "runtime={kind: inline}",
                    f"seed={TUNING_SEED}",
                    "evaluation.per_client=false",
                    f"tracking.uri=sqlite:///{Path(folder) / 'tuning.db'}",
                ]
                run = atoll.run(parse(to_dict(spec), [*fixed, *settings]), runs_folder=folder)
                reached = run.reason == "target reached"
                best = max(value for _, value in run.history()["eval/auc"])
            cost = f"{run.virtual_hours:6.2f} h {run.client_updates:6d} updates" if reached else "not reached"
            print(f"{arm:24s} {' '.join(settings):95s} {cost}  best auc {best:.4f}", flush=True)


if __name__ == "__main__":
    main()
