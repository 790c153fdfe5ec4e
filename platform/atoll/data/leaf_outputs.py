"""What frozen leaf models say of every client's rows, as client data of its own: what an over-arch is trained on.

Whoever has the models writes the file once; every process opens it by path and content digest, without any model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from atoll.data.shape import I64, Array, DataShape, HeldOut
from atoll.data.sources import LeafOutputsSource
from atoll.data.table import ClientTable, content_digest
from atoll.errors import Problem, SpecError

__all__ = ["leaf_outputs_table", "open_leaf_outputs", "read_scaling", "save_leaf_outputs"]

_PARTS = ("x", "y", "client", "train_examples")


def leaf_outputs_table(
    story: str, x: Array, y: Array, counts: I64, held_out: Mapping[str, HeldOut], mean: Array, std: Array
) -> tuple[str, dict[str, Array]]:
    """The content of the file, and its digest.

    Args:
        story: where it comes from: identity of the data, digests of the leaves, what they say.
        x: float32 [rows, F], (outputs − mean) / std of the training rows, contiguous per client.
        y: [rows] labels, 0 and 1.
        counts: int64 [D], training rows of each client; all ≥ 1.
        held_out: "seen", "unseen": x as above.
        mean: float64 [F], of the outputs as they are.
        std: float64 [F], > 0.

    Purity: pure.
    """
    arrays: dict[str, Array] = {
        "story": np.array(story),
        "x": np.ascontiguousarray(x, dtype=np.float32),
        "y": y.astype(np.uint8),
        "counts": counts.astype(np.int64),
        "mean": mean.astype(np.float64),
        "std": std.astype(np.float64),
    }
    for name, part in sorted(held_out.items()):
        values = (part.arrays["x"].astype(np.float32), part.arrays["y"].astype(np.uint8))
        pairs = zip(_PARTS, (*values, part.client, part.train_examples), strict=True)
        arrays |= {f"{name}.{key}": np.ascontiguousarray(value) for key, value in pairs}
    return _digest(arrays), arrays


def _digest(arrays: Mapping[str, Array]) -> str:
    parts: list[Array | str] = []
    for name in sorted(arrays):
        parts += [name, str(arrays[name]) if name == "story" else arrays[name]]
    return content_digest("leaf outputs 1", *parts)


def save_leaf_outputs(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes the file, whole or not at all. Purity: writes a file."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    beside.replace(path)


def open_leaf_outputs(source: LeafOutputsSource) -> ClientTable:
    """Reads the file.

    Raises:
        SpecError: no such file, not one of ours, or its content has another digest.

    Purity: reads a file.
    """
    arrays = _read(source)
    counts = arrays["counts"]
    ends = np.cumsum(counts)
    test = {}
    for name in ("seen", "unseen"):
        if f"{name}.x" in arrays:
            x, y, client, trains = (arrays[f"{name}.{key}"] for key in _PARTS)
            test[name] = HeldOut({"x": x, "y": y.astype(np.int64)}, client, trains)
    return ClientTable(
        shape=DataShape("binary", 2, (int(arrays["x"].shape[1]),)),
        num_clients=len(counts),
        identity=source.digest,
        x=arrays["x"],
        y=arrays["y"],
        c=None,
        starts=ends - counts,
        ends=ends,
        trains=counts,
        test=test,
        about={"title": "outputs of frozen leaf models", "licence": "that of the data", "story": str(arrays["story"])},
    )


def read_scaling(source: LeafOutputsSource) -> tuple[Array, Array]:
    """Mean and standard deviation, float64 [F], that the outputs were standardised with.

    Raises:
        SpecError: see `open_leaf_outputs`.

    Purity: reads a file.
    """
    arrays = _read(source)
    return arrays["mean"], arrays["std"]


def _read(source: LeafOutputsSource) -> dict[str, Array]:
    place = "data.path"
    try:
        with np.load(source.path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        rule, why = "the file of outputs of an ensemble's leaves", str(error).splitlines()[0]
        raise SpecError([Problem(place, repr(source.path), rule, why)]) from error
    found = _digest(arrays)
    if found != source.digest:
        got, rule = f"{source.path!r} with content {found[:12]}", f"content {source.digest[:12]}"
        raise SpecError([Problem("data.digest", got, rule, "The file has changed since the leaves were asked")])
    return arrays
