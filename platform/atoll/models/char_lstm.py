"""Character LSTM: the next character from those before it (the LEAF Shakespeare task)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.models.lanes import Gradients, LocalRows, Params, autograd_gradients, lane_by_lane
from atoll.models.shapes import CharLstm, ModelInputs, shape_of

__all__ = ["CharLstmLanes"]


class CharLstmLanes:
    """Lane form of `CharLstm`; gates in torch.nn.LSTM's order.

    On CPUs torch's own LSTM kernel, lane by lane: twice as fast as one batched product per time step for all lanes,
    which is what other devices do.
    """

    def __init__(self, settings: CharLstm, inputs: ModelInputs) -> None:
        self.shape, self.reads_codes = shape_of(settings, inputs), False
        self._settings, self._inputs = settings, inputs
        self._lstm = torch.nn.LSTM(
            settings.embedding, settings.hidden, settings.layers, batch_first=True, device="meta"
        )

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs] from tokens [L, B, T]."""
        del rows
        tokens = batch["x"]
        table = params["embedding.weight"]
        # One flat table for all lanes: lane l's codes are shifted by l · vocabulary.
        shift = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1) * table.shape[1]
        x = torch.nn.functional.embedding(tokens + shift, table.flatten(0, 1))
        last = self._together(params, x) if x.is_cuda else self._lane_by_lane(params, x)
        return torch.baddbmm(params["output.bias"].unsqueeze(1), last, params["output.weight"].transpose(1, 2))

    def _lane_by_lane(self, params: Params, x: Tensor) -> Tensor:
        """Last outputs [L, B, hidden] from embedded tokens [L, B, T, E]."""
        lanes = []
        for lane, value in enumerate(x.unbind()):
            weights = {name: params[f"lstm.{name}"][lane] for name, _ in self._lstm.named_parameters()}
            outputs, _ = torch.func.functional_call(self._lstm, weights, (value,))
            lanes.append(outputs[:, -1])
        return torch.stack(lanes)

    def _together(self, params: Params, x: Tensor) -> Tensor:
        """The same, one batched product per time step."""
        for layer in range(self._settings.layers):
            x = self._layer(params, layer, x)
        return x[:, :, -1]

    def _layer(self, params: Params, layer: int, x: Tensor) -> Tensor:
        lanes, batch_size, length, _ = x.shape
        bias = (params[f"lstm.bias_ih_l{layer}"] + params[f"lstm.bias_hh_l{layer}"]).unsqueeze(1)
        from_input = torch.baddbmm(bias, x.flatten(1, 2), params[f"lstm.weight_ih_l{layer}"].transpose(1, 2))
        inputs = from_input.view(lanes, batch_size, length, -1).unbind(2)
        recurrent = params[f"lstm.weight_hh_l{layer}"].transpose(1, 2)
        hidden = x.new_zeros(lanes, batch_size, self._settings.hidden)
        cell = hidden
        outputs = []
        for step in inputs:
            gate_in, gate_forget, candidate, gate_out = torch.baddbmm(step, hidden, recurrent).chunk(4, 2)
            cell = gate_forget.sigmoid() * cell + gate_in.sigmoid() * candidate.tanh()
            hidden = gate_out.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs, 2)

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By autograd; on CPUs one lane at a time."""
        if share.is_cuda:
            return autograd_gradients(self, params, rows, batch, share)
        return lane_by_lane(self, params, batch, share)

    def module(self) -> torch.nn.Module:
        """An ordinary module."""
        return CharLstmModule(self._settings, self._inputs)


class CharLstmModule(torch.nn.Module):
    """The network for one client at a time, on torch.nn.LSTM."""

    def __init__(self, settings: CharLstm, inputs: ModelInputs) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(inputs.vocabulary, settings.embedding)
        self.lstm = torch.nn.LSTM(settings.embedding, settings.hidden, settings.layers, batch_first=True)
        self.output = torch.nn.Linear(settings.hidden, inputs.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, num_outputs] from tokens [B, T]."""
        found, _ = self.lstm(self.embedding(x))
        last: Tensor = self.output(found[:, -1])
        return last
