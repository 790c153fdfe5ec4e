"""How many client pools the open work can keep busy: grows at once, shrinks after a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["OpenWork", "Sizing", "together"]

#: Wall seconds of work that pay for a pool of its own between two calls: below it the calls cost as much as they save.
_PAYS_S = 0.015
#: While nothing is known of what work costs: how long to wait for the first call before blocks are counted instead.
_UNKNOWN_S = 2.0
#: A pool goes when for so long fewer were enough: a step's end must not send away what the next step needs.
_CALM_S = 10.0


@dataclass(frozen=True, slots=True)
class OpenWork:
    """Work that could be done at the same time now, of all runs.

    Attributes:
        blocks: blocks that are ready or under way, evaluations included.
        seconds: wall seconds of one pool that they take; None where nothing has come back yet.
    """

    blocks: int
    seconds: float | None


def together(works: Iterable[OpenWork]) -> OpenWork:
    """Of several runs; the seconds are those of the runs that know them."""
    all_of_them = tuple(works)
    known = [work.seconds for work in all_of_them if work.seconds is not None]
    return OpenWork(sum(work.blocks for work in all_of_them), sum(known) if known else None)


class Sizing:
    """Between `least` and `most` pools, as the plan's width asks for it: the most of the last seconds.

    Args:
        least: pools that stay.
        most: pools at most.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._began_s: float | None = None
        #: (when, how many), falling: the newest is the lowest
        self._peaks: deque[tuple[float, int]] = deque()

    def wanted(self, work: OpenWork, now_s: float) -> int:
        """How many pools there should be now."""
        if self._began_s is None and work.blocks:
            self._began_s = now_s
        if work.seconds is not None:
            useful = min(work.blocks, int(-(-work.seconds // _PAYS_S)))
        else:
            has_waited = self._began_s is not None and now_s - self._began_s >= _UNKNOWN_S
            useful = work.blocks if has_waited else 0
        useful = min(max(useful, self._least), self._most)
        while self._peaks and self._peaks[-1][1] <= useful:
            self._peaks.pop()
        self._peaks.append((now_s, useful))
        while now_s - self._peaks[0][0] > _CALM_S:
            self._peaks.popleft()
        return self._peaks[0][1]
