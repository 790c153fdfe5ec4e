"""`atoll.export`: a finished run as one model that takes raw columns and needs neither atoll nor the data."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll import __version__
from atoll.data import ClientData, Encoding, encoding_of
from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.experiment.exportable import Exportable, exportable
from atoll.experiment.finishing import observing
from atoll.experiment.records import RUNS_FOLDER, find_folder
from atoll.tracking.model_export import find_run, log_export, save_export

__all__ = ["Exported", "export"]

_FORMAT = "atoll export 1"
_FOLDER = "export"
#: what MLflow leaves in every model's folder
_MARK = "MLmodel"


@dataclass(frozen=True)
class Exported:
    """A model that was exported.

    Attributes:
        folder: MLflow's form; `mlflow.pyfunc.load_model(folder)` loads it.
        name: of the run, or of the ensemble and its arm.
        digest: of weights and encoding; equal digests are equal models.
        run_id: MLflow run that it is logged to.
        model_id: of the model in MLflow, for `models:/ID`; empty where the store did not take it.
        features: numeric columns.
        categories: columns of text.
        outputs: columns of the answer, all probabilities.
        num_leaves: models inside.
    """

    folder: str
    name: str
    digest: str
    run_id: str
    model_id: str
    features: tuple[str, ...]
    categories: tuple[str, ...]
    outputs: tuple[str, ...]
    num_leaves: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def export(
    run: str | Path, out: str | Path | None = None, *, arm: str | None = None, runs_folder: str | Path = RUNS_FOLDER
) -> Exported:
    """Exports a finished run or ensemble: a folder that MLflow loads, and an entry in its MLflow store, once.

    Args:
        run: folder, folder's name, MLflow run id or name of a finished run or ensemble.
        out: folder to write, new or an earlier export; None: `export` in the run's folder, `export-ARM` in an
            ensemble's.
        arm: of an ensemble with several; None: its only ensemble.
        runs_folder: where runs lie.

    Raises:
        SpecError: no such run, one that is not finished, data without an encoding, a folder that is something else.
        InfrastructureError: the folder cannot be written.

    Example:
        >>> exported = export("fedbuff-flights")  # doctest: +SKIP
        >>> mlflow.pyfunc.load_model(exported.folder).predict(frame)  # doctest: +SKIP
    """
    folder = find_folder(run, runs_folder)
    own = _FOLDER if arm is None else f"{_FOLDER}-{arm}"
    place = _checked_place(folder / own if out is None else Path(out))
    trained = exportable(folder, arm, runs_folder)
    encoding = _checked_encoding(trained)
    outputs = _outputs(trained.data)
    about = {
        "format": _FORMAT,
        "atoll": __version__,
        "name": trained.name,
        "task": trained.data.shape.task,
        "models": list(trained.digests),
        "data": {key: value for key, value in trained.data.about.items() if isinstance(value, str)},
    }
    digest = hashlib.sha256(json.dumps([about, asdict(encoding), outputs], sort_keys=True).encode()).hexdigest()
    _write(place, trained, encoding, outputs, {**about, "digest": digest})
    run_id, model_id = trained.run_id or "", ""
    with observing():
        run_id = trained.run_id or find_run(trained.uri, trained.experiment, trained.run_key)
        model_id = log_export(trained.uri, run_id, place, trained.name, digest, trained.server_steps)
    return Exported(
        folder=str(place),
        name=trained.name,
        digest=digest,
        run_id=run_id,
        model_id=model_id,
        features=tuple(column.name for column in encoding.features),
        categories=tuple(column.name for column in encoding.categories),
        outputs=tuple(outputs),
        num_leaves=trained.num_leaves,
    )


def _checked_place(place: Path) -> Path:
    """A folder that may be made, or an export that may be replaced."""
    if place.exists() and not (place / _MARK).is_file() and not (place.is_dir() and not any(place.iterdir())):
        raise SpecError(
            [Problem("out", repr(str(place)), "a new folder, or an earlier export", "it is something else")]
        )
    return place.absolute()


def _checked_encoding(trained: Exportable) -> Encoding:
    encoding = encoding_of(trained.data)
    if encoding is None:
        kind = trained.kind
        hint = "give your data a method encoding(); see atoll.data.Encoding" if kind == "custom" else ""
        why = "Without it nobody outside of atoll can make the model's inputs"
        rule = "data that says how raw columns become features: flights, movielens, parquet, synthetic"
        raise SpecError([Problem("data.kind", kind, rule, why, hint)])
    names = [column.name for column in encoding.features] + [column.name for column in encoding.categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError([Problem("data", f"several columns called {', '.join(twice)}", "columns of different names")])
    return encoding


def _outputs(data: ClientData) -> list[str]:
    shape = data.shape
    if shape.task == "binary":
        return ["probability"]
    labels = data.about.get("labels")
    is_named = isinstance(labels, Sequence) and len(labels) == shape.num_classes
    return [f"probability_{label}" for label in (labels if is_named and labels else range(shape.num_classes))]


def _write(place: Path, trained: Exportable, encoding: Encoding, outputs: Sequence[str], about: dict[str, Any]) -> None:
    from atoll.models.ensemble_module import RawColumns, save_program

    categories = {column.name: column.values for column in encoding.categories}
    usual = {column.name: (column.mean, column.mean + column.std) for column in encoding.features}
    front = RawColumns(
        trained.module,
        [column.mean for column in encoding.features],
        [column.std for column in encoding.features],
        has_categories=bool(categories),
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch) / "program.pt2"
            save_program(program, front, len(categories))
            save_export(place, program, usual, categories, outputs, about)
    except OSError as error:
        raise InfrastructureError(f"{place}: writing the export failed: {error}. Make room.") from error
