"""How many client pools each driver of a Ray cluster may have: leases, fair shares, what the autoscaler is asked for.

Pure: the broker (`broker.py`) is a thin actor round `Leases`. Nothing here reaches a result; pools decide speed only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ask", "Leases", "Places", "fair_shares"]

#: Wall seconds without a word after which a lease is over: its driver is dead, or cut off.
_LEASE_S = 30.0
#: How long a driver's pools may wait for a place, with no node on its way, before others give up some of theirs.
_PATIENCE_S = 20.0
#: Pools on their way from one driver to another have no place: so long the most that there were counts.
_MOVING_S = 60.0


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
    autoscaler start nodes. When one of several has waited for long, and no node is on its way, the places that there
    are get divided fairly: whoever has too many gives some up. Once all have their shares, one more is tried, so that a
    node that comes is noticed. The division ends when all have what they want.
    """

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        #: kinds of places that are divided now → (how many there are, when they were counted)
        self._short: dict[Places, tuple[int, float]] = {}

    def renew(self, driver: str, ask: Ask, now_s: float) -> int:
        """How many pools `driver` may have now."""
        lease = self._leases.setdefault(driver, _Lease(ask, now_s))
        lease.ask, lease.renewed_s = ask, now_s
        self._count(ask.places, now_s)
        granted = self._granted(ask.places)[driver]
        if ask.placed >= min(granted, ask.wanted):
            lease.waits_since_s = None
        elif lease.waits_since_s is None:
            lease.waits_since_s = now_s
        return self._granted(ask.places)[driver]

    def release(self, driver: str) -> None:
        """It needs none any more."""
        self._leases.pop(driver, None)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody's pools wait for places."""
        return any(lease.waits_since_s is not None for lease in self._leases.values())

    def expire(self, now_s: float, *, is_growing: bool = False) -> None:
        """Drops whoever has not been heard of; notices who waits for too long.

        Args:
            now_s: monotonic.
            is_growing: whether nodes are on their way: then nobody has waited yet.
        """
        for driver in [name for name, lease in self._leases.items() if now_s - lease.renewed_s > _LEASE_S]:
            del self._leases[driver]
        for lease in self._leases.values():
            if lease.waits_since_s is None:
                continue
            if is_growing:
                lease.waits_since_s = now_s
            elif now_s - lease.waits_since_s > _PATIENCE_S and lease.ask.places not in self._short:
                self._short[lease.ask.places] = 0, now_s
        for places in tuple(self._short):
            self._count(places, now_s)

    def floor(self) -> list[tuple[Places, int]]:
        """What the autoscaler is to make room for: kinds of places, and how many of each."""
        wanted: dict[Places, int] = {}
        for lease in self._leases.values():
            wanted[lease.ask.places] = wanted.get(lease.ask.places, 0) + lease.ask.wanted
        return sorted(wanted.items(), key=repr)

    def _asks(self, places: Places) -> dict[str, Ask]:
        return {name: lease.ask for name, lease in sorted(self._leases.items()) if lease.ask.places == places}

    def _count(self, places: Places, now_s: float) -> None:
        """How many of these places there are, where they are divided; ends the division where it is over."""
        if places not in self._short:
            return
        asks = self._asks(places).values()
        there = sum(ask.placed for ask in asks)
        if len(asks) < 2 or sum(ask.wanted for ask in asks) <= there:
            del self._short[places]
            return
        most, when_s = self._short[places]
        if there >= most or now_s - when_s > _MOVING_S:
            self._short[places] = there, now_s

    def _granted(self, places: Places) -> dict[str, int]:
        asks = self._asks(places)
        if places not in self._short:
            return {name: ask.wanted for name, ask in asks.items()}
        capacity = self._short[places][0]
        wishes = [(ask.least, ask.wanted) for ask in asks.values()]
        shares = fair_shares(wishes, capacity)
        if all(ask.placed >= share for ask, share in zip(asks.values(), shares, strict=True)):
            shares = fair_shares(wishes, capacity + 1)
        return dict(zip(asks, shares, strict=True))
