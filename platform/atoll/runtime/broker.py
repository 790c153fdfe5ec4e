"""The broker: one detached actor per Ray cluster that divides places among drivers and tells the autoscaler the sum.

`request_resources` is one global slot of a Ray cluster: each call replaces the one before. So one process makes it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from atoll.runtime.autoscaler import is_growing
from atoll.runtime.demand import Ask, Leases, Places

__all__ = ["DemandBroker", "find_broker"]

_NAMESPACE, _NAME = "atoll", "demand-broker"
#: how often leases are looked at, and how often an unchanged demand is told again
_EVERY_S, _AGAIN_S = 2.0, 30.0
#: after so long a broker that began anew has heard of all drivers
_HEARD_S = 30.0
#: a resource that the head alone has: the broker should not go with a node that is given back
_ON_HEAD = {"node:__internal_head__": 0.001}


#: resources and labels of a kind of places
_PlainPlaces = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, str], ...]]


class DemandBroker:
    """Shell of `Leases`; begins empty when it dies, and hears of everybody again within seconds."""

    def __init__(self) -> None:
        self._leases, self._lock = Leases(), threading.Lock()
        self._began_s = time.monotonic()
        #: when and what the autoscaler was told; None: nothing yet, but perhaps by a broker before this one
        self._told: tuple[float, list[tuple[Places, int]] | None] = (0.0, None)
        threading.Thread(target=self._watch, daemon=True).start()

    def renew(self, driver: str, places: _PlainPlaces, least: int, wanted: int, placed: int) -> int:
        """How many pools `driver` may have now. Plain values: a driver may be of another atoll than this broker."""
        with self._lock:
            granted = self._leases.renew(driver, Ask(Places(*places), least, wanted, placed), time.monotonic())
            self._tell()
            return granted

    def release(self, driver: str) -> None:
        """`driver` needs none any more."""
        with self._lock:
            self._leases.release(driver)
            self._tell()

    def _watch(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            with self._lock:
                is_waited_for = self._leases.is_waited_for
            grows = is_waited_for and is_growing()  # takes seconds: nobody waits for it
            with self._lock:
                self._leases.expire(time.monotonic(), is_growing=grows)
                self._tell()

    def _tell(self) -> None:
        """Tells the autoscaler what all leases need together."""
        floor, now = self._leases.floor(), time.monotonic()
        if not floor and self._told[1] is None and now - self._began_s < _HEARD_S:
            return  # those who live will be heard of; what the broker before has told stands until then
        if floor == self._told[1] and (not floor or now - self._told[0] < _AGAIN_S):
            return
        bundles = [dict(places.resources) for places, number in floor for _ in range(number)]
        labels = [dict(places.labels) for places, number in floor for _ in range(number)]
        with contextlib.suppress(Exception):  # told again soon; pools that wait for a place are demand too
            request_resources(bundles=bundles, **({"bundle_label_selectors": labels} if any(labels) else {}))
            self._told = now, floor


def find_broker() -> Any:
    """The cluster's broker, made where there is none. On the head, where it costs no CPU."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, resources=_ON_HEAD)(DemandBroker)
    return actor.options(name=_NAME, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True).remote()
