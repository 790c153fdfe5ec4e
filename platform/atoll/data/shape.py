"""What client data looks like to the rest of atoll: shapes, the `ClientData` protocol, held-out rows.

Shape legend: L lanes of a block, B positions per lane, F numeric features, G categorical columns, D data clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "I64",
    "Array",
    "Category",
    "CategoryColumn",
    "ClientData",
    "DataShape",
    "Encoding",
    "HeldOut",
    "NumericColumn",
    "Task",
]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Task = Literal["binary", "multiclass"]


@dataclass(frozen=True, slots=True)
class Category:
    """One categorical column.

    Attributes:
        name: of the column.
        size: number of codes; codes are 0 … size − 1.
        table: columns with one table name share the rows of one embedding table, and so have one size; None: its own.
    """

    name: str
    size: int
    table: str | None = None

    def __repr__(self) -> str:
        # content digests cover this text: a column with a table of its own reads as it did before tables had names
        shared = "" if self.table is None else f", table={self.table!r}"
        return f"Category(name={self.name!r}, size={self.size!r}{shared})"


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """How one raw number becomes one column of "x": (raw − mean) / std; `std` is above 0."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """How one raw value becomes one column of "c": its place in `values`, as text; as many as the column's codes."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How raw columns become "x" and "c", for models that are used outside of atoll.

    Attributes:
        features: one per column of "x", in order.
        categories: one per column of "c", in order.
    """

    features: tuple[NumericColumn, ...]
    categories: tuple[CategoryColumn, ...] = ()


@dataclass(frozen=True, slots=True)
class DataShape:
    """The form of one example.

    Attributes:
        task: `binary` (labels 0 and 1, one logit) or `multiclass` (labels 0 … num_classes − 1).
        num_classes: number of labels; 2 for binary.
        x_shape: shape of "x" of one example; (0,) when there are only categories.
        x_dtype: `float32`, or `int64` for tokens.
        categories: one per column of "c", in order; empty when the data has no "c".
        vocabulary: number of token codes when x_dtype is `int64`, else 0.
    """

    task: Task
    num_classes: int
    x_shape: tuple[int, ...]
    x_dtype: Literal["float32", "int64"] = "float32"
    categories: tuple[Category, ...] = ()
    vocabulary: int = 0

    @property
    def num_outputs(self) -> int:
        """Logits that a model gives per example: 1 for binary, else num_classes."""
        return 1 if self.task == "binary" else self.num_classes


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that no client trains on.

    Attributes:
        arrays: "x", "y" and, with categories, "c"; rows first, dtypes as `ClientData.gather` gives them.
        client: int64 [rows], the data client each row belongs to; clients that never train have ids ≥ num_clients.
        train_examples: int64 [rows], training examples of that client; 0 for clients that never train.
    """

    arrays: dict[str, Array]
    client: I64
    train_examples: I64

    @property
    def num_rows(self) -> int:
        """Number of held-out rows."""
        return len(self.client)


@runtime_checkable
class ClientData(Protocol):
    """Training examples of every client, addressed by (client id, position); what `open_data` returns.

    Guarantees: every method is a pure function of the source and its arguments, in every process. Any client id ≥ 0 is
    valid: ids map onto the data's clients by `id % num_clients`.

    Two further methods are optional, and are called through `attributes_of` and `encoding_of`: `attributes()`, what is
    publicly known of each client; `encoding()`, how raw columns become "x" and "c".
    """

    @property
    def shape(self) -> DataShape:
        """The form of one example."""
        ...

    @property
    def num_clients(self) -> int:
        """Clients that train."""
        ...

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of content, or of generator parameters; equal identities mean equal rows."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts for reports, such as title and licence; plain values."""
        ...

    def num_examples(self, client_ids: I64) -> I64:
        """Training examples of each client, ≥ 1; same shape as client_ids."""
        ...

    def counts(self) -> I64 | None:
        """int64 [num_clients], training examples of every data client; None when clients are generated on demand."""
        ...

    def gather(self, client_ids: I64, positions: I64) -> dict[str, Array]:
        """Examples of a whole block at once.

        Args:
            client_ids: int64 [L].
            positions: int64 [L, B]; a position ≥ the client's num_examples is padding and gives the client's row 0.

        Returns:
            "x" [L, B, *x_shape] float32 or int64; "y" int64 [L, B]; with categories, "c" int64 [L, B, G].
        """
        ...

    def held_out(self) -> dict[str, HeldOut]:
        """Held-out rows by name: "seen" (later rows of clients that train), "unseen" (clients that never do)."""
        ...
