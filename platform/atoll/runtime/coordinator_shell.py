"""Actor shell of the coordinator: one or several runs at the same time on the pools that they share."""

from __future__ import annotations

import contextlib
from typing import Any

from atoll.errors import AtollError, FencedError, Interrupted
from atoll.runtime.calls import Calls
from atoll.runtime.elastic import together
from atoll.runtime.gauges import Figures, gauges_here
from atoll.runtime.parts import Outcome, Parts
from atoll.runtime.run_shell import RunShell
from atoll.runtime.scaling import Scaling
from atoll.runtime.session import RaySession
from atoll.runtime.shared import SharedPools, SharedTracker

__all__ = ["CoordinatorShell"]

_POLL_S = 0.25


class CoordinatorShell:
    """Runs each of `runs` to its own end; one that fails does not take the others down."""

    def __init__(self, runs: list[Parts], pools: list[Any], tracker: Any, session: RaySession) -> None:
        self._parts, self._handles, self._tracker_handle = runs, pools, tracker
        self._session = session
        self._runs: list[RunShell] = []
        self._is_stopped = False
        self._progress: list[dict[str, float]] = [{} for _ in runs]

    def progress(self) -> list[dict[str, float]]:
        """Figures for a display, per run; runs beside `run`, and shows that this process is alive."""
        return self._progress

    def stop(self) -> None:
        """Asks `run` to end at the next step boundary."""
        self._is_stopped = True

    def run(self) -> list[Outcome]:
        """All runs; per run its result, what went wrong, or Interrupted."""
        # Here, not in the constructor: what that raises reaches the driver as text only, and a journal belongs to the
        # thread that opens it.
        calls = Calls(self._parts[0].durability.hang_s)
        runs = [RunShell(number, parts) for number, parts in enumerate(self._parts)]
        self._runs = runs
        pools = SharedPools(self._handles, self._session, calls, list(runs))
        tracker = SharedTracker(self._tracker_handle, self._session, calls, list(runs))
        scaling, gauges = Scaling(self._session, pools, calls), gauges_here()
        try:
            for run in runs:
                run.start(pools, tracker)
            while not all(run.is_over for run in runs):
                try:
                    calls.take(_POLL_S)
                    self._replace_the_overdue(calls, pools, tracker)
                    scaling.turn(lambda: together(run.open_work() for run in runs))
                except FencedError:
                    raise
                except AtollError as error:  # of what they share: nobody can go on
                    for run in runs:
                        if run.is_training:
                            run.failed(error)
                self._turn(runs, scaling.waiting_s)
                gauges.emit(self._figures)
        finally:
            scaling.close()
            gauges.close(self._figures)
            for run in runs:
                run.close()
        return [run.outcome or Interrupted(f"stopped at server step {run.version}") for run in runs]

    def _turn(self, runs: list[RunShell], waiting_s: float) -> None:
        num_training = sum(run.is_training for run in runs)
        for run in runs:
            run.is_stopped = run.is_stopped or self._is_stopped
            run.share(num_training)
            run.turn()
        story = {"waiting_s": waiting_s} if waiting_s else {}
        self._progress = [run.progress or story for run in runs]

    def _figures(self) -> dict[str, Figures]:
        """Of each run that has begun; one whose journal cannot be read says nothing."""
        found = {}
        for run in self._runs:
            with contextlib.suppress(AtollError):
                if (figures := run.figures()) is not None:
                    found[run.parts.name] = figures
        return found

    @staticmethod
    def _replace_the_overdue(calls: Calls, pools: SharedPools, tracker: SharedTracker) -> None:
        for owner, allowed_s in calls.overdue().items():
            if isinstance(owner, int):
                pools.replace(owner, pools.silent(owner, allowed_s))
            elif tracker.is_owner(owner):
                tracker.replace(tracker.silent(allowed_s))
