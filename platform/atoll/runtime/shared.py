"""What the runs of one coordinator share: client pools and the tracker, with their replacement when they are lost."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from atoll.errors import InfrastructureError
from atoll.runtime.calls import Calls
from atoll.runtime.losses import PROCESS_LOST, end_process, is_of, told
from atoll.runtime.parts import Parts
from atoll.runtime.places import Place, check_same
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

    def pool_retired(self, pool: int) -> None:
        """A pool gets no more work."""
        ...

    def pool_gone(self, pool: int) -> None:
        """A pool that was retired has ended."""
        ...

    def failed(self, error: BaseException) -> None:
        """Something that this run asked for raised."""
        ...

    def tracker_lost(self, error: BaseException) -> None:
        """The tracker is gone, and what it was sending."""
        ...


class SharedPools:
    """Client pools that train for several runs in the order in which they are asked.

    Every run holds a bounded number of calls at a pool, so that runs with work get equal shares of its time. There are
    as many slots as there may ever be pools; `resize` fills and empties them.

    Args:
        handles: of the pools that there are.
        session: makes new ones.
        calls: of this process.
        tenants: the runs.
    """

    def __init__(self, handles: list[Any], session: RaySession, calls: Calls, tenants: list[Tenant]) -> None:
        empty = [None] * (session.most_workers - len(handles))
        self._handles: list[Any] = [*handles, *empty]
        self._session, self._calls, self._tenants = session, calls, tenants
        self._life = [0] * len(self._handles)
        #: pool → where it is, once it has answered
        self._places: dict[int, Place] = {}
        #: pools that get no more work
        self._retiring: set[int] = set()
        #: device of the first pool that had a place: what all have to have
        self.kind = ""
        #: per pool, runs that owe the answers of its calls, in the order in which they were sent
        self._order: list[list[tuple[int, int]]] = [[] for _ in self._handles]
        self._next_call = 0
        self._patience = Patience("a client pool", _MOST_LOST_POOLS)
        #: pools lost so far
        self.num_lost = 0
        for pool in self._working():
            self._locate(pool)

    def __len__(self) -> int:
        """Slots."""
        return len(self._handles)

    def __getitem__(self, pool: int) -> Any:
        return self._handles[pool]

    @property
    def num_wanted(self) -> int:
        """Pools that work, or will once they have a place."""
        return len(self._working())

    @property
    def num_awaited(self) -> int:
        """Pools that a run waits for before it begins; others join it later."""
        return min(self._session.num_workers, self.num_wanted)

    @property
    def num_placed(self) -> int:
        """Pools that work."""
        return sum(pool in self._places for pool in self._working())

    def _working(self) -> list[int]:
        return [pool for pool, one in enumerate(self._handles) if one is not None and pool not in self._retiring]

    def resize(self, number: int) -> None:
        """As many pools as this, between none and the number of slots.

        New ones prepare themselves for every run. Those that go are the ones without a place, then those on the nodes
        with the fewest, so that whole nodes become idle, this process's node last; they finish what they have first.
        """
        working = self._working()
        free = [pool for pool, handle in enumerate(self._handles) if handle is None]
        for pool in free[: max(0, number - len(working))]:
            self._handles[pool] = self._session.new_pool()
            self._locate(pool)
            for tenant in self._tenants:
                if tenant.epoch and not tenant.is_over:
                    self._open(pool, tenant)
        for pool in self._leaving(working)[: max(0, len(working) - number)]:
            self._retiring.add(pool)
            for tenant in self._tenants:
                if not tenant.is_over:
                    tenant.pool_retired(pool)
            self._end_if_through(pool)

    def _leaving(self, working: list[int]) -> list[int]:
        """Pools in the order in which they may go."""
        here = ray.get_runtime_context().get_node_id()
        nodes = Counter(place.node_id for pool, place in self._places.items() if pool in working)

        def key(pool: int) -> tuple[int, int, str, int]:
            place = self._places.get(pool)
            if place is None:
                return 0, 0, "", -pool
            return 1 + (place.node_id == here), nodes[place.node_id], place.node_id, -pool

        return sorted(working, key=key)

    def _end_if_through(self, pool: int) -> None:
        if pool in self._retiring and not self._order[pool]:
            self._empty(pool)

    def _empty(self, pool: int) -> None:
        """The slot is free again."""
        self._retiring.discard(pool)
        self._life[pool] += 1
        self._calls.forget(pool)
        end_process(self._handles[pool], self._places.pop(pool, None))
        self._handles[pool] = None
        for tenant in self._tenants:
            if not tenant.is_over:
                tenant.pool_gone(pool)

    def open(self, tenant: Tenant) -> None:
        """Every pool prepares itself for this run, which then hears `pool_ready`."""
        for pool in self._working():
            self._open(pool, tenant)

    def _open(self, pool: int, tenant: Tenant) -> None:
        life, epoch, parts = self._life[pool], tenant.epoch, tenant.parts
        opened = self._handles[pool].open.remote(tenant.number, parts.make_learner, parts.make_evaluator, epoch)

        def done(ready: Any) -> None:
            if self._life[pool] != life:
                return
            try:
                place: Place | None = ray.get(ready)
            except PROCESS_LOST as error:
                self.replace(pool, error)
            except (RayTaskError, RayError) as error:
                if epoch == tenant.epoch:
                    tenant.failed(told(error, "a client pool"))
            else:
                if place is not None:
                    self._placed(pool, place)
                if epoch == tenant.epoch and pool not in self._retiring:
                    tenant.pool_ready(pool)

        if pool in self._places:
            self._calls.ask(pool, opened, done)
        else:
            self._calls.expect(opened, done)

    def _locate(self, pool: int) -> None:
        """Asks a new pool where it is: it has a place when it answers, long before it has opened data.

        No deadline: on a cluster it may wait for a node, and others do its work meanwhile.
        """
        life = self._life[pool]

        def done(ready: Any) -> None:
            if self._life[pool] != life:
                return
            try:
                self._placed(pool, ray.get(ready))
            except PROCESS_LOST as error:
                self.replace(pool, error)

        self._calls.expect(self._handles[pool].where.remote(self._session.gpus_per_worker > 0), done)

    def _placed(self, pool: int, place: Place) -> None:
        """Notes where a pool is.

        Raises:
            SpecError: it would end in other bits than the others.
        """
        self._places[pool] = place
        self.kind = self.kind or place.kind
        check_same(place, self.kind)

    def close(self, tenant: Tenant) -> None:
        """Pools forget this run."""
        for handle in self._handles:
            if handle is not None:
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
            if epoch == tenant.epoch:
                if found is not None:
                    tenant.failed(found)
                else:
                    then(value)
            self._end_if_through(pool)

        self._calls.ask(pool, reference, handle)

    def replace(self, pool: int, error: BaseException) -> None:
        """A pool died or hangs: a fresh one takes its number, unless it was to go, and every run is told.

        Raises:
            InfrastructureError: too many in a row.
        """
        self._patience.lost(sum(tenant.version for tenant in self._tenants), error)
        self._life[pool] += 1
        self._calls.forget(pool)
        for tenant in self._tenants:
            tenant.check()  # a process that was taken for dead must not end what its successor works with
        end_process(self._handles[pool], self._places.pop(pool, None))
        is_needed = pool not in self._retiring
        self._retiring.discard(pool)
        self._handles[pool] = self._session.new_pool() if is_needed else None
        if is_needed:
            self._locate(pool)
        self.num_lost += 1
        # Only what ran can be to blame, and calls run in the order in which they were sent.
        running = self._order[pool][0][1] if self._order[pool] else None
        self._order[pool] = []
        is_memory, is_out_of_reach = isinstance(error, OutOfMemoryError), isinstance(error, ActorUnavailableError)
        for tenant in self._tenants:
            if not tenant.is_over:
                is_to_blame = tenant.number == running and not is_out_of_reach
                tenant.pool_lost(pool, is_out_of_memory=is_memory, is_work_to_blame=is_to_blame)
                if is_needed:
                    self._open(pool, tenant)

    @staticmethod
    def silent(pool: int, allowed_s: float) -> InfrastructureError:
        """What to tell of one that does not answer."""
        return InfrastructureError(f"client pool {pool}: no answer for more than {allowed_s:.0f} s (runtime.hang_s)")


class SharedTracker:
    """The tracker that sends the rows of several runs, one batch after another."""

    def __init__(self, handle: Any, session: RaySession, calls: Calls, tenants: list[Tenant]) -> None:
        self._handle, self._session, self._calls, self._tenants = handle, session, calls, tenants
        self._place: Place | None = None

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
