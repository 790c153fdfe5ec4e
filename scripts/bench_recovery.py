"""What surviving a crash costs: snapshots and commits, the time until a resumed run works, memory over a long run.

Three measurements, each on fresh folders, with configs/fedbuff_flights.yaml (the quickstart's FedBuff arm):
cost     wall seconds in snapshots and commits over the wall seconds of the run, and the ratio of wall times of runs
         with snapshots at the default cadence and without any, in pairs one after the other;
resume   a run's driver is killed with SIGKILL in the middle; seconds from the start of `atoll resume` to the first
         step committed beyond what was there;
memory   resident memory of driver, coordinator, aggregator, tracker and pools over a run of 2,000 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from chaos import TITLES, pids_below
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ARM = [str(ROOT / "configs" / "fedbuff_flights.yaml")]
#: server steps at which memory is looked at
MARKS = (200, 400, 800, 1200, 1600, 1950)
console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["cost", "resume", "memory"], default=None)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="atoll-bench-"))
    found: dict[str, object] = {}
    if options.only in (None, "cost"):
        found["cost"] = cost(folder, options.passes)
    if options.only in (None, "resume"):
        found["resume"] = resume(folder, options.passes)
    if options.only in (None, "memory"):
        found["memory"] = memory(folder)
    table = Table(title="What surviving a crash costs", title_justify="left", show_header=False)
    for name, values in found.items():
        for key, value in values.items():  # type: ignore[attr-defined]
            table.add_row(name, key, str(value))
    console.print(table)
    if options.json:
        print(json.dumps(found))


def start(folder: Path, key: str, *overrides: str, command: str = "run") -> subprocess.Popen[bytes]:
    arguments = [*ARM, *overrides, "--key", key] if command == "run" else [key, *overrides]
    with (folder / f"{key}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "atoll", command, *arguments],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def result_of(folder: Path, key: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "runs" / key / "result.json").read_text())
    return found


def cost(folder: Path, passes: int) -> dict[str, object]:
    shares, ratios = [], []
    for number in range(passes):
        walls = {}
        for name, every_s in (("with", 5.0), ("without", 1e9)):
            key = f"{name}-{number}"
            code = start(folder, key, f"runtime.snapshot_every_s={every_s}", "stop.server_steps=400").wait()
            assert code == 0, f"see {folder / key}.log"  # noqa: S101
            walls[name] = result_of(folder, key)["wall_s"]
            if name == "with":
                shares.append(result_of(folder, key)["durable_s"] / walls[name])
        ratios.append(walls["with"] / walls["without"])
    return {
        "share of wall time in snapshots and commits, median": f"{100 * statistics.median(shares):.2f} %",
        "all passes": ", ".join(f"{100 * share:.2f} %" for share in shares),
        "wall time with snapshots / without, median": f"{statistics.median(ratios):.3f}",
        "all pairs": ", ".join(f"{ratio:.3f}" for ratio in ratios),
    }


def progress(path: Path) -> tuple[int, int]:
    """(last committed step, epoch); (−1, 0) before there is a journal."""
    if not path.is_file():
        return -1, 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0) as db:
            step = db.execute("SELECT coalesce(max(step), -1) FROM steps").fetchone()[0]
            epoch = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            return int(step), 0 if epoch is None else int(epoch[0])
    except sqlite3.Error:
        return -1, 0


def resume(folder: Path, passes: int) -> dict[str, object]:
    seconds = []
    for number in range(passes):
        key = f"resumed-{number}"
        journal = folder / "runs" / key / "journal.db"
        driver = start(folder, key, "stop.server_steps=600", "runtime.snapshot_every_s=1")
        while progress(journal)[0] < 150:
            assert driver.poll() is None, f"see {folder / key}.log"  # noqa: S101
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(5.0)  # its Ray ends itself; a machine that is resumed on is idle
        before, began = progress(journal)[0], time.monotonic()
        driver = start(folder, key, command="resume")
        while progress(journal)[0] <= before:
            assert driver.poll() is None, f"see {folder / key}.log"  # noqa: S101
            time.sleep(0.05)
        seconds.append(time.monotonic() - began)
        driver.wait()
    return {
        "seconds to the first new step, median": f"{statistics.median(seconds):.1f}",
        "all passes": ", ".join(f"{value:.1f}" for value in seconds),
    }


def memory(folder: Path) -> dict[str, object]:
    driver = start(folder, "long", "stop.server_steps=2000")
    journal = folder / "runs" / "long" / "journal.db"
    at: dict[int, dict[str, int]] = {}
    while driver.poll() is None:
        step = progress(journal)[0] + 1
        sizes = resident(driver.pid)
        for mark in MARKS:
            if step >= mark and mark not in at:
                at[mark] = sizes
        time.sleep(0.1)
    assert driver.returncode == 0, f"see {folder / 'long.log'}"  # noqa: S101
    first, last = at[MARKS[0]], at[MARKS[-1]]
    return {
        name: ", ".join(f"{at[mark].get(name, 0) / 2**20:.0f}" for mark in MARKS)
        + f" MiB at steps {MARKS[0]} … {MARKS[-1]}: {100 * (last[name] / first[name] - 1):+.1f} %"
        for name in first
        if name in last
    }


def resident(driver: int) -> dict[str, int]:
    """Bytes per process; shared memory (the object store) left out."""
    found = {}
    named = {"driver": [driver], **{name: pids_below(driver, title) for name, title in TITLES.items()}}
    for name, pids in named.items():
        for index, pid in enumerate(pids):
            try:
                fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            except OSError:
                continue
            if "RssAnon" not in fields:
                continue  # it has just ended
            own = sum(int(fields[key].split()[0]) for key in ("RssAnon", "RssFile")) * 1024
            found[f"{name} {index}" if len(pids) > 1 else name] = own
    return found


if __name__ == "__main__":
    main()
