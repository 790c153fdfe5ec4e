"""Model versions as safetensors files: names, shapes and order travel with the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.models.shapes import ModelShape

__all__ = ["load_initial", "load_version", "save_version"]

_FORMAT = "atoll-1"
Array = npt.NDArray[Any]


def save_version(path: str | Path, version: ModelVersion, shape: ModelShape) -> None:
    """Writes `version` to `path`: tensors named as in a state dict, float32; order and version in the metadata.

    The file's tensors load into the module of `LaneModel.module` with any safetensors reader. Performs I/O.
    """
    tensors: dict[str, Array] = {
        parameter.name: np.ascontiguousarray(version.dense[part]).reshape(parameter.shape)
        for parameter, part in shape.slices()
    }
    for table, rows in zip(shape.tables, version.tables, strict=True):
        tensors[table.name] = np.ascontiguousarray(rows)
    metadata = {
        "format": _FORMAT,
        "version": str(version.version),
        "dense": json.dumps([parameter.name for parameter in shape.parameters]),
        "tables": json.dumps([table.name for table in shape.tables]),
    }
    save_file(tensors, str(path), metadata=metadata)


def load_version(path: str | Path) -> ModelVersion:
    """The version that `save_version` wrote, bit for bit. Performs I/O.

    Raises:
        SpecError: the file is missing, unreadable, or was not written by `save_version`.
    """
    tensors, metadata = _read(path, "model file")
    if metadata.get("format") != _FORMAT:
        problem = Problem(
            str(path), f"format {metadata.get('format')!r}", f"a file written by atoll ({_FORMAT})",
            "the order of parameters is in its metadata", "pass other files as model.init_from",
        )  # fmt: skip
        raise SpecError([problem])
    dense = [tensors[name].reshape(-1) for name in json.loads(metadata["dense"])]
    flat = np.concatenate(dense) if dense else np.zeros(0, dtype=np.float32)
    return ModelVersion(int(metadata["version"]), flat, tuple(tensors[name] for name in json.loads(metadata["tables"])))


def load_initial(path: str | Path, shape: ModelShape, place: str = "model.init_from") -> ModelVersion:
    """Version 0 with the weights of any safetensors file whose names and shapes are those of `shape`.

    Other float types are converted to float32. Performs I/O.

    Args:
        path: the file.
        shape: what the model needs.
        place: where the path comes from, for messages.

    Raises:
        SpecError: every missing, unknown, misshaped or non-finite tensor, in one error.
    """
    tensors, _ = _read(path, place)
    wanted: dict[str, tuple[int, ...]] = {parameter.name: parameter.shape for parameter in shape.parameters}
    wanted |= {table.name: (table.rows, table.dim) for table in shape.tables}
    problems = [
        Problem(place, f"no tensor {name!r}", f"{name!r} of shape {list(need)}", f"in {path}", _known(tensors))
        for name, need in wanted.items()
        if name not in tensors
    ]
    for name, array in tensors.items():
        if name not in wanted:
            hint = f"names: {', '.join(wanted)}"
            problems.append(Problem(place, f"unknown tensor {name!r}", "names of this model alone", f"in {path}", hint))
        elif array.shape != wanted[name]:
            found, need = f"{name!r} of shape {list(array.shape)}", f"shape {list(wanted[name])}"
            problems.append(Problem(place, found, need, f"in {path}", "it belongs to another model or other data"))
        elif not np.isfinite(array).all():
            problems.append(Problem(place, f"{name!r} with NaN or infinity", "finite weights", f"in {path}"))
    if problems:
        raise SpecError(problems)
    dense = [tensors[parameter.name].astype(np.float32).reshape(-1) for parameter in shape.parameters]
    flat = np.concatenate(dense) if dense else np.zeros(0, dtype=np.float32)
    return ModelVersion(0, flat, tuple(tensors[table.name].astype(np.float32) for table in shape.tables))


def _known(tensors: dict[str, Array]) -> str:
    names = sorted(tensors)
    return f"the file has: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _read(path: str | Path, place: str) -> tuple[dict[str, Array], dict[str, str]]:
    if not Path(path).is_file():
        raise SpecError([Problem(place, str(path), "a file that exists", hint="paths are relative to the folder of the run's start")])
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:
        problem = Problem(place, str(path), "a safetensors file of float tensors", str(error))
        raise SpecError([problem]) from error
