"""A client pool as a plain object: what it keeps of the versions that it is sent."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.evaluation import Evaluation
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.runtime.actors import ClientPool

WEIGHTS = np.zeros(1, dtype=np.float32)


class Echo:
    """Learner and evaluator that only look for their versions."""

    def train(self, block: Block, versions: dict[int, ModelVersion]) -> BlockResult:
        assert {int(version) for version in block.start_version} <= set(versions)
        return BlockResult((block.block_id,), ())

    def evaluate(self, model: ModelVersion) -> Evaluation:
        return Evaluation(model.version, {"eval/loss": float(model.version)})


def block(*start_versions: int) -> Block:
    ones = np.ones(len(start_versions), dtype=np.int64)
    start, step = (np.array(v, dtype=np.int32) for v in (start_versions, [9] * len(ones)))
    return Block(0, ones, ones, start, step, ones, ones.astype(float), ones.astype(float))


@pytest.fixture
def pool() -> ClientPool:
    pool = ClientPool()
    pool.open(Echo, Echo)  # type: ignore[arg-type]
    return pool


def test_a_pool_keeps_of_a_bundle_what_it_was_sent_for(pool: ClientPool) -> None:
    """Steps that close together travel together; a version that nobody asked for would stay for the whole run."""
    bundle = [ModelVersion(version, WEIGHTS) for version in range(3, 8)]
    pool.train([block(4, 6), block(6)], [], bundle)
    assert set(pool._versions) == {4, 6}
    assert pool.evaluate(7, [4], bundle)[1] == {"eval/loss": 7.0}
    assert set(pool._versions) == {6, 7}
    pool.train([block(7)], [6])
    assert set(pool._versions) == {7}
