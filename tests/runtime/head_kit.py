"""A Ray cluster of one node that tests start as people do, `ray start --head`, with a token and ports of its own."""

from __future__ import annotations

import contextlib
import fcntl
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
from dataclasses import dataclass
from pathlib import Path

from ray_kit import own_processes

__all__ = ["Head", "head"]

_LOCK = Path(tempfile.gettempdir()) / "atoll-tests-ray.lock"


@dataclass(frozen=True)
class Head:
    """Where it is.

    Attributes:
        server: address of its job server.
        gcs: address for drivers.
        environment: for processes that may connect.
        folder: Ray's own.
    """

    server: str
    gcs: str
    environment: dict[str, str]
    folder: Path

    def atoll(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        """A command of ours, typed on this machine."""
        return subprocess.Popen(
            [sys.executable, "-m", "atoll", *arguments], cwd=cwd, env={**self.environment, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@contextlib.contextmanager
def head(num_cpus: int) -> Iterator[Head]:
    """Started, answering, and ended after the block; waits for other tests' Ray on this machine."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = tempfile.mkdtemp(prefix="rj")  # short: unix socket paths are capped at 107 bytes
        here = Path(sys.executable).parent
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1", "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": f"{folder}/none",
        }  # fmt: skip
        gcs, dashboard = _port(), _port()
        command = [
            str(here / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_port()}",
            f"--ray-client-server-port={_port()}", f"--num-cpus={num_cpus}", "--object-store-memory=200000000",
            f"--temp-dir={folder}", "--disable-usage-stats",
        ]  # fmt: skip
        with Path(folder, "head.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        found = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", environment, Path(folder))
        try:
            _wait_for(process, found)
            yield found
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ray gives actors that outlive their drivers half a minute to end: nobody waits for them here."""
    family = own_processes("", process.pid)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], found: Head) -> None:
    """Until the job server has an agent to pass jobs to, which comes up after the web page."""
    request = urllib.request.Request(
        f"{found.server}/api/jobs/", headers={"Authorization": f"Bearer {found.environment['RAY_AUTH_TOKEN']}"}
    )
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert process.poll() is None, "the head ended"
        try:
            urllib.request.urlopen(request, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        else:
            return
        time.sleep(0.2)
    raise AssertionError("the head did not come up")
