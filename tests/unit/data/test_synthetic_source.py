"""Generated clients: size laws, what the knobs do, refusals; and custom factories."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from atoll.data import ConstantExamples, CustomSource, LogNormalExamples, SyntheticSource, open_data
from atoll.errors import SpecError


def _rows(source: SyntheticSource, clients: int = 400, rows: int = 30) -> dict[str, np.ndarray]:
    return open_data(source).gather(np.arange(clients), np.broadcast_to(np.arange(rows), (clients, rows)))


def test_sizes_follow_the_law() -> None:
    ids = np.arange(40_000)
    law = LogNormalExamples(median=50, sigma=0.8, maximum=400)
    sizes = open_data(SyntheticSource(10**8, examples=law)).num_examples(ids)
    assert abs(np.median(sizes) - 50) <= 1
    assert abs(np.log(sizes[(sizes > 1) & (sizes < 400)]).std() - 0.8) < 0.03
    assert sizes.max() == 400
    assert (open_data(SyntheticSource(100, examples=ConstantExamples(9))).num_examples(ids) == 9).all()


def test_features_are_normal_and_labels_can_be_learnt() -> None:
    block = _rows(SyntheticSource(examples=ConstantExamples(30), scale=5.0))
    x, y = block["x"].reshape(-1, 16), block["y"].ravel()
    np.testing.assert_allclose(x.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(x.std(0), 1, atol=0.04)
    weights, *_ = np.linalg.lstsq(x, 2.0 * y - 1, rcond=None)
    assert ((x @ weights > 0) == y).mean() > 0.8


def test_no_scale_means_labels_by_chance() -> None:
    y = _rows(SyntheticSource(num_classes=4, scale=0.0, examples=ConstantExamples(30)))["y"]
    np.testing.assert_allclose(np.bincount(y.ravel()) / y.size, 0.25, atol=0.02)


def test_feature_heterogeneity_spreads_client_means() -> None:
    same, spread = (
        _rows(SyntheticSource(feature_heterogeneity=h, examples=ConstantExamples(30)))["x"].mean(1).std()
        for h in (0, 2)
    )
    assert same < 0.25
    assert 1.8 < spread < 2.2


def test_label_heterogeneity_gives_clients_their_own_teacher() -> None:
    def agreement(heterogeneity: float) -> float:
        source = SyntheticSource(label_heterogeneity=heterogeneity, scale=10.0, examples=ConstantExamples(30))
        block = _rows(source)
        x, y = block["x"].reshape(-1, 16), block["y"].ravel()
        weights, *_ = np.linalg.lstsq(x, 2.0 * y - 1, rcond=None)
        return float(((x @ weights > 0) == y).mean())

    assert agreement(0.0) > 0.85
    assert agreement(5.0) < 0.65


def test_categories_carry_information_and_cost_nothing_to_enlarge() -> None:
    source = SyntheticSource(
        num_features=1, categories=(5,), scale=8.0, examples=ConstantExamples(30), num_clients=1000
    )
    block = _rows(source)
    code, y = block["c"][..., 0].ravel(), block["y"].ravel()
    shares = [y[code == value].mean() for value in range(5)]
    assert max(shares) - min(shares) > 0.2
    huge = replace(source, num_clients=10**8, categories=(10**9,))
    tracemalloc.start()
    data = open_data(huge)
    data.gather(np.arange(10) * 10**7, np.zeros((10, 4), int))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_seed_changes_everything() -> None:
    one, two = _rows(SyntheticSource(seed=1)), _rows(SyntheticSource(seed=2))
    assert (one["x"] != two["x"]).all()
    assert (one["y"] != two["y"]).mean() > 0.2


def test_held_out_rows_are_not_training_rows() -> None:
    data = open_data(SyntheticSource(num_clients=5, holdout_clients=3, holdout_examples=4))
    train = data.gather(np.arange(5), np.broadcast_to(np.arange(32), (5, 32)))["x"].reshape(-1, 16)
    held_out = data.held_out()
    assert sorted(set(held_out["unseen"].client.tolist())) == [5, 6, 7]
    for part in held_out.values():
        assert part.num_rows == 12
        assert not (part.arrays["x"][:, None, 0] == train[None, :, 0]).any()


def test_all_bad_parameters_are_named_at_once() -> None:
    source = SyntheticSource(0, 0, 1, (0,), LogNormalExamples(0, -1, 0), -1, -1, -1, 0, 0)
    with pytest.raises(SpecError) as caught:
        open_data(source)
    assert len(caught.value.problems) == 12


@pytest.fixture
def module() -> ModuleType:
    module = ModuleType("factory_of_wrong_things")
    module.text = lambda: "not data"
    module.broken = lambda: 1 // 0
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_colon", "package.module:function"),
        ("absent_package_of_mine:make", "installed"),
        ("factory_of_wrong_things:absent", "a function to import"),
        ("factory_of_wrong_things:broken", "a function that works. ZeroDivisionError"),
        ("factory_of_wrong_things:text", "returned str without shape"),
    ],
)
def test_custom_factories_that_do_not_give_data_are_refused(module: ModuleType, factory: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        open_data(CustomSource(factory))
