"""On a Ray cluster the page that Prometheus reads shows every figure of a run, by the run's name and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray_kit import one_ray_at_a_time

from atoll.runtime.gauges import prometheus_names
from tiny_kit import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Head:
    address: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture
def head() -> Iterator[Head]:
    with one_ray_at_a_time():
        folder = tempfile.mkdtemp(prefix="rg")  # short: unix socket paths are capped at 107 bytes
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "500", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        own, metrics = port(), port()
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={own}", "--num-cpus=2",
            "--include-dashboard=false", f"--metrics-export-port={metrics}", "--object-store-memory=100000000",
            f"--dashboard-agent-listen-port={port()}", f"--ray-client-server-port={port()}", f"--temp-dir={folder}",
            "--node-ip-address=127.0.0.1", "--disable-usage-stats",
        ]  # fmt: skip
        with Path(folder, "head.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield Head(f"127.0.0.1:{own}", f"http://127.0.0.1:{metrics}/metrics", environment)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


def shown(head: Head) -> dict[str, dict[str, str]]:
    """Metrics of atoll: name → labels of its last series."""
    found = {}
    with contextlib.suppress(OSError), urllib.request.urlopen(head.metrics, timeout=2) as answer:
        for line in answer.read().decode().splitlines():
            if match := re.match(r"(ray_atoll_\w+)\{(.*)\} ", line):
                found[match[1]] = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
    return found


def test_prometheus_reads_every_figure(head: Head, mlflow_uri: str, tmp_path: Path) -> None:
    runtime, tracking = {"kind": "ray", "workers": 1, "lanes": 4}, {"uri": mlflow_uri, "experiment": "gauges"}
    spec = tiny(stop={"server_steps": 20_000}, runtime=runtime, tracking=tracking)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    until = time.monotonic() + 120
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "atoll", "run", "spec.yaml", "--key", "watched"],
            env={**head.environment, "RAY_ADDRESS": head.address}, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while not prometheus_names() <= shown(head).keys():
            assert run.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < until, f"only {sorted(shown(head))}"
            time.sleep(0.5)
        found = shown(head)
    finally:
        run.send_signal(signal.SIGINT)
        code = run.wait(60)
    assert code == 130, "a run that is watched stops as any other"
    assert found.keys() == prometheus_names()
    for labels in found.values():
        assert labels["run"].startswith("watched")
        assert not {name for name in labels if "client" in name}
