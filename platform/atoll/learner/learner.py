"""The learner: a block of lanes → client deltas → exact partial sums. No Python work per client.

Shape legend: L lanes of the block, M lanes that still have a batch (a prefix), B local batch, P dense parameters,
R embedding rows touched, N most examples of a lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.learner.devices import make_repeatable
from atoll.learner.precision import HalfLanes
from atoll.learner.resident import ResidentVersions, on_device
from atoll.learner.rows import TouchedRows, touched_rows
from atoll.learner.sums import partial_sums
from atoll.learner.work import ClientWork, Gather, example_order
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.models import LaneModel, LocalRows
from atoll.plan import Grid

__all__ = ["Learner"]


class Learner:
    """Trains blocks.

    Guarantees: the result is a function of the block, its start versions and the constructor's arguments; blocks
    trained before, by whom and where, cannot reach it. Bits are equal per software build and device class, with one
    thread. Lanes are sorted longest first; local step j computes the lanes that still have a batch and no others, so
    ragged clients cost what they hold. A block is not padded to W: its membership is in the plan.

    Args:
        model: lane form of the model.
        gather: training examples of a block.
        work: local SGD.
        grid: the plan's exact grid.
        seed: of the run; keys the example order.
        device: torch device.
    """

    def __init__(
        self, *, model: LaneModel, gather: Gather, work: ClientWork, grid: Grid, seed: int, device: str = "cpu"
    ) -> None:
        self._gather, self._work, self._grid = gather, work, grid
        self._seed, self._device = seed, torch.device(device)
        self._model = model if work.precision == "float32" else HalfLanes(model, self._device)
        make_repeatable(self._device)
        self._resident = ResidentVersions(self._device)

    def train(self, block: Block, versions: Mapping[int, ModelVersion]) -> BlockResult:
        """Trains every lane of `block` from its start version.

        Args:
            block: lanes, longest first.
            versions: holds every start version of the block.

        Returns:
            One PartialSum per server step that the block contributes to, steps ascending.
        """
        with torch.inference_mode(False):
            run = _BlockRun(block, versions, self._model, self._gather, self._resident, self._device)
            for epoch in range(self._work.epochs):
                self._epoch(run, epoch)
        deltas, rows = run.deltas()
        partials = partial_sums(block, deltas, rows, run.mean_loss(), run.steps, self._grid, self._work.epochs)
        return BlockResult((block.block_id,), partials)

    def train_all(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
        """`train` of each."""
        return [self.train(block, versions) for block in blocks]

    def _epoch(self, run: _BlockRun, epoch: int) -> None:
        size = self._work.batch_size
        order = example_order(self._seed, run.block.task_id, run.block.num_examples, epoch)
        # A padding position may name any example: its share of the loss is zero.
        flat = np.minimum(order, run.width - 1) + run.lane_begin[:, None]
        # Once an epoch, not in every local step: a GPU works through these while the host is ahead of it.
        chosen = on_device(flat, self._device)
        share = on_device(_shares(run.block.num_examples, size, flat.shape[1]), self._device)
        batches = -(-run.block.num_examples // size)
        for step in range(int(batches[0])):
            active = int(np.searchsorted(-batches, -step, side="left"))
            count = np.minimum(run.block.num_examples[:active] - step * size, size)
            batch = slice(step * size, step * size + int(count.max()))
            run.step(active, chosen[:active, batch], share[:active, batch], count, self._work)


def _shares(num_examples: npt.NDArray[np.int64], size: int, width: int) -> npt.NDArray[np.float32]:
    """1/n on the n real examples of each batch of a lane, else 0: float32 [L, width], batches behind one another."""
    position = np.arange(width)
    count = np.clip(num_examples[:, None] - position // size * size, 1, size)
    return np.where(position < num_examples[:, None], 1.0 / count, 0.0).astype(np.float32)


class _BlockRun:
    """The moving parts of one block: stacked weights, momentum, examples."""

    def __init__(
        self,
        block: Block,
        versions: Mapping[int, ModelVersion],
        model: LaneModel,
        gather: Gather,
        resident: ResidentVersions,
        device: torch.device,
    ) -> None:
        self.block, self._model, self._device = block, model, device
        self.width = int(block.num_examples[0])
        positions = np.broadcast_to(np.arange(self.width), (block.num_lanes, self.width))
        examples = gather(block.client_id, positions)
        self.lane_begin = np.arange(block.num_lanes) * self.width
        self.touched: TouchedRows | None = None
        self._row_index: Tensor | None = None
        for position, table in enumerate(model.shape.tables):
            self.touched = touched_rows(
                table, position, examples["c"], block.num_examples, block.start_version, versions
            )
            self._row_index = torch.from_numpy(self.touched.index).to(device).flatten(0, 1)
            self.rows = torch.from_numpy(self.touched.start).to(device)
            self._rows_start = self.rows.clone()
        self._examples = {
            name: on_device(value, device).flatten(0, 1)
            for name, value in examples.items()
            if name != "c" or model.reads_codes
        }
        self.params = self._stack(versions, resident)
        self._rates: npt.NDArray[np.float64] | None = None
        self._velocity: list[Tensor] | None = None
        self._rows_velocity: Tensor | None = None
        self._loss = torch.zeros(block.num_lanes, dtype=torch.float64, device=device)
        self.steps = np.zeros(block.num_lanes, dtype=np.int64)

    def _stack(self, versions: Mapping[int, ModelVersion], resident: ResidentVersions) -> list[Tensor]:
        """One [L, *shape] tensor per parameter, each lane from its start version."""
        unique, where = np.unique(self.block.start_version, return_inverse=True)
        flat = resident.stacked([versions[int(version)] for version in unique])
        lanes, begin = len(where), 0
        #: the start versions once each, [V, *shape] per parameter; which of them each lane starts from
        self._distinct: list[Tensor] = []
        self._which = torch.from_numpy(where).to(self._device)
        for parameter in self._model.shape.parameters:
            part = flat[:, begin : begin + parameter.size]
            self._distinct.append(part.reshape(len(unique), *parameter.shape))
            begin += parameter.size
        # Cloned where there is nothing to stack: versions are never written to, and every tensor lies on its own.
        return [self._starts(index, lanes).clone() for index in range(len(self._distinct))]

    def _starts(self, index: int, active: int) -> Tensor:
        """Start weights of parameter `index`, [M, *shape]; a view of one row where all lanes start alike."""
        distinct = self._distinct[index]
        if len(distinct) == 1:
            return distinct.expand(active, *distinct.shape[1:])
        return distinct[self._which[:active]]

    def step(self, active: int, chosen: Tensor, share: Tensor, count: npt.NDArray[np.int64], work: ClientWork) -> None:
        """One local step of the first `active` lanes."""
        flat = chosen.flatten()
        batch = {
            name: value.index_select(0, flat).view(*chosen.shape, *value.shape[1:])
            for name, value in self._examples.items()
        }
        views = [value[:active] for value in self.params]
        params = dict(zip((p.name for p in self._model.shape.parameters), views, strict=True))
        local = None
        num_rows = 0
        if self.touched is not None and self._row_index is not None:
            num_rows = int(self.touched.lane_offsets[active])
            local = LocalRows(self.rows[:num_rows], self._row_index[chosen])
        found = self._model.gradients(params, local, batch, share)
        self.steps[:active] += 1
        with torch.no_grad():
            self._loss[:active] += found.loss
            lr = self._lane_rates(active, count, work)
            self._descend(views, found.parameters, lr, work, active)
            if found.rows is not None:
                self._descend_rows(found.rows, num_rows, active, lr, work)

    def _lane_rates(self, active: int, count: npt.NDArray[np.int64], work: ClientWork) -> float | Tensor:
        """One rate for all lanes where they agree, else float32 [M]."""
        if self._rates is None:
            unique, where = np.unique(self.block.start_version, return_inverse=True)
            self._rates = np.array([work.lr * work.schedule.factor(int(version)) for version in unique])[where]
        rates = self._rates[:active]
        if not work.short_batch_scaling and (rates == rates[0]).all():
            return float(rates[0])
        per_lane = rates * (count / work.batch_size if work.short_batch_scaling else 1.0)
        return torch.from_numpy(per_lane.astype(np.float32)).to(self._device)

    def _descend(
        self,
        views: list[Tensor],
        gradients: list[Tensor],
        lr: float | Tensor,
        work: ClientWork,
        active: int,
    ) -> None:
        if work.weight_decay:
            gradients = [g.add(w, alpha=work.weight_decay) for g, w in zip(gradients, views, strict=True)]
        if work.proximal_mu:
            pairs = enumerate(zip(gradients, views, strict=True))
            gradients = [g + work.proximal_mu * (w - self._starts(i, active)) for i, (g, w) in pairs]
        if work.momentum:
            if self._velocity is None:
                self._velocity = [torch.zeros_like(value) for value in self.params]
            moving = [value[:active] for value in self._velocity]
            for velocity, gradient in zip(moving, gradients, strict=True):
                velocity.mul_(work.momentum).add_(gradient)
            gradients = moving
        for view, gradient in zip(views, gradients, strict=True):
            if isinstance(lr, float):
                view.add_(gradient, alpha=-lr)
            else:
                view.sub_(gradient * lr.view(-1, *([1] * (view.ndim - 1))))

    def _descend_rows(self, gradient: Tensor, num_rows: int, active: int, lr: float | Tensor, work: ClientWork) -> None:
        """The same for embedding rows: a lane's rows move with its own rate."""
        view = self.rows[:num_rows]
        if work.weight_decay:
            gradient = gradient.add(view, alpha=work.weight_decay)
        if work.proximal_mu:
            gradient = gradient + work.proximal_mu * (view - self._rows_start[:num_rows])
        if work.momentum:
            if self._rows_velocity is None:
                self._rows_velocity = torch.zeros_like(self.rows)
            velocity = self._rows_velocity[:num_rows]
            gradient = velocity.mul_(work.momentum).add_(gradient)
        if isinstance(lr, float):
            view.add_(gradient, alpha=-lr)
            return
        if self.touched is None:
            raise AssertionError("row gradients without rows")
        per_lane = torch.from_numpy(np.diff(self.touched.lane_offsets[: active + 1])).to(self._device)
        view.sub_(gradient * torch.repeat_interleave(lr, per_lane).unsqueeze(1))

    def deltas(self) -> tuple[Tensor, TouchedRows | None]:
        """(start − local [L, P], rows with start replaced by start − local)."""
        with torch.no_grad():
            lanes, begin = self.block.num_lanes, 0
            flat = self.params[0].new_empty(lanes, self._model.shape.dense_size)
            for index, value in enumerate(self.params):
                size = value[0].numel()
                part = flat[:, begin : begin + size].view(value.shape)
                torch.sub(self._starts(index, lanes), value, out=part)
                begin += size
            if self.touched is None:
                return flat, None
            change = (self._rows_start - self.rows).cpu().numpy()
        return flat, TouchedRows(self.touched.rows, self.touched.lane_offsets, self.touched.index, change)

    def mean_loss(self) -> npt.NDArray[np.float64]:
        """Mean training loss of each lane over its local steps."""
        mean: npt.NDArray[np.float64] = self._loss.cpu().numpy() / np.maximum(self.steps, 1)
        return mean
