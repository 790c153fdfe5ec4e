"""Metrics on held-out rows: against scikit-learn, and by hand on a model whose logits are the examples themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from atoll.errors import SpecError
from atoll.evaluation import Evaluator
from atoll.evaluation.evaluator import auc, normalized_entropy
from atoll.messages import ModelVersion
from atoll.models import ModelShape

VERSION = ModelVersion(3, np.zeros(0, dtype=np.float32))


class Echo:
    """A model whose logits are its input."""

    def __init__(self, num_outputs: int) -> None:
        self.shape = ModelShape((), (), num_outputs, "binary" if num_outputs == 1 else "multiclass")

    def at(self, version):
        return lambda batch: batch["x"]


def evaluated(logits, labels, *, clients=None, train_examples=None, metrics=("loss", "accuracy"), **options):
    x = np.asarray(logits, dtype=np.float32)
    rows = len(x)
    x = x.reshape(rows, -1)
    evaluator = Evaluator(
        Echo(x.shape[1]),
        {"x": x, "y": np.asarray(labels, dtype=np.int64)},
        np.zeros(rows, np.int64) if clients is None else np.asarray(clients, dtype=np.int64),
        np.zeros(rows, np.int64) if train_examples is None else np.asarray(train_examples, dtype=np.int64),
        metrics,
        **options,
    )
    found = evaluator.evaluate(VERSION)
    assert found.version == 3
    return found.metrics


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=60))
def test_auc_is_scikit_learns_with_many_ties(rows) -> None:
    labels = np.array([int(label) for label, _ in rows])
    scores = np.array([score / 3 for _, score in rows])
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    else:
        assert math.isnan(auc(labels, scores))


def test_auc_of_a_model_is_that_of_its_logits() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=500), random.integers(0, 2, 500)
    found = evaluated(logits, labels, metrics=("auc",))
    assert found["eval/auc"] == pytest.approx(roc_auc_score(labels, logits.astype(np.float32)), abs=1e-12)


def test_binary_loss_and_accuracy_by_hand() -> None:
    found = evaluated([2.0, -1.0, 0.5, -3.0], [1, 1, 0, 0])
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    assert found["eval/loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert found["eval/accuracy"] == 0.5


def test_multiclass_loss_and_accuracy_by_hand() -> None:
    found = evaluated([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], [1, 2])
    first = math.log(math.e + math.e**2 + 1) - 2
    second = math.log(math.e**3 + 2) - 0
    assert found["eval/loss"] == pytest.approx((first + second) / 2, rel=1e-6)
    assert found["eval/accuracy"] == 0.5


def test_only_what_was_asked_for() -> None:
    assert set(evaluated([1.0, 2.0], [0, 1], metrics=("accuracy",), per_client=False)) == {"eval/accuracy"}


def test_batches_do_not_change_a_bit() -> None:
    random = np.random.default_rng(1)
    logits, labels, clients = random.normal(size=101), random.integers(0, 2, 101), random.integers(0, 9, 101)
    metrics = ("loss", "accuracy", "auc")
    whole = evaluated(logits, labels, clients=clients, metrics=metrics)
    assert evaluated(logits, labels, clients=clients, metrics=metrics, batch_rows=7) == whole


def test_percentiles_count_clients_not_rows() -> None:
    """Client 5 has one wrong row, client 9 three right ones, client 2 one of each."""
    found = evaluated([-9.0, 9.0, 9.0, 9.0, 9.0, -9.0], [1, 1, 1, 1, 1, 1], clients=[5, 9, 9, 9, 2, 2])
    assert found["eval/accuracy"] == pytest.approx(4 / 6)
    assert found["eval/client_accuracy_p50"] == pytest.approx(0.5)
    assert found["eval/client_accuracy_p10"] == pytest.approx(np.percentile([0, 0.5, 1], 10))
    assert found["eval/client_accuracy_p90"] == pytest.approx(np.percentile([0, 0.5, 1], 90))
    bad, good = math.log1p(math.exp(9)), math.log1p(math.exp(-9))
    assert found["eval/client_loss_p50"] == pytest.approx((bad + good) / 2)


def test_volume_groups_are_quartiles_of_training_examples() -> None:
    """Eight clients, the more data the surer: q1 is the mean loss of the two smallest, q4 of the two largest."""
    volume = np.array([80, 10, 70, 20, 60, 30, 50, 40])
    logits = volume / 10.0
    found = evaluated(logits, np.ones(8), clients=np.arange(8) + 100, train_examples=volume)
    for group in range(4):
        pair = np.array([2 * group + 1, 2 * group + 2], dtype=float)
        assert found[f"eval/volume_q{group + 1}_loss"] == pytest.approx(np.log1p(np.exp(-pair)).mean())


def test_volume_groups_fall_back_on_held_out_rows() -> None:
    clients = np.repeat(np.arange(4), [1, 2, 3, 4])
    found = evaluated(clients.astype(float), np.ones(10), clients=clients)
    for group in range(4):
        assert found[f"eval/volume_q{group + 1}_loss"] == pytest.approx(math.log1p(math.exp(-group)))


def test_too_few_clients_for_groups() -> None:
    assert not [key for key in evaluated([1.0, 2.0, 3.0], [1, 1, 1], clients=[0, 1, 2]) if "volume" in key]


def test_nan_logits_are_wrong_not_class_zero() -> None:
    found = evaluated([math.nan, math.nan, 1.0], [0, 1, 1], metrics=("loss", "accuracy", "auc"))
    assert found["eval/accuracy"] == pytest.approx(1 / 3)
    assert found["eval/loss"] == pytest.approx((2e6 + math.log1p(math.exp(-1))) / 3)
    assert found["eval/auc"] == 0.5
    several = evaluated([[math.nan, 0.0, 0.0]], [0])
    assert several["eval/accuracy"] == 0.0
    assert several["eval/loss"] == 1e6


def test_infinite_logits_give_a_finite_loss() -> None:
    found = evaluated([math.inf, -math.inf], [0, 0])
    assert 5e5 <= found["eval/loss"] <= 1e6
    assert found["eval/accuracy"] == 0.5


def test_auc_of_many_classes_is_refused() -> None:
    with pytest.raises(SpecError, match=r"evaluation\.metrics: got auc"):
        evaluated([[1.0, 2.0, 3.0]], [0], metrics=("auc",))


def test_normalized_entropy_of_many_classes_is_refused_too() -> None:
    with pytest.raises(SpecError) as caught:
        evaluated([[1.0, 2.0, 3.0]], [0], metrics=("auc", "loss", "normalized_entropy"))
    assert [problem.value for problem in caught.value.problems] == ["auc", "normalized_entropy"]


def test_always_saying_the_base_rate_has_a_normalized_entropy_of_one() -> None:
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    found = evaluated(np.full(8, math.log(0.25 / 0.75)), labels, metrics=("normalized_entropy",))
    assert found["eval/normalized_entropy"] == pytest.approx(1.0, rel=1e-7)
    surer = evaluated(np.where(labels == 1, 2.0, -2.0), labels, metrics=("loss", "normalized_entropy"))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert surer["eval/normalized_entropy"] == pytest.approx(surer["eval/loss"] / entropy, rel=1e-12)
    assert surer["eval/normalized_entropy"] < 1.0


def test_normalized_entropy_of_one_class_is_not_a_number() -> None:
    assert math.isnan(evaluated([1.0, 2.0], [1, 1], metrics=("normalized_entropy",))["eval/normalized_entropy"])
    assert math.isnan(normalized_entropy(np.zeros(0), np.zeros(0)))


GROUPED = {"groups": np.array([0, 0, 1, 1, -1, 2, 2]), "group_names": ("a", "b", "one_class", "empty")}


def test_groups_are_measured_on_their_own_rows() -> None:
    logits, labels = [2.0, -1.0, 0.5, -3.0, 9.0, 1.0, 2.0], [1, 0, 0, 1, 0, 1, 1]
    metrics = ("loss", "accuracy", "auc", "normalized_entropy")
    found = evaluated(logits, labels, metrics=metrics, per_client=False, **GROUPED)
    for name, rows in (("a", slice(0, 2)), ("b", slice(2, 4)), ("one_class", slice(5, 7))):
        alone = evaluated(logits[rows], labels[rows], metrics=metrics, per_client=False)
        want = {key.replace("eval/", f"eval/cluster/{name}/"): value for key, value in alone.items()}
        if name == "one_class":
            want = {key: value for key, value in want.items() if not math.isnan(value)}
            assert set(want) == {"eval/cluster/one_class/loss", "eval/cluster/one_class/accuracy"}
        assert {key: value for key, value in found.items() if f"cluster/{name}/" in key} == want
    assert not [key for key in found if "empty" in key]


def test_groups_change_nothing_else() -> None:
    logits, labels = [2.0, -1.0, 0.5, -3.0, 9.0, 1.0, 2.0], [1, 0, 0, 1, 0, 1, 1]
    metrics = ("loss", "accuracy", "auc")
    without = evaluated(logits, labels, metrics=metrics)
    found = evaluated(logits, labels, metrics=metrics, **GROUPED)
    assert {key: value for key, value in found.items() if "/cluster/" not in key} == without
    assert evaluated(logits, labels, metrics=metrics, groups=None, group_names=()) == without
