"""A job server without Ray: jobs are records that a test moves on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.errors import InfrastructureError
from atoll.runtime.connecting import Software
from atoll.runtime.jobs import Job, Node, Order

__all__ = ["Server"]


class Server:
    """Takes jobs as the real one does: an id once, whoever comes first."""

    def __init__(self, here: bool = True, nodes: tuple[Node, ...] = ()) -> None:
        self.address, self.here, self.known_nodes = "http://head:8265", here, nodes
        self.software = Software.here()
        self.known: dict[str, Job] = {}
        self.orders: dict[str, Order] = {}
        self.folders: dict[str, Mapping[str, str]] = {}
        self.texts: dict[str, str] = {}
        self.stopped: list[str] = []
        #: called in the moment before a job is taken
        self.before: Callable[[Order], None] = lambda order: None
        #: what `follow` makes of a job
        self.ends: list[Callable[[str], Job]] = []

    def end(self, job_id: str, status: str, **facts: Any) -> Job:
        self.known[job_id] = replace(self.known[job_id], status=status, **facts)
        return self.known[job_id]

    # what the real one has

    def jobs(self) -> list[Job]:
        return list(self.known.values())

    def job(self, job_id: str) -> Job:
        return self.known[job_id]

    def submit(self, order: Order, folder: Path) -> None:
        assert not list(folder.iterdir())
        self.before(order)
        if order.id in self.known:
            raise InfrastructureError(f"Job with submission_id {order.id} already exists")
        self.orders[order.id] = order
        self.known[order.id] = Job(order.id, "PENDING", began_ms=1, metadata=order.metadata)

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)
        if self.known[job_id].status == "RUNNING":
            self.end(job_id, "STOPPED")

    def log(self, job_id: str) -> str:
        return self.texts.get(job_id, "")

    def nodes(self) -> list[Node]:
        return list(self.known_nodes)

    def is_this_machine(self) -> bool:
        return self.here

    def follow(self, job_id: str, write: Callable[[str], None], on_poll: Callable[[Job], None] | None = None) -> Job:
        if on_poll is not None:
            on_poll(self.known[job_id])
        write(self.texts.get(job_id, ""))
        return self.ends.pop(0)(job_id) if self.ends else self.known[job_id]
