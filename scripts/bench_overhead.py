"""What everything between the client kernels costs: clients so small that coordinator, aggregator and Ray show.

1,000 clients of 32 examples with 64 features and 10 classes, batch size 8, one epoch. Per workload and way to run it: a
short run, then a long one; figures come from the difference of the two, so that start and end (pictures, result)
do not count. Each figure is the median of `--passes`.

    sync100, sync1000   mlp 64-64-10 (4,810 parameters), cohort 100 and 1,000
    fedbuff             the same model, concurrency 1,000, buffer goal 100
    mega                mlp 64-3300-10 (247,510 parameters, 1 MB), cohort 1,000

In process, clocks round the parts say where wall time goes. On Ray, processor time of every process does.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import atoll.spec as sp
from atoll.experiment import Run, session_for
from atoll.experiment.running import Wanted, run_together

CLIENTS, EXAMPLES, FEATURES, CLASSES = 1000, 32, 64, 10
SYNC = {"aggregation": {"kind": "fedavg"}}
ASYNC = {"aggregation": {"kind": "fedbuff"}, "schedule": {"kind": "async", "concurrency": 1000, "buffer_goal": 100}}
#: name → (what differs, server steps of the short run and of the long one)
WORKLOADS: dict[str, tuple[dict[str, Any], int, int]] = {
    "sync100": (SYNC | {"schedule": {"kind": "sync", "cohort": 100}}, 200, 1400),
    "sync1000": (SYNC | {"schedule": {"kind": "sync", "cohort": 1000}}, 30, 180),
    "fedbuff": (ASYNC, 200, 1700),
    "mega": (SYNC | {"schedule": {"kind": "sync", "cohort": 1000}, "model": {"kind": "mlp", "hidden": [3300]}}, 2, 8),
}
_SAMPLE_S = 0.25
#: what is in no other part
_RUN = "the rest"
_OTHERS = "Ray's others"


def spec_of(name: str, steps: int, workers: int, folder: Path) -> sp.Spec:
    """One workload; 0 workers: in process."""
    runtime = {"kind": "ray", "workers": workers} if workers else {"kind": "inline"}
    text = {
        "name": f"overhead-{name}",
        "seed": 1,
        "data": {"kind": "arrays", "path": str(folder / "data.npz"), "clients": CLIENTS},
        "population": {"devices": {"kind": "half_normal", "scale_s": 30, "overhead_s": 10}},
        "model": {"kind": "mlp", "hidden": [64]},
        "client": {"lr": 0.05, "batch_size": 8, "epochs": 1},
        "evaluation": {"every_steps": 100, "metrics": ["loss", "accuracy"]},
        "stop": {"server_steps": steps},
        "tracking": {"uri": f"sqlite:///{folder / 'bench.db'}"},
        "runtime": runtime,
    }
    return sp.parse(text | WORKLOADS[name][0])


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = CLIENTS * EXAMPLES
    x, y = rng.normal(size=(rows, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, rows)
    np.savez(folder / "data.npz", x=x, y=y, x_test=x[:500], y_test=y[:500])


class Clocks:
    """Wall seconds of each part in this process, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[float] = []
        self._thread = threading.get_ident()

    def wrap(self, owner: Any, method: str, part: str) -> Callable[[], None]:
        """Puts a clock round `owner.method`; returns what takes it off."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                began = time.thread_time()
                try:
                    return original(*args, **kwargs)
                finally:
                    self.seconds[f"{part} (thread's CPU)"] += time.thread_time() - began
            if not self._open and part != _RUN:
                return original(*args, **kwargs)  # before the run, or after it
            self._open.append(0.0)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[part] += spent - self._open.pop()
                if self._open:
                    self._open[-1] += spent

        setattr(owner, method, timed)
        return lambda: setattr(owner, method, original)


@contextmanager
def clocks() -> Iterator[Clocks]:
    from atoll import runtime
    from atoll.plan import Planner
    from atoll.runtime import inline, recorder
    from atoll.runtime.aggregating import DurableAggregator
    from atoll.runtime.coordinator import Coordinator
    from atoll.runtime.publishing import Publishing, Sending

    found = Clocks()
    parts = [
        (runtime, "run_inline_together", _RUN),
        (inline, "train_blocks", "clients"), (inline, "evaluate_version", "evaluation"),
        (DurableAggregator, "add", "aggregator"), (DurableAggregator, "save", "snapshots"),
        (Coordinator, "handle", "coordinator"), (Planner, "advance", "planning"),
        (recorder.Recorder, "flush", "journal"), (recorder.Recorder, "step", "rows"),
        (Publishing, "take", "outbox"), (Publishing, "succeeded", "outbox"), (Sending, "send", "tracker"),
    ]  # fmt: skip
    undo = [found.wrap(*part) for part in parts]
    try:
        yield found
    finally:
        for take_off in undo:
            take_off()


class Processes:
    """Processor seconds of this process and all it started, and the most memory (PSS) that they had together."""

    def __init__(self) -> None:
        self._cpu: dict[tuple[int, str], tuple[str, float]] = {}
        #: memory by kind of process, when it was most
        self.peak: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        count = 0
        while not self._stop.is_set():
            self._look(with_memory=count % 4 == 0)
            count += 1
            self._stop.wait(_SAMPLE_S)

    def _look(self, *, with_memory: bool) -> None:
        memory: Counter[str] = Counter()
        for pid in _family():
            try:
                name = "driver" if pid == os.getpid() else _name(Path(f"/proc/{pid}/cmdline").read_bytes())
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                if name == _OTHERS:  # the title changes between calls
                    name = self._cpu.get((pid, fields[19]), (name, 0.0))[0]
                self._cpu[pid, fields[19]] = (name, seconds)
                if with_memory:
                    memory[name] += _pss(pid)
            except OSError:
                continue  # it has ended
        if memory.total() > self.peak.total():
            self.peak = memory

    def seconds(self) -> Counter[str]:
        """So far, by kind of process."""
        self._look(with_memory=False)
        found: Counter[str] = Counter()
        for name, seconds in self._cpu.values():
            found[name] += seconds
        return found


def _family() -> list[int]:
    """This process and all its descendants."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _name(command: bytes) -> str:
    text = command.replace(b"\0", b" ").decode(errors="replace")
    for kind in ("ClientPool", "CoordinatorShell", "TrackerShell"):
        if f"ray::{kind}" in text:
            return kind
    if "raylet" in text.split(" ", 1)[0] or "gcs_server" in text:
        return "raylet, gcs"
    return _OTHERS


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(name: str, workers: int, folder: Path, session: Any, processes: Processes) -> dict[str, Any]:
    """One short and one long run: their difference."""
    found = []
    for steps in WORKLOADS[name][1:]:
        cpu, began = processes.seconds(), time.perf_counter()
        with clocks() as spent:
            wanted = [Wanted(None, spec_of(name, steps, workers, folder))]
            (run,) = run_together(wanted, session=session, runs_folder=folder / f"{name}-{workers}")
        if not isinstance(run, Run):
            raise run
        whole = time.perf_counter() - began
        found.append((run, whole, dict(spent.seconds), processes.seconds() - cpu))
    (short, short_s, short_parts, short_cpu), (long, long_s, long_parts, long_cpu) = found
    seconds = long.wall_s - short.wall_s
    parts = {part: (spent - short_parts.get(part, 0.0)) / seconds for part, spent in long_parts.items()}
    if workers:
        parts = {part: (spent - short_cpu.get(part, 0.0)) / seconds for part, spent in long_cpu.items()}
    return {
        "updates_per_s": (long.client_updates - short.client_updates) / seconds,
        "steps_per_s": (long.server_steps - short.server_steps) / seconds,
        "with_end_updates_per_s": (long.client_updates - short.client_updates) / (long_s - short_s),
        "busy_share": (long.busy_s - short.busy_s) / seconds / max(workers, 1),
        "durable_share": (long.durable_s - short.durable_s) / seconds,
        "start_and_end_s": short_s - short.wall_s,
        "digest": long.model_digest[:12],
        "parts": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="0: in process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="atoll-bench-"))
    write_data(folder)
    results: dict[str, dict[str, Any]] = {}
    for workers in options.workers:
        with Processes() as processes:
            if workers:
                with session_for(spec_of("sync100", 1, workers, folder)) as session:
                    _all(options, workers, folder, session, processes, results)
            else:
                _all(options, workers, folder, None, processes, results)
    _show(results)
    if options.json:
        print(json.dumps(results))


def _all(
    options: argparse.Namespace, workers: int, folder: Path, session: Any, processes: Processes, results: dict[str, Any]
) -> None:
    """Every workload, several times; the first warms up."""
    for name in options.workloads:
        warm = Wanted(None, spec_of(name, 3, workers, folder))
        run_together([warm], session=session, runs_folder=folder / f"{name}-{workers}")
        passes = [measure(name, workers, folder, session, processes) for _ in range(options.passes)]
        label = f"{name}, {'in process' if not workers else f'{workers} on Ray'}"
        keys = [key for key, value in passes[0].items() if isinstance(value, float)]
        found: dict[str, Any] = {key: statistics.median(one[key] for one in passes) for key in keys}
        every = sorted({part for one in passes for part in one["parts"]})
        found["parts"] = {part: statistics.median(one["parts"].get(part, 0.0) for one in passes) for part in every}
        found["digests"] = sorted({one["digest"] for one in passes})
        found["peak_mb"] = processes.peak.total() / 1e6
        found["peak_mb_of"] = {kind: size / 1e6 for kind, size in processes.peak.most_common()}
        results[label] = found
        print(label, json.dumps(found), flush=True)


def _show(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="Overhead: long run minus short run", title_justify="left")
    table.add_column("")
    for title in ("updates/s", "steps/s", "busy", "durable", "peak MB so far", "parts, % of wall time"):
        table.add_column(title, justify="right" if "parts" not in title else "left")
    for label, found in results.items():
        parts = sorted(found["parts"].items(), key=lambda item: -item[1])
        text = ", ".join(f"{part} {100 * share:.1f}" for part, share in parts if share > 0.002)
        table.add_row(
            label,
            f"{found['updates_per_s']:,.0f}",
            f"{found['steps_per_s']:.1f}",
            f"{found['busy_share']:.3f}",
            f"{found['durable_share']:.3f}",
            f"{found['peak_mb']:.0f}",
            text,
        )
    Console(highlight=False, width=200).print(table)


if __name__ == "__main__":
    main()
