"""Snapshots: the aggregator's state as safetensors files, each model version stored once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import cast

import numpy as np

from atoll.aggregation import AggregatorState
from atoll.errors import InfrastructureError
from atoll.messages import ModelVersion, Table, VersionedTable
from atoll.runtime.store.files import Files
from atoll.runtime.store.records import SnapshotRecord

__all__ = ["Snapshots", "epoch_of"]


class Snapshots:
    """Writes and reads snapshots of one aggregator. Names carry the epoch, so that a zombie overwrites nothing.

    Args:
        files: where.
        epoch: of the writer.
    """

    def __init__(self, files: Files, epoch: int) -> None:
        self._files, self._epoch = files, epoch
        #: version → file that holds it, and file → SHA-256, of what the last snapshot referred to
        self._version_files: dict[int, str] = {}
        self._hashes: dict[str, str] = {}

    @property
    def saved_versions(self) -> frozenset[int]:
        """Versions that lie in files already."""
        return frozenset(self._version_files)

    def write(self, state: AggregatorState, live: Collection[int]) -> SnapshotRecord:
        """Makes `state` durable.

        Args:
            state: its `models` hold every version of `live` that is not saved yet.
            live: versions that a task may still start from, and the state's own.

        Returns:
            What the journal is to commit; until it does, the files are garbage.
        """
        kept = {version: self._version_files[version] for version in live if version in self._version_files}
        name = f"version-{state.version:08d}-epoch-{self._epoch}.safetensors"
        fresh = {version: state.models[version] for version in live if version not in kept}
        data = _encode(state, fresh)
        self._files.write(name, data)
        files = {**kept, **dict.fromkeys(fresh, name)}
        hashes = {file: self._hashes[file] for file in set(kept.values())}
        hashes[name] = hashlib.sha256(data).hexdigest()
        self._version_files, self._hashes = files, hashes
        return SnapshotRecord(state.version, name, dict(sorted(files.items())), hashes)

    def read(self, record: SnapshotRecord) -> AggregatorState:
        """The state that `record` names; later snapshots share its files.

        Raises:
            InfrastructureError: a file is missing, or its bytes are not those that were committed.
        """
        models: dict[int, ModelVersion] = {}
        states: list[tuple[np.ndarray, ...]] = []
        for name, sha in record.hashes.items():
            data = self._files.read(name)
            found = hashlib.sha256(data).hexdigest()
            if found != sha:
                place = f"{self._files.place}/{name}"
                raise InfrastructureError(f"{place}: SHA-256 is {found[:12]}, {sha[:12]} was committed: damaged")
            here, optimizer = _decode(data)
            models |= {version: model for version, model in here.items() if record.version_files.get(version) == name}
            if name == record.state_file:
                states = optimizer
        self._version_files, self._hashes = dict(record.version_files), dict(record.hashes)
        return AggregatorState(record.version, models, tuple(states))

    def delete(self, names: Iterable[str]) -> None:
        """Removes files that no snapshot in the journal needs."""
        for name in names:
            self._files.delete(name)


_FILE = re.compile(r"version-\d+-epoch-(\d+)\.safetensors(\.\d+\.tmp)?")


def epoch_of(name: str) -> int:
    """The epoch that wrote a snapshot file, or began to; 0 for other files."""
    match = _FILE.fullmatch(name)
    return 0 if match is None else int(match.group(1))


_NAME = re.compile(r"version\.(\d+)\.(\d+)(?:\.(rows|values))?|optimizer\.(\d+)\.(\d+)")


def _encode(state: AggregatorState, models: dict[int, ModelVersion]) -> bytes:
    from safetensors.numpy import save

    newest = models.get(state.version)
    arrays: dict[str, np.ndarray] = {}
    for version, model in models.items():
        arrays[f"version.{version}.0"] = np.ascontiguousarray(model.dense)
        for index, table in enumerate(model.tables, start=1):
            name, rows = f"version.{version}.{index}", None
            base = None if newest is None or model is newest else newest.tables[index - 1]
            if isinstance(table, VersionedTable) and isinstance(base, VersionedTable):
                rows = table.differing(base)
            # An older version is the rows in which it differs from the newest: a file holds a large table once.
            if rows is None:
                arrays[name] = np.ascontiguousarray(table)
            else:
                arrays |= {f"{name}.rows": rows, f"{name}.values": table[rows]}
    arrays |= {
        f"optimizer.{index}.{moment}": np.ascontiguousarray(array)
        for index, moments in enumerate(state.optimizer)
        for moment, array in enumerate(moments)
    }
    # the number of parameter arrays: an optimizer without memory leaves no tensor to count
    return bytes(save(arrays, metadata={"arrays": str(len(state.optimizer)), "version": str(state.version)}))


def _decode(data: bytes) -> tuple[dict[int, ModelVersion], list[tuple[np.ndarray, ...]]]:
    import json

    from safetensors.numpy import load

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    count, newest = int(metadata["arrays"]), int(metadata["version"])
    versions: dict[int, dict[int, Table]] = {}
    changes: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    moments: list[dict[int, np.ndarray]] = [{} for _ in range(count)]
    for name, array in load(data).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InfrastructureError(f"a snapshot holds tensor {name!r}: written by another version of atoll?")
        version, part, kind, index, moment = match.groups()
        if version is not None and kind is not None:
            changes.setdefault((int(version), int(part)), {})[kind] = array
        elif version is not None:
            versions.setdefault(int(version), {})[int(part)] = array
        else:
            moments[int(index)][int(moment)] = array
    for place in {place for _, place in changes}:
        versions[newest][place] = VersionedTable(np.asarray(versions[newest][place]))
    for (number, place), found in changes.items():
        base = cast("VersionedTable", versions[newest][place])
        versions[number][place] = base.older(found["rows"], found["values"])
    models = {
        number: ModelVersion(number, np.asarray(parts[0]), tuple(parts[i] for i in range(1, len(parts))))
        for number, parts in versions.items()
    }
    return models, [tuple(own[i] for i in range(len(own))) for own in moments]
