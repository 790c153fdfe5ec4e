"""One client after another through an ordinary torch module whose weights lie flat in one tensor.

For models whose large kernels gain nothing from lanes (convolutions, recurrent cells), and for modules that draw
random numbers (dropout), which this learner keys by the task.

Shape legend: L lanes, P dense parameters, S server steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll import rng
from atoll.learner.cheaper_calls import CheaperCalls, pool_first
from atoll.learner.devices import make_repeatable
from atoll.learner.kernels import add_units, square_norm
from atoll.learner.partials import LOSS_BOUND, LaneFacts, partials_of
from atoll.learner.precision import half
from atoll.learner.resident import ResidentVersions, on_device
from atoll.learner.work import ClientWork, Gather, example_order
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.models import LaneModel
from atoll.models.custom import draws
from atoll.plan import Grid

__all__ = ["SingleLearner"]

#: elements from which on a weight is left out of the flat gradient: where it no longer fits the second-level cache,
#: writing, adding and reading it again costs more than a few calls
_LARGE = 1 << 19


class SingleLearner:
    """Trains blocks one lane at a time.

    Guarantees: as CompiledLearner: a lane's delta and its share of the exact sum are functions of that lane and its
    start version alone, dropout included; bits are equal per software build and device class, with one thread.

    Args:
        model: lane form of the model, without tables; its ordinary module is trained, in training mode.
        gather: training examples of a block.
        work: local SGD.
        grid: the plan's exact grid.
        seed: of the run; keys the example order and whatever the module draws.
        device: torch device.
    """

    def __init__(
        self, *, model: LaneModel, gather: Gather, work: ClientWork, grid: Grid, seed: int, device: str = "cpu"
    ) -> None:
        self._gather, self._work, self._grid, self._seed = gather, work, grid, seed
        self._task, self._device = model.shape.task, torch.device(device)
        make_repeatable(self._device)
        self._resident = ResidentVersions(self._device)
        self._module = model.module().to(self._device).train()
        pool_first(self._module)
        self._draws = draws(self._module)
        size = model.shape.dense_size
        self._weights = torch.zeros(size, device=self._device)
        self._gradient, self._velocity = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        #: large weights, each with its place in the flat gradient; and stretches of all others with theirs
        self._large: list[tuple[Tensor, Tensor]] = []
        self._others: list[tuple[Tensor, Tensor]] = []
        self._flatten(model)
        self._calls = CheaperCalls(weight for weight, _ in self._large)
        #: whether the calls are worth looking at: small modules would pay for it
        self._is_watched = bool(self._large) or any(len(one.shape) == 4 for one in model.shape.parameters)
        #: whether images may come with their channels last; None: not tried yet
        self._takes_channels_last: bool | None = None

    def _flatten(self, model: LaneModel) -> None:
        """Makes every parameter a view of the flat weights, and every gradient but those of large matrices."""
        parameters, begin, since = dict(self._module.named_parameters()), 0, 0
        for shape in model.shape.parameters:
            end = begin + shape.size
            parameter = parameters[shape.name]
            parameter.data = self._weights[begin:end].view(shape.shape)
            gradient = self._gradient[begin:end].view(shape.shape)
            if shape.size >= _LARGE:
                self._large.append((parameter, gradient))
                self._others.append((self._weights[since:begin], self._gradient[since:begin]))
                since = end
            else:
                parameter.grad = gradient
            begin = end
        self._others.append((self._weights[since:], self._gradient[since:]))

    def train(self, block: Block, versions: Mapping[int, ModelVersion]) -> BlockResult:
        """Trains every lane of `block` from its start version; one PartialSum per server step, steps ascending."""
        width = int(block.num_examples[0])
        examples = {
            name: on_device(value, self._device)
            for name, value in self._gather(
                block.client_id, np.broadcast_to(np.arange(width), (block.num_lanes, width))
            ).items()
        }
        orders = [
            example_order(self._seed, block.task_id, block.num_examples, epoch) for epoch in range(self._work.epochs)
        ]
        starts = {
            version: self._resident.dense(versions[version]) for version in np.unique(block.start_version).tolist()
        }
        self._resident.trim()
        befores = {version: start.cpu().numpy() for version, start in starts.items()}
        steps, slots = np.unique(block.step, return_inverse=True)
        sums = np.zeros((len(steps), len(self._weights)), dtype=np.int64)
        loss, norm = np.empty(block.num_lanes), np.empty(block.num_lanes)
        local_steps, is_healthy = np.empty(block.num_lanes, dtype=np.int64), np.empty(block.num_lanes, dtype=np.bool_)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self._draws):
            for lane in range(block.num_lanes):
                version = int(block.start_version[lane])
                start = starts[version]
                of_lane = {name: value[lane] for name, value in examples.items()}
                order = [found[lane, : block.num_examples[lane]] for found in orders]
                rate = self._work.lr * self._work.schedule.factor(version)
                loss[lane], local_steps[lane] = self._client(start, of_lane, order, rate, int(block.task_id[lane]))
                before, after = befores[version], self._weights.cpu().numpy()
                norm[lane] = np.sqrt(square_norm(before, after))
                is_healthy[lane] = norm[lane] <= self._grid.delta_bound and abs(loss[lane]) <= LOSS_BOUND
                if is_healthy[lane]:
                    scale = float(block.weight[lane]) * self._grid.scale
                    add_units(before, after, scale, sums[slots[lane]])
        facts = LaneFacts(loss, norm, is_healthy, local_steps, self._work.epochs * block.num_examples)
        return BlockResult((block.block_id,), partials_of(block, steps, sums, [()] * len(steps), facts))

    def train_all(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
        """`train` of each."""
        return [self.train(block, versions) for block in blocks]

    def _client(
        self,
        start: Tensor,
        examples: Mapping[str, Tensor],
        orders: Sequence[npt.NDArray[np.int64]],
        rate: float,
        task_id: int,
    ) -> tuple[float, int]:
        """Local SGD of one client, on the flat weights; (mean loss over its local steps, steps)."""
        work, losses = self._work, []
        self._weights.copy_(start)
        if work.momentum:
            self._velocity.zero_()
        for epoch, order in enumerate(orders):
            places = torch.from_numpy(order).to(self._device)
            for begin in range(0, len(order), work.batch_size):
                chosen = places[begin : begin + work.batch_size]
                if self._draws:
                    torch.random.manual_seed(rng.key(self._seed, "dropout", task_id, epoch, begin) % 2**63)
                losses.append(self._loss({name: value[chosen] for name, value in examples.items()}))
                scaling = len(chosen) / work.batch_size if work.short_batch_scaling else 1.0
                self._descend(start, rate * scaling)
        return float(torch.stack(losses).double().mean()), len(losses)

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of a batch; leaves its gradient in the flat tensor, and with the calls for large matrices."""
        for _, gradient in self._others:
            gradient.zero_()
        inputs = [self._laid_out(batch[name]) for name in ("x", "c") if name in batch]
        if self._work.precision == "float32":
            logits = self._logits(inputs)
        else:
            with half(self._device):
                logits = self._logits(inputs).float()
        self._calls.forget()
        if self._task == "binary":
            score = logits.view(-1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(score, batch["y"].to(score.dtype))
        else:
            loss = torch.nn.functional.cross_entropy(logits, batch["y"])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _logits(self, inputs: Sequence[Tensor]) -> Tensor:
        with self._calls if self._is_watched else nullcontext():
            logits: Tensor = self._module(*inputs)
        return logits

    def _laid_out(self, x: Tensor) -> Tensor:
        """Images with their channels last, which convolutions on CPUs prefer, where the module takes them so."""
        if x.ndim != 4 or self._device.type != "cpu":
            return x
        laid_out = x.contiguous(memory_format=torch.channels_last)
        if self._takes_channels_last is None:
            self._module.eval()
            try:
                with torch.no_grad():
                    self._module(laid_out)
                self._takes_channels_last = True
            except RuntimeError:  # a module may ask for a view that only the ordinary layout has
                self._takes_channels_last = False
            self._module.train()
        return laid_out if self._takes_channels_last else x

    def _descend(self, start: Tensor, rate: float) -> None:
        """One step of SGD with weight decay, the proximal pull and momentum, on the flat tensors."""
        work, gradient = self._work, self._gradient
        if not (work.weight_decay or work.proximal_mu or work.momentum):
            for weights, slopes in self._others:
                weights.add_(slopes, alpha=-rate)
            for weight, _ in self._large:
                self._calls.add_gradient(weight, weight.data, alpha=-rate)
            return
        for weight, place in self._large:
            self._calls.add_gradient(weight, place, beta=0.0)
        if work.weight_decay:
            gradient.add_(self._weights, alpha=work.weight_decay)
        if work.proximal_mu:
            gradient.add_(self._weights - start, alpha=work.proximal_mu)
        if work.momentum:
            gradient = self._velocity.mul_(work.momentum).add_(gradient)
        self._weights.add_(gradient, alpha=-rate)
