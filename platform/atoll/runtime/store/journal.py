"""The journal as one SQLite file on a local disk: steps, snapshots and metric rows, durable together.

A commit writes everything in one transaction that first checks the epoch, so a process that was taken for dead and
comes back can write nothing. Publishing happens later and is acknowledged by a watermark; a tracking store that is
down lets the outbox grow and never stops training. The first row of a (key, step) stands: a step that is computed
again after a crash adds nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.errors import AggregationError, FencedError, InfrastructureError
from atoll.runtime.store.records import Artifact, Commit, MetricRow, SnapshotRecord, StepRecord

__all__ = ["SqliteJournal"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER PRIMARY KEY, closed_us INTEGER NOT NULL, sum_sha TEXT NOT NULL, totals TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (version INTEGER PRIMARY KEY, metrics TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (id INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, step INTEGER NOT NULL, value REAL NOT NULL,
    timestamp_ms INTEGER NOT NULL, UNIQUE (key, step));
CREATE TABLE IF NOT EXISTS artifacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, place TEXT, is_done INTEGER NOT NULL DEFAULT 0);
"""
_TIMEOUT_S = 30.0
_EPOCH = "epoch"
_ACKED = "outbox.acked_id"


class SqliteJournal:
    """A Journal in one SQLite file (WAL, every commit synced to the disk). Not for network file systems.

    Args:
        path: the file; made where missing.
        is_readonly: only look: nothing in the folder is made or changed, and whoever writes there is not held up.
            Writing raises then.

    Raises:
        InfrastructureError: it cannot be opened, or is no journal.
    """

    def __init__(self, path: Path | str, *, is_readonly: bool = False) -> None:
        self.path = Path(path)
        #: where it is, for messages
        self._place = str(path)
        self._epoch = 0
        with self._errors("opening"):
            if is_readonly:
                self._db = _only_to_read(self.path)
                return
            self._db = sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level=None)
            try:
                _use_wal(self._db)
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
            except sqlite3.Error:
                self._db.close()
                raise

    def close(self) -> None:
        """See Journal."""
        self._db.close()

    def __enter__(self) -> SqliteJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- writing ------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """See Journal."""
        return self._epoch

    def claim(self) -> int:
        """See Journal."""
        with self._errors("claiming"), self._transaction():
            epoch = int(self.get(_EPOCH) or 0) + 1
            self._put(_EPOCH, str(epoch))
        self._epoch = epoch
        return epoch

    def commit(self, commit: Commit) -> None:
        """See Journal."""
        with self._fenced("committing"):
            for record in commit.steps:
                self._write_step(record)
            self._db.executemany(
                "INSERT OR IGNORE INTO outbox (key, step, value, timestamp_ms) VALUES (?, ?, ?, ?)", commit.rows
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO evaluations VALUES (?, ?)",
                [(version, json.dumps(dict(metrics))) for version, metrics in commit.evaluations.items()],
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO artifacts (name, place) VALUES (?, ?)",
                [(artifact.name, artifact.place) for artifact in commit.artifacts],
            )
            if commit.snapshot is not None:
                self._db.execute("INSERT INTO snapshots (record) VALUES (?)", (snapshot_to_json(commit.snapshot),))
            for key, value in commit.meta.items():
                self._put(key, value)

    def _write_step(self, record: StepRecord) -> None:
        found = self._db.execute("SELECT sum_sha FROM steps WHERE step = ?", (record.step,)).fetchone()
        if found is None:
            totals = json.dumps(dict(record.totals), sort_keys=True)
            values = (record.step, record.closed_us, record.sum_sha, totals)
            self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?)", values)
        elif found[0] != record.sum_sha and self.get("is_comparable") != "no":
            raise AggregationError(
                f"{self._place}: server step {record.step} was committed with exact sum {found[0][:12]} and came again "
                f"with {record.sum_sha[:12]}. The machine or the software is not what it was: the run cannot go on "
                "with the same bits. Run it again from the start, or resume with --force and lose comparability."
            )

    def keep_snapshots(self, number: int) -> list[str]:
        """See Journal."""
        with self._fenced("forgetting snapshots"):
            found = [
                (row_id, snapshot_from_json(text))
                for row_id, text in self._db.execute("SELECT id, record FROM snapshots ORDER BY id DESC")
            ]
            kept = {name for _, record in found[:number] for name in record.hashes}
            old = found[number:]
            self._db.executemany("DELETE FROM snapshots WHERE id = ?", [(row_id,) for row_id, _ in old])
        return sorted({name for _, record in old for name in record.hashes} - kept)

    def ack(self, last_id: int) -> None:
        """See Journal."""
        with self._fenced("acknowledging rows"):
            self._put(_ACKED, str(max(last_id, self._acked_id)))

    def ack_artifact(self, name: str) -> None:
        """See Journal."""
        with self._fenced("acknowledging a file"):
            self._db.execute("UPDATE artifacts SET is_done = 1 WHERE name = ?", (name,))

    def publish_again(self) -> None:
        """See Journal."""
        with self._fenced("starting to publish again"):
            self._put(_ACKED, "0")
            self._db.execute("UPDATE artifacts SET is_done = 0")

    # ---- reading ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """See Journal."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    @property
    def last_step(self) -> int:
        """See Journal."""
        value = self._db.execute("SELECT max(step) FROM steps").fetchone()[0]
        return -1 if value is None else int(value)

    def step(self, step: int) -> StepRecord | None:
        """See Journal."""
        found = self._db.execute("SELECT * FROM steps WHERE step = ?", (step,)).fetchone()
        if found is None:
            return None
        number, closed_us, sum_sha, totals = found
        return StepRecord(number, closed_us, sum_sha, json.loads(totals))

    def evaluations(self) -> dict[int, dict[str, float]]:
        """See Journal."""
        found = self._db.execute("SELECT version, metrics FROM evaluations ORDER BY version")
        return {version: json.loads(metrics) for version, metrics in found}

    def snapshots(self) -> list[SnapshotRecord]:
        """See Journal."""
        return [
            snapshot_from_json(text) for (text,) in self._db.execute("SELECT record FROM snapshots ORDER BY id DESC")
        ]

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        """See Journal."""
        found = self._db.execute(
            "SELECT id, key, step, value, timestamp_ms FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (self._acked_id, limit),
        ).fetchall()
        return (found[-1][0] if found else 0), [tuple(values) for _, *values in found]

    def pending_artifacts(self) -> list[Artifact]:
        """See Journal."""
        found = self._db.execute("SELECT name, place FROM artifacts WHERE NOT is_done ORDER BY id")
        return [Artifact(*values) for values in found]

    @property
    def num_pending(self) -> int:
        """See Journal."""
        return int(self._db.execute("SELECT count(*) FROM outbox WHERE id > ?", (self._acked_id,)).fetchone()[0])

    def rows(self) -> list[MetricRow]:
        """Every row, in order of writing."""
        return [
            tuple(values)
            for values in self._db.execute("SELECT key, step, value, timestamp_ms FROM outbox ORDER BY id")
        ]

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """See Journal."""
        result: dict[str, list[tuple[int, float]]] = {}
        for key, step, value in self._db.execute("SELECT key, step, value FROM outbox ORDER BY key, step"):
            result.setdefault(key, []).append((step, value))
        return result

    def damage(self) -> list[str]:
        """See Journal."""
        try:
            found = [text for (text,) in self._db.execute("PRAGMA quick_check(5)") if text != "ok"]
            if found:
                return [f"SQLite: {text}" for text in found]
            number, last = self._db.execute("SELECT count(*), max(step) FROM steps").fetchone()
            if number and number != last + 1:
                found.append(f"{last + 1 - number} of the steps 0 to {last} are missing")
            newest = max((record.version for record in self.snapshots()), default=0)
            if newest > (-1 if last is None else last) + 1:
                found.append(f"a snapshot of version {newest} without the steps that made it")
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            return [f"SQLite: {error}"]
        return found

    # ---- inside -------------------------------------------------------------------------------------------------

    @property
    def _acked_id(self) -> int:
        return int(self.get(_ACKED) or 0)

    def _put(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = ""
            if "full" in str(error) or "disk I/O" in str(error):
                hint = " Nothing of it was written. Make room, then go on with: atoll resume RUN"
            raise InfrastructureError(f"journal {self._place}: {doing} failed: {error}.{hint}") from error

    @contextmanager
    def _fenced(self, doing: str) -> Iterator[None]:
        """One transaction that is this epoch's, or none."""
        with self._errors(doing), self._transaction():
            check_epoch(self._place, self._epoch, int(self.get(_EPOCH) or 0))
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # sqlite3's own context manager begins too late to guard what was read first
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _use_wal(db: sqlite3.Connection) -> None:
    # SQLite does not wait for its lock here, so that two processes that make one file at once would fail.
    until = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _only_to_read(path: Path) -> sqlite3.Connection:
    """A connection that leaves no trace: opened without care, SQLite makes a log and its index beside the file."""
    log, index = (path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm"))
    if index.exists() and log.exists():
        how = "&readonly_shm=1"  # somebody writes now, or was killed: what is in the log counts
    elif log.exists() and log.stat().st_size:
        how = ""  # a copy without the index: SQLite has to make that
    else:
        how = "&immutable=1"  # closed: the file alone is everything
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{how}", uri=True, timeout=_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("SELECT value FROM meta LIMIT 1").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db


def check_epoch(place: str, own: int, newest: int) -> None:
    """Raises FencedError where the epoch `own` may not write into the journal at `place`."""
    if not own:
        raise FencedError(f"journal {place}: this object claimed no epoch. Writing needs `claim` first.")
    if own != newest:
        raise FencedError(
            f"journal {place}: another process took this run over (epoch {newest}; this process holds {own}). "
            "This one writes nothing more and stops."
        )


def snapshot_to_json(record: SnapshotRecord) -> str:
    """A snapshot as the journal keeps it."""
    return json.dumps(
        {
            "version": record.version,
            "state_file": record.state_file,
            "version_files": {str(version): name for version, name in record.version_files.items()},
            "hashes": dict(record.hashes),
        }
    )


def snapshot_from_json(text: str) -> SnapshotRecord:
    """See `snapshot_to_json`."""
    found = json.loads(text)
    files = {int(version): name for version, name in found["version_files"].items()}
    return SnapshotRecord(found["version"], found["state_file"], files, found["hashes"])
