"""How many client pools each driver of a Ray cluster may have: leases, fair shares, what the autoscaler is asked for.

Pure: the broker (`broker.py`) is a thin actor round `Leases`. Nothing here reaches a result; pools decide speed only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ask", "Leases", "Places", "fair_shares"]

#: Wall seconds without a word after which a lease is over: its driver is dead, or cut off.
_LEASE_S = 30.0
#: How long a driver's pools may wait for a place before others are asked to give up some of theirs: the autoscaler
#: should have started a node by then.
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Places:
    """What one client pool takes: resources, and labels that its node must have; sorted pairs."""

    resources: tuple[tuple[str, float], ...]
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a driver has and wants, 0 ≤ least ≤ wanted.

    Attributes:
        places: of each of its pools.
        least: pools that it keeps in any case.
        wanted: pools that it has work for, `least` or more.
        placed: pools that have a place now.
    """

    places: Places
    least: int
    wanted: int
    placed: int


@dataclass(slots=True)
class _Lease:
    ask: Ask
    renewed_s: float
    #: since when its pools wait for a place that it is entitled to
    waits_since_s: float | None = None


def fair_shares(asks: Sequence[tuple[int, int]], capacity: int) -> list[int]:
    """Max-min fair division of `capacity` pools.

    Guarantees:
        Everyone gets `least` or more and `wanted` or less. Beyond `least`, nobody has two more than one who wants more.
        No place is left while somebody wants it; more than `capacity` are given only where the sum of `least` is more.
        The earlier in the list gets the odd one.

    Args:
        asks: (least, wanted) of each, least ≤ wanted.
        capacity: places that there are.

    Purity: pure.

    Example:
        >>> fair_shares([(1, 8), (1, 2), (1, 8)], 9)
        [4, 2, 3]
    """
    shares = [least for least, _ in asks]
    left = capacity - sum(shares)
    open_ = [number for number, (least, wanted) in enumerate(asks) if least < wanted]
    while left > 0 and open_:
        lowest = min(open_, key=lambda number: (shares[number], number))
        shares[lowest] += 1
        left -= 1
        if shares[lowest] == asks[lowest][1]:
            open_.remove(lowest)
    return shares


class Leases:
    """Who may have how many pools.

    As long as every driver's pools find places, each may have what it wants: the pools that wait for a place make the
    autoscaler start nodes. When one of several has waited for long, the places that there are, and one more, are
    divided fairly: whoever has too many gives some up, and the one more notices a node that comes. That ends when all
    find places again.
    """

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        #: kinds of places that are divided now
        self._short: set[Places] = set()

    def renew(self, driver: str, ask: Ask, now_s: float) -> int:
        """How many pools `driver` may have now."""
        lease = self._leases.setdefault(driver, _Lease(ask, now_s))
        lease.ask, lease.renewed_s = ask, now_s
        self.expire(now_s)
        granted = self._granted(ask.places)[driver]
        if ask.placed >= min(granted, ask.wanted):
            lease.waits_since_s = None
        elif lease.waits_since_s is None:
            lease.waits_since_s = now_s
        return self._granted(ask.places)[driver]

    def release(self, driver: str) -> None:
        """It needs none any more."""
        if (lease := self._leases.pop(driver, None)) is not None:
            self._look(lease.ask.places)

    def expire(self, now_s: float) -> None:
        """Drops whoever has not been heard of; notices who waits for too long."""
        for driver in [name for name, lease in self._leases.items() if now_s - lease.renewed_s > _LEASE_S]:
            del self._leases[driver]
        for lease in self._leases.values():
            if lease.waits_since_s is not None and now_s - lease.waits_since_s > _PATIENCE_S:
                self._short.add(lease.ask.places)
        for places in tuple(self._short):
            self._look(places)

    def floor(self) -> list[tuple[Places, int]]:
        """What the autoscaler is to make room for: kinds of places, and how many of each."""
        wanted: dict[Places, int] = {}
        for lease in self._leases.values():
            wanted[lease.ask.places] = wanted.get(lease.ask.places, 0) + lease.ask.wanted
        return sorted(wanted.items(), key=repr)

    def _look(self, places: Places) -> None:
        """Ends the division of these places where all have what they want."""
        asks = [lease.ask for lease in self._leases.values() if lease.ask.places == places]
        if len(asks) < 2 or sum(ask.wanted for ask in asks) <= sum(ask.placed for ask in asks):
            self._short.discard(places)

    def _granted(self, places: Places) -> dict[str, int]:
        leases = {name: lease.ask for name, lease in sorted(self._leases.items()) if lease.ask.places == places}
        if places not in self._short:
            return {name: ask.wanted for name, ask in leases.items()}
        capacity = sum(ask.placed for ask in leases.values()) + 1
        return dict(zip(leases, fair_shares([(a.least, a.wanted) for a in leases.values()], capacity), strict=True))
