"""Linear layers with ReLU between them, lanes first: forward, and the backward pass by hand.

Shape legend: L lanes, B local batch, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atoll.models.lanes import Params
from atoll.models.shapes import ParameterShape

__all__ = ["backward_chain", "forward_chain", "layers_of", "linear", "relu_backward"]


def forward_chain(x: Tensor, params: Params, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """(output of the last layer [L, B, O], without ReLU; input of each layer [L, B, I]).

    Args:
        x: [L, B, I].
        params: every layer's weight [L, O, I] and bias [L, O].
        names: weight and bias of each layer, in order.
    """
    layers = [x]
    for index in range(0, len(names), 2):
        weight, bias = params[names[index]], params[names[index + 1]]
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        if index + 2 < len(names):
            x = x.relu()
            layers.append(x)
    return x, layers


def backward_chain(
    back: Tensor, layers: Sequence[Tensor], params: Params, names: Sequence[str], *, to_input: bool
) -> tuple[list[Tensor], Tensor]:
    """(a gradient per name, gradient by the chain's input; the latter is meaningless without `to_input`).

    Args:
        back: gradient by the chain's output, [L, B, O].
        layers: from `forward_chain`.
        params: as given to it.
        names: as given to it.
        to_input: whether anything before the chain learns.
    """
    found: list[Tensor] = []
    for index in range(len(layers) - 1, -1, -1):
        found += [back.sum(1), torch.bmm(back.transpose(1, 2), layers[index])]
        if index or to_input:
            back = torch.bmm(back, params[names[2 * index]])
        if index:
            back = relu_backward(back, layers[index])
    found.reverse()
    return found, back


def relu_backward(back: Tensor, output: Tensor) -> Tensor:
    """Gradient by the input of a ReLU, from that by its output and the output itself; same shapes."""
    found: Tensor = torch.ops.aten.threshold_backward(back, output, 0)
    return found


def linear(num_outputs: int, num_inputs: int) -> torch.nn.Linear:
    """An ordinary layer, also for no inputs at all, which gives its bias."""
    if num_inputs:
        return torch.nn.Linear(num_inputs, num_outputs)
    # torch warns about drawing a weight without elements, so it is put in afterwards
    layer = torch.nn.Linear(1, num_outputs)
    layer.weight, layer.in_features = torch.nn.Parameter(torch.empty(num_outputs, 0)), 0
    return layer


def layers_of(parameters: Sequence[ParameterShape], prefix: str) -> torch.nn.ModuleList:
    """Ordinary layers, one per weight under `prefix` (`hidden.` is hidden.0.weight, hidden.1.weight, …), in order."""
    weights = [p for p in parameters if p.name.startswith(prefix) and p.name.endswith(".weight")]
    return torch.nn.ModuleList(linear(*p.shape) for p in weights)
