"""The blocks of a call as few arrays: pickling seven arrays of each block would cost more than the rest of the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.messages import Block

__all__ = ["Packed", "packed", "unpacked"]

#: (ids, lanes of each, arrays of all blocks behind one another)
Packed = tuple[list[int], list[int], list[npt.NDArray[Any]]]
_ARRAYS = [name for name in Block.__slots__ if name != "block_id"]


def packed(blocks: Sequence[Block]) -> Packed:
    """See `unpacked`."""
    arrays = [np.concatenate([getattr(block, name) for block in blocks]) for name in _ARRAYS]
    return [block.block_id for block in blocks], [block.num_lanes for block in blocks], arrays


def unpacked(found: Packed) -> list[Block]:
    """The blocks again; their arrays are views."""
    ids, lanes, arrays = found
    blocks, begin = [], 0
    for block_id, number in zip(ids, lanes, strict=True):
        blocks.append(Block(block_id, *(array[begin : begin + number] for array in arrays)))
        begin += number
    return blocks
