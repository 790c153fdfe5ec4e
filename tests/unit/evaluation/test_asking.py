"""Asking a version of rows: of its tables only what the rows need, and the same metrics with torch and without."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from atoll.evaluation import Evaluator, LaneForward, outputs
from atoll.evaluation.asking import Examples
from atoll.learner.programs import has_program
from atoll.messages import ModelVersion, VersionedTable
from atoll.models import PlainModel
from lane_kit import KINDS, Kind, by_name, gather_of

PLAIN = [kind for kind in KINDS if has_program(kind.settings)]


def arrays_of(kind: Kind, rows: int = 400) -> dict[str, np.ndarray]:
    found = gather_of(kind.inputs)(np.arange(1), np.arange(rows)[None])
    return {name: array[0] for name, array in found.items()}


def plain(kind: Kind) -> PlainModel:
    return PlainModel(kind.settings, kind.inputs)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_metrics_are_those_with_torch(kind: Kind) -> None:
    arrays, client = arrays_of(kind), np.arange(400) // 20
    metrics = ("loss", "accuracy", *(("auc", "normalized_entropy") if kind.inputs.task == "binary" else ()))
    groups = {"groups": client % 3, "group_names": ("a", "b", "c")}
    found, want = (
        Evaluator(model, arrays, client, client + 1, metrics, batch_rows=150, **groups).evaluate(kind.version()).metrics
        for model in (plain(kind), LaneForward(kind.model()))
    )
    # where examples are equal, rounding turns a tie into an order
    loose = {key for key in want if key.endswith("auc")} if kind.inputs.x_shape == (0,) else set()
    assert found == {key: pytest.approx(want[key], abs=1e-3 if key in loose else 1e-6) for key in want}
    assert "eval/client_loss_p50" in found
    assert "eval/cluster/a/loss" in found


class Counted:
    """A table that can be read by rows only, and notes which."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.asked = table, []

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows)
        return self.table[rows]


@pytest.mark.parametrize("name", ["mlp_sparse", "wide_deep_shared", "dlrm_history"])
def test_only_the_rows_that_examples_need_are_read_once(name: str) -> None:
    kind = by_name[name]
    arrays, version = arrays_of(kind, 30), kind.version()
    (table,) = version.tables
    needed = np.unique(arrays["c"] + np.array(kind.model().shape.tables[0].offsets))
    models = [LaneForward(kind.model()), *([plain(kind)] if kind in PLAIN else [])]
    examples = Examples(kind.model().shape, arrays, 7)
    for model in models:
        counted = Counted(table)
        parts = list(examples.ask(model, ModelVersion(0, version.dense, (counted,))))
        (rows,) = counted.asked
        np.testing.assert_array_equal(rows, needed)
        assert [part.start for part, _ in parts] == [0, 7, 14, 21, 28]
        want = outputs(kind.model(), version, arrays, kind="logits")
        np.testing.assert_allclose(np.concatenate([said for _, said in parts]), want, atol=1e-5, rtol=1e-5)


def test_an_older_version_is_asked_of_its_own_rows() -> None:
    kind = by_name["logistic_sparse"]
    arrays, version = arrays_of(kind), kind.version()
    old = VersionedTable(version.tables[0].copy())
    old.stepped(np.arange(5), np.full((5, 1), 9, dtype=np.float32))
    examples = Examples(plain(kind).shape, arrays)
    found, want = (
        np.concatenate([said for _, said in examples.ask(plain(kind), ModelVersion(0, version.dense, tables))])
        for tables in ((old,), version.tables)
    )
    np.testing.assert_array_equal(found, want)


def test_a_code_that_no_column_has_is_not_taken_for_another() -> None:
    kind = by_name["logistic_sparse"]
    arrays = arrays_of(kind)
    arrays["c"][3, 1] = 300
    with pytest.raises(IndexError):
        Examples(plain(kind).shape, arrays)


def test_the_room_loads_torch_for_lanes_only() -> None:
    code = "import sys, atoll.evaluation as e; e.Evaluator; a = 'torch' in sys.modules; e.outputs; "
    code += "print(a, 'torch' in sys.modules, [m for m in ('scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["False", "True"]
