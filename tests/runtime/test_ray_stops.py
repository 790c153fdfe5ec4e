"""The whole process is stopped or killed on Ray, or its messages are lost; what goes on ends in the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_kit import STEPS, TITLES, Orders, eventually, facts, on_ray, one_ray_at_a_time, own_processes, spec_of

from atoll.errors import InfrastructureError
from atoll.experiment import Run, run
from atoll.experiment.records import read_result
from atoll.runtime.store import SqliteJournal
from atoll.tracking.mlflow_tracker import client as mlflow_client

pytestmark = pytest.mark.ray


class Machine:
    """A working directory in which `atoll` is typed; nothing that it started outlives it."""

    def __init__(self, folder: Path, temp: Path) -> None:
        self.folder, self.environment = folder, {**os.environ, "TMPDIR": str(temp), "COLUMNS": "300"}
        self._drivers: list[subprocess.Popen[str]] = []
        self._family: set[int] = set()

    def atoll(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-m", "atoll", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._drivers.append(driver)
        return driver

    def last_step(self, key: str) -> int:
        try:
            with SqliteJournal(self.folder / "runs" / key / "journal.db", is_readonly=True) as journal:
                return journal.last_step
        except InfrastructureError:
            return -1  # not there yet

    def wait_for_step(self, driver: subprocess.Popen[str], key: str, step: int) -> float:
        """Seconds until `step` is committed."""
        began = time.monotonic()

        def is_there() -> bool:
            if driver.poll() is not None:
                raise AssertionError(f"ended with {driver.returncode} before step {step}: {driver.communicate()[1]}")
            return self.last_step(key) >= step

        eventually(is_there, 120)
        return time.monotonic() - began

    def kill(self, driver: subprocess.Popen[str]) -> None:
        """SIGKILL; its workers end with it, which is waited for. Ray's own agents take a minute: `clear` ends them."""
        self._family |= set(own_processes("", driver.pid))
        workers = [pid for title in TITLES.values() for pid in own_processes(title, driver.pid)]
        driver.kill()
        driver.communicate()
        eventually(lambda: not any(map(_is_alive, workers)), 30)

    def clear(self) -> None:
        for driver in self._drivers:
            if driver.poll() is None:
                self.kill(driver)
        for pid in filter(_is_alive, self._family):
            os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def machine(_orders_folder: Path, tmp_path: Path) -> Iterator[Machine]:
    temp = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))  # sockets need short paths
    with one_ray_at_a_time():
        here = Machine(tmp_path, temp)
        try:
            yield here
        finally:
            here.clear()
            shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    return facts(run(spec_of(uri), runs_folder=folder), uri)


def status(one: Run, uri: str) -> str:
    return mlflow_client(uri).get_run(one.run_id).info.status


def status_of(key: str, uri: str) -> str:
    store = mlflow_client(uri)
    found = store.search_runs([store.get_experiment_by_name("ray").experiment_id], f"tags.`fl.run_key` LIKE '{key}-%'")
    assert len(found) == 1
    return found[0].info.status


def test_ctrl_c_then_sigterm_then_sigkill_and_each_time_it_goes_on(
    machine: Machine, uri: str, orders: Orders, expected: dict
) -> None:
    orders.give("slow", "0.03")
    spec = machine.folder / "spec.yaml"
    spec.write_text(json.dumps(spec_of(uri, runtime=on_ray(2))))
    waits: list[float] = []
    driver = machine.atoll("run", "spec.yaml", "--key", "k")
    waits.append(machine.wait_for_step(driver, "k", 10))
    for number in (signal.SIGINT, signal.SIGTERM):
        driver.send_signal(number)
        _, told = driver.communicate(timeout=60)
        assert driver.returncode == 130, told
        assert "atoll resume runs/k" in told
        assert status_of("k", uri) == "KILLED"
        reached = machine.last_step("k")
        assert reached < STEPS - 20, "too late to be called the middle"
        driver = machine.atoll("resume", "runs/k")
        waits.append(machine.wait_for_step(driver, "k", reached + 1))
    machine.kill(driver)
    reached = machine.last_step("k")
    assert reached < STEPS - 10, "too late to be called the middle"
    driver = machine.atoll("run", "spec.yaml", "--key", "k")
    waits.append(machine.wait_for_step(driver, "k", reached + 1))
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 0, told
    found = read_result(machine.folder / "runs" / "k")
    assert facts(found, uri) == expected
    assert status(found, uri) == "FINISHED"
    print("seconds from the start of the process to the first new step:", [round(wait, 1) for wait in waits])


def test_answers_that_are_lost_on_the_way(machine: Machine, uri: str, orders: Orders, expected: dict) -> None:
    """Ray's own fault injection: calls that ran, and whose callers are told that nobody knows (design: idempotency)."""
    orders.give("slow", "0.01")
    (machine.folder / "spec.yaml").write_text(json.dumps(spec_of(uri, runtime=on_ray(2, hang_s=30))))
    # In every process so many: fewer than the losses after which work is held to be at fault.
    loss = {"num_failures": 3, "req_failure_prob": 0, "resp_failure_prob": 30, "in_flight_failure_prob": 0}
    faults = json.dumps({"CoreWorkerService.grpc_client.PushTask": loss})
    driver = machine.atoll("run", "spec.yaml", "--key", "lossy", RAY_testing_rpc_failure=faults)
    _, told = driver.communicate(timeout=180)
    assert driver.returncode == 0, told
    assert facts(read_result(machine.folder / "runs" / "lossy"), uri) == expected
