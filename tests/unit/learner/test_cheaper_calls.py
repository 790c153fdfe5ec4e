"""Cheaper calls give what torch's own give: same gradients, whatever a module does with its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from atoll.learner import ClientWork, LoopClient, single
from atoll.learner.cheaper_calls import CheaperCalls, pool_first
from atoll.models import Custom, ModelInputs
from lane_kit import SEED, Kind, block_of, gather_of, lane_deltas, learner_of

X = ModelInputs("multiclass", 3, (6,))
IMAGES = ModelInputs("multiclass", 3, (3, 8, 8))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))


def images() -> nn.Module:
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 20), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(20, 3, bias=False))


def frozen() -> nn.Module:
    module = plain()
    module[0].requires_grad_(False)
    return module


class Twice(nn.Module):
    """One weight in two calls of a layer and in a product of its own, another in a call by name."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.output = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.square(self.square(x).tanh()) + x @ self.square.weight
        return functional.linear(input=self.output.weight.mean() * x, weight=self.output.weight, bias=self.output.bias)


class Sequences(nn.Module):
    """Layers over more than two dimensions, attention, and slopes taken on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.heads = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.output = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            watched = x.clone().requires_grad_()
            (slopes,) = torch.autograd.grad(self.inside(watched.unsqueeze(2)).square().sum(), watched)
        x = self.inside((x + slopes.detach()).unsqueeze(2))
        return self.output(self.heads(x, x, x)[0].mean(1))


def kind_of(factory: str, inputs: ModelInputs = X) -> Kind:
    return Kind(factory, Custom(f"test_cheaper_calls:{factory}"), inputs, kernel="single")


MODULES = [kind_of("plain"), kind_of("images", IMAGES), kind_of("Twice"), kind_of("Sequences")]
WORKS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "everything": {"momentum": 0.5, "weight_decay": 0.05, "proximal_mu": 0.2, "short_batch_scaling": True, "epochs": 2},
}


@pytest.fixture
def _all_large(monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    monkeypatch.setattr(single, "_LARGE", 1)


@pytest.mark.usefixtures("_all_large")
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)
def test_large_weights_learn_what_a_plain_loop_teaches(kind: Kind, work: dict) -> None:
    sizes, local = [13, 8, 5], ClientWork(lr=0.1, batch_size=4, **work)
    start, block = kind.version(), block_of(sizes)
    loop = LoopClient(model=kind.model(), gather=gather_of(kind.inputs), work=local, seed=SEED)
    for lane, found in enumerate(lane_deltas(kind, learner_of(kind, local), block, {0: start})):
        want = loop.train(int(block.task_id[lane]), int(block.client_id[lane]), sizes[lane], start)
        assert np.abs(want.dense).max() > 1e-3
        np.testing.assert_allclose(found.dense, want.dense, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_all_large")
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)
def test_a_lane_has_the_same_bits_alone_and_behind_a_diverged_one(kind: Kind, momentum: float) -> None:
    local, block = ClientWork(lr=0.1, batch_size=4, momentum=momentum), block_of([9, 9, 6])
    learner = learner_of(kind, local, gather=gather_of(kind.inputs, nan_client=100))
    diverged, *others = lane_deltas(kind, learner, block, {0: kind.version()})
    assert not diverged.dense.any()
    for lane, found in enumerate(others, start=1):
        (alone,) = lane_deltas(kind, learner_of(kind, local), block.lane(lane), {0: kind.version()})
        np.testing.assert_array_equal(found.dense, alone.dense)


@pytest.mark.usefixtures("_all_large")
def test_a_frozen_weight_stays() -> None:
    kind = kind_of("frozen")
    (found,) = lane_deltas(kind, learner_of(kind, ClientWork(lr=0.1, batch_size=4)), block_of([9]), {0: kind.version()})
    assert not found.dense[:63].any()
    assert found.dense[63:].all()


def test_a_gradient_of_nothing_clears_its_place() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    calls, place = CheaperCalls([weight]), torch.full((2, 3), torch.nan)
    calls.add_gradient(weight, place, beta=0.0)
    assert not place.any()


@pytest.mark.parametrize("pool", [functional.max_pool2d, torch.max_pool2d, nn.MaxPool2d(2)])
def test_slopes_of_pooled_images_arrive_with_their_channels_last(pool) -> None:
    found = []
    for is_cheaper in (True, False):
        torch.manual_seed(3)
        x = torch.randn(2, 5, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
        seen = []
        with CheaperCalls([]) if is_cheaper else torch.enable_grad():
            pooled = pool(x) if isinstance(pool, nn.Module) else pool(x, 2)
        pooled.register_hook(lambda slopes, to=seen: to.append(slopes.is_contiguous(memory_format=torch.channels_last)))
        (pooled.flatten(1) @ torch.randn(45, 1)).sum().backward()
        assert seen == [is_cheaper]
        found.append(x.grad)
    assert torch.equal(*found)


def test_relu_and_pooling_change_places_without_changing_a_bit() -> None:
    torch.manual_seed(5)
    before = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten())
    torch.manual_seed(5)
    after = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten())
    pool_first(after)
    assert [type(part) for part in after[:3]] == [nn.Conv2d, nn.MaxPool2d, nn.ReLU]
    assert list(after.state_dict()) == list(before.state_dict())
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(before(x), after(x))
    for one, other in zip(*(slopes_of(module, x) for module in (before, after)), strict=True):
        assert torch.equal(one, other)
    x[3] = torch.nan
    assert torch.equal(before(x).nan_to_num(7.0), after(x).nan_to_num(7.0))


def slopes_of(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(module(x).square().sum(), list(module.parameters()))


def test_relu_and_pooling_that_are_looked_at_stay() -> None:
    hooked = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    hooked[0].register_forward_hook(lambda *_: None)
    places = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    for module in (hooked, places):
        pool_first(module)
        assert isinstance(module[0], nn.ReLU)
