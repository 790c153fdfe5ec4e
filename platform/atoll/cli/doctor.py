"""`atoll doctor`: is every node fit to train, and does it end in the same bits?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import SpecError

if TYPE_CHECKING:
    from atoll.experiment import Diagnosis

__all__ = ["add_to", "doctor"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(doctor)


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="An experiment, a YAML file; without one, a small one of its own.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, by dotted key.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that nodes have to answer; compiling takes half a minute.")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Run one block on every node of RAY_ADDRESS, or here: device, software, speed, data, store, MLflow, equal bits."""
    from atoll.experiment import doctor as examine

    found = examine(config, *(overrides or ()), timeout_s=timeout)
    _show(found)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
    if found.problems:
        raise SpecError(found.problems)


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="One block on every node", title_justify="left")
    table.add_column("node")
    table.add_column("device", ratio=1)
    table.add_column("client updates/s", justify="right")
    for column in ("block", "data", "store", "MLflow"):
        table.add_column(column, no_wrap=True)
    for one in found.nodes:
        speed = f"{one.client_updates_per_s:,.0f}" if one.client_updates_per_s else ""
        checks = (_mark(one.checks.get(name)) for name in ("data", "store", "mlflow"))
        table.add_row(one.node, one.device, speed, one.block_digest[:12], *checks)
    console.print(table)
    for text, nodes in _software(found).items():
        where = "" if len(nodes) == len(found.nodes) else f"{', '.join(nodes)}: "
        console.print(f"Software: {where}{text}", soft_wrap=True, markup=False)


def _software(found: Diagnosis) -> dict[str, list[str]]:
    """What is installed, in words → the nodes where it is; as a rule one entry."""
    said: dict[str, list[str]] = {}
    for one in found.nodes:
        if one.software:
            parts = {**one.software, **one.packages}
            features = len(parts.pop("processor", "").split())
            text = ", ".join(f"{name} {version}" for name, version in parts.items())
            said.setdefault(f"{text}; {features} processor features", []).append(one.node)
    return said


def _mark(said: str | None) -> str:
    if said is None:
        return "-"
    return said if said == "ok" else "WRONG"
