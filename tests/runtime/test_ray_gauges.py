"""On a Ray cluster the page that Prometheus reads shows every figure of a run, by the run's name and nothing else."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from head_kit import Head, head

from atoll.runtime.gauges import prometheus_names
from tiny_kit import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def shown(there: Head) -> dict[str, dict[str, str]]:
    """Metrics of atoll: name → labels of its last series, from where Ray tells Prometheus to look."""
    found = {}
    try:
        discovered = json.loads((there.folder / "prom_metrics_service_discovery.json").read_text())
        for target in [target for group in discovered for target in group["targets"]]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                for line in answer.read().decode().splitlines():
                    if match := re.match(r"(ray_atoll_\w+)\{(.*)\} ", line):
                        found[match[1]] = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
    except (OSError, ValueError):
        return {}  # nothing yet, or half of it
    return found


def test_prometheus_reads_every_figure(mlflow_uri: str, tmp_path: Path) -> None:
    runtime, tracking = {"kind": "ray", "workers": 1, "lanes": 4}, {"uri": mlflow_uri, "experiment": "gauges"}
    spec = tiny(stop={"server_steps": 100_000}, runtime=runtime, tracking=tracking)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    with head(2) as there:
        run = there.atoll("run", "spec.yaml", "--key", "watched", cwd=tmp_path, RAY_ADDRESS=there.gcs)
        until = time.monotonic() + 120
        try:
            while not prometheus_names() <= (found := shown(there)).keys():
                assert run.poll() is None, run.communicate()
                assert time.monotonic() < until, f"only {sorted(found)}"
                time.sleep(0.5)
        finally:
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert found.keys() == prometheus_names()
    for labels in found.values():
        assert labels["run"].startswith("watched")
        assert not {name for name in labels if "client" in name}
