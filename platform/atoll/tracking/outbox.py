"""The journal of a run: steps and their metric rows, durable together until they are published.

A server step and its rows are committed in one transaction. Publishing happens later, in any thread or process, and is
acknowledged by a watermark; a tracking store that is down lets the outbox grow and never stops training. The first row
for one (key, step) stands: a step that is computed again after a crash adds nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.errors import AggregationError, InfrastructureError
from atoll.tracking.rows import MAX_BATCH_ROWS, Row, finite_rows

__all__ = ["Journal", "StepRecord"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER PRIMARY KEY, closed_us INTEGER NOT NULL, sum_sha TEXT NOT NULL, weights_sha TEXT NOT NULL,
    record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, step INTEGER NOT NULL, value REAL NOT NULL,
    timestamp_ms INTEGER NOT NULL, UNIQUE (key, step));
"""
_ACKED = "outbox.acked_id"
_LEFT_OUT = "outbox.left_out"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed server step.

    Attributes:
        step: the server step, ≥ 0.
        closed_us: virtual time at which its buffer was full.
        sum_sha: SHA-256 of the step's exact sum.
        weights_sha: digest of the version it made; empty where weights were not hashed at this step.
        record: anything else, plain JSON values.
    """

    step: int
    closed_us: int
    sum_sha: str
    weights_sha: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The journal file of one run (SQLite, WAL).

    One object belongs to one thread; another thread or process opens its own on the same path. After a crash of the
    process every committed transaction is there; after a power cut the last ones may be missing, as a whole.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise InfrastructureError(f"journal {self.path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file; the object is of no use afterwards."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, steps: Sequence[StepRecord], rows: Iterable[Row]) -> int:
        """Write steps and rows in one transaction: all or nothing.

        Rows need not belong to `steps` (an evaluation may come later). A row whose (key, step) is there already, and a
        step that is there already with the same sum, change nothing.

        Returns:
            How many rows were new.

        Raises:
            AggregationError: a step is there already with another exact sum or other weights; nothing is written.
            SpecError: a row breaks a rule of `finite_rows`; nothing is written.
        """
        kept, left_out = finite_rows(rows)
        with self._transaction():
            for item in steps:
                self._write_step(item)
            before = self._db.total_changes
            self._db.executemany(
                "INSERT OR IGNORE INTO outbox (key, step, value, timestamp_ms) VALUES (?, ?, ?, ?)",
                [(row.key, row.step, row.value, row.timestamp_ms) for row in kept],
            )
            new = self._db.total_changes - before
            if left_out:
                self._put(_LEFT_OUT, str(self.left_out + left_out))
        return new

    def _write_step(self, item: StepRecord) -> None:
        found = self._db.execute("SELECT sum_sha, weights_sha FROM steps WHERE step = ?", (item.step,)).fetchone()
        if found is None:
            record = json.dumps(dict(item.record), sort_keys=True)
            values = (item.step, item.closed_us, item.sum_sha, item.weights_sha, record)
            self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", values)
        elif found != (item.sum_sha, item.weights_sha):
            raise AggregationError(
                f"step {item.step} was committed with sum {found[0][:12]} and weights {found[1][:12]}, and came again "
                f"with sum {item.sum_sha[:12]} and weights {item.weights_sha[:12]}"
            )

    def steps(self) -> list[StepRecord]:
        """Every committed step, ascending."""
        found = self._db.execute("SELECT step, closed_us, sum_sha, weights_sha, record FROM steps ORDER BY step")
        return [StepRecord(step, us, sums, weights, json.loads(record)) for step, us, sums, weights, record in found]

    @property
    def last_step(self) -> int:
        """The highest committed step; −1 when there is none."""
        value = self._db.execute("SELECT max(step) FROM steps").fetchone()[0]
        return -1 if value is None else int(value)

    def pending(self, limit: int = MAX_BATCH_ROWS) -> list[tuple[int, Row]]:
        """The oldest rows that are not acknowledged, as (id, row), ids ascending."""
        found = self._db.execute(
            "SELECT id, key, step, value, timestamp_ms FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (self._acked_id, limit),
        )
        return [(row_id, Row(*values)) for row_id, *values in found]

    def ack(self, up_to_id: int) -> None:
        """Mark every row with id ≤ `up_to_id` as published. Never moves backwards."""
        with self._transaction():
            self._put(_ACKED, str(max(up_to_id, self._acked_id)))

    @property
    def num_pending(self) -> int:
        """Rows that are not acknowledged."""
        return int(self._db.execute("SELECT count(*) FROM outbox WHERE id > ?", (self._acked_id,)).fetchone()[0])

    @property
    def num_rows(self) -> int:
        """Rows ever written."""
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    @property
    def left_out(self) -> int:
        """Rows that were refused because their value was NaN or infinite."""
        return int(self.get(_LEFT_OUT) or 0)

    def rows(self) -> list[Row]:
        """Every row, in order of writing: what an analysis reads without a tracking store."""
        return [
            Row(*found) for found in self._db.execute("SELECT key, step, value, timestamp_ms FROM outbox ORDER BY id")
        ]

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) per metric, steps ascending: the input of plots and reports."""
        result: dict[str, list[tuple[int, float]]] = {}
        for key, step, value in self._db.execute("SELECT key, step, value FROM outbox ORDER BY key, step"):
            result.setdefault(key, []).append((step, value))
        return result

    def get(self, key: str) -> str | None:
        """A meta value."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, value: str) -> None:
        """Set a meta value, durably."""
        with self._transaction():
            self._put(key, value)

    @property
    def _acked_id(self) -> int:
        return int(self.get(_ACKED) or 0)

    def _put(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT; sqlite3's own context manager begins too late to guard what was read first."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
