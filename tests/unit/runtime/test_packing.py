"""Blocks travel as few arrays and are the same blocks again."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.messages import Block
from atoll.runtime.packing import packed, unpacked


def block(number: int, lanes: int) -> Block:
    draw = np.random.default_rng(number)
    return Block(
        block_id=number, task_id=draw.integers(0, 2**60, lanes), client_id=draw.integers(0, 2**40, lanes),
        start_version=draw.integers(0, 9, lanes).astype(np.int32), step=draw.integers(9, 12, lanes).astype(np.int32),
        num_examples=draw.integers(1, 99, lanes), weight=draw.random(lanes), example_weight=draw.random(lanes),
    )  # fmt: skip


@pytest.mark.parametrize("lanes", [[1], [32, 32, 7], [1, 5, 1]])
def test_there_and_back(lanes: list[int]) -> None:
    blocks = [block(10 + number, size) for number, size in enumerate(lanes)]
    found = unpacked(packed(blocks))
    assert [one.block_id for one in found] == [one.block_id for one in blocks]
    for one, other in zip(found, blocks, strict=True):
        for name in Block.__slots__[1:]:
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), name
