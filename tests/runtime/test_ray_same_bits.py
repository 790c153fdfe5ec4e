"""Ray end to end: the bits of the in-process run with any number of workers, and with a worker killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray_kit import facts, one_ray_at_a_time

from atoll.experiment import run
from atoll.runtime.session import RaySession
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.ray

#: long enough on Ray to be killed in the middle, a second or two inline
LONG = {"server_steps": 240}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RaySession]:
    with one_ray_at_a_time(), RaySession(3, num_gpus=2) as session:
        yield session


def part_of(cluster: RaySession, workers: int) -> RaySession:
    """A session over the first pools, so that no process is started twice."""
    return RaySession(workers, pools=cluster.pools[:workers], tracker=cluster.tracker)


def spec_of(uri: str, **sections) -> dict:
    return tiny(**{"tracking": {"uri": uri, "experiment": "ray", "checkpoint_every_steps": 50}, **sections})


def on_ray(workers: int) -> dict:
    return {"kind": "ray", "workers": workers, "lanes": 4}


def pid_of(pool) -> int:
    return ray.get(pool.__ray_call__.remote(lambda self: os.getpid()))


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    found = facts(run(spec_of(uri, stop=LONG), runs_folder=folder), uri)
    steps = LONG["server_steps"]
    assert len(found["rows"]["train/loss"]) == steps
    assert found["walls"]["wall_s"] == list(range(1, steps + 1))
    assert found["unpublished"] == 0
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers(cluster: RaySession, uri: str, folder: Path, expected: dict, workers: int) -> None:
    spec = spec_of(uri, stop=LONG, runtime=on_ray(workers))
    found = run(spec, session=part_of(cluster, workers), runs_folder=folder)
    assert facts(found, uri) == expected
    assert (found.workers, found.lost_pools) == (workers, 0)


def test_a_worker_killed_on_the_way(cluster: RaySession, uri: str, folder: Path, expected: dict) -> None:
    """SIGKILL at step 5 or later, and of another one before the start; both are replaced."""
    killed_at: list[float] = []
    first, second, third = (pid_of(pool) for pool in cluster.pools)
    os.kill(third, signal.SIGKILL)

    def kill(figures: dict[str, float]) -> None:
        if not killed_at and figures.get("step", 0) >= 5:
            killed_at.append(figures["step"])
            os.kill(first, signal.SIGKILL)

    found = run(spec_of(uri, stop=LONG, runtime=on_ray(3)), session=cluster, on_progress=kill, runs_folder=folder)
    assert killed_at
    assert killed_at[0] < 220, "too late to be called the middle"
    assert found.lost_pools == 2
    assert facts(found, uri) == expected
    # The session is of use afterwards.
    again = run(spec_of(uri, runtime=on_ray(3)), session=cluster, runs_folder=folder)
    assert again.lost_pools == 0
    alive = {pid_of(pool) for pool in cluster.pools}
    assert len(alive) == 3
    assert alive & {first, second, third} == {second}


def test_ctrl_c_keeps_what_there_is(cluster: RaySession, uri: str, folder: Path) -> None:
    def interrupt(figures: dict[str, float]) -> None:
        if figures.get("step", 0) >= 3:
            raise KeyboardInterrupt

    spec = spec_of(uri, name="interrupted", stop={"server_steps": 5_000}, runtime=on_ray(2))
    with pytest.raises(KeyboardInterrupt):
        run(spec, session=part_of(cluster, 2), on_progress=interrupt, runs_folder=folder)
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("ray")
    found = store.search_runs([experiment.experiment_id], "attributes.run_name = 'interrupted'")
    assert [one.info.status for one in found] == ["KILLED"]
    assert found[0].data.metrics["sim/client_updates"] >= 6


def test_pools_share_logical_gpus(cluster: RaySession) -> None:
    """Placement alone: this machine need not have any."""

    def visible(pool) -> str | None:
        return ray.get(pool.__ray_call__.remote(lambda self: os.environ.get("CUDA_VISIBLE_DEVICES")))

    assert visible(cluster.pools[0]) in (None, ""), "CPU pools reserve none"
    assert ray.cluster_resources()["GPU"] == 2
    ray.kill(cluster.pools[2])  # makes room: a pool takes a CPU too; whoever comes next revives it
    sharing = RaySession(2, gpus_per_worker=0.5)
    pools = [sharing.new_pool() for _ in range(2)]
    try:
        assert {visible(pool) for pool in pools} <= {"0", "1"}
        assert ray.available_resources().get("GPU") == 1.0
    finally:
        for pool in pools:
            ray.kill(pool)


def test_threads_are_pinned_in_workers(cluster: RaySession) -> None:
    def facts_of(self) -> tuple:
        import torch

        return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

    assert ray.get(cluster.pools[0].__ray_call__.remote(facts_of)) == ("1", 1)
