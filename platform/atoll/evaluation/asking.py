"""Asking a model version of rows: in fixed batches, with only the embedding rows that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.messages import ModelVersion
from atoll.models import ModelShape

__all__ = ["Asked", "Examples", "Says"]

Array = npt.NDArray[Any]
#: one batch of examples → a number or more of every row, [B, k]
Says = Callable[[Mapping[str, Array]], Array]


class Asked(Protocol):
    """A model that can be asked: `models.PlainModel`, or `LaneForward` round one with torch.

    Attributes:
        shape: names and shapes of the weights.
    """

    shape: ModelShape

    def at(self, version: ModelVersion) -> Says:
        """Weights → what they say of a batch with "x" and, with a table, "c" and "rows", int64 [B, G] in that table."""
        ...


class Examples:
    """Rows to ask models of one shape about; which table rows they need is found once.

    Args:
        shape: of the models.
        arrays: "x" and, with categories, "c", rows first; others are ignored.
        batch_rows: rows per batch.
    """

    def __init__(self, shape: ModelShape, arrays: Mapping[str, Array], batch_rows: int = 4096) -> None:
        self._batch_rows = batch_rows
        self._arrays = {name: arrays[name] for name in ("x", "c") if name in arrays}
        self._needed = np.empty(0, dtype=np.int64)
        if shape.tables:
            table = shape.tables[0]
            rows = arrays["c"] + np.array(table.offsets, dtype=np.int64)
            is_needed = np.zeros(table.rows, dtype=np.bool_)
            is_needed[rows] = True
            self._needed = np.flatnonzero(is_needed)
            # places among the needed rows, without sorting
            self._arrays["rows"] = (np.cumsum(is_needed) - 1)[rows]

    def __len__(self) -> int:
        return len(self._arrays["x"])

    def ask(self, model: Asked, version: ModelVersion) -> Iterator[tuple[slice, Array]]:
        """Which rows, and what the version says of them: all rows in order."""
        says = model.at(replace(version, tables=tuple(table[self._needed] for table in version.tables)))
        for begin in range(0, len(self), self._batch_rows):
            part = slice(begin, begin + self._batch_rows)
            yield part, says({name: array[part] for name, array in self._arrays.items()})
