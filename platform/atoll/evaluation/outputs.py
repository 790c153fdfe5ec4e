"""What a model version says on rows: in fixed batches on one device, so that bits never depend on workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.models import LaneModel, LocalRows, WithPenultimate

__all__ = ["Batch", "batches", "outputs"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward pass, as a model with one lane takes them.

    Attributes:
        rows: which of the arrays' rows.
        params: name → [1, *shape].
        local: the whole embedding table with the batch's places in it, or None.
        examples: name → [1, B, …].
    """

    rows: slice
    params: Mapping[str, Tensor]
    local: LocalRows | None
    examples: Mapping[str, Tensor]


def batches(
    model: LaneModel, version: ModelVersion, arrays: Mapping[str, npt.NDArray[Any]], device: str, batch_rows: int
) -> Iterator[Batch]:
    """All rows in order, at most `batch_rows` at a time; weights are copied to the device once.

    Args:
        model: the model.
        version: its weights.
        arrays: "x", optionally "c" and others, rows first.
        device: torch device.
        batch_rows: rows per batch.
    """
    params, begin = {}, 0
    for parameter in model.shape.parameters:
        flat = torch.tensor(version.dense[begin : begin + parameter.size]).to(device)
        params[parameter.name] = flat.reshape(1, *parameter.shape)
        begin += parameter.size
    tables = [torch.tensor(np.asarray(table)).to(device) for table in version.tables]
    for begin in range(0, len(arrays["x"]), batch_rows):
        part = slice(begin, begin + batch_rows)
        examples = {name: torch.as_tensor(array[part]).to(device)[None] for name, array in arrays.items()}
        local = None
        if tables:
            offsets = torch.tensor(model.shape.tables[0].offsets, device=device)
            local = LocalRows(tables[0], examples["c"] + offsets)
        yield Batch(part, params, local, examples)


def outputs(
    model: LaneModel,
    version: ModelVersion,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    kind: Literal["logits", "penultimate"],
    device: str = "cpu",
    batch_rows: int = 4096,
) -> npt.NDArray[np.float64]:
    """What the model says of every row: float64 [rows, k].

    Args:
        model: the model.
        version: its weights.
        arrays: "x" and, with categories, "c", rows first; others are ignored.
        kind: `logits`, k = num_outputs; or `penultimate`, what the last linear layer reads.
        device: torch device.
        batch_rows: rows per forward pass.

    Raises:
        SpecError: `penultimate` of a model that does not offer it.
    """
    if kind == "penultimate" and not isinstance(model, WithPenultimate):
        raise SpecError([Problem("inputs", "penultimate", "a model that offers it", "", "Use logits")])
    inputs = {name: arrays[name] for name in ("x", "c") if name in arrays}
    found = []
    with torch.no_grad():
        for batch in batches(model, version, inputs, device, batch_rows):
            says = model.penultimate if kind == "penultimate" and isinstance(model, WithPenultimate) else model.logits
            found.append(says(batch.params, batch.local, batch.examples)[0].double().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, model.shape.num_outputs))
