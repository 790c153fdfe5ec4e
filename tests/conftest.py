"""Fixtures for every tier."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def _mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty MLflow database: migrating takes seconds, copying does not."""
    from atoll.tracking import initialise

    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    initialise(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_uri(_mlflow_template: Path, tmp_path: Path) -> str:
    """The address of a fresh MLflow database of this test's own."""
    shutil.copy(_mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second of each run, and have tests of their own."""
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
