"""When a process that owes an answer counts as hung; pure, the clock is the caller's."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Deadlines"]

_LEAST_S, _TIMES_LONGEST, _AFTER_ALARM = 60.0, 20.0, 2.0


@dataclass(slots=True)
class _Debt:
    """Answers that one owner still owes, and since when it works on the first of them."""

    number: int
    since: float


class Deadlines:
    """Owners answer one call after another; who works on one for too long is overdue.

    Args:
        hang_s: seconds that one call may take; None: twenty times the longest call so far, and a minute at least,
            which doubles with every alarm, since work may honestly take longer than anything before it.
    """

    def __init__(self, hang_s: float | None) -> None:
        self._hang_s = hang_s
        self._debts: dict[Hashable, _Debt] = {}
        self._longest_s, self._least_s = 0.0, _LEAST_S

    @property
    def allowed_s(self) -> float:
        """Seconds that one call may take now."""
        return self._hang_s if self._hang_s is not None else max(self._least_s, _TIMES_LONGEST * self._longest_s)

    def sent(self, owner: Hashable, now: float) -> None:
        """`owner` owes one more answer."""
        debt = self._debts.setdefault(owner, _Debt(0, now))
        debt.number += 1

    def answered(self, owner: Hashable, now: float) -> None:
        """`owner` gave one."""
        debt = self._debts.get(owner)
        if debt is None:
            return
        self._longest_s = max(self._longest_s, now - debt.since)
        debt.number, debt.since = debt.number - 1, now
        if not debt.number:
            del self._debts[owner]

    def forget(self, owner: Hashable) -> None:
        """`owner` is gone and owes nothing."""
        self._debts.pop(owner, None)

    def forget_all(self) -> None:
        """Nobody owes anything; what was learned about how long calls take stays."""
        self._debts = {}

    def overdue(self, now: float) -> dict[Hashable, float]:
        """Owners that have worked on one call for longer than is allowed → seconds that they had; an alarm each."""
        allowed = self.allowed_s
        late = {owner: allowed for owner, debt in self._debts.items() if now - debt.since > allowed}
        if late:
            self._least_s = max(self._least_s, allowed) * _AFTER_ALARM
        return late
