"""Where compiled kernels are kept: by the content of the file that defines them, not by where it lies.

A job's code lies in another folder on every cluster and after every change of anything in it. By place, every pool of
every job would compile for half a minute; by content, each machine compiles once.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

__all__ = ["ByContent", "use"]

_OTHERS = ("InTreeCacheLocator", "UserWideCacheLocator", "IPythonCacheLocator", "ZipCacheLocator")


def use() -> None:
    """From now on, functions of this package are kept by content; others, and where a person chose a place, as ever."""
    if not numba.config.CACHE_LOCATOR_CLASSES and not numba.config.CACHE_DIR:
        numba.config.CACHE_LOCATOR_CLASSES = ",".join([f"{__name__}.{ByContent.__name__}", *_OTHERS])


class ByContent(caching._CacheLocator):  # type: ignore[misc]
    """Keeps what is compiled from one file of this package in a folder named by its content, in the user's cache."""

    def __init__(self, line: int, digest: str, folder: Path) -> None:
        self._line, self._digest, self._folder = line, digest, folder

    def get_cache_path(self) -> str:
        """The folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """What makes it stale: nothing, since the folder is the content's own."""
        return self._digest

    def get_disambiguator(self) -> str:
        """Tells functions of one name apart."""
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> ByContent | None:
        """For functions of this package; None where another locator is to be asked."""
        path = Path(py_file)
        if not path.is_relative_to(Path(__file__).parent) or not path.is_file():
            return None
        digest = _digest(path)
        folder = _base() / f"{path.parent.name}-{path.stem}-{digest[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            return None  # such as a home that may not be written
        return cls(py_func.__code__.co_firstlineno, digest, folder)


def _base() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll" / "kernels"


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
