"""`atoll export`: a finished run as a model that others load without atoll."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_to", "export"]


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(export)


def export(
    run: Annotated[str, typer.Argument(help="Folder, run id or name of a finished run or ensemble.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; export in the run's own folder if none.")] = None,
    arm: Annotated[str | None, typer.Option(help="Of an ensemble with several: which one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Write the trained model for use without atoll: raw columns in, probabilities out, loaded by MLflow."""
    from atoll.experiment import export as export_run
    from atoll.experiment.records import short

    found = export_run(run, out, arm=arm)
    leaves = f", {found.num_leaves} leaf models" if found.num_leaves > 1 else ""
    columns = f"{len(found.features)} numeric columns, {len(found.categories)} of text"
    typer.echo(f"{found.name}{leaves}: {columns} → {', '.join(found.outputs)}")
    where = [short(Path(found.folder)), *([f"models:/{found.model_id}"] if found.model_id else [])]
    for place in where:
        typer.echo(f'  mlflow.pyfunc.load_model("{place}")')
    if as_json:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
