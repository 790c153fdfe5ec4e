"""Fixtures of the tests that start processes: one MLflow database, one folder and one set of orders per module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_kit import ORDERS, Orders


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second of each run and have tests of their own."""
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def _orders_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Named in the environment before any Ray starts, so that its workers know it."""
    path = tmp_path_factory.mktemp("orders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ORDERS, str(path))
        yield path


@pytest.fixture
def orders(_orders_folder: Path) -> Iterator[Orders]:
    found = Orders(_orders_folder)
    yield found
    found.withdraw()
