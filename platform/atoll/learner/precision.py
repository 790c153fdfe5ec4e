"""Forward and backward in bfloat16, where local SGD asks for it: torch's autocast around the logits, nothing else.

Weights, losses, updates, norms and sums stay as they are. Which operations are rounded is torch's choice per device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.models import LaneModel, LocalRows
from atoll.models.lanes import Gradients, Params, autograd_gradients

__all__ = ["HalfLanes", "half"]


def half(device: torch.device) -> torch.autocast:
    """A context in which products and convolutions are made in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16)


class HalfLanes:
    """A lane model whose logits are computed in bfloat16; gradients by autograd, whatever the model does by hand.

    Args:
        model: in float32.
        device: that it runs on.
    """

    def __init__(self, model: LaneModel, device: torch.device) -> None:
        self.shape, self.reads_codes = model.shape, model.reads_codes
        self._model, self._device = model, device

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """float32 [L, B, num_outputs]."""
        with half(self._device):
            return self._model.logits(params, rows, batch).float()

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """In float32, by autograd."""
        return autograd_gradients(self, params, rows, batch, share)

    def module(self) -> torch.nn.Module:
        """The model's ordinary module, in float32."""
        return self._model.module()
