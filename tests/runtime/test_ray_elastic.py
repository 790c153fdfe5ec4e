"""Client pools that follow the plan's width, on an embedded Ray and on a cluster that starts and stops nodes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_kit import TITLES, eventually, one_ray_at_a_time, own_processes

from atoll.experiment import run
from tiny_kit import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
IDLE_S = 6.0


def wide(uri: str, steps: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """Rounds of eight blocks, each worth some hundredths of a second."""
    return tiny(
        data={"kind": "synthetic", "features": 64, "examples": {"kind": "constant", "count": 400}},
        model={"kind": "mlp", "hidden": [64]},
        client={"lr": 0.1, "batch_size": 16, "epochs": 2},
        population={"size": 80, "devices": {"kind": "half_normal", "scale_s": 60.0}},
        schedule={"kind": "sync", "cohort": 32},
        aggregation={"kind": "fedavg"},
        evaluation={"every_steps": 50, "metrics": ["loss"]},
        stop={"server_steps": steps},
        tracking={"uri": uri, "experiment": "elastic"},
        runtime={**runtime, "lanes": 4},
    )


class Peak:
    """The most of something, looked at until the block ends."""

    def __init__(self, look) -> None:
        self.look, self.seen, self.is_over = look, [], threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self.is_over.wait(0.3):
            self.seen.append(self.look())

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()


def test_on_an_embedded_ray_pools_come_as_the_work_is_wide(uri: str, folder: Path) -> None:
    expected = run(wide(uri, 40, {"kind": "inline"}), runs_folder=folder)
    with one_ray_at_a_time(), Peak(lambda: len(own_processes(TITLES["pool"]))) as pools:
        found = run(wide(uri, 40, {"kind": "ray", "workers": {"min": 1, "max": 3}}), runs_folder=folder)
    assert max(pools.seen) == 3
    assert found.model_digest == expected.model_digest
    assert (found.lost_pools, found.attempts) == (0, 1)


# ---- a cluster whose autoscaler starts and stops nodes --------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("local_cluster", ROOT / "scripts" / "local_cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with one_ray_at_a_time(), module.LocalCluster(nodes=3, idle_s=IDLE_S) as found:
        yield found


def num_nodes(cluster: Any) -> int:
    asked = urllib.request.Request(
        f"{cluster.jobs}/nodes?view=summary", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        nodes = json.load(answer)["data"]["summary"]
    return sum(node["raylet"]["state"] == "ALIVE" for node in nodes)


def environment_of(cluster: Any, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean | cluster.environment() | {"PATH": path, "OMP_NUM_THREADS": "1", **more}


def wait_for_idle(cluster: Any) -> None:
    """The autoscaler looks once a second, and a node takes some seconds to go."""
    began = time.monotonic()
    eventually(lambda: num_nodes(cluster) == 1, seconds=60)
    assert time.monotonic() - began < IDLE_S + 25


def test_one_run_takes_a_cluster_from_one_node_to_four_and_back(cluster: Any, uri: str, tmp_path: Path) -> None:
    steps, runtime = 90, {"kind": "ray", "workers": {"min": 1, "max": 3}}
    expected = run(wide(uri, steps, {"kind": "inline"}), runs_folder=tmp_path / "here")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(wide(uri, steps, runtime)))
    eventually(lambda: num_nodes(cluster) == 1)
    command = [sys.executable, "-m", "atoll", "run", str(tmp_path / "spec.yaml"), "--json"]
    environment = environment_of(cluster, RAY_ADDRESS=cluster.address)
    with Peak(lambda: num_nodes(cluster)) as nodes:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["model_digest"] == expected.model_digest
    assert found["lost_pools"] == 0
    assert max(nodes.seen) == 4
    wait_for_idle(cluster)


def test_where_no_node_could_ever_hold_a_worker_the_run_is_refused(cluster: Any, uri: str, tmp_path: Path) -> None:
    runtime = {"kind": "ray", "workers": {"min": 1, "max": 3}, "labels": {"zone": "moon"}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(wide(uri, 5, runtime)))
    command = [sys.executable, "-m", "atoll", "run", str(tmp_path / "spec.yaml")]
    environment = environment_of(cluster, RAY_ADDRESS=cluster.address)
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-3000:]
    assert "need a node with 1 CPU, label zone=moon" in done.stderr
    assert time.monotonic() - began < 60


def test_the_walk_through_of_readme(cluster: Any, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().partition("<!-- begin walk-through -->")[2]
    lines = text.partition("<!-- end walk-through -->")[0].strip().strip("`").strip().splitlines()
    commands = [line for line in lines if line.startswith("atoll ")]
    assert len(commands) == len(lines) - 2, "the first two only say where things are"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = environment_of(cluster, RAY_API_SERVER_ADDRESS=cluster.jobs)
    said: list[str] = []
    with Peak(lambda: num_nodes(cluster)) as nodes:
        for command in commands:
            # a pipe as output: tables are as wide as 80 columns else
            wide_enough = {**environment, "COLUMNS": "200"}
            done = subprocess.run(
                ["bash", "-c", command], env=wide_enough, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
            said.append(done.stdout + done.stderr)
    first, _, jobs, second, compared, here = said
    assert max(nodes.seen) == 4
    assert "first-a1 SUCCEEDED" in first
    assert "first-a1" in jobs
    assert "second-a1" in jobs
    assert "second-a1 SUCCEEDED" in second
    assert "virtual hours" in compared
    digests = [re.findall(r"model digest +│ (\w+)", text)[0] for text in (first, here, second)]
    assert digests[0] == digests[1] != digests[2]
    wait_for_idle(cluster)
