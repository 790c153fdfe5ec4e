"""Wall times that `atoll plan --pools` predicts against those that runs on Ray take here, with one and two workers.

Of each experiment: `atoll tune` writes its profile table, the plan is predicted from it, and the run is made several
times in one Ray; the fastest counts, since what is slower than that was somebody else's doing. Needs a machine with two
cores and nothing else to do; but for the clients that sleep instead of computing, which show the schedule alone, on
more workers than there are cores. Exit code 1 when a prediction is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = str(ROOT / "scripts")
# workers import the sleeper by the name of this file
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SCRIPTS, os.environ.get("PYTHONPATH")]))

import torch  # noqa: E402

import atoll  # noqa: E402
from atoll.experiment import as_spec, predict, session_for, tune  # noqa: E402

MOST_OFF = 0.25
#: seconds of a client that sleeps
SLEEP_S = 0.02
SLEEPING = {
    "name": "sleeping",
    "data": {"kind": "synthetic", "features": 8, "examples": {"kind": "constant", "count": 8}},
    "population": {"size": 2000, "devices": {"kind": "half_normal", "scale_s": 60}},
    "model": {"kind": "custom", "factory": "bench_prediction:Sleeper"},
    "client": {"lr": 0.1, "batch_size": 8},
    "schedule": {"kind": "async", "concurrency": 128, "buffer_goal": 32},
    "aggregation": {"kind": "fedbuff"},
    "evaluation": {"every_steps": 10, "metrics": ["loss"]},
    "stop": {"server_steps": 30},
    "runtime": {"kind": "ray", "workers": 1, "kernel": "single", "lanes": 8},
}
#: name → file or mapping, changes, workers: some 20 seconds each with one worker
EXPERIMENTS = {
    "FedBuff, flights": (ROOT / "configs" / "fedbuff_flights.yaml", ["stop.server_steps=600"], (1, 2)),
    "FedAvg, flights": (ROOT / "configs" / "fedavg_flights.yaml", ["stop.server_steps=120"], (1, 2)),
    "FedBuff, LSTM": (ROOT / "configs" / "fedbuff_shakespeare.yaml", ["stop.server_steps=40"], (1, 2)),
    "FedBuff, sleeping": (SLEEPING, [], (1, 2, 4, 8)),
    "FedAvg, sleeping": (
        {**SLEEPING, "schedule": {"kind": "sync", "cohort": 64}, "aggregation": {"kind": "fedavg"}},
        ["stop.server_steps=15"],
        (1, 2, 4, 8),
    ),
}


class Sleeper(torch.nn.Module):
    """A linear layer that takes its time where it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1]."""
        if torch.is_grad_enabled():
            time.sleep(SLEEP_S)
        return self.layer(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--only", choices=EXPERIMENTS, help="one experiment")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        folder = Path(name)
        for title in [options.only] if options.only else EXPERIMENTS:
            rows += measure(title, options.passes, folder)
    table = Table(title="Predicted and measured wall time", title_justify="left")
    for column in ("experiment", "P", "predicted, s", "measured, s", "ratio", "at work", "measured"):
        table.add_column(column, justify="left" if column == "experiment" else "right")
    for row in rows:
        walls = ", ".join(f"{wall:.1f}" for wall in row["walls_s"])  # type: ignore[attr-defined]
        cells = f"{row['predicted_s']:.1f}", walls, f"{row['ratio']:.2f}"
        at_work = (f"{100 * float(row[key]):.0f} %" for key in ("occupancy", "measured_occupancy"))  # type: ignore[arg-type]
        table.add_row(str(row["experiment"]), str(row["workers"]), *cells, *at_work)
    Console(highlight=False).print(table)
    if options.json:
        print(json.dumps(rows))
    return int(any(abs(float(row["ratio"]) - 1) > MOST_OFF for row in rows))  # type: ignore[arg-type]


def measure(title: str, passes: int, folder: Path) -> list[dict[str, object]]:
    """One row per number of workers."""
    given, changes, numbers = EXPERIMENTS[title]
    changes = [*changes, f"tracking.uri=sqlite:///{folder / 'bench.db'}"]
    profile = folder / "profile.json"
    best = tune(given, *changes, path=profile).best
    print(
        f"{title}: {best.kernel}, {best.lanes} lanes, {best.client_updates_per_s:,.0f}/s", file=sys.stderr, flush=True
    )
    rows: list[dict[str, object]] = []
    for workers in numbers:
        spec = as_spec(given, [*changes, f"runtime.profile={profile}", f"runtime.workers={workers}"])
        (found,) = predict(spec, pools=[workers]).predictions
        with session_for(spec) as session:
            atoll.run(spec, "stop.server_steps=2", session=session, runs_folder=folder)  # starts the workers
            runs = [atoll.run(spec, session=session, runs_folder=folder) for _ in range(passes)]
        fastest = min(runs, key=lambda run: run.wall_s)
        rows.append(
            {
                "experiment": title,
                "workers": workers,
                "predicted_s": found.wall_s,
                "walls_s": [run.wall_s for run in runs],
                "ratio": found.wall_s / fastest.wall_s,
                "occupancy": found.occupancy,
                "measured_occupancy": 1 - fastest.overhead_share,
            }
        )
        print(f"{title}, {workers} workers: {rows[-1]['ratio']:.2f}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
