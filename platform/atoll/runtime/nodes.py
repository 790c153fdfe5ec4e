"""One question to every node of the Ray cluster, answered by a process of its own there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from atoll.runtime.session import RaySession  # before Ray, which reads how to authenticate when it is imported

# isort: split
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atoll.errors import AtollError

__all__ = ["NodeAnswer", "ask_nodes", "connected"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeAnswer(Generic[T]):
    """What one node said.

    Attributes:
        node_id: Ray's.
        address: its IP address.
        resources: name → amount, as Ray has it: CPU, GPU.
        labels: of the node.
        found: the answer; None: there is none.
        error: why not; "" where there is one.
    """

    node_id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    found: T | None
    error: str = ""


@contextlib.contextmanager
def connected(session: RaySession) -> Iterator[None]:
    """Inside, this process is connected to the cluster that RAY_ADDRESS names, or to an embedded Ray of one node.

    Args:
        session: not entered, so that it has no pools.

    Raises:
        SpecError: the cluster does not answer, or refuses this process.
    """
    if ray.is_initialized():
        yield
        return
    try:
        session._start_ray()
        yield
    finally:
        session.__exit__(None, None, None)


class _Respondent:
    """Answers one question, where it was placed."""

    def answer(self, question: Callable[[], T]) -> T:
        return question()


def ask_nodes(question: Callable[[], T], *, gpus: float = 0.0, timeout_s: float = 60.0) -> list[NodeAnswer[T]]:
    """Asks every node that is alive, all at the same time; to be called inside `connected`.

    A node that is full answers too: the process takes no core. One that does not answer is in the list, with what is
    known of the reason.

    Args:
        question: a function that can be pickled; runs in a fresh process on each node.
        gpus: what it takes of a GPU on nodes that have any: Ray hides them from a process that takes nothing.
        timeout_s: wall seconds for all of it.

    Returns:
        One answer per node, ordered by address.
    """
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda one: one["NodeManagerAddress"])
    actors, asked = [], []
    for node in nodes:
        share = gpus if node["Resources"].get("GPU", 0.0) else 0.0
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        kind = ray.remote(num_cpus=0, num_gpus=share, max_restarts=0, max_task_retries=0, scheduling_strategy=there)
        actors.append(kind(_Respondent).remote())
        asked.append(actors[-1].answer.remote(question))
    try:
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
        return [_answer(node, ref, ref in ready, timeout_s) for node, ref in zip(nodes, asked, strict=True)]
    finally:
        for actor in actors:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor)


def _answer(node: Mapping[str, Any], reference: Any, is_ready: bool, timeout_s: float) -> NodeAnswer[Any]:
    found, error = None, ""
    if not is_ready:
        error = f"no answer in {timeout_s:.0f} s"
        if node["Resources"].get("GPU"):
            error += "; perhaps all its GPUs are taken"
    else:
        try:
            found = ray.get(reference)
        except (RayTaskError, RayError) as raised:
            error = _story(raised)
    resources = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
    return NodeAnswer(node["NodeID"], node["NodeManagerAddress"], resources, node.get("Labels") or {}, found, error)


def _story(error: BaseException) -> str:
    """One line; of Ray's tracebacks the last one, which names the exception."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    if isinstance(cause, AtollError):
        return str(cause).splitlines()[0]
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    named = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return f"{type(cause).__name__}: {named}" if type(cause).__name__ not in named else named
