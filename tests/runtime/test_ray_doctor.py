"""`atoll doctor` on a real Ray: every node answers, and those that cannot are named."""

from __future__ import annotations

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
    """An embedded Ray with two logical GPUs."""
    with one_ray_at_a_time(), RaySession(1, num_gpus=2) as found:
        yield found


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
    assert answer.error == "no answer in 3 s; perhaps all its GPUs are taken"
    assert answer.address == ray.nodes()[0]["NodeManagerAddress"]
    assert answer.resources["GPU"] == 2
