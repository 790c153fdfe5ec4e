"""Client work: a block of lanes → exact partial sums."""

from atoll.learner.learner import Gather, Learner
from atoll.learner.loop import LoopClient
from atoll.learner.work import METRICS, ClientWork, example_order

__all__ = ["METRICS", "ClientWork", "Gather", "Learner", "LoopClient", "example_order"]
