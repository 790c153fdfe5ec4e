"""What the Ray tests share: one Ray at a time, a model that obeys marker files, processes to kill, facts to compare."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atoll.experiment import Run
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

__all__ = [
    "ORDERS",
    "STEPS",
    "Fragile",
    "Obedient",
    "Orders",
    "Wide",
    "eventually",
    "facts",
    "kill",
    "on_ray",
    "one_ray_at_a_time",
    "own_processes",
    "spec_of",
]

#: server steps of the run that is disturbed: seconds on Ray, so that there is a middle
STEPS = 120
#: environment variable that names the folder of marker files
ORDERS = "ATOLL_TEST_ORDERS"
TITLES = {
    "coordinator": "ray::CoordinatorShell",
    "tracker": "ray::TrackerShell",
    "pool": "ray::ClientPool",
}
_LOCK = Path(tempfile.gettempdir()) / "atoll-tests-ray.lock"


# ---- the model ----------------------------------------------------------------------------------------------------


class Orders:
    """Marker files that the model in every worker obeys. None of them changes a bit of what it computes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def withdraw(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


class Obedient(torch.nn.Module):
    """A small model that is slow, fails or does not fit, as the marker files say; only where it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: torch.nn.Module = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if ORDERS in os.environ and torch.is_grad_enabled():
            _obey(Path(os.environ[ORDERS]))
        return self.layer(x)


class Fragile(torch.nn.Module):
    """Raises where it is trained, as long as the marker file `raise fragile` is there."""

    def __init__(self, fails: bool = True) -> None:
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(4, 1), fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_trained = ORDERS in os.environ and torch.is_grad_enabled()
        if self.fails and is_trained and (Path(os.environ[ORDERS]) / "raise fragile").exists():
            raise RuntimeError("no such sensor")
        return self.layer(x)


class Wide(Obedient):
    """Too large for Ray to put it, or a sum of it, into a message: they lie in the object store of one node."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 200), torch.nn.Linear(200, 200), torch.nn.Linear(200, 1))


def _obey(orders: Path) -> None:
    if (orders / "raise").exists():
        raise RuntimeError("no such sensor")
    if _takes(orders / "raise once"):
        raise RuntimeError("the sensor was asleep")
    if (orders / "too large").exists():
        raise MemoryError("a block of this width never fits")
    seconds = float((orders / "slow").read_text()) if (orders / "slow").exists() else 0.0
    if not (orders / "room for one").exists():
        time.sleep(seconds)
        return
    seat = orders / "seat"
    try:
        os.close(os.open(seat, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        (orders / "was too much").touch()
        raise MemoryError("two blocks at once do not fit") from None
    try:
        time.sleep(seconds)
    finally:
        seat.unlink()


def _takes(path: Path) -> bool:
    """Whether this process is the one that takes the marker away."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


# ---- the spec -----------------------------------------------------------------------------------------------------


def spec_of(uri: str, **sections) -> dict:
    common = {
        "tracking": {"uri": uri, "experiment": "ray", "checkpoint_every_steps": 50},
        "model": {"kind": "custom", "factory": "ray_kit:Obedient"},
        "stop": {"server_steps": STEPS},
    }
    return tiny(**{**common, **sections})


def on_ray(workers: int, **more) -> dict:
    return {"kind": "ray", "workers": workers, "lanes": 4, "snapshot_every_s": 0.2, **more}


def facts(one: Run, uri: str) -> dict:
    """Everything that must be equal (design 9.3): digests, and MLflow's rows outside wall_*."""
    store = mlflow_client(uri)
    keys = store.get_run(one.run_id).data.metrics
    logged = {key: sorted((m.step, m.value) for m in store.get_metric_history(one.run_id, key)) for key in keys}
    rows = {key: points for key, points in logged.items() if not key.startswith("wall_")}
    # wall_* keys differ in their values, not in having exactly one row per step
    walls = {key: [step for step, _ in points] for key, points in logged.items() if key.startswith("wall_")}
    fixed = (one.model_digest, one.plan_digest, one.timeline_digest, one.server_steps, one.client_updates)
    return {"fixed": fixed, "rows": rows, "walls": walls, "reason": one.reason, "unpublished": one.unpublished_rows}


# ---- processes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_ray_at_a_time() -> Iterator[pytest.MonkeyPatch]:
    """Waits for other modules' Ray on this machine; workers find the modules of these tests."""
    with _LOCK.open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")
        yield patch


def own_processes(title: str, root: int | None = None) -> list[int]:
    """Process ids below `root` (this process, if None) whose command line holds `title`; none that has ended."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (path / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
    mine = {os.getpid() if root is None else root}
    for _ in range(5):  # driver, raylet, workers
        mine |= {pid for pid, parent in parents.items() if parent in mine}
    return sorted(pid for pid in mine if title in titles.get(pid, ""))


def kill(kind: str, number: int = signal.SIGKILL, but: frozenset[int] = frozenset()) -> int | None:
    """Sends a signal to one process of this kind below this one; its id, or None where there is none."""
    for pid in own_processes(TITLES[kind]):
        if pid not in but:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return pid
    return None


def eventually(what, seconds: float = 60.0, every_s: float = 0.05):
    """The first true answer of `what`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(every_s)
    raise AssertionError(f"not within {seconds:.0f} s")
