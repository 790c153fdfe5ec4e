"""Pools that share logical GPUs, and `atoll doctor`, on a real Ray: placement alone, this machine need not have any."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from ray_kit import one_ray_at_a_time

from atoll.experiment import doctor
from atoll.runtime.nodes import ask_nodes
from atoll.runtime.session import RaySession
from tiny_kit import tiny

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    """An embedded Ray whose two logical GPUs are shared by four pools."""
    with one_ray_at_a_time(), RaySession(4, gpus_per_worker=0.5, num_gpus=2) as found:
        yield found


def test_pools_fill_one_gpu_after_the_other(session: RaySession) -> None:
    def visible(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    found = ray.get([pool.__ray_call__.remote(visible) for pool in session.pools])
    assert sorted(found) == ["0", "0", "1", "1"]
    assert ray.available_resources().get("GPU", 0.0) == 0.0


def test_a_pool_knows_its_part_of_a_gpu(session: RaySession) -> None:
    """What its seats are worked out from."""

    def share(self) -> float:
        return ray.get_runtime_context().get_assigned_resources()["GPU"]

    assert ray.get(session.pools[0].__ray_call__.remote(share)) == 0.5


def test_a_doctor_for_whom_all_gpus_are_taken_says_so_in_time(session: RaySession, tmp_path: Path) -> None:
    runtime = {"kind": "ray", "workers": 1, "lanes": 4, "device_class": "cuda", "gpus_per_worker": 0.5}
    found = doctor(tiny(runtime=runtime, tracking={"uri": f"sqlite:///{tmp_path / 'm.db'}"}), timeout_s=2)
    (problem,) = found.problems
    assert "all its GPUs are taken" in str(problem)


def test_the_node_runs_a_block_and_is_fine(session: RaySession, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    runtime = {"kind": "ray", "workers": 1, "lanes": 4, "store": str(store)}
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    there = doctor(tiny(runtime=runtime, tracking={"uri": uri}))
    assert there.problems == (), there.problems
    (node,) = there.nodes
    assert node.node_id == ray.nodes()[0]["NodeID"]
    assert node.checks == {"data": "ok", "block": "ok", "store": "ok"}
    (here,) = doctor(tiny(tracking={"uri": uri})).nodes
    assert node.block_digest == here.block_digest, "W is 4 in both"
    assert node.software == here.software


def _fails() -> None:
    raise ImportError("no such wheel")


def test_what_a_node_raises_is_an_answer(session: RaySession) -> None:
    (answer,) = ask_nodes(_fails)
    assert answer.found is None
    assert "no such wheel" in answer.error


def test_a_node_that_hangs_is_named_in_time(session: RaySession) -> None:
    began = time.monotonic()
    (answer,) = ask_nodes(partial(time.sleep, 60), timeout_s=3)
    assert time.monotonic() - began < 20
    assert answer.error.startswith("no answer in 3 s")
    assert answer.address == ray.nodes()[0]["NodeManagerAddress"]
    assert answer.resources["GPU"] == 2
