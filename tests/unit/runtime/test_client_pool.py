"""A client pool as a plain object: what it keeps of the versions that it is sent."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.errors import ClientWorkError
from atoll.evaluation import Evaluation
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.runtime.actors import ClientPool
from atoll.runtime.packing import packed

WEIGHTS = np.zeros(1, dtype=np.float32)


class Echo:
    """Learner and evaluator that only look for their versions."""

    def train(self, block: Block, versions: dict[int, ModelVersion]) -> BlockResult:
        assert {int(version) for version in block.start_version} <= set(versions)
        return BlockResult((block.block_id,), ())

    def train_all(self, blocks: list[Block], versions: dict[int, ModelVersion]) -> list[BlockResult]:
        return [self.train(block, versions) for block in blocks]

    def evaluate(self, model: ModelVersion) -> Evaluation:
        return Evaluation(model.version, {"eval/loss": float(model.version)})


def block(*start_versions: int) -> Block:
    ones = np.ones(len(start_versions), dtype=np.int64)
    start, step = (np.array(v, dtype=np.int32) for v in (start_versions, [9] * len(ones)))
    return Block(0, ones, ones, start, step, ones, ones.astype(float), ones.astype(float))


@pytest.fixture
def pool() -> ClientPool:
    pool = ClientPool()
    pool.open(0, Echo, Echo, 0)  # type: ignore[arg-type]
    return pool


def test_a_pool_keeps_of_a_bundle_what_it_was_sent_for(pool: ClientPool) -> None:
    """Steps that close together travel together; a version that nobody asked for would stay for the whole run."""
    bundle = [ModelVersion(version, WEIGHTS) for version in range(3, 8)]
    pool.train(0, packed([block(4, 6), block(6)]), [], bundle, epoch=0)
    assert set(pool._tenants[0].versions) == {4, 6}
    assert pool.evaluate(0, 7, [4], bundle, epoch=0)[1] == {"eval/loss": 7.0}
    assert set(pool._tenants[0].versions) == {6, 7}
    pool.train(0, packed([block(7)]), [6], epoch=0)
    assert set(pool._tenants[0].versions) == {7}


class Failing(Echo):
    """Raises for what starts from version 6, and for its evaluation."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def train(self, block: Block, versions: dict[int, ModelVersion]) -> BlockResult:
        if 6 in block.start_version:
            raise self.error
        return super().train(block, versions)

    def evaluate(self, model: ModelVersion) -> Evaluation:
        if model.version == 6:
            raise self.error
        return super().evaluate(model)


@pytest.mark.parametrize("error", [ValueError("odd client"), MemoryError("too wide")], ids=["raises", "memory"])
def test_what_client_code_raises_comes_back_as_a_value_and_the_pool_goes_on(error: Exception) -> None:
    """A raised error would look like a lost process: what is to be done is the coordinator's decision."""
    pool = ClientPool()
    pool.open(0, lambda: Failing(error), lambda: Failing(error), 0)  # type: ignore[arg-type,return-value]
    bundle = [ModelVersion(version, WEIGHTS) for version in (5, 6)]
    told, sums = pool.train(0, packed([block(5), block(6)]), [], bundle, epoch=0)
    assert isinstance(told, ClientWorkError)
    assert sums is None, "half of a call is none of it"
    assert told.is_out_of_memory == isinstance(error, MemoryError)
    assert str(error) in told.message
    seconds, found = pool.evaluate(0, 6, [], epoch=0)
    assert isinstance(found, ClientWorkError)
    assert found.is_out_of_memory == told.is_out_of_memory
    assert seconds >= 0
    busy_s, sums = pool.train(0, packed([block(5)]), [], epoch=0)
    assert isinstance(busy_s, float)
    assert sums is not None
    assert sums.block_ids == (0,)


def test_memory_that_ran_out_is_not_held_by_the_error() -> None:
    """A traceback holds frames, and those hold the tensors that did not fit."""
    pool = ClientPool()
    pool.open(0, lambda: Failing(MemoryError()), Echo, 0)  # type: ignore[arg-type,return-value]
    told, _ = pool.train(0, packed([block(6)]), [], [ModelVersion(6, WEIGHTS)], epoch=0)
    assert isinstance(told, ClientWorkError)
    assert told.__cause__ is None
    assert told.__traceback__ is None


def test_opening_forgets_the_run_before(pool: ClientPool) -> None:
    pool.train(0, packed([block(4)]), [], [ModelVersion(4, WEIGHTS)], epoch=0)
    pool.open(0, Echo, Echo, 0)  # type: ignore[arg-type]
    with pytest.raises(ClientWorkError):
        raise pool.train(0, packed([block(4)]), [], epoch=0)[0]  # type: ignore[misc]
