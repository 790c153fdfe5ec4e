"""A cluster of three nodes on this machine, of which one is lost for good while a run is on the way."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray_kit import TITLES, Orders, facts, kill, on_ray, one_ray_at_a_time, own_processes, spec_of

from atoll.experiment import run
from atoll.runtime.session import RaySession

pytestmark = pytest.mark.ray

STEPS = 60
#: a node counts as lost after two seconds instead of twenty
HEALTH = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head with the driver, coordinator, aggregator and tracker; and nodes with room for one pool each."""

    def __init__(self, temp: str) -> None:
        self._options = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=0, temp_dir=temp, _system_config=HEALTH, **self._options)
        self.others: list[object] = []

    def fill(self) -> None:
        """As many nodes as pools: whatever the test before has lost."""
        while len(self.others) < 2:
            self.add()

    def add(self) -> None:
        self.others.append(self.cluster.add_node(num_cpus=1, **self._options))

    def lose(self) -> None:
        """SIGKILL of everything on the node that has been there longest."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(_orders_folder: Path) -> Iterator[Nodes]:
    temp = tempfile.mkdtemp(prefix="at-", dir="/tmp")  # sockets need short paths
    with one_ray_at_a_time() as patch:
        # Only for `ray.init(address="auto")` of whoever else is on this machine.
        patch.setattr("ray._private.utils.write_ray_address", lambda *args, **options: None)
        patch.setenv("OMP_NUM_THREADS", "1")  # what a session does for a Ray of its own
        # The control store survives its process, as on a cluster that has a volume for it.
        patch.setenv("RAY_gcs_storage", "rocksdb")
        patch.setenv("RAY_gcs_storage_path", f"{temp}/gcs")
        found = Nodes(temp)
        try:
            found.fill()
            ray.init(
                address=found.cluster.address,
                logging_level="ERROR",
                log_to_driver=False,
            )
            assert any(Path(f"{temp}/gcs").iterdir()), "Ray did not take the control store's place"
            yield found
        finally:
            ray.shutdown()
            found.cluster.shutdown()
            shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def session(nodes: Nodes) -> Iterator[RaySession]:
    with RaySession(2) as found:
        yield found


def wide(uri: str, **sections) -> dict:
    return spec_of(uri, model={"kind": "custom", "factory": "ray_kit:Wide"}, stop={"server_steps": STEPS}, **sections)


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    return facts(run(wide(uri), runs_folder=folder), uri)


def test_a_node_is_lost_with_the_sums_on_it(
    nodes: Nodes, session: RaySession, uri: str, folder: Path, orders: Orders, expected: dict
) -> None:
    """The coordinator is stopped meanwhile, so that what pools return waits for it; the other node ends the run."""
    orders.give("slow", "0.02")
    lost: list[float] = []

    def lose(figures: dict[str, float]) -> None:
        if not lost and figures.get("step", 0) >= 10:
            lost.append(figures["step"])
            coordinator = kill("coordinator", signal.SIGSTOP)
            assert coordinator is not None
            time.sleep(1.0)  # pools go on until they have nothing left to do
            nodes.lose()
            os.kill(coordinator, signal.SIGCONT)

    found = run(wide(uri, runtime=on_ray(2)), session=session, on_progress=lose, runs_folder=folder)
    assert lost
    assert lost[0] < STEPS - 10, "too late to be called the middle"
    assert facts(found, uri) == expected
    assert found.lost_pools == 1


def test_a_node_is_lost_and_another_one_takes_its_place(
    nodes: Nodes, session: RaySession, uri: str, folder: Path, orders: Orders, expected: dict
) -> None:
    """The pool that waits for a place gets it, and works; nothing has to be told."""
    nodes.fill()
    orders.give("slow", "0.1")
    before: list[int] = []
    at_work: list[int] = []

    def replace(figures: dict[str, float]) -> None:
        if figures.get("step", 0) < 5:
            return
        if not before:
            before.extend(own_processes(TITLES["pool"]))
            nodes.lose()
            nodes.add()
        elif not at_work:
            busy = own_processes(f"{TITLES['pool']}.train") + own_processes(f"{TITLES['pool']}.evaluate")
            at_work.extend(pid for pid in busy if pid not in before)
            if at_work:
                orders.withdraw()  # the rest may be quick

    found = run(wide(uri, runtime=on_ray(2)), session=session, on_progress=replace, runs_folder=folder)
    assert at_work, "the pool on the new node never worked"
    assert facts(found, uri) == expected


def test_the_control_store_dies_and_comes_back(
    nodes: Nodes, session: RaySession, uri: str, folder: Path, orders: Orders, expected: dict
) -> None:
    """Actors go on without it; what it knew lies on a disk. A pool that dies meanwhile is replaced afterwards."""
    nodes.fill()
    orders.give("slow", "0.05")
    state = ["up"]

    def disturb(figures: dict[str, float]) -> None:
        if state[-1] == "up" and figures.get("step", 0) >= 10:
            nodes.cluster.head_node.kill_gcs_server(check_alive=False)
            state.append("down")
        elif state[-1] == "down" and figures["step"] >= 20:
            nodes.cluster.head_node.start_gcs_server()
            assert kill("pool") is not None
            state.append("back")

    found = run(wide(uri, runtime=on_ray(2)), session=session, on_progress=disturb, runs_folder=folder)
    assert state == ["up", "down", "back"]
    assert facts(found, uri) == expected
    assert found.lost_pools == 1
