"""One client again: with the run's own bits, from a snapshot or computed anew, and its exceptions as they are."""

from __future__ import annotations

import json
import re
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import atoll
from atoll import spec as sp
from atoll.data import open_data
from atoll.errors import ClientWorkError, SpecError
from atoll.experiment import Replay, Run, prepare_replay, prune_runs, replay, run
from atoll.experiment.modelling import shape_of
from atoll.experiment.recomputing import weights_of
from atoll.experiment.wiring import source_of
from atoll.messages import model_digest
from atoll.models import load_version
from atoll.runtime.store import SqliteJournal
from tiny_kit import tiny

MOMENTUM = {"kind": "fedbuff", "server_optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.9}}
SYNC = {
    "schedule": {"kind": "sync", "cohort": 5},
    "aggregation": {"kind": "fedavg", "server_optimizer": {"kind": "adam", "lr": 0.01}},
}
MIXING = {
    "schedule": {"kind": "async", "concurrency": 8, "buffer_goal": 1},
    "aggregation": {"kind": "fedasync"},
}


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", autouse=True)
def _no_plots() -> Iterator[None]:
    """A second per run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
        yield


def spec_of(uri: str, **sections) -> dict:
    """Every version is kept as a checkpoint, to compare with."""
    return tiny(**{"tracking": {"uri": uri, "experiment": "replay", "checkpoint_every_steps": 1}, **sections})


@pytest.fixture(scope="module")
def finished(uri: str, root: Path) -> Run:
    return run(spec_of(uri, aggregation=MOMENTUM), key="buffered", runs_folder=root)


class Said(list):
    """Takes what is told."""

    def __call__(self, text: str) -> None:
        self.append(text)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def tasks(one: Run, outcome: int = 0) -> np.ndarray:
    table = pq.read_table(Path(one.folder) / "timeline.parquet").to_pandas()
    return table[table["outcome"] == outcome]["task_id"].to_numpy()


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sections", [{"aggregation": MOMENTUM}, SYNC, MIXING], ids=["fedbuff", "sync", "mixing"])
def test_computed_versions_have_the_bits_of_the_run(uri: str, tmp_path: Path, sections: dict) -> None:
    found = run(spec_of(uri, **sections), key="kept", runs_folder=tmp_path)
    folder = Path(found.folder)
    spec = sp.load(folder / "spec.yaml")
    data = open_data(source_of(spec))
    prune_runs(tmp_path)
    before, said = contents(folder), Said()
    for versions in ([1], [2, 5], [0, 3, 6], [7]):
        weights = weights_of(folder, spec, data.identity, versions, said)
        assert sorted(weights) == versions
        for version in set(versions) - {0}:
            assert model_digest(weights[version]) == kept_digest(folder, version), version
    assert contents(folder) == before
    assert [text.partition(",")[0] for text in said] == [
        f"version {version} is in no snapshot: computing {version} server step{'s' * (version > 1)}"
        for version in (1, 5, 6, 7)
    ]
    # From the snapshot of a shorter run, whose plan is the beginning of this one.
    short = run(spec_of(uri, **sections), "stop.server_steps=4", key="short", runs_folder=tmp_path)
    weights = weights_of(Path(short.folder), spec, data.identity, [4, 5, 7], said)
    assert {v: model_digest(weights[v]) for v in (4, 5, 7)} == {v: kept_digest(folder, v) for v in (4, 5, 7)}
    assert "computing 3 server steps, from version 4 on" in said[-1]


def kept_digest(folder: Path, version: int) -> str:
    spec = sp.load(folder / "spec.yaml")
    shape = shape_of(spec, open_data(source_of(spec)).shape)
    return model_digest(load_version(folder / "checkpoints" / f"version-{version:06d}.safetensors", shape))


# ---- what is told ---------------------------------------------------------------------------------------------------


def test_a_task_of_a_finished_run(finished: Run, root: Path) -> None:
    before, said = contents(Path(finished.folder)), Said()
    found = [replay("buffered", int(task), runs_folder=root, say=said) for task in tasks(finished)]
    assert contents(Path(finished.folder)) == before
    assert all(isinstance(one, Replay) for one in found)
    table = pq.read_table(Path(finished.folder) / "timeline.parquet").to_pandas().set_index("task_id")
    for one in found:
        row = table.loc[one.task_id]
        assert (one.client_id, one.start_version, one.step) == (row.client_id, row.start_version, row.step)
        assert (one.num_examples, one.staleness, one.seed) == (row.num_examples, row.step - row.start_version, 3)
        assert one.local_steps == -(-one.num_examples // 4)
        assert (one.is_diverged, one.block_diverged, one.folder) == (False, 0, finished.folder)
        assert one.lane < one.block_lanes <= 4
        assert 0 < one.wall_s < 10
    # A block and its lanes alone agree, up to the last bits: so do the means of each server step.
    losses = dict(finished.history()["train/loss"])
    for step in range(7):
        mean = np.mean([one.loss for one in found if one.step == step])
        assert mean == pytest.approx(losses[step + 1], rel=1e-5)
    assert all(one.delta_norm > 0 for one in found)
    assert json.loads(json.dumps(found[0].as_dict()))["task_id"] == found[0].task_id
    with pytest.raises(AttributeError):
        found[0].loss = 0.0


def test_it_is_public_and_tells_on_stderr(finished: Run, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(Path(finished.folder) / "timeline.parquet").to_pandas()
    task = table[(table["start_version"] == 1) & (table["outcome"] == 0)]["task_id"].iloc[0]
    found = atoll.replay(finished.run_id[:12], int(task), runs_folder=root)
    assert found.start_version == 1
    told = r"atoll: version (\d) is in no snapshot: computing \1 server steps?, from version 0 on, in memory"
    assert re.match(told, capsys.readouterr().err), "its block may need later versions too"


def test_diverged_clients_are_measured(uri: str, tmp_path: Path) -> None:
    tight = {"kind": "fedbuff", "delta_bound": 0.07}
    found = run(spec_of(uri, aggregation=tight), key="tight", runs_folder=tmp_path)
    again = [replay("tight", int(task), runs_folder=tmp_path, say=Said()) for task in tasks(found)]
    assert sum(one.is_diverged for one in again) == found.num_diverged > 0
    for one in again:
        assert one.is_diverged == (one.delta_norm > 0.07)
        assert one.loss > 0
    run(spec_of(uri, client={"lr": 1e30}), key="wild", runs_folder=tmp_path)
    wild = replay("wild", int(tasks(found)[0]), runs_folder=tmp_path, say=Said())
    assert (wild.is_diverged, wild.delta_norm, wild.loss) == (True, None, None)


def test_another_software_is_told(finished: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.experiment.birth.software", lambda: {"torch": "0.1"})
    said = Said()
    replay("buffered", int(tasks(finished)[0]), runs_folder=root, say=said)
    assert any("software: torch" in text and "bits may differ" in text for text in said)


def test_a_recomputed_step_that_came_out_otherwise_is_told(finished: Run, root: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    with SqliteJournal(tmp_path / "copy" / "journal.db") as journal:
        journal._db.execute("UPDATE steps SET sum_sha = 'f' WHERE step < 2")
    said = Said()
    task = next(
        task for task in tasks(finished) if replay("buffered", int(task), runs_folder=root, say=Said()).step > 4
    )
    replay(tmp_path / "copy", int(task), say=said)
    assert sum("came out otherwise" in text for text in said) == 1


def test_a_snapshot_that_cannot_be_read_is_passed_over(uri: str, tmp_path: Path) -> None:
    """All that is left of it is told, and the steps are computed from the beginning."""
    found = run(spec_of(uri), key="damaged", runs_folder=tmp_path)
    spec = sp.load(Path(found.folder) / "spec.yaml")
    identity = open_data(source_of(spec)).identity
    said = Said()
    whole = weights_of(Path(found.folder), spec, identity, [7], said)
    assert not said
    for path in (Path(found.folder) / "snapshots").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    again = weights_of(Path(found.folder), spec, identity, [7], said)
    assert "damaged; it is passed over" in said[0]
    assert "computing 7 server steps" in said[-1]
    assert model_digest(again[7]) == model_digest(whole[7]) == found.model_digest


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(match: str, name: str | Path, task: int, root: Path) -> None:
    with pytest.raises(SpecError, match=match):
        replay(name, task, runs_folder=root, say=Said())


def test_a_task_that_is_not_in_the_plan(finished: Run, root: Path) -> None:
    known = sorted(tasks(finished).tolist())
    near = rf"the nearest: .*{known[3]}, .*{known[4]}"
    assert known[3] + 1 not in known
    refused(rf"task: got {known[3] + 1}; need a task of its 7 server steps\. .* from 0 to \d+\. {near}",
            "buffered", known[3] + 1, root)  # fmt: skip
    refused(r"task: got -5; .*the nearest: 0, ", "buffered", -5, root)
    refused(r"task: got 9223372036854775807; ", "buffered", 2**63 - 1, root)


def test_a_task_that_ended_without_effect(uri: str, tmp_path: Path) -> None:
    devices = {"kind": "half_normal", "scale_s": 60.0, "dropout": 0.4}
    found = run(spec_of(uri, population={"size": 60, "devices": devices}), key="dropping", runs_folder=tmp_path)
    dropped = tasks(found, outcome=1)
    assert dropped.size
    why = r"it ended without effect and never trained: the client failed while working"
    refused(rf"task: got {dropped[0]} \(client \d+, start version \d+\); need a task that trains\. {why}",
            "dropping", int(dropped[0]), tmp_path)  # fmt: skip


def test_a_task_after_the_end(uri: str, tmp_path: Path) -> None:
    """Windows are planned whole: of the last one the run may need the first step alone."""
    schedule = {"kind": "async", "concurrency": 8, "buffer_goal": 2}
    spec = spec_of(uri, schedule=schedule, runtime={"kind": "inline", "lanes": 16}, stop={"server_steps": 3})
    found = run(spec, key="short", runs_folder=tmp_path)
    longer = run(spec, "stop.server_steps=8", key="longer", runs_folder=tmp_path)
    table = pq.read_table(Path(longer.folder) / "timeline.parquet").to_pandas()
    later = [int(task) for task in table[table["step"] >= found.server_steps]["task_id"]]
    told = {task: why_not("short", task, tmp_path) for task in later}
    # Where its block serves the run too, it was trained, and its sum dropped.
    assert set(told.values()) == {"", "and the run stops after 3"}


def why_not(name: str, task: int, root: Path) -> str:
    try:
        replay(name, task, runs_folder=root, say=Said())
    except SpecError as error:
        return str(error)[str(error).index("and the run") :].rstrip(".")
    return ""


def test_what_is_no_run(finished: Run, root: Path, tmp_path: Path) -> None:
    refused("run: got 'nowhere'; need a run under", "nowhere", 0, root)
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "comparison.json").write_text("{}")
    shutil.copytree(finished.folder, tmp_path / "compared" / "one-s1")
    refused(r"need one run\. this is a comparison\. its runs: one-s1", "compared", 0, tmp_path)
    (tmp_path / "early").mkdir()
    SqliteJournal(tmp_path / "early" / "journal.db").close()
    refused("need a run that was begun", "early", 0, tmp_path)
    (tmp_path / "early" / "journal.db").write_bytes(b"x" * 500)
    refused("need a journal that is whole", tmp_path / "early", 0, tmp_path)


def test_data_that_have_changed(uri: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x, y_test=y)
    data = {"kind": "arrays", "path": str(tmp_path / "d.npz"), "clients": 10}
    spec = spec_of(uri, data=data, population={"size": "data"}, evaluation={"metrics": ["loss"], "split": "unseen"})
    found = run(spec, key="arrays", runs_folder=tmp_path)
    task = int(tasks(found)[0])
    assert replay("arrays", task, runs_folder=tmp_path, say=Said()).loss > 0
    np.savez(tmp_path / "d.npz", x=x + 1, y=y, x_test=x, y_test=y)
    refused(r"data: got content .*; need content .*its content has changed", "arrays", task, tmp_path)


# ---- what a client raises -------------------------------------------------------------------------------------------


class Sensor(torch.nn.Module):
    """Fails on the clients that have a large feature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The lanes' own numbers, below the vectorisation over them.
        if torch.is_grad_enabled() and torch._C._functorch.get_unwrapped(x).abs().max() > 3.5:
            raise ZeroDivisionError("no such sensor")
        return self.layer(x)


def test_a_client_that_raises(uri: str, tmp_path: Path) -> None:
    model = {"kind": "custom", "factory": "test_replaying:Sensor"}
    with pytest.raises(ClientWorkError) as caught:
        run(spec_of(uri, model=model, stop={"server_steps": 60}), key="raising", runs_folder=tmp_path)
    task = caught.value.task_id
    assert task is not None
    notes = " ".join(caught.value.__notes__)
    assert f"atoll replay {tmp_path / 'raising'} {task}" in notes
    assert "seed 3" in notes
    before, said = contents(tmp_path / "raising"), Said()
    case = prepare_replay("raising", task, runs_folder=tmp_path, say=said)
    assert said == [], "the snapshot of a failed run holds what its next blocks start from"
    assert case.block.start_version.max() > 0
    with pytest.raises(ZeroDivisionError, match="no such sensor") as raised:
        case.train()
    # As it was raised: nothing around it, no cause, and the person's line at the end of its traceback.
    assert raised.value.__cause__ is raised.value.__context__ is None
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert (Path(last.filename).name, last.name) == ("test_replaying.py", "forward")
    assert f"client {int(case.block.client_id[case.lane])}, task {task}" in caught.value.story
    assert contents(tmp_path / "raising") == before
    # Without its snapshot the steps before are computed again; none of them raises.
    for path in (tmp_path / "raising" / "snapshots").iterdir():
        path.unlink()
    again = prepare_replay("raising", task, runs_folder=tmp_path, say=said)
    assert "computing" in said[-1]
    assert {v: model_digest(model) for v, model in again.versions.items()} == {
        v: model_digest(case.versions[v]) for v in again.versions
    }
