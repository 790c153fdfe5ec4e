"""Calls to other processes that are under way: what to do with each answer, and who is silent for too long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import ray

from atoll.runtime.deadlines import Deadlines

__all__ = ["Calls"]

#: what to do with a reference that is ready
Handler = Callable[[Any], None]


class Calls:
    """Open references of the coordinator's process, each with its handler.

    Args:
        hang_s: see Deadlines.
    """

    def __init__(self, hang_s: float | None) -> None:
        self._deadlines = Deadlines(hang_s)
        self._pending: dict[Any, Handler] = {}
        #: owner → how many before it had its name: their late answers pay no debt of its own
        self._lives: Counter[Hashable] = Counter()

    def ask(self, owner: Hashable, reference: Any, then: Handler) -> None:
        """Calls `then` with the reference when it is ready; `owner` owes the answer from now on."""
        self._deadlines.sent(owner, time.monotonic())
        life = self._lives[owner]

        def answered(ready: Any) -> None:
            if self._lives[owner] == life:
                self._deadlines.answered(owner, time.monotonic())
            then(ready)

        self._pending[reference] = answered

    def expect(self, reference: Any, then: Handler) -> None:
        """As `ask`, of somebody who may take as long as it takes."""
        self._pending[reference] = then

    def forget(self, owner: Hashable) -> None:
        """`owner` is gone and owes nothing."""
        self._lives[owner] += 1
        self._deadlines.forget(owner)

    def overdue(self) -> dict[Hashable, float]:
        """Owners that have worked on one call for longer than is allowed → seconds that they had."""
        return self._deadlines.overdue(time.monotonic())

    def take(self, timeout_s: float) -> None:
        """Waits for an answer, then handles all that are there."""
        if not self._pending:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        if not ready:
            return
        more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for reference in more:
            handler = self._pending.pop(reference, None)
            if handler is not None:
                handler(reference)
