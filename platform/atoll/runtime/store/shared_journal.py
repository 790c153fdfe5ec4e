"""The journal as a log of files that every machine can reach, for runs whose machines come and go.

Number n of the log is the file `commit-n.json`, created exclusively: whatever happens, it exists once and never
changes. So the log is totally ordered, and a process can write only directly after the last record it has read. Who
takes the run over writes a claim; whoever was there before finds it at the number it wants to write, reads it, and is
fenced. SQLite is only the index of the log: each record is checked and applied in a transaction that ends after the
file exists, so nothing wrong enters the log, and after a crash the log is read again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from atoll.errors import FencedError, InfrastructureError
from atoll.runtime.store.files import Files
from atoll.runtime.store.journal import SqliteJournal, check_epoch, snapshot_from_json, snapshot_to_json
from atoll.runtime.store.records import Artifact, Commit, MetricRow, SnapshotRecord, StepRecord
from atoll.runtime.store.scratch import Scratch

__all__ = ["SharedJournal"]

T = TypeVar("T")

#: records fetched at once, at most
_WINDOW = 256
_NAME = re.compile(r"commit-(\d{12})\.json")


class SharedJournal:
    """A Journal whose truth is a log of files on a shared folder or an object store.

    Reads see the log as it was at opening, at the last write, or at the last acknowledgement through this object.
    Acknowledgements ride with the next record; after a crash some rows are published again, which is harmless.
    A record whose creation was reported as failed may still arrive; it then counts, and the next write finds it.

    Args:
        files: where the log is; `check_exclusive` must hold for it.
        scratch: folder on a local disk for the index, which is removed at closing; a temporary one if None.
        mirror: gets a copy of the index at closing, for readers of this machine: a SqliteJournal to look at.

    Raises:
        InfrastructureError: the store does not answer. A damaged log can be opened and read up to the damage, see
            `damage`; every write is refused.
    """

    def __init__(self, files: Files, scratch: Path | str | None = None, mirror: Path | None = None) -> None:
        self._files, self._mirror = files, mirror
        self._scratch = None if scratch is None else Path(scratch)
        self._held: Scratch | None = None
        self._writer = uuid.uuid4().hex
        self._epoch = 0
        self._riding = _Acks()
        #: number and SHA-256 of the last record applied; writer of the last claim; the first thing that is wrong
        self._last, self._last_sha, self._owner, self._broken = 0, "", "", ""
        self._index, self._folder = self._new_index()
        try:
            self._replay()
        except BaseException:
            self._drop_index()
            raise

    def close(self) -> None:
        """See Journal. Makes acknowledgements durable, unless the run was taken over: then they do not matter."""
        try:
            if self._riding and not self._broken:
                self._append("ack", {}, lambda: self._index.ack(0))
        except FencedError:
            pass
        finally:
            self._drop_index(self._mirror)

    def __enter__(self) -> SharedJournal:
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
        self._epoch = self._append("claim", {}, lambda: self._index.claim())
        return self._epoch

    def commit(self, commit: Commit) -> None:
        """See Journal."""
        self._append("commit", _to_payload(commit), lambda: self._index.commit(commit))

    def keep_snapshots(self, number: int) -> list[str]:
        """See Journal."""
        if len(self.snapshots()) <= number:
            self._look()
            return []
        return self._append("keep", {"number": number}, lambda: self._index.keep_snapshots(number))

    def ack(self, last_id: int) -> None:
        """See Journal."""
        self._look()
        self._index.ack(last_id)
        self._riding.rows = max(self._riding.rows, last_id)

    def ack_artifact(self, name: str) -> None:
        """See Journal."""
        self._look()
        self._index.ack_artifact(name)
        self._riding.artifacts.append(name)

    def publish_again(self) -> None:
        """See Journal."""
        self._append("publish_again", {}, lambda: self._index.publish_again())

    # ---- reading ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """See Journal."""
        return self._index.get(key)

    @property
    def last_step(self) -> int:
        """See Journal."""
        return self._index.last_step

    def step(self, step: int) -> StepRecord | None:
        """See Journal."""
        return self._index.step(step)

    def evaluations(self) -> dict[int, dict[str, float]]:
        """See Journal."""
        return self._index.evaluations()

    def snapshots(self) -> list[SnapshotRecord]:
        """See Journal."""
        return self._index.snapshots()

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        """See Journal."""
        return self._index.pending(limit)

    def pending_artifacts(self) -> list[Artifact]:
        """See Journal."""
        return self._index.pending_artifacts()

    @property
    def num_pending(self) -> int:
        """See Journal."""
        return self._index.num_pending

    def rows(self) -> list[MetricRow]:
        """Every row, in order of writing."""
        return self._index.rows()

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """See Journal."""
        return self._index.history()

    def damage(self) -> list[str]:
        """See Journal. Reads the whole log again: what this object has seen may be damaged since."""
        with SharedJournal(self._files, self._scratch) as fresh:
            return [text for text in (fresh._broken, *fresh._index.damage()) if text]

    # ---- the end of the log -------------------------------------------------------------------------------------

    def _append(self, kind: str, payload: dict[str, Any], apply: Callable[[], T]) -> T:
        """Creates the next record and applies it; both, or neither as far as this object can know."""
        while True:
            self._check_whole()
            if kind != "claim":
                check_epoch(self._files.place, self._epoch, self._index.epoch)
            number, epoch = self._last + 1, self._index.epoch + (kind == "claim")
            data = _encode(number, self._last_sha, epoch, self._writer, kind, self._riding, payload)
            try:
                with self._index.ending_with(partial(self._create, _name(number), data)):
                    result = apply()
            except FileExistsError as error:
                if not self._catch_up():
                    where = f"{self._files.place}/{_name(number)}"
                    hint = "Try again with: atoll resume RUN"
                    raise InfrastructureError(f"{where}: it exists and cannot be found. {hint}") from error
                continue
            self._last, self._last_sha, self._riding = number, _sha(data), _Acks()
            if kind == "claim":
                self._owner = self._writer
            return result

    def _create(self, name: str, data: bytes) -> None:
        """Raises FileExistsError where the name is another record's."""
        try:
            self._files.create(name, data)
        except (FileExistsError, InfrastructureError) as error:
            # The answer may have been lost on the way, or asked for twice by the driver. The bytes hold the writer's
            # id: if they are there, this is the record that was to be written.
            found = self._files.read_many([name]).get(name)
            if found == data:
                return
            if found is not None and not isinstance(error, FileExistsError):
                raise FileExistsError(str(error)) from error
            raise

    def _look(self) -> None:
        """FencedError where the run was taken over, without writing."""
        self._check_whole()
        if self._epoch:
            self._catch_up()
        check_epoch(self._files.place, self._epoch, self._index.epoch)

    def _catch_up(self) -> bool:
        """Applies what others wrote since; whether there was anything."""
        before = self._last
        self._read_on()
        if self._last == before:
            return False
        self._check_whole()
        acks, self._riding = self._riding, _Acks()
        if acks and self._epoch == self._index.epoch:
            self._index.apply_acks(acks)
            self._riding = acks
        elif acks:
            # Nobody else will ever know of these acknowledgements: forget them here too.
            self._drop_index()
            self._index, self._folder = self._new_index()
            self._replay()
        return True

    def _check_whole(self) -> None:
        if self._broken:
            hint = "Restore the file from a copy of the store, or start the run again."
            raise InfrastructureError(f"{self._broken}; nothing is written after it. {hint}")

    # ---- replay -------------------------------------------------------------------------------------------------

    def _new_index(self) -> tuple[_Index, Path]:
        if self._scratch is None:
            self._held = Scratch("atoll-index-")
            return _Index(self._held.path / "index.db", self._files.place), self._held.path
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="journal-index-", dir=self._scratch))
        return _Index(folder / "index.db", self._files.place), folder

    def _drop_index(self, mirror: Path | None = None) -> None:
        self._index.close()
        if mirror is not None and not self._broken:
            with suppress(OSError):
                shutil.copyfile(self._index.path, beside := mirror.with_name(f"{mirror.name}.{self._writer}.tmp"))
                beside.replace(mirror)
        if self._held is not None:
            self._held.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _replay(self) -> None:
        """Fills an empty index."""
        self._last, self._last_sha, self._owner, self._broken = 0, "", "", ""
        matches = (_NAME.fullmatch(name) for name in self._files.names())
        highest = max((int(match[1]) for match in matches if match), default=0)
        self._read_on()
        if self._last < highest and not self._broken:
            self._broken = f"{self._files.place}/{_name(self._last + 1)} is missing, {_name(highest)} is there"

    def _read_on(self) -> None:
        """Applies records from the next number on, until one is not there or wrong."""
        width = 1
        while not self._broken:
            names = [_name(self._last + 1 + index) for index in range(width)]
            found = self._files.read_many(names)
            for name in names:
                if name not in found:
                    return
                try:
                    self._apply(found[name])
                except InfrastructureError:
                    raise  # the index's disk, not the log
                except Exception as error:  # the bytes may be anything, and fail in any way
                    self._broken = f"{self._files.place}/{name} is not the record that can stand there: {error}"
                    return
            width = min(2 * width, _WINDOW)

    def _apply(self, data: bytes) -> None:
        record = json.loads(data)
        kind, payload = record["kind"], record["payload"]
        is_claim = kind == "claim"
        expected = {"number": self._last + 1, "previous": self._last_sha, "epoch": self._index.epoch + is_claim}
        if not is_claim:
            expected["writer"] = self._owner
        for key, value in expected.items():
            if record[key] != value:
                raise ValueError(f"{key} is {record[key]!r}, {value!r} follows")
        applies: dict[str, Callable[[], object]] = {
            "claim": self._index.claim,
            "commit": lambda: self._index.commit(_from_payload(payload)),
            "keep": lambda: self._index.keep_snapshots(payload["number"]),
            "ack": lambda: None,
            "publish_again": self._index.publish_again,
        }
        apply = applies[kind]
        self._index.apply_acks(_Acks(record["acks"]["rows"], record["acks"]["artifacts"]))
        apply()
        self._last, self._last_sha = self._last + 1, _sha(data)
        if is_claim:
            self._owner = record["writer"]


@dataclass(slots=True)
class _Acks:
    """Acknowledgements that no record holds yet: rows up to an id, and files."""

    rows: int = 0
    artifacts: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.artifacts)


class _Index(SqliteJournal):
    """The log's state; its epoch is the log's. It needs no durability: after a crash it is made again."""

    def __init__(self, path: Path, place: str) -> None:
        super().__init__(path)
        self._place = place
        self._last_word: Callable[[], None] | None = None
        with self._errors("opening the index of"):
            self._db.execute("PRAGMA synchronous=OFF")

    @contextmanager
    def ending_with(self, last_word: Callable[[], None]) -> Iterator[None]:
        """The transaction inside calls `last_word` before it is committed: if that raises, nothing happened."""
        self._last_word = last_word
        try:
            yield
        finally:
            self._last_word = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            yield
            if self._last_word is not None:
                self._last_word()

    def apply_acks(self, acks: _Acks) -> None:
        """Acknowledges, where there is anything."""
        if acks.rows:
            self.ack(acks.rows)
        for name in acks.artifacts:
            self.ack_artifact(name)


def _name(number: int) -> str:
    return f"commit-{number:012d}.json"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encode(
    number: int, previous: str, epoch: int, writer: str, kind: str, acks: _Acks, payload: dict[str, Any]
) -> bytes:
    record = {
        "number": number,
        "previous": previous,  # SHA-256 of the record before: a byte that changes later is found
        "epoch": epoch,
        "writer": writer,
        "kind": kind,
        "acks": {"rows": acks.rows, "artifacts": acks.artifacts},
        "payload": payload,
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _to_payload(commit: Commit) -> dict[str, Any]:
    return {
        "steps": [[step.step, step.closed_us, step.sum_sha, dict(step.totals)] for step in commit.steps],
        "rows": commit.rows,
        "evaluations": {str(version): dict(metrics) for version, metrics in commit.evaluations.items()},
        "artifacts": [[artifact.name, artifact.place] for artifact in commit.artifacts],
        "snapshot": None if commit.snapshot is None else snapshot_to_json(commit.snapshot),
        "meta": dict(commit.meta),
    }


def _from_payload(payload: dict[str, Any]) -> Commit:
    snapshot = payload["snapshot"]
    return Commit(
        tuple(StepRecord(*values) for values in payload["steps"]),
        tuple((key, step, value, timestamp_ms) for key, step, value, timestamp_ms in payload["rows"]),
        {int(version): metrics for version, metrics in payload["evaluations"].items()},
        tuple(Artifact(*values) for values in payload["artifacts"]),
        None if snapshot is None else snapshot_from_json(snapshot),
        payload["meta"],
    )
