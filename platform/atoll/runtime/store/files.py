"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from atoll.errors import InfrastructureError

__all__ = ["Files", "LocalFiles"]


class Files(Protocol):
    """A flat folder of named files that are written once, whole or not at all."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Durable when this returns. Raises InfrastructureError where it cannot be; then no such file is there."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Makes a new file, atomically: of several that try, on whatever machines, one succeeds. Durable as `write`.

        Raises:
            FileExistsError: the name exists already, whole; it stays as it is.
            InfrastructureError: it failed. Where the answer was lost on the way the file may be there: read it.
        """
        ...

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises InfrastructureError where it is missing or cannot be read."""
        ...

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Bytes of those of `names` that exist, fetched at once where the store can do that.

        Raises InfrastructureError where one exists and cannot be read, or the store does not answer.
        """
        ...

    def delete(self, name: str) -> None:
        """Removes the file; nothing where it is not there."""
        ...

    def names(self) -> list[str]:
        """Names of all files, ascending; with those that a killed process began in a folder: `NAME.NUMBER.tmp`."""
        ...


class LocalFiles:
    """Files of one folder on a disk of this machine or a shared one: written beside, synced, renamed, synced."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    @property
    def place(self) -> str:
        """See Files."""
        return str(self._folder)

    def write(self, name: str, data: bytes) -> None:
        """See Files."""
        with self._written_beside(name, data) as beside:
            beside.replace(self._folder / name)

    def create(self, name: str, data: bytes) -> None:
        """See Files. Needs a file system with hard links."""
        exists = False
        with self._written_beside(name, data) as beside:
            try:
                os.link(beside, self._folder / name)
            except FileExistsError:
                # An answer lost on the way makes NFS ask twice; a second name means that the first one succeeded.
                exists = beside.stat().st_nlink != 2
        if exists:
            raise FileExistsError(f"{self._folder / name} exists already")

    @contextlib.contextmanager
    def _written_beside(self, name: str, data: bytes) -> Iterator[Path]:
        """A synced file with `data` beside `name`, to be moved there; then the folder is synced."""
        # Not the process id: on a shared folder, a process of another machine may have the same.
        beside = self._folder / f"{name}.{uuid.uuid4().int}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield beside
            sync_folder(self._folder)
        except OSError as error:
            hint = "Make room, then go on with: atoll resume RUN"
            raise InfrastructureError(f"{self._folder / name}: writing failed: {error}. {hint}") from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()

    def read(self, name: str) -> bytes:
        """See Files."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise InfrastructureError(f"{self._folder / name}: reading failed: {error}") from error

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """See Files."""
        return {name: self.read(name) for name in names if (self._folder / name).exists()}

    def delete(self, name: str) -> None:
        """See Files."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def names(self) -> list[str]:
        """See Files."""
        return sorted(path.name for path in self._folder.glob("*") if path.is_file())


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
