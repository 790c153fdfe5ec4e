"""Ray end to end: the bits of the in-process run with any number of workers, and with a worker killed on the way."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from atoll.errors import ClientWorkError, InfrastructureError
from atoll.experiment import Run, run
from atoll.runtime.session import RaySession
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.ray

#: long enough on Ray to be killed in the middle, a second or two inline
LONG = {"server_steps": 80}
_LOCK = Path(tempfile.gettempdir()) / "atoll-tests-ray.lock"


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second of each run and have tests of their own."""
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})


@pytest.fixture(scope="module")
def cluster() -> Iterator[RaySession]:
    """One embedded Ray with three pools for the module, and one such module at a time on this machine."""
    with _LOCK.open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")  # workers import the model below
        with RaySession(3, num_gpus=2) as session:
            yield session


def part_of(cluster: RaySession, workers: int) -> RaySession:
    """A session over the first pools, so that no process is started twice."""
    return RaySession(workers, pools=cluster.pools[:workers], tracker=cluster.tracker)


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def spec_of(uri: str, **sections) -> dict:
    return tiny(**{"tracking": {"uri": uri, "experiment": "ray", "checkpoint_every_steps": 50}, **sections})


def on_ray(workers: int) -> dict:
    return {"kind": "ray", "workers": workers, "lanes": 4}


def pid_of(pool) -> int:
    return ray.get(pool.__ray_call__.remote(lambda self: os.getpid()))


def facts(one: Run, uri: str) -> dict:
    """Everything that must be equal (design 9.3): digests, and MLflow's rows outside wall_*."""
    store = mlflow_client(uri)
    keys = store.get_run(one.run_id).data.metrics
    logged = {key: sorted((m.step, m.value) for m in store.get_metric_history(one.run_id, key)) for key in keys}
    rows = {key: points for key, points in logged.items() if not key.startswith("wall_")}
    # wall_* keys differ in their values, not in having exactly one row per step
    walls = {key: [step for step, _ in points] for key, points in logged.items() if key.startswith("wall_")}
    fixed = (one.model_digest, one.plan_digest, one.timeline_digest, one.server_steps, one.client_updates)
    return {"fixed": fixed, "rows": rows, "walls": walls, "reason": one.reason}


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    found = facts(run(spec_of(uri, stop=LONG), runs_folder=folder), uri)
    assert len(found["rows"]["train/loss"]) == 80
    assert found["walls"]["wall_s"] == list(range(1, 81))
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(cluster: RaySession, uri: str, folder: Path, expected: dict, workers: int) -> None:
    spec = spec_of(uri, stop=LONG, runtime=on_ray(workers))
    found = run(spec, session=part_of(cluster, workers), runs_folder=folder)
    assert facts(found, uri) == expected
    assert (found.workers, found.lost_pools, found.unpublished_rows) == (workers, 0, 0)


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
    assert killed_at[0] < 70, "too late to be called the middle"
    assert found.lost_pools == 1
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


class Raising(torch.nn.Module):
    """Fails where it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no such sensor")
        return self.layer(x)


def own_processes(title: str) -> list[int]:
    """Process ids below this process whose command line holds `title`."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (path / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
    mine = {os.getpid()}
    for _ in range(4):  # driver, raylet, workers
        mine |= {pid for pid, parent in parents.items() if parent in mine}
    return [pid for pid in mine if title in titles.get(pid, "")]


def test_a_killed_aggregator_ends_the_run_with_a_clear_message(cluster: RaySession, uri: str, folder: Path) -> None:
    def kill(figures: dict[str, float]) -> None:
        if figures.get("step", 0) >= 3:
            for pid in own_processes("ray::AggregatorShell"):
                os.kill(pid, signal.SIGKILL)

    spec = spec_of(uri, name="beheaded", stop={"server_steps": 5_000}, runtime=on_ray(2))
    with pytest.raises(InfrastructureError, match="the aggregator process, or what it held, was lost") as caught:
        run(spec, session=part_of(cluster, 2), on_progress=kill, runs_folder=folder)
    assert caught.value.exit_code == 3


def test_client_code_that_raises(cluster: RaySession, uri: str, folder: Path) -> None:
    model = {"kind": "custom", "factory": "test_ray_same_bits:Raising"}
    spec = spec_of(uri, name="raising", model=model, runtime=on_ray(2))
    with pytest.raises(ClientWorkError, match="RuntimeError: no such sensor") as caught:
        run(spec, session=part_of(cluster, 2), runs_folder=folder)
    assert caught.value.exit_code == 3
    assert "clients [" in caught.value.story
    assert "in forward" in caught.value.story
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("ray")
    found = store.search_runs([experiment.experiment_id], "attributes.run_name = 'raising'")
    assert [one.info.status for one in found] == ["FAILED"]


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
