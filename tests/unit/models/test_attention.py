"""Attention over a history: by hand, blind to padding and to order, and never moving the padding's row."""

from __future__ import annotations

import numpy as np
import torch

from atoll.models import Dlrm, LocalRows, ModelInputs, build_model, init_version
from atoll.models.attention import Attention

#: an item with three items before it, and another column
INPUTS = ModelInputs("binary", 1, (2,), (6, 6, 6, 6, 3), 0, (0, 0, 0, 0, 4))
NOTHING = 5
SETTINGS = Dlrm(4, (4,), (8,), history=True)


def logits_of(codes: list[list[int]], padding: float | None = None) -> torch.Tensor:
    model, version = build_model(SETTINGS, INPUTS), init_version(SETTINGS, INPUTS, 7)
    params, begin = {}, 0
    for parameter in model.shape.parameters:
        params[parameter.name] = torch.tensor(version.dense[begin : begin + parameter.size]).view(1, *parameter.shape)
        begin += parameter.size
    values, c = torch.tensor(version.tables[0]), torch.tensor([codes])
    if padding is not None:
        values[NOTHING] = padding
    x = torch.full((1, len(codes), 2), 0.5)
    return model.logits(params, LocalRows(values, c + torch.tensor(model.shape.tables[0].offsets)), {"x": x, "c": c})


def test_pooling_by_hand() -> None:
    unit = Attention(3)
    target, items = torch.randn(1, 3), torch.randn(1, 2, 3)
    found = unit(target, items, torch.tensor([[True, False]]))
    item = items[0, 0]
    hidden = torch.relu(unit.hidden.weight @ torch.cat([item, target[0], item * target[0]]) + unit.hidden.bias)
    want = (unit.output.weight @ hidden + unit.output.bias) * item
    torch.testing.assert_close(found[0], want)


def test_padding_does_not_speak() -> None:
    codes = [[1, 2, NOTHING, NOTHING, 0], [1, NOTHING, NOTHING, NOTHING, 2]]
    assert torch.equal(logits_of(codes), logits_of(codes, padding=3.0))
    assert not torch.equal(logits_of([[1, 2, 3, 4, 0]]), logits_of([[1, 2, 3, NOTHING, 0]]))


def test_the_order_of_a_history_does_not_matter_and_the_target_does() -> None:
    torch.testing.assert_close(logits_of([[1, 2, 3, NOTHING, 0]]), logits_of([[1, 3, NOTHING, 2, 0]]))
    assert (logits_of([[1, 2, 3, 4, 0]]) - logits_of([[0, 2, 3, 4, 0]])).abs().max() > 1e-4


def test_the_row_of_the_padding_never_moves() -> None:
    model, version = build_model(SETTINGS, INPUTS), init_version(SETTINGS, INPUTS, 7)
    assert model.reads_codes
    params, begin = {}, 0
    for parameter in model.shape.parameters:
        params[parameter.name] = torch.tensor(version.dense[begin : begin + parameter.size]).view(1, *parameter.shape)
        begin += parameter.size
    c = torch.tensor([[[1, 2, NOTHING, NOTHING, 0], [3, NOTHING, 4, NOTHING, 1]]])
    rows = LocalRows(torch.tensor(version.tables[0]), c + torch.tensor(model.shape.tables[0].offsets))
    batch = {"x": torch.ones(1, 2, 2), "c": c, "y": torch.tensor([[0, 1]])}
    found = model.gradients(params, rows, batch, torch.full((1, 2), 0.5)).rows
    moved = np.flatnonzero(found.abs().sum(1).numpy())
    assert moved.tolist() == [1, 2, 3, 4, 6, 7]
