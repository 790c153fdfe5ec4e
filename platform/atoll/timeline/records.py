"""The columnar record of what happened when: rows in event order, cut into server steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["ROW", "Batch", "Chunk", "Rows", "concat", "join"]

I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

ROW: np.dtype[Any] = np.dtype(
    [
        ("task_id", "<i8"),
        ("client_id", "<i8"),
        ("start_us", "<i8"),
        ("finish_us", "<i8"),
        ("start_version", "<i4"),
        ("step", "<i4"),
        ("num_examples", "<i4"),
        ("outcome", "<i4"),
    ]
)
"""One finished task. `task_id` is (slot or round) << 32 | (ordinal or position); `step` is the server step that uses
it, −1 for a failure; `outcome` is a `population.Outcome`."""


#: a row without its fields: NumPy copies records field by field, which takes seven times as long
_RAW = np.dtype((np.void, ROW.itemsize))


def join(parts: Sequence[Rows]) -> Rows:
    """One new array out of arrays of rows. Purity: pure."""
    return np.concatenate([part.view(_RAW) for part in parts]).view(ROW)


class Batch(NamedTuple):
    """What an engine yields: some rows in event order.

    Attributes:
        rows: ROW [n].
        ends: int64 [m], rows[: ends[i]] closes one more server step.
        closed_us: int64 [m], when it closed.
    """

    rows: Rows
    ends: I64
    closed_us: I64


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Consecutive server steps.

    Attributes:
        first_step: number of the first step here.
        rows: ROW [offsets[-1]], in event order (finish_us, arrivals before aborts, task_id); read-only.
        offsets: int64 [num_steps + 1]; rows[offsets[i]:offsets[i + 1]] ended after step first_step + i − 1 closed and
            up to its own close. USED rows there have step = first_step + i, failures −1. Async: the last row of each
            step is the arrival that filled the buffer.
        closed_us: int64 [num_steps], virtual time at which each step closed.
        opened_us: when the step before the first closed; 0 for the first of all.
    """

    first_step: int
    rows: Rows
    offsets: I64
    closed_us: I64
    opened_us: int = 0

    @property
    def num_steps(self) -> int:
        """Number of server steps."""
        return len(self.closed_us)


def concat(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk out of consecutive ones.

    Errors: ValueError where there is none, or where one does not follow the one before.
    Purity: pure.
    """
    if not chunks:
        raise ValueError("no chunks to join")
    offsets, base, step = [np.zeros(1, dtype=np.int64)], 0, chunks[0].first_step
    for chunk in chunks:
        if chunk.first_step != step:
            raise ValueError(f"chunk starts at step {chunk.first_step}, but step {step} is next")
        offsets.append(chunk.offsets[1:] + base)
        base, step = base + len(chunk.rows), step + chunk.num_steps
    rows = join([chunk.rows for chunk in chunks])
    rows.setflags(write=False)
    closed = np.concatenate([chunk.closed_us for chunk in chunks])
    return Chunk(chunks[0].first_step, rows, np.concatenate(offsets), closed, chunks[0].opened_us)
