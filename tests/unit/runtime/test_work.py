"""Client code that raises is named, as a value that crosses processes; lack of memory is told apart."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from atoll.errors import AggregationError, ClientWorkError
from atoll.evaluation import Evaluation
from atoll.messages import Block, BlockResult, ModelVersion
from atoll.runtime.work import evaluate_version, train_blocks

MODEL = ModelVersion(3, np.zeros(1, dtype=np.float32))
VERSIONS = {3: MODEL}


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Picky:
    """Raises `error` where a block holds one of these clients; alone or in company."""

    def __init__(self, error: Exception, *clients: int, least_lanes: int = 1) -> None:
        self.error, self.clients, self.least_lanes = error, clients, least_lanes
        self.lanes: list[int] = []

    def train(self, block: Block, versions) -> BlockResult:
        self.lanes.append(block.num_lanes)
        if np.isin(block.client_id, self.clients).any() and block.num_lanes >= self.least_lanes:
            raise self.error
        return BlockResult((block.block_id,), ())

    def train_all(self, blocks: list[Block], versions) -> list[BlockResult]:
        return [self.train(block, versions) for block in blocks]

    def evaluate(self, model: ModelVersion) -> Evaluation:
        raise self.error


def block_of(*clients: int) -> Block:
    count = np.arange(len(clients))
    return Block(
        block_id=17, task_id=count + 100, client_id=np.array(clients), start_version=(count % 2 + 3).astype(np.int32),
        step=(count // 2 + 8).astype(np.int32), num_examples=50 - count, weight=0.5 + count, example_weight=1.0 + count,
    )  # fmt: skip


def told(learner: Picky, block: Block) -> ClientWorkError:
    with pytest.raises(ClientWorkError) as caught:
        train_blocks(learner, [block], VERSIONS)  # type: ignore[arg-type]
    error = pickle.loads(pickle.dumps(caught.value))
    assert vars(error) == vars(caught.value), "it crosses processes whole"
    return error


def test_work_that_does_not_raise_is_passed_on() -> None:
    assert train_blocks(Picky(ValueError(), 9), [block_of(1, 2)], VERSIONS)[0].block_ids == (17,)  # type: ignore[arg-type]


@pytest.mark.parametrize("guilty", [0, 2, 4])
def test_the_guilty_client_is_named_with_its_task(guilty: int) -> None:
    clients = [11, 22, 33, 44, 55]
    learner = Picky(ValueError("no such label"), clients[guilty])
    error = told(learner, block_of(*clients))
    assert error.task_id == 100 + guilty
    assert error.message == "client work raised ValueError: no such label"
    assert f"client {clients[guilty]}, task {100 + guilty}, block 17" in error.story
    assert f"server steps [{8 + guilty // 2}], start versions [{3 + guilty % 2}]" in error.story
    assert "Traceback" in error.story
    assert "raise self.error" in error.story
    assert not error.is_out_of_memory
    assert learner.lanes == [5] + [1] * (guilty + 1), "alone, one after the other, up to the first that raises"


def test_of_several_blocks_the_guilty_client_is_found_too() -> None:
    second = dataclasses.replace(block_of(44, 55), block_id=18)
    with pytest.raises(ClientWorkError) as caught:
        train_blocks(Picky(ValueError("no such label"), 55), [block_of(11, 22), second], VERSIONS)  # type: ignore[arg-type]
    assert "client 55, task 101, block 18" in caught.value.story


def test_where_none_raises_alone_all_are_named() -> None:
    error = told(Picky(ValueError("shapes"), 22, least_lanes=2), block_of(11, 22, 33))
    assert error.task_id is None
    assert "block 17 with clients [11, 22, 33]; none of them raises alone" in error.story
    assert "server steps [8, 9], start versions [3, 4]" in error.story
    assert "Traceback" in error.story


def test_of_a_wide_block_the_first_clients_are_named() -> None:
    error = told(Picky(ValueError("shapes"), 5, least_lanes=2), block_of(*range(12)))
    assert "with clients [0, 1, 2, 3, 4, 5, 6, 7]…; none of them raises alone" in error.story


@pytest.mark.parametrize("error", [MemoryError("cannot allocate"), OutOfMemoryError("CUDA out of memory")], ids=repr)
def test_lack_of_memory_is_told_apart_and_nobody_is_tried_alone(error: Exception) -> None:
    learner = Picky(error, 22)
    found = told(learner, block_of(11, 22, 33))
    assert found.is_out_of_memory
    assert found.task_id is None
    assert "block 17 of 3 lanes does not fit into memory" in found.story
    assert learner.lanes == [3]


def test_torch_names_it_so() -> None:
    torch = pytest.importorskip("torch")
    assert told(Picky(torch.OutOfMemoryError("CUDA out of memory"), 1), block_of(1)).is_out_of_memory


def test_what_atoll_raises_on_purpose_passes() -> None:
    with pytest.raises(AggregationError, match="overflow"):
        train_blocks(Picky(AggregationError("overflow"), 1), [block_of(1)], VERSIONS)  # type: ignore[arg-type]
    with pytest.raises(AggregationError, match="overflow"):
        evaluate_version(Picky(AggregationError("overflow")), MODEL)  # type: ignore[arg-type]


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        train_blocks(Picky(KeyboardInterrupt(), 1), [block_of(1)], VERSIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "is_memory"), [(ValueError("odd"), False), (MemoryError("odd"), True)], ids=repr)
def test_an_evaluation_that_raises_names_its_version(error: Exception, is_memory: bool) -> None:
    with pytest.raises(ClientWorkError) as caught:
        evaluate_version(Picky(error), MODEL)  # type: ignore[arg-type]
    assert caught.value.message == f"evaluation of version 3 raised {type(error).__name__}: odd"
    assert caught.value.is_out_of_memory == is_memory
    assert "Traceback" in caught.value.story


def test_a_lane_is_the_client_alone() -> None:
    block = block_of(11, 22, 33)
    for index in range(3):
        alone = block.lane(index)
        assert (alone.num_lanes, alone.block_id) == (1, 17)
        for field in dataclasses.fields(Block):
            if field.name != "block_id":
                whole, part = getattr(block, field.name), getattr(alone, field.name)
                assert part.tolist() == [whole[index]]
                assert part.dtype == whole.dtype
    assert [alone.client_id[0] for alone in map(block.lane, range(3))] == [11, 22, 33]


def test_the_last_lane_is_no_empty_block() -> None:
    assert block_of(11, 22).lane(1).num_lanes == 1
