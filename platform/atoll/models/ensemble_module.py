"""Trained models as one torch module that takes raw columns, and as a program that runs without atoll.

Shape legend: B rows, F numeric columns, G categorical columns, n leaves, k outputs of a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.models.lanes import LaneModel, LocalRows, WithPenultimate

__all__ = ["EnsembleModule", "Penultimate", "Probabilities", "RawColumns", "save_program"]

#: (weight [out, in], bias [out]) each
Layers = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class Probabilities(torch.nn.Module):
    """A model's logits as probabilities: [B, 1], of class 1, for a binary task; else [B, num_classes]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Probabilities from x [B, F] and codes c [B, G], None without categories."""
        logits: Tensor = self.model(x) if c is None else self.model(x, c)
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


class Penultimate(torch.nn.Module):
    """The input of a model's last linear layer: by its lane form with one lane, as leaves are judged."""

    def __init__(self, model: LaneModel, version: ModelVersion) -> None:
        super().__init__()
        if not isinstance(model, WithPenultimate):
            raise TypeError(f"{type(model).__name__} does not show the input of its last layer")
        self._model, self._shape, begin = model, model.shape, 0
        for index, parameter in enumerate(model.shape.parameters):
            flat = torch.tensor(version.dense[begin : begin + parameter.size])
            self.register_buffer(f"dense_{index}", flat.reshape(1, *parameter.shape))
            begin += parameter.size
        for index, (shape, table) in enumerate(zip(model.shape.tables, version.tables, strict=True)):
            self.register_buffer(f"table_{index}", torch.tensor(np.asarray(table)))
            self.register_buffer(f"offsets_{index}", torch.tensor(shape.offsets))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """[B, k] from x [B, …] and codes c [B, G]."""
        names = [parameter.name for parameter in self._shape.parameters]
        params = {name: self.get_buffer(f"dense_{index}") for index, name in enumerate(names)}
        batch, rows = {"x": x[None]}, None
        if c is not None:
            batch["c"] = c[None]
            if self._shape.tables:
                rows = LocalRows(self.get_buffer("table_0"), batch["c"] + self.get_buffer("offsets_0"))
        found: Tensor = self._model.penultimate(params, rows, batch)
        return found[0]


class EnsembleModule(torch.nn.Module):
    """Leaf models joined by an over-arch, in double precision from the leaves' outputs on.

    Args:
        leaves: modules from (x) or (x, c) to [B, k], in the over-arch's order.
        kind: `mean` or `median` of the leaves' logits (k = 1), or `layers` over all outputs side by side.
        layers: with ReLU between them; the first takes n·k inputs, leaf by leaf; the last gives one logit.
    """

    def __init__(
        self, leaves: Sequence[torch.nn.Module], kind: Literal["mean", "median", "layers"], layers: Layers = ()
    ) -> None:
        super().__init__()
        self.leaves, self.kind = torch.nn.ModuleList(leaves), kind
        self.over_arch = torch.nn.ModuleList(_linear(weight, bias) for weight, bias in layers)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits [B, 1], float64, from x [B, …] and codes c [B, G], None without categories."""
        arguments = (x,) if c is None else (x, c)
        z = torch.cat([leaf(*arguments).double() for leaf in self.leaves], 1)
        if self.kind == "mean":
            return z.mean(1, keepdim=True)
        if self.kind == "median":
            # torch's own median of an even number is the lower of the middle two
            ordered, half = z.sort(1).values, z.shape[1] // 2
            return ordered[:, [half]] if z.shape[1] % 2 else ordered[:, half - 1 : half + 1].mean(1, keepdim=True)
        for index, layer in enumerate(self.over_arch):
            z = layer(z).relu() if index + 1 < len(self.over_arch) else layer(z)
        return z


def _linear(weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


class RawColumns(torch.nn.Module):
    """What turns raw columns into "x" and "c", in front of a module that takes those.

    Args:
        inner: takes (x) or (x, c).
        means, stds: of each numeric column; x = (raw − mean) / std, in double precision until it is x.
        has_categories: whether `inner` takes c.
    """

    means: Tensor
    stds: Tensor

    def __init__(
        self, inner: torch.nn.Module, means: Sequence[float], stds: Sequence[float], *, has_categories: bool
    ) -> None:
        super().__init__()
        self.inner, self.has_categories = inner, has_categories
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64))
        self.register_buffer("stds", torch.tensor(stds, dtype=torch.float64))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """What `inner` gives, from raw numbers [B, F] float64 and codes [B, G] int64."""
        x = ((numbers - self.means) / self.stds).to(torch.float32)
        found: Tensor = self.inner(x, codes) if self.has_categories else self.inner(x)
        return found


def save_program(path: Path, module: RawColumns, num_categories: int) -> None:
    """Writes `module` as a program of torch.export, for any number of rows.

    Raises:
        SpecError: the module does what torch.export cannot follow; only code of one's own does.

    Purity: writes a file.
    """
    # two rows: torch.export takes sizes 0 and 1 for constants
    example = (
        torch.zeros(2, len(module.means), dtype=torch.float64),
        torch.zeros(2, num_categories, dtype=torch.int64),
    )
    rows = {0: torch.export.Dim("rows", min=1)}
    try:
        program = torch.export.export(module.eval(), example, dynamic_shapes=(rows, rows), strict=False)
    except Exception as error:
        # torch.export raises whatever the module's own code makes it raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        rule = "a model that torch.export can follow"
        raise SpecError([Problem("model", type(module.inner).__name__, rule, why)]) from error
    torch.export.save(program, path)
