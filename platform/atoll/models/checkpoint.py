"""Weights as safetensors files: names and shapes of the ordinary torch module, readable by anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.models.shapes import ModelShape

__all__ = ["encode_version", "load_version", "save_version"]


def encode_version(model: ModelVersion, shape: ModelShape) -> bytes:
    """A version as the bytes of a safetensors file; its number is in the metadata. Purity: pure."""
    from safetensors.numpy import save

    arrays, begin = {}, 0
    for parameter in shape.parameters:
        arrays[parameter.name] = np.ascontiguousarray(model.dense[begin : begin + parameter.size]).reshape(
            parameter.shape
        )
        begin += parameter.size
    arrays |= {t.name: np.ascontiguousarray(w) for t, w in zip(shape.tables, model.tables, strict=True)}
    return bytes(save(arrays, metadata={"version": str(model.version)}))


def save_version(path: Path, model: ModelVersion, shape: ModelShape) -> None:
    """Writes `encode_version`. Purity: writes a file."""
    path.write_bytes(encode_version(model, shape))


def load_version(path: str | Path, shape: ModelShape) -> ModelVersion:
    """Reads weights of `shape` as a version of the number in the file.

    Raises:
        SpecError: no such file, not safetensors, or names, shapes or dtypes differ; all problems at once.

    Purity: reads a file.
    """
    from safetensors import SafetensorError, safe_open

    place, problems = "model.init_from", []
    file = Path(path)
    if not file.is_file():
        raise SpecError([Problem(place, repr(str(path)), "a file that exists", hint="check the path")])
    try:
        with safe_open(file, framework="numpy") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            version = int((opened.metadata() or {}).get("version", 0))
    except (SafetensorError, ValueError) as error:
        raise SpecError([Problem(place, repr(str(path)), "a safetensors file", str(error))]) from error
    wanted = {p.name: p.shape for p in shape.parameters} | {t.name: (t.rows, t.dim) for t in shape.tables}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            problems.append(Problem(place, f"no tensor {name!r}", f"{name} of shape {wanted[name]}"))
        elif name not in wanted:
            problems.append(Problem(place, f"tensor {name!r}", f"only {', '.join(sorted(wanted))}"))
        elif found[name].shape != wanted[name]:
            problems.append(Problem(place, f"{name} of shape {found[name].shape}", f"shape {wanted[name]}"))
        elif not np.isfinite(found[name]).all():
            problems.append(Problem(place, f"{name} with NaN or infinity", "finite weights"))
    if problems:
        raise SpecError(problems)
    dense = np.concatenate([found[p.name].reshape(-1) for p in shape.parameters]).astype(np.float32)
    return ModelVersion(version, dense, tuple(found[t.name].astype(np.float32) for t in shape.tables))
