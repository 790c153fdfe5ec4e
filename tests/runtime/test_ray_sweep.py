"""A sweep of twelve trials on Ray, two at a time, its driver killed in the middle: repeated, it has twelve runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray_kit import TITLES, Orders, eventually, on_ray, one_ray_at_a_time, own_processes, spec_of

import atoll
from atoll.errors import InfrastructureError
from atoll.runtime.store import SqliteJournal
from atoll.tracking import child_runs
from atoll.tracking.mlflow_tracker import client as mlflow_client

# other Ray tests of this machine are waited for
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 30
SPACE = ("client.lr=0.03,0.1,0.3,1.0", "aggregation.server_optimizer.lr=0.5,1.0,2.0")


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def driver_of(folder: Path, temp: Path) -> Iterator[subprocess.Popen[str]]:
    """`atoll sweep` in `folder`; killed at the end if it still runs, and everything that it started with it."""
    command = [sys.executable, "-m", "atoll", "sweep", "spec.yaml", *SPACE, "--at-once", "2", "--key", "k", "--json"]
    environment = {**os.environ, "TMPDIR": str(temp), "COLUMNS": "300"}
    driver = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    family: set[int] = set()
    try:
        yield driver
    finally:
        if driver.poll() is None:
            family = set(own_processes("", driver.pid))
            workers = [pid for title in TITLES.values() for pid in own_processes(title, driver.pid)]
            driver.kill()
            driver.communicate()
            eventually(lambda: not any(map(_is_alive, workers)), 30)
        for pid in filter(_is_alive, family):
            os.kill(pid, signal.SIGKILL)


def steps_done(folder: Path) -> dict[str, int]:
    """Server steps that are committed, by run."""
    found = {}
    for path in folder.glob("runs/k/t*/journal.db"):
        try:
            with SqliteJournal(path, is_readonly=True) as journal:
                found[path.parent.name] = journal.last_step + 1
        except (InfrastructureError, sqlite3.Error):
            continue  # somebody begins to write it
    return found


def is_in_the_middle(folder: Path) -> bool:
    """Some trials are done, one is on its way, some have not begun."""
    steps = steps_done(folder)
    return sum(step == STEPS for step in steps.values()) >= 4 and any(3 <= step < STEPS - 3 for step in steps.values())


def test_killed_in_the_middle_and_repeated(uri: str, folder: Path, orders: Orders, tmp_path: Path) -> None:
    sections = {"stop": {"server_steps": STEPS}}
    expected = atoll.sweep(spec_of(uri, **sections), *SPACE, key="calm", runs_folder=folder)
    (tmp_path / "spec.yaml").write_text(json.dumps(spec_of(uri, runtime=on_ray(2), **sections)))
    temp = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))  # sockets need short paths
    try:
        with one_ray_at_a_time():
            orders.give("slow", "0.02")
            with driver_of(tmp_path, temp) as driver:
                eventually(lambda: driver.poll() is not None or is_in_the_middle(tmp_path), 120)
                assert driver.poll() is None, driver.communicate()[1]
            reached = steps_done(tmp_path)
            assert len(reached) < 12, "too late to be called the middle"
            orders.withdraw()
            with driver_of(tmp_path, temp) as driver:
                out, err = driver.communicate(timeout=180)
                assert driver.returncode == 0, err
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    found = json.loads(out.splitlines()[-1])
    assert [(one["values"], one["scores"], one["timeline_digest"]) for one in found["trials"]] == [
        (one.values, {str(STEPS): one.score}, one.timeline_digest) for one in expected.trials
    ]
    results = [json.loads((Path(one["folders"][0]) / "result.json").read_text()) for one in found["trials"]]
    assert [one["model_digest"] for one in results] == [one.runs[0].model_digest for one in expected.trials]
    assert any(one["attempts"] > 1 for one in results), "one was to be killed on its way"
    store = mlflow_client(uri)
    runs = [store.get_run(run_id) for run_id in child_runs(uri, found["parent_run_id"])]
    told = sorted((run.data.tags["fl.arm"], run.info.status) for run in runs)
    assert told == [(f"t{number:03d}", "FINISHED") for number in range(12)]
    for run, one in zip(sorted(runs, key=lambda run: run.data.tags["fl.arm"]), expected.trials, strict=True):
        rows = store.get_metric_history(run.info.run_id, "eval/auc")
        points = sorted((row.step, row.value) for row in rows)
        assert points == sorted(one.runs[0].history()["eval/auc"]), "no row is lost, none is there twice"
