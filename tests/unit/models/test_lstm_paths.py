"""The recurrence has two forms, one per device class; on one device they agree."""

from __future__ import annotations

import torch

from atoll.models.char_lstm import CharLstmLanes
from lane_kit import by_name


def test_both_forms_of_the_recurrence_agree() -> None:
    kind = by_name["char_lstm"]
    model = kind.model()
    assert isinstance(model, CharLstmLanes)
    versions = [torch.tensor(kind.version(number).dense) for number in range(3)]
    stacked, begin, params = torch.stack(versions), 0, {}
    for parameter in model.shape.parameters:
        part = stacked[:, begin : begin + parameter.size]
        params[parameter.name] = part.reshape(3, *parameter.shape).clone().requires_grad_()
        begin += parameter.size
    x = torch.linspace(-2, 2, 3 * 2 * 5 * 4).view(3, 2, 5, 4)
    names = [name for name in params if name.startswith("lstm.")]
    gradients = []
    for form in (model._together, model._lane_by_lane):
        out = form(params, x)
        gradients.append([out.detach(), *torch.autograd.grad(out.square().sum(), [params[name] for name in names])])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
