"""Rules that rows and run descriptions keep before anything reaches a store."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.tracking import Row, RunInfo, finite_rows, flatten_params
from atoll.tracking.rows import check_run, check_tags


def test_values_that_are_not_finite_are_left_out_and_counted():
    rows = [Row("a", 1, 0.5, 9), Row("a", 2, math.nan, 9), Row("a", 3, math.inf, 9), Row("a", 4, -math.inf, 9)]
    assert finite_rows(rows) == ([Row("a", 1, 0.5, 9)], 3)


def test_numpy_values_become_builtin_floats():
    kept, _ = finite_rows([Row("a", 1, np.float32(0.5), 9)])
    assert type(kept[0].value) is float


@pytest.mark.parametrize("key", ["", "acc@1", "a//b", "../a", "/a", "a/", ".", "a" * 251, "é", "a/../b", None, 3])
def test_names_that_mlflow_refuses_or_moves_are_refused(key):
    with pytest.raises(SpecError):
        finite_rows([Row(key, 0, 1.0, 9)])


@pytest.mark.parametrize("key", ["eval/auc", "wall_s", "c03/train loss", "a.b-c:d", "a" * 250])
def test_names_that_mlflow_takes_pass(key):
    assert finite_rows([Row(key, 0, 1.0, 9)])[1] == 0


@pytest.mark.parametrize("step", [-1, 1.5, 1.0, True, "1", 2**63, None])
def test_steps_are_integers_from_zero(step):
    with pytest.raises(SpecError, match="step"):
        finite_rows([Row("a", step, 1.0, 9)])


@pytest.mark.parametrize("timestamp_ms", [-1, 1.5, None])
def test_timestamps_are_integers_from_zero(timestamp_ms):
    with pytest.raises(SpecError, match="timestamp_ms"):
        finite_rows([Row("a", 1, 1.0, timestamp_ms)])


def test_every_problem_is_named_at_once():
    with pytest.raises(SpecError) as caught:
        finite_rows([Row("a@", -1, "x", 9), Row("b@", 0, 1.0, 9)])
    assert len(caught.value.problems) == 4


def test_params_and_tags_are_never_cut_silently():
    check_run(RunInfo("e", "n", "k", params={"p": "x" * 6000}, tags={"t": "x" * 8000}))
    with pytest.raises(SpecError, match="6000"):
        check_run(RunInfo("e", "n", "k", params={"p": "x" * 6001}))
    with pytest.raises(SpecError, match="8000"):
        check_tags({"t": "x" * 8001})
    with pytest.raises(SpecError, match="100"):
        check_run(RunInfo("e", "n", "k", params={f"p{i}": "x" for i in range(101)}))


@pytest.mark.parametrize("info", [RunInfo(" ", "n", "k"), RunInfo("e", "", "k"), RunInfo("e", "n", "it's")])
def test_runs_need_names_and_a_searchable_key(info):
    with pytest.raises(SpecError):
        check_run(info)


def test_flat_params_fit_what_a_store_takes():
    nested = {"a": {str(i): i for i in range(150)}, "b": None, "c": True}
    flat = flatten_params(nested)
    assert len(flat) == 100
    assert flat["a.0"] == "0"
    assert flatten_params({"b": None, "c": True, "d": [1, "x"], "e": "y" * 6001}) == {
        "b": "null",
        "c": "true",
        "d": "[1, x]",
    }
    check_run(RunInfo("e", "n", "k", params=flat))


def test_importing_the_room_loads_no_heavy_library():
    heavy = ("mlflow", "matplotlib", "pandas", "rich", "torch", "ray")
    code = f"import sys, atoll.tracking; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
