"""Client work: a block of lanes → exact partial sums; torch is imported with the first learner, not with this room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.learner.work import METRICS, ClientWork, example_order

if TYPE_CHECKING:
    from atoll.learner.learner import Gather, Learner
    from atoll.learner.loop import LoopClient

__all__ = ["METRICS", "ClientWork", "Gather", "Learner", "LoopClient", "example_order"]


def __getattr__(name: str) -> Any:
    if name in ("Gather", "Learner"):
        from atoll.learner import learner

        return getattr(learner, name)
    if name == "LoopClient":
        from atoll.learner.loop import LoopClient

        return LoopClient
    raise AttributeError(f"module 'atoll.learner' has no attribute {name!r}")
