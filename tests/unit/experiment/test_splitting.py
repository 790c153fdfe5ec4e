"""Test rows and server rows: disjoint by client, together the whole split, a function of seed and client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import spec as sp
from atoll.data import ClientData, open_data
from atoll.errors import SpecError
from atoll.experiment import plan, splitting
from atoll.experiment.building import build_evaluator
from atoll.experiment.wiring import source_of
from tiny_kit import tiny


def opened(**sections: Any) -> tuple[sp.Spec, ClientData]:
    spec = sp.parse(tiny(**sections))
    return spec, open_data(source_of(spec))


def evaluation(split: str = "unseen", share: float = 0.3) -> dict[str, Any]:
    return {"split": split, "server_share": share, "metrics": ["loss", "auc"]}


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**63 - 1), st.floats(0.05, 0.9), st.sampled_from(["unseen", "seen"]))
def test_every_row_is_on_one_side_by_its_client(seed: int, share: float, split: str) -> None:
    spec, data = opened(seed=seed, evaluation=evaluation(split, share))
    test, server, all_rows = splitting.test_rows(spec, data), splitting.server_rows(spec, data), data.held_out()[split]
    assert not set(test.client) & set(server.client)
    assert test.num_rows + server.num_rows == all_rows.num_rows
    is_servers = np.isin(all_rows.client, server.client)
    for part, chosen in ((test, ~is_servers), (server, is_servers)):
        np.testing.assert_array_equal(part.client, all_rows.client[chosen])
        np.testing.assert_array_equal(part.train_examples, all_rows.train_examples[chosen])
        for name, values in part.arrays.items():
            np.testing.assert_array_equal(values, all_rows.arrays[name][chosen])


def test_the_side_depends_on_seed_and_client_and_a_larger_share_adds() -> None:
    spec, data = opened(evaluation=evaluation(share=0.3))
    more, _ = opened(evaluation=evaluation(share=0.6))
    other, _ = opened(seed=99, evaluation=evaluation(share=0.3))
    few = set(splitting.server_rows(spec, data).client)
    assert few < set(splitting.server_rows(more, data).client)
    assert few != set(splitting.server_rows(other, data).client)
    assert 0.15 < len(few) / len(set(data.held_out()["unseen"].client)) < 0.45


def test_no_share_changes_nothing() -> None:
    spec, data = opened()
    assert spec.evaluation.server_share == 0
    whole = data.held_out()[spec.evaluation.split]
    np.testing.assert_array_equal(splitting.test_rows(spec, data).arrays["y"], whole.arrays["y"])
    assert splitting.server_rows(spec, data).num_rows == 0


def test_the_evaluator_measures_on_test_rows() -> None:
    spec, data = opened(evaluation=evaluation())
    evaluator = build_evaluator(spec, data.identity)
    assert len(evaluator._labels) == splitting.test_rows(spec, data).num_rows < data.held_out()["unseen"].num_rows


@pytest.mark.parametrize(
    ("share", "fit", "expected"),
    [
        (1e-6, True, "leaves the server 0 rows of 0 of 100 clients; need rows of both classes"),
        (0.999999, True, "leaves test 0 rows of 0 of 100 clients; need rows of both classes"),
        (0.999999, False, "leaves test 0 rows of 0 of 100 clients; need rows for test."),
    ],
)
def test_an_empty_side_is_told_with_counts(share: float, fit: bool, expected: str) -> None:
    ensemble = {"over_arch": {"kind": "logistic"}} if fit else None
    spec, data = opened(evaluation=evaluation(share=share), ensemble=ensemble)
    (problem,) = splitting.split_problems(spec, data)
    assert problem.path == "evaluation.server_share"
    assert expected in str(problem)


def test_a_side_of_one_class_is_told_with_counts() -> None:
    spec, data = opened(evaluation=evaluation(), ensemble={"over_arch": {"kind": "logistic"}})

    class OneClass:
        shape = data.shape

        def held_out(self) -> Any:
            held = data.held_out()["unseen"]
            y = np.isin(held.client, splitting.test_rows(spec, data).client).astype(np.int64)
            return {"unseen": type(held)({**held.arrays, "y": y}, held.client, held.train_examples)}

    found = [str(problem) for problem in splitting.split_problems(spec, OneClass())]  # type: ignore[arg-type]
    assert len(found) == 2
    assert "leaves test" in found[0]
    assert "all of class 1" in found[0]
    assert "all of class 0" in found[1]


def test_a_mean_needs_no_server_rows() -> None:
    spec, data = opened(ensemble={"over_arch": {"kind": "mean"}}, evaluation=evaluation(share=0.0))
    assert splitting.split_problems(spec, data) == []


def test_plan_refuses() -> None:
    with pytest.raises(SpecError, match="leaves test 0 rows"):
        plan(tiny(evaluation=evaluation(share=0.999999)))
