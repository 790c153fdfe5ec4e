"""`atoll sweep`: the table, the best and its file, what goes on, what is refused; and the job that does the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.experiment.working import Progress
from terminal_kit import Terminal, last_object

pytestmark = pytest.mark.usefixtures("_no_plots")
JOB = Path(__file__).parents[3] / "jobs" / "sweep.py"


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.tracking.render.comparison_pictures", lambda *args, **options: {})


@pytest.fixture(autouse=True)
def _store(_mlflow_template: Path, tmp_path: Path) -> None:
    shutil.copy(_mlflow_template, tmp_path / "mlflow.db")


def test_the_best_of_a_grid_and_its_spec(atoll: Terminal) -> None:
    config = atoll.write()
    code, out, err = atoll("sweep", config, "client.lr=0.1,1.0", "schedule.concurrency=6,8", "--key", "s", "--json")
    assert code == 0, err
    found = last_object(out)
    assert len(found["trials"]) == 4
    best = found["best"]
    assert best["score"] == max(one["score"] for one in found["trials"])
    assert f"Best: trial {best['number']}, client.lr=" in out
    assert "trials 0, 1 of 4, to step 7" in out
    assert "atoll run runs/s/best.yaml" in out
    assert "schedule.concurrency changes who finishes when" in out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert lines[0].rstrip().endswith("best │")
    code, out, err = atoll("run", "runs/s/best.yaml", "--json")
    assert code == 0, err
    assert last_object(out)["metrics"]["eval/auc"] == best["score"]


def test_the_same_command_again_and_resume(atoll: Terminal) -> None:
    config = atoll.write()
    command = ("sweep", config, "client.lr=0.01..1:log", "--trials", "3", "--rungs", "3", "--keep", "2", "--json")
    code, out, err = atoll(*command)
    assert code == 0, err
    first = last_object(out)
    assert [one["state"] for one in first["trials"]].count("stopped") == 2
    assert "one in 2 went on" in out
    assert "share one timeline" in out
    code, out, _ = atoll(*command, "--at-once", "3")
    assert (code, last_object(out)) == (0, first)
    code, out, _ = atoll("resume", first["folder"], "--json")
    assert (code, last_object(out)) == (0, first)
    code, out, _ = atoll("runs")
    assert code == 0
    (row,) = [line for line in out.splitlines() if "sweep-" in line]
    assert row.split()[1:3] == ["sweep", "finished"]
    assert "3 of 3 runs" in row
    assert "t000-s3" not in out
    code, _, err = atoll("resume", first["folder"], "stop.server_steps=90")
    assert code == 2
    assert "no change to several runs at once" in err


def test_stopped_on_the_way(atoll: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.cli import show

    def strike(self: show.Display, label: str, runs: object) -> Progress:
        return lambda figures: os.kill(os.getpid(), signal.SIGINT)

    config = atoll.write(stop={"server_steps": 60})
    with monkeypatch.context() as patch:
        patch.setattr(show.Display, "begin_next_group", strike)
        code, _, err = atoll("sweep", config, "client.lr=0.1,0.2,0.3", "--key", "s")
    assert code == 130
    assert "atoll resume runs/s" in err
    code, out, err = atoll("resume", "s", "--json")
    assert code == 0, err
    assert [one["state"] for one in last_object(out)["trials"]] == ["finished"] * 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "sweep: got no key with several values"),
        (("client.lr=0.1,0.2", "--rungs", "a,b"), "rungs: got 'a,b'"),
        (("client.lr=0.1,0.2", "--at-once", "0"), "at_once: got 0"),
        (("client.lr=0.1,0.2", "--key", "../x"), "key: got '../x'"),
        (("client.lr=0.1,-0.2",), "client.lr: got -0.2"),
        (("client.lr=2..1", "client.epochs=0,1", "--trials", "3"), "client.lr: got 2..1"),
    ],
)
def test_what_is_refused(atoll: Terminal, arguments: tuple[str, ...], told: str) -> None:
    code, _, err = atoll("sweep", atoll.write(), *arguments)
    assert code == 2
    assert told in err
    assert not (atoll.folder / "runs").exists()


def test_heads_are_as_long_as_it_takes() -> None:
    from atoll.experiment.sweep_report import short_names

    keys = ["client.lr", "aggregation.server_optimizer.lr", "schedule.buffer_goal", "seed", "a.seed"]
    assert short_names(keys) == ["client.lr", "server_optimizer.lr", "buffer_goal", "seed", "a.seed"]


@pytest.mark.slow
def test_the_job(atoll: Terminal) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATOLL_RUN_KEY": "job"}
    command = [sys.executable, str(JOB), atoll.write(), "client.lr=0.1,1.0"]
    for _ in range(2):
        done = subprocess.run(command, cwd=atoll.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert Path(found["folder"]).name == "job"
        assert len(found["trials"]) == 2
