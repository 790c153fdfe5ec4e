"""Folders that hold several runs: what they say of themselves, and the MLflow run above their runs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from atoll import spec as sp
from atoll.errors import InfrastructureError, MembersFailed, Problem, SpecError
from atoll.experiment.places import only_one
from atoll.experiment.records import COMPARISON_FILE, JOURNAL_FILE, STORE_FILE, short
from atoll.experiment.running import keyed_folder, new_folder
from atoll.experiment.storing import check_store
from atoll.runtime.store import LocalFiles
from atoll.tracking import MlflowTracker, RunInfo, preflight

__all__ = ["begin_parent", "begun_folder", "named_folder", "not_all_finished"]


def named_folder(key: str | None, spec: sp.Spec, runs_folder: Path) -> tuple[Path | None, bool]:
    """(the folder that a key names, whether this very spec was begun there); (None, False) without a key.

    Raises:
        SpecError: a single run has the key, or another spec was begun under it.
    """
    if key is None:
        return None, False
    folder = keyed_folder(key, runs_folder)
    if (folder / COMPARISON_FILE).is_file():
        _check_same(folder, spec)
        return folder, True
    if any((folder / name).is_file() for name in (JOURNAL_FILE, STORE_FILE)):
        raise SpecError([Problem("key", repr(key), "a key that is free", "a run has it")])
    return folder, False


@contextmanager
def begun_folder(folder: Path | None, spec: sp.Spec, runs_folder: Path) -> Iterator[Path]:
    """The folder of several runs that begin now, a new one if None, held by this process and with the spec in it.

    Raises:
        SpecError: the stores cannot be used.
    """
    check_store(spec)
    preflight(spec.tracking.uri)
    folder = new_folder(spec, runs_folder) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        LocalFiles(folder).write("spec.yaml", sp.dump(spec).encode())
        yield folder


def _check_same(folder: Path, spec: sp.Spec) -> None:
    """Only `tracking` may differ from what the folder was begun with."""
    before, now = sp.to_dict(sp.load(folder / "spec.yaml")), sp.to_dict(spec)
    other = [name for name in now if name != "tracking" and now[name] != before[name]]
    if other:
        rule, why = f"the {', '.join(other)} that it was begun with", "a comparison is of one file"
        raise SpecError([Problem("key", repr(folder.name), rule, why, "take another key")])


def begin_parent(folder: Path, spec: sp.Spec, tracker: MlflowTracker, num_runs: int | None = None) -> str:
    """Finds or makes the MLflow run above the runs of `folder`; returns its id.

    Args:
        folder: of a comparison, an ensemble or a sweep.
        spec: of all of it.
        tracker: of the parent run.
        num_runs: how many runs there will be, where the comparison's arms and seeds do not say it.
    """
    path, known = folder / COMPARISON_FILE, {}
    if path.is_file():
        known = json.loads(path.read_text())
    facts = {"name": spec.name, "run_key": f"{folder.name}-{secrets.token_hex(4)}", "parent_run_id": "", **known}
    if num_runs is not None:
        facts["num_runs"] = num_runs
    LocalFiles(folder).write(COMPARISON_FILE, json.dumps(facts).encode())
    try:
        parent_id = tracker.start(RunInfo(spec.tracking.experiment or spec.name, spec.name, facts["run_key"]))
    except InfrastructureError:
        if not facts["parent_run_id"]:
            raise
        return str(facts["parent_run_id"])  # the service is away: the runs' rows wait in their journals
    LocalFiles(folder).write(COMPARISON_FILE, json.dumps({**facts, "parent_run_id": parent_id}).encode())
    return parent_id


def not_all_finished(folder: Path, failed: Mapping[str, BaseException], total: int) -> MembersFailed:
    """What to tell where some of several runs did not finish: each with its reason, and how to go on with them."""
    stories = []
    for name, error in failed.items():
        first, *more = str(error).splitlines() or [type(error).__name__]
        stories.append("\n".join([f"{name}: {first}", *(f"  {line}" for line in more)]))
    found = MembersFailed(f"{len(failed)} of {total} runs did not finish; the others did.\n" + "\n".join(stories))
    for cause in failed.values():
        for note in getattr(cause, "__notes__", ()):
            if "replay" in note:
                found.add_note(note)
    found.add_note(f"When the cause is gone, these go on alone: atoll resume {short(folder)}")
    return found
