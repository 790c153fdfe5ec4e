"""The journal: atomic, first row stands, nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import AggregationError, InfrastructureError, SpecError
from atoll.tracking import Journal, Row, StepRecord


def rows_of(step, value=1.0, timestamp_ms=5):
    return [Row("train/loss", step, value, timestamp_ms), Row("sim/hours", step, value / 2, timestamp_ms)]


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.db") as opened:
        yield opened


def test_steps_and_rows_survive_reopening(tmp_path):
    record = StepRecord(3, 10**12, "aa", "bb", {"block": [1, 2], "note": "ü"})
    with Journal(tmp_path / "j.db") as journal:
        assert journal.last_step == -1
        assert journal.commit([record, StepRecord(4, 5, "c")], rows_of(3)) == 2
        journal.put("plan_digest", "f00")
    with Journal(tmp_path / "j.db") as journal:
        assert journal.steps() == [record, StepRecord(4, 5, "c")]
        assert (journal.last_step, journal.num_pending, journal.get("plan_digest"), journal.get("none")) == (
            4,
            2,
            "f00",
            None,
        )
        assert journal.rows() == rows_of(3)
        assert journal.history() == {"train/loss": [(3, 1.0)], "sim/hours": [(3, 0.5)]}


def test_the_first_row_for_a_key_and_step_stands(journal):
    journal.commit([], rows_of(1, 1.0, 5))
    assert journal.commit([], [*rows_of(1, 7.0, 99), Row("new", 1, 2.0, 99)]) == 1
    assert journal.rows() == [*rows_of(1, 1.0, 5), Row("new", 1, 2.0, 99)]


def test_a_step_that_comes_again_with_other_bits_is_refused_whole(journal):
    journal.commit([StepRecord(1, 5, "a", "w")], rows_of(1))
    assert journal.commit([StepRecord(1, 5, "a", "w")], []) == 0
    for other in (StepRecord(1, 5, "b", "w"), StepRecord(1, 5, "a", "x")):
        with pytest.raises(AggregationError, match="step 1"):
            journal.commit([StepRecord(2, 6, "z"), other], rows_of(2))
    assert (journal.last_step, journal.num_rows) == (1, 2)


def test_an_illegal_row_refuses_the_whole_commit(journal):
    with pytest.raises(SpecError):
        journal.commit([StepRecord(1, 5, "a")], [Row("a@", 1, 1.0, 5)])
    assert journal.last_step == -1


def test_values_that_are_not_finite_are_counted(journal):
    journal.commit([StepRecord(0, 5, "a")], [Row("a", 0, float("nan"), 5), Row("b", 0, 1.0, 5)])
    journal.commit([], [Row("a", 1, float("inf"), 5)])
    assert (journal.left_out, journal.num_rows) == (2, 1)


def test_acknowledging_moves_forward_only(journal):
    journal.commit([], [row for step in range(5) for row in rows_of(step)])
    ids = [row_id for row_id, _ in journal.pending(4)]
    assert len(ids) == 4
    journal.ack(ids[-1])
    journal.ack(ids[0])
    assert journal.num_pending == 6
    assert journal.pending(1)[0][1] == rows_of(2)[0]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 3)), max_size=30), st.integers(1, 5)
)
def test_any_interleaving_of_commits_and_acks_publishes_each_first_row_once(tmp_path_factory, events, every):
    expected, published = {}, []
    with Journal(tmp_path_factory.mktemp("j") / "j.db") as journal:
        for index, (key, step, value) in enumerate(events):
            expected.setdefault((key, step), float(value))
            journal.commit([], [Row(key, step, value, index)])
            if index % every == 0:
                batch = journal.pending(2)
                published += [row for _, row in batch]
                if batch:
                    journal.ack(batch[-1][0])
        published += [row for _, row in journal.pending(100)]
    assert sorted(((r.key, r.step), r.value) for r in published) == sorted(expected.items())


def test_another_process_may_read_while_this_one_commits(tmp_path):
    path, published = tmp_path / "j.db", []
    with Journal(path) as writer, Journal(path) as reader:
        for step in range(20):
            writer.commit([StepRecord(step, step, "a")], rows_of(step))
            batch = reader.pending(1000)
            published += [row for _, row in batch]
            reader.ack(batch[-1][0])
    assert published == [row for step in range(20) for row in rows_of(step)]


def test_a_killed_process_loses_no_committed_step(tmp_path):
    path = tmp_path / "j.db"
    code = (
        "import sys, os\nfrom atoll.tracking import *\nj = Journal(sys.argv[1])\n"
        "for s in range(10**9):\n    j.commit([StepRecord(s, s, 'a')], [Row('a', s, s, 5), Row('b', s, s, 5)])\n"
        "    print(s, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    with child:
        said = -1
        while said < 50:
            said = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        said = max([said, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    with Journal(path) as journal:
        assert journal.last_step >= said
        assert [record.step for record in journal.steps()] == list(range(journal.last_step + 1))
        assert journal.num_rows == 2 * (journal.last_step + 1)


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "x").write_text("hello, this is not a database at all" * 10)
    with pytest.raises(InfrastructureError, match="cannot be opened"):
        Journal(tmp_path / "x")


def test_the_file_is_ordinary_sqlite(journal):
    journal.commit([StepRecord(0, 1, "a")], rows_of(0))
    with closing(sqlite3.connect(journal.path)) as db:
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (2,)
