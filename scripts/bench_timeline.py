"""How fast and how large the simulated timeline is, and what planning on top of it costs; nothing is trained.

rows     completions per second and growth of resident memory of `Timeline.advance`, per policy, concurrency C, buffer
         goal K and run length, for a population of 1e8;
sizes    the same policy over populations from 1e3 to 1e8;
plan     server steps per second of the planner (timeline, blocks, step plans and digests), and what that is per step.

Every figure is from a process of its own, the best of `--passes`: other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from atoll.plan import Planner, PlanSettings, lookahead_steps
from atoll.population import Always, Devices, Diurnal, DrawnSizes, HalfNormal, LogNormal, Population
from atoll.timeline import AsyncSchedule, Schedule, SyncSchedule, Timeline

LANES = 64
DEVICES = {
    "half_normal": Devices(HalfNormal(30.0), per_example_s=2.0, overhead_s=39.0),
    "log_normal": Devices(LogNormal(60.0, 0.8), jitter_sigma=0.2),
}
AVAILABILITY = {"always": Always(), "diurnal": Diurnal(2.0, 10.0, 3.0)}


@dataclass(frozen=True)
class Case:
    """One measurement; `rows` is the number of completions, `lanes` is 0 where nothing is planned."""

    policy: str
    concurrency: int
    goal: int
    rows: int = 10**6
    population: int = 10**8
    devices: str = "half_normal"
    availability: str = "always"
    lanes: int = 0

    def schedule(self) -> Schedule:
        """The policy by its name."""
        if self.policy == "sync":
            return SyncSchedule(self.goal, over_selection=0.3)
        if self.policy == "distinct":
            return AsyncSchedule(self.concurrency, self.goal, sampling="without_replacement")
        if self.policy == "staleness":
            return AsyncSchedule(self.concurrency, self.goal, 2 * self.concurrency // self.goal)
        return AsyncSchedule(self.concurrency, self.goal)

    def timeline(self) -> Timeline:
        """A fresh one."""
        population = Population(
            1, self.population, DEVICES[self.devices], DrawnSizes(), AVAILABILITY[self.availability]
        )
        return Timeline(population, self.schedule(), seed=1)


SHAPES = ((10**3, 10), (10**4, 100), (10**5, 1000))
ROWS = [
    *(Case("fedbuff", c, k, rows) for c, k in SHAPES for rows in (10**6, 10**7)),
    *(Case("fedbuff", c, k, devices="log_normal") for c, k in SHAPES),
    *(Case("fedbuff", c, k, availability="diurnal") for c, k in SHAPES),
    *(Case(policy, c, k) for policy in ("distinct", "staleness") for c, k in SHAPES),
    *(Case("distinct", c, k, availability="diurnal") for c, k in SHAPES[:2]),
    Case("distinct", 10**4, 100, 10**7),
    *(Case("sync", 0, k) for k in (100, 1000, 10_000)),
    Case("sync", 0, 1000, availability="diurnal"),
]
SIZES = [Case(policy, 100, 10, population=10**n) for policy in ("fedbuff", "distinct") for n in (3, 4, 5, 6, 7, 8)]
PLANS = [
    *(Case("fedbuff", 10 * k, k, 1000 * k, lanes=LANES) for k in (10, 100, 1000)),
    Case("fedbuff", 1000, 100, 10**5, devices="log_normal", lanes=LANES),
    Case("distinct", 1000, 100, 10**5, lanes=LANES),
    Case("sync", 0, 100, 10**5, lanes=LANES),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["rows", "sizes", "plan"], default=None)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    found = {}
    for name, cases in (("rows", ROWS), ("sizes", SIZES), ("plan", PLANS)):
        if options.only in (None, name):
            found[name] = [run(case, options.passes) for case in cases]
            show(name, found[name])
    if options.json:
        print(json.dumps(found))


def run(case: Case, passes: int) -> dict[str, object]:
    """The best of some processes."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    results = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(passes)]
    best = min(results, key=lambda found: found["seconds"])
    return asdict(case) | best


def weigh(staleness: np.ndarray, num_examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FedBuff's: polynomial in the staleness, equal in the examples."""
    return (1.0 + staleness) ** -0.5, np.ones(len(num_examples))


def measure(case: Case) -> dict[str, float]:
    """Seconds, first 5 % of the rows left out (numba loads its cache), and what memory grew by over all of them."""
    timeline = case.timeline()
    before = rss()
    if case.lanes:
        ahead = lookahead_steps(case.lanes, case.goal, is_async=case.policy != "sync")
        planner = Planner(timeline, PlanSettings(case.lanes, ahead, ""), weigh)
        take = planner.advance
    else:
        steps = max(1, 10**5 // case.goal)

        def take() -> object:
            return timeline.advance(steps)

    warm = 1.0 * case.rows / 20
    while timeline.num_rows < warm:
        take()
    rows, steps_before, begin = timeline.num_rows, timeline.num_steps, time.process_time()
    while timeline.num_rows - rows < case.rows:
        take()
    seconds = time.process_time() - begin
    return {
        "seconds": seconds,
        "rows_per_s": (timeline.num_rows - rows) / seconds,
        "us_per_step": 1e6 * seconds / (timeline.num_steps - steps_before),
        "grown_mib": rss() - before,
        "peak_mib": rss(),
    }


def rss() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(name: str, found: list[dict[str, object]]) -> None:
    table = Table(title=f"timeline: {name}", title_justify="left")
    columns = ("policy", "devices", "availability", "population", "C", "K", "rows", "rows/s", "µs/step", "MiB")
    for column in columns:
        table.add_column(column, justify="right")
    for case in found:
        table.add_row(
            str(case["policy"]), str(case["devices"]), str(case["availability"]), f"{case['population']:.0e}",
            str(case["concurrency"]), str(case["goal"]), f"{case['rows']:.0e}",
            f"{case['rows_per_s']:,.0f}", f"{case['us_per_step']:.0f}", f"{case['peak_mib']:.0f}",
        )  # fmt: skip
    Console(highlight=False, width=130).print(table)


if __name__ == "__main__":
    main()
