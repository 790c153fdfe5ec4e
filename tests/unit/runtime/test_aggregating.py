"""The aggregator with its snapshots: what is saved, what is kept, and that who goes on takes the same steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.aggregation import (
    Adam,
    Aggregator,
    AggregatorState,
    Rule,
    ServerOptimizer,
    ServerSgd,
    Step,
)
from atoll.messages import BlockResult, ModelVersion, PartialSum, RowSum, model_digest
from atoll.plan import Grid, StepPlan
from atoll.runtime.aggregating import DurableAggregator
from atoll.runtime.store import LocalFiles, SnapshotRecord

GRID = Grid.for_plan(delta_bound=16.0, weight_bound=64.0)
TABLES = {"dense": (), "tables": ((6, 2), (3, 4))}
OPTIMIZERS = {
    "sgd": ServerSgd(0.5),
    "momentum": ServerSgd(0.5, 0.9),
    "adam": Adam(0.1),
}
SIZE, STOP = 5, 12


def step_plan(step: int, start_versions: tuple[int, ...]) -> StepPlan:
    return StepPlan(
        step=step, closed_us=step, fill_us=1, num_lanes=2, divisor=2.0, staleness_mean=0.0, staleness_p95=0.0,
        num_failed=0, wasted_us=0, used_us=1, start_versions=np.array(start_versions, np.int32),
        start_weights=np.full(len(start_versions), 2.0 / len(start_versions)),
    )  # fmt: skip


def result(step: int, tables: tuple[tuple[int, int], ...]) -> BlockResult:
    """Both lanes of a step in one block; some rows of a table only."""
    draw = np.random.default_rng(step)

    def exact(*shape: int) -> np.ndarray:
        return np.rint(draw.standard_normal(shape) * GRID.scale).astype(np.int64)

    rows = [np.sort(draw.choice(count, size=2, replace=False)) for count, _ in tables]
    sums = tuple(RowSum(found, exact(2, dim)) for found, (_, dim) in zip(rows, tables, strict=True))
    partial = PartialSum(step, 2, 0, 0, exact(SIZE), sums, np.array([2], np.int64))
    return BlockResult((step,), (partial,))


class Lab:
    """Makes aggregators over one folder, one epoch after the other."""

    def __init__(self, folder: Path, *, optimizer: ServerOptimizer | None = None, form="delta", tables=()) -> None:
        self.files, self.tables = LocalFiles(folder), tables
        self.rule = Rule(optimizer or ServerSgd(0.5), form=form)
        self.epoch = 0
        self.inner: Aggregator

    def make(self, state: AggregatorState | None) -> Aggregator:
        shapes = [(SIZE,), *self.tables]
        dense, *tables = [np.linspace(-1, 1, int(np.prod(s)), dtype=np.float32).reshape(s) for s in shapes]
        self.inner = Aggregator(
            ModelVersion(0, dense, tuple(tables)) if state is None else state, self.rule, GRID, STOP
        )
        return self.inner

    def open(self, *records: SnapshotRecord) -> DurableAggregator:
        self.epoch += 1
        return DurableAggregator(self.make, lambda: self.files, records, self.epoch)

    def close(self, durable: DurableAggregator, first: int, end: int, lag: int = 0) -> list[Step]:
        """Closes steps [first, end), each started on the version `lag` steps before its own."""
        durable.expect([step_plan(step, (max(step - lag, 0),)) for step in range(first, end)])
        steps = [found for step in range(first, end) for found in durable.add(result(step, self.tables))]
        assert [found.plan.step for found in steps] == list(range(first, end))
        return steps

    @property
    def kept(self) -> list[int]:
        return sorted(self.inner._kept)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


# ---- what is saved ------------------------------------------------------------------------------------------------


def test_a_run_begins_without_a_snapshot(lab: Lab) -> None:
    durable = lab.open()
    assert durable.taken is None
    assert [model.version for model in durable.take_models()] == [0]
    assert durable.take_models() == [], "once: they are big"
    assert lab.files.names() == []


def test_saving_a_version_twice_writes_one_file(lab: Lab) -> None:
    durable = lab.open()
    lab.close(durable, 0, 2)
    record, seconds = durable.save([0, 1, 2])
    assert (record.version, sorted(record.version_files), seconds > 0) == (2, [0, 1, 2], True)
    (name,) = lab.files.names()
    before = (Path(lab.files.place) / name).stat().st_mtime_ns
    assert durable.save([2]) == (record, 0.0)
    assert lab.files.names() == [name]
    assert (Path(lab.files.place) / name).stat().st_mtime_ns == before
    lab.close(durable, 2, 3)
    assert durable.save([2, 3])[0].version == 3
    assert len(lab.files.names()) == 2


def test_what_was_taken_up_is_not_written_again(lab: Lab) -> None:
    first = lab.open()
    lab.close(first, 0, 2)
    record, _ = first.save([0, 1, 2])
    second = lab.open(record)
    assert second.taken == record
    assert second.save([0, 1, 2]) == (record, 0.0)
    assert len(lab.files.names()) == 1


def test_versions_that_the_coordinator_has_not_heard_of_are_saved_too(lab: Lab) -> None:
    """It hears of closed steps later than they close; tasks in flight may have started from any of them."""
    durable = lab.open()
    lab.close(durable, 0, 6)
    record, _ = durable.save([0, 3])
    assert sorted(record.version_files) == [0, 3, 4, 5, 6]
    again = lab.open(record)
    assert [model.version for model in again.take_models()] == [0, 3, 4, 5, 6]


def test_a_version_that_nobody_knows_any_more_leaves_the_snapshot(lab: Lab) -> None:
    durable = lab.open()
    lab.close(durable, 0, 3)
    first, _ = durable.save([0, 1, 2, 3])
    lab.close(durable, 3, 5)
    second, _ = durable.save([2, 4, 5])
    assert sorted(second.version_files) == [2, 4, 5]
    assert second.version_files[2] == first.state_file, "version 2 lies where it lay"
    assert set(second.hashes) == {first.state_file, second.state_file}
    lab.close(durable, 5, 6)
    third, _ = durable.save([5, 6])
    assert first.state_file not in third.hashes


# ---- what memory keeps --------------------------------------------------------------------------------------------


def test_in_delta_form_memory_lets_go_of_what_is_saved(lab: Lab) -> None:
    durable = lab.open()
    lab.close(durable, 0, 4)
    assert lab.kept == [0, 1, 2, 3, 4]
    durable.save([0, 1, 2, 3, 4])
    assert lab.kept == []
    lab.close(durable, 4, 6)
    assert lab.kept == [5, 6]
    record, _ = durable.save([1, 4, 5, 6])
    assert sorted(record.version_files) == [1, 4, 5, 6], "what memory let go of is in the files"
    lab.open(record)
    assert lab.kept == [], "of what was taken up too"


def test_in_mixing_form_memory_keeps_what_steps_start_from(tmp_path: Path) -> None:
    lab = Lab(tmp_path, form="mixing")
    durable = lab.open()
    lab.close(durable, 0, 4, lag=2)
    durable.save([0, 1, 2, 3, 4])
    assert lab.kept == [0, 1, 2, 3, 4]
    lab.close(durable, 4, 6, lag=3)  # starts from saved versions: would raise where they are gone
    durable.forget([4, 6])
    assert lab.kept == [4, 6]
    record, _ = durable.save([4, 6])
    lab.open(record)
    assert lab.kept == [4, 6]


# ---- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("form", ["delta", "mixing"])
def test_who_goes_on_takes_the_same_steps(tmp_path: Path, tables, optimizer: ServerOptimizer, form: str) -> None:
    """From every version, and once more from the snapshot of who went on."""
    whole = Lab(tmp_path / "whole", optimizer=optimizer, form=form, tables=tables)
    durable = whole.open()
    (start,) = durable.take_models()
    expected = whole.close(durable, 0, 8, lag=2)
    for cut in range(1, 8):
        lab = Lab(tmp_path / str(cut), optimizer=optimizer, form=form, tables=tables)
        durable = lab.open()
        steps = lab.close(durable, 0, cut, lag=2)
        record, _ = durable.save(range(cut + 1))
        for first in range(cut, 8):
            durable = lab.open(record)
            assert [model_digest(model) for model in durable.take_models()] == [
                model_digest(model) for model in (start, *(step.model for step in steps))
            ]
            steps += lab.close(durable, first, first + 1, lag=2)
            record, _ = durable.save(range(first + 2))
        assert [model_digest(step.model) for step in steps] == [model_digest(step.model) for step in expected]
        assert [step.sum_sha for step in steps] == [step.sum_sha for step in expected]
        assert [step.update_norm for step in steps] == [step.update_norm for step in expected]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_without_the_optimizers_state_the_steps_would_differ(tmp_path: Path, optimizer: str) -> None:
    """What the test above would notice."""
    lab = Lab(tmp_path, optimizer=OPTIMIZERS[optimizer])
    durable = lab.open()
    lab.close(durable, 0, 3)
    record, _ = durable.save([3])
    (right,) = lab.close(lab.open(record), 3, 4)
    forgetful = lab.open(record)
    lab.inner._states = [lab.rule.optimizer.init(lab.inner.model.dense)]
    (wrong,) = lab.close(forgetful, 3, 4)
    assert model_digest(right.model) != model_digest(wrong.model)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_snapshot_that_cannot_be_read_is_passed_over(lab: Lab, damage: str, caplog) -> None:
    durable = lab.open()
    records = []
    for version in (1, 2, 3):
        lab.close(durable, version - 1, version)
        records.insert(0, durable.save(range(version + 1))[0])
    newest = Path(lab.files.place) / records[0].state_file
    if damage == "missing":
        newest.unlink()
    else:
        data = bytearray(newest.read_bytes())
        data[-1] ^= 1
        newest.write_bytes(data)
    again = lab.open(*records)
    assert again.taken == records[1]
    assert "snapshot of version 3" in caplog.text
    assert "an older one is taken" in caplog.text
    lab.close(again, 2, 3)
    record, _ = again.save([2, 3])
    assert record.state_file == "version-00000003-epoch-2.safetensors", "the damaged file stays as it is"
    assert lab.open(record).taken == record


def test_without_any_that_can_be_read_it_begins_anew(lab: Lab) -> None:
    durable = lab.open()
    lab.close(durable, 0, 1)
    record, _ = durable.save([0, 1])
    lab.files.delete(record.state_file)
    again = lab.open(record)
    assert again.taken is None
    assert [model.version for model in again.take_models()] == [0]
    lab.close(again, 0, 1)
    assert again.save([0, 1])[0].version == 1


def test_holding_moves_on_and_closes_what_is_full(lab: Lab) -> None:
    durable = lab.open()
    durable.expect([step_plan(step, (0,)) for step in range(3)])
    assert durable.hold_after(1) == []
    closed = [step.plan.step for number in range(3) for step in durable.add(result(number, ()))]
    assert closed == [0]
    assert [step.plan.step for step in durable.hold_after(3)] == [1, 2]
