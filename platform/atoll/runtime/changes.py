"""A model version as the rows in which it differs from one that the receiver has: large tables travel once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll.errors import AtollError
from atoll.messages import ModelVersion, VersionedTable

__all__ = ["Change", "apply_change", "change_of", "newer"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """What makes `version` out of version `base`; either may be the newer one.

    Attributes:
        base: the version that the receiver has.
        version: the version meant.
        dense: float32 [P], all dense parameters of `version`.
        tables: per table its rows (ascending) that may differ, and their values in `version`.
    """

    base: int
    version: int
    dense: F32
    tables: tuple[tuple[I64, F32], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.dense.nbytes + sum(rows.nbytes + values.nbytes for rows, values in self.tables)


def change_of(base: ModelVersion | None, model: ModelVersion) -> Change | None:
    """What makes `model` out of `base`; None where `model` has to travel whole."""
    if base is None or not model.tables:
        return None
    tables = []
    for old, new in zip(base.tables, model.tables, strict=True):
        if not (isinstance(old, VersionedTable) and isinstance(new, VersionedTable)):
            return None
        rows = new.differing(old)
        if rows is None:
            return None
        tables.append((rows, new[rows]))
    return Change(base.version, model.version, model.dense, tuple(tables))


def apply_change(base: ModelVersion | None, change: Change) -> ModelVersion:
    """The version that `change` means, made of `base` in the memory of `base`."""
    if base is None or base.version != change.base:
        held = "nothing" if base is None else f"version {base.version}"
        raise AtollError(f"version {change.version} came as a change of version {change.base}; {held} is here")
    tables = []
    for table, (rows, values) in zip(base.tables, change.tables, strict=True):
        shared = table if isinstance(table, VersionedTable) else VersionedTable(table)
        tables.append(shared.stepped(rows, values) if change.version > change.base else shared.older(rows, values))
    return ModelVersion(change.version, change.dense, tuple(tables))


def newer(base: ModelVersion | None, model: ModelVersion) -> ModelVersion | None:
    """What later changes refer to, at both ends, once `model` has been sent."""
    if not any(isinstance(table, VersionedTable) for table in model.tables):
        return base
    return model if base is None or model.version > base.version else base
