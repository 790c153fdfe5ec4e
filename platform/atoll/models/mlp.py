"""Logistic regression and multilayer perceptron, with a backward pass by hand: fewer kernels than autograd."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.models.chains import backward_chain, forward_chain, linear
from atoll.models.lanes import Gradients, LocalRows, Params, losses_backward
from atoll.models.shapes import Logistic, Mlp, ModelInputs, shape_of

__all__ = ["MlpLanes"]


class MlpLanes:
    """Lane form of `Logistic` (no hidden layer, category rows added to the logits) and `Mlp` (embeddings as input)."""

    def __init__(self, settings: Logistic | Mlp, inputs: ModelInputs) -> None:
        self.shape, self.reads_codes = shape_of(settings, inputs), False
        self._settings, self._inputs = settings, inputs
        self._names = [p.name for p in self.shape.parameters]
        self._is_wide = isinstance(settings, Logistic)

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs]."""
        return self._forward(params, rows, batch)[0]

    def _forward(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        x = batch["x"].flatten(2)
        if rows is not None and not self._is_wide:
            x = torch.cat([x, rows.lookup().flatten(2)], 2)
        x, layers = forward_chain(x, params, self._names)
        if rows is not None and self._is_wide:
            x = x + rows.lookup().sum(2)
        return x, layers

    def penultimate(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, H]: the last hidden layer; the logits of logistic regression."""
        logits, layers = self._forward(params, rows, batch)
        return logits if self._is_wide else layers[-1]

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By hand: the chain rule over the stored activations, all lanes at once."""
        with torch.no_grad():
            logits, layers = self._forward(params, rows, batch)
            loss, back = losses_backward(logits, batch["y"], share, self.shape.task)
            row_back = back.unsqueeze(2).expand(-1, -1, len(self._inputs.category_sizes), -1) if self._is_wide else None
            to_input = rows is not None and not self._is_wide
            found, back = backward_chain(back, layers, params, self._names, to_input=to_input)
            if rows is None:
                return Gradients(loss, found, None)
            if row_back is None:
                row_back = back[:, :, -rows.values.shape[1] * rows.index.shape[2] :]
            return Gradients(loss, found, rows.gradient(row_back))

    def module(self) -> torch.nn.Module:
        """An ordinary module: forward(x, c=None)."""
        return MlpModule(self._settings, self._inputs)


class MlpModule(torch.nn.Module):
    """Logistic regression or MLP for one client at a time."""

    def __init__(self, settings: Logistic | Mlp, inputs: ModelInputs) -> None:
        super().__init__()
        shape = shape_of(settings, inputs)
        weights = [p for p in shape.parameters if p.name.endswith(".weight")]
        layers = [linear(*p.shape) for p in weights]
        self.hidden, self.output = torch.nn.ModuleList(layers[:-1]), layers[-1]
        self.is_wide = isinstance(settings, Logistic)
        self.offsets: Tensor | None = None
        if shape.tables:
            table = shape.tables[0]
            self.embedding = torch.nn.Embedding(table.rows, table.dim)
            self.offsets = torch.tensor(table.offsets)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """[B, num_outputs] from x [B, …] and codes c [B, G]."""
        x = x.flatten(1)
        looked_up = None
        if c is not None and self.offsets is not None:
            looked_up = self.embedding(c + self.offsets.to(c.device))
            if not self.is_wide:
                x = torch.cat([x, looked_up.flatten(1)], 1)
        for layer in self.hidden:
            x = layer(x).relu()
        x = self.output(x)
        return x + looked_up.sum(1) if self.is_wide and looked_up is not None else x
