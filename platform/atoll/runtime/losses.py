"""What a failed Ray call means to a coordinator, and how the process behind it is ended for good."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from atoll.errors import AtollError
from atoll.runtime.places import Place

__all__ = ["PROCESS_LOST", "SUMS_LOST", "RollBack", "end_process", "is_of", "told"]

#: a process is gone, or was out of reach for a moment: whether the call ran is unknown
PROCESS_LOST = (RayActorError, OutOfMemoryError, WorkerCrashedError)
#: what a pool returned is nowhere any more, or out of reach
SUMS_LOST = (ObjectLostError, ObjectFetchTimedOutError, GetTimeoutError)


class RollBack(Exception):
    """Weights on their way to a pool are lost: go on from the newest snapshot under a new epoch."""


def is_of(error: BaseException, actor: Any) -> bool:
    """Whether the process that was lost is this actor's; a call fails likewise where what it was to be given is lost.

    Args:
        error: one of PROCESS_LOST.
        actor: whose call failed.
    """
    whose = getattr(error, "actor_id", None)
    return whose is None or whose == actor._actor_id.hex()


def told(error: BaseException, what: str) -> BaseException:
    """What a failed call means: atoll's own errors pass, a loss rolls back, anything else is a bug and passes."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, AtollError):
        return cause
    if isinstance(cause, RayError):
        story = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        return RollBack(f"{what} was lost: {story}")
    return error


def end_process(actor: Any, place: Place | None) -> None:
    """Ends what was lost for good: a process that only was out of reach, or stopped, must not linger.

    Args:
        actor: its handle.
        place: if it ever told it; Ray's own way does not reach a stopped process.
    """
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)
    if place is not None and place.host == socket.gethostname() and _is_worker_here(place.pid):
        with contextlib.suppress(OSError):
            os.kill(place.pid, signal.SIGKILL)


def _is_worker_here(pid: int) -> bool:
    """Whether `pid` is one of Ray's workers on this machine, and not another program that has its number by now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"ray::" in file.read()
    except OSError:
        return False
