"""Experiments as jobs on a real head: followed, stopped, killed, resumed, two at once; in the bits of a calm run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from head_kit import Head, head
from ray_kit import eventually

from atoll.errors import InfrastructureError
from atoll.experiment import Run, run
from atoll.experiment.storing import RunStore
from atoll.runtime.store import Journal, SqliteJournal
from tiny_kit import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOBS = Path(__file__).parents[2] / "jobs"
STEPS = 200
#: a module that only this folder has; as slow as a file says
MODULE = """\
import time
from pathlib import Path

import torch


class Slow(torch.nn.Module):
    def __init__(self, orders):
        super().__init__()
        self.layer, self.orders = torch.nn.Linear(4, 1), Path(orders)

    def forward(self, x):
        if torch.is_grad_enabled() and self.orders.exists():
            time.sleep(float(self.orders.read_text()))
        return self.layer(x)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(num_cpus=4) as found:
        yield found


class Desk:
    """A folder in which commands are typed, with a spec in it whose run is as slow as one wants."""

    def __init__(self, cluster: Head, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.folder, self.uri, self.orders = cluster, folder, uri, folder / "orders"
        (folder / "slow_model.py").write_text(MODULE)
        monkeypatch.syspath_prepend(str(folder))

    def spec(self, name: str = "spec.yaml", **sections: Any) -> dict[str, Any]:
        found = tiny(
            **{
                "model": {"kind": "custom", "factory": "slow_model:Slow", "arguments": {"orders": str(self.orders)}},
                "stop": {"server_steps": STEPS},
                "tracking": {"uri": self.uri, "experiment": "jobs"},
                "runtime": {"kind": "ray", "workers": 2, "lanes": 4, "snapshot_every_s": 0.2},
                **sections,
            }
        )
        (self.folder / name).write_text(yaml.safe_dump(found))
        return found

    def calm(self, spec: dict[str, Any]) -> Run:
        inline = {**spec, "runtime": {**spec["runtime"], "kind": "inline"}}
        del inline["runtime"]["workers"]
        return run(inline, runs_folder=self.folder / "calm")

    def slow(self, seconds: float) -> None:
        self.orders.write_text(str(seconds))

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        address = ("--address", self.cluster.server)
        return self.cluster.atoll(*arguments, *address, cwd=self.folder, **environment)

    def type(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        out, err = ended(self.begin(*arguments, **environment), code)
        return out, err

    def jobs(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self.type("jobs", "--json")[0].splitlines()[-1])["jobs"]
        return {row["job_id"]: row for row in rows}

    def version(self, key: str) -> int:
        """The newest that a snapshot of a run below this folder holds."""
        try:
            with SqliteJournal(self.folder / "runs" / key / "journal.db", is_readonly=True) as journal:
                return newest(journal)
        except (InfrastructureError, sqlite3.Error):
            return 0  # not there yet, or only half


class Stored:
    """A run in a store that is shared."""

    def __init__(self, desk: Desk, key: str) -> None:
        self._store = RunStore(desk.folder / "look", str(desk.folder / "store" / key))
        self._store.folder.mkdir()

    def version(self) -> int:
        if not self._store.is_begun():
            return 0
        with closing(self._store.journal()) as journal:
            return newest(journal)

    def history(self) -> dict[str, Any]:
        with closing(self._store.journal()) as journal:
            return journal.history()


def newest(journal: Journal) -> int:
    return max((record.version for record in journal.snapshots()), default=0)


def ended(command: subprocess.Popen[str], code: int = 0, seconds: float = 150) -> tuple[str, str]:
    try:
        out, err = command.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        command.kill()
        raise AssertionError(command.communicate()) from None
    assert command.returncode == code, (out[-3000:], err[-3000:])
    return out, err


def result(out: str) -> dict[str, Any]:
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture
def desk(cluster: Head, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(cluster, tmp_path, mlflow_uri, monkeypatch)


def driver_of(words: str) -> int | None:
    """Process id of the driver whose command line holds these words; not of a shell round it."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"python" in arguments[0]
            and any(words.encode() in one for one in arguments[1:])
            and b"submit" not in arguments
        ):
            return int(path.name)
    return None


def killed(words: str) -> None:
    os.kill(eventually(lambda: driver_of(words)), signal.SIGKILL)


def rows(points: dict[str, Any]) -> dict[str, Any]:
    return {key: values for key, values in points.items() if not key.startswith("wall_")}


def test_lost_twice_and_each_next_attempt_goes_on(desk: Desk) -> None:
    """The first attempt by Ray's own command; the second by ours, which begins the third by itself."""
    store = desk.folder / "store"
    spec = desk.spec(runtime={"kind": "ray", "workers": 1, "lanes": 4, "snapshot_every_s": 0.2, "store": str(store)})
    expected, mine = desk.calm(spec), Stored(desk, "nightly")
    desk.slow(0.02)
    ray = [
        str(Path(desk.cluster.environment["PATH"].split(os.pathsep)[0]) / "ray"), "job", "submit", "--no-wait",
        "--address", desk.cluster.server, "--submission-id", "nightly-a1", "--working-dir", str(desk.folder), "--",
        "python", str(JOBS / "train.py"), "spec.yaml",
    ]  # fmt: skip
    subprocess.run(ray, env=desk.cluster.environment, check=True, capture_output=True, timeout=60)
    eventually(lambda: mine.version() >= 20, 120, every_s=0.5)
    killed("jobs/train.py")
    eventually(lambda: desk.jobs()["nightly-a1"]["status"] == "FAILED", 30, every_s=1)
    reached = mine.version()
    assert 20 <= reached < STEPS - 20, "it was to be killed on the way"

    command = desk.begin("submit", "spec.yaml", "--key", "nightly", "--retries", "1", "--num-cpus", "0.5", "--json")
    eventually(lambda: mine.version() > reached, 120, every_s=0.5)
    killed("nightly")
    assert mine.version() < STEPS - 20, "it was to be killed on the way"
    desk.slow(0)
    out, err = ended(command)
    found = result(out)
    assert (found["job_id"], found["exit_code"]) == ("nightly-a3", 0)
    assert "nightly-a2 was lost" in err
    assert found["result"]["model_digest"] == expected.model_digest
    assert found["result"]["plan_digest"] == expected.plan_digest
    assert rows(mine.history()) == rows(expected.history())


def test_two_at_once_one_stopped_and_resumed(desk: Desk) -> None:
    """Four CPUs for two drivers and up to two workers each: neither waits for the other's end."""
    runtime = {"kind": "ray", "workers": {"min": 1, "max": 2}, "lanes": 4, "snapshot_every_s": 0.2}
    specs = {key: desk.spec(f"{key}.yaml", seed=seed, runtime=runtime) for key, seed in (("one", 3), ("two", 4))}
    expected = {key: desk.calm(spec).model_digest for key, spec in specs.items()}
    desk.slow(0.1)
    for key in specs:
        sent = result(desk.type("submit", f"{key}.yaml", "--key", key, "--no-follow", "--num-cpus", "0.5", "--json")[0])
        assert (sent["job_id"], sent["is_new"]) == (f"{key}-a1", True)
    _, err = desk.type("submit", "one.yaml", "--key", "one", "--no-follow")
    assert "one-a1 is there already" in err

    eventually(lambda: min(desk.version(key) for key in specs) >= 10, 120, every_s=0.3)
    before = {key: desk.version(key) for key in specs}
    eventually(lambda: all(desk.version(key) >= before[key] + 10 for key in specs), 120, every_s=0.3)
    told = desk.jobs()
    assert {told[f"{key}-a1"]["status"] for key in specs} == {"RUNNING"}
    print("versions while both ran:", before, {key: desk.version(key) for key in specs})

    began = time.monotonic()
    out, _ = desk.type("stop", "one")
    assert time.monotonic() - began < 30
    assert "one-a1 is STOPPED: stopped at server step" in out
    stopped_at = int(out.split("server step")[1].split()[0])
    assert before["one"] <= stopped_at < STEPS, "at a step boundary, not killed"

    desk.slow(0)
    found = result(desk.type("submit", "one.yaml", "--key", "one", "--num-cpus", "0.5", "--json")[0])
    assert (found["job_id"], found["result"]["model_digest"]) == ("one-a2", expected["one"])
    out, err = desk.type("logs", "two", "--follow")
    assert result(out)["model_digest"] == expected["two"]
    assert "two-a1 SUCCEEDED" in err


def test_what_only_the_cluster_can_refuse(desk: Desk) -> None:
    data = {"kind": "parquet", "path": str(desk.folder / "no.parquet"), "client_column": "c", "label_column": "l",
            "task": "binary"}  # fmt: skip
    desk.spec(data=data, population={"size": "data", "devices": {"kind": "constant", "value_s": 1.0}},
              model={"kind": "logistic"}, runtime={"kind": "inline"})  # fmt: skip
    out, err = desk.type("submit", "spec.yaml", "--num-cpus", "0.5", code=2)
    assert "no.parquet" in out
    assert "FAILED" in err


def test_nobody_is_let_in_without_the_token_or_waits_for_ever(desk: Desk) -> None:
    desk.spec(model={"kind": "logistic"}, runtime={"kind": "ray", "workers": 1, "lanes": 4})
    here, gcs, none = (
        ("submit", "spec.yaml", "--address", desk.cluster.server),
        desk.cluster.gcs,
        {"RAY_AUTH_TOKEN": ""},
    )
    typed: list[tuple[tuple[str, ...], dict[str, str], str]] = [
        (here, {"RAY_AUTH_TOKEN": "wrong" * 8}, "the right token"),
        (here, none, "its token"),
        (("run", "spec.yaml"), {"RAY_ADDRESS": gcs, "RAY_AUTH_TOKEN": "wrong" * 8}, "its token"),
        (("run", "spec.yaml"), {"RAY_ADDRESS": gcs, "RAY_AUTH_MODE": "disabled", **none}, "its token"),
        (("run", "spec.yaml"), {"RAY_ADDRESS": desk.cluster.server.removeprefix("http://")}, "the job server"),
        (("jobs", "--address", f"http://{gcs}"), {}, "RAY_ADDRESS"),
    ]
    for arguments, variables, says in typed:
        began = time.monotonic()
        _, err = ended(desk.cluster.atoll(*arguments, cwd=desk.folder, **variables), 2)
        assert says in err
        assert time.monotonic() - began < 20, arguments

    command = desk.begin("submit", "spec.yaml", "--key", "large", "--num-cpus", "64")
    assert command.stderr is not None
    told = [command.stderr.readline() for _ in range(2)]
    assert "no node that fits: it asks for CPU: 64" in told[-1]
    command.send_signal(signal.SIGINT)
    assert "large-a1 goes on" in ended(command, 130)[1]
    assert desk.jobs()["large-a1"]["status"] == "PENDING"
