"""Wide and deep (Cheng et al. 2016), with a backward pass by hand.

A row of the one table holds a code's embedding [D] and, after it, its weights in the linear part [O].

Shape legend: L lanes, B local batch, F numbers of "x", G categorical columns, D embedding width, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.models.chains import backward_chain, forward_chain, layers_of
from atoll.models.lanes import Gradients, LocalRows, Params, losses_backward, selection
from atoll.models.shapes import ModelInputs, WideDeep, shape_of

__all__ = ["WideDeepLanes"]

_WIDE = "wide.weight"


class WideDeepLanes:
    """Lane form of `WideDeep`."""

    def __init__(self, settings: WideDeep, inputs: ModelInputs) -> None:
        self.shape, self.reads_codes = shape_of(settings, inputs), False
        self._settings, self._inputs = settings, inputs
        self._leads = selection(inputs.leads)
        self._names = [p.name for p in self.shape.parameters if p.name != _WIDE]
        self._has_numbers = len(self._names) < len(self.shape.parameters)

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, O]."""
        deep, wide, _ = self._forward(params, _given(rows), batch)
        return deep + wide

    def penultimate(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, H + O]: the last hidden layer of the deep part, and the wide part's sums."""
        _, wide, layers = self._forward(params, _given(rows), batch)
        return torch.cat([layers[-1], wide], 2)

    def _forward(
        self, params: Params, rows: LocalRows, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(output of the deep part, of the wide part, inputs of the deep part's layers)."""
        dim = self._settings.embedding_dim
        x, found = batch["x"].flatten(2), rows.lookup()
        deep, layers = forward_chain(torch.cat([x, found[..., :dim].flatten(2)], 2), params, self._names)
        wide = found[:, :, self._leads, dim:].sum(2)
        if self._has_numbers:
            wide = wide + torch.bmm(x, params[_WIDE].transpose(1, 2))
        return deep, wide, layers

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By hand: the chain rule over the stored activations, all lanes at once."""
        rows = _given(rows)
        dim, (lanes, size, columns) = self._settings.embedding_dim, rows.index.shape
        with torch.no_grad():
            deep, wide, layers = self._forward(params, rows, batch)
            loss, back = losses_backward(deep + wide, batch["y"], share, self.shape.task)
            found, input_back = backward_chain(back, layers, params, self._names, to_input=True)
            row_back = back.new_zeros(lanes, size, columns, rows.values.shape[1])
            row_back[..., :dim] = input_back[:, :, -columns * dim :].view(lanes, size, columns, dim)
            row_back[:, :, self._leads, dim:] = back.unsqueeze(2)
            if self._has_numbers:
                found.insert(0, torch.bmm(back.transpose(1, 2), batch["x"].flatten(2)))
            return Gradients(loss, found, rows.gradient(row_back))

    def module(self) -> torch.nn.Module:
        """An ordinary module: forward(x, c)."""
        return WideDeepModule(self._settings, self._inputs)


def _given(rows: LocalRows | None) -> LocalRows:
    if rows is None:
        raise AssertionError("a model of categories without rows")
    return rows


class WideDeepModule(torch.nn.Module):
    """Wide and deep for one client at a time."""

    offsets: Tensor

    def __init__(self, settings: WideDeep, inputs: ModelInputs) -> None:
        super().__init__()
        shape = shape_of(settings, inputs)
        (table,) = shape.tables
        wide = [torch.nn.Linear(p.shape[1], p.shape[0], bias=False) for p in shape.parameters if p.name == _WIDE]
        self.dim, self.leads = settings.embedding_dim, list(inputs.leads)
        self.embedding = torch.nn.Embedding(table.rows, table.dim)
        self.wide = wide[0] if wide else None
        self.hidden = layers_of(shape.parameters, "hidden.")
        self.output = layers_of(shape.parameters, "output.")[0]
        self.register_buffer("offsets", torch.tensor(table.offsets), persistent=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """[B, O] from x [B, …] and codes c [B, G]."""
        x, found = x.flatten(1), self.embedding(c + self.offsets)
        deep = torch.cat([x, found[..., : self.dim].flatten(1)], 1)
        for layer in self.hidden:
            deep = layer(deep).relu()
        logits: Tensor = self.output(deep) + found[:, self.leads, self.dim :].sum(1)
        return logits if self.wide is None else logits + self.wide(x)
