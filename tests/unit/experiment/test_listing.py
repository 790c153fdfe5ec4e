"""What lies under the folder of runs: every state, a look that leaves no trace, and what may be removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from atoll import spec as sp
from atoll.errors import SpecError
from atoll.experiment import Entry, Run, list_runs, prune_runs, resume, run
from atoll.experiment.places import only_one
from atoll.experiment.records import STORE_FILE
from atoll.experiment.storing import SNAPSHOTS_FOLDER
from atoll.runtime.store import Artifact, Commit, SnapshotRecord, SqliteJournal, StepRecord
from tiny_kit import tiny

FILE = "version-{:08d}-epoch-1.safetensors"


def begun(folder: Path, steps: int = 0, *, ended: bool = False, stop: int = 7, **commit) -> Path:
    """A run as its journal and files tell it, without the training."""
    folder.mkdir(parents=True)
    meta = {
        "birth": "{}",
        "spec": json.dumps({"stop": {"server_steps": stop}}),
        "run_id": "1234567890",
        "ended": "null",
    }
    if ended:
        meta["ended"] = json.dumps({"version": steps, "reason": "server steps done"})
        (folder / "result.json").write_text("{}")
    with SqliteJournal(folder / "journal.db") as journal:
        journal.claim()
        done = tuple(StepRecord(step, step, "0") for step in range(steps))
        journal.commit(Commit(steps=done, meta=meta, **commit))
        for version in (steps - 1, steps) if steps > 1 else ():
            file = FILE.format(version)
            journal.commit(Commit(snapshot=SnapshotRecord(version, file, {version: file}, {file: "0" * 64})))
            (folder / SNAPSHOTS_FOLDER).mkdir(exist_ok=True)
            (folder / SNAPSHOTS_FOLDER / file).write_bytes(b"x" * 1000)
    return folder


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def by_name(root: Path) -> Mapping[str, Entry]:
    entries = list_runs(root)
    return {one.name: one for entry in entries for one in (entry, *entry.runs)}


# ---- states -------------------------------------------------------------------------------------------------------


def test_nothing(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == ()
    assert list_runs(tmp_path / "nowhere") == ()
    (tmp_path / "file").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    assert list_runs(tmp_path) == ()
    assert list_runs(tmp_path / "file") == ()


def test_every_state_of_a_run(tmp_path: Path) -> None:
    begun(tmp_path / "stopped", 3)
    begun(tmp_path / "done", 7, ended=True)
    begun(tmp_path / "no-result", 7, ended=True)
    (tmp_path / "no-result" / "result.json").unlink()
    begun(tmp_path / "working", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "died-at-once").mkdir()
    SqliteJournal(tmp_path / "died-at-once" / "journal.db").close()
    (tmp_path / "died-earlier").mkdir()
    (tmp_path / "died-earlier" / "journal.db").touch()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "journal.db").write_bytes(b"x" * 5000)
    with only_one(tmp_path / "working"):
        found = by_name(tmp_path)
    states = {name: entry.state for name, entry in found.items()}
    assert states == {
        "stopped": "interrupted", "done": "finished", "no-result": "interrupted", "working": "running",
        "empty": "not begun", "died-at-once": "not begun", "died-earlier": "not begun", "garbage": "damaged",
    }  # fmt: skip
    stopped = found["stopped"]
    assert (stopped.kind, stopped.step, stopped.stop, stopped.snapshot_version) == ("run", 3, 7, 3)
    assert (stopped.run_id, stopped.advice) == ("1234567890", "atoll resume stopped")
    assert stopped.size_bytes == sum(path.stat().st_size for path in (tmp_path / "stopped").rglob("*.*"))
    assert found["no-result"].advice == "atoll resume no-result", "its end is done again"
    assert found["working"].advice == found["done"].advice == ""
    assert found["working"].step == 2
    assert found["empty"].advice == "holds nothing: may be deleted"
    assert "file is not a database" in found["garbage"].problem
    assert found["garbage"].advice


def test_rows_and_files_that_wait_for_the_tracking_service(tmp_path: Path) -> None:
    rows = tuple(("loss", step, 0.5, 1) for step in range(3))
    begun(tmp_path / "rows", 7, ended=True, rows=rows)
    begun(tmp_path / "files", 7, ended=True, artifacts=(Artifact("a.safetensors", "checkpoints"),))
    found = by_name(tmp_path)
    assert [(found[name].unpublished_rows, found[name].unpublished_files) for name in ("rows", "files")] == [
        (3, 0), (0, 1),
    ]  # fmt: skip
    assert {found[name].state for name in found} == {"finished"}
    assert found["rows"].advice == "atoll resume rows"
    assert found["files"].advice == "atoll resume files"


def test_the_one_written_last_is_last(tmp_path: Path) -> None:
    for name, age_s in (("a", 10), ("b", 30), ("c", 20)):
        folder = begun(tmp_path / name, 3)
        for path in [*folder.rglob("*"), folder]:
            os.utime(path, (1e9 - age_s, 1e9 - age_s))
    entries = list_runs(tmp_path)
    assert [entry.name for entry in entries] == ["b", "c", "a"]
    assert entries[-1].written_s == 1e9 - 10


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "good", 3)
    begun(tmp_path / "bad", 3)

    def broken(folder: Path) -> bool:
        if folder.name == "bad":
            raise PermissionError(13, "Permission denied")
        return False

    monkeypatch.setattr("atoll.experiment.listing.is_held", broken)
    found = by_name(tmp_path)
    assert (found["good"].state, found["bad"].state) == ("interrupted", "damaged")
    assert "Permission denied" in found["bad"].problem


def test_a_run_that_keeps_itself_in_a_shared_store(tmp_path: Path) -> None:
    """Its folder has a copy of the journal from when it stopped here last; pruning leaves all of it alone."""
    (tmp_path / "afar").mkdir()
    copied = begun(tmp_path / "copied", 7, ended=True)
    old = leftovers(copied)
    for name in ("afar", "copied"):
        (tmp_path / name / STORE_FILE).write_text(f"memory://runs/{name}")
    found = by_name(tmp_path)
    assert (found["afar"].state, found["afar"].advice) == ("elsewhere", "atoll resume afar")
    assert (found["copied"].state, found["copied"].step) == ("finished", 7)
    assert prune_runs(tmp_path).files == 0
    assert all(path.exists() for path in old)


def test_plain_values(tmp_path: Path) -> None:
    begun(tmp_path / "stopped", 3)
    comparison(tmp_path / "compared", "spec")
    assert [one["name"] for one in json.loads(json.dumps([entry.as_dict() for entry in list_runs(tmp_path)]))]


# ---- comparisons --------------------------------------------------------------------------------------------------


def comparison(folder: Path, *parts: str) -> Path:
    """A comparison of two arms over one seed: `spec`, `id` (its comparison.json), `report`."""
    folder.mkdir(exist_ok=True)
    if "spec" in parts:
        compared = {"seeds": [1], "arms": {"one": {}, "two": {"schedule.buffer_goal": 1}}, "baseline": "one"}
        (folder / "spec.yaml").write_text(sp.dump(sp.parse(tiny(comparison=compared))))
    if "id" in parts:
        (folder / "comparison.json").write_text(json.dumps({"name": "tiny", "parent_run_id": "abcd"}))
    if "report" in parts:
        (folder / "comparison").mkdir()
        (folder / "comparison" / "comparison.html").write_text("<html>")
    return folder


def test_every_state_of_a_comparison(tmp_path: Path) -> None:
    comparison(tmp_path / "early", "spec")
    stopped = comparison(tmp_path / "stopped", "spec", "id")
    begun(stopped / "one-s1", 7, ended=True)
    begun(stopped / "two-s1", 3)
    done = comparison(tmp_path / "done", "spec", "id", "report")
    begun(done / "one-s1", 7, ended=True, rows=(("loss", 1, 0.5, 1),))
    begun(done / "two-s1", 7, ended=True)
    found = by_name(tmp_path)
    assert found["early"].state == "not begun"
    entry = found["stopped"]
    assert (entry.kind, entry.state, entry.step, entry.stop) == ("comparison", "interrupted", 1, 2)
    assert (entry.run_id, entry.advice) == ("abcd", "atoll resume stopped")
    assert {run.name: run.state for run in entry.runs} == {
        "stopped/one-s1": "finished", "stopped/two-s1": "interrupted",
    }  # fmt: skip
    assert all(run.advice == "" for run in entry.runs), "the comparison goes on, and its runs with it"
    assert entry.size_bytes > sum(run.size_bytes for run in entry.runs)
    entry = found["done"]
    assert (entry.state, entry.step, entry.unpublished_rows, entry.advice) == ("finished", 2, 1, "atoll resume done")
    with only_one(tmp_path / "stopped"):
        assert by_name(tmp_path)["stopped"].state == "running"


def test_a_comparison_that_lost_its_file_leaves_its_runs(tmp_path: Path) -> None:
    begun(comparison(tmp_path / "lost", "spec") / "two-s1", 3)
    begun(comparison(tmp_path / "bad", "id") / "two-s1", 3)
    (tmp_path / "bad" / "comparison.json").write_text("{")
    (comparison(tmp_path / "worse", "id") / "two-s1").mkdir()
    (tmp_path / "worse" / "two-s1" / "journal.db").write_bytes(b"x" * 500)
    found = by_name(tmp_path)
    assert found["lost/two-s1"].advice == "atoll resume lost/two-s1"
    assert found["bad"].state == "damaged"
    assert "comparison.json" in found["bad"].problem
    assert found["bad/two-s1"].advice == "atoll resume bad/two-s1"
    assert (found["worse"].state, found["worse/two-s1"].state) == ("interrupted", "damaged")


# ---- looking ------------------------------------------------------------------------------------------------------


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    begun(tmp_path / "stopped", 3)
    begun(comparison(tmp_path / "compared", "spec", "id") / "one-s1", 7, ended=True)
    (tmp_path / "empty").mkdir()
    with SqliteJournal(begun(tmp_path / "live", 3) / "journal.db") as journal, only_one(tmp_path / "live"):
        journal.claim()
        journal.commit(Commit(steps=(StepRecord(3, 3, "0"),)))
        before = contents(tmp_path)
        folders = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_dir()}
        found = by_name(tmp_path)
        assert found["live"].step == 4
        # The index of a log that is written now holds the marks of who reads.
        differ = {name for name, value in contents(tmp_path).items() if before.get(name) != value}
        assert differ <= {str(tmp_path / "live" / "journal.db-shm")}
        assert {path: path.stat().st_mtime_ns for path in folders} == folders
        assert contents(tmp_path).keys() == before.keys()


# ---- making room --------------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[Path]:
    files = [
        folder / "timeline-1.parquet.tmp",
        folder / SNAPSHOTS_FOLDER / f"{FILE.format(9)}.1234.tmp",
        folder / SNAPSHOTS_FOLDER / FILE.format(9),
    ]
    for file in files:
        file.write_bytes(b"y" * 10)
    return files


def snapshots(folder: Path) -> list[str]:
    with SqliteJournal(folder / "journal.db", is_readonly=True) as journal:
        named = {name for record in journal.snapshots() for name in record.hashes}
    there = sorted(path.name for path in (folder / SNAPSHOTS_FOLDER).iterdir())
    assert there == sorted(named), "the journal names what is there, and nothing else"
    return there


def test_pruning_removes_what_nobody_needs(tmp_path: Path) -> None:
    stopped, done = begun(tmp_path / "stopped", 3), begun(tmp_path / "done", 7, ended=True)
    owing = begun(tmp_path / "owing", 7, ended=True, rows=(("loss", 1, 0.5, 1),))
    inner = begun(comparison(tmp_path / "compared", "spec", "id") / "one-s1", 7, ended=True)
    own = stopped / SNAPSHOTS_FOLDER / "mine.txt"
    (tmp_path / "empty").mkdir()
    old = [path for folder in (stopped, done, owing, inner) for path in leftovers(folder)]
    found = prune_runs(tmp_path)
    assert not any(path.exists() for path in old)
    assert (found.files, found.freed_bytes) == (12 + 4, 120 + 4 * 1000)
    assert sorted(found.shortened) == ["compared/one-s1", "done"]
    assert found.skipped == ()
    assert snapshots(stopped) == [FILE.format(2), FILE.format(3)]
    assert snapshots(owing) == [FILE.format(6), FILE.format(7)], "publishing what is left begins at its end"
    assert snapshots(done) == snapshots(inner) == []
    assert not any((tmp_path / "empty").iterdir())
    assert by_name(tmp_path)["done"].snapshot_version is None
    own.write_text("not ours")
    again = prune_runs(tmp_path)
    assert (again.files, again.freed_bytes, again.shortened) == (0, 0, ())
    assert own.exists()


def test_pruning_leaves_alone_what_is_worked_on_or_damaged(tmp_path: Path) -> None:
    working, bad = begun(tmp_path / "working", 7, ended=True), begun(tmp_path / "bad", 7, ended=True)
    one = begun(comparison(tmp_path / "compared", "spec", "id") / "one-s1", 7, ended=True)
    two = begun(tmp_path / "compared" / "two-s1", 3)
    old = [path for folder in (working, bad, one, two) for path in leftovers(folder)]
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "journal.db").write_bytes(b"x" * 5000)
    with SqliteJournal(bad / "journal.db") as journal:
        journal._db.execute("DELETE FROM steps WHERE step = 2")
    with only_one(working), only_one(two):
        found = prune_runs(tmp_path)
    assert sorted(found.skipped) == ["bad", "compared", "garbage", "working"]
    assert (found.files, found.shortened) == (0, ())
    assert all(path.exists() for path in old)


@pytest.fixture
def finished(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})  # a second per run
    return run(spec_of(mlflow_uri), key="short", runs_folder=tmp_path / "runs")


def spec_of(uri: str, **sections) -> dict:
    optimizer = {"kind": "sgd", "lr": 1.0, "momentum": 0.9}
    aggregation = {"kind": "fedbuff", "server_optimizer": optimizer}
    return tiny(tracking={"uri": uri}, aggregation=aggregation, **sections)


def test_a_pruned_run_made_longer_has_the_right_bits(finished: Run, mlflow_uri: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    found = prune_runs(root)
    assert found.shortened == ("short",)
    assert snapshots(root / "short") == []
    first = finished.history()
    assert resume("short", runs_folder=root) == finished, "nothing to do, nothing done"
    longer = resume("short", "stop.server_steps=12", runs_folder=root)
    expected = run(spec_of(mlflow_uri, stop={"server_steps": 12}), runs_folder=tmp_path / "others")
    assert (longer.model_digest, longer.timeline_digest) == (expected.model_digest, expected.timeline_digest)
    assert (longer.client_updates, longer.run_id) == (expected.client_updates, finished.run_id)
    after, wanted = longer.history(), expected.history()
    for key in wanted:
        # Version 7 was evaluated as the end of the shorter run; the first row of a step stands, wall_* ones too.
        if not key.startswith(("wall_", "eval/")):
            assert after[key] == wanted[key], key
        assert after[key][: len(first[key])] == first[key], key
    assert snapshots(root / "short")
    assert by_name(root)["short"].snapshot_version == 12


def test_a_pruned_run_that_another_machine_computed_is_not_made_longer(finished: Run, tmp_path: Path) -> None:
    """Its steps are computed again, and checked against the hashes of those that were committed."""
    root = tmp_path / "runs"
    prune_runs(root)
    with SqliteJournal(root / "short" / "journal.db") as journal:
        journal._db.execute("UPDATE steps SET sum_sha = 'f' WHERE step = 2")
    with pytest.raises(Exception, match="server step 2 was committed with exact sum f and came again"):
        resume("short", "stop.server_steps=12", runs_folder=root)
    assert by_name(root)["short"].state == "interrupted"
    shutil.rmtree(root / "short")
    with pytest.raises(SpecError, match="none yet"):
        resume("short", runs_folder=root)
