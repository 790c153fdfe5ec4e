"""What the runs of one coordinator share: client pools and the tracker, with their replacement when they are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from atoll.errors import InfrastructureError
from atoll.runtime.calls import Calls
from atoll.runtime.losses import PROCESS_LOST, end_process, is_of, told
from atoll.runtime.parts import Parts
from atoll.runtime.session import RaySession
from atoll.runtime.stopping import Patience

__all__ = ["SharedPools", "SharedTracker", "Tenant"]

#: pools lost in a row, without a server step of any run in between, that are borne
_MOST_LOST_POOLS = 100
_TRACKER = "tracker"


class Tenant(Protocol):
    """One run, as what it shares with others sees it."""

    number: int
    parts: Parts

    @property
    def epoch(self) -> int:
        """Of its journal."""
        ...

    @property
    def version(self) -> int:
        """Its newest version."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it needs nothing any more."""
        ...

    def check(self) -> None:
        """Raises FencedError where another coordinator has taken the run over."""
        ...

    def pool_ready(self, pool: int) -> None:
        """A pool can take this run's work."""
        ...

    def pool_lost(self, pool: int, *, is_out_of_memory: bool, is_work_to_blame: bool) -> None:
        """A pool is gone, and what it did for this run."""
        ...

    def failed(self, error: BaseException) -> None:
        """Something that this run asked for raised."""
        ...

    def tracker_lost(self, error: BaseException) -> None:
        """The tracker is gone, and what it was sending."""
        ...


class SharedPools:
    """Client pools that train for several runs in the order in which they are asked.

    Every run holds a bounded number of calls at a pool, so that runs with work get equal shares of its time.

    Args:
        handles: of the pools.
        session: makes new ones.
        calls: of this process.
        tenants: the runs.
    """

    def __init__(self, handles: list[Any], session: RaySession, calls: Calls, tenants: list[Tenant]) -> None:
        self._handles, self._session, self._calls, self._tenants = list(handles), session, calls, tenants
        self._life = [0] * len(handles)
        #: pool → host and process id, once it has answered
        self._places: dict[int, tuple[str, int]] = {}
        #: per pool, runs that owe the answers of its calls, in the order in which they were sent
        self._order: list[list[tuple[int, int]]] = [[] for _ in handles]
        self._next_call = 0
        self._patience = Patience("a client pool", _MOST_LOST_POOLS)

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, pool: int) -> Any:
        return self._handles[pool]

    def open(self, tenant: Tenant) -> None:
        """Every pool prepares itself for this run, which then hears `pool_ready`."""
        for pool in range(len(self)):
            self._open(pool, tenant)

    def _open(self, pool: int, tenant: Tenant) -> None:
        life, epoch, parts = self._life[pool], tenant.epoch, tenant.parts
        opened = self._handles[pool].open.remote(tenant.number, parts.make_learner, parts.make_evaluator, epoch)

        def done(ready: Any) -> None:
            if self._life[pool] != life:
                return
            try:
                self._places[pool] = ray.get(ready)
            except PROCESS_LOST as error:
                self.replace(pool, error)
            except (RayTaskError, RayError) as error:
                if epoch == tenant.epoch:
                    tenant.failed(told(error, "a client pool"))
            else:
                if epoch == tenant.epoch:
                    tenant.pool_ready(pool)

        if pool in self._places:
            self._calls.ask(pool, opened, done)
        else:
            # No deadline: on a cluster a new pool may wait for a place, and others do its work meanwhile.
            self._calls.expect(opened, done)

    def close(self, tenant: Tenant) -> None:
        """Pools forget this run."""
        for handle in self._handles:
            handle.close.remote(tenant.number)

    def watch(self, pool: int, tenant: Tenant, reference: Any, then: Callable[[Any], None]) -> None:
        """Runs `then` on the value of a pool's call, or replaces the pool where it died."""
        life, epoch = self._life[pool], tenant.epoch
        call = (self._next_call, tenant.number)
        self._next_call += 1
        self._order[pool].append(call)

        def handle(ready: Any) -> None:
            if self._life[pool] != life:
                return
            try:
                value, found = ray.get(ready), None
            except (RayTaskError, RayError) as error:
                if isinstance(error, PROCESS_LOST) and is_of(error, self._handles[pool]):
                    self.replace(pool, error)
                    return
                value, found = None, told(error, "weights that a client pool asked for")
            self._order[pool].remove(call)
            if epoch != tenant.epoch:
                return
            if found is not None:
                tenant.failed(found)
            else:
                then(value)

        self._calls.ask(pool, reference, handle)

    def replace(self, pool: int, error: BaseException) -> None:
        """A pool died or hangs: a fresh one takes its number, and every run is told.

        Raises:
            InfrastructureError: too many in a row.
        """
        self._patience.lost(sum(tenant.version for tenant in self._tenants), error)
        self._life[pool] += 1
        self._calls.forget(pool)
        for tenant in self._tenants:
            tenant.check()  # a process that was taken for dead must not end what its successor works with
        end_process(self._handles[pool], self._places.pop(pool, None))
        self._handles[pool] = self._session.new_pool()
        # Only what ran can be to blame, and calls run in the order in which they were sent.
        running = self._order[pool][0][1] if self._order[pool] else None
        self._order[pool] = []
        is_memory, is_out_of_reach = isinstance(error, OutOfMemoryError), isinstance(error, ActorUnavailableError)
        for tenant in self._tenants:
            if not tenant.is_over:
                is_to_blame = tenant.number == running and not is_out_of_reach
                tenant.pool_lost(pool, is_out_of_memory=is_memory, is_work_to_blame=is_to_blame)
                self._open(pool, tenant)

    @staticmethod
    def silent(pool: int, allowed_s: float) -> InfrastructureError:
        """What to tell of one that does not answer."""
        return InfrastructureError(f"client pool {pool}: no answer for more than {allowed_s:.0f} s (runtime.hang_s)")


class SharedTracker:
    """The tracker that sends the rows of several runs, one batch after another."""

    def __init__(self, handle: Any, session: RaySession, calls: Calls, tenants: list[Tenant]) -> None:
        self._handle, self._session, self._calls, self._tenants = handle, session, calls, tenants
        self._place: tuple[str, int] | None = None

    def open(self, tenant: Tenant) -> None:
        """The tracker takes up this run."""

        def opened(ready: Any) -> None:
            with contextlib.suppress(RayError):  # the first batch will find out
                self._place = ray.get(ready)

        self._calls.expect(self._handle.open.remote(tenant.number, tenant.parts.make_publisher), opened)

    def send(self, tenant: Tenant, batch: Any, then: Callable[[str | BaseException], None]) -> None:
        """Sends; `then` hears what the service said: its id of the run, or what it raised.

        Where the tracker dies, every run hears `tracker_lost`.
        """
        handle, epoch = self._handle, tenant.epoch

        def sent(ready: Any) -> None:
            if handle is not self._handle:
                return  # a late answer of one that was replaced
            try:
                said: str | BaseException = ray.get(ready)
            except RayTaskError as error:
                said = error.cause or error
            except RayError as error:
                self.replace(error)
                return
            if epoch == tenant.epoch:
                then(said)

        self._calls.ask(_TRACKER, handle.send.remote(tenant.number, batch), sent)

    def is_owner(self, owner: object) -> bool:
        """Whether it is the tracker that is overdue."""
        return owner == _TRACKER

    def replace(self, error: BaseException) -> None:
        """It died or hangs: a fresh one takes its place."""
        self._calls.forget(_TRACKER)
        for tenant in self._tenants:
            tenant.check()
        end_process(self._handle, self._place)
        self._handle, self._place = self._session.new_tracker(), None
        for tenant in self._tenants:
            if not tenant.is_over:
                tenant.tracker_lost(error)
                self.open(tenant)

    @staticmethod
    def silent(allowed_s: float) -> InfrastructureError:
        """What to tell of one that does not answer."""
        return InfrastructureError(f"the tracker process gave no answer for more than {allowed_s:.0f} s (hang_s)")
