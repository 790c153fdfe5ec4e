"""What a client does in one task, and the numbers it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.schedules import ConstantRate, Rate

__all__ = ["METRICS", "ClientWork", "Gather", "Trainer", "example_order"]

#: (client ids int64 [L], positions int64 [L, N]) → "x" [L, N, …], "y" [L, N], optionally "c" [L, N, G]; arrays, or
#: tensors on the learner's device for all but "c"
Gather = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Mapping[str, Any]]

#: Per-client values that are summed exactly, in this order: mean loss over its local steps, L2 norm of its delta and
#: its square, examples seen (epochs · n), local steps. A diverged client adds zeros.
METRICS = ("loss_sum", "delta_norm_sum", "delta_norm_sq_sum", "examples", "local_steps")


@dataclass(frozen=True, slots=True)
class ClientWork:
    """Local SGD.

    Attributes:
        lr: learning rate.
        epochs: passes over the client's examples.
        batch_size: examples per local step; the last batch of an epoch may be short.
        momentum: of local SGD, reset for each task.
        weight_decay: L2 penalty as in torch.optim.SGD; of an embedding table, the rows that the client holds.
        proximal_mu: FedProx (Li et al. 2020, equation 2): gradient of μ/2 · ‖w − w_start‖².
        short_batch_scaling: a batch of n < batch_size examples uses lr · n / batch_size (FedBuff's normalisation).
        schedule: factor on lr by the task's start version.
        precision: of forward and backward; compiled kernels know float32 only.
    """

    lr: float
    epochs: int = 1
    batch_size: int = 32
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    short_batch_scaling: bool = False
    schedule: Rate = field(default_factory=ConstantRate)
    precision: Literal["float32", "bfloat16"] = "float32"


class Trainer(Protocol):
    """What trains blocks: the three learners. A result is a function of the block and its start versions."""

    def train(self, block: Block, versions: Mapping[int, ModelVersion]) -> BlockResult:
        """Trains every lane of `block` from its start version; one PartialSum per server step, steps ascending."""
        ...

    def train_all(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
        """The same of several blocks: results that cover them, in order; some may be summed together already."""
        ...


def example_order(
    seed: int, task_id: npt.NDArray[np.int64], num_examples: npt.NDArray[np.int64], epoch: int
) -> npt.NDArray[np.int64]:
    """The order in which each task visits its examples in one epoch.

    Args:
        seed: of the run.
        task_id: int64 [L].
        num_examples: int64 [L].
        epoch: 0, 1, …

    Returns:
        int64 [L, max(num_examples)]: a keyed permutation of 0 … n − 1, then n … (padding).

    Purity: pure; row l depends on (seed, task_id[l], n[l], epoch) alone.
    """
    width = int(num_examples.max())
    position = np.arange(width)
    keys = rng.bits(rng.key(seed, "shuffle"), task_id[:, None], epoch, position) >> np.uint64(1)
    keys = np.where(position < num_examples[:, None], keys, np.uint64(2**63))
    return np.argsort(keys, axis=1, kind="stable").astype(np.int64)
