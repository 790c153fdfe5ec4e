"""`atoll cluster check`: the file of a Ray cluster, before machines are paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.runtime.cluster_files import ClusterFile

__all__ = ["add_to", "check"]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    group = typer.Typer(help="Files of Ray clusters.", no_args_is_help=True)
    group.callback()(lambda: None)  # so that `check` stays a command of its own
    group.command()(check)
    app.add_typer(group, name="cluster")


def check(
    file: Annotated[Path, typer.Argument(help="For `ray up`, or a RayCluster of KubeRay.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Check a Ray cluster's file offline: Ray's own validation, and rules for what Ray does not check."""
    from atoll.experiment import check_cluster_file

    found = check_cluster_file(file)
    _show(file, found)
    if as_json:
        typer.echo(json.dumps({"file": str(file), **found.as_dict()}, allow_nan=False))


def _show(file: Path, found: ClusterFile) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("workers", "each", "nodes", "goes after", "labels"):
        table.add_column(name)
    for group in found.groups:
        each = ", ".join(f"{amount:g} {name}" for name, amount in group.resources.items())
        labels = ", ".join(f"{name}={value}" for name, value in group.labels.items())
        table.add_row(group.name, each, f"{group.least} to {group.most}", f"{group.idle_s / 60:g} min idle", labels)
    console.print(f"{file}: Ray cluster {found.name} ({found.kind}), nothing wrong", soft_wrap=True, markup=False)
    console.print(table)
    for place in found.to_fill_in:
        console.print(f"to fill in: {place}", soft_wrap=True, markup=False)
