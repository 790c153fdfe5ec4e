"""Model versions in the coordinator's process: how they travel to pools, and which pool holds which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ray

from atoll.messages import ModelVersion, VersionedTable
from atoll.runtime.changes import change_of, newer

__all__ = ["Bundles"]

#: Bytes of a version up to which it travels in the call: putting it into the object store first costs more.
_MOST_IN_CALL = 64 * 1024


class Bundles:
    """The versions that somebody may still ask for; large ones are put into the object store when first sent.

    Of a model with large tables a pool gets one whole version, then the rows in which others differ from the newest
    that it has.

    Args:
        num_pools: client pools, numbered from 0.
        sent_bytes: what the run has sent before.

    Attributes:
        sent_bytes: of versions and changes, to pools; one that lies in the object store counts for each that asks.
    """

    def __init__(self, num_pools: int, sent_bytes: int = 0) -> None:
        self.sent_bytes = sent_bytes
        self._models: dict[int, ModelVersion] = {}
        #: version → reference to a bundle of it alone
        self._references: dict[int, Any] = {}
        #: the last change that was made: (base, version) and its bundle; pools that go along get the same one
        self._last_change: tuple[tuple[int, int], Any] | None = None
        self._change_bytes = 0
        self._held: list[set[int]] = [set() for _ in range(num_pools)]
        self._forget: list[list[int]] = [[] for _ in range(num_pools)]
        #: per pool the newest version sent, which changes refer to; the pool keeps it as long
        self._bases: list[ModelVersion | None] = [None] * num_pools

    def __getitem__(self, version: int) -> ModelVersion:
        return self._models[version]

    def add(self, models: Iterable[ModelVersion]) -> None:
        """New versions."""
        for model in models:
            self._models[model.version] = model
            # A base holds all rows changed since: too many for a pool that is not asked for long.
            self._bases = [None if base is None or _is_far(base, model) else base for base in self._bases]

    def send(self, pool: int, versions: Sequence[int]) -> tuple[list[int], list[Any]]:
        """(versions to forget, bundles that the pool lacks), noting what it then holds."""
        missing = [self._models[version] for version in versions if version not in self._held[pool]]
        small = [model for model in missing if _bytes(model) <= _MOST_IN_CALL]
        bundles: list[Any] = [small] if small else []
        self.sent_bytes += sum(map(_bytes, small))
        for model in sorted(missing, key=lambda one: one.version):
            if _bytes(model) > _MOST_IN_CALL:
                bundles.append(self._bundle(model, self._bases[pool]))
                self._bases[pool] = newer(self._bases[pool], model)
        self._held[pool].update(model.version for model in missing)
        forget, self._forget[pool] = self._forget[pool], []
        return forget, bundles

    def drop(self, versions: Iterable[int]) -> None:
        """Nobody needs these any more; pools that hold them are told with the next call."""
        for version in versions:
            self._models.pop(version, None)
            self._references.pop(version, None)
            for pool, held in enumerate(self._held):
                if version in held:
                    held.discard(version)
                    self._forget[pool].append(version)

    def lost(self, pool: int) -> None:
        """The pool holds nothing any more."""
        self._held[pool], self._forget[pool], self._bases[pool] = set(), [], None

    def _bundle(self, model: ModelVersion, base: ModelVersion | None) -> Any:
        if base is not None and self._last_change is not None and self._last_change[0] == (base.version, model.version):
            self.sent_bytes += self._change_bytes
            return self._last_change[1]
        change = change_of(base, model)
        if change is not None:
            bundle = [change] if change.nbytes <= _MOST_IN_CALL else ray.put([change])
            self._last_change, self._change_bytes = ((change.base, change.version), bundle), change.nbytes
            self.sent_bytes += change.nbytes
            return bundle
        self.sent_bytes += _bytes(model)
        if model.version not in self._references:
            self._references[model.version] = ray.put([model])
        return self._references[model.version]


def _is_far(base: ModelVersion, model: ModelVersion) -> bool:
    """Whether steps have changed as many rows in between as a table has."""
    pairs = zip(base.tables, model.tables, strict=True)
    return any(
        new.changed_rows - old.changed_rows > new.shape[0]
        for old, new in pairs
        if isinstance(old, VersionedTable) and isinstance(new, VersionedTable)
    )


def _bytes(model: ModelVersion) -> int:
    return model.dense.nbytes + sum(table.nbytes for table in model.tables)
