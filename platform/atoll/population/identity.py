"""A digest of what a frozen record says, so that plans and timelines can name exactly what they were made from."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import Any

import numpy as np

__all__ = ["identity"]


def _text(value: Any) -> str:
    own = getattr(value, "identity", None)
    if isinstance(own, str):
        return f"{type(value).__qualname__}<{own}>"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (f"{f.name}={_text(getattr(value, f.name))}" for f in dataclasses.fields(value) if f.init)
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array<{value.dtype.str}{value.shape}{digest}>"
    if isinstance(value, tuple):
        return f"({', '.join(_text(item) for item in value)})"
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, np.generic):
        return _text(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return f"{type(value).__name__}:{value!r}"
    raise TypeError(f"{type(value).__qualname__} has no identity: give it an `identity` string or make it a dataclass")


def identity(record: Any) -> str:
    """SHA-256 (hex) over the type name and the constructor fields of a frozen record, nested records included.

    A nested object that has a string attribute `identity` is taken at its word: that is how foreign laws take part.

    Errors: TypeError where a field is neither plain, an array, a tuple nor a record.
    Purity: pure.
    """
    return hashlib.sha256(_text(record).encode()).hexdigest()
