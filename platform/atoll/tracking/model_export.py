"""Exported models in MLflow's form: a folder that `mlflow.pyfunc` loads without atoll, and its entry in the store."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from atoll.errors import InfrastructureError
from atoll.tracking.mlflow_tracker import client, store_errors
from atoll.tracking.store import load_mlflow, quiet
from atoll.tracking.tracker import RUN_KEY_TAG

__all__ = ["EXPORT_TAG", "find_run", "log_export", "save_export"]

#: digest of what was exported: the same model is found again, never logged twice
EXPORT_TAG = "fl.export"
_PACKAGES = ("mlflow", "torch", "numpy", "pandas")
_LOADER = Path(__file__).with_name("served_model.py")
_STATUS_READY = "READY"


def save_export(
    folder: Path,
    program: Path,
    features: Mapping[str, tuple[float, float]],
    categories: Mapping[str, Sequence[str]],
    outputs: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Writes an MLflow model of flavour pyfunc into `folder`, whole or not at all.

    It takes a DataFrame with one column per raw column (numbers for `features`, text for `categories`) and gives one
    with the columns `outputs`. Two made-up rows are its input example; no row of the data is in it.

    Args:
        folder: made; an export that is there already is replaced.
        program: file of torch.export that takes (numbers [rows, F] float64, codes [rows, G] int64).
        features: numeric columns in order, each with two usual values.
        categories: values of each categorical column in order of their codes.
        outputs: names of the probabilities.
        about: facts about the model; JSON.

    Purity: writes a folder.
    """
    mlflow = load_mlflow()
    import pandas as pd

    columns = [{"name": name, "values": list(values)} for name, values in categories.items()]
    encoding = {"features": list(features), "categories": columns, "outputs": list(outputs), **about}
    numbers = {name: list(map(float, usual)) for name, usual in features.items()}
    example = pd.DataFrame(numbers | {name: [values[0], values[-1]] for name, values in categories.items()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch, _quiet_saving():
        described = Path(scratch) / "encoding.json"
        described.write_text(json.dumps(encoding, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        made = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            path=str(made),
            python_model=str(_LOADER),
            artifacts={"program": str(program), "encoding": str(described)},
            signature=_signature(mlflow, list(features), list(categories), outputs),
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in _PACKAGES],
        )
        old = Path(scratch) / "old"
        if folder.exists():
            os.rename(folder, old)
        os.rename(made, folder)


def _signature(mlflow: Any, features: Sequence[str], categories: Sequence[str], outputs: Sequence[str]) -> Any:
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("double", name) for name in features] + [ColSpec("string", name) for name in categories]
    return mlflow.models.ModelSignature(Schema(inputs), Schema([ColSpec("double", name) for name in outputs]))


@contextmanager
def _quiet_saving() -> Iterator[None]:
    """Without MLflow's remarks about type hints and requirements."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)


def find_run(uri: str, experiment: str, run_key: str) -> str:
    """The id of the MLflow run with that key.

    Raises:
        InfrastructureError: there is none, or the store does not answer.
    """
    store = client(uri)
    with store_errors(f"looking for the run {run_key}"):
        place = store.get_experiment_by_name(experiment)
        found = place and store.search_runs([place.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", max_results=1)
        if not found:
            raise InfrastructureError(f"tracking store: no run with key {run_key} in experiment {experiment!r}")
        return str(found[0].info.run_id)


def log_export(uri: str, run_id: str, folder: Path, name: str, digest: str, step: int) -> str:
    """Logs an export to the MLflow run, once: one with the same digest is found again and completed if need be.

    Args:
        uri: tracking store.
        run_id: the run that it comes from.
        folder: of `save_export`.
        name: of the model.
        digest: of what was exported.
        step: server step of the weights.

    Returns:
        The id of MLflow's model; `models:/ID` loads it.

    Raises:
        InfrastructureError: the store does not take it.
    """
    store = client(uri)
    with store_errors("logging the exported model"):
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        experiment_id = store.get_run(run_id).info.experiment_id
        filtered = f"tags.`{EXPORT_TAG}` = '{digest}' AND source_run_id = '{run_id}'"
        found = store.search_logged_models([experiment_id], filtered, max_results=1)
        model = found[0] if found else store.create_logged_model(
            experiment_id,
            name=re.sub(r"[/:.%\"']+", "-", name)[:200],
            source_run_id=run_id,
            tags={EXPORT_TAG: digest},
            model_type="atoll",
        )  # fmt: skip
        if str(model.status) != _STATUS_READY:
            store.log_model_artifacts(model.model_id, str(folder))
            store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        outputs = store.get_run(run_id).outputs
        linked = [] if outputs is None else [output.model_id for output in outputs.model_outputs]
        if model.model_id not in linked:
            store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return str(model.model_id)
