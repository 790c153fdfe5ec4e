"""What it costs to train several leaves side by side: four of them against one run of as many client updates.

Pairs in one Ray session, one after the other, with configs/fedbuff_flights.yaml (the quickstart's FedBuff arm): four
leaves of random clusters, each for a quarter of the server steps, then one run on all clients for all of them, with the
same schedule. The ratio of wall times, from the call to the last result, medians of several passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import atoll.spec as sp
from atoll.experiment import Run, as_spec, session_for
from atoll.experiment.running import Wanted, run_together

ROOT = Path(__file__).resolve().parents[1]
LEAVES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150, help="server steps of each leaf")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="atoll-bench-"))
    one = sp.parse(
        sp.to_dict(as_spec(ROOT / "configs" / "fedbuff_flights.yaml")),
        [f"runtime.workers={options.workers}", f"tracking.uri=sqlite:///{folder / 'bench.db'}"],
    )
    whole = sp.parse(sp.to_dict(one), [f"stop.server_steps={LEAVES * options.steps}"])
    leaves = [
        sp.parse(
            sp.to_dict(one),
            [
                f"clusters={{kind: random, count: {LEAVES}, only: r{number}}}",
                f"stop.server_steps={options.steps}",
                f"name=leaf-{number}",
            ],
        )
        for number in range(LEAVES)
    ]
    seconds: dict[str, list[float]] = {"leaves": [], "whole": []}
    with session_for(one) as session:
        for number in range(-1, options.passes):  # the first pair starts the workers
            for name, specs in (("leaves", leaves), ("whole", [whole])):
                began = time.perf_counter()
                wanted = [Wanted(None, spec) for spec in specs]
                found = run_together(wanted, session=session, runs_folder=folder / f"{name}-{number}")
                spent = time.perf_counter() - began
                updates = sum(run.client_updates for run in found if isinstance(run, Run))
                print(f"{name} {number}: {spent:.1f} s, {updates} client updates", flush=True)
                if number >= 0:
                    seconds[name].append(spent)
    ratios = [a / b for a, b in zip(seconds["leaves"], seconds["whole"], strict=True)]
    table = Table(title=f"{LEAVES} leaves side by side on {options.workers} workers", title_justify="left")
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("all passes", justify="right")
    table.add_row("leaves, s", f"{statistics.median(seconds['leaves']):.1f}", _all(seconds["leaves"]))
    table.add_row("one run, s", f"{statistics.median(seconds['whole']):.1f}", _all(seconds["whole"]))
    table.add_row("ratio", f"{statistics.median(ratios):.3f}", ", ".join(f"{ratio:.3f}" for ratio in ratios))
    Console(highlight=False).print(table)
    if options.json:
        print(json.dumps({**seconds, "ratio": statistics.median(ratios)}))


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    main()
