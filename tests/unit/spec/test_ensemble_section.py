"""The section `ensemble`: what it accepts, what it refuses and how that is told, and that it changes no leaf."""

from __future__ import annotations

from typing import Any

import pytest

from atoll import spec as sp
from atoll.errors import SpecError

BASE: dict[str, Any] = {
    "name": "fel",
    "data": {"kind": "flights"},
    "clusters": {"kind": "random", "count": 3},
    "model": {"kind": "mlp"},
    "client": {"lr": 0.1},
    "schedule": {"kind": "sync", "cohort": 10},
    "aggregation": {"kind": "fedavg"},
    "evaluation": {"server_share": 0.2},
    "stop": {"server_steps": 5},
    "ensemble": {"over_arch": {"kind": "logistic"}},
}
FEDERATED = {
    "kind": "federated",
    "client": {"lr": 0.1},
    "schedule": {"kind": "sync", "cohort": 10},
    "aggregation": {"kind": "fedavg"},
    "stop": {"server_steps": 3},
}


def told(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        sp.parse({**BASE, **changes})
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "over_arch",
    [
        {"kind": "mean"},
        {"kind": "median"},
        {"kind": "weighted_mean"},
        {"kind": "logistic", "inputs": "penultimate", "l2": 0.1},
        {"kind": "mlp", "hidden": [4, 4]},
    ],
)
def test_every_over_arch_survives_yaml(over_arch: dict[str, Any]) -> None:
    spec = sp.parse({**BASE, "ensemble": {"over_arch": over_arch, "leaves": {"r1": {"client.lr": 0.2}}}})
    assert sp.parse(sp.to_dict(spec)) == spec


def test_absent_controls_are_all_four_and_null_drops_one() -> None:
    found = sp.parse({**BASE, "ensemble": {"controls": {"large": None, "random": {"client.lr": 1.0}}}}).ensemble
    assert found is not None
    assert found.controls == sp.Controls(single={}, equal_updates={}, random={"client.lr": 1.0}, large=None)
    assert sp.Ensemble().controls == sp.Controls(single={}, equal_updates={}, random={}, large={})


def test_the_section_changes_no_leaf() -> None:
    alone = {"clusters": {**BASE["clusters"], "only": "r0"}, "ensemble": None}
    leaf = sp.parse({**BASE, **alone})
    assert sp.identity(leaf)["ensemble"] is None
    one = sp.parse({**BASE, "ensemble": {"over_arch": {"kind": "mean"}}})
    assert sp.digest(one) == sp.digest(sp.parse(BASE))


def test_a_share_of_nothing_leaves_the_digest_as_it_was() -> None:
    plain = {**BASE, "clusters": {"kind": "single"}, "ensemble": None}
    without = sp.parse({**plain, "evaluation": {}})
    assert "server_share" not in sp.identity(without)["evaluation"]
    assert sp.digest(without) != sp.digest(sp.parse(plain))


def test_one_leaf_is_an_ensemble_too() -> None:
    spec = sp.parse({**BASE, "clusters": {"kind": "single"}, "ensemble": {"over_arch": {"kind": "mean"}}})
    assert spec.ensemble is not None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"evaluation": {}},
            "evaluation.server_share: got 0; need a share above 0 for over_arch logistic with fit server. The "
            "over-arch has no rows to be fitted on: it is never fitted on rows that it is measured on. Set "
            "evaluation.server_share, such as 0.2, or ensemble.fit to {kind: federated, …}.",
        ),
        (
            {"ensemble": {"over_arch": {"kind": "weighted_mean"}, "fit": FEDERATED}},
            "ensemble.over_arch.kind: got weighted_mean; need logistic or mlp when ensemble.fit.kind is federated. "
            "weighted_mean has no weights that clients could train. Set ensemble.fit to {kind: server}, or "
            "ensemble.over_arch to {kind: logistic}.",
        ),
        (
            {
                "model": {"kind": "custom", "factory": "a.b:c"},
                "ensemble": {"over_arch": {"kind": "mlp", "inputs": "penultimate"}},
            },
            "ensemble.over_arch.inputs: got penultimate; need logits with model.kind custom; penultimate with "
            "logistic, mlp, wide_deep, dlrm. The model does not offer these vectors.",
        ),
        (
            {"data": {"kind": "synthetic", "classes": 3}, "population": {"size": 50}},
            "ensemble: got over_arch logistic; need null for a task of more than two classes. The over-arch joins one "
            "logit per leaf. Use data with labels 0 and 1.",
        ),
        (
            {"ensemble": {"leaves": {"r0": {"population.size": 3}}}},
            "ensemble.leaves.r0: got population.size; need a key outside name, seed, data, evaluation, tracking, "
            "runtime, clusters, ensemble, comparison, privacy and population.size. Leaves and controls share these, or "
            "they could not be compared.",
        ),
        (
            {"ensemble": {"controls": {"single": {"model.hidden": [3]}}}},
            "ensemble.controls.single: got model.hidden; need a key outside model. Leaves and controls have one "
            "architecture and size. ensemble.controls.large may change it.",
        ),
        (
            {"ensemble": {"leaves": {"r0": {"client.lr": -1.0}}}},
            "ensemble.leaves.r0: client.lr: got -1.0; need a number > 0.",
        ),
        (
            {"ensemble": {"controls": {"large": {"model.hiden": [3]}}}},
            "ensemble.controls.large: model.hiden: got [3]; need one of its fields init_from, kind, hidden, "
            "embedding_dim. hiden is not a field of model (kind mlp). Did you mean hidden.",
        ),
        (
            {"ensemble": {"fit": {**FEDERATED, "aggregation": {"kind": "fedbuff"}}}},
            "ensemble.fit: aggregation.kind: got fedbuff with schedule.kind sync; need schedule.kind async for "
            "fedbuff. In rounds nothing is stale, so it would be FedAvg under another name. Use aggregation.kind "
            "fedavg, or an async schedule.",
        ),
        (
            {"ensemble": {"controls": {"sngle": {}}}},
            "ensemble.controls.sngle: got {}; need one of its fields single, equal_updates, random, large. sngle is "
            "not a field of ensemble.controls. Did you mean single.",
        ),
    ],
)
def test_one_mistake_is_one_message(changes: dict[str, Any], expected: str) -> None:
    assert told(changes) == [expected]


def test_mistakes_of_arms_leaves_and_controls_are_told_at_once() -> None:
    found = told(
        {
            "ensemble": {"leaves": {"r0": {"client.lr": -1.0}}, "controls": {"large": {"client.epochs": 0}}},
            "comparison": {
                "seeds": [1],
                "baseline": "a",
                "arms": {"a": {}, "b": {"ensemble.leaves": {"r2": {"stop.server_steps": 0}}}},
            },
        }
    )
    assert [text.split(": got")[0] for text in found] == [
        "ensemble.leaves.r0: client.lr",
        "ensemble.controls.large: client.epochs",
        "comparison.arms.b: ensemble.leaves.r2: stop.server_steps",
    ]


def test_derived_sets_sections_then_keys() -> None:
    spec = sp.parse(BASE)
    found = sp.derived(spec, {"client.lr": 0.5}, ensemble=None, clusters={"kind": "single"}, seed=9)
    assert (found.client.lr, found.seed, found.ensemble, found.clusters.kind) == (0.5, 9, None, "single")
    with pytest.raises(SpecError, match="the whole section when its kind changes"):
        sp.derived(spec, {"model.kind": "cnn"})
