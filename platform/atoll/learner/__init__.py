"""Client work: blocks of lanes → exact partial sums; torch and numba are imported with the first learner, not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.learner.work import METRICS, ClientWork, Gather, Trainer, example_order

if TYPE_CHECKING:
    from atoll.learner.compiled import CompiledLearner
    from atoll.learner.learner import Learner
    from atoll.learner.loop import LoopClient
    from atoll.learner.single import SingleLearner

__all__ = [
    "METRICS",
    "ClientWork",
    "CompiledLearner",
    "Gather",
    "Learner",
    "LoopClient",
    "SingleLearner",
    "Trainer",
    "example_order",
]


def __getattr__(name: str) -> Any:
    if name == "CompiledLearner":
        from atoll.learner.compiled import CompiledLearner

        return CompiledLearner
    if name == "Learner":
        from atoll.learner.learner import Learner

        return Learner
    if name == "LoopClient":
        from atoll.learner.loop import LoopClient

        return LoopClient
    if name == "SingleLearner":
        from atoll.learner.single import SingleLearner

        return SingleLearner
    raise AttributeError(f"module 'atoll.learner' has no attribute {name!r}")
