"""What people see of their folder of runs, of a client that trained again, and of kernels measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from atoll.cli.show import byte_text

if TYPE_CHECKING:
    from atoll.experiment import Entry, Pruned, Replay, Timing, Tuned

__all__ = ["listing", "pruned", "replayed", "timing", "tuned"]

_console = Console(highlight=False)
#: rows of the list stay whole, whatever the terminal: a folder's name that is cut cannot be copied
_LIST_WIDTH = 500


def listing(entries: Sequence[Entry], num_hidden: int) -> None:
    """A table of runs and comparisons; runs of a comparison below it, indented; of a sweep those not ended."""
    if not entries:
        _console.print("No runs under ./runs yet. Start with:  atoll run configs/quickstart.yaml", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("folder", "kind", "state"):
        table.add_column(name)
    for name in ("step", "snap-\nshot", "size"):
        table.add_column(name, justify="right")
    for name in ("written", "MLflow\nrun"):
        table.add_column(name)
    table.add_column("not\npublished", justify="right")
    table.add_column("what one can do")
    for entry in entries:
        table.add_row(*_cells(entry, entry.name))
        for run in entry.runs:
            if entry.kind == "sweep" and run.state == "finished":
                continue
            table.add_row(*_cells(run, "  " + run.name.partition("/")[2]))
    console = Console(highlight=False, width=_LIST_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        _console.print(line.rstrip(), soft_wrap=True, markup=False)
    for entry in entries:
        for one in (entry, *entry.runs):
            if one.problem:
                _console.print(f"{one.name}: {one.problem}", soft_wrap=True, markup=False)
    if num_hidden:
        _console.print(f"{num_hidden:,} older ones: atoll runs --all")


def _cells(entry: Entry, name: str) -> list[str]:
    unpublished = f"{entry.unpublished_rows:,} rows" if entry.unpublished_rows else ""
    if entry.unpublished_files:
        unpublished += f"{', ' if unpublished else ''}{entry.unpublished_files:,} files"
    is_known = entry.state not in ("damaged", "not begun", "elsewhere")
    steps = f"{entry.step:,}" if entry.stop is None else f"{entry.step:,} of {entry.stop:,}"
    return [
        name,
        entry.kind,
        entry.state,
        steps + ("" if entry.kind == "run" else " runs") if is_known else "",
        "" if entry.snapshot_version is None else f"{entry.snapshot_version:,}",
        byte_text(entry.size_bytes),
        time.strftime("%m-%d %H:%M", time.localtime(entry.written_s)),
        (entry.run_id or "")[:8],
        unpublished,
        entry.advice,
    ]


def pruned(found: Pruned) -> None:
    """What was removed, and what that costs."""
    _console.print(f"Freed {byte_text(found.freed_bytes)} in {found.files:,} files.")
    if found.shortened:
        names = ", ".join(found.shortened)
        text = "Finished runs without snapshots now; made longer, they compute their steps again from the first on"
        _console.print(f"{text}: {names}", soft_wrap=True, markup=False)
    if found.skipped:
        names = ", ".join(found.skipped)
        text = "Left alone, since another process works on them or their journal cannot be trusted"
        _console.print(f"{text}: {names}", soft_wrap=True, markup=False)


def replayed(found: Replay) -> None:
    """A table of what the client did."""
    unknown = "not finite, or too large to measure"
    table = Table(title=f"Task {found.task_id}: trained again, nothing raised", title_justify="left", show_header=False)
    rows = [
        ("client", f"{found.client_id}"),
        ("start version", f"{found.start_version:,}"),
        ("server step", f"{found.step:,}, staleness {found.staleness:,}"),
        ("examples", f"{found.num_examples:,}, in {found.local_steps:,} local steps"),
        ("seed", f"{found.seed}"),
        ("loss", unknown if found.loss is None else f"{found.loss:.6g}"),
        ("delta norm", unknown if found.delta_norm is None else f"{found.delta_norm:.6g}"),
        ("diverged", f"yes, counted as zero (delta_bound {found.delta_bound:g})" if found.is_diverged else "no"),
        ("seconds, alone", f"{found.wall_s:.3f}"),
        (
            f"block {found.block_id}, as planned",
            f"{found.block_lanes} lanes, this one {found.lane}; {found.block_wall_s:.3f} s, "
            f"{found.block_diverged} diverged",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def timing(found: Timing) -> None:
    """One line per measurement."""
    _console.print(f"{found.kernel:9} {found.lanes:4} lanes  {found.client_updates_per_s:12,.0f} client updates/s")


def tuned(found: Tuned) -> None:
    """What was best, and how to use it."""
    kernel, lanes = found.default
    _console.print(f"Fastest: {found.best.kernel}, {found.best.lanes} lanes; without a table: {kernel}, {lanes} lanes.")
    _console.print(f"In {found.path}; use it with runtime.profile={found.path}", soft_wrap=True, markup=False)
