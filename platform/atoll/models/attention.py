"""Attention of a target item to the items that came before it (Zhou et al. 2018, deep interest network).

weight of an item = output(ReLU(hidden([item, target, item · target]))), 0 for padding; pooled = Σ weight · item.
Weights are not normalised, so that the pooled vector also says how strong the interest is.

Shape legend: L lanes, B local batch, G categorical columns, H columns of the history, D width of all vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atoll.models.chains import relu_backward
from atoll.models.lanes import Params, selection

__all__ = ["Attention", "AttentionLanes", "Pooling"]


class AttentionLanes:
    """One history: where its weights and columns are.

    Args:
        name: prefix of its parameters.
        target: column of the target item.
        columns: of the items before it, which share the target's table.
        padding: code that stands where there is no item.
    """

    def __init__(self, name: str, target: int, columns: tuple[int, ...], padding: int) -> None:
        self.target, self.columns, self.padding = target, selection(columns), padding
        self.names = [f"{name}.{part}" for part in ("hidden.weight", "hidden.bias", "output.weight", "output.bias")]

    def forward(self, params: Params, found: Tensor, codes: Tensor) -> Pooling:
        """Pools the history of every example.

        Args:
            params: name → [L, *shape].
            found: embeddings of all columns, [L, B, G, D].
            codes: [L, B, G].
        """
        return Pooling(self, params, found, codes)


class Pooling:
    """One forward pass: `pooled` is [L, B, D]."""

    def __init__(self, unit: AttentionLanes, params: Params, found: Tensor, codes: Tensor) -> None:
        self._unit, (self._weight, bias, self._out, out_bias) = unit, (params[name] for name in unit.names)
        self._target = found[:, :, unit.target]
        self._items = found[:, :, unit.columns]
        lanes, size, self._length, dim = self._items.shape
        self._is_real = (codes[:, :, unit.columns] != unit.padding).to(found.dtype)
        self._product = self._items * self._target.unsqueeze(2)
        by_item, by_target, by_product = (part.transpose(1, 2) for part in self._weight.chunk(3, 2))
        wide = (lanes, size * self._length, dim)
        # what the target adds is the same for all items of an example
        common = torch.baddbmm(bias.unsqueeze(1), self._target, by_target)
        hidden = torch.bmm(self._items.reshape(wide), by_item) + torch.bmm(self._product.reshape(wide), by_product)
        self._hidden = (hidden.view(lanes, size, self._length, dim) + common.unsqueeze(2)).relu()
        raw = torch.baddbmm(out_bias.unsqueeze(1), self._hidden.reshape(wide), self._out.transpose(1, 2))
        self._share = raw.view(lanes, size, self._length) * self._is_real
        self.pooled = (self._share.unsqueeze(3) * self._items).sum(2)

    def backward(self, back: Tensor, by_column: Tensor) -> list[Tensor]:
        """Gradients of the unit's parameters, in order; adds those of target and items to `by_column`.

        Args:
            back: gradient by `pooled`, [L, B, D].
            by_column: gradient by the embeddings of all columns, [L, B, G, D]; changed in place.
        """
        lanes, size, dim = back.shape
        wide = (lanes, size * self._length, dim)
        by_item, by_target, by_product = self._weight.chunk(3, 2)
        back = back.unsqueeze(2)
        share = ((back * self._items).sum(3) * self._is_real).reshape(lanes, -1, 1)
        out = torch.bmm(share.transpose(1, 2), self._hidden.reshape(wide))
        hidden = relu_backward(torch.bmm(share, self._out), self._hidden.reshape(wide))
        common = hidden.view(lanes, size, self._length, dim).sum(2)
        turned = hidden.transpose(1, 2)
        weight = torch.cat(
            [
                torch.bmm(turned, self._items.reshape(wide)),
                torch.bmm(common.transpose(1, 2), self._target),
                torch.bmm(turned, self._product.reshape(wide)),
            ],
            2,
        )
        product = torch.bmm(hidden, by_product).view(lanes, size, self._length, dim)
        items = torch.bmm(hidden, by_item).view_as(product) + product * self._target.unsqueeze(2)
        by_column[:, :, self._unit.columns] += items + self._share.unsqueeze(3) * back
        by_column[:, :, self._unit.target] += torch.bmm(common, by_target) + (product * self._items).sum(2)
        return [weight, common.sum(1), out, share.sum(1)]


class Attention(torch.nn.Module):
    """The unit as an ordinary module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden, self.output = torch.nn.Linear(3 * dim, dim), torch.nn.Linear(dim, 1)

    def forward(self, target: Tensor, items: Tensor, is_real: Tensor) -> Tensor:
        """[B, D] from target [B, D], items [B, H, D] and whether each is one [B, H]."""
        other = target.unsqueeze(1).expand_as(items)
        raw = self.output(self.hidden(torch.cat([items, other, items * other], 2)).relu())
        pooled: Tensor = (raw * is_real.unsqueeze(2) * items).sum(1)
        return pooled
