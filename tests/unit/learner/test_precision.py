"""bfloat16 rounds forward and backward and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from atoll.learner import ClientWork, cheaper_calls, single
from atoll.messages import ModelVersion
from atoll.models import Custom, ModelInputs
from lane_kit import LEARNERS, Kind, block_of, by_name, gather_of, lane_deltas, learner_of

IN_TORCH = [kind for kind in LEARNERS if kind.kernel != "compiled"]
SIZES = [13, 12, 9, 5]


def work(kind: Kind, precision: str, **more: float) -> ClientWork:
    return ClientWork(lr=kind.lr, batch_size=8, precision=precision, **more)


def dropping() -> nn.Module:
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(72, 3)]
    return nn.Sequential(*parts)


@pytest.mark.parametrize("kind", IN_TORCH, ids=lambda kind: kind.name)
def test_what_is_learnt_is_that_of_float32_to_its_rounding(kind: Kind) -> None:
    block, versions = block_of(SIZES), {0: kind.version()}
    want, found = (
        flat(lane_deltas(kind, learner_of(kind, work(kind, precision)), block, versions))
        for precision in ("float32", "bfloat16")
    )
    # of all lanes together: in so small a model one ReLU that falls on the other side is much of one lane
    assert 0 < np.linalg.norm(found - want) < 0.1 * np.linalg.norm(want)


def flat(deltas: list[ModelVersion]) -> np.ndarray:
    return np.concatenate([part.ravel() for one in deltas for part in (one.dense, *one.tables)])


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_a_lane_has_the_same_bits_alone_and_in_a_block(large: int, monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    monkeypatch.setattr(single, "_LARGE", large)
    kind = Kind("d", Custom("test_precision:dropping"), ModelInputs("multiclass", 3, (3, 8, 8)), kernel="single")
    local, block, versions = work(kind, "bfloat16", momentum=0.5), block_of(SIZES), {0: kind.version()}
    together = lane_deltas(kind, learner_of(kind, local), block, versions)
    for lane in range(len(SIZES)):
        (alone,) = lane_deltas(kind, learner_of(kind, local), block.lane(lane), versions)
        np.testing.assert_array_equal(alone.dense, together[lane].dense)


@pytest.mark.parametrize("few", [0, 32])
def test_large_weights_learn_in_bfloat16_what_others_do(few: int, monkeypatch) -> None:
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    kind = Kind("d", Custom("test_precision:dropping"), ModelInputs("multiclass", 3, (3, 8, 8)), kernel="single")
    monkeypatch.setattr(cheaper_calls, "_FEW_ROWS", few)
    found = []
    for large in (1, 1 << 40):
        monkeypatch.setattr(single, "_LARGE", large)
        (delta,) = lane_deltas(kind, learner_of(kind, work(kind, "bfloat16")), block_of([20]), {0: kind.version()})
        found.append(delta.dense)
    assert np.linalg.norm(found[0] - found[1]) < 0.05 * np.linalg.norm(found[1])


@pytest.mark.parametrize("name", ["mlp", "custom-single"])
def test_a_step_too_small_for_weights_in_bfloat16_is_made(name: str) -> None:
    kind, block = by_name[name], block_of([40])
    versions = {0: kind.version()}
    exact, half = (
        lane_deltas(kind, learner_of(kind, ClientWork(lr=1e-4, batch_size=8, precision=precision)), block, versions)[0]
        for precision in ("float32", "bfloat16")
    )
    unit = np.abs(versions[0].dense) / 256
    assert np.mean(np.abs(half.dense) < unit / 2) > 0.9, "weights in bfloat16 would stay"
    assert np.linalg.norm(half.dense - exact.dense) < 0.05 * np.linalg.norm(exact.dense)


def test_examples_of_no_number_make_a_lane_diverge_in_bfloat16_too() -> None:
    kind = IN_TORCH[0]
    learner = learner_of(kind, work(kind, "bfloat16"), gather=gather_of(kind.inputs, nan_client=100))
    (first, second) = learner.train(block_of([9, 9]), {0: kind.version()}).partials
    assert (first.num_diverged, second.num_diverged) == (1, 0)
