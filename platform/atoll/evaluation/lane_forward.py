"""What a model with torch says on rows: on one device, so that bits never depend on workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from atoll.errors import Problem, SpecError
from atoll.evaluation.asking import Examples, Says
from atoll.messages import ModelVersion
from atoll.models import LaneModel, LocalRows, WithPenultimate

__all__ = ["LaneForward", "outputs"]


class LaneForward:
    """A lane model as `Asked`: batches go through it as its one lane.

    Args:
        model: the model.
        device: torch device.
        kind: `logits`, k = num_outputs; or `penultimate`, what the last linear layer reads.

    Raises:
        SpecError: `penultimate` of a model that does not offer it.
    """

    def __init__(
        self, model: LaneModel, device: str = "cpu", *, kind: Literal["logits", "penultimate"] = "logits"
    ) -> None:
        self.shape, self._device, self._says = model.shape, device, model.logits
        if kind == "penultimate":
            if not isinstance(model, WithPenultimate):
                raise SpecError([Problem("inputs", "penultimate", "a model that offers it", "", "Use logits")])
            self._says = model.penultimate

    def at(self, version: ModelVersion) -> Says:
        """The weights, copied to the device once."""
        params, begin = {}, 0
        for parameter in self.shape.parameters:
            flat = torch.tensor(version.dense[begin : begin + parameter.size]).to(self._device)
            params[parameter.name] = flat.reshape(1, *parameter.shape)
            begin += parameter.size
        tables = [torch.tensor(np.asarray(table)).to(self._device) for table in version.tables]

        def says(batch: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
            names = [name for name in ("x", "c", "rows") if name in batch]
            examples = {name: torch.as_tensor(batch[name]).to(self._device)[None] for name in names}
            local = LocalRows(tables[0], examples["rows"]) if tables else None
            with torch.no_grad():
                found: npt.NDArray[Any] = self._says(params, local, examples)[0].double().cpu().numpy()
            return found

        return says


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
        kind: as in LaneForward.
        device: torch device.
        batch_rows: rows per forward pass.

    Raises:
        SpecError: `penultimate` of a model that does not offer it.
    """
    asked = LaneForward(model, device, kind=kind)
    found = [said for _, said in Examples(model.shape, arrays, batch_rows).ask(asked, version)]
    return np.concatenate(found) if found else np.empty((0, model.shape.num_outputs))
