"""The tracking service goes away and comes back: training does not wait, and no row is lost or there twice."""

from __future__ import annotations

import socketserver
import threading
import wsgiref.simple_server
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_kit import STEPS, Orders, facts, on_ray, one_ray_at_a_time, spec_of

from atoll.experiment import Run, resume, run
from atoll.runtime.session import RaySession
from atoll.runtime.store import SqliteJournal
from atoll.tracking.mlflow_tracker import client as mlflow_client
from atoll.tracking.store import quiet

#: MLflow's server imports this late, in a handler
pytestmark = pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")


class Service:
    """MLflow's own REST server in a thread, behind a switch: it answers, refuses everything, or says nothing."""

    def __init__(self, application: Callable) -> None:
        self._application = application
        self._speaks = threading.Event()
        self._speaks.set()
        self.is_up, self.refused = True, 0
        self._server = wsgiref.simple_server.make_server("127.0.0.1", 0, self, _Threads, _Quiet)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environment: dict, start_response: Callable):
        if not self.is_up:
            self.refused += 1
            self._speaks.wait(60)
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"maintenance"]
        return self._application(environment, start_response)

    def refuse(self) -> None:
        self.is_up = False

    def fall_silent(self) -> None:
        self._speaks.clear()
        self.is_up = False

    def recover(self) -> None:
        self.is_up = True
        self._speaks.set()

    def close(self) -> None:
        self.recover()
        self._server.shutdown()
        self._server.server_close()


class _Threads(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def _service(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    place = tmp_path_factory.mktemp("service")
    (place / "mlflow.db").write_bytes(_mlflow_template.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{place}/mlflow.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(place / "artifacts"))
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # of the clients
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with quiet():
            from mlflow.server import app
        found = Service(app.wsgi_app)
        yield found
        found.close()


@pytest.fixture
def service(_service: Service) -> Iterator[Service]:
    _service.refused = 0
    yield _service
    _service.recover()


@pytest.fixture(scope="module")
def expected(uri: str, folder: Path) -> dict:
    return facts(run(spec_of(uri), runs_folder=folder), uri)


def check_rows(one: Run, uri: str) -> None:
    """Every row of the journal is there once, with its value and its time; and nothing else."""
    with SqliteJournal(Path(one.folder) / "journal.db", is_readonly=True) as journal:
        written = journal.rows()
    store = mlflow_client(uri)
    found = [
        (key, row.step, row.value, row.timestamp)
        for key in store.get_run(one.run_id).data.metrics
        for row in store.get_metric_history(one.run_id, key)
    ]
    assert sorted(found) == sorted(written)
    assert max(Counter(row[:2] for row in found).values()) == 1


class Outage:
    """Begins and ends as the run gets on; without an end, it outlasts the run."""

    def __init__(self, begin: Callable[[], None], service: Service, until: float = float("inf")) -> None:
        self._begin, self._service, self._until = begin, service, until
        self.state, self.last_step_without = "before", 0.0

    def __call__(self, figures: dict[str, float]) -> None:
        step = figures.get("step", 0)
        if self.state == "before" and step >= 20:
            self._begin()
            self.state = "out"
        elif self.state == "out":
            self.last_step_without = step
            if step >= self._until:
                self._service.recover()
                self.state = "over"


def publish_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go every moment, so that a run of two seconds meets the outage; and its end waits for less."""
    monkeypatch.setattr("atoll.runtime.publishing._EVERY_S", 0.05)
    monkeypatch.setattr("atoll.runtime.publishing._BACK_OFF_S", (0.05,))
    monkeypatch.setattr("atoll.runtime.inline._DRAIN_S", 1.0)


@pytest.mark.parametrize("kind", ["refuse", "fall_silent"])
def test_a_service_that_stays_away(
    service: Service, folder: Path, expected: dict, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_often(monkeypatch)
    outage = Outage(getattr(service, kind), service)
    found = run(spec_of(service.uri), on_progress=outage, runs_folder=folder)
    assert outage.last_step_without == STEPS, "training ended while the service was away"
    assert service.refused
    assert found.unpublished_rows > 0
    assert found.model_digest == expected["fixed"][0]
    service.recover()
    monkeypatch.setattr("atoll.runtime.inline._DRAIN_S", 60.0)
    whole = resume(found.folder)
    assert whole.unpublished_rows == 0
    assert found.run_id in ("", whole.run_id), "it may have gone before it ever had the run"
    assert facts(whole, service.uri) == expected
    check_rows(whole, service.uri)
    assert mlflow_client(service.uri).get_run(whole.run_id).info.status == "FINISHED"


def test_a_service_that_is_away_for_a_while(
    service: Service, folder: Path, orders: Orders, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_often(monkeypatch)
    monkeypatch.setattr("atoll.runtime.publishing._LAST_TRIES", 1000)
    monkeypatch.setattr("atoll.runtime.inline._DRAIN_S", 60.0)
    orders.give("slow", "0.02")  # so that the outage lasts for some tries
    outage = Outage(service.refuse, service, until=90)
    found = run(spec_of(service.uri), on_progress=outage, runs_folder=folder)
    assert outage.state == "over"
    assert service.refused
    assert facts(found, service.uri) == expected
    check_rows(found, service.uri)


@pytest.mark.ray
def test_on_ray_too(service: Service, folder: Path, orders: Orders, expected: dict) -> None:
    """The tracker's process tries, and backs off; the run's end waits for half a minute, then leaves rows behind."""
    orders.give("slow", "0.02")
    outage = Outage(service.refuse, service)
    with one_ray_at_a_time(), RaySession(1) as session:
        found = run(spec_of(service.uri, runtime=on_ray(1)), session=session, on_progress=outage, runs_folder=folder)
    assert outage.last_step_without == STEPS, "training ended while the service was away"
    assert service.refused
    assert found.unpublished_rows > 0
    service.recover()
    whole = resume(found.folder)  # nothing to train: it needs no Ray
    assert facts(whole, service.uri) == expected
    check_rows(whole, service.uri)
