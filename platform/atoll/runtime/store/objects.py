"""Files of an object store, through fsspec; and which places can hold a journal at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.runtime.store.files import Files, LocalFiles

__all__ = ["ObjectFiles", "check_exclusive", "open_files"]

_PLACE = "runtime.store"
_HINT = "use s3://, gs://, az:// or a folder that all machines share"

#: Protocols whose driver makes "create only where it does not exist" one atomic request, and the driver's package:
#: s3fs sends If-None-Match: *, gcsfs ifGenerationMatch=0, adlfs overwrite=False. fsspec's default, which all others
#: inherit, looks first and writes then: two processes could both succeed.
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",
}


class ObjectFiles:
    """Files under one prefix of an object store. An object is there whole or not at all by the store's own promise.

    Credentials, region and endpoint come from the environment, as the driver reads them.

    Args:
        url: such as `s3://bucket/prefix`; `memory://` is for tests, it dies with the process.

    Raises:
        SpecError: the protocol has no atomic create, or its driver is not installed or refuses the address.
    """

    def __init__(self, url: str) -> None:
        protocol, _, path = url.partition("://")
        if protocol not in _DRIVERS or "::" in url:
            why = "only stores that create an object atomically and exclusively can keep two processes apart"
            raise SpecError([Problem(_PLACE, repr(url), "one of " + _one_of(), why, _HINT)])
        if not path.strip("/"):
            raise SpecError([Problem(_PLACE, repr(url), f"a bucket after {protocol}://", hint="add /PREFIX too")])
        import fsspec  # type: ignore[import-untyped]  # with asyncio and ssl: only who has such a store waits for it

        try:
            # Other processes write here too: what a driver remembers of an earlier listing is out of date.
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            driver = _DRIVERS[protocol]
            why, hint = str(error), f"pip install {driver}, on every machine of the cluster"
            raise SpecError([Problem(_PLACE, repr(url), f"the package {driver}", why, hint)]) from error
        except Exception as error:  # each driver checks its address and its credentials in its own way
            raise SpecError([Problem(_PLACE, repr(url), "an address that the driver takes", str(error))]) from error
        self._url, self._root = url.rstrip("/"), root.rstrip("/")

    @property
    def place(self) -> str:
        """See Files."""
        return self._url

    def write(self, name: str, data: bytes) -> None:
        """See Files."""
        with self._errors(name, "writing"):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        """See Files."""
        with self._errors(name, "creating"):
            self._fs.pipe_file(self._path(name), data, mode="create")

    def read(self, name: str) -> bytes:
        """See Files."""
        with self._errors(name, "reading"):
            return bytes(self._fs.cat_file(self._path(name)))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """See Files."""
        with self._errors(names[0] if names else "", "reading"):
            parts = self._fs.cat_ranges([self._path(name) for name in names], None, None, on_error="return")
            failed = [part for part in parts if isinstance(part, Exception) and not isinstance(part, FileNotFoundError)]
            if failed:
                raise failed[0]
        return {name: bytes(part) for name, part in zip(names, parts, strict=True) if not isinstance(part, Exception)}

    def delete(self, name: str) -> None:
        """See Files. What cannot be removed is garbage, as in LocalFiles."""
        with suppress(Exception):
            self._fs.rm_file(self._path(name))

    def names(self) -> list[str]:
        """See Files."""
        with self._errors("", "listing"):
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _errors(self, name: str, doing: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:  # drivers raise errors of their own libraries: no common base but this
            place = f"{self._url}/{name}" if name else self._url
            hint = "Check the address, the credentials and the network, then go on with: atoll resume RUN"
            what = str(error) or type(error).__name__
            raise InfrastructureError(f"{place}: {doing} failed: {what}. {hint}") from error


def open_files(place: str) -> LocalFiles | ObjectFiles:
    """The files at `place`: an object store where it holds `://`, else a folder.

    Raises:
        SpecError: see ObjectFiles.
    """
    if place.startswith("file://"):
        plain = place.removeprefix("file://")
        raise SpecError([Problem(_PLACE, repr(place), "a plain path for a folder", hint=f"write {plain}")])
    return ObjectFiles(place) if "://" in place else LocalFiles(Path(place))


def check_exclusive(files: Files) -> None:
    """Makes sure that `files` refuses to create a name twice; some stores speak S3 and ignore the condition.

    Raises:
        SpecError: it does not refuse; two processes could write one journal at the same time.
        InfrastructureError: it does not answer.
    """
    name = f"probe-{uuid.uuid4().hex}"
    files.create(name, b"first")
    try:
        files.create(name, b"second")
    except FileExistsError:
        return
    finally:
        files.delete(name)
    rule = "a store that refuses to create an object that exists"
    why = "it let one be created twice, so that a process taken for dead could overwrite the journal"
    hint = f"update the store and its driver, or {_HINT}"
    raise SpecError([Problem(_PLACE, repr(files.place), rule, why, hint)])


def _one_of() -> str:
    return ", ".join(f"{protocol}://" for protocol in _DRIVERS if protocol != "memory")
