"""What travels to pools: each version once, changes where a pool has a base, one object for pools that go along."""

import numpy as np
import pytest

from atoll.messages import ModelVersion, VersionedTable
from atoll.runtime import bundles
from atoll.runtime.bundles import Bundles
from atoll.runtime.changes import Change

ROWS, DIM = 10_000, 16


@pytest.fixture
def put(monkeypatch):
    """What was put into the object store, in order; a reference is the object itself."""
    found = []

    def fake(value):
        found.append(value)
        return value

    monkeypatch.setattr(bundles.ray, "put", fake)
    return found


def line(number: int, changed: int) -> list[ModelVersion]:
    table = VersionedTable(np.zeros((ROWS, DIM), dtype=np.float32))
    models = [ModelVersion(0, np.zeros(1, np.float32), (table,))]
    for version in range(1, number):
        table = table.stepped(np.arange(changed), np.full((changed, DIM), version, np.float32))
        models.append(ModelVersion(version, np.zeros(1, np.float32), (table,)))
    return models


@pytest.mark.parametrize("changed", [10, 1200])
def test_pools_that_go_along_get_one_change(put, changed) -> None:
    sender = Bundles(2)
    models = line(3, changed)
    sender.add(models)
    assert sender.send(0, [0])[1][0] is sender.send(1, [0])[1][0]
    for version in (1, 2):
        (one,), (other,) = sender.send(0, [version])[1], sender.send(1, [version])[1]
        assert one is other
        assert isinstance(one[0], Change)
        assert (one[0].base, one[0].version) == (version - 1, version)
    assert len(put) == (1 if changed == 10 else 3)


def test_pools_with_other_bases_get_changes_of_their_own(put) -> None:
    sender = Bundles(2)
    models = line(3, 10)
    sender.add(models)
    for pool, first in ((0, 0), (1, 1)):
        sender.send(pool, [first])
    ((one,),), ((other,),) = sender.send(0, [2])[1], sender.send(1, [2])[1]
    assert (one.base, other.base) == (0, 1)


def test_a_pool_that_was_lost_gets_a_whole_version(put) -> None:
    sender = Bundles(1)
    sender.add(line(2, 10))
    sender.send(0, [0])
    sender.lost(0)
    ((sent,),) = sender.send(0, [1])[1]
    assert isinstance(sent, ModelVersion)


def test_what_is_sent_is_counted(put) -> None:
    sender = Bundles(2, sent_bytes=5)
    models = line(2, 10)
    sender.add(models)
    whole, change = ROWS * DIM * 4 + 4, 10 * 8 + 10 * DIM * 4 + 4
    sender.send(0, [0])
    sender.send(1, [0])
    assert sender.sent_bytes == 5 + 2 * whole
    sender.send(0, [0, 1])  # it has the first
    sender.send(1, [1])
    assert sender.sent_bytes == 5 + 2 * whole + 2 * change
    small = Bundles(1)
    small.add([ModelVersion(version, np.zeros(3, np.float32)) for version in (0, 1)])
    small.send(0, [0, 1])
    assert small.sent_bytes == 24
