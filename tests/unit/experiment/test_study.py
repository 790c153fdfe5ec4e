"""From an ensemble's spec to the runs that it needs."""

from __future__ import annotations

import pytest

from atoll import spec as sp
from atoll.data import open_data
from atoll.errors import SpecError
from atoll.experiment.modelling import shape_of
from atoll.experiment.study import Study, study_of
from atoll.experiment.wiring import source_of, tasks_per_step
from tiny_kit import tiny

RANDOM = {"kind": "random", "count": 3}
VOLUME = {"kind": "data_volume", "count": 3}
JOINED: dict = {"evaluation": {"every_steps": 3, "metrics": ["loss", "auc"], "server_share": 0.5}}


def study(*overrides: str, **sections) -> Study:
    spec = sp.parse(tiny(**{"ensemble": {}, "clusters": VOLUME, **JOINED, **sections}), overrides)
    return study_of(spec, lambda one: open_data(source_of(one)))


def by_role(found: Study, role: str) -> list:
    return [member for member in found.members if member.role == role]


def test_a_leaf_is_the_run_that_it_is_alone() -> None:
    found = study()
    leaves = by_role(found, "leaf")
    assert [leaf.cluster for leaf in leaves] == ["q0", "q1", "q2"]
    for leaf in leaves:
        alone = sp.parse(tiny(clusters={**VOLUME, "only": leaf.cluster}, **JOINED))
        assert sp.digest(alone) == sp.digest(leaf.spec)
        assert leaf.spec.stop == alone.stop
        assert leaf.spec.ensemble is None
        assert leaf.spec.comparison is None
        assert leaf.spec.name == f"tiny-{leaf.name}"


def test_one_cluster_is_plain_federated_learning_and_serves_as_the_single_model_too() -> None:
    found = study(clusters={"kind": "single"})
    (only,) = found.members
    assert sp.digest(only.spec) == sp.digest(sp.parse(tiny(**JOINED)))
    assert {arm.role for arm in found.arms} == {"single", "ensemble", "equal_updates"}
    assert all(arm.members == (only.name,) for arm in found.arms)


def test_controls_have_the_device_budget_or_the_updates_or_the_capacity() -> None:
    found = study()
    leaves, (single,), (equal,), (large,) = (
        by_role(found, role) for role in ("leaf", "single", "equal_updates", "large")
    )
    data = open_data(source_of(leaves[0].spec))
    assert single.spec.stop == leaves[0].spec.stop
    assert single.spec.clusters.kind == "single"
    updates = sum(leaf.spec.stop.server_steps * tasks_per_step(leaf.spec) for leaf in leaves)
    assert equal.spec.stop.server_steps * tasks_per_step(equal.spec) == updates
    assert large.spec.stop.server_steps == equal.spec.stop.server_steps
    capacity = sum(shape_of(leaf.spec, data.shape).bytes for leaf in leaves)
    grown = shape_of(large.spec, data.shape).bytes
    assert capacity <= grown < 1.2 * capacity
    assert shape_of(single.spec, data.shape).bytes == shape_of(leaves[0].spec, data.shape).bytes


def test_equal_updates_round_up_and_may_be_said_otherwise() -> None:
    found = study("ensemble.controls.equal_updates={schedule.buffer_goal: 4}")
    (equal,) = by_role(found, "equal_updates")
    assert equal.spec.stop.server_steps == -(-3 * 7 * 2 // 4)
    found = study("ensemble.controls.equal_updates={stop.server_steps: 5}")
    assert by_role(found, "equal_updates")[0].spec.stop.server_steps == 5


def test_random_control_has_the_sizes_and_the_leaf_s_values_by_place() -> None:
    found = study("ensemble.leaves={q1: {client.lr: 0.5}}", "ensemble.controls.random={client.batch_size: 2}")
    drawn = by_role(found, "random")
    clustering = found.clusterings["ensemble-s3"]
    assert {member.spec.clusters.sizes for member in drawn} == {clustering.sizes}
    assert [member.spec.client.lr for member in drawn] == [0.1, 0.5, 0.1]
    assert {member.spec.client.batch_size for member in drawn} == {2}
    assert [leaf.spec.client.lr for leaf in by_role(found, "leaf")] == [0.1, 0.5, 0.1]


def test_a_device_s_memory_binds_leaves_and_not_the_large_control() -> None:
    found = study("population.device_memory_bytes=100000")
    assert by_role(found, "large")[0].spec.population.device_memory_bytes is None
    assert by_role(found, "single")[0].spec.population.device_memory_bytes == 100_000


def test_equal_models_are_trained_once() -> None:
    comparison = {
        "seeds": [1, 2],
        "arms": {"volume": {}, "lot": {"clusters": RANDOM}},
        "baseline": "volume",
    }
    found = study(comparison=comparison)
    assert len(by_role(found, "single")) == len(by_role(found, "equal_updates")) == 2, "one per seed"
    assert len(by_role(found, "leaf")) == 2 * 2 * 3
    assert len({member.name for member in found.members}) == len(found.members)
    labels = [arm.label for arm in found.arms if arm.seed == 1]
    assert labels == ["single", "volume", "volume: random clusters", "single, equal updates", "single, large", "lot"]
    assert {arm.baseline for arm in found.arms if arm.seed == 2 and arm.role != "single"} == {"single-s2"}


def test_names_of_runs_that_no_spec_may_have_are_refused() -> None:
    with pytest.raises(SpecError, match=r"name.*at most 250 characters"):
        study(name="n" * 240)


def test_no_two_arms_have_one_name() -> None:
    arms = {"single-equal-updates": {}, "single": {"clusters": RANDOM}}
    found = study(comparison={"seeds": [1, 2], "arms": arms, "baseline": "single-equal-updates"})
    assert len({arm.name for arm in found.arms}) == len(found.arms)
    assert {arm.label for arm in found.arms if arm.seed == 1} == {arm.label for arm in found.arms if arm.seed == 2}


def test_an_ensemble_with_two_baselines_is_related_to_each() -> None:
    arms = {"a": {}, "b": {"ensemble.controls.single": {"client.lr": 0.5}}}
    found = study(comparison={"seeds": [1], "arms": arms, "baseline": "a"})
    (first, second) = [arm for arm in found.arms if arm.role == "ensemble"]
    assert first.members == second.members
    assert first.baseline != second.baseline


def test_random_clusters_need_no_random_control_and_dropped_controls_are_gone() -> None:
    assert not by_role(study(clusters=RANDOM), "random")
    found = study("ensemble.controls={single: null, equal_updates: null, random: null, large: null}")
    assert {member.role for member in found.members} == {"leaf"}
    assert found.arms[0].baseline is None


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        study(
            "schedule.concurrency=30",
            "population.device_memory_bytes=10",
            comparison={"seeds": [1], "arms": {"a": {}, "b": {"clusters.count": 4}}, "baseline": "a"},
        )
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 3 + 4 + 1, "a model too large for a device is told once"
    told = [text for text in told if not text.startswith("population.device_memory_bytes")]
    assert len(told) == 3 + 4
    assert all("schedule.concurrency" in text and "clients" in text for text in told)


def test_a_model_without_widths_cannot_grow() -> None:
    with pytest.raises(SpecError, match=r"ensemble\.controls\.large.*no widths"):
        study(model={"kind": "logistic"})
    found = study("ensemble.controls.large={model: {kind: mlp, hidden: [4]}}", model={"kind": "logistic"})
    assert by_role(found, "large")[0].spec.model.kind == "mlp"
