"""Keeps the number of client pools at what the open work can use and the Ray cluster has for this driver."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from atoll.runtime.autoscaler import is_growing
from atoll.runtime.broker import find_broker
from atoll.runtime.calls import Calls
from atoll.runtime.elastic import OpenWork, Sizing
from atoll.runtime.places import fits, no_node_fits
from atoll.runtime.session import RaySession
from atoll.runtime.shared import SharedPools

__all__ = ["Scaling"]

#: how often the number of pools is thought over, and how often the broker hears of it
_EVERY_S, _RENEW_S = 0.25, 2.0
#: after so long without an answer another broker is looked for
_SILENT_S = 30.0
#: How long there may be no node that could hold a pool, and none on its way, before that is an error; how often it is
#: looked at.
_NONE_FITS_S, _LOOK_S = 15.0, 2.0
_log = logging.getLogger(__name__)


class Scaling:
    """Turns open work into pools, in the coordinator's process.

    On an embedded Ray the work alone decides. On a cluster the broker is asked for a lease too, also for a fixed number
    of pools, since others have to know what is taken.

    Args:
        session: says how many pools there may be, and what each takes.
        pools: grow and shrink.
        calls: of this process.
    """

    def __init__(self, session: RaySession, pools: SharedPools, calls: Calls) -> None:
        self._session, self._pools, self._calls = session, pools, calls
        self._sizing = Sizing(session.num_workers, session.most_workers)
        self._driver = ray.get_runtime_context().get_job_id()
        self._broker: Any = None
        self._granted = 0
        #: when the broker was asked what it has not answered yet
        self._asked_at: float | None = None
        self._asks_at = self._thinks_at = self._looks_at = 0.0
        #: since when no pool has a place and no node is on its way; whether one ever had
        self._began = self._none_since = time.monotonic()
        self._had_a_place = False

    def turn(self, work: Callable[[], OpenWork]) -> None:
        """Grows or shrinks.

        Args:
            work: asked where the number of pools may change.

        Raises:
            SpecError: no pool has a place, and there is no prospect of one.
        """
        session, now = self._session, time.monotonic()
        if session.num_workers == session.most_workers:
            if not session.is_shared:
                return
            wanted = session.num_workers
        else:
            wanted = self._sizing.wanted(work(), now)
        if now < self._thinks_at:
            return
        self._thinks_at = now + _EVERY_S
        if session.is_shared:
            self._ask(wanted, now)
            self._look_for_a_place(now)
            wanted = min(wanted, self._granted)
        target = max(wanted, session.num_workers)
        if target != self._pools.num_wanted:
            self._pools.resize(target)

    def close(self) -> None:
        """Gives the lease back."""
        if self._broker is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                self._broker.release.remote(self._driver)

    @property
    def waiting_s(self) -> float:
        """Wall seconds without a place for any pool so far; 0.0 once one has had one."""
        return 0.0 if self._had_a_place or not self._session.is_shared else time.monotonic() - self._began

    def _ask(self, wanted: int, now: float) -> None:
        if self._asked_at is not None and now - self._asked_at < _SILENT_S:
            return
        if self._asked_at is not None:  # it hangs, or has no place: another look
            self._broker = None
        elif now < self._asks_at and wanted <= self._granted:
            return
        self._asked_at, self._asks_at = now, now + _RENEW_S
        session, places = self._session, self._session.places()
        ask = ((places.resources, places.labels), session.num_workers, max(wanted, session.num_workers))

        def heard(ready: Any) -> None:
            if self._asked_at != now:
                return
            self._asked_at = None
            try:
                self._granted = ray.get(ready)
            except ray.exceptions.RayError as error:  # it begins anew, or another one does; pools stay as they are
                _log.info("the demand broker did not answer: %s", error)
                self._broker = None

        try:
            self._broker = self._broker or find_broker()
            answer = self._broker.renew.remote(self._driver, *ask, self._pools.num_placed)
        except (ray.exceptions.RayError, ValueError) as error:  # two make it at once; speed only is at stake
            _log.info("no demand broker: %s", error)
            self._broker, self._asked_at = None, None
        else:
            self._calls.expect(answer, heard)

    def _look_for_a_place(self, now: float) -> None:
        self._had_a_place = self._had_a_place or self._pools.num_placed > 0
        if self._had_a_place or now < self._looks_at:
            return
        self._looks_at = now + _LOOK_S
        places, nodes = self._session.places(), ray.nodes()
        if fits(places, nodes) or is_growing():
            self._none_since = now
        elif now - self._none_since > _NONE_FITS_S:
            raise no_node_fits(places, nodes, now - self._began)
