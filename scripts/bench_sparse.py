#!/usr/bin/env python3
"""What a large embedding table costs: client updates per second with 10⁶ items against 10⁴, everything else alike.

DLRM-like clients (20 examples, one item and two small columns each, tables of width 16, server SGD without momentum),
sync and FedBuff, in this process and on Ray; whole runs through `atoll.run` with journal, snapshots and MLflow. Runs of
both sizes take turns; the first fifth of each is left out. Medians of the passes and of their ratios.
Exit code 1 when a ratio is below the target.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench_atoll import SKIPPED, span

import atoll
from atoll.experiment import Run, as_spec, session_for

SIZES = (10**4, 10**6)
MODES = ("sync", "fedbuff")
TARGET = 0.8


def spec_of(mode: str, items: int, workers: int, cohort: int, folder: Path) -> dict[str, Any]:
    schedule: dict[str, Any] = {"kind": "sync", "cohort": cohort}
    if mode == "fedbuff":
        schedule = {"kind": "async", "concurrency": 2 * cohort, "buffer_goal": cohort}
    return {
        "name": f"sparse-{mode}-{items}",
        "seed": 1,
        "data": {
            "kind": "synthetic", "features": 8, "examples": {"kind": "constant", "count": 20},
            "categories": [items, 100, 20],
        },
        "population": {"size": 10**5, "devices": {"kind": "half_normal", "scale_s": 60}},
        "model": {"kind": "dlrm", "embedding_dim": 16, "bottom": [16], "top": [64]},
        "client": {"lr": 0.05, "batch_size": 10},
        "schedule": schedule,
        "aggregation": {
            "kind": "fedavg" if mode == "sync" else "fedbuff",
            "server_optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0},
        },
        "evaluation": {"every_steps": 10**6, "metrics": ["loss"]},
        "stop": {"server_steps": 1},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "artifacts": str(folder / "artifacts")},
        "runtime": {"kind": "ray", "workers": workers} if workers else {"kind": "inline"},
    }  # fmt: skip


def measure(spec: dict[str, Any], steps: int, session: Any, folder: Path) -> tuple[float, float, str]:
    """(client updates per second, seconds of the whole call, the model's digest)."""
    began = time.monotonic()
    run: Run = atoll.run(as_spec(spec), f"stop.server_steps={steps}", session=session, runs_folder=folder)
    whole_s = time.monotonic() - began
    counted, spent = span(run, SKIPPED)
    return counted * run.client_updates / run.server_steps / spent, whole_s, run.model_digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cohort", type=int, default=100, help="and FedBuff's K, at twice the concurrency")
    parser.add_argument("--steps", type=int, default=150, help="server steps of a run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    digests: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        for workers in (0, options.workers):
            for mode in MODES:
                specs = {items: spec_of(mode, items, workers, options.cohort, Path(name)) for items in SIZES}
                rates: dict[int, list[float]] = {items: [] for items in SIZES}
                wholes: dict[int, list[float]] = {items: [] for items in SIZES}
                with session_for(as_spec(specs[SIZES[-1]])) as session:
                    for number in range(-1, options.passes):  # the first pair starts the workers
                        for items, spec in specs.items():
                            folder = Path(name) / f"{workers}-{mode}-{items}-{number}"
                            steps = options.steps if number >= 0 else 10
                            rate, whole_s, digest = measure(spec, steps, session, folder)
                            if number >= 0:
                                rates[items].append(rate)
                                wholes[items].append(whole_s)
                                digests.setdefault(f"{mode} {items}", set()).add(digest)
                label = f"{mode}, {f'Ray, {workers} workers' if workers else 'in-process'}"
                small, large = (rates[items] for items in SIZES)
                found[label] = {
                    "small_per_s": median(small), "large_per_s": median(large),
                    "ratio": median(b / a for a, b in zip(small, large, strict=True)),
                    "small_whole_s": median(wholes[SIZES[0]]), "large_whole_s": median(wholes[SIZES[1]]),
                }  # fmt: skip
                told = found[label]
                print(
                    f"{label}: {told['small_per_s']:,.0f} → {told['large_per_s']:,.0f} client updates/s, ratio "
                    f"{told['ratio']:.2f} (target ≥ {TARGET}); whole call {told['small_whole_s']:.1f} → "
                    f"{told['large_whole_s']:.1f} s",
                    flush=True,
                )
    for name, values in digests.items():
        print(f"{name}: {'one model' if len(values) == 1 else 'MODELS DIFFER'} in-process and on Ray")
    if options.json:
        print(json.dumps(found))
    are_one = all(len(values) == 1 for values in digests.values())
    return int(not are_one or any(told["ratio"] < TARGET for told in found.values()))


if __name__ == "__main__":
    sys.exit(main())
