"""Where a worker process runs: its node, and whether that node's software and processor end in the same bits."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from atoll.errors import Problem, SpecError
from atoll.learner.devices import device_name
from atoll.runtime.demand import Places
from atoll.runtime.software import software

__all__ = ["Place", "check_same", "fits", "no_node_fits"]


@dataclass(frozen=True, slots=True)
class Place:
    """Host, process and Ray node of a worker, and what decides bits there: software, and the kind of its device."""

    host: str
    pid: int
    node_id: str
    software: Mapping[str, str]
    kind: str = ""

    @staticmethod
    def here(*, has_gpu: bool = False) -> Place:
        """Of this process, inside Ray."""
        found = dict(software())
        processor = found.pop("processor")
        kind = device_name("cuda") if has_gpu else processor
        return Place(socket.gethostname(), os.getpid(), ray.get_runtime_context().get_node_id(), found, kind)


def check_same(place: Place, kind: str) -> None:
    """Refuses a worker that would end in other bits than the rest of a run.

    Args:
        place: of the worker.
        kind: of the device that the run's other workers have.

    Raises:
        SpecError: what differs there.
    """
    expected = {**software(), "device": kind}
    del expected["processor"]
    there = {**place.software, "device": place.kind}
    differing = sorted(name for name, value in expected.items() if there.get(name) != value)
    if not differing:
        return
    found = ", ".join(f"{name} {there.get(name, 'none')!r}" for name in differing)
    rule = "as the others: " + ", ".join(f"{name} {expected[name]!r}" for name in differing)
    why = "bits are equal per software build and kind of processor, not across them"
    hint = "install the same atoll on every node; runtime.labels keeps workers on nodes of one kind"
    raise SpecError([Problem(f"worker on {place.host}", found, rule, why, hint)])


def fits(places: Places, nodes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some node that is alive could hold such a worker if it were empty.

    Args:
        places: what the worker takes.
        nodes: as `ray.nodes()` lists them.
    """
    return any(
        node["Alive"]
        and all(node["Resources"].get(name, 0.0) >= amount for name, amount in places.resources)
        and all(node.get("Labels", {}).get(name) == value for name, value in places.labels)
        for node in nodes
    )


def no_node_fits(places: Places, nodes: Iterable[Mapping[str, Any]], waited_s: float) -> SpecError:
    """What to tell where no worker finds a place, and no node is on its way."""
    needs = ", ".join(f"{amount:g} {name}" for name, amount in places.resources)
    needs += "".join(f", label {name}={value}" for name, value in places.labels)
    shown = [
        f"{node['NodeManagerAddress']} ("
        + ", ".join(f"{node['Resources'].get(name, 0.0):g} {name}" for name, _ in places.resources)
        + ")"
        for node in nodes
        if node["Alive"]
    ]
    found = f"no worker has found a place in {waited_s:.0f} s; nodes: {', '.join(shown[:8]) or 'none'}"
    rule = f"a node with {needs}"
    hint = (
        "lower runtime.workers, runtime.gpus_per_worker or runtime.labels, or add such nodes: no autoscaler starts one"
    )
    return SpecError([Problem("the Ray cluster", found, rule, hint=hint)])
