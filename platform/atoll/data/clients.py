"""What client data may say beyond its rows: public attributes of clients, the encoding of columns.

Both are optional: data of your own that says neither has no attributes and no encoding.

Shape legend: D data clients that train, U clients that never train.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from atoll.data.shape import Array, ClientData, Encoding
from atoll.errors import Problem, SpecError

__all__ = ["attributes_of", "encoding_of", "is_null"]


def attributes_of(data: ClientData) -> Mapping[str, Array]:
    """What is publicly known of each client: name → [D + U], numbers or text; `is_null` says where nothing is known.

    {} for data without `attributes()`.

    Raises:
        SpecError: columns that are not one value per client, all of them.
    """
    method = getattr(data, "attributes", None)
    if not callable(method):
        return {}
    columns = {name: np.asarray(values) for name, values in method().items()}
    problems, lengths = [], {len(values) for values in columns.values() if values.ndim == 1}
    for name, values in columns.items():
        if values.ndim != 1 or len(values) < data.num_clients or len(values) != max(lengths):
            rule = f"one value per client: {data.num_clients} that train, then those that never do"
            problems.append(Problem("data", f"attribute {name!r} of shape {values.shape}", rule))
    if problems:
        raise SpecError(problems)
    return columns


def encoding_of(data: ClientData) -> Encoding | None:
    """How raw columns become "x" and "c"; None for data that does not say.

    Raises:
        SpecError: an encoding that does not fit the data's shape, everything that does not.
    """
    method = getattr(data, "encoding", None)
    encoding = method() if callable(method) else None
    if not isinstance(encoding, Encoding):
        return None
    problems, shape = [], data.shape
    if shape.x_shape != (len(encoding.features),):
        got = f"an encoding of {len(encoding.features)} features"
        problems.append(Problem("data", got, f"one per column of x, whose shape is {shape.x_shape}"))
    problems += [
        Problem("data", f"feature {column.name!r} with std {column.std}", "a number above 0")
        for column in encoding.features
        if not column.std > 0
    ]
    sizes = [len(column.values) for column in encoding.categories]
    if sizes != [category.size for category in shape.categories]:
        expected = [category.size for category in shape.categories]
        problems.append(Problem("data", f"an encoding of categories with {sizes} values", f"{expected} values"))
    if problems:
        raise SpecError(problems)
    return encoding


def is_null(values: Array) -> npt.NDArray[np.bool_]:
    """Where an attribute says nothing: None, NaN or "". Same shape as values. Pure."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind in "US":
        return np.asarray(values == values.dtype.type(), dtype=np.bool_)
    if values.dtype.kind == "O":
        # NaN is the one value that differs from itself
        return np.array([value is None or value == "" or value != value for value in values], dtype=np.bool_)
    return np.zeros(values.shape, dtype=np.bool_)
