"""Blocks of a call, or one evaluation, with a foreign exception turned into a ClientWorkError that tells its story."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from atoll.errors import AtollError, ClientWorkError
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.runtime.seats import seats_here

if TYPE_CHECKING:
    from atoll.evaluation import Evaluator
    from atoll.learner import Trainer

__all__ = ["evaluate_version", "one_thread", "train_blocks"]


def one_thread() -> None:
    """Keeps torch to one thread, since more would change bits; does nothing in a process that has not loaded it.

    To be called when a learner or an evaluator was made: those that use torch have loaded it then.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def train_blocks(learner: Trainer, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
    """`learner.train_all`, at a time when there is room for a block on the device.

    Raises:
        ClientWorkError: client code raised. Every lane is then trained alone, to name the client that is to blame.
    """
    try:
        with seats_here():
            return learner.train_all(blocks, versions)
    except AtollError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            lanes, ids = sum(block.num_lanes for block in blocks), [block.block_id for block in blocks]
            what = f"block {ids[0]}" if len(ids) == 1 else f"blocks {ids}"
            story = f"{what} of {lanes} lanes does not fit into memory"
            message = f"client work raised {type(error).__name__}: {error}"
            raise ClientWorkError(message, story, is_out_of_memory=True) from error
        raise _told(learner, blocks, versions, error, traceback.format_exc()) from error


def _told(
    learner: Trainer, blocks: Sequence[Block], versions: Mapping[int, ModelVersion], error: Exception, trace: str
) -> ClientWorkError:
    task_id, block = None, blocks[0]
    where = f"block {block.block_id} with clients {block.client_id[:8].tolist()}"
    where += "…; none of them raises alone" if block.num_lanes > 8 else "; none of them raises alone"
    for alone in (block.lane(index) for block in blocks for index in range(block.num_lanes)):
        try:
            learner.train(alone, versions)
        except Exception as found:
            error, trace = found, traceback.format_exc()
            task_id = int(alone.task_id[0])
            where = f"client {int(alone.client_id[0])}, task {task_id}, block {alone.block_id}"
            block = alone
            break
    story = (
        f"{where}, server steps {np.unique(block.step).tolist()}, "
        f"start versions {np.unique(block.start_version).tolist()}\n{trace}"
    )
    return ClientWorkError(f"client work raised {type(error).__name__}: {error}", story, task_id)


def evaluate_version(evaluator: Evaluator, model: ModelVersion) -> dict[str, float]:
    """`evaluator.evaluate`.

    Raises:
        ClientWorkError: it runs a person's model too.
    """
    try:
        return evaluator.evaluate(model).metrics
    except AtollError:
        raise
    except Exception as error:
        message = f"evaluation of version {model.version} raised {type(error).__name__}: {error}"
        raise ClientWorkError(message, traceback.format_exc(), is_out_of_memory=_is_out_of_memory(error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError by name: importing torch here would make every reader of this module pay for it
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
