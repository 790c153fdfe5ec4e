"""Snapshots: the state comes back bit by bit, each version lies in one file, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.aggregation import AggregatorState
from atoll.errors import InfrastructureError
from atoll.messages import ModelVersion
from atoll.runtime.store import Commit, LocalFiles, SnapshotRecord, Snapshots, SqliteJournal, StepRecord

SHAPES = {"dense": (), "tables": ((5, 3), (2, 4))}


def model_of(version: int, tables: tuple[tuple[int, int], ...]) -> ModelVersion:
    draw = np.random.default_rng(version)
    dense = draw.standard_normal(7).astype(np.float32)
    dense[:4] = [np.nan, -0.0, np.inf, np.float32(1e-42)]
    return ModelVersion(version, dense, tuple(draw.standard_normal(shape).astype(np.float32) for shape in tables))


def state_of(version: int, live: tuple[int, ...], tables=(), moments: int = 0) -> AggregatorState:
    models = {number: model_of(number, tables) for number in live}
    newest = models[version]
    optimizer = tuple(
        tuple(np.full_like(array, 10 * version + moment) for moment in range(moments))
        for array in (newest.dense, *newest.tables)
    )
    return AggregatorState(version, models, optimizer)


def assert_same_bits(found: AggregatorState, expected: AggregatorState) -> None:
    assert (found.version, sorted(found.models)) == (expected.version, sorted(expected.models))
    for version, model in expected.models.items():
        arrays, wanted = (found.models[version].dense, *found.models[version].tables), (model.dense, *model.tables)
        assert [(a.dtype, a.shape, a.tobytes()) for a in arrays] == [(a.dtype, a.shape, a.tobytes()) for a in wanted]
    assert len(found.optimizer) == len(expected.optimizer)
    for moments, wanted_moments in zip(found.optimizer, expected.optimizer, strict=True):
        assert [(m.shape, m.tobytes()) for m in moments] == [(m.shape, m.tobytes()) for m in wanted_moments]


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "snapshots")


def stored(files: LocalFiles) -> dict[str, list[int]]:
    """file → versions whose dense part it holds."""
    from safetensors.numpy import load

    return {
        name: sorted(
            int(key.split(".")[1]) for key in load(files.read(name)) if key.endswith(".0") and "version" in key
        )
        for name in files.names()
    }


@pytest.mark.parametrize("tables", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("moments", [0, 1, 2])
def test_the_state_comes_back_bit_by_bit(files, tables, moments):
    state = state_of(4, (2, 3, 4), tables, moments)
    record = Snapshots(files, 1).write(state, (2, 3, 4))
    assert (record.version, sorted(record.version_files), sorted(record.hashes)) == (4, [2, 3, 4], files.names())
    assert_same_bits(Snapshots(files, 2).read(record), state)


def test_an_array_that_is_not_contiguous_comes_back(files):
    table = np.arange(12, dtype=np.float32).reshape(3, 4).T
    state = AggregatorState(0, {0: ModelVersion(0, np.arange(14, dtype=np.float32)[::2], (table,))}, ((), ()))
    assert_same_bits(Snapshots(files, 1).read(Snapshots(files, 1).write(state, (0,))), state)


def test_each_live_version_is_stored_once(files):
    snapshots = Snapshots(files, 1)
    snapshots.write(state_of(2, (0, 1, 2)), (0, 1, 2))
    assert snapshots.saved_versions == {0, 1, 2}
    record = snapshots.write(state_of(4, (3, 4)), (1, 2, 3, 4))  # memory let go of versions 1 and 2
    assert list(stored(files).values()) == [[0, 1, 2], [3, 4]]
    assert snapshots.saved_versions == {1, 2, 3, 4}
    assert_same_bits(Snapshots(files, 2).read(record), state_of(4, (1, 2, 3, 4)))
    last = snapshots.write(state_of(5, (5,), moments=2), (4, 5))
    assert list(stored(files).values()) == [[0, 1, 2], [3, 4], [5]]
    assert sorted(last.hashes) == files.names()[1:]
    assert_same_bits(Snapshots(files, 2).read(last), state_of(5, (4, 5), moments=2))


def test_who_goes_on_shares_the_files_that_were_read(files):
    record = Snapshots(files, 1).write(state_of(2, (1, 2)), (1, 2))
    snapshots = Snapshots(files, 2)
    snapshots.read(record)
    again = snapshots.write(state_of(3, (2, 3)), (2, 3))
    assert list(stored(files).values()) == [[1, 2], [3]]
    assert_same_bits(Snapshots(files, 3).read(again), state_of(3, (2, 3)))


def test_another_epoch_overwrites_nothing(files):
    old, new = state_of(1, (1,)), state_of(1, (1,), moments=1)
    records = [Snapshots(files, 1).write(old, (1,)), Snapshots(files, 2).write(new, (1,))]
    assert len(files.names()) == 2
    for record, state in zip(records, (old, new), strict=True):
        assert_same_bits(Snapshots(files, 3).read(record), state)


def test_files_that_no_kept_snapshot_needs_are_reported_and_deleted(files, tmp_path):
    with SqliteJournal(tmp_path / "journal.db") as journal:
        snapshots = Snapshots(files, journal.claim())

        def take(version: int, fresh: tuple[int, ...], live: tuple[int, ...]) -> SnapshotRecord:
            record = snapshots.write(state_of(version, fresh), live)
            steps = tuple(StepRecord(number, number, "s") for number in range(journal.last_step + 1, version))
            journal.commit(Commit(steps, snapshot=record))
            snapshots.delete(journal.keep_snapshots(2))
            return record

        records = [
            take(2, (1, 2), (1, 2)),
            take(3, (3,), (1, 3)),
            take(4, (4,), (3, 4)),  # the snapshot of version 3 still needs version 1
        ]
        assert len(files.names()) == 3
        records.append(take(5, (5,), (4, 5)))
        assert files.names() == sorted({*records[2].hashes, *records[3].hashes})
        assert journal.snapshots() == [records[3], records[2]]
        for record, live in ((records[3], (4, 5)), (records[2], (3, 4))):
            assert_same_bits(Snapshots(files, 9).read(record), state_of(record.version, live))


@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_bit_is_named(files, place):
    record = Snapshots(files, 1).write(state_of(3, (3,), SHAPES["tables"], 2), (3,))
    data = bytearray(files.read(record.state_file))
    data[int(place * len(data)) if place > 0 else int(place)] ^= 1
    files.write(record.state_file, bytes(data))
    with pytest.raises(InfrastructureError, match=rf"{record.state_file}: SHA-256 is \w+, \w+ was committed: damaged"):
        Snapshots(files, 2).read(record)


def test_a_missing_file_is_named(files):
    snapshots = Snapshots(files, 1)
    first = snapshots.write(state_of(1, (1,)), (1,))
    record = snapshots.write(state_of(2, (2,)), (1, 2))
    snapshots.delete([first.state_file])
    with pytest.raises(InfrastructureError, match=rf"{first.state_file}: reading failed"):
        Snapshots(files, 2).read(record)
