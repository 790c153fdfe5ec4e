"""The two ends of tracking for one run: the timeline's file beside the coordinator, publisher beside the service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.errors import InfrastructureError
from atoll.runtime import MetricRow
from atoll.runtime.store import Artifact
from atoll.tracking import MlflowTracker, Row, RunInfo

__all__ = ["TIMELINE_FILE", "TimelineParquet", "TrackerPublisher"]

TIMELINE_FILE = "timeline.parquet"
#: rows of a row group: the file's index stays small however long the run is; the first group is small, so that what
#: writing takes of memory is taken at the start
_GROUP_ROWS, _FIRST_ROWS = 2**14, 2**10


class TimelineParquet:
    """The timeline of the steps taken as `timeline.parquet`, put in its place when it is whole.

    Args:
        folder: of the run.
        epoch: each writes a file of its own, so that a process that was taken for dead spoils nothing.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._folder, self._beside = folder, folder / f"timeline-{epoch}.parquet.tmp"
        self._writer: Any = None
        self._waiting: list[npt.NDArray[np.void]] = []
        self._num_waiting = 0
        for old in folder.glob("timeline-*.parquet.tmp"):
            old.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # pyarrow's own are of this kind too
            raise InfrastructureError(f"{self._beside}: writing failed: {error}. Make room.") from error

    def keep(self, rows: npt.NDArray[np.void]) -> None:
        """See runtime.TimelineFile."""
        self._waiting.append(rows)
        self._num_waiting += len(rows)
        if self._num_waiting >= (_FIRST_ROWS if self._writer is None else _GROUP_ROWS):
            self._write()

    def close(self) -> None:
        """See runtime.TimelineFile."""
        self._write()
        if self._writer is not None:
            with self._errors():
                self._writer.close()
                self._writer = None
                self._beside.replace(self._folder / TIMELINE_FILE)

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        # From buffers: from arrays, pyarrow would load pandas, 40 MiB of this process for nothing.
        columns = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        table = pa.table(
            {
                name: pa.Array.from_buffers(
                    pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(column)]
                )
                for name, column in columns.items()
            }
        )
        with self._errors():
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._beside, table.schema, compression="zstd")
            self._writer.write_table(table)


class TrackerPublisher:
    """Sends rows and files of one run to its tracker; opened where it is used, by the run's key.

    Args:
        uri: tracking store.
        artifacts: root of artifacts, or None.
        info: names the run; the tracker finds it by `run_key`.
    """

    def __init__(self, uri: str, artifacts: str | None, info: RunInfo) -> None:
        self._tracker = MlflowTracker(uri, artifacts)
        self.run_id = self._tracker.start(info)

    def publish(self, rows: Sequence[MetricRow]) -> None:
        """Idempotent; raises where the service does not take them."""
        self._tracker.publish([Row(*row) for row in rows])

    def upload(self, artifact: Artifact, data: bytes) -> None:
        """Idempotent; raises where the service does not take it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / artifact.name
            path.write_bytes(data)
            self._tracker.artifact(path, artifact.place)
