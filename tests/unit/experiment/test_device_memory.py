"""What a device can hold: `plan` refuses a larger model and says what its bytes are."""

from __future__ import annotations

from typing import Any

import pytest

from atoll import spec as sp
from atoll.data import Category, DataShape
from atoll.errors import SpecError
from atoll.experiment import plan
from atoll.experiment.modelling import inputs_of, memory_problems, shape_of

BASE: dict[str, Any] = {
    "name": "small-devices",
    "data": {"kind": "synthetic", "features": 4, "categories": [100, 7]},
    "population": {"size": 50},
    "model": {"kind": "dlrm", "embedding_dim": 4, "top": [8]},
    "client": {"lr": 0.1},
    "schedule": {"kind": "sync", "cohort": 5},
    "aggregation": {"kind": "fedavg"},
    "stop": {"server_steps": 2},
    "runtime": {"kind": "inline"},
}
#: bottom, top over 4 + 3 numbers, output; rows of both tables
DENSE = 4 * 4 + 4 + 7 * 8 + 8 + 8 + 1
BYTES = 4 * (DENSE + 107 * 4)


def limited(limit: int | None, **changes: Any) -> sp.Spec:
    return sp.parse({**BASE, "population": {"size": 50, "device_memory_bytes": limit}, **changes})


def test_a_model_over_the_limit_is_refused_with_the_bytes_of_each_table() -> None:
    with pytest.raises(SpecError) as caught:
        plan(limited(BYTES - 1))
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert str(problem) == (
        f"population.device_memory_bytes: got a model of {BYTES:,} bytes; "
        f"need a model of at most {BYTES - 1:,} bytes, which a device can hold. "
        "Lower model.embedding_dim or model.top, or train a model per cluster of clients and join them on the server "
        "(section ensemble). Bytes of each table:\n"
        "  category_0: 100 rows × 4 × 4 = 1,600\n"
        "  category_1: 7 rows × 4 × 4 = 112\n"
        f"  dense weights: {DENSE} × 4 = {4 * DENSE}."
    )


def test_a_model_of_just_that_size_is_let_pass_and_has_the_same_plan() -> None:
    assert plan(limited(BYTES)).plan_digest == plan(limited(None)).plan_digest == plan(BASE).plan_digest


def test_it_is_told_with_all_other_problems() -> None:
    spec = limited(10, clusters={"kind": "random", "count": 3, "only": "nobody"})
    with pytest.raises(SpecError) as caught:
        plan(spec)
    assert {problem.path for problem in caught.value.problems} == {"population.device_memory_bytes", "clusters.only"}


def test_a_table_that_columns_share_is_counted_once() -> None:
    categories = (Category("item", 50, "item"), Category("shop", 3), Category("before", 50, "item"))
    shape = DataShape("binary", 2, (4,), categories=categories)
    assert inputs_of(shape).shared_rows == (0, 1, 0)
    (problem,) = memory_problems(limited(10), shape)
    assert problem.hint.splitlines()[1:3] == [
        "  item, before: 50 rows × 4 × 4 = 800",
        "  shop: 3 rows × 4 × 4 = 48",
    ]
    assert shape_of(limited(None), shape).tables[0].rows == 53


def test_columns_of_one_table_must_have_one_size() -> None:
    categories = (Category("item", 50, "item"), Category("shop", 3, "item"), Category("before", 49, "item"))
    with pytest.raises(SpecError) as caught:
        inputs_of(DataShape("binary", 2, (4,), categories=categories))
    assert [str(problem) for problem in caught.value.problems] == [
        "data: got category 'shop' with 3 codes; need 50 codes, as 'item'.",
        "data: got category 'before' with 49 codes; need 50 codes, as 'item'.",
    ]


def test_models_without_tables_or_widths_are_told_too() -> None:
    (problem,) = memory_problems(limited(10, model={"kind": "logistic"}), DataShape("binary", 2, (4,)))
    assert problem.why.startswith("Take fewer columns or codes")
    assert problem.hint == "Bytes of each table:\n  dense weights: 5 × 4 = 20"
