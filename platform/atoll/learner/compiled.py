"""The compiled learner: blocks → exact partial sums, one client after another in one call of a compiled kernel.

Shape legend: L lanes of all blocks of a call, N most examples of a lane, P dense parameters, R table rows touched,
S server steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.learner.kernels import Examples, Found, Lanes, Local, train_lanes
from atoll.learner.partials import LaneFacts, partials_of
from atoll.learner.programs import Program, program_of
from atoll.learner.row_kernels import sum_rows
from atoll.learner.rows import TouchedRows, touched_rows
from atoll.learner.work import ClientWork, Gather
from atoll.messages import Block, BlockResult, ModelVersion, RowSum
from atoll.models import Mlp, ModelInputs, ModelSettings
from atoll.plan import Grid

__all__ = ["CompiledLearner", "warm_up"]

I64 = npt.NDArray[np.int64]
#: Lanes of one call of the kernel, and places of examples per real example, at most.
_MOST_LANES, _MOST_PADDED = 512, 1.5


class CompiledLearner:
    """Trains blocks on a CPU without torch.

    Guarantees: each lane's delta, and its share of the exact sum, is a function of that lane and its start version
    alone; so blocks may be trained together, and a client trained alone has the bits that it has in a block. Bits are
    equal per software build and processor type.

    Args:
        settings, inputs: the model; `programs.has_program` holds for it.
        gather: training examples of a block.
        work: local SGD.
        grid: the plan's exact grid.
        seed: of the run; keys the example order.
    """

    def __init__(
        self,
        *,
        settings: ModelSettings,
        inputs: ModelInputs,
        gather: Gather,
        work: ClientWork,
        grid: Grid,
        seed: int,
    ) -> None:
        self._program: Program = program_of(settings, inputs)
        self._gather, self._work, self._grid = gather, work, grid
        #: start versions in the kernels' order, one a row; version → (its weights, its row)
        self._starts = np.empty((0, self._program.model.dense_size), dtype=np.float32)
        self._places: dict[int, tuple[npt.NDArray[np.float32], int]] = {}
        self._local = Local(
            np.uint64(rng.key(seed, "shuffle")), work.epochs, work.batch_size, work.short_batch_scaling,
            float(work.momentum), float(work.weight_decay), float(work.proximal_mu), float(grid.delta_bound),
        )  # fmt: skip

    def train(self, block: Block, versions: Mapping[int, ModelVersion]) -> BlockResult:
        """Trains every lane of `block` from its start version; one PartialSum per server step, steps ascending."""
        (found,) = self.train_all([block], versions)
        return found

    def train_all(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
        """Trains blocks, several at a time where their clients are of like size: the sums are those of each alone.

        Args:
            blocks: one or more.
            versions: holds every start version.
        """
        return [self._train(group, versions) for group in _groups(blocks)]

    def _train(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> BlockResult:
        block = _joined(blocks)
        work, program, lanes = self._work, self._program, block.num_lanes
        width = int(block.num_examples.max())
        positions = np.broadcast_to(np.arange(width), (lanes, width))
        examples = self._gather(block.client_id, positions)
        x = _own(examples["x"], np.float32).reshape(lanes, width, -1)
        unique, which = np.unique(block.start_version, return_inverse=True)
        start, places = self._start([versions[version] for version in unique.tolist()])
        rates = np.array([work.lr * work.schedule.factor(int(version)) for version in unique], dtype=np.float32)
        rows = self._rows(block, examples, versions)
        trained = rows.start.copy()
        steps, slots = np.unique(block.step, return_inverse=True)
        found = Found(
            np.zeros((len(steps), program.model.dense_size), dtype=np.int64), np.empty(lanes), np.empty(lanes),
            np.empty(lanes, dtype=np.int64), np.empty(lanes, dtype=np.bool_),
        )  # fmt: skip
        of_lanes = Lanes(
            block.task_id, block.num_examples, places[which], slots, rows.lane_offsets, rates[which],
            block.weight * self._grid.scale,
        )  # fmt: skip
        train_lanes(
            program.wiring, Examples(x, _own(examples["y"], np.int64), rows.index), of_lanes, self._local,
            start, rows.start, trained, found,
        )  # fmt: skip
        facts = LaneFacts(found.loss, found.norm, found.is_healthy, found.steps, work.epochs * block.num_examples)
        tables = self._row_sums(block, rows, trained, slots, len(steps), found.is_healthy)
        partials = partials_of(block, steps, program.back(found.sums), tables, facts)
        return BlockResult(tuple(one.block_id for one in blocks), partials)

    def _start(self, models: Sequence[ModelVersion]) -> tuple[npt.NDArray[np.float32], I64]:
        """(weights in the kernels' order [≥ len(models), P], row of each model).

        What the last call had is not copied again: under FedBuff some 20 versions are in use at a time, one is new.
        """
        held = self._places
        kept = {m.version: held[m.version] for m in models if held.get(m.version, (None, 0))[0] is m.dense}
        if len(self._starts) < len(models):
            more = np.empty((len(models) - len(self._starts), self._starts.shape[1]), dtype=np.float32)
            self._starts = np.concatenate((self._starts, more))
        free = sorted(set(range(len(self._starts))) - {row for _, row in kept.values()})
        for model in models:
            if model.version not in kept:
                row = free.pop()
                self._starts[row] = self._program.into(model.dense)
                kept[model.version] = (model.dense, row)
        self._places = kept
        return self._starts, np.array([kept[model.version][1] for model in models], dtype=np.int64)

    def _rows(
        self, block: Block, examples: Mapping[str, npt.NDArray[np.int64]], versions: Mapping[int, ModelVersion]
    ) -> TouchedRows:
        if not self._program.model.tables:
            nothing = np.zeros((block.num_lanes, 1, 0), dtype=np.int64)
            offsets = np.zeros(block.num_lanes + 1, dtype=np.int64)
            return TouchedRows(offsets[:0], offsets, nothing, np.zeros((0, 0), dtype=np.float32))
        (table,) = self._program.model.tables
        return touched_rows(table, 0, examples["c"], block.num_examples, block.start_version, versions)

    def _row_sums(
        self,
        block: Block,
        rows: TouchedRows,
        deltas: npt.NDArray[np.float32],
        slots: I64,
        num_steps: int,
        is_healthy: npt.NDArray[np.bool_],
    ) -> list[tuple[RowSum, ...]]:
        """Per server step the exact sum of each table's rows."""
        if not self._program.model.tables:
            return [()] * num_steps
        lane = np.repeat(np.arange(block.num_lanes), np.diff(rows.lane_offsets))
        scale = (block.weight * self._grid.scale)[lane]
        found: list[tuple[RowSum, ...]] = []
        order = np.argsort(rows.rows, kind="stable")
        slot = np.where(is_healthy, slots, -1)[lane][order]
        for number in range(num_steps):
            chosen = order[slot == number]
            out_rows = np.empty(len(chosen), dtype=np.int64)
            out = np.zeros((len(chosen), deltas.shape[1]), dtype=np.int64)
            size = sum_rows(chosen, rows.rows, deltas, scale, out_rows, out)
            found.append((RowSum(out_rows[:size], out[:size]),))
        return found


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbours that fit into one call of the kernel: what it pads, and the memory of its examples, stay small."""
    found: list[list[Block]] = []
    lanes = longest = real = 0
    for block in blocks:
        lanes, longest = lanes + block.num_lanes, max(longest, int(block.num_examples.max()))
        real += int(block.num_examples.sum())
        if not found or lanes > _MOST_LANES or lanes * longest > _MOST_PADDED * real:
            found.append([])
            lanes, longest, real = block.num_lanes, int(block.num_examples.max()), int(block.num_examples.sum())
        found[-1].append(block)
    return found


def _own(values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """Contiguous and writable: what else an array may be would be another type, and compiled anew."""
    return np.require(values, dtype, ["C", "W"])


def _joined(blocks: Sequence[Block]) -> Block:
    """The lanes of all blocks behind one another, under the first block's id; arrays of its own."""
    arrays = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in Block.__slots__
        if name != "block_id"
    }
    return Block(blocks[0].block_id, **arrays)


def warm_up() -> None:
    """Compiles the kernels into their disk cache, which takes some 20 s once per installation and processor type."""
    inputs, one = ModelInputs("binary", 1, (2,), (3,)), np.ones(1)
    version = ModelVersion(
        1, np.zeros(program_of(Mlp((2,)), inputs).model.dense_size, np.float32), (np.zeros((3, 8), np.float32),)
    )

    def gather(clients: I64, positions: I64) -> Mapping[str, npt.NDArray[Any]]:
        y = np.zeros(positions.shape, dtype=np.int64)
        return {"x": np.zeros((*positions.shape, 2), dtype=np.float32), "y": y, "c": y[..., None]}

    block = Block(0, *(one.astype(kind) for kind in ("i8", "i8", "i4", "i4", "i8", "f8", "f8")))
    grid = Grid.for_plan(1.0, 1.0)
    learner = CompiledLearner(settings=Mlp((2,)), inputs=inputs, gather=gather, work=ClientWork(0.1), grid=grid, seed=1)
    learner.train(block, {1: version})


if __name__ == "__main__":
    warm_up()
