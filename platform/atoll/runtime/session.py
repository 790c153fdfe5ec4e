"""A Ray session: an embedded Ray (or a connection to one), client pools and a tracker that serve run after run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from atoll.runtime.connecting import check_cluster, settle_authentication

# Ray reads its authentication settings when it is first imported. An embedded Ray gets a token of its own, so that
# nothing is written to the home directory and no other user of the machine can connect.
if "ray" not in sys.modules and "RAY_ADDRESS" in os.environ:
    settle_authentication()
elif "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atoll.errors import Problem, SpecError
from atoll.runtime.actors import ClientPool, TrackerShell
from atoll.runtime.demand import Places
from atoll.runtime.orphans import end_orphans
from atoll.runtime.store.scratch import Scratch, abandoned

__all__ = ["RaySession"]

_DEFAULT_STORE_BYTES = 512 * 2**20
_SCRATCH = "atoll-ray-"
_HELPERS = ("start_monitor", "start_log_monitor", "start_api_server")
#: how long pools and tracker may take to answer before a run begins without them
_READY_S, _LOOK_S = 30.0, 5.0
#: Threads are pinned before torch is imported: the number of threads changes bits, and two on a busy machine stall.
_WORKER_ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
_EMBEDDED_ENV = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # figures for a page that nobody opens cost a hundredth of a core
    "RAY_enable_metrics_collection": "false",
    # sums of this size come with the answer: by way of the object store they take twice as long
    "RAY_max_direct_call_object_size": str(4 * 2**20),
}


def _tracking_variables() -> dict[str, str]:
    """MLflow's variables of this process, credentials among them: on a cluster no other process has them."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


@dataclass
class RaySession:
    """Starts an embedded Ray with a private temp directory, ports and token; or connects where RAY_ADDRESS is set.

    Attributes:
        num_workers: client pools, ≥ 1; those that stay where there may be more.
        gpus_per_worker: logical GPUs per pool; 0 for CPU pools. Fractions must divide 1 (0.5, 0.25 …).
        object_store_bytes: of the embedded Ray.
        num_gpus: logical GPUs of the embedded Ray; those that Ray finds if None. Placement can be tested without any.
        most_workers: client pools at most, while a coordinator works; `num_workers` if less.
        labels: that the nodes of pools must have.
    """

    num_workers: int
    gpus_per_worker: float = 0.0
    object_store_bytes: int | None = None
    num_gpus: int | None = None
    most_workers: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    #: whether others use this Ray too
    is_shared: bool = False
    pools: list[Any] = field(default_factory=list)
    tracker: Any = None
    _scratch: Scratch | None = None
    _owns_ray: bool = False
    #: nothing ran on it yet: its processes start while the first coordinator does, and nobody waits for them
    is_new: bool = False
    #: index → the pool, or last the tracker, that has answered before: it has a place
    _answered: dict[int, Any] = field(default_factory=dict)
    #: the driver's, for trackers that the coordinator makes too
    _tracking: Mapping[str, str] = field(default_factory=_tracking_variables, repr=False)

    def __post_init__(self) -> None:
        self.most_workers = max(self.most_workers, self.num_workers)

    def places(self) -> Places:
        """What each pool takes."""
        resources = [("CPU", 1.0)] + ([("GPU", self.gpus_per_worker)] if self.gpus_per_worker else [])
        return Places(tuple(resources), tuple(sorted(self.labels.items())))

    def __enter__(self) -> RaySession:
        if not ray.is_initialized():
            self._start_ray()
            self._check_gpus()
        self.is_shared = self._scratch is None
        self.pools = [self.new_pool() for _ in range(self.num_workers)]
        self.tracker = self.new_tracker()
        self.is_new = True
        return self

    def _start_ray(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address:
            # A job may have set the same variables: what pins the bits goes before.
            os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
            check_cluster(address)
            ray.init(address=address, runtime_env={"env_vars": _WORKER_ENV}, **quiet)
            self._owns_ray = True
            return
        end_orphans(abandoned(_SCRATCH))
        self._scratch = Scratch(_SCRATCH)
        with _environment({**_WORKER_ENV, **_EMBEDDED_ENV}), _without_helpers():
            # Inherited by every process of this Ray: with a runtime environment each would start a second late.
            ray.init(
                address="local",
                num_cpus=self.most_workers + 1,
                num_gpus=self.num_gpus,
                include_dashboard=False,
                object_store_memory=self.object_store_bytes or _DEFAULT_STORE_BYTES,
                _temp_dir=str(self._scratch.path),
                **quiet,
            )
        self._owns_ray = True

    def _check_gpus(self) -> None:
        """An embedded Ray never grows: pools without a place would wait for ever."""
        there = float(ray.cluster_resources().get("GPU", 0.0))
        if self._scratch is not None and self.most_workers * self.gpus_per_worker > there:
            self.__exit__(None, None, None)
            found = f"{self.most_workers} with runtime.gpus_per_worker {self.gpus_per_worker:g}"
            rule, hint = f"workers for {there:g} GPUs", "lower either, or set RAY_ADDRESS to a cluster with more"
            raise SpecError([Problem("runtime.workers", found, rule, "Ray found no more on this machine", hint)])

    def new_pool(self) -> Any:
        """A fresh client pool: one process with one CPU, or with its share of a GPU."""
        actor = ray.remote(num_cpus=1, num_gpus=self.gpus_per_worker, max_restarts=0, max_task_retries=0)(ClientPool)
        labels = {"label_selector": dict(self.labels)} if self.labels else {}
        return actor.options(enable_task_events=False, **labels).remote()

    def new_tracker(self) -> Any:
        """A fresh tracker process."""
        return self._beside_driver(TrackerShell).remote(self._tracking)

    def new_coordinator(self, runs: list[Any]) -> Any:
        """A fresh coordinator process for `runs` on this session's pools; `progress` and `stop` run beside `run`."""
        from atoll.runtime.coordinator_shell import CoordinatorShell

        actor = self._beside_driver(CoordinatorShell).options(max_concurrency=3)
        return actor.remote(runs, self.pools, self.tracker, self._bare())

    def _bare(self) -> RaySession:
        """What a coordinator needs of it to make pools and trackers of the same kind."""
        kind = (self.num_workers, self.gpus_per_worker, self.object_store_bytes, self.num_gpus, self.most_workers)
        return RaySession(*kind, dict(self.labels), self.is_shared)

    def _beside_driver(self, kind: type) -> Any:
        """An actor on this very node: the run's folder, and a tracking store in a file, are on its disk."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(
            num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=here, enable_task_events=False
        )(kind)

    def end(self, actor: Any) -> None:
        """Ends an actor's process, whatever state it is in."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor)

    def revive(self) -> None:
        """Replaces pools and tracker that died, or hang, since the run before.

        Those that have never answered wait for a place, and go on waiting.
        """
        everyone = [*self.pools, self.tracker]
        asked = [actor.__ray_ready__.remote() for actor in everyone]
        known = [asked[index] for index, actor in enumerate(everyone) if self._answered.get(index) is actor]
        if known:
            ray.wait(known, num_returns=len(known), timeout=_READY_S)
        # Not as long for those that may have no place.
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_LOOK_S)
        dead = []
        for index, (actor, reference) in enumerate(zip(everyone, asked, strict=True)):
            is_alive = reference in ready and _is_alive(reference)
            dead.append(not is_alive and (reference in ready or actor is self._answered.get(index)))
            if is_alive:
                self._answered[index] = actor
            elif dead[-1]:
                self.end(actor)
        for index in range(len(self.pools)):
            if dead[index]:
                self.pools[index] = self.new_pool()
        if dead[-1]:
            self.tracker = self.new_tracker()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in (*self.pools, *([] if self.tracker is None else [self.tracker])):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self.pools, self.tracker = [], None
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None


@contextlib.contextmanager
def _without_helpers() -> Iterator[None]:
    """Inside, an embedded Ray begins without autoscaler, log monitor and page: nobody asks them; two seconds, 170 MB.

    Ray has no public way to start without them. Where this one is gone, they start, and only cost.
    """
    kind = getattr(sys.modules.get("ray._private.node"), "Node", object)
    kept = {name: vars(kind)[name] for name in _HELPERS if name in vars(kind)}
    for name in kept:
        setattr(kind, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(kind, name, method)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _is_alive(ready: Any) -> bool:
    try:
        ray.get(ready)
    except ray.exceptions.RayError:
        return False
    return True
