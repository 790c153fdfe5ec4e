"""Logistic regression and multilayer perceptron, with a backward pass by hand: fewer kernels than autograd."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.models.lanes import Gradients, LocalRows, Params, example_losses
from atoll.models.shapes import Logistic, Mlp, ModelInputs, shape_of

__all__ = ["MlpLanes"]


class MlpLanes:
    """Lane form of `Logistic` (no hidden layer, category rows added to the logits) and `Mlp` (embeddings as input)."""

    def __init__(self, settings: Logistic | Mlp, inputs: ModelInputs) -> None:
        self.shape = shape_of(settings, inputs)
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
        layers = [x]
        for index in range(0, len(self._names), 2):
            weight, bias = params[self._names[index]], params[self._names[index + 1]]
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            if index + 2 < len(self._names):
                x = x.relu()
                layers.append(x)
        if rows is not None and self._is_wide:
            x = x + rows.lookup().sum(2)
        return x, layers

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By hand: the chain rule over the stored activations, all lanes at once."""
        with torch.no_grad():
            logits, layers = self._forward(params, rows, batch)
            labels = batch["y"]
            if self.shape.task == "binary":
                losses = example_losses(logits, labels, "binary")
                back = logits.sigmoid() - labels.unsqueeze(2)
            else:
                losses, back = _softmax_losses(logits, labels.unsqueeze(2))
            loss = (losses * share).sum(1)
            back *= share.unsqueeze(2)
            row_back = back.unsqueeze(2).expand(-1, -1, len(self._inputs.category_sizes), -1) if self._is_wide else None
            found: list[Tensor] = []
            for index in range(len(layers) - 1, -1, -1):
                found += [back.sum(1), torch.bmm(back.transpose(1, 2), layers[index])]
                if index or (rows is not None and not self._is_wide):
                    back = torch.bmm(back, params[self._names[2 * index]])
                if index:
                    back = torch.ops.aten.threshold_backward(back, layers[index], 0)
            found.reverse()
            if rows is None:
                return Gradients(loss, found, None)
            if row_back is None:
                row_back = back[:, :, -rows.values.shape[1] * rows.index.shape[2] :]
            gradient = torch.zeros_like(rows.values)
            gradient.index_add_(0, rows.index.flatten(), row_back.reshape(-1, rows.values.shape[1]))
            return Gradients(loss, found, gradient)

    def module(self) -> torch.nn.Module:
        """An ordinary module: forward(x, c=None)."""
        return MlpModule(self._settings, self._inputs)


def _softmax_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [L, B] and its gradient by the logits [L, B, O]; labels [L, B, 1].

    By elementary operations: torch's softmax over a short last dimension costs four times as much on CPUs.
    """
    shifted = logits - logits.amax(2, keepdim=True)
    chance = shifted.exp()
    total = chance.sum(2, keepdim=True)
    losses = total.log() - shifted.gather(2, labels)
    chance /= total
    chance.scatter_add_(2, labels, chance.new_full((1, 1, 1), -1.0).expand(labels.shape))
    return losses.squeeze(2), chance


def _linear(num_outputs: int, num_inputs: int) -> torch.nn.Linear:
    if num_inputs:
        return torch.nn.Linear(num_inputs, num_outputs)
    # Codes alone: torch warns about drawing a weight without elements, so it is put in afterwards.
    layer = torch.nn.Linear(1, num_outputs)
    layer.weight, layer.in_features = torch.nn.Parameter(torch.empty(num_outputs, 0)), 0
    return layer


class MlpModule(torch.nn.Module):
    """Logistic regression or MLP for one client at a time."""

    def __init__(self, settings: Logistic | Mlp, inputs: ModelInputs) -> None:
        super().__init__()
        shape = shape_of(settings, inputs)
        weights = [p for p in shape.parameters if p.name.endswith(".weight")]
        layers = [_linear(*p.shape) for p in weights]
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
