"""What people see: tables and a live line, on a terminal as in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from atoll.experiment import PlanReport, Run
    from atoll.experiment.clustering import ClusterSize
    from atoll.spec import Spec
    from atoll.tracking import Comparison

__all__ = ["Display", "address", "byte_text", "clusters", "comparison", "files", "live", "plans", "run"]

_console = Console(highlight=False)
#: shown beside the bar, in this order
_METRICS = ("loss", "accuracy", "auc", "normalized_entropy")
#: in a log, seconds before the first line on a run, and between two
_LOG_EVERY_S = (2.0, 10.0)


class Display:
    """One progress line per run; on a terminal it moves, a log gets a line now and then, and the last one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, arm: str, number: int, total: int, spec: Spec) -> Callable[[dict[str, float]], None]:
        """Starts a line; returns what to call with figures."""
        label = f"[{number}/{total}] {arm} seed {spec.seed}" if arm else spec.name
        return self._line(label, spec.stop.server_steps)

    def begin_named(self, label: str) -> Callable[[dict[str, float]], None]:
        """A line for a run whose length is not known yet."""
        return self._line(label, 0)

    def begin_group(
        self, label: str, runs: Sequence[tuple[str, Spec]]
    ) -> Callable[[Sequence[Mapping[str, float]]], None]:
        """A line for each of several runs that go on at the same time; returns what to call with figures of each."""
        self._progress.console.print(f"{label}: {len(runs)} {'models' if len(runs) > 1 else 'model'}")
        lines = [self._line(f"  {name}", spec.stop.server_steps) for name, spec in runs]

        def update(figures: Sequence[Mapping[str, float]]) -> None:
            for line, found in zip(lines, figures, strict=True):
                if found:
                    line(found)

        return update

    def begin_next_group(
        self, label: str, runs: Sequence[tuple[str, Spec]]
    ) -> Callable[[Sequence[Mapping[str, float]]], None]:
        """As `begin_group`, in place of the lines so far: of very many runs only those at work are shown."""
        for task in list(self._progress.task_ids):
            self._progress.remove_task(task)
        return self.begin_group(label, runs)

    def _line(self, label: str, steps: int) -> Callable[[Mapping[str, float]], None]:
        task = self._progress.add_task(label, total=steps, figures="starting …")
        due = time.monotonic() + _LOG_EVERY_S[0]

        def update(figures: Mapping[str, float]) -> None:
            nonlocal due
            total, step, text = int(figures.get("stop", steps)), int(figures.get("step", 0)), _figures(figures)
            self._progress.update(task, total=total, completed=step, figures=text)
            if not self._progress.console.is_terminal and time.monotonic() >= due:
                due = time.monotonic() + _LOG_EVERY_S[1]
                line = f"{label.strip()}: step {step:,} of {total:,} · {text}"
                self._progress.console.print(line, soft_wrap=True, markup=False)

        return update


def _figures(figures: Mapping[str, float]) -> str:
    if "waiting_s" in figures and "step" not in figures:
        return f"no worker has a place yet ({figures['waiting_s']:.0f} s) …"
    parts = []
    if "sim/hours" in figures:
        parts.append(f"{figures['sim/hours']:.2f} virtual h, {figures['sim/client_updates']:,.0f} client updates")
        parts.append(f"{figures.get('wall_updates_per_s', 0):,.0f}/s")
    parts += [f"{name} {figures[f'eval/{name}']:.4f}" for name in _METRICS if f"eval/{name}" in figures]
    return " · ".join(parts) or "starting …"


@contextmanager
def live() -> Iterator[Display]:
    """A live display for the block."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=_console) as progress:
        yield Display(progress)


def plans(reports: Mapping[str, PlanReport]) -> None:
    """A table of plans, one column each."""
    table = Table(title="Plan: simulated, nothing trained yet", title_justify="left")
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for name, report in reports.items():
        table.add_column(name, justify="right")
        for key, value in _plan_rows(report):
            rows.setdefault(key, []).append(value)
    for key, values in rows.items():
        table.add_row(key, *values)
    _console.print(table)
    told: dict[tuple[ClusterSize, ...], list[str]] = {}
    for name, report in reports.items():
        told.setdefault(report.clusters, []).append(name)
    for sizes, names in told.items():
        if sizes:
            clusters(sizes, "Clusters" if len(told) == 1 else f"Clusters of {', '.join(names)}")


def clusters(sizes: Sequence[ClusterSize], title: str = "Clusters") -> None:
    """A table of clusters: clients and training examples of each, and the share of both."""
    table = Table(title=title, title_justify="left")
    table.add_column("cluster")
    for name in ("clients", "share", "training examples", "share", "per client"):
        table.add_column(name, justify="right")
    clients = sum(row.clients for row in sizes)
    examples = sum(row.train_examples or 0 for row in sizes)
    for row in sizes:
        cells = ["not counted", "", ""]
        if row.train_examples is not None:
            share, mean = row.train_examples / max(examples, 1), row.train_examples / max(row.clients, 1)
            cells = [f"{row.train_examples:,}", f"{100 * share:.1f} %", f"{mean:,.1f}"]
        table.add_row(row.name, f"{row.clients:,}", f"{100 * row.clients / max(clients, 1):.1f} %", *cells)
    _console.print(table)


def _plan_rows(report: PlanReport) -> list[tuple[str, str]]:
    s = report.summary
    return [
        ("server steps", f"{s.server_steps:,}"),
        ("client updates (participations)", f"{s.client_updates:,} ({s.participations:,})"),
        ("virtual hours", f"{s.virtual_hours:,.3f}"),
        ("server steps per virtual hour", f"{s.server_steps_per_hour:,.1f}"),
        (
            "staleness: mean, p95, steady mean",
            f"{s.mean_staleness:.2f}, {s.p95_staleness:.0f}, {s.steady_staleness:.2f}",
        ),
        ("device time without effect", f"{100 * s.wasted_share:.1f} %"),
        ("uplink, downlink", f"{byte_text(s.uplink_bytes)}, {byte_text(s.downlink_bytes)}"),
        ("model", f"{report.parameters:,} parameters, {byte_text(report.model_bytes)}"),
        ("blocks of W lanes", f"{s.blocks:,} of {report.lanes}"),
        ("lanes occupied", f"{100 * s.occupancy:.0f} %"),
        ("longest chain, mean width", f"{s.depth:,} blocks, {s.mean_width:.1f}"),
        ("model versions alive at most", f"{s.peak_live_versions:,}"),
        ("timeline digest", report.timeline_digest[:16]),
        ("plan digest", report.plan_digest[:16]),
    ]


def run(finished: Run) -> None:
    """A table of one run's result."""
    table = Table(title=f"{finished.name}: {finished.reason}", title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [
        ("server steps", f"{finished.server_steps:,}"),
        ("client updates", f"{finished.client_updates:,}"),
        ("virtual hours (simulated)", f"{finished.virtual_hours:,.3f}"),
        ("mean staleness", f"{finished.mean_staleness:.2f}"),
    ]
    rows += [(name, f"{value:.4f}") for name, value in finished.metrics.items()]
    rows += [
        (
            "wall time",
            f"{finished.wall_s:.1f} s, {finished.client_updates / max(finished.wall_s, 1e-9):,.0f} updates/s",
        ),
        ("workers outside client work", f"{100 * finished.overhead_share:.1f} %"),
        ("snapshots and commits", f"{finished.durable_s:.2f} s, {100 * finished.durable_s / finished.wall_s:.2f} %"),
        ("model digest", finished.model_digest[:16]),
        ("run id", finished.run_id),
        ("folder", finished.folder),
    ]
    if finished.num_diverged:
        rows.append(("diverged client updates", f"{finished.num_diverged:,}, zeroed: lower client.lr?"))
    if finished.lost_pools:
        rows.append(("workers lost and replaced", f"{finished.lost_pools}"))
    if finished.attempts > 1:
        rows.append(("taken up again", f"{finished.attempts - 1} times, from its last snapshot"))
    if not finished.is_comparable:
        rows.append(("comparable", "no: resumed by force, on other software or with other settings"))
    if finished.unpublished_rows:
        from atoll.experiment.records import short

        again = f"atoll resume {short(Path(finished.folder))}"
        rows.append(("rows MLflow has not taken", f"{finished.unpublished_rows:,}, kept; they are sent by {again}"))
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def comparison(found: Comparison, html: str, csv: str) -> None:
    """The comparison's table and where its files are."""
    from atoll.tracking import to_table

    _console.print(to_table(found))
    files(html, csv)


def files(html: str, csv: str) -> None:
    """Where a report lies."""
    _console.print(f"Report: {html}\nTable:  {csv}", soft_wrap=True)


def address(uri: str, experiment: str) -> None:
    """How to look at it in MLflow."""
    option = "" if uri == "sqlite:///mlflow.db" else f" --uri {uri}"
    _console.print(f"MLflow: experiment '{experiment}' in {uri}; look at it with: atoll ui{option}", soft_wrap=True)


def byte_text(count: float) -> str:
    """A number of bytes in the unit that reads best, such as 1.81 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
