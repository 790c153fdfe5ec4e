"""What a session does before any process starts; Ray itself is a stand-in here (tests/runtime has the real one)."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from atoll.errors import SpecError
from atoll.runtime import session as module
from atoll.runtime.demand import Places
from atoll.runtime.session import RaySession


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(
        options={},
        shut_down=0,
        is_initialized=lambda: False,
        cluster_resources=lambda: {"CPU": 4.0, "GPU": 1.0},
        remote=lambda **options: lambda kind: _Remote(),
        kill=lambda actor: None,
        exceptions=module.ray.exceptions,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "a" * 56),
    )

    def init(**options) -> None:
        made.options.update(options)
        made.threads = os.environ.get("OMP_NUM_THREADS")

    made.init = init

    def shutdown() -> None:
        made.shut_down += 1

    made.shutdown = shutdown
    monkeypatch.setattr(module, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


class _Remote:
    def options(self, **_) -> _Remote:
        return self

    def remote(self, *_) -> _Actor:
        return _Actor()


class _Actor:
    """Answers whether it lives, once it has a place."""

    state = "alive"

    @property
    def __ray_ready__(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: self)


def test_an_embedded_ray_is_private_and_small(stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with RaySession(3) as session:
        options = stand_in.options
        assert options["address"] == "local"
        assert options["num_cpus"] == 4
        assert options["include_dashboard"] is False
        assert stand_in.threads == "1", "its processes inherit it"
        assert os.environ["OMP_NUM_THREADS"] == "7", "this one keeps its own"
        assert len(session.pools) == 3
    assert stand_in.shut_down == 1
    assert session.pools == []


def test_an_address_is_used_as_it_is(stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of a cluster's size: it may grow."""
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    monkeypatch.setattr(module, "check_cluster", lambda address: None)
    with RaySession(8, gpus_per_worker=1.0):
        assert stand_in.options["address"] == "ray-head:6379"
        assert "num_cpus" not in stand_in.options
        assert stand_in.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("workers", "gpus", "fits"), [(2, 0.5, True), (1, 1.0, True), (2, 1.0, False), (3, 0.5, False)]
)
def test_pools_without_a_gpu_are_refused(stand_in: SimpleNamespace, workers: int, gpus: float, fits: bool) -> None:
    """They would wait for ever, with a progress line that says so little."""
    session = RaySession(workers, gpus_per_worker=gpus)
    if fits:
        with session:
            assert len(session.pools) == workers
        return
    with pytest.raises(SpecError, match=rf"runtime\.workers: got {workers} with .*; need workers for 1 GPUs"), session:
        pass
    assert stand_in.shut_down == 1, "the embedded Ray does not stay behind"


@pytest.mark.parametrize("tracker", ["alive", "dead", "waiting"])
def test_what_died_since_the_run_before_is_replaced_and_what_waits_for_a_place_goes_on(
    stand_in: SimpleNamespace, tracker: str
) -> None:
    def get(actor: _Actor) -> None:
        if actor.state == "dead":
            raise module.ray.exceptions.RayActorError

    def wait(asked: list[_Actor], num_returns: int, timeout: float):
        assert num_returns == len(asked)
        return [a for a in asked if a.state != "waiting"], [a for a in asked if a.state == "waiting"]

    stand_in.get, stand_in.wait = get, wait
    with RaySession(3) as session:
        pools, old_tracker = list(session.pools), session.tracker
        pools[1].state, pools[2].state, old_tracker.state = "dead", "waiting", tracker
        session.revive()
        assert [new is old for new, old in zip(session.pools, pools, strict=True)] == [True, False, True]
        assert (session.tracker is old_tracker) == (tracker != "dead")


def test_pools_may_be_more_while_a_coordinator_works(stand_in: SimpleNamespace) -> None:
    stand_in.cluster_resources = lambda: {"CPU": 9.0, "GPU": 4.0}
    with RaySession(1, gpus_per_worker=0.5, most_workers=8, labels={"zone": "b", "kind": "a"}) as session:
        assert len(session.pools) == 1
        assert stand_in.options["num_cpus"] == 9
        assert not session.is_shared
        assert session.places() == Places((("CPU", 1.0), ("GPU", 0.5)), (("kind", "a"), ("zone", "b")))
        bare = session._bare()
        assert (bare.num_workers, bare.most_workers, bare.labels, bare.pools) == (1, 8, session.labels, [])


def test_trackers_get_the_drivers_variables_of_mlflow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They travel with the session to the coordinator, which replaces a tracker that is lost; nobody prints them."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    session = RaySession(1)
    assert session._tracking["MLFLOW_TRACKING_PASSWORD"] == "sesame"
    assert all(name.startswith("MLFLOW_") for name in session._tracking)
    assert "sesame" not in repr(session)
    assert session._bare()._tracking == session._tracking


@pytest.mark.parametrize("module", ["ray_executor", "nodes", "session"])
def test_an_embedded_ray_has_a_token_of_its_own(module: str) -> None:
    """Ray reads how to authenticate when it is imported: whatever is imported first, that must be settled."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = f"import os, atoll.runtime.{module}; print(os.environ['RAY_AUTH_MODE'], len(os.environ['RAY_AUTH_TOKEN']))"
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["token", "64"]
