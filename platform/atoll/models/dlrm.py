"""Deep learning recommendation model (Naumov et al. 2019), with a backward pass by hand.

Every category is a vector; the bottom layers make one more of "x"; the top layers read that one and the dot products of
all pairs. Columns of a history may be pooled into one vector by attention to the target item (`models.attention`).

Shape legend: L lanes, B local batch, G categorical columns, V vectors of an example, D their width, P pairs of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atoll.models.attention import Attention, AttentionLanes
from atoll.models.chains import backward_chain, forward_chain, layers_of, relu_backward
from atoll.models.lanes import Gradients, LocalRows, Params, losses_backward, selection
from atoll.models.shapes import Dlrm, ModelInputs, shape_of

__all__ = ["DlrmLanes"]


class _Columns:
    """Which columns of "c" are vectors as they are, and which are pooled."""

    def __init__(self, settings: Dlrm, inputs: ModelInputs) -> None:
        self.histories = inputs.histories if settings.history else ()
        self.plain = list(inputs.leads if settings.history else range(len(inputs.category_sizes)))
        #: last code of each history's table, which means nothing
        self.padding = [inputs.category_sizes[lead] - 1 for lead, _ in self.histories]
        count = 1 + len(self.plain) + len(self.histories)
        self.num_vectors = count
        #: places of the P pairs in a flat V × V matrix
        self.pairs = [first * count + second for first in range(count) for second in range(first)]

    def both_ways(self) -> list[int]:
        """For every place of a flat V × V matrix, its pair's number; P on the diagonal."""
        count = self.num_vectors
        number = {place: index for index, place in enumerate(self.pairs)}
        places = ((max(i, j) * count + min(i, j)) for i in range(count) for j in range(count))
        return [number.get(place, len(self.pairs)) for place in places]


class DlrmLanes:
    """Lane form of `Dlrm`."""

    def __init__(self, settings: Dlrm, inputs: ModelInputs) -> None:
        self.shape, self.reads_codes = shape_of(settings, inputs), settings.history
        self._settings, self._inputs = settings, inputs
        self._columns = _Columns(settings, inputs)
        self._plain = selection(self._columns.plain)
        names = [p.name for p in self.shape.parameters]
        self._bottom = [name for name in names if name.startswith("bottom.")]
        self._top = [name for name in names if name.startswith(("top.", "output."))]
        self._attention = [
            AttentionLanes(f"attention.{index}", lead, columns, padding)
            for index, ((lead, columns), padding) in enumerate(
                zip(self._columns.histories, self._columns.padding, strict=True)
            )
        ]
        self._pairs = torch.tensor(self._columns.pairs)
        self._both_ways = torch.tensor(self._columns.both_ways())

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs]."""
        return _Pass(self, params, rows, batch).logits

    def penultimate(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, H]: the last hidden layer of the top part."""
        return _Pass(self, params, rows, batch).top[-1]

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By hand: the chain rule over the stored activations, all lanes at once."""
        with torch.no_grad():
            forward = _Pass(self, params, rows, batch)
            loss, back = losses_backward(forward.logits, batch["y"], share, self.shape.task)
            found, row_gradient = forward.backward(back)
            return Gradients(loss, found, row_gradient)

    def module(self) -> torch.nn.Module:
        """An ordinary module: forward(x, c)."""
        return DlrmModule(self._settings, self._inputs)


class _Pass:
    """One forward pass with what its backward pass needs."""

    def __init__(self, model: DlrmLanes, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> None:
        if rows is None:
            raise AssertionError("a model of categories without rows")
        self._model, self._params, self._rows = model, params, rows
        out, self._bottom = forward_chain(batch["x"].flatten(2), params, model._bottom)
        self._dense = out.relu()
        found = rows.lookup()
        self._pooling = [unit.forward(params, found, batch["c"]) for unit in model._attention]
        plain = found[:, :, model._plain] if model._attention else found
        parts = [self._dense.unsqueeze(2), plain, *(one.pooled.unsqueeze(2) for one in self._pooling)]
        vectors = torch.cat(parts, 2)
        self._lanes, self._size, count, _ = vectors.shape
        self._vectors = vectors.flatten(0, 1)
        dots = torch.bmm(self._vectors, self._vectors.transpose(1, 2)).view(self._lanes, self._size, count * count)
        pairs = dots.index_select(2, model._pairs.to(dots.device))
        self.logits, self.top = forward_chain(torch.cat([self._dense, pairs], 2), params, model._top)

    def backward(self, back: Tensor) -> tuple[list[Tensor], Tensor]:
        """(a gradient per parameter in the shape's order, gradient by the rows' values)."""
        model, params = self._model, self._params
        columns, dim = model._columns, model._settings.embedding_dim
        top, back = backward_chain(back, self.top, params, model._top, to_input=True)
        pairs = torch.nn.functional.pad(back[:, :, dim:], (0, 1))
        both = pairs.index_select(2, model._both_ways.to(back.device))
        count = columns.num_vectors
        vectors = torch.bmm(both.view(-1, count, count), self._vectors).view(self._lanes, self._size, count, dim)
        plain = vectors[:, :, 1 : 1 + len(columns.plain)]
        attention: list[Tensor] = []
        if model._attention:
            by_row = back.new_zeros(*self._rows.index.shape, dim)
            by_row[:, :, model._plain] = plain
            for index, one in enumerate(self._pooling):
                attention += one.backward(vectors[:, :, 1 + len(columns.plain) + index], by_row)
        else:
            by_row = plain
        dense = relu_backward(vectors[:, :, 0] + back[:, :, :dim], self._dense)
        bottom, _ = backward_chain(dense, self._bottom, params, model._bottom, to_input=False)
        return [*bottom, *attention, *top], self._rows.gradient(by_row)


class DlrmModule(torch.nn.Module):
    """The model for one client at a time."""

    offsets: Tensor
    pairs: Tensor

    def __init__(self, settings: Dlrm, inputs: ModelInputs) -> None:
        super().__init__()
        shape = shape_of(settings, inputs)
        (table,) = shape.tables
        columns = _Columns(settings, inputs)
        self.plain, self.histories, self.padding = columns.plain, columns.histories, columns.padding
        self.embedding = torch.nn.Embedding(table.rows, table.dim)
        self.bottom = layers_of(shape.parameters, "bottom.")
        self.attention = torch.nn.ModuleList(Attention(settings.embedding_dim) for _ in columns.histories)
        self.top = layers_of(shape.parameters, "top.")
        self.output = layers_of(shape.parameters, "output.")[0]
        self.register_buffer("offsets", torch.tensor(table.offsets), persistent=False)
        self.register_buffer("pairs", torch.tensor(columns.pairs), persistent=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """[B, num_outputs] from x [B, …] and codes c [B, G]."""
        dense, found = x.flatten(1), self.embedding(c + self.offsets)
        for layer in self.bottom:
            dense = layer(dense).relu()
        vectors: Sequence[Tensor] = [dense.unsqueeze(1), found[:, self.plain]]
        for unit, (lead, columns), padding in zip(self.attention, self.histories, self.padding, strict=True):
            is_real = c[:, list(columns)] != padding
            vectors = [*vectors, unit(found[:, lead], found[:, list(columns)], is_real).unsqueeze(1)]
        joined = torch.cat(list(vectors), 1)
        dots = torch.bmm(joined, joined.transpose(1, 2)).flatten(1)
        top = torch.cat([dense, dots.index_select(1, self.pairs)], 1)
        for layer in self.top:
            top = layer(top).relu()
        logits: Tensor = self.output(top)
        return logits
