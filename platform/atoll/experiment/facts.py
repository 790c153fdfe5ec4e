"""The two ends of tracking for one run: outbox beside the coordinator, publisher beside the tracking service."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.messages import ModelVersion
from atoll.models import ModelShape, save_version
from atoll.runtime import MetricRow
from atoll.tracking import Journal, MlflowTracker, Row, RunInfo

__all__ = ["JournalOutbox", "TrackerPublisher"]


class JournalOutbox:
    """Rows into the run's journal, timeline rows into its Parquet file.

    Args:
        folder: of the run; holds `journal.db` and `timeline.parquet`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = Journal(folder / "journal.db")
        self._writer: Any = None

    def commit(self, rows: Sequence[MetricRow]) -> None:
        """One transaction; a (key, step) that is there already stays as it is."""
        self._journal.commit([], [Row(*row) for row in rows])

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        """The oldest rows not acknowledged, and the id of the last of them."""
        found = self._journal.pending(limit)
        rows = [(row.key, row.step, row.value, row.timestamp_ms) for _, row in found]
        return (found[-1][0] if found else 0), rows

    def ack(self, last_id: int) -> None:
        """Rows up to `last_id` are published."""
        self._journal.ack(last_id)

    def keep_timeline(self, rows: npt.NDArray[np.void]) -> None:
        """Appends timeline rows to `timeline.parquet`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / "timeline.parquet", table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """Closes both files."""
        if self._writer is not None:
            self._writer.close()
        self._journal.close()


class TrackerPublisher:
    """Sends rows and checkpoints of one run to its tracker; opened where it is used, by the run's key.

    Args:
        uri: tracking store.
        artifacts: root of artifacts, or None.
        info: names the run; the tracker finds it by `run_key`.
        shape: names and shapes of the weights, for checkpoints.
    """

    def __init__(self, uri: str, artifacts: str | None, info: RunInfo, shape: ModelShape) -> None:
        self._tracker = MlflowTracker(uri, artifacts)
        self._tracker.start(info)
        self._shape = shape

    def publish(self, rows: Sequence[MetricRow]) -> None:
        """Idempotent; raises where the service does not take them."""
        self._tracker.publish([Row(*row) for row in rows])

    def checkpoint(self, model: ModelVersion) -> None:
        """A safetensors file `checkpoints/version-000120.safetensors`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"version-{model.version:06d}.safetensors"
            save_version(path, model, self._shape)
            self._tracker.artifact(path, "checkpoints")
