"""Where a run keeps what survives a crash: in its own folder, or in a store that every machine reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atoll import spec as sp
from atoll.errors import InfrastructureError
from atoll.experiment.records import JOURNAL_FILE, STORE_FILE
from atoll.runtime.store import Files, Journal, LocalFiles, SharedJournal, SqliteJournal, check_exclusive, open_files

__all__ = ["CHECKPOINTS_FOLDER", "SNAPSHOTS_FOLDER", "RunStore", "check_store", "is_on_network", "store_in", "store_of"]

SNAPSHOTS_FOLDER, CHECKPOINTS_FOLDER = "snapshots", "checkpoints"
_LOG_FOLDER = "journal"
#: in the file that says where the store is: the run's own folder, wherever that is moved
_HERE = "."
#: kinds of file systems, as Linux names them
_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "afs",
        "9p",
        "pvfs2",
        "wekafs",
    ]
)


@dataclass(frozen=True, slots=True)
class RunStore:
    """One run's journal, snapshots and checkpoints.

    Attributes:
        folder: the run's own folder on this machine.
        place: a shared folder or an object store's URL, this run's alone; None: everything is in `folder`.
    """

    folder: Path
    place: str | None = None

    def journal(self) -> Journal:
        """The journal: SQLite in the folder, or the log in the store, of which the folder gets a copy when it closes.

        Raises:
            InfrastructureError: it cannot be opened.
        """
        if self.place is None:
            return SqliteJournal(self.folder / JOURNAL_FILE)
        return SharedJournal(self._files(_LOG_FOLDER), mirror=self.folder / JOURNAL_FILE)

    def snapshots(self) -> Files:
        """Files of snapshots."""
        return self._files(SNAPSHOTS_FOLDER)

    def checkpoints(self) -> Files:
        """Files that people and the tracking service get."""
        return self._files(CHECKPOINTS_FOLDER)

    def _files(self, name: str) -> Files:
        return LocalFiles(self.folder / name) if self.place is None else open_files(f"{self.place}/{name}")

    def is_begun(self) -> bool:
        """Whether a run was begun here: a process that dies in its first moments leaves an empty journal."""
        if self.place is None and not (self.folder / JOURNAL_FILE).is_file():
            return False
        if self.place is not None and not self._files(_LOG_FOLDER).names():
            return False
        try:
            journal = self.journal()
        except InfrastructureError:
            return True  # something is there; what is wrong with it is told when it is to go on
        try:
            return journal.get("birth") is not None or journal.last_step >= 0
        finally:
            journal.close()

    def prepare(self) -> None:
        """Makes the folder, which says where the store is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.place is not None:
            text = _HERE if self.place == str(self.folder) else self.place
            LocalFiles(self.folder).write(STORE_FILE, text.encode())


def check_store(spec: sp.Spec) -> None:
    """Makes sure that a shared store can be used, and keeps two writers apart.

    Raises:
        SpecError: it cannot, or does not.
    """
    if spec.runtime.store is not None:
        check_exclusive(open_files(_absolute(spec.runtime.store)))


def is_on_network(folder: Path, mounts: str | None = None) -> bool:
    """Whether `folder` lies on a network file system, where SQLite's locks cannot be relied on.

    Args:
        folder: absolute; need not exist.
        mounts: as Linux tells them in /proc/self/mounts, read there if None; elsewhere nothing counts as network.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return False
    found = ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        if folder.is_relative_to(point.replace("\\040", " ")) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1] in _NETWORK or found[1].startswith("fuse.")


def _absolute(store: str) -> str:
    return store.rstrip("/") if "://" in store else str(Path(store).absolute())


def store_of(spec: sp.Spec, folder: Path, run_key: str) -> RunStore:
    """Where the run `run_key` of `spec` keeps itself.

    A folder on a network file system holds the log of files instead of SQLite.
    """
    store = spec.runtime.store
    if store is None and is_on_network(folder):
        return RunStore(folder, str(folder))
    return RunStore(folder, None if store is None else f"{_absolute(store)}/{run_key}")


def store_in(folder: Path) -> RunStore:
    """Where the run in `folder` keeps itself, as the folder says."""
    path = folder / STORE_FILE
    text = path.read_text().strip() if path.is_file() else None
    return RunStore(folder, str(folder) if text == _HERE else text)
