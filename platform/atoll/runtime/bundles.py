"""Model versions in the coordinator's process: how they travel to pools, and which pool holds which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ray

from atoll.messages import ModelVersion

__all__ = ["Bundles"]

#: Bytes of a version up to which it travels in the call: putting it into the object store first costs more.
_MOST_IN_CALL = 64 * 1024


class Bundles:
    """The versions that somebody may still ask for; large ones are put into the object store when first sent.

    Args:
        num_pools: client pools, numbered from 0.
    """

    def __init__(self, num_pools: int) -> None:
        self._models: dict[int, ModelVersion] = {}
        #: version → reference to a bundle of it alone
        self._references: dict[int, Any] = {}
        self._held: list[set[int]] = [set() for _ in range(num_pools)]
        self._forget: list[list[int]] = [[] for _ in range(num_pools)]

    def __getitem__(self, version: int) -> ModelVersion:
        return self._models[version]

    def add(self, models: Iterable[ModelVersion]) -> None:
        """New versions."""
        self._models.update({model.version: model for model in models})

    def send(self, pool: int, versions: Sequence[int]) -> tuple[list[int], list[Any]]:
        """(versions to forget, bundles that the pool lacks), noting what it then holds."""
        missing = [self._models[version] for version in versions if version not in self._held[pool]]
        small = [model for model in missing if _bytes(model) <= _MOST_IN_CALL]
        bundles: list[Any] = [small] if small else []
        for model in missing:
            if _bytes(model) > _MOST_IN_CALL:
                if model.version not in self._references:
                    self._references[model.version] = ray.put([model])
                bundles.append(self._references[model.version])
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
        self._held[pool], self._forget[pool] = set(), []


def _bytes(model: ModelVersion) -> int:
    return model.dense.nbytes + sum(table.nbytes for table in model.tables)
