"""What the models of the field are for: interactions that no linear model sees, learnt by federated averaging."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from atoll import rng
from atoll.evaluation import auc, outputs
from atoll.learner import ClientWork, Learner
from atoll.messages import ModelVersion
from atoll.models import Dlrm, Logistic, ModelInputs, ModelSettings, WideDeep, build_model, init_version
from lane_kit import GRID, block_of

CODES, EACH, NOTHING = 12, 40, 12
#: an item, the shop, three items before it, of which some are missing
INPUTS = ModelInputs("binary", 1, (2,), (13, CODES, 13, 13, 13), 0, (0, 1, 0, 0, 0))
Rows = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def codes_of(clients: np.ndarray, positions: np.ndarray) -> np.ndarray:
    drawn = [rng.integers(rng.key(3, "code", column), CODES, clients[:, None], positions) for column in range(5)]
    missing = rng.uniform(rng.key(3, "missing"), clients[:, None], positions)
    drawn[3] = np.where(missing < 0.5, NOTHING, drawn[3])
    drawn[4] = np.where(missing < 0.8, NOTHING, drawn[4])
    return np.stack(drawn, axis=-1)


def rows_of(label: Callable[[np.ndarray], np.ndarray]) -> Rows:
    def gather(clients: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        codes = codes_of(clients, positions)
        flip = rng.uniform(rng.key(3, "flip"), clients[:, None], positions) < 0.05
        x = rng.uniform(rng.key(3, "x"), clients[:, None, None], positions[..., None], np.arange(2))
        return {"x": x.astype(np.float32), "c": codes, "y": (label(codes) ^ flip).astype(np.int64)}

    return gather


def pairs(codes: np.ndarray) -> np.ndarray:
    """Item and shop are of the same kind, of two: each alone says nothing."""
    return (codes[..., 0] % 2) == (codes[..., 1] % 2)


def interests(codes: np.ndarray) -> np.ndarray:
    """The item is of a kind, of three, that the client took before."""
    before = codes[..., 2:]
    return ((before % 3 == codes[..., :1] % 3) & (before != NOTHING)).any(axis=-1)


def quality(settings: ModelSettings, gather: Rows, lr: float, rounds: int, clients: int = 25) -> float:
    """AUC on clients that never train, after federated averaging."""
    model, version = build_model(settings, INPUTS), init_version(settings, INPUTS, 5)
    learner = Learner(model=model, gather=gather, work=ClientWork(lr, batch_size=8), grid=GRID, seed=5)
    for number in range(rounds):
        block = block_of([EACH] * clients, step=0, first_client=number * clients % 400)
        (found,) = learner.train(block, {0: version}).partials
        tables = []
        for table, rows in zip(version.tables, found.tables, strict=True):
            moved = table.copy()
            moved[rows.rows] -= (rows.values / GRID.scale / clients).astype(np.float32)
            tables.append(moved)
        dense = version.dense - (found.dense / GRID.scale / clients).astype(np.float32)
        version = ModelVersion(0, dense, tuple(tables))
    rows = gather(np.arange(10_000, 10_100), np.broadcast_to(np.arange(EACH), (100, EACH)))
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in rows.items()}
    return auc(flat["y"], outputs(model, version, flat, kind="logits")[:, 0])


def test_interactions_are_learnt_where_a_linear_model_sees_nothing() -> None:
    gather = rows_of(pairs)
    assert quality(Logistic(), gather, 1.0, 80) < 0.55
    assert quality(Dlrm(8, (8,), (32,)), gather, 1.0, 80) > 0.9
    assert quality(WideDeep((32,), 8), gather, 1.0, 80) > 0.9


@pytest.mark.parametrize("history", [False, True])
def test_a_history_of_items_is_learnt(history: bool) -> None:
    gather = rows_of(interests)
    assert quality(Dlrm(8, (8,), (32,), history), gather, 1.0, 80) > 0.9
    assert quality(Logistic(), gather, 1.0, 80) < 0.75
