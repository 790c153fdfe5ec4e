"""`atoll tune` measures, the spec names the table, and what the table says is pinned in the resolved spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import atoll
from atoll import spec as sp
from atoll.errors import ClientWorkError, SpecError
from atoll.experiment import tune, tuning

SPEC = {
    "name": "tiny",
    "data": {"kind": "synthetic", "features": 4, "examples": {"kind": "constant", "count": 8}},
    "population": {"size": 50, "devices": {"kind": "constant", "value_s": 1}},
    "model": {"kind": "mlp", "hidden": [4]},
    "client": {"lr": 0.1, "batch_size": 4},
    "schedule": {"kind": "sync", "cohort": 10},
    "aggregation": {"kind": "fedavg"},
    "evaluation": {"metrics": ["loss"]},
    "stop": {"server_steps": 2},
    "runtime": {"kind": "inline"},
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well costs are measured is not what is tested here."""
    monkeypatch.setattr("atoll.experiment.tuning._SPREAD_S", 0.05)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "profile.json"
    tune(SPEC, path=path)
    return path


def test_every_kernel_of_the_model_is_measured_and_the_best_is_kept(tmp_path: Path) -> None:
    seen = []
    found = tune(SPEC, path=tmp_path / "p.json", on_timing=seen.append)
    assert {one.kernel for one in found.timings} == {"compiled", "lanes"}
    assert sorted(seen, key=lambda one: -one.client_updates_per_s) == list(found.timings)
    assert found.best.client_updates_per_s == max(one.client_updates_per_s for one in seen) > 0
    (entry,) = json.loads((tmp_path / "p.json").read_text())["profile"]
    assert (entry["kernel"], entry["lanes"]) == (found.best.kernel, found.best.lanes)


def test_what_a_block_costs_is_measured_too(table: Path) -> None:
    (entry,) = json.loads(table.read_text())["profile"]
    costs = [entry[name] for name in ("block_s", "update_s", "example_s", "evaluation_s")]
    assert all(value >= 0 for value in costs)
    assert entry["evaluation_s"] > 0
    assert entry["machine"]
    # ten clients of 8 examples and one epoch in every block
    per_update_s = entry["block_s"] / min(entry["lanes"], 10) + entry["update_s"] + 8 * entry["example_s"]
    # one is of passes in caches, the other of blocks trained once, perhaps on a busy machine: units and factors
    assert 0.02 < per_update_s * entry["client_updates_per_s"] < 50, "what is said of blocks and of updates agrees"


def test_blocks_that_do_not_fit_end_the_widening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = tuning.train_blocks

    def tight(learner, blocks, versions):
        if max(block.num_lanes for block in blocks) > 8 and type(learner).__name__ == "Learner":
            raise ClientWorkError("it did not fit", is_out_of_memory=True)
        return train(learner, blocks, versions)

    monkeypatch.setattr(tuning, "train_blocks", tight)
    found = tune(SPEC, path=tmp_path / "p.json")
    assert [one.lanes for one in found.timings if one.kernel == "lanes"] == [8]
    with pytest.raises(ClientWorkError, match="did not fit"):
        tune(SPEC, "runtime.kernel=lanes", "runtime.lanes=16", path=tmp_path / "p.json")


def test_a_table_keeps_other_models(table: Path, tmp_path: Path) -> None:
    copy = tmp_path / "p.json"
    copy.write_bytes(table.read_bytes())
    tune(SPEC, "model.hidden=[5]", "runtime.kernel=lanes", "runtime.lanes=8", path=copy)
    tune(SPEC, "model.hidden=[5]", "runtime.kernel=compiled", "runtime.lanes=16", path=copy)
    old, new = json.loads(copy.read_text())["profile"]
    assert old == json.loads(table.read_text())["profile"][0]
    assert (new["kernel"], new["lanes"]) == ("compiled", 16)


def test_what_the_table_says_is_pinned(table: Path) -> None:
    (entry,) = json.loads(table.read_text())["profile"]
    report = atoll.plan(SPEC, f"runtime.profile={table}")
    assert (report.spec.runtime.kernel, report.spec.runtime.lanes) == (entry["kernel"], entry["lanes"])
    explicit = atoll.plan(SPEC, f"runtime.kernel={entry['kernel']}", f"runtime.lanes={entry['lanes']}")
    assert report.plan_digest == explicit.plan_digest
    chosen = atoll.plan(SPEC, f"runtime.profile={table}", "runtime.lanes=7")
    assert chosen.spec.runtime.lanes == 7, "what the spec says itself stands"


def test_a_model_that_the_table_does_not_know_is_refused(table: Path) -> None:
    with pytest.raises(SpecError, match=r"runtime\.profile(.|\n)*a table with this model(.|\n)*atoll tune"):
        atoll.plan(SPEC, f"runtime.profile={table}", "model.hidden=[9]")


WRONG = '{"profile": [{"model": 1, "device_class": "cpu", "kernel": "lanes", "lanes": 2}]}'


@pytest.mark.parametrize("text", ["", "[]", '{"profile": [{"model": "x"}]}', WRONG])
def test_a_broken_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(SpecError, match=r"runtime\.profile"):
        atoll.plan(SPEC, f"runtime.profile={tmp_path / 'p.json'}")


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="FileNotFoundError"):
        atoll.plan(SPEC, f"runtime.profile={tmp_path / 'p.json'}")


def test_a_run_goes_on_with_what_was_pinned(table: Path, tmp_path: Path) -> None:
    overrides = [f"runtime.profile={table}", f"tracking.uri=sqlite:///{tmp_path / 'm.db'}"]
    run = atoll.run(SPEC, *overrides, key="one", runs_folder=tmp_path)
    assert sp.load(Path(run.folder) / "spec.yaml").runtime.kernel != "auto"
    again = atoll.run(SPEC, *overrides, key="one", runs_folder=tmp_path)
    assert again.run_id == run.run_id
