"""Whatever dies, hangs or fails on Ray, a run ends in the bits and the rows of the one that nothing disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray_kit import STEPS, TITLES, Orders, facts, kill, on_ray, one_ray_at_a_time, own_processes, spec_of

from atoll.errors import ClientWorkError, InfrastructureError
from atoll.experiment import Run, resume, run
from atoll.runtime.session import RaySession
from atoll.tracking.mlflow_tracker import client as mlflow_client

pytestmark = pytest.mark.ray

Figures = dict[str, float]


@pytest.fixture(scope="module")
def cluster(_orders_folder: Path) -> Iterator[RaySession]:
    with one_ray_at_a_time(), RaySession(2) as session:
        yield session


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    found = facts(run(spec_of(uri), runs_folder=folder), uri)
    assert found["walls"]["wall_s"] == list(range(1, STEPS + 1))
    assert found["unpublished"] == 0
    return found


class Disturbed:
    """Runs with something done to it on the way: each deed waits for a server step and for the deed before it."""

    def __init__(self, *deeds: tuple[int, Callable[[], object]]) -> None:
        self.left = list(deeds)
        self.results: list[object] = []
        self.last_step = 0.0

    def __call__(self, figures: Figures) -> None:
        self.last_step = figures.get("step", 0)
        if self.left and self.last_step >= self.left[0][0]:
            found = self.left[0][1]()
            if found is not None:  # None: there is nothing to do it to at the moment
                assert self.last_step < STEPS, "too late to be called the middle"
                self.results.append(found)
                del self.left[0]


@pytest.fixture
def go(cluster: RaySession, uri: str, folder: Path, orders: Orders, expected: dict):
    """Runs slowly enough for deeds, checks that all of them were done and that nobody can tell from the result."""
    orders.give("slow", "0.02")

    def through(*deeds: tuple[int, Callable[[], object]], **runtime) -> tuple[Run, Disturbed]:
        disturbed = Disturbed(*deeds)
        spec = spec_of(uri, runtime=on_ray(2, **runtime))
        found = run(spec, session=cluster, on_progress=disturbed, runs_folder=folder)
        assert not disturbed.left, "not everything happened that was to happen"
        assert facts(found, uri) == expected
        return found, disturbed

    return through


# ---- processes that die -------------------------------------------------------------------------------------------


def test_a_coordinator_that_is_killed_twice(go) -> None:
    """And the aggregator with it."""
    found, done = go((20, lambda: kill("coordinator")), (60, lambda: kill("coordinator")))
    assert len(set(done.results)) == 2
    assert found.lost_pools == 0


def test_a_tracker_and_a_pool_and_the_pool_in_its_place(go) -> None:
    killed: list[int] = []

    def another_pool() -> int | None:
        """The one that took the place of the first: neither it, nor the pool that was there all along."""
        return kill("pool", but=frozenset(before))

    before = own_processes(TITLES["pool"])

    def first() -> int | None:
        before[:] = own_processes(TITLES["pool"])
        return kill("pool")

    found, done = go((10, lambda: kill("tracker")), (20, first), (25, another_pool))
    killed += [pid for pid in done.results if isinstance(pid, int)]
    assert len(set(killed)) == 3
    assert found.lost_pools == 2


# ---- processes that hang ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped() -> Iterator[Callable[[str], int | None]]:
    """Stops processes; continues those that nobody ended, so that nothing is left behind."""
    pids: list[int] = []

    def stop(kind: str) -> int | None:
        pid = kill(kind, signal.SIGSTOP)
        pids.extend([] if pid is None else [pid])
        return pid

    try:
        yield stop
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_pool_that_hangs_and_then_the_tracker(go) -> None:
    with stopped() as stop:
        found, done = go((20, lambda: stop("pool")), (60, lambda: stop("tracker")), hang_s=3)
    assert found.lost_pools == 1
    for pid in done.results:
        assert not Path(f"/proc/{pid}").exists(), "a process that was taken for dead is ended"


def test_a_coordinator_that_hangs_comes_back_and_is_fenced(
    go, cluster: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the order to end it had never reached it: it finds the journal in other hands, and gives up."""
    made, ended = [], []
    new, end = RaySession.new_coordinator, RaySession.end

    def new_coordinator(self, parts):
        made.append(new(self, parts))
        return made[-1]

    def spare_the_first(self, actor) -> None:
        if made and actor is made[0]:
            ended.append(actor)
        else:
            end(self, actor)

    monkeypatch.setattr(RaySession, "new_coordinator", new_coordinator)
    monkeypatch.setattr(RaySession, "end", spare_the_first)
    zombie: list[int] = []

    def come_back() -> bool | None:
        if len(made) < 2:
            return None
        os.kill(zombie[0], signal.SIGCONT)
        return True

    with stopped() as stop:
        go((30, lambda: zombie.append(stop("coordinator")) or True), (0, come_back), hang_s=3)
    assert ended == [made[0]]
    assert len(made) == 2
    # It still answers, and does nothing: its run ended with the fence. (Epoch 1 was the driver's own.)
    assert ray.get(made[0].__ray_call__.remote(lambda self: self._runs[0].epoch), timeout=30) == 2
    end(cluster, made[0])


# ---- without progress ---------------------------------------------------------------------------------------------


def test_a_process_that_dies_again_and_again_ends_the_run(
    cluster: RaySession, uri: str, folder: Path, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience is counted in losses without a snapshot in between; here it is shorter, to wait for fewer processes."""
    monkeypatch.setattr("atoll.runtime.ray_executor._MOST_LOST_COORDINATORS", 1)
    orders.give("slow", "0.2")  # so slow that no step closes before the next death

    def behead(figures: Figures) -> None:
        kill("coordinator")

    with pytest.raises(InfrastructureError, match="the coordinator process was lost 2 times without a step") as caught:
        run(spec_of(uri, runtime=on_ray(2)), session=cluster, on_progress=behead, runs_folder=folder)
    assert caught.value.exit_code == 3
    assert any("atoll resume" in note for note in caught.value.__notes__)


# ---- client work that fails ---------------------------------------------------------------------------------------


def test_client_code_that_always_raises(cluster: RaySession, uri: str, folder: Path, orders: Orders) -> None:
    orders.give("raise")
    with pytest.raises(ClientWorkError, match="RuntimeError: no such sensor") as caught:
        run(spec_of(uri, name="raising", runtime=on_ray(2)), session=cluster, runs_folder=folder)
    error = caught.value
    assert error.exit_code == 3
    assert "client " in error.story
    assert "in forward" in error.story
    notes = "\n".join(error.__notes__)
    assert f"seed 3; replay this client alone: atoll replay {folder}" in notes
    assert f" {error.task_id}" in notes
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("ray")
    found = store.search_runs([experiment.experiment_id], "attributes.run_name = 'raising'")
    assert [one.info.status for one in found] == ["FAILED"]


def test_client_code_that_raises_once(go, orders: Orders) -> None:
    orders.give("raise once")
    go()
    assert not orders.has("raise once"), "nobody raised"


def test_memory_for_one_block_only(go, orders: Orders) -> None:
    """Fewer blocks are resident at once; never other blocks, since W is part of the plan."""
    orders.give("room for one")
    found, _ = go()
    assert orders.has("was too much"), "there never were two blocks at once"
    assert found.lost_pools == 0


def test_a_block_that_never_fits(cluster: RaySession, uri: str, folder: Path, orders: Orders) -> None:
    orders.give("too large")
    with pytest.raises(InfrastructureError, match=r"W is part of the plan.*runtime\.lanes=2") as caught:
        run(spec_of(uri, runtime=on_ray(2)), session=cluster, runs_folder=folder)
    assert caught.value.exit_code == 3


# ---- the whole process --------------------------------------------------------------------------------------------


def test_a_longer_run_asked_for_later(go, cluster: RaySession, uri: str, folder: Path, expected: dict) -> None:
    """`stop` is no part of what a run is: 42 steps and then the rest are the run of all steps."""
    short = run(spec_of(uri, stop={"server_steps": 42}, runtime=on_ray(2)), session=cluster, runs_folder=folder)
    assert short.server_steps == 42
    longer = resume(short.folder, f"stop.server_steps={STEPS}", session=cluster)
    assert facts(longer, uri) == expected
