"""May this run go on, and does it end where it would have ended? Refusals tell everything that differs."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import Interrupted, SpecError
from atoll.experiment import Run, compare_runs, load, resume, run
from atoll.experiment import birth as birth_module
from atoll.experiment.comparing import resume_comparison, run_comparison
from atoll.experiment.storing import is_on_network, store_in
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.usefixtures("_no_plots")


@pytest.fixture
def base(mlflow_uri: str) -> dict[str, Any]:
    return tiny(
        tracking={"uri": mlflow_uri, "experiment": "resuming"},
        stop={"server_steps": 12},
        runtime={"kind": "inline", "lanes": 4, "snapshot_every_s": 0.0},
    )


def stop_at(step: int):
    """A progress callback that asks the run to stop, as SIGTERM does, once this step is there."""

    def watch(figures: dict[str, float]) -> None:
        if figures["step"] >= step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def interrupted(spec: dict[str, Any], root: Path, key: str = "mine") -> Path:
    with pytest.raises(Interrupted, match=r"Go on with: atoll resume .*mine"):
        run(spec, key=key, on_progress=stop_at(5), runs_folder=root)
    return root / key


def science(one: Run) -> dict[str, list[tuple[int, float]]]:
    return {key: points for key, points in one.history().items() if not key.startswith("wall_")}


def logged(one: Run) -> dict[str, list[tuple[int, float]]]:
    store = mlflow_client(one.tracking_uri)
    keys = [key for key in store.get_run(one.run_id).data.metrics if not key.startswith("wall_")]
    return {key: sorted((m.step, m.value) for m in store.get_metric_history(one.run_id, key)) for key in keys}


def assert_same(found: Run, expected: Run) -> None:
    for name in ("model_digest", "plan_digest", "timeline_digest", "server_steps", "client_updates", "mean_staleness",
                 "virtual_hours", "metrics", "reason"):  # fmt: skip
        assert getattr(found, name) == getattr(expected, name), name
    assert science(found) == science(expected) == logged(found)


def edit(folder: Path, key: str, change) -> None:
    with sqlite3.connect(folder / "journal.db") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        db.execute("UPDATE meta SET value = ? WHERE key = ?", (change(text), key))
    db.close()


def test_resume_ends_where_the_run_would_have_ended(base: dict[str, Any], tmp_path: Path) -> None:
    expected = run(base, runs_folder=tmp_path)
    folder = interrupted(base, tmp_path)
    store = mlflow_client(base["tracking"]["uri"])
    experiment = store.get_experiment_by_name("resuming").experiment_id
    of_key = "tags.`fl.run_key` LIKE 'mine-%'"
    assert store.search_runs([experiment], of_key)[0].info.status == "KILLED"
    with pytest.raises(SpecError, match=r"this one is not. atoll resume \S*mine goes on with it"):
        load("mine", tmp_path)
    found = resume("mine", runs_folder=tmp_path)
    assert_same(found, expected)
    assert found.attempts == 2
    assert found.folder == str(folder)
    (tracked,) = store.search_runs([experiment], of_key)
    assert (tracked.info.run_id, tracked.info.status) == (found.run_id, "FINISHED")
    assert load(found.run_id, tmp_path) == found


def test_a_key_begins_goes_on_and_returns(base: dict[str, Any], tmp_path: Path) -> None:
    expected = run(base, runs_folder=tmp_path)
    interrupted(base, tmp_path)
    found = run(base, key="mine", runs_folder=tmp_path)
    assert_same(found, expected)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(found.folder).rglob("*") if path.is_file())
    assert run(base, key="mine", runs_folder=tmp_path) == found
    now = sorted((path, path.stat().st_mtime_ns) for path in Path(found.folder).rglob("*") if path.suffix != ".lock")
    assert [entry for entry in now if entry[0].is_file()] == before
    for key in ("../x", "", "a b", ".hidden"):
        with pytest.raises(SpecError, match=r"key: got .*need letters"):
            run(base, key=key, runs_folder=tmp_path)


@pytest.mark.parametrize("steps", [12, 13])
def test_a_longer_run_equals_asking_for_it_at_first(base: dict[str, Any], tmp_path: Path, steps: int) -> None:
    expected = run(base | {"stop": {"server_steps": 20}}, runs_folder=tmp_path)
    run(base | {"stop": {"server_steps": steps}}, key="short", runs_folder=tmp_path)
    found = resume("short", "stop.server_steps=20", runs_folder=tmp_path)
    if steps % base["evaluation"]["every_steps"]:
        # Off the cadence the shorter run leaves the evaluation of its last version, and nothing else.
        extra = {key: points for key, points in science(found).items() if points != science(expected)[key]}
        assert all(key.startswith("eval/") for key in extra)
        assert all([step for step, _ in points].count(steps) == 1 for points in extra.values())
        assert found.model_digest == expected.model_digest
    else:
        assert_same(found, expected)
    assert json.loads((tmp_path / "short" / "result.json").read_text())["server_steps"] == 20


def test_a_target_that_is_lifted(base: dict[str, Any], tmp_path: Path) -> None:
    target = {"metric": "loss", "value": 0.7034}
    first = run(base | {"stop": {"server_steps": 12, "target": target}}, key="short", runs_folder=tmp_path)
    assert first.reason == "target reached"
    assert 0 < first.server_steps < 12
    with pytest.raises(SpecError, match=r"stop.target.value: got 0.71; need a target that version \d+ did not reach"):
        resume("short", "stop.target.value=0.71", runs_folder=tmp_path)
    expected = run(base, runs_folder=tmp_path)
    assert_same(resume("short", "stop.target=null", runs_folder=tmp_path), expected)


def test_everything_that_differs_is_told_at_once(base: dict[str, Any], tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    with pytest.raises(SpecError) as caught:
        run(base, "client.lr=0.2", "schedule.buffer_goal=3", "runtime.lanes=8", key="mine", runs_folder=tmp_path)
    told = {problem.path: problem for problem in caught.value.problems}
    assert told.keys() == {"client.lr", "schedule.buffer_goal", "runtime.lanes"}
    assert (told["client.lr"].value, told["client.lr"].rule) == ("0.2", "0.1, as the run was begun")
    assert "--force" in told["client.lr"].hint
    assert "--force" not in told["schedule.buffer_goal"].hint
    with pytest.raises(SpecError, match=r"schedule.buffer_goal: got 3; need 2, as the run was begun"):
        resume("mine", "schedule.buffer_goal=3", force=True, runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"stop.server_steps: got 2; need at least [5-9]"):
        resume("mine", "stop.server_steps=2", runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"runtime.store: got '/elsewhere'; need None, where the run keeps itself"):
        resume("mine", "runtime.store=/elsewhere", runs_folder=tmp_path)


def test_other_software_is_told_and_forced_at_a_price(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(base, key="whole", runs_folder=tmp_path)
    interrupted(base, tmp_path)
    software = {**birth_module.software(), "torch": "1.2.3"}
    monkeypatch.setattr(birth_module, "software", lambda: software)
    with pytest.raises(SpecError, match=r"software: torch: got 1.2.3; need \S+, as the run was begun.*--force"):
        resume("mine", runs_folder=tmp_path)
    forced = resume("mine", force=True, runs_folder=tmp_path)
    assert not forced.is_comparable
    assert forced.server_steps == expected.server_steps
    tags = mlflow_client(forced.tracking_uri).get_run(forced.run_id).data.tags
    assert tags["fl.comparable"] == "no"
    with pytest.raises(SpecError, match=r"need a run whose bits are its plan's. it was resumed by force"):
        compare_runs(["whole", "mine"], metric="loss", value=0.6, runs_folder=tmp_path)


def test_forced_client_settings(base: dict[str, Any], tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    forced = resume("mine", "client.lr=0.05", force=True, runs_folder=tmp_path)
    assert (forced.is_comparable, forced.server_steps) == (False, 12)
    # What was forced is what the run is from now on: no force is needed again, and the mark stays.
    again = resume("mine", "stop.server_steps=15", runs_folder=tmp_path)
    assert (again.is_comparable, again.server_steps) == (False, 15)


def test_data_that_changed(base: dict[str, Any], tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    edit(tmp_path / "mine", "birth", lambda text: text.replace(json.loads(text)["inputs"]["data"], "0" * 64))
    with pytest.raises(SpecError, match=r"data: got content \w+; need content 000000000000. its content has changed"):
        resume("mine", force=True, runs_folder=tmp_path)


def test_a_damaged_journal(base: dict[str, Any], tmp_path: Path) -> None:
    folder = interrupted(base, tmp_path)
    with sqlite3.connect(folder / "journal.db") as db:
        db.execute("DELETE FROM steps WHERE step = 2")
    db.close()
    with pytest.raises(SpecError, match=r"journal.db: need a journal that is whole. 1 of the steps 0 to \d+ are miss"):
        resume("mine", force=True, runs_folder=tmp_path)
    (folder / "journal.db").write_bytes(b"not a database at all, and longer than a page header" * 100)
    with pytest.raises(SpecError, match=r"journal.db: need a journal that is whole.*bring it back from a copy"):
        resume("mine", runs_folder=tmp_path)


def test_a_step_that_comes_out_otherwise_stops_the_run(base: dict[str, Any], tmp_path: Path) -> None:
    """The hash in the journal is what notices a machine that is not what it was."""
    from atoll.errors import AggregationError

    coarse = base | {"runtime": {"kind": "inline", "lanes": 4, "snapshot_every_s": 1000.0}}
    run(coarse | {"stop": {"server_steps": 5}}, key="mine", runs_folder=tmp_path)
    with sqlite3.connect(tmp_path / "mine" / "journal.db") as db:
        db.execute("DELETE FROM snapshots")
        db.execute("UPDATE steps SET sum_sha = 'f00' WHERE step = 3")
    db.close()
    with pytest.raises(AggregationError, match=r"server step 3 was committed with exact sum f00 and came again with"):
        resume("mine", "stop.server_steps=8", runs_folder=tmp_path)


def test_what_was_never_begun(base: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "journal.db").touch()
    with pytest.raises(SpecError, match=r"need a run that was begun. its process died before there was anything"):
        resume("mine", runs_folder=tmp_path)
    assert run(base, key="mine", runs_folder=tmp_path).server_steps == 12


def test_one_process_at_a_time(base: dict[str, Any], tmp_path: Path) -> None:
    seen: list[str] = []

    def try_beside(figures: dict[str, float]) -> None:
        if not seen:
            with pytest.raises(SpecError, match="another process works on it now"):
                resume("mine", runs_folder=tmp_path)
            seen.append("refused")

    run(base, key="mine", on_progress=try_beside, runs_folder=tmp_path)
    assert seen


def test_another_tracking_store_gets_every_row(base: dict[str, Any], tmp_path: Path) -> None:
    empty = Path(base["tracking"]["uri"].removeprefix("sqlite:///")).read_bytes()
    expected = run(base, runs_folder=tmp_path)
    interrupted(base, tmp_path)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    (tmp_path / "other.db").write_bytes(empty)
    found = resume("mine", f"tracking.uri={other}", runs_folder=tmp_path)
    assert found.tracking_uri == other
    assert_same(found, expected)


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["same machine", "another machine"])
def test_a_store_that_all_machines_reach(base: dict[str, Any], tmp_path: Path, is_forgotten: bool) -> None:
    expected = run(base, runs_folder=tmp_path)
    shared = base | {"runtime": {**base["runtime"], "store": str(tmp_path / "shared")}}
    folder = interrupted(shared, tmp_path)
    assert store_in(folder).place == str(tmp_path / "shared" / "mine")
    assert not (folder / "snapshots").exists()
    name = str(tmp_path / "shared" / "mine") if is_forgotten else "mine"
    found = resume(name, runs_folder=tmp_path / "elsewhere" if is_forgotten else tmp_path)
    assert_same(found, expected)
    # And a job that is started again, on a machine that knows nothing, finds it by its key.
    assert run(shared, key="mine", runs_folder=tmp_path / "third").model_digest == expected.model_digest


@pytest.mark.parametrize(
    ("store", "told"),
    [("http://example.org/x", "only stores that create an object atomically"), ("s3://bucket/x", "pip install s3fs")],
)
def test_a_store_that_cannot_be_used(base: dict[str, Any], tmp_path: Path, store: str, told: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(SpecError, match=told):
        run(base | {"runtime": {**base["runtime"], "store": store}}, runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_comparison_goes_on(base: dict[str, Any], tmp_path: Path) -> None:
    comparison = {
        "seeds": [1, 2],
        "baseline": "slow",
        "arms": {"slow": {"client.lr": 0.05}, "fast": {}},
    }
    spec = base | {"comparison": comparison, "stop": {"server_steps": 9, "target": {"metric": "loss", "value": 0.1}}}
    expected = run_comparison(spec, key="whole", runs_folder=tmp_path)

    def stop_third(arm: str, number: int, total: int, one: Any):
        return stop_at(4) if number == 3 else None

    with pytest.raises(Interrupted, match=r"Go on with: atoll resume \S*mine$"):
        run_comparison(spec, key="mine", on_run=stop_third, runs_folder=tmp_path)
    with pytest.raises(SpecError, match="this is a comparison"):
        resume("mine", runs_folder=tmp_path)
    finished = json.loads((tmp_path / "mine" / "slow-s1" / "result.json").read_text())
    found = resume_comparison(tmp_path / "mine")
    assert [one.model_digest for one in found.runs] == [one.model_digest for one in expected.runs]
    assert found.runs[0].wall_s == finished["wall_s"], "a finished run is not run again"
    assert [one.attempts for one in found.runs] == [1, 1, 2, 1]
    store = mlflow_client(base["tracking"]["uri"])
    children = store.search_runs(
        [store.get_experiment_by_name("resuming").experiment_id],
        f"tags.mlflow.parentRunId = '{found.parent_run_id}'",
    )
    assert sorted(one.info.run_id for one in children) == sorted(one.run_id for one in found.runs)


MOUNTS = """proc /proc proc rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/local xfs rw 0 0
sshfs#there /mnt/my\\040files fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/data/runs", False),
        ("/home/me/runs", True),
        ("/home/local/runs", False),
        ("/homes/me", False),
        ("/mnt/my files/runs", True),
    ],
)
def test_network_file_systems_are_known(folder: str, expected: bool) -> None:
    assert is_on_network(Path(folder), MOUNTS) is expected


def test_a_run_on_a_network_file_system(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(base, runs_folder=tmp_path / "local")
    monkeypatch.setattr("atoll.experiment.storing.is_on_network", lambda folder: True)
    folder = interrupted(base, tmp_path)
    assert (folder / "journal" / "commit-000000000001.json").is_file()
    assert_same(resume("mine", runs_folder=tmp_path), expected)


def rows_in_mlflow(one: Run) -> int:
    store = mlflow_client(one.tracking_uri)
    keys = store.get_run(one.run_id).data.metrics
    return sum(len(store.get_metric_history(one.run_id, key)) for key in keys)


def rows_of(one: Run) -> int:
    return sum(map(len, one.history().values()))


def test_a_key_keeps_its_store(base: dict[str, Any], tmp_path: Path) -> None:
    first = run(base, key="mine", runs_folder=tmp_path)
    moved = base | {"seed": 4, "runtime": {**base["runtime"], "store": str(tmp_path / "shared")}}
    with pytest.raises(SpecError, match=r"runtime.store: got .*shared'; need None, where the run keeps itself"):
        run(moved, key="mine", runs_folder=tmp_path)
    assert load("mine", tmp_path) == first


def test_a_key_that_was_deleted_is_another_run(base: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    first = run(base, key="mine", runs_folder=tmp_path)
    shutil.rmtree(tmp_path / "mine")
    second = run(base, key="mine", runs_folder=tmp_path)
    assert first.run_id != second.run_id
    assert rows_in_mlflow(second) == rows_of(second)


def test_a_tracking_run_that_is_gone_gets_every_row_again(base: dict[str, Any], tmp_path: Path) -> None:
    first = run(base, key="mine", runs_folder=tmp_path)
    mlflow_client(first.tracking_uri).delete_run(first.run_id)
    found = resume("mine", "stop.server_steps=15", runs_folder=tmp_path)
    assert found.run_id != first.run_id
    assert rows_in_mlflow(found) == rows_of(found)


def test_what_the_end_could_not_tell_is_told_by_resuming(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atoll.errors import InfrastructureError
    from atoll.experiment.listing import list_runs
    from atoll.tracking import MlflowTracker

    def away(*args: object) -> None:
        raise InfrastructureError("the service is away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "finish", away)
        first = run(base, key="mine", runs_folder=tmp_path)
    status = mlflow_client(first.tracking_uri).get_run(first.run_id).info.status
    assert status == "RUNNING"
    (entry,) = list_runs(tmp_path)
    assert (entry.state, entry.advice) == ("finished", "atoll resume mine")
    again = resume("mine", runs_folder=tmp_path)
    assert again.model_digest == first.model_digest
    assert mlflow_client(first.tracking_uri).get_run(first.run_id).info.status == "FINISHED"
    assert list_runs(tmp_path)[0].advice == ""


def test_a_fenced_process_leaves_the_run_alone(base: dict[str, Any], tmp_path: Path) -> None:
    """Another machine takes the run over while this one works on it, and finishes it."""
    from atoll.errors import FencedError

    taken: list[Run] = []
    shared = base | {"runtime": {**base["runtime"], "store": str(tmp_path / "shared")}}

    def take_over(figures: dict[str, float]) -> None:
        if figures["step"] >= 4 and not taken:
            taken.append(resume(str(tmp_path / "shared" / "mine"), runs_folder=tmp_path / "elsewhere"))

    with pytest.raises(FencedError) as caught:
        run(shared, key="mine", on_progress=take_over, runs_folder=tmp_path)
    assert not getattr(caught.value, "__notes__", ())
    (winner,) = taken
    assert mlflow_client(winner.tracking_uri).get_run(winner.run_id).info.status == "FINISHED"
    assert rows_in_mlflow(winner) == rows_of(winner)


def test_a_target_is_not_changed_while_an_evaluation_is_open(base: dict[str, Any], tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    with sqlite3.connect(tmp_path / "mine" / "journal.db") as db:
        db.execute("DELETE FROM evaluations WHERE version = 3")
    db.close()
    change = "stop.target={metric: loss, value: 0.6}"
    with pytest.raises(SpecError, match=r"stop.target: .* the evaluation of version 3 is not known yet"):
        resume("mine", change, runs_folder=tmp_path)


def test_tracking_moves_only_when_it_is_told_to(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_place = Path(base["tracking"]["uri"].removeprefix("sqlite:///"))
    relative = base | {"tracking": {**base["tracking"], "uri": f"sqlite:///{first_place.name}"}}
    monkeypatch.chdir(first_place.parent)
    first = run(relative, key="mine", runs_folder=tmp_path / "runs")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    longer = resume(first.folder, "stop.server_steps=15", runs_folder=tmp_path / "runs")
    assert (longer.tracking_uri, longer.run_id) == (first.tracking_uri, first.run_id)
    assert not list((tmp_path / "sub").iterdir())
    with pytest.raises(SpecError, match=r"tracking.uri: got 'foo://bar'"):
        resume(first.folder, "tracking.uri=foo://bar")
    assert resume(first.folder) == longer, "what was refused left no trace"
    other = tmp_path / "other.db"
    moved = resume(first.folder, f"tracking.uri=sqlite:///{other}")
    assert moved.tracking_uri == f"sqlite:///{other}"
    assert rows_in_mlflow(moved) == rows_of(moved)


def test_a_folder_that_moved(base: dict[str, Any], tmp_path: Path) -> None:
    first = run(base, key="mine", runs_folder=tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "archive")
    found = load("mine", tmp_path / "archive")
    assert found.folder == str(tmp_path / "archive" / "mine")
    assert len(found.history()) > 5
    assert resume("mine", "stop.server_steps=14", runs_folder=tmp_path / "archive").run_id == first.run_id


@pytest.mark.parametrize("place", ["timeline", "model", "result"])
def test_a_full_disk_at_the_end_says_so(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import errno

    from atoll.errors import InfrastructureError

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = {
        "timeline": "pyarrow.parquet.ParquetWriter",
        "model": "atoll.models.checkpoint.save_version",
        "result": "atoll.experiment.finishing.plots",
    }[place]
    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        with pytest.raises(InfrastructureError, match="No space left on device") as caught:
            run(base, key="mine", runs_folder=tmp_path)
    assert "atoll resume" in caught.value.__notes__[0]
    expected = run(base, runs_folder=tmp_path)
    assert_same(resume("mine", runs_folder=tmp_path), expected)


def test_keys_of_comparisons_are_their_own(base: dict[str, Any], tmp_path: Path) -> None:
    def spec(lr: float) -> dict[str, Any]:
        comparison = {"seeds": [1], "baseline": "slow", "arms": {"slow": {"client.lr": lr}, "fast": {}}}
        return base | {
            "comparison": comparison,
            "stop": {"server_steps": 4, "target": {"metric": "loss", "value": 0.1}},
        }

    first = run_comparison(spec(0.05), key="both", runs_folder=tmp_path)
    again = run_comparison(spec(0.05), key="both", runs_folder=tmp_path)
    assert again.runs == first.runs
    before = (tmp_path / "both" / "spec.yaml").read_text()
    with pytest.raises(SpecError, match="key: got 'both'; need the comparison that it was begun with"):
        run_comparison(spec(0.02), key="both", runs_folder=tmp_path)
    assert (tmp_path / "both" / "spec.yaml").read_text() == before
    with pytest.raises(SpecError, match=r"key: got 'both'; need a key that is free. a comparison has it"):
        run(base, key="both", runs_folder=tmp_path)
    run(base, key="single", runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"key: got 'single'; need a key that is free. a run has it"):
        run_comparison(spec(0.05), key="single", runs_folder=tmp_path)
