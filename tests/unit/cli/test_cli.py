"""The command line: what people type, what they read, and the code that scripts see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from atoll import __version__
from terminal_kit import Terminal, last_object
from tiny_kit import tiny

COMMANDS = ("plan", "run", "resume", "compare", "ui", "schema", "runs", "replay")
REPORTED = {
    "timeline_digest", "plan_digest", "server_steps", "client_updates", "virtual_hours", "mean_staleness",
}  # fmt: skip


def refused(atoll: Terminal, *arguments: str, says: tuple[str, ...]) -> str:
    """Exit code 2, one short message that says place, value and rule, and nothing left behind."""
    code, out, err = atoll(*arguments)
    assert code == 2, err
    assert "Traceback" not in err + out
    assert err.startswith("atoll: ")
    for part in says:
        assert part in err
    assert not (atoll.folder / "runs").exists()
    return err


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(atoll: Terminal, command: str) -> None:
    code, out, err = atoll(command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: " in out
    assert f" {command} " in out
    assert len(out.splitlines()) < 40
    assert max(map(len, out.splitlines())) <= 120
    if command in ("plan", "run"):
        assert "client.lr=0.05" in out
        assert "--json" in out


def test_help_of_all(atoll: Terminal) -> None:
    code, out, _ = atoll("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"  {command} " in out
    assert "atoll run configs/quickstart.yaml" in out


def test_no_command_shows_the_help(atoll: Terminal) -> None:
    code, out, err = atoll()
    assert "Usage: " in out + err
    assert code == 2
    assert "bug" not in err


def test_version(atoll: Terminal) -> None:
    assert atoll("--version") == (0, f"{__version__}\n", "")


def test_help_and_plan_start_without_torch_ray_and_mlflow(tmp_path: Path) -> None:
    """In a fresh process, since this one has loaded everything."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    code = (
        "import sys\nfrom atoll.cli import main\nsys.argv = ['atoll', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)), end.code)\n"
    )
    for arguments in (["--help"], ["plan", "tiny.yaml", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


# ---- what works ---------------------------------------------------------------------------------------------------


def test_plan_and_run_end_with_one_object(atoll: Terminal, mlflow_uri: str) -> None:
    config = atoll.write(tracking={"uri": mlflow_uri})
    code, out, err = atoll("plan", config, "--json")
    assert (code, err) == (0, "")
    assert "Plan: simulated, nothing trained yet" in out
    planned = last_object(out)
    assert set(planned) >= REPORTED
    code, out, err = atoll("run", config, "--json")
    assert (code, err) == (0, "")
    ran = last_object(out)
    assert set(ran) >= REPORTED | {"run_id", "model_digest", "metrics", "wall_s"}
    for name in REPORTED - {"virtual_hours", "mean_staleness"}:
        assert ran[name] == planned[name], name
    for name in ("virtual_hours", "mean_staleness"):
        assert ran[name] == pytest.approx(planned[name], rel=1e-12)
    assert {"eval/loss", "eval/auc"} <= set(ran["metrics"])
    assert ran["wall_s"] > 0
    for said in ("server steps done", ran["run_id"], ran["model_digest"][:16], "atoll ui"):
        assert said in out
    # Two runs, compared by id and by folder.
    code, out, err = atoll("run", config, "schedule.buffer_goal=4", "name=other", "--json")
    other = last_object(out)
    assert code == 0
    assert other["plan_digest"] != ran["plan_digest"]
    code, out, err = atoll("compare", ran["run_id"], other["folder"], "--metric", "auc", "--value", "0.1", "--json")
    assert (code, err) == (0, "")
    compared = last_object(out)
    assert compared["html"] == "compare/comparison.html"
    assert "<html" in Path(compared["html"]).read_text()
    assert len(Path(compared["csv"]).read_text().splitlines()) >= 3
    assert set(compared["ratios"]) == {"tiny", "other"}
    assert all(ratio in (1.0, None) for ratio in compared["ratios"]["tiny"].values())
    by_store = atoll("compare", ran["run_id"], other["run_id"], "--metric", "auc", "--uri", mlflow_uri, "--json")
    assert by_store[0] == 0, by_store[2]


def test_a_run_without_json_prints_no_object(atoll: Terminal, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
    code, out, _ = atoll("run", atoll.write(tracking={"uri": mlflow_uri}, client={"lr": 1e30}))
    assert code == 0
    assert not [line for line in out.splitlines() if line.startswith("{")]
    row = next(line for line in out.splitlines() if "diverged client updates" in line)
    assert "14" in row
    assert "lower client.lr" in row


def test_plan_of_a_comparison_has_a_column_per_run(atoll: Terminal) -> None:
    comparison = {
        "seeds": [1, 2],
        "arms": {"big": {"schedule.buffer_goal": 4}, "small": {"schedule.buffer_goal": 1}},
        "baseline": "small",
    }
    code, out, _ = atoll("plan", atoll.write(comparison=comparison), "--json")
    assert code == 0
    plans = last_object(out)["plans"]
    assert list(plans) == ["small seed 1", "small seed 2", "big seed 1", "big seed 2"]
    assert plans["big seed 1"]["client_updates"] == 4 * plans["small seed 1"]["client_updates"]
    assert len({one["plan_digest"] for one in plans.values()}) == 4


def test_schema_names_every_section(atoll: Terminal) -> None:
    code, out, _ = atoll("schema")
    schema = json.loads(out)
    assert code == 0
    assert set(tiny()) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert atoll("schema", "--out", "s.json")[0] == 0
    assert json.loads(Path("s.json").read_text()) == schema


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_an_unknown_key(atoll: Terminal) -> None:
    err = refused(atoll, "run", atoll.write(client={"lr": 0.1, "batchsize": 4}), says=("client.batchsize",))
    assert "Did you mean" in err
    assert "batch_size" in err


def test_a_wrong_type(atoll: Terminal) -> None:
    refused(atoll, "plan", atoll.write(client={"lr": "fast"}), says=("client.lr", "'fast'", "number"))


def test_an_override_of_nothing(atoll: Terminal) -> None:
    refused(atoll, "plan", atoll.write(), "client.speed=3", says=("client.speed",))
    refused(atoll, "plan", atoll.write(), "client.lr", says=("client.lr", "="))


def test_a_buffer_that_never_fills(atoll: Terminal) -> None:
    says = ("schedule.buffer_goal", "got 9", "≤ schedule.concurrency (8)")
    refused(atoll, "run", atoll.write(), "schedule.buffer_goal=9", says=says)


def test_all_problems_at_once(atoll: Terminal) -> None:
    config = atoll.write(client={"lr": -1.0}, model={"kind": "mpl"})
    err = refused(atoll, "plan", config, "schedule.buffer_goal=9", says=("3 problems:",))
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("  - ") for line in lines[1:])


def test_a_problem_of_many_lines_is_one(atoll: Terminal) -> None:
    too_large = "population.device_memory_bytes=10"
    err = refused(atoll, "plan", atoll.write(), too_large, says=("atoll: population.device_memory_bytes: got",))
    assert "problems:" not in err
    assert err.splitlines()[-1].startswith("  dense weights: ")
    other = "clusters={kind: random, count: 2, only: nobody}"
    lines = refused(atoll, "plan", atoll.write(), too_large, other, says=("2 problems:",)).splitlines()
    assert [line.startswith("  - ") for line in lines if not line.startswith("    ")] == [False, True, True]
    assert any(line.startswith("      dense weights: ") for line in lines)


def test_a_missing_file(atoll: Terminal) -> None:
    atoll.write("fedbuff.yaml")
    refused(atoll, "run", "fedbuf.yaml", says=("fedbuf.yaml", "an existing file", "Did you mean fedbuff.yaml"))


def test_broken_yaml(atoll: Terminal) -> None:
    Path("bad.yaml").write_text("name: a\n  seed: [1\n")
    refused(atoll, "run", "bad.yaml", says=("bad.yaml", "line 2"))


def parquet(atoll: Terminal, path: str, **sections) -> str:
    data = {
        "kind": "parquet", "path": path, "client_column": "who", "label_column": "late", "features": ["a", "b"],
    }  # fmt: skip
    return atoll.write(data=data, population={"size": "data"}, **sections)


def table(**columns) -> None:
    rows = 60
    whole = {"who": [f"c{n % 6}" for n in range(rows)], "late": [n % 2 for n in range(rows)]}
    whole |= {"a": np.arange(rows, dtype=float), "b": np.ones(rows)}
    whole |= columns
    pq.write_table(pa.table({name: values for name, values in whole.items() if values is not None}), "d.parquet")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_missing_data_file(atoll: Terminal, command: str) -> None:
    refused(atoll, command, parquet(atoll, "nowhere.parquet"), says=("data.path", "'nowhere.parquet'"))


def test_a_client_column_that_is_not_there(atoll: Terminal) -> None:
    table(who=None)
    refused(atoll, "run", parquet(atoll, "d.parquet"), says=("data.client_column", "'who'"))


def test_nan_in_the_data(atoll: Terminal) -> None:
    table(b=[1.0] * 59 + [float("nan")])
    refused(atoll, "run", parquet(atoll, "d.parquet"), says=("data column 'b'", "row 59 of d.parquet", "finite values"))


def test_good_data_is_planned(atoll: Terminal) -> None:
    table()
    code, out, err = atoll("plan", parquet(atoll, "d.parquet"), "evaluation.split=seen", "--json")
    assert code == 0, err
    assert last_object(out)["data"] == {"kind": "parquet", "clients": 6, "train_examples": 48}


def test_a_split_without_rows(atoll: Terminal) -> None:
    """Six clients, a tenth of them held out: none."""
    table()
    refused(atoll, "plan", parquet(atoll, "d.parquet"), says=("evaluation.split", "'unseen'", "seen (12 rows)"))


def test_a_tracking_server_that_does_not_answer(atoll: Terminal) -> None:
    says = ("tracking.uri", "http://127.0.0.1:9", "a running MLflow server")
    refused(atoll, "run", atoll.write(tracking={"uri": "http://127.0.0.1:9"}), says=says)


def test_more_memory_than_there_is(atoll: Terminal) -> None:
    says = ("runtime.memory_bytes", "KiB needed", "at most 1000 bytes")
    refused(atoll, "plan", atoll.write(), "runtime.memory_bytes=1000", says=says)


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("name", ["nowhere.safetensors", "tiny.yaml", "."])
def test_start_weights_that_are_none(atoll: Terminal, command: str, name: str) -> None:
    refused(atoll, command, atoll.write(), f"model.init_from={name}", says=("model.init_from", f"'{name}'"))


def test_reports_that_cannot_be_written(atoll: Terminal) -> None:
    refused(atoll, "schema", "--out", "no/such/folder.json", says=("out", "a file that may be written"))
    refused(atoll, "schema", "--out", ".", says=("out", "a file that may be written"))


def test_an_unknown_command(atoll: Terminal) -> None:
    code, _, err = atoll("rum", "tiny.yaml")
    assert code == 2
    assert "No such command 'rum'" in err
    assert "Traceback" not in err
    assert "bug" not in err


def test_an_unknown_option(atoll: Terminal) -> None:
    code, _, err = atoll("plan", atoll.write(), "--jsn")
    assert code == 2
    assert "--jsn" in err


def test_compare_says_what_it_needs(atoll: Terminal) -> None:
    refused(atoll, "compare", "one", says=("compare", "two runs or more"))
    refused(atoll, "compare", "one", "two", says=("'one'", "a run under runs/", "none yet"))


def test_ui_of_a_store_that_cannot_be(atoll: Terminal) -> None:
    refused(atoll, "ui", "--uri", "sqlite:///no/such/folder/mlflow.db", says=("tracking.uri", "existing folder"))


def test_ui_on_a_port_that_cannot_be(atoll: Terminal, mlflow_uri: str) -> None:
    refused(atoll, "ui", "--uri", mlflow_uri, "--port", "99999", says=("port", "99999", "a free port"))


def test_a_store_whose_folder_takes_no_files(atoll: Terminal) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("no folder that even root may not write to")
    refused(atoll, "ui", "--uri", "sqlite:////proc/mlflow.db", says=("tracking.uri", "may be written"))


# ---- failures on the way ------------------------------------------------------------------------------------------


def test_client_code_that_raises_ends_with_3(atoll: Terminal, mlflow_uri: str) -> None:
    model = {"kind": "custom", "factory": "test_running_models:raising"}
    (atoll.folder / "test_running_models.py").write_text(
        "import torch\n\n\nclass Raising(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Linear(4, 1)\n\n"
        "    def forward(self, x):\n        if torch.is_grad_enabled():\n"
        "            raise RuntimeError('no such sensor')\n        return self.layer(x)\n\n\n"
        "def raising():\n    return Raising()\n"
    )
    config = atoll.write(tracking={"uri": mlflow_uri}, model=model)
    sys.path.insert(0, str(atoll.folder))
    try:
        code, _, err = atoll("run", config)
    finally:
        sys.path.remove(str(atoll.folder))
    assert code == 3
    assert "client work raised RuntimeError: no such sensor" in err
    # Which client, which task, and the two commands that one needs next.
    task = re.search(r"^client \d+, task (\d+), block 0", err, re.MULTILINE)
    assert task
    assert re.search(rf"replay this client alone: atoll replay runs/tiny-\S+ {task[1]}$", err, re.MULTILINE)
    assert re.search(r"When the cause is gone: atoll resume runs/tiny-\S+$", err, re.MULTILINE)


def test_a_bug_ends_with_1_and_says_so(atoll: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("atoll.spec.json_schema", broken)
    code, _, err = atoll("schema")
    assert code == 1
    assert "ZeroDivisionError: oops" in err
    assert "this is a bug in atoll" in err


def test_ctrl_c_ends_with_130(atoll: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("atoll.spec.json_schema", interrupted)
    code, _, err = atoll("schema")
    assert code == 130
    assert "interrupted" in err
