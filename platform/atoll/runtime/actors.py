"""Ray actors: thin shells round pure objects. They hold state in memory only; whatever dies is made again.

Every actor has `max_task_retries=0`: Ray's own retries duplicate and reorder side effects; ours are idempotent by
block.
"""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atoll.aggregation import Aggregator, Step, merge_results
from atoll.errors import AtollError, ClientWorkError
from atoll.evaluation import Evaluator
from atoll.learner import Learner
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.runtime.parts import MetricRow, Publisher

__all__ = ["AggregatorShell", "ClientPool", "TrackerShell"]

_NO_WEIGHTS = np.empty(0, dtype=np.float32)


class ClientPool:
    """Trains blocks and evaluates versions; caches data and versions; owns nothing.

    One per core or GPU. Serves one run after another: `open` tells how to build the next one's learner.
    """

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._versions: dict[int, ModelVersion] = {}
        self._learner: Learner | None = None
        self._evaluator: Evaluator | None = None
        self._make_evaluator: Callable[[], Evaluator] | None = None

    def open(self, make_learner: Callable[[], Learner], make_evaluator: Callable[[], Evaluator]) -> int:
        """Forgets the run before and prepares this one; returns the process id."""
        self._versions = {}
        self._learner, self._make_evaluator, self._evaluator = make_learner(), make_evaluator, None
        return os.getpid()

    def train(
        self, blocks: Sequence[Block], forget: Sequence[int], *bundles: Sequence[ModelVersion]
    ) -> tuple[float, BlockResult]:
        """Trains blocks; returns (busy seconds, their exact partial sums merged).

        Args:
            blocks: work.
            forget: versions that nobody asks for any more.
            bundles: versions that this pool lacks.

        Raises:
            ClientWorkError: client code raised; tells which block, clients and versions.
        """
        started = time.perf_counter()
        self._take({int(version) for block in blocks for version in block.start_version}, forget, bundles)
        if self._learner is None:
            raise AssertionError("ClientPool.train before open")
        results = [train_block(self._learner, block, self._versions) for block in blocks]
        merged = merge_results(results)
        return time.perf_counter() - started, merged

    def evaluate(
        self, version: int, forget: Sequence[int], *bundles: Sequence[ModelVersion]
    ) -> tuple[float, dict[str, float]]:
        """(busy seconds, metrics) of one version."""
        started = time.perf_counter()
        self._take({version}, forget, bundles)
        if self._evaluator is None:
            if self._make_evaluator is None:
                raise AssertionError("ClientPool.evaluate before open")
            self._evaluator = self._make_evaluator()
        metrics = evaluate_version(self._evaluator, self._versions[version])
        return time.perf_counter() - started, metrics

    def _take(self, wanted: set[int], forget: Sequence[int], bundles: Sequence[Sequence[ModelVersion]]) -> None:
        for version in forget:
            self._versions.pop(version, None)
        # Of a bundle only what was asked for: nobody would ever tell this pool to forget the rest.
        for bundle in bundles:
            self._versions.update({model.version: model for model in bundle if model.version in wanted})


def train_block(learner: Learner, block: Block, versions: dict[int, ModelVersion]) -> BlockResult:
    """`learner.train`, with a foreign exception turned into a ClientWorkError that tells its story."""
    try:
        return learner.train(block, versions)
    except AtollError:
        raise
    except Exception as error:
        story = (
            f"block {block.block_id}, server steps {np.unique(block.step).tolist()}, "
            f"start versions {np.unique(block.start_version).tolist()}, clients {block.client_id[:8].tolist()}"
            f"{'…' if block.num_lanes > 8 else ''}\n{traceback.format_exc()}"
        )
        raise ClientWorkError(f"client work raised {type(error).__name__}: {error}", story) from error


def evaluate_version(evaluator: Evaluator, model: ModelVersion) -> dict[str, float]:
    """`evaluator.evaluate`, with a foreign exception turned into a ClientWorkError: it runs a person's model too."""
    try:
        return evaluator.evaluate(model).metrics
    except AtollError:
        raise
    except Exception as error:
        message = f"evaluation of version {model.version} raised {type(error).__name__}: {error}"
        raise ClientWorkError(message, traceback.format_exc()) from error


class AggregatorShell:
    """Holds one cluster's Aggregator; returns (closed steps without weights, their model versions)."""

    def __init__(self, make_aggregator: Callable[[], Aggregator]) -> None:
        self._aggregator = make_aggregator()

    def model(self) -> list[ModelVersion]:
        """The current version, as a bundle of one."""
        return [self._aggregator.model]

    def expect(self, steps: Sequence[Any], live_versions: Sequence[int]) -> None:
        """Announces steps; drops kept versions that are not live (none given: keeps all)."""
        self._aggregator.expect(steps)
        if live_versions:
            self._aggregator.forget(live_versions)

    def hold_after(self, version: int) -> tuple[list[Step], list[ModelVersion]]:
        """Moves the limit and closes what is full."""
        self._aggregator.hold_after(version)
        return _split(self._aggregator.close_full())

    def add(self, result: BlockResult) -> tuple[list[Step], list[ModelVersion]]:
        """Adds partial sums; order and repetition do not matter."""
        return _split(self._aggregator.handle(result))


def _split(steps: list[Step]) -> tuple[list[Step], list[ModelVersion]]:
    """Small facts for the coordinator, weights for the object store."""
    light = [dataclasses.replace(s, model=ModelVersion(s.model.version, _NO_WEIGHTS)) for s in steps]
    return light, [step.model for step in steps]


class TrackerShell:
    """Outbox rows and checkpoints → tracking service, off the training path."""

    def __init__(self) -> None:
        self._publisher: Publisher | None = None

    def open(self, make_publisher: Callable[[], Publisher]) -> None:
        """Takes up a run."""
        self._publisher = make_publisher()

    def publish(self, rows: Sequence[MetricRow]) -> None:
        """Sends rows; raises where the service does not take them."""
        if self._publisher is not None:
            self._publisher.publish(rows)

    def checkpoint(self, version: int, bundle: Sequence[ModelVersion]) -> None:
        """Keeps one version of the bundle as an artifact."""
        model = next(model for model in bundle if model.version == version)
        if self._publisher is not None:
            self._publisher.checkpoint(model)
