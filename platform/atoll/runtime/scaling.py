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
from atoll.runtime.demand import Ask
from atoll.runtime.elastic import OpenWork, Sizing
from atoll.runtime.places import fits, no_node_fits
from atoll.runtime.session import RaySession
from atoll.runtime.shared import SharedPools

__all__ = ["Scaling"]

#: how often the number of pools is thought over, and how often the broker hears of it
_EVERY_S, _RENEW_S = 0.25, 2.0
#: How long all pools may be without a place before that is an error, where no node could hold one and none is on its
#: way; and how often it is told, where others hold what there is.
_NONE_FITS_S, _TELL_S = 15.0, 60.0
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
        self._is_asking = False
        self._asks_at = self._thinks_at = 0.0
        #: since when no pool has a place, and when that is told next
        self._none_since = time.monotonic()
        self._tells_at = self._none_since + _TELL_S

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

    def _ask(self, wanted: int, now: float) -> None:
        if self._is_asking or (now < self._asks_at and wanted <= self._granted):
            return
        self._is_asking, self._asks_at = True, now + _RENEW_S
        if self._broker is None:
            self._broker = find_broker()
        session, pools = self._session, self._pools
        ask = Ask(session.places(), session.num_workers, max(wanted, session.num_workers), pools.num_placed)

        def heard(ready: Any) -> None:
            self._is_asking = False
            try:
                self._granted = ray.get(ready)
            except ray.exceptions.RayError as error:  # it begins anew, or another one does; pools stay as they are
                _log.info("the demand broker did not answer: %s", error)
                self._broker = None

        self._calls.expect(self._broker.renew.remote(self._driver, ask), heard)

    def _look_for_a_place(self, now: float) -> None:
        if self._pools.num_placed:
            self._none_since, self._tells_at = now, now + _TELL_S
            return
        waited_s = now - self._none_since
        if waited_s < _NONE_FITS_S:
            return
        places, nodes = self._session.places(), ray.nodes()
        if not fits(places, nodes) and not is_growing():
            raise no_node_fits(places, nodes, waited_s)
        if now > self._tells_at:
            self._tells_at = now + _TELL_S
            _log.warning(
                "no worker has found a place for %.0f s: others hold what fits, or nodes are starting", waited_s
            )
