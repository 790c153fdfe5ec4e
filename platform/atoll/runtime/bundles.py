"""Model versions in the object store: references to them, and which pool holds which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Bundles"]


class Bundles:
    """Versions that closed together travel together, as one bundle; whoever makes this object owns the references.

    Args:
        num_pools: client pools, numbered from 0.
    """

    def __init__(self, num_pools: int) -> None:
        self._references: dict[int, Any] = {}
        self._held: list[set[int]] = [set() for _ in range(num_pools)]
        self._forget: list[list[int]] = [[] for _ in range(num_pools)]

    def __getitem__(self, version: int) -> Any:
        return self._references[version]

    def add(self, references: Mapping[int, Any]) -> None:
        """Version → reference to the bundle that holds it."""
        self._references.update(references)

    def send(self, pool: int, versions: Iterable[int]) -> tuple[list[int], list[Any]]:
        """(versions to forget, bundles that the pool lacks), noting what it then holds."""
        missing = [version for version in versions if version not in self._held[pool]]
        bundles = list({id(self._references[v]): self._references[v] for v in missing}.values())
        self._held[pool].update(missing)
        forget, self._forget[pool] = self._forget[pool], []
        return forget, bundles

    def drop(self, versions: Iterable[int]) -> None:
        """Nobody needs these any more; pools that hold them are told with the next call."""
        for version in versions:
            self._references.pop(version, None)
            for pool, held in enumerate(self._held):
                if version in held:
                    held.discard(version)
                    self._forget[pool].append(version)

    def lost(self, pool: int) -> None:
        """The pool holds nothing any more."""
        self._held[pool], self._forget[pool] = set(), []
