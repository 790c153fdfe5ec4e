"""Gains over a baseline with paired intervals, against the definition written out."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import rng
from atoll.evaluation.bootstrap import (
    QUALITIES,
    Scores,
    all_gains,
    gains,
    is_lower_better,
    qualities,
    relative_gain,
)
from atoll.evaluation.evaluator import auc


def scores(seed: int, rows: int = 300, clients: int = 20, ties: bool = False) -> Scores:
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=rows)
    labels = (draw.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    client = draw.integers(0, clients, rows) * 7
    logits = {"single": truth + draw.normal(size=rows) * 2, "better": truth + draw.normal(size=rows)}
    if ties:
        logits = {name: np.round(values) for name, values in logits.items()}
    return Scores(labels, client, logits)


def naive_quality(name: str, labels: np.ndarray, logits: np.ndarray) -> float:
    if name == "auc":
        return auc(labels, logits)
    chance = 1 / (1 + np.exp(-logits))
    if name == "accuracy":
        return float(np.mean((chance > 0.5) == (labels == 1)))
    loss = float(-np.mean(labels * np.log(chance) + (1 - labels) * np.log(1 - chance)))
    if name == "loss":
        return loss
    rate = labels.mean()
    return loss / float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", QUALITIES)
def test_qualities_are_what_their_names_say(name: str, ties: bool) -> None:
    one = scores(1, ties=ties)
    for logits in one.logits.values():
        assert qualities(one.labels, logits)[name] == pytest.approx(naive_quality(name, one.labels, logits), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_those_of_rows_written_out_client_by_client(ties: bool) -> None:
    seeds, resamples = [scores(1, ties=ties), scores(2, 200, 25, ties)], 60
    clients = np.unique(np.concatenate([one.client for one in seeds]))
    counts = rng.generator(5, "bootstrap").multinomial(
        len(clients), np.full(len(clients), 1 / len(clients)), size=resamples
    )
    found = gains(seeds, "better", "single", resamples, 5)
    for name in QUALITIES:
        spread = []
        for row in counts:
            within = []
            for one in seeds:
                drawn = np.concatenate(
                    [np.tile(np.flatnonzero(one.client == who), times) for who, times in zip(clients, row, strict=True)]
                ).astype(int)
                value, base = (
                    naive_quality(name, one.labels[drawn], one.logits[model][drawn]) for model in ("better", "single")
                )
                within.append(relative_gain(name, value, base))
            spread.append(np.mean(within))
        assert (found[name].low, found[name].high) == pytest.approx(tuple(np.percentile(spread, [2.5, 97.5])), rel=1e-9)
        assert found[name].value == pytest.approx(np.mean(found[name].by_seed))
        assert len(found[name].by_seed) == 2


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_laws(seed: int) -> None:
    one = scores(seed)
    nothing = gains([one], "single", "single", 50, 0)
    for name in QUALITIES:
        assert (nothing[name].value, nothing[name].low, nothing[name].high) == (0, 0, 0)
    # the order of rows does not matter, nor does what clients are called, as long as their order stays
    order = np.random.default_rng(seed).permutation(len(one.labels))
    other = Scores(
        one.labels[order], one.client[order] * 3 + 1, {name: values[order] for name, values in one.logits.items()}
    )
    first, second = gains([one], "better", "single", 50, 0), gains([other], "better", "single", 50, 0)
    for name in QUALITIES:
        assert (first[name].low, first[name].high) == pytest.approx((second[name].low, second[name].high), rel=1e-9)
    # AUC is about order alone
    stretched = Scores(one.labels, one.client, {**one.logits, "better": one.logits["better"] * 3 - 1})
    assert gains([stretched], "better", "single", 50, 0)["auc"] == first["auc"]


def test_a_better_model_gains_in_every_quality() -> None:
    found = gains([scores(seed, 2000, 50) for seed in range(3)], "better", "single", 200, 0)
    for name in QUALITIES:
        assert found[name].low > 0, name
        assert found[name].low < found[name].value < found[name].high


@pytest.mark.parametrize("name", QUALITIES)
def test_positive_is_better(name: str) -> None:
    better, worse = (0.4, 0.5) if is_lower_better(name) else (0.5, 0.4)
    assert relative_gain(name, better, worse) > 0 > relative_gain(name, worse, better)
    assert math.isnan(relative_gain(name, 1.0, 0.0))


def test_a_model_that_a_seed_lacks_is_compared_where_it_is() -> None:
    full, part = scores(1), scores(2)
    part = Scores(part.labels, part.client, {"single": part.logits["single"]})
    found = all_gains([full, part], ["better", "absent"], "single", 20, 0)
    assert list(found) == ["better"]
    assert len(found["better"]["auc"].by_seed) == 1
    assert gains([full], "better", "absent", 20, 0) == {}
    assert gains([], "better", "single", 20, 0) == {}


def test_what_is_not_defined_is_nan() -> None:
    one = scores(1)
    ones = qualities(np.ones(5, np.int64), np.arange(5.0))
    assert math.isnan(ones["auc"])
    assert ones["accuracy"] == pytest.approx(0.8)
    broken = qualities(one.labels, np.where(np.arange(300) == 3, np.nan, one.logits["single"]))
    assert math.isnan(broken["auc"])
    without = gains([one], "better", "single", 0, 0)["auc"]
    assert without.value > 0
    assert math.isnan(without.low)


@pytest.mark.parametrize("clients", [3, 20, 300])
def test_a_copy_gains_nothing_to_the_last_bit(clients: int) -> None:
    seeds = [scores(number, clients=clients) for number in range(3)]
    for one in seeds:
        one.logits["copy"] = one.logits["single"].copy()  # type: ignore[index]
    for gain in gains(seeds, "copy", "single", 100, 0).values():
        assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_resamples_of_one_class_are_left_out_and_counted() -> None:
    # client 0 alone has rows of class 1: a resample of three clients lacks it with a chance of (2/3)³
    one = Scores(
        np.array([1, 1, 0, 0, 0, 0]),
        np.array([0, 0, 1, 1, 2, 2]),
        {"single": np.array([0.1, -0.3, 0.2, -1.0, 0.4, -0.2]), "better": np.array([1.0, 0.3, 0.2, -1.0, -0.4, -0.2])},
    )
    counts = rng.generator(5, "bootstrap").multinomial(3, np.full(3, 1 / 3), size=400)
    alone = int(((counts[:, 0] == 0) | (counts[:, 0] == 3)).sum())
    assert 100 < alone < 200
    found = gains([one], "better", "single", 400, 5)
    assert {found[name].left_out for name in ("auc", "loss", "normalized_entropy")} == {alone}
    # moreover, over an accuracy of 0 no gain is defined
    assert alone <= found["accuracy"].left_out < 400
    assert found["loss"].low == pytest.approx(found["normalized_entropy"].low, rel=1e-12)
    both = gains([one, scores(1)], "better", "single", 400, 5)
    assert both["auc"].left_out > 0, "one seed is enough"
    assert gains([scores(1)], "better", "single", 400, 5)["auc"].left_out == 0


def test_resamples_are_keyed() -> None:
    one = scores(1)
    assert gains([one], "better", "single", 50, 0) == gains([one], "better", "single", 50, 0)
    assert gains([one], "better", "single", 50, 0) != gains([one], "better", "single", 50, 1)


def test_real_size_takes_seconds() -> None:
    one = scores(1, 30_000, 400)
    began = time.perf_counter()
    gains([one], "better", "single", 200, 0)
    # 12 models × 3 seeds × 1000 resamples are 90 times of this
    assert time.perf_counter() - began < 2
