"""Convolutional network with GroupNorm (batch statistics would leak between clients' batches and versions)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from atoll.models.lanes import Gradients, LocalRows, Params, autograd_gradients, lane_by_lane
from atoll.models.shapes import Cnn, ModelInputs, shape_of

__all__ = ["CnnLanes"]


def _groups(channels: int) -> int:
    """Groups of eight channels, or one group where that does not divide."""
    return channels // 8 if channels % 8 == 0 else 1


def _block(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    x = torch.nn.functional.group_norm(x, _groups(weight.shape[0]), scale, shift)
    return torch.nn.functional.max_pool2d(x.relu(), 2)


class CnnLanes:
    """Lane form of `Cnn`. Convolutions run one lane at a time: grouped or unfolded ones are slower on CPUs."""

    def __init__(self, settings: Cnn, inputs: ModelInputs) -> None:
        self.shape, self.reads_codes = shape_of(settings, inputs), False
        self._settings, self._inputs = settings, inputs

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs]."""
        del rows
        x = batch["x"]
        if len(self._inputs.x_shape) == 2:
            x = x.unsqueeze(2)
        names = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
        # unbind, not [lane]: its backward stacks the lanes once, where each [lane] fills a tensor of all lanes' size.
        weights = [
            [params[f"blocks.{index}.{name}"].unbind() for name in names]
            for index in range(len(self._settings.channels))
        ]
        lanes = []
        for lane, value in enumerate(x.unbind()):
            for block in weights:
                value = _block(value, *(weight[lane] for weight in block))
            lanes.append(value.flatten(1))
        weight, bias = params["output.weight"], params["output.bias"]
        return torch.baddbmm(bias.unsqueeze(1), torch.stack(lanes), weight.transpose(1, 2))

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By autograd; on CPUs one lane at a time."""
        if share.is_cuda:
            return autograd_gradients(self, params, rows, batch, share)
        return lane_by_lane(self, params, batch, share)

    def module(self) -> torch.nn.Module:
        """An ordinary module."""
        return CnnModule(self._settings, self._inputs)


class _Block(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = torch.nn.GroupNorm(_groups(outputs), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)


class CnnModule(torch.nn.Module):
    """The network for one client at a time."""

    def __init__(self, settings: Cnn, inputs: ModelInputs) -> None:
        super().__init__()
        shape = shape_of(settings, inputs)
        first = 1 if len(inputs.x_shape) == 2 else inputs.x_shape[0]
        widths = (first, *settings.channels)
        self.blocks = torch.nn.ModuleList(_Block(a, b) for a, b in pairwise(widths))
        out, width = shape.parameters[-2].shape
        self.output = torch.nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, num_outputs] from images [B, height, width] or [B, channels, height, width]."""
        if x.ndim == 3:
            x = x.unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.output(x.flatten(1))
        return found
