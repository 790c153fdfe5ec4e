"""Tables that share memory between versions read like arrays of their own, whatever is stepped, dropped and sent."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation import AggregatorState
from atoll.errors import AtollError
from atoll.messages import ModelVersion, VersionedTable, model_digest, whole
from atoll.runtime.changes import Change, apply_change, change_of, newer
from atoll.runtime.store import LocalFiles, Snapshots

ROWS, DIM = 40, 2
#: rows of a step: mostly few, now and then so many that the table is copied
STEP = st.one_of(st.sets(st.integers(0, ROWS - 1), max_size=4), st.sets(st.integers(0, ROWS - 1), min_size=6))


def first() -> np.ndarray:
    return np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)


def history(steps):
    """(versioned tables, plain arrays) of version 0 and of every step's."""
    table, plain = VersionedTable(first()), first()
    tables, plains = [table], [plain]
    for number, step in enumerate(steps):
        rows = np.array(sorted(step), dtype=np.int64)
        values = np.float32(1000 * (number + 1)) + np.arange(rows.size * DIM, dtype=np.float32).reshape(-1, DIM)
        table, plain = table.stepped(rows, values), plain.copy()
        plain[rows] = values
        tables.append(table)
        plains.append(plain)
    return tables, plains


def model(version, table):
    return ModelVersion(version, np.float32([version]), (table,))


@given(st.lists(STEP, max_size=12), st.data())
def test_every_held_version_reads_like_an_array_of_its_own(steps, data):
    tables, plains = history(steps)
    held = data.draw(st.sets(st.integers(0, len(steps)), min_size=1))
    tables = {version: table for version, table in enumerate(tables) if version in held}
    rows = np.array(data.draw(st.lists(st.integers(0, ROWS - 1))), dtype=np.int64)
    for version, table in tables.items():
        np.testing.assert_array_equal(table[rows], plains[version][rows])
        np.testing.assert_array_equal(np.asarray(table), plains[version])
        np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(table))), plains[version])
        assert model_digest(model(version, table)) == model_digest(model(version, plains[version]))


@given(st.lists(STEP, min_size=1, max_size=6), STEP, st.data())
def test_a_second_successor_of_an_old_version_disturbs_nobody(steps, other, data):
    tables, plains = history(steps)
    at = data.draw(st.integers(0, len(steps) - 1))
    rows = np.array(sorted(other), dtype=np.int64)
    branch, want = tables[at].stepped(rows, np.full((rows.size, DIM), -1, np.float32)), plains[at].copy()
    want[rows] = -1
    np.testing.assert_array_equal(np.asarray(branch), want)
    for table, plain in zip(tables, plains, strict=True):
        np.testing.assert_array_equal(np.asarray(table), plain)


@given(st.lists(STEP, min_size=1, max_size=12), st.data())
def test_a_pool_that_gets_changes_in_any_order_has_the_whole_versions(steps, data):
    tables, plains = history(steps)
    order = data.draw(st.permutations(range(len(tables))))
    sender = receiver = None
    have = {}
    for version in order[: data.draw(st.integers(1, len(order)))]:
        sent = model(version, tables[version])
        change = change_of(sender, sent)
        sender = newer(sender, sent)
        got = pickle.loads(pickle.dumps(sent if change is None else change))
        got = apply_change(receiver, got) if isinstance(got, Change) else got
        receiver = newer(receiver, got)
        have[version] = got
        if data.draw(st.booleans()):
            have.pop(data.draw(st.sampled_from(sorted(have))))
        for known, found in have.items():
            assert (found.version, found.dense[0]) == (known, known)
            np.testing.assert_array_equal(np.asarray(found.tables[0]), plains[known])


def test_a_change_of_a_version_that_is_not_there_is_refused():
    tables, _ = history([{1}, {2}])
    change = change_of(model(0, tables[0]), model(2, tables[2]))
    assert change is not None
    assert change.tables[0][0].tolist() == [1, 2]
    for base in (None, model(1, tables[1])):
        with pytest.raises(AtollError, match="version 0"):
            apply_change(base, change)


def test_the_array_that_a_table_is_made_of_is_never_written():
    given_array = first()
    VersionedTable(given_array).stepped(np.array([1]), np.float32([[7, 7]]))
    np.testing.assert_array_equal(given_array, first())


def test_memory_is_one_array_and_the_rows_of_held_versions():
    tables, _ = history([{1}, {1, 2}, {3}])
    assert [table._array is None for table in tables] == [True, True, True, False]
    assert [table._undo[0].tolist() for table in tables[:-1]] == [[1], [1, 2], [3]]
    assert tables[-1]._undo is None  # the newest refers to no older one: who drops those drops their rows


def test_what_leaves_a_run_has_arrays_of_its_own():
    tables, plains = history([{1}, {2}])
    out = whole(model(2, tables[2]))
    tables[2].stepped(np.array([5]), np.float32([[0, 0]]))
    assert isinstance(out.tables[0], np.ndarray)
    np.testing.assert_array_equal(out.tables[0], plains[2])


@settings(deadline=None, max_examples=25)
@given(st.lists(STEP, min_size=2, max_size=8), st.data())
def test_snapshots_give_every_version_back(tmp_path_factory, steps, data):
    tables, plains = history(steps)
    folder, last = tmp_path_factory.mktemp("snapshots"), len(steps)
    writer = Snapshots(LocalFiles(folder), epoch=1)
    middle = data.draw(st.integers(0, last - 1))
    live = data.draw(st.sets(st.integers(0, last)))
    for end in (middle, last):
        state = AggregatorState(end, {v: model(v, tables[v]) for v in range(end + 1)}, ((), ()))
        record = writer.write(state, {*(v for v in live if v <= end), end})
    found = Snapshots(LocalFiles(folder), epoch=2).read(record)
    assert set(found.models) == live | {last}
    for version, got in found.models.items():
        assert got.dense[0] == version
        np.testing.assert_array_equal(np.asarray(got.tables[0]), plains[version])


@pytest.mark.parametrize("changed", [1, 400])
def test_rows_that_differ_are_found_where_few_and_where_many_changed(changed):
    table = VersionedTable(np.zeros((10_000, 1), dtype=np.float32))
    last = table
    for begin in (500, 100, 500 + changed - 1):
        last = last.stepped(np.arange(begin, begin + changed), np.ones((changed, 1), dtype=np.float32))
    want = sorted(
        {*range(500, 500 + changed), *range(100, 100 + changed), *range(500 + changed - 1, 499 + 2 * changed)}
    )
    assert last.differing(table).tolist() == table.differing(last).tolist() == want
