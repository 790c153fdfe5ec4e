"""What tests of models and the learner share: every model kind on small keyed data, and blocks made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from atoll import rng
from atoll.learner import ClientWork, CompiledLearner, Learner, SingleLearner, Trainer
from atoll.learner.programs import has_program
from atoll.messages import Block, ModelVersion
from atoll.models import (
    CharLstm,
    Cnn,
    Custom,
    Dlrm,
    LaneModel,
    Logistic,
    Mlp,
    ModelInputs,
    ModelSettings,
    WideDeep,
    build_model,
    init_version,
)
from atoll.plan import Grid

torch.set_num_threads(1)

#: fine enough that reading a delta back from integers costs less than float32's own rounding
GRID = Grid.for_plan(delta_bound=1024.0, weight_bound=256.0)
SEED = 11


@dataclass(frozen=True)
class Kind:
    """One model on one form of data, with a rate at which it learns."""

    name: str
    settings: ModelSettings
    inputs: ModelInputs
    lr: float = 0.1
    kernel: str = "lanes"

    def model(self) -> LaneModel:
        return build_model(self.settings, self.inputs)

    def version(self, number: int = 0) -> ModelVersion:
        """Weights of version `number`: a draw of their own, none zero, so that every path carries a gradient."""
        drawn = init_version(self.settings, self.inputs, SEED + number)
        noise = rng.generator(SEED, "noise", number)
        dense = drawn.dense + 0.05 * noise.standard_normal(drawn.dense.shape, dtype=np.float32)
        tables = tuple(t + 0.05 * noise.standard_normal(t.shape, dtype=np.float32) for t in drawn.tables)
        return ModelVersion(number, dense, tables)


def two_layers(width: int = 6, num_inputs: int = 5, num_outputs: int = 3) -> torch.nn.Module:
    first, last = torch.nn.Linear(num_inputs, width), torch.nn.Linear(width, num_outputs)
    return torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.LayerNorm(width), last)


class WithCodes(torch.nn.Module):
    """Takes categories too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.output = torch.nn.Linear(9, 1)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.output(torch.cat([x, self.embedding(c[..., 0])], dim=-1))


KINDS = [
    Kind("logistic", Logistic(), ModelInputs("multiclass", 3, (5,))),
    Kind("logistic_sparse", Logistic(), ModelInputs("binary", 1, (5,), (7, 300)), lr=0.3),
    Kind("logistic_codes_only", Logistic(), ModelInputs("multiclass", 4, (0,), (7, 30)), lr=0.3),
    Kind("logistic_shared", Logistic(), ModelInputs("binary", 1, (5,), (9, 7, 9), 0, (0, 1, 0)), lr=0.3),
    Kind("mlp", Mlp((8, 6)), ModelInputs("multiclass", 4, (3, 2))),
    Kind("mlp_binary", Mlp((8,)), ModelInputs("binary", 1, (5,))),
    Kind("mlp_sparse", Mlp((8,), embedding_dim=3), ModelInputs("binary", 1, (5,), (7, 300, 11))),
    Kind("mlp_codes_only", Mlp((8,), embedding_dim=3), ModelInputs("multiclass", 3, (0,), (40,))),
    Kind("mlp_shared", Mlp((8,), embedding_dim=3), ModelInputs("binary", 1, (5,), (9, 7, 9), 0, (0, 1, 0))),
    Kind("wide_deep", WideDeep((8, 6), embedding_dim=3), ModelInputs("binary", 1, (5,), (7, 300, 11))),
    Kind("wide_deep_shared", WideDeep((8,), 3), ModelInputs("multiclass", 3, (2, 2), (9, 7, 9), 0, (0, 1, 0))),
    Kind("wide_deep_codes_only", WideDeep((8,), 3), ModelInputs("binary", 1, (0,), (40, 5))),
    Kind("dlrm", Dlrm(4, (6, 4), (8, 5)), ModelInputs("binary", 1, (5,), (7, 300, 11))),
    Kind("dlrm_codes_only", Dlrm(4, (4,), (8,)), ModelInputs("multiclass", 3, (0,), (40, 9))),
    Kind("dlrm_shared", Dlrm(4, (4,), (8,)), ModelInputs("binary", 1, (5,), (9, 7, 9, 9), 0, (0, 1, 0, 0))),
    Kind("dlrm_history", Dlrm(4, (4,), (8,), True), ModelInputs("binary", 1, (5,), (4, 7, 4, 4), 0, (0, 1, 0, 0))),
    Kind(
        "dlrm_histories",
        Dlrm(3, (3,), (6,), True),
        ModelInputs("multiclass", 3, (2,), (3, 4, 5, 3, 4, 4, 4), 0, (0, 1, 2, 0, 1, 1, 1)),
    ),
    Kind("cnn_grey", Cnn((4, 8)), ModelInputs("multiclass", 3, (8, 8))),
    Kind("cnn_colour", Cnn((16,)), ModelInputs("binary", 1, (3, 6, 4))),
    Kind("char_lstm", CharLstm(embedding=4, hidden=6, layers=2), ModelInputs("multiclass", 9, (5,), (), 9), lr=0.5),
    Kind("custom", Custom("lane_kit:two_layers", {"width": 7}), ModelInputs("multiclass", 3, (5,))),
    Kind("custom_codes", Custom("lane_kit:WithCodes"), ModelInputs("binary", 1, (5,), (7,))),
]
#: every model with every kernel that trains it
LEARNERS = [
    *KINDS,
    *(replace(kind, name=f"{kind.name}-compiled", kernel="compiled") for kind in KINDS if has_program(kind.settings)),
    *(
        replace(kind, name=f"{kind.name}-single", kernel="single")
        for kind in KINDS
        if isinstance(kind.settings, Cnn | CharLstm | Custom)
    ),
]
by_name = {kind.name: kind for kind in LEARNERS}


def gather_of(inputs: ModelInputs, *, nan_client: int | None = None, scale: float = 1.0) -> Callable[..., dict]:
    """Examples as a pure function of (client, position, feature); one client's features may all be NaN."""

    def uniform(purpose: str, clients: np.ndarray, positions: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        feature = np.arange(int(np.prod(shape)))
        drawn = rng.uniform(rng.key(SEED, purpose), clients[:, None, None], positions[:, :, None], feature)
        return drawn.reshape(*positions.shape, *shape)

    def gather(clients: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        x = uniform("x", clients, positions, inputs.x_shape)
        if inputs.vocabulary:
            found = {"x": (x * inputs.vocabulary).astype(np.int64)}
        else:
            found = {"x": ((4 * x - 2) * scale).astype(np.float32)}
            if nan_client is not None:
                found["x"][clients == nan_client] = np.nan
        if inputs.category_sizes:
            codes = uniform("c", clients, positions, (len(inputs.category_sizes),))
            found["c"] = (codes * np.asarray(inputs.category_sizes)).astype(np.int64)
        labels = uniform("y", clients, positions, (1,))[..., 0]
        found["y"] = (labels * (2 if inputs.task == "binary" else inputs.num_outputs)).astype(np.int64)
        return found

    return gather


def block_of(
    num_examples: Sequence[int],
    *,
    start_version: Sequence[int] | int = 0,
    step: Sequence[int] | int | None = None,
    weight: Sequence[float] | float = 1.0,
    first_client: int = 100,
    block_id: int = 0,
) -> Block:
    """Lanes of the given sizes, longest first; by default each lane has a server step of its own (10, 11, …)."""
    lanes = len(num_examples)

    def column(value: object, dtype: str) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=dtype), (lanes,)))

    index = np.arange(lanes, dtype=np.int64)
    return Block(
        block_id=block_id,
        task_id=(first_client + index) << 32 | 5,
        client_id=first_client + index,
        start_version=column(start_version, "i4"),
        step=column(10 + index if step is None else step, "i4"),
        num_examples=np.asarray(num_examples, dtype=np.int64),
        weight=column(weight, "f8"),
        example_weight=column(1.0, "f8"),
    )


def learner_of(
    kind: Kind, work: ClientWork, *, gather: Callable[..., dict] | None = None, grid: Grid = GRID
) -> Trainer:
    gather = gather or gather_of(kind.inputs)
    if kind.kernel == "compiled":
        return CompiledLearner(
            settings=kind.settings, inputs=kind.inputs, gather=gather, work=work, grid=grid, seed=SEED
        )
    make = Learner if kind.kernel == "lanes" else SingleLearner
    return make(model=kind.model(), gather=gather, work=work, grid=grid, seed=SEED)


def lane_deltas(kind: Kind, learner: Trainer, block: Block, versions: dict[int, ModelVersion]) -> list[ModelVersion]:
    """Each lane's own delta (tables full size), read from the sums of a block whose lanes have steps of their own."""
    found = []
    for partial in learner.train(block, versions).partials:
        tables = []
        for table, rows in zip(kind.model().shape.tables, partial.tables, strict=True):
            full = np.zeros((table.rows, table.dim))
            full[rows.rows] = rows.values / GRID.scale
            tables.append(full)
        found.append(ModelVersion(0, partial.dense / GRID.scale, tuple(tables)))
    return found
