#!/usr/bin/env python3
"""atoll itself on one workload of `scripts/bench workloads`, through its public interface: a spec and `atoll.run`.

Journal, snapshots, MLflow and exact sums are on, as always. With `--once` one run of so many steps and nothing else, as
`atoll run` does it: for start and memory, which runs that share a session would blur. Else a short run first: it
starts the workers, and tells how long a step takes. Then a run of about `--seconds`; its first fifth is left out.
Prints one JSON line:

    clients_per_s   client updates per second between the steps' rows `wall_s`
    with_end_per_s  the same, with what the long run spent before and after its steps over and above the short one:
                    rows that MLflow got late, say
    start_s         from the start of the process until the first step had closed
    overhead_share  of the workers' wall time in the long run, that was neither training nor evaluation
    durable_share   of the long run's wall time, in snapshots and commits
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PEERS = str(ROOT / "scripts" / "peers")
sys.path.insert(0, PEERS)
# workers import W2's module by its name
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PEERS, os.environ.get("PYTHONPATH")]))

from work import Workload, arguments  # noqa: E402

import atoll  # noqa: E402
from atoll.experiment import Run, as_spec, session_for  # noqa: E402

DATA = ROOT / ".bench" / "data"
#: part of the long run before the clock starts
SKIPPED = 0.2
#: measured in runs of atoll's own configs
CONFIGS = {"flights": "fedbuff_flights.yaml", "shakespeare": "fedbuff_shakespeare.yaml"}


def data_of(workload: Workload) -> dict[str, Any]:
    """The `data` section; writes the pool as files the first time."""
    DATA.mkdir(parents=True, exist_ok=True)
    pool, rows = workload.pool, workload.pool * workload.examples
    if not workload.codes:
        path = DATA / f"{workload.name}.npz"
        if not path.exists():
            arrays = {key: values.reshape(rows, *values.shape[2:]) for key, values in workload.arrays().items()}
            if len(workload.x_shape) == 3:
                arrays["x"] = np.rint(arrays["x"] * 255).astype(np.uint8)
            few = {f"{key}_test": values[:100] for key, values in arrays.items()}
            _whole(path, lambda place: np.savez(place, **arrays, **few))
        return {"kind": "arrays", "path": str(path), "clients": pool}
    path = DATA / f"{workload.name}.parquet"
    if not path.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {key: values.reshape(rows, -1) for key, values in workload.arrays().items()}
        columns = {"client": np.repeat(np.arange(pool), workload.examples), "label": arrays["y"][:, 0]}
        columns |= {f"x{at:02}": values for at, values in enumerate(arrays["x"].T)}
        columns |= {f"c{at}": values for at, values in enumerate(arrays["c"].T)}
        _whole(path, lambda place: pq.write_table(pa.table(columns), place))
    categories = [f"c{at}" for at in range(len(workload.codes))]
    return {
        "kind": "parquet", "path": str(path), "client_column": "client", "label_column": "label",
        "categories": categories, "holdout": 0.0, "unseen": 0.01,
    }  # fmt: skip


def _whole(path: Path, write: Any) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as file:
        write(file.name)
    Path(file.name).replace(path)


def spec_of(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole spec; the number of server steps is left to the caller."""
    workload: Workload = options.workload
    models = {
        "W1": {"kind": "mlp", "hidden": options.hidden or [64]},
        "W2": {"kind": "custom", "factory": "work:torch_model", "arguments": {"name": "W2"}},
        "W3": {"kind": "dlrm", "embedding_dim": 16, "bottom": [16], "top": [64]},
    }
    schedule: dict[str, Any] = {"kind": "sync", "cohort": options.cohort}
    aggregation = {"kind": "fedavg", "server_optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0}}
    if options.concurrency:
        schedule = {"kind": "async", "concurrency": options.concurrency, "buffer_goal": options.cohort}
        aggregation["kind"] = "fedbuff"
    if options.as_module:
        models["W1"] = {"kind": "custom", "factory": "work:torch_model", "arguments": {"name": "W1"}}
    runtime = {"kind": "inline"} if options.workers == 0 else {"kind": "ray", "workers": options.workers}
    return {
        "name": "bench",
        "seed": 1,
        "data": data_of(workload),
        "population": {"size": options.population, "devices": {"kind": "half_normal", "scale_s": 60}},
        "model": models[workload.name.split("-")[0]],
        "client": {"lr": workload.lr, "batch_size": workload.batch},
        "schedule": schedule,
        "aggregation": aggregation,
        "evaluation": {"every_steps": 10**6, "metrics": ["loss"]},
        "stop": {"server_steps": 1},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "artifacts": str(folder / "artifacts")},
        "runtime": runtime,
    }


def config_of(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One of atoll's own configs, as it stands."""
    import yaml

    spec: dict[str, Any] = yaml.safe_load((ROOT / "configs" / CONFIGS[options.config]).read_text())
    spec["tracking"] = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "artifacts": str(folder / "artifacts")}
    if options.workers:
        spec["runtime"] = {"kind": "ray", "workers": options.workers}
    else:
        spec["runtime"] = {"kind": "inline"}
    return spec


class Timed:
    """Runs of one spec in one session."""

    def __init__(self, spec: Any, overrides: list[str], session: Any, folder: Path) -> None:
        self._spec, self._overrides, self._session, self._folder = spec, overrides, session, folder
        self.first_step: float | None = None

    def run(self, steps: int) -> tuple[Run, float]:
        """A run of `steps` server steps, and the seconds it took from call to return."""
        began = time.monotonic()
        found = atoll.run(
            self._spec, *self._overrides, f"stop.server_steps={steps}", session=self._session,
            runs_folder=self._folder, on_progress=self._note,
        )  # fmt: skip
        return found, time.monotonic() - began

    def _note(self, figures: dict[str, float]) -> None:
        if self.first_step is None and figures.get("step", 0) >= 1:
            self.first_step = time.monotonic()


def span(run: Run, skipped: float) -> tuple[int, float]:
    """Steps after the first part of a run, and the seconds they took."""
    rows = run.history()["wall_s"]
    begin = rows[max(1, math.ceil(skipped * len(rows))) - 1]
    return rows[-1][0] - begin[0], rows[-1][1] - begin[1]


def measure(timed: Timed, seconds: float) -> dict[str, float]:
    steps = 2
    short, short_s = timed.run(steps)
    while True:
        # grown until a step's time can be told from the start's
        counted, spent = span(short, SKIPPED)
        if spent >= min(1.0, seconds / 4) or steps >= 10**6:
            break
        steps *= 4
        short, short_s = timed.run(steps)
    wanted = math.ceil(seconds / (1 - SKIPPED) * counted / spent)
    long, long_s = timed.run(max(wanted, steps + 4))
    counted, spent = span(long, SKIPPED)
    clients = counted * long.client_updates / long.server_steps
    around_s = (long_s - long.history()["wall_s"][-1][1]) - (short_s - short.history()["wall_s"][-1][1])
    return {
        "clients_per_s": clients / spent,
        "with_end_per_s": clients / (spent + max(0.0, around_s)),
        "steps": long.server_steps,
        "overhead_share": long.overhead_share,
        "durable_share": long.durable_s / long.wall_s,
    }


def main() -> None:
    workers = {"type": int, "default": 2, "help": "client pools on Ray; 0: in this process, without Ray"}
    options = arguments(
        __doc__,
        ("--workers", workers),
        ("--concurrency", {"type": int, "default": 0, "help": "FedBuff, with --cohort as K; 0: synchronous"}),
        ("--hidden", {"type": int, "nargs": "+", "help": "widths of W1's hidden layers"}),
        ("--as-module", {"action": "store_true", "help": "W1 as a torch module of one's own"}),
        ("--once", {"type": int, "metavar": "STEPS", "help": "one run of its own; tells its start alone"}),
        ("--config", {"choices": CONFIGS, "default": None, "help": "one of atoll's own configs, not the workload"}),
        ("--set", {"nargs": "*", "default": [], "metavar": "KEY=VALUE", "help": "overrides of the spec"}),
    )
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        folder = Path(name)
        spec = (config_of if options.config else spec_of)(options, folder)
        with nullcontext() if options.once else session_for(as_spec(spec, options.set)) as session:
            timed = Timed(spec, options.set, session, folder / "runs")
            if options.once:
                found = {"steps": timed.run(options.once)[0].server_steps}
            else:
                found = measure(timed, options.seconds)
        found["start_s"] = (timed.first_step or math.nan) - options.began
    print(json.dumps(found))


if __name__ == "__main__":
    main()
