"""jobs/train.py on a real head: the next attempt of a job that was killed goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atoll.experiment import run
from atoll.experiment.storing import RunStore
from tiny_kit import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_ALONE = "ATOLL_TEST_JOBS_ALONE"
JOBS = Path(__file__).parents[2] / "jobs"
_LOCK = Path(tempfile.gettempdir()) / "atoll-tests-ray.lock"


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Job client of a head of this module's own."""
    with _LOCK.open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = tempfile.mkdtemp(prefix="rj")  # short: unix socket paths are capped at 107 bytes
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        dashboard = _port()
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={_port()}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_port()}",
            f"--ray-client-server-port={_port()}", "--num-cpus=4", "--object-store-memory=200000000",
            f"--temp-dir={folder}", "--disable-usage-stats",
        ]  # fmt: skip
        with Path(folder, "head.log").open("w") as log:
            head = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield _connect(head, f"http://127.0.0.1:{dashboard}")
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


def _connect(head: subprocess.Popen[bytes], address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    until, last = time.monotonic() + 90, "no answer"
    while time.monotonic() < until:
        assert head.poll() is None, "the head ended"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            time.sleep(0.2)
            continue
        try:
            return JobSubmissionClient(address)
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
            time.sleep(0.3)  # the job agent comes up after the web page
    raise AssertionError(f"the head did not come up: {last}")


def _wait(client: Any, job: str, seconds: float) -> Any:
    until = time.monotonic() + seconds
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < until, client.get_job_logs(job)[-2000:]
        time.sleep(0.1)
    return client.get_job_info(job)


def _newest_version(store: RunStore) -> int:
    if not store.is_begun():
        return 0
    journal = store.journal()
    try:
        return max((record.version for record in journal.snapshots()), default=0)
    finally:
        journal.close()


def test_in_a_process_of_its_own() -> None:
    """Ray reads how to authenticate when it is imported, and other modules have imported it: this needs a fresh one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), _ALONE: "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "next_attempt", "-p", "no:cacheprovider"],
        env=environment, capture_output=True, text=True, check=False, cwd=JOBS.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout


@pytest.mark.skipif(_ALONE not in os.environ, reason="run by test_in_a_process_of_its_own")
def test_the_next_attempt_goes_on(client: Any, mlflow_uri: str, tmp_path: Path) -> None:
    tracking = {"uri": mlflow_uri, "experiment": "jobs"}
    stop = {"server_steps": 400}
    expected = run(tiny(stop=stop, tracking=tracking), runs_folder=tmp_path / "calm")

    runtime = {"kind": "ray", "workers": 1, "lanes": 4, "store": str(tmp_path / "store"), "snapshot_every_s": 0.2}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(tiny(stop=stop, tracking=tracking, runtime=runtime)))
    # A job's working directory is a copy: what is to last lies in the store.
    options = {
        "entrypoint": f"{sys.executable} {JOBS / 'train.py'} {tmp_path / 'spec.yaml'}",
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
    }
    client.submit_job(submission_id="nightly-a1", **options)
    mine = RunStore(tmp_path / "look", str(tmp_path / "store" / "nightly"))
    mine.folder.mkdir()
    until = time.monotonic() + 120
    while _newest_version(mine) < 20:
        assert time.monotonic() < until, client.get_job_logs("nightly-a1")[-2000:]
        time.sleep(0.2)
    for line in subprocess.run(
        ["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if str(tmp_path / "spec.yaml") in line and "train.py" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    first = _wait(client, "nightly-a1", 60)
    assert first.status.value == "FAILED"
    reached = _newest_version(mine)
    assert 20 <= reached < 400, "it was to be killed on the way"

    client.submit_job(submission_id="nightly-a2", **options)
    second = _wait(client, "nightly-a2", 180)
    assert second.driver_exit_code == 0, client.get_job_logs("nightly-a2")[-2000:]
    found = json.loads(client.get_job_logs("nightly-a2").strip().splitlines()[-1])
    assert found["model_digest"] == expected.model_digest
    assert found["plan_digest"] == expected.plan_digest
    journal = mine.journal()
    try:
        history = {key: points for key, points in journal.history().items() if not key.startswith("wall_")}
    finally:
        journal.close()
    assert history == {key: points for key, points in expected.history().items() if not key.startswith("wall_")}
