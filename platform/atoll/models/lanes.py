"""Models with a lane dimension: L clients' weights side by side, one forward and one backward for all of them.

Shape legend: L lanes, B local batch, G categorical columns, R table rows that the lanes' clients touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from atoll.models.shapes import ModelShape

__all__ = [
    "Gradients",
    "LaneModel",
    "LocalRows",
    "Params",
    "WithPenultimate",
    "autograd_gradients",
    "example_losses",
    "lane_by_lane",
    "losses_backward",
    "selection",
]

#: name → [L, *shape]
Params = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LocalRows:
    """Embedding rows of a block's clients: `values` [R, dim] in lane order, `index` [L, B, G] into them."""

    values: Tensor
    index: Tensor

    def lookup(self) -> Tensor:
        """[L, B, G, dim]."""
        return torch.nn.functional.embedding(self.index, self.values)

    def gradient(self, back: Tensor) -> Tensor:
        """Gradient by `values` [R, dim] from that by `lookup`: [L, B, G, dim], or anything that flattens to it."""
        found = torch.zeros_like(self.values)
        return found.index_add_(0, self.index.flatten(), back.reshape(-1, self.values.shape[1]))


@dataclass(frozen=True, slots=True)
class Gradients:
    """Result of one local step: loss [L], one gradient per parameter in the shape's order, rows [R, dim] or None."""

    loss: Tensor
    parameters: list[Tensor]
    rows: Tensor | None


class LaneModel(Protocol):
    """A model whose weights carry a leading lane dimension. Lanes never mix: row l of a result depends on lane l.

    Attributes:
        shape: names and shapes of the weights.
        reads_codes: whether it needs batch["c"] beside the rows.
    """

    shape: ModelShape
    reads_codes: bool

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs] from batch["x"] [L, B, …]; differentiable."""
        ...

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """Loss Σ_b share · loss per lane and its gradients; share [L, B] is 1/n on a lane's n real examples, else 0."""
        ...

    def module(self) -> torch.nn.Module:
        """The same model as an ordinary module without lanes; its parameter names are the shape's."""
        ...


@runtime_checkable
class WithPenultimate(Protocol):
    """A lane model that shows what its last linear layer reads."""

    def penultimate(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, H]: a vector per example of which the logits are a linear function; arguments as for `logits`."""
        ...


def example_losses(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Cross-entropy per example, [L, B]: from one logit for a binary task, else over the last dimension."""
    if task == "binary":
        score = logits[..., 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(score, labels.to(score.dtype), reduction="none")
    flat = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def losses_backward(logits: Tensor, labels: Tensor, share: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """(loss [L], its gradient by the logits [L, B, O]), by hand: loss = Σ_b share · `example_losses`."""
    if task == "binary":
        losses = example_losses(logits, labels, "binary")
        back = logits.sigmoid() - labels.unsqueeze(2)
    else:
        losses, back = _softmax_losses(logits, labels.unsqueeze(2))
    loss = (losses * share).sum(1)
    back *= share.unsqueeze(2)
    return loss, back


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


def selection(columns: Sequence[int]) -> slice | list[int]:
    """An index of these columns: a slice, which copies nothing, where they are neighbours in order."""
    whole = range(columns[0], columns[0] + len(columns))
    return slice(whole.start, whole.stop) if list(columns) == list(whole) else list(columns)


def autograd_gradients(
    model: LaneModel, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
) -> Gradients:
    """One backward pass for all lanes: since lanes are independent, the gradient of Σ loss is every lane's own."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    sources = list(leaves.values())
    local = None
    if rows is not None:
        local = LocalRows(rows.values.detach().requires_grad_(), rows.index)
        sources.append(local.values)
    with torch.enable_grad():
        losses = example_losses(model.logits(leaves, local, batch), batch["y"], model.shape.task)
        loss = (losses * share).sum(1)
        found = list(torch.autograd.grad(loss.sum(), sources))
    row_gradients = found.pop() if rows is not None else None
    return Gradients(loss.detach(), found, row_gradients)


def lane_by_lane(model: LaneModel, params: Params, batch: Mapping[str, Tensor], share: Tensor) -> Gradients:
    """`autograd_gradients` one lane at a time, for models without tables.

    On CPUs the faster way for large kernels: a lane's activations stay in the cache from forward to backward.
    """
    found = []
    for lane in range(share.shape[0]):
        here = slice(lane, lane + 1)
        weights = {name: value[here] for name, value in params.items()}
        examples = {name: value[here] for name, value in batch.items()}
        found.append(autograd_gradients(model, weights, None, examples, share[here]))
    columns = zip(*(one.parameters for one in found), strict=True)
    return Gradients(torch.cat([one.loss for one in found]), [torch.cat(column) for column in columns], None)
