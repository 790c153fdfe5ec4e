"""How many blocks may be on one GPU at a time where several pools share it: a measurement, and files that are locked.

Pools of one GPU are processes of one machine. The kernel lets go of a lock when its process dies, so that no seat is
lost; who has none waits, which changes when a block is trained and never what comes out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Seats", "seats_here"]

#: part of a GPU's memory that blocks may fill; the rest is for contexts, versions and what does not fit gaps
_USABLE = 0.85
#: wall seconds between two looks for a free seat
_LOOK_S = 0.002


class Seats:
    """Seats of one device: as many as blocks fit beside one another, as far as that is known.

    The first block of every pool has the one seat that is always there; what it took at most is then known.

    Args:
        name: of the device, the same in every process that uses it.
        total_bytes: of its memory.
        sharing: pools that use it.
        measure: the most bytes that this process has had on it since it was asked last.
        release: gives back what this process holds and does not need.
        folder: where the lock files lie; the machine's temporary folder if None.
    """

    def __init__(
        self,
        name: str,
        total_bytes: int,
        sharing: int,
        measure: Callable[[], int],
        release: Callable[[], None],
        folder: Path | None = None,
    ) -> None:
        self._total, self._sharing = total_bytes, sharing
        self._measure, self._release = measure, release
        base = folder or Path(tempfile.gettempdir())
        self._paths = [base / f"atoll-{os.getuid()}-{name}-seat-{number}" for number in range(sharing)]
        self._most_bytes = 0

    @property
    def number(self) -> int:
        """Blocks that may be on the device at a time, 1 … `sharing`."""
        if not self._most_bytes:
            return 1
        return max(1, min(self._sharing, int(_USABLE * self._total // self._most_bytes)))

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, this process has a seat: one block, or a call of them one after another."""
        number = self.number
        if number == self._sharing:
            yield
            return
        with self._seat(number):
            try:
                yield
            finally:
                # asked now too, while it is tight: a larger block than any before may have come
                self._most_bytes = max(self._most_bytes, self._measure())
                self._release()

    @contextlib.contextmanager
    def _seat(self, number: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("a")) for path in self._paths[:number]]
            while not any(_locks(file) for file in files):
                time.sleep(_LOOK_S)
            yield  # closing a file lets its lock go


def _locks(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_HERE: dict[int, Seats | None] = {}


def seats_here() -> contextlib.AbstractContextManager[None]:
    """To be held while a block trains; nothing where this process has no GPU, or one for itself."""
    if os.getpid() not in _HERE:
        _HERE.clear()
        _HERE[os.getpid()] = _made()
    found = _HERE[os.getpid()]
    return contextlib.nullcontext() if found is None else found.taken()


def _made() -> Seats | None:
    torch, ray = sys.modules.get("torch"), sys.modules.get("ray")
    if torch is None or ray is None or not torch.cuda.is_available() or not ray.is_initialized():
        return None
    share = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))
    if not 0 < share < 1:
        return None

    def measure() -> int:
        most = int(torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        return most

    total = torch.cuda.mem_get_info()[1]
    name = str(torch.cuda.get_device_properties(0).uuid)
    return Seats(name, total, round(1 / share), measure, torch.cuda.empty_cache)
