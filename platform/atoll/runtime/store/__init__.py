"""What survives a crash: the run's journal, its snapshots, and files that are there whole or not at all."""

from atoll.runtime.store.files import Files, LocalFiles
from atoll.runtime.store.journal import SqliteJournal
from atoll.runtime.store.objects import ObjectFiles, check_exclusive, open_files
from atoll.runtime.store.records import Artifact, Commit, Journal, MetricRow, SnapshotRecord, StepRecord
from atoll.runtime.store.shared_journal import SharedJournal
from atoll.runtime.store.snapshots import Snapshots, epoch_of

__all__ = [
    "Artifact",
    "Commit",
    "Files",
    "Journal",
    "LocalFiles",
    "MetricRow",
    "ObjectFiles",
    "SharedJournal",
    "SnapshotRecord",
    "Snapshots",
    "SqliteJournal",
    "StepRecord",
    "check_exclusive",
    "epoch_of",
    "open_files",
]
