"""One experiment twice: undisturbed in one process, then on Ray while its processes are killed at random moments.

Every kill is SIGKILL: nothing can clean up. A killed driver takes its whole embedded Ray with it; it is started again
with the same key, as a job's next attempt would be. At the end model, plan and timeline digests and every row in MLflow
(key, step, value) outside wall_* must be those of the undisturbed run; wall_* must have one row per step. Of an
ensemble this holds for every leaf, control and arm, and for the judgement. With --stops, processes are also stopped
(SIGSTOP) for longer than `runtime.hang_s` and then continued: zombies that come back.

Exit code 0: equal; 1: not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "configs" / "fedbuff_flights.yaml"
TITLES = {
    "coordinator": "ray::CoordinatorShell",
    "tracker": "ray::TrackerShell",
    "pool": "ray::ClientPool",
}
RESULT, ENSEMBLE = "result.json", "ensemble.json"
console = Console(highlight=False)


@dataclass
class Storm:
    """What was done to the run so far."""

    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    drivers: int = 0


def main() -> int:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="atoll-chaos-"))
    common = [str(options.config.resolve()), *options.overrides, f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    calm_wall = time.monotonic()
    _run(
        [
            *common,
            "runtime={kind: inline}" if options.lanes is None else f"runtime={{kind: inline, lanes: {options.lanes}}}",
        ],
        "calm",
        folder,
    ).wait()
    calm_wall = time.monotonic() - calm_wall
    if not any((folder / "runs" / "calm" / name).is_file() for name in (RESULT, ENSEMBLE)):
        console.print("the undisturbed run failed; see", folder / "calm.log")
        return 1
    storm = Storm()
    stormy_wall = time.monotonic()
    _weather(options, common, folder, storm)
    stormy_wall = time.monotonic() - stormy_wall
    return _report(folder, storm, calm_wall, stormy_wall)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=None, help="stop killing after so many; 20 if no --minutes")
    parser.add_argument("--minutes", type=float, default=None, help="stop killing after so long")
    parser.add_argument("--stops", type=int, default=0, help="processes to stop and continue, besides the kills")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=None, help="runtime.lanes of both runs")
    parser.add_argument("--seed", type=int, default=0, help="of the order and moments of kills")
    parser.add_argument("--calm-s", type=float, nargs=2, default=(0.5, 4.0), help="seconds between two kills, drawn")
    parser.add_argument("--driver-share", type=float, default=0.15, help="share of kills that hit the driver")
    parser.add_argument("--hang-s", type=float, default=8.0, help="runtime.hang_s of the disturbed run")
    options = parser.parse_args()
    if "=" in str(options.config):
        options.overrides, options.config = [str(options.config), *options.overrides], DEFAULT
    if options.kills is None and options.minutes is None:
        options.kills = 20
    return options


def _run(arguments: list[str], key: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    log = (folder / f"{key}.log").open("ab")
    command = [sys.executable, "-m", "atoll", "run", str(arguments[0]), *arguments[1:], "--key", key]
    return subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _weather(options: argparse.Namespace, common: list[str], folder: Path, storm: Storm) -> None:
    random = Random(options.seed)
    lanes = "" if options.lanes is None else f", lanes: {options.lanes}"
    runtime = f"runtime={{kind: ray, workers: {options.workers}, snapshot_every_s: 1, hang_s: {options.hang_s}{lanes}}}"
    until = time.monotonic() + 60 * (options.minutes or 10**6)
    driver = _start([*common, runtime], folder, storm)
    stopped: list[tuple[float, int]] = []
    while driver.poll() is None or driver.returncode != 0:
        if driver.poll() is not None:
            if driver.returncode != -signal.SIGKILL:
                console.print(f"[bold]the driver ended with {driver.returncode}[/]; see {folder / 'stormy.log'}")
                return
            driver = _start([*common, runtime], folder, storm)
        stopped = _continue(stopped)
        is_over = time.monotonic() > until or storm.kills.total() >= (options.kills or 10**6)
        if is_over and storm.stops.total() >= options.stops:
            time.sleep(0.2)
            continue
        time.sleep(random.uniform(*options.calm_s))
        if not is_over:
            _kill(random, options, driver, storm)
        if storm.stops.total() < options.stops and random.random() < 0.5:
            stopped += _stop(random, options, driver, storm)


def _start(arguments: list[str], folder: Path, storm: Storm) -> subprocess.Popen[bytes]:
    storm.drivers += 1
    driver = _run(arguments, "stormy", folder)
    # Until its actors are there, killing would only ever hit a driver that starts.
    while driver.poll() is None and not pids_below(driver.pid, TITLES["coordinator"]):
        time.sleep(0.2)
    return driver


def _kill(random: Random, options: argparse.Namespace, driver: subprocess.Popen[bytes], storm: Storm) -> None:
    kind = "driver" if random.random() < options.driver_share else random.choice(list(TITLES))
    pids = [driver.pid] if kind == "driver" else pids_below(driver.pid, TITLES[kind])
    if not pids or driver.poll() is not None:
        return
    pid = random.choice(pids)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    if kind == "driver":
        driver.wait()
    storm.kills[kind] += 1
    console.print(f"kill {storm.kills.total()}: {kind} {pid}", style="dim")


def _stop(
    random: Random, options: argparse.Namespace, driver: subprocess.Popen[bytes], storm: Storm
) -> list[tuple[float, int]]:
    kind = random.choice(["coordinator", "pool"])
    pids = pids_below(driver.pid, TITLES[kind])
    if not pids or driver.poll() is not None:
        return []
    os.kill(pids[0], signal.SIGSTOP)
    storm.stops[kind] += 1
    console.print(f"stop {storm.stops.total()}: {kind} {pids[0]}", style="dim")
    return [(time.monotonic() + 1.5 * options.hang_s, pids[0])]


def _continue(stopped: list[tuple[float, int]]) -> list[tuple[float, int]]:
    for moment, pid in stopped:
        if time.monotonic() >= moment:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return [(moment, pid) for moment, pid in stopped if time.monotonic() < moment]


def pids_below(driver: int, title: str) -> list[int]:
    """Processes below the driver whose command line begins with `title`."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (path / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
    mine = {driver}
    for _ in range(4):  # driver, raylet, workers
        mine |= {pid for pid, parent in parents.items() if parent in mine}
    return sorted(pid for pid in mine if titles.get(pid, "").startswith(title))


def _report(folder: Path, storm: Storm, calm_wall: float, stormy_wall: float) -> int:
    calm, stormy = (_facts(folder, key) for key in ("calm", "stormy"))
    table = Table(title="After the storm", title_justify="left", show_header=False)
    table.add_row("SIGKILLs", f"{storm.kills.total()}: " + ", ".join(f"{k} {n}" for k, n in storm.kills.most_common()))
    if storm.stops:
        table.add_row("stopped and continued", ", ".join(f"{k} {n}" for k, n in storm.stops.most_common()))
    table.add_row("driver starts", str(storm.drivers))
    table.add_row("wall time, undisturbed and disturbed", f"{calm_wall:.0f} s, {stormy_wall:.0f} s")
    is_equal = True
    if stormy is None or calm is None:
        table.add_row("the disturbed run", "did not end")
        is_equal = False
    else:
        for name in calm:
            same = calm[name] == stormy[name]
            is_equal &= same
            shown = f"{_size(calm[name])}" if isinstance(calm[name], list) else str(calm[name])[:16]
            table.add_row(name, f"{shown}: {'equal' if same else 'NOT EQUAL'}")
    console.print(table)
    console.print(f"folder: {folder}")
    return 0 if is_equal else 1


def _size(values: list[Any]) -> int:
    """How many rows; of an ensemble, of all its runs together."""
    return sum(map(len, values)) if values and isinstance(values[0], list) else len(values)


def _facts(folder: Path, key: str) -> dict[str, object] | None:
    """What must be equal; None where the run did not end."""
    from mlflow import MlflowClient

    place = folder / "runs" / key
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    if (place / RESULT).is_file():
        found = _run_facts(client, json.loads((place / RESULT).read_text()))
    elif (place / ENSEMBLE).is_file():
        members = {path.parent.name: json.loads(path.read_text()) for path in sorted(place.glob(f"*/{RESULT}"))}
        facts = {name: _run_facts(client, result) for name, result in members.items()}
        found = {what: [facts[name][what] for name in facts] for what in next(iter(facts.values()))}
        told = json.loads((place / ENSEMBLE).read_text())
        found |= {"members": list(facts), "judgement": told["judgement"]}
        parent = json.loads((place / "comparison.json").read_text())["parent_run_id"]
        experiment = client.get_run(parent).info.experiment_id
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000)
        found["MLflow runs under the parent"] = sorted(run.info.run_name for run in children)
        arms = [run for run in children if run.info.run_id not in {one["run_id"] for one in members.values()}]
        found["MLflow rows of arms"] = sorted((run.info.run_name, *_rows(client, run.info.run_id)[0]) for run in arms)
    else:
        return None
    run_id = found.pop("run_id", None) if not isinstance(found.get("run_id"), list) else found.pop("run_id")[0]
    experiment = client.get_run(run_id).info.experiment_id
    found["MLflow runs of this key"] = len(
        client.search_runs([experiment], f"tags.`fl.run_key` LIKE '{key}%'", max_results=1000)
    )
    return found


def _run_facts(client: Any, result: dict[str, Any]) -> dict[str, object]:
    rows, walls = _rows(client, result["run_id"])
    return {
        "run_id": result["run_id"],
        "model": result["model_digest"],
        "plan": result["plan_digest"],
        "timeline": result["timeline_digest"],
        "server steps": result["server_steps"],
        "MLflow rows": rows,
        "MLflow wall_* rows": walls,
        "rows not published": result["unpublished_rows"],
    }


def _rows(client: Any, run_id: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """(rows outside wall_*, keys and steps of wall_*) of one MLflow run."""
    rows: list[tuple[Any, ...]] = []
    walls: list[tuple[Any, ...]] = []
    for name in client.get_run(run_id).data.metrics:
        for row in client.get_metric_history(run_id, name):
            if name.startswith("wall_"):
                walls.append((name, row.step))
            else:
                rows.append((name, row.step, row.value))
    return sorted(rows), sorted(walls)


if __name__ == "__main__":
    sys.exit(main())
