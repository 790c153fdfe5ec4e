"""The Ray executor, seen from the driver: a coordinator actor that is begun again whenever it dies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from atoll.runtime.session import RaySession  # before Ray, which reads how to authenticate when it is imported

# isort: split
import ray
from ray.exceptions import RayActorError, RayTaskError

from atoll.errors import AtollError, InfrastructureError, Interrupted
from atoll.runtime.parts import Outcome, Parts, RunResult
from atoll.runtime.stopping import Patience, StopSignal

__all__ = ["run_on_ray"]

_POLL_S = 0.25
_MOST_LOST_COORDINATORS = 10
#: without a sign of life for this long, the coordinator's process counts as hung
_SILENT_S = 60.0
#: how long its process may take to start: Python, imports and a busy machine
_BIRTH_S = 120.0
#: how long a stopped run may take to commit what there is
_STOP_S = 90.0
_log = logging.getLogger(__name__)
Progress = Callable[[list[dict[str, float]]], None]


class _Silent(Exception):
    """The coordinator gives no sign of life."""


def run_on_ray(runs: Sequence[Parts], session: RaySession, *, on_progress: Progress | None = None) -> list[Outcome]:
    """Runs all of `runs` at the same time on the session's pools, each from its journal's newest snapshot.

    Every run ends in the same bits as `run_inline` ends it, whatever runs beside it.

    Args:
        runs: one or more.
        session: an entered session.
        on_progress: called several times a second with figures for a display, one mapping per run.

    Returns:
        Per run its result, or the error that ended it: ClientWorkError, AggregationError and InfrastructureError as
        inline; Interrupted after Ctrl-C or SIGTERM, with everything up to a step boundary committed.

    Raises:
        InfrastructureError: processes that the runs share died more often than they may recover from.
        FencedError: another process has taken a run over.
        Interrupted: stopped while there was no coordinator.
    """
    patience = Patience("the coordinator process", _MOST_LOST_COORDINATORS)
    figures: list[dict[str, float]] = [{} for _ in runs]

    def note(found: list[dict[str, float]]) -> None:
        for known, new in zip(figures, found, strict=True):
            known.update(new)
        if on_progress is not None:
            on_progress(found)

    with StopSignal() as stop:
        while True:
            if not session.is_new:
                session.revive()
            session.is_new = False
            coordinator = session.new_coordinator(list(runs))
            try:
                result = _follow(coordinator, runs[0].durability.hang_s or _SILENT_S, stop, note)
                break
            except (RayActorError, _Silent) as error:
                patience.lost(int(sum(known.get("saved_version", 0) for known in figures)), error)
                story = (str(error).strip().splitlines() or [type(error).__name__])[0]
                _log.warning("the coordinator process was lost (%s); the run goes on from its last snapshot", story)
                if stop.is_set:
                    raise Interrupted("stopped while the coordinator process was lost") from error
            finally:
                session.end(coordinator)
    if result is None:
        return [Interrupted(f"stopped at server step {known.get('step', 0):.0f}") for known in figures]
    note([dict(one.extra) if isinstance(one, RunResult) else {} for one in result])
    return result


def _follow(coordinator: Any, silent_s: float, stop: StopSignal, note: Progress) -> list[Outcome] | None:
    """Waits for the end, passes progress on, notices silence and Ctrl-C."""
    running = coordinator.run.remote()
    asked, asked_at, stopped_at = coordinator.progress.remote(), time.monotonic(), 0.0
    allowed_s = max(silent_s, _BIRTH_S)
    while True:
        done, _ = ray.wait([running, asked], num_returns=1, timeout=_POLL_S)
        now = time.monotonic()
        if running in done:
            return _result(running)
        if asked in done:
            try:
                note(ray.get(asked))
            except KeyboardInterrupt:
                stop.is_set = True
            time.sleep(_POLL_S)
            asked, asked_at, allowed_s = coordinator.progress.remote(), time.monotonic(), silent_s
        elif now - asked_at > allowed_s:
            raise _Silent(f"no sign of life for {allowed_s:.0f} s")
        if stop.is_set and not stopped_at:
            coordinator.stop.remote()
            stopped_at = now
        if stopped_at and now - stopped_at > _STOP_S:
            return None


def _result(running: Any) -> list[Outcome]:
    try:
        result: list[Outcome] = ray.get(running)
    except RayTaskError as error:
        if isinstance(error.cause, AtollError):
            raise error.cause from None
        if isinstance(error.cause, ray.exceptions.RayError):
            story = (str(error.cause).strip().splitlines() or [type(error.cause).__name__])[0]
            raise InfrastructureError(f"Ray failed under the coordinator: {story}") from error
        raise
    return result
