"""`atoll runs`, `replay` and `tune`: what people read, what scripts read, and where a debugger lands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from atoll.cli import upkeep
from atoll.experiment.places import only_one
from atoll.runtime.store import Commit, SqliteJournal, StepRecord
from terminal_kit import Terminal, last_object
from tiny_kit import tiny

SENSOR = """\
import torch


class Sensor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        if torch.is_grad_enabled() and torch._C._functorch.get_unwrapped(x).abs().max() > 3.5:
            raise ZeroDivisionError("no such sensor")
        return self.layer(x)
"""


pytestmark = pytest.mark.usefixtures("_no_plots")


def stopped(folder: Path, steps: int = 3) -> Path:
    """A run that was stopped, as its journal tells it."""
    folder.mkdir(parents=True)
    meta = {"birth": "{}", "spec": json.dumps({"stop": {"server_steps": 1200}}), "run_id": "0123456789abcdef"}
    with SqliteJournal(folder / "journal.db") as journal:
        journal.claim()
        done = tuple(StepRecord(step, step, "0") for step in range(steps))
        journal.commit(Commit(steps=done, meta=meta, rows=(("loss", 1, 0.5, 1), ("loss", 2, 0.5, 1))))
    return folder


def line(out: str, name: str) -> str:
    return next(text for text in out.splitlines() if text.split(" ", 1)[0] == name)


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_no_runs_yet(atoll: Terminal) -> None:
    code, out, err = atoll("runs", "--json")
    assert (code, err) == (0, "")
    assert "atoll run configs/quickstart.yaml" in out
    assert last_object(out) == {"runs": []}
    assert not Path("runs").exists()


def test_the_table(atoll: Terminal) -> None:
    stopped(Path("runs/a-run-with-a-very-long-name-that-must-not-be-cut-20261125-194004-cbba"))
    stopped(Path("runs/working"))
    stopped(Path("runs/compared/one-s1"))
    Path("runs/compared/comparison.json").write_text('{"name": "compared", "parent_run_id": "fedc"}')
    Path("runs/bad[bold]").mkdir()
    Path("runs/bad[bold]/journal.db").write_bytes(b"x" * 500)
    with only_one(Path("runs/working")):
        code, out, err = atoll("runs")
    assert (code, err) == (0, "")
    name = "a-run-with-a-very-long-name-that-must-not-be-cut-20261125-194004-cbba"
    row = line(out, name)
    assert row.endswith(f"atoll resume {name}")
    for cell in ("run", "interrupted", "3 of 1,200", "01234567", "2 rows", "kB"):
        assert f" {cell} " in row
    assert "running" in line(out, "working")
    assert "resume" not in line(out, "working")
    assert "comparison" in line(out, "compared")
    assert line(out, "compared").endswith("atoll resume compared")
    assert out.splitlines()[out.splitlines().index(line(out, "compared")) + 1].startswith("  one-s1 ")
    assert "bad[bold]: journal runs/bad[bold]/journal.db: opening failed" in out
    assert not [text for text in out.splitlines() if text.startswith("{")]


def test_the_last_twenty(atoll: Terminal) -> None:
    for number in range(23):
        Path(f"runs/run-{number:02d}").mkdir(parents=True)
    code, out, _ = atoll("runs", "--json")
    assert code == 0
    assert sum(text.startswith("run-") for text in out.splitlines()) == 20
    assert "3 older ones: atoll runs --all" in out
    assert len(last_object(out)["runs"]) == 23
    code, out, _ = atoll("runs", "--all")
    assert sum(text.startswith("run-") for text in out.splitlines()) == 23
    assert "--all" not in out


def test_pruning_says_what_it_costs(atoll: Terminal, mlflow_uri: str) -> None:
    config = atoll.write(tracking={"uri": mlflow_uri})
    assert atoll("run", config, "--key", "done")[0] == 0
    stopped(Path("runs/working"))
    Path("runs/done/timeline-1.parquet.tmp").write_bytes(b"x" * 5000)
    with only_one(Path("runs/working")):
        code, out, err = atoll("runs", "--prune", "--json")
    assert (code, err) == (0, "")
    told = last_object(out)
    assert told["pruned"]["shortened"] == ["done"]
    assert told["pruned"]["skipped"] == ["working"]
    assert told["pruned"]["files"] == 2
    assert told["pruned"]["freed_bytes"] > 5000
    assert "kB in 2 files." in out
    assert "made longer, they compute their steps again from the first on: done" in out
    assert "Left alone, since another process works on them or their journal cannot be trusted: working" in out
    assert {one["name"]: one["snapshot_version"] for one in told["runs"]} == {"done": None, "working": None}
    code, out, err = atoll("resume", "done", "stop.server_steps=9", "--json")
    assert (code, err) == (0, "")
    longer = last_object(out)
    code, out, _ = atoll("run", config, "stop.server_steps=9", "--json")
    assert last_object(out)["model_digest"] == longer["model_digest"]


def test_runs_starts_without_torch_ray_and_mlflow(tmp_path: Path) -> None:
    stopped(tmp_path / "runs" / "one")
    code = (
        "import sys\nfrom atoll.cli import main\nsys.argv = ['atoll', 'runs']\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)), end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


# ---- replay ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def raising(atoll: Terminal, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A run `sensors` that failed in one client; the task."""
    (atoll.folder / "sensor_model.py").write_text(SENSOR)
    monkeypatch.syspath_prepend(str(atoll.folder))
    model = {"kind": "custom", "factory": "sensor_model:Sensor"}
    config = atoll.write(tracking={"uri": mlflow_uri}, model=model, stop={"server_steps": 60})
    code, _, err = atoll("run", config, "--key", "sensors")
    assert code == 3
    command = next(text for text in err.splitlines() if "atoll replay" in text)
    assert "replay runs/sensors " in command
    return int(command.rpartition(" ")[2])


def test_replay_of_a_client_that_raises(atoll: Terminal, raising: int) -> None:
    code, out, err = atoll("replay", "runs/sensors", str(raising), "--json")
    assert code == 3
    assert out == ""
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("ZeroDivisionError: no such sensor\n")
    assert 'sensor_model.py", line 11, in forward' in err
    assert "bug in atoll" not in err
    assert "another exception" not in err


def test_a_debugger_lands_in_the_clients_code(atoll: Terminal, raising: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not upkeep._is_debugged()
    landed = []

    def post_mortem(trace) -> None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        landed.append(trace.tb_frame)

    monkeypatch.setattr("pdb.post_mortem", post_mortem)
    monkeypatch.setattr(upkeep, "_is_debugged", lambda: True)
    assert atoll("replay", "sensors", str(raising))[0] == 3
    assert landed[0].f_code.co_name == "forward"
    assert type(landed[0].f_locals["self"]).__name__ == "Sensor"


def test_pdb_is_noticed() -> None:
    import bdb

    found: list[bool] = []
    bdb.Bdb().runcall(lambda: found.append(upkeep._is_debugged()))
    assert found == [True]


def test_replay_of_a_client_that_does_not_raise(atoll: Terminal, raising: int) -> None:
    code, out, err = atoll("replay", "sensors", "4294967296", "--json")
    assert code == 0, err
    told = last_object(out)
    assert told["task_id"] == 4294967296
    assert told["start_version"] == 0
    assert not told["is_diverged"]
    for label in ("client", "start version", "server step", "staleness", "examples", "seed", "loss", "delta norm",
                  "diverged", "seconds, alone", "as planned"):  # fmt: skip
        assert label in out
    assert "is in no snapshot: computing" not in out


def test_what_replay_refuses(atoll: Terminal, raising: int) -> None:
    for arguments, says in (
        (("nowhere", "0"), "run: got 'nowhere'; need a run under runs/"),
        (("sensors", "99"), "task: got 99; need a task of its 60 server steps"),
    ):
        code, out, err = atoll("replay", *arguments)
        assert (code, out) == (2, "")
        assert says in err
    code, _, err = atoll("replay", "sensors", "seven")
    assert code == 2
    assert "valid int" in err


# ---- tune -----------------------------------------------------------------------------------------------------------


def test_tune_tells_what_is_fastest_and_how_to_use_it(atoll: Terminal) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny()))
    code, out, err = atoll("tune", "tiny.yaml", "--profile", "here.json", "--json")
    assert (code, err) == (0, "")
    found = last_object(out)
    assert line(out, "compiled").endswith("client updates/s")
    assert f"Fastest: {found['best']['kernel']}, {found['best']['lanes']} lanes" in out
    assert "runtime.profile=here.json" in out
    code, out, _ = atoll("plan", "tiny.yaml", "runtime.lanes=auto", "runtime.profile=here.json", "--json")
    assert code == 0
    assert last_object(out)["lanes"] == found["best"]["lanes"]


def test_tune_refuses_what_is_no_table(atoll: Terminal) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny()))
    Path("here.json").write_text("nothing")
    code, _, err = atoll("tune", "tiny.yaml", "--profile", "here.json")
    assert code == 2
    assert "runtime.profile: got 'here.json'; need a profile table, as atoll tune writes it" in err
