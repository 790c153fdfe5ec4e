"""jobs/ensemble.py as a process of its own: one JSON object at the end, exit codes as the command line's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tiny_kit import tiny

JOB = Path(__file__).parents[3] / "jobs" / "ensemble.py"


def job(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATOLL_RUN_KEY": "job"}
    command = [sys.executable, str(JOB), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def place(_mlflow_template: Path, tmp_path: Path) -> Path:
    shutil.copy(_mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


def test_it_runs_and_goes_on_and_says_what_is_wrong(place: Path) -> None:
    controls = {"equal_updates": None, "random": None, "large": None}
    spec = tiny(
        clusters={"kind": "random", "count": 2},
        evaluation={"every_steps": 3, "metrics": ["loss", "auc"], "server_share": 0.4},
        ensemble={"controls": controls, "resamples": 20},
    )
    (place / "spec.yaml").write_text(yaml.safe_dump(spec))
    first = job(place, "spec.yaml")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout.splitlines()[-1])
    assert set(found["runs"]) == {"single-s3", "r0-s3", "r1-s3"}
    again = job(place, "spec.yaml")
    assert json.loads(again.stdout.splitlines()[-1])["arms"] == found["arms"]
    refused = job(place, "spec.yaml", "clusters.count=50")
    assert refused.returncode == 2
    assert "clusters" in refused.stderr
    assert job(place).returncode == 2
