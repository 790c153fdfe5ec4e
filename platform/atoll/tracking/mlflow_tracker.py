"""The Tracker that writes to MLflow, through MlflowClient only (the fluent API keeps state per thread and process)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.tracking.bulk import SqliteRows, sqlite_rows
from atoll.tracking.rows import MAX_BATCH_ROWS, MAX_PARAMS, Row, RunInfo, check_run, check_tags, finite_rows
from atoll.tracking.store import absolute_uri, artifact_root, initialise, load_mlflow, quiet
from atoll.tracking.tracker import PARENT_TAG, RUN_KEY_TAG, RunStatus

__all__ = ["MlflowTracker", "client", "store_errors"]


STARTING = "starting the run"
#: MLflow's words for 401 and 403
_REFUSALS = ("CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED")


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn whatever an MLflow call raises into one InfrastructureError line; atoll's own errors pass.

    A refusal at the start is a SpecError: trying again does not help.
    """
    try:
        yield
    except (SpecError, InfrastructureError):
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own kinds
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if doing == STARTING and getattr(error, "error_code", "") in _REFUSALS:
            rule, hint = "a store that this user may write to", "ask who runs the server for the right to edit"
            raise SpecError([Problem("tracking.experiment", "", rule, text[:500], hint)]) from error
        raise InfrastructureError(f"tracking store failed at {doing}: {text[:500]}") from error


def client(uri: str) -> Any:
    """An MlflowClient for `uri`, quiet. Whoever writes has called `initialise` before."""
    mlflow = load_mlflow()
    with quiet(), store_errors("opening"):
        return mlflow.MlflowClient(tracking_uri=absolute_uri(uri), registry_uri=absolute_uri(uri))


class MlflowTracker:
    """A Tracker over MLflow.

    Args:
        uri: a store that `preflight` accepted.
        artifact_location: folder or URI for a new experiment's artifacts. None: beside the SQLite file, absolute
            (MLflow's own choice would be the working directory); with a server, the server decides.

    One object belongs to one thread. Connecting waits for the first `start`.
    """

    def __init__(self, uri: str, artifact_location: str | None = None) -> None:
        self.uri = absolute_uri(uri)
        self._artifact_location = artifact_location
        self._client: Any = None
        self._bulk: SqliteRows | None = None
        self._run_id: str | None = None
        self._experiment_id = ""
        self._params: dict[str, str] = {}

    @property
    def run_id(self) -> str:
        """Id of the started run."""
        if self._run_id is None:
            raise InfrastructureError("tracker used before start()")
        return self._run_id

    @property
    def experiment_id(self) -> str:
        """Id of the started run's experiment; with `run_id` it makes the address of the run's page (`page_url`)."""
        return self._experiment_id if self.run_id else ""

    def start(self, info: RunInfo) -> str:
        """See Tracker. Exactly one launcher may start one run key at a time: MLflow cannot create a run by key."""
        check_run(info)
        if self._client is None:
            if self.uri.startswith("sqlite:"):
                initialise(self.uri)  # preflight leaves a new file to whoever opens it first
            self._client = client(self.uri)
            self._bulk = sqlite_rows(self._client)
        with store_errors(STARTING):
            experiment_id = self._experiment_id = self._experiment(info.experiment)
            found = self._client.search_runs(
                [experiment_id],
                f"tags.`{RUN_KEY_TAG}` = '{info.run_key}'",
                max_results=1,
                order_by=["attributes.start_time ASC"],
            )
            own = {RUN_KEY_TAG: info.run_key}
            if info.parent_run_id is not None:
                own[PARENT_TAG] = info.parent_run_id
            if found:
                run = found[0]
                self._client.update_run(run.info.run_id, status="RUNNING", name=info.run_name)
            else:
                run = self._client.create_run(experiment_id, tags={**info.tags, **own}, run_name=info.run_name)
            self._run_id, self._params = run.info.run_id, dict(run.data.params)
            if found:
                self.tags({**info.tags, **own})
        self.params(info.params)
        return self.run_id

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = self._artifact_location
            if location is None and (root := artifact_root(self.uri)) is not None:
                location = f"{root}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('.') or 'experiment'}"
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except Exception:
                # two launchers at once: the other one made it
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            hint = f"mlflow experiments restore -x {found.experiment_id}, or another name"
            raise SpecError(
                [Problem("tracking.experiment", repr(name), "an experiment that was not deleted", "", hint)]
            )
        return str(found.experiment_id)

    def publish(self, rows: Sequence[Row]) -> int:
        """See Tracker. SQLite takes all rows in one transaction; others 1,000 at a time, 4,000 to 10,000 a second."""
        kept, left_out = finite_rows(rows)
        if kept and self._bulk is not None:
            with store_errors("publishing metrics"):
                self._bulk.write(self.run_id, kept)
        elif kept:
            from mlflow.entities import Metric

            for first in range(0, len(kept), MAX_BATCH_ROWS):
                batch = kept[first : first + MAX_BATCH_ROWS]
                metrics = [Metric(row.key, row.value, row.timestamp_ms, row.step) for row in batch]
                with store_errors("publishing metrics"):
                    self._client_of_run().log_batch(self.run_id, metrics=metrics)
        return left_out

    def artifact(self, local_path: Path, artifact_path: str | None = None) -> None:
        """See Tracker."""
        with store_errors(f"storing {local_path}"):
            log = (
                self._client_of_run().log_artifacts if Path(local_path).is_dir() else self._client_of_run().log_artifact
            )
            log(self.run_id, str(local_path), artifact_path)

    def params(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        check_run(RunInfo("e", "n", "k", params=values))
        new = {name: value for name, value in values.items() if name not in self._params}
        changed = {
            f"fl.changed.{name}": value for name, value in values.items() if self._params.get(name, value) != value
        }
        if new:
            from mlflow.entities import Param

            with store_errors("writing parameters"):
                items = [Param(name, value) for name, value in new.items()]
                self._client_of_run().log_batch(self.run_id, params=items[:MAX_PARAMS])
            self._params.update(new)
        self.tags(changed)

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        check_tags(values)
        if values:
            from mlflow.entities import RunTag

            with store_errors("writing tags"):
                self._client_of_run().log_batch(self.run_id, tags=[RunTag(*item) for item in values.items()])

    def finish(self, status: RunStatus) -> None:
        """See Tracker."""
        with store_errors("closing the run"):
            self._client_of_run().set_terminated(self.run_id, status)

    def _client_of_run(self) -> Any:
        return self._client if self.run_id else None
