"""Several runs on shared pools: each has the bits that it has alone, and dies alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_kit import Orders, facts, kill, on_ray, one_ray_at_a_time, spec_of

from atoll import spec as sp
from atoll.errors import ClientWorkError
from atoll.experiment import Run, resume, run
from atoll.experiment.running import Wanted, run_together
from atoll.runtime.session import RaySession

pytestmark = pytest.mark.ray

SYNC = {"schedule": {"kind": "sync", "cohort": 3}, "aggregation": {"kind": "fedavg"}}
OTHERS: list[dict] = [{}, {"seed": 5}, SYNC]


@pytest.fixture(scope="module")
def cluster(_orders_folder: Path) -> Iterator[RaySession]:
    with one_ray_at_a_time(), RaySession(2) as session:
        yield session


def wanted(uri: str, folder: Path, name: str, **runtime) -> list[Wanted]:
    specs = [sp.parse(spec_of(uri, runtime=on_ray(2, **runtime), **other)) for other in OTHERS]
    return [Wanted(folder / f"{name}-{number}", spec) for number, spec in enumerate(specs)]


@pytest.fixture(scope="module")
def alone(uri: str, folder: Path) -> list[dict]:
    return [facts(run(spec_of(uri, **other), runs_folder=folder), uri) for other in OTHERS]


def test_the_bits_of_a_run_alone_whatever_is_killed(
    cluster: RaySession, uri: str, folder: Path, orders: Orders, alone: list[dict]
) -> None:
    """The coordinator twice, one pool and the tracker are killed on the way."""
    orders.give("slow", "0.01")
    kinds = ["coordinator", "pool", "tracker", "coordinator", "pool"]
    middle = 0

    def disturb(figures: list[dict[str, float]]) -> None:
        nonlocal middle
        steps = [one.get("step", 0) for one in figures]
        middle = max(middle, min(steps))
        if kinds and max(steps) >= 12 * (6 - len(kinds)) and kill(kinds[0]):
            del kinds[0]

    found = run_together(wanted(uri, folder, "disturbed"), session=cluster, on_progress=disturb)
    assert not kinds
    assert middle > 0
    assert all(isinstance(one, Run) for one in found), found
    assert [facts(one, uri) for one in found if isinstance(one, Run)] == alone


def test_one_that_fails_is_named_and_goes_on_alone(
    cluster: RaySession, uri: str, folder: Path, orders: Orders, alone: list[dict]
) -> None:
    """Client code of one run raises: the others end as ever; mended, it goes on to the bits that it has alone."""
    asked = wanted(uri, folder, "failing", max_failures=0)
    other = sp.parse(sp.to_dict(asked[1].spec), ["model.arguments={fails: true}", "model.factory=ray_kit:Fragile"])
    asked[1] = Wanted(asked[1].folder, other)
    orders.give("raise fragile")
    found = run_together(asked, session=cluster)
    assert isinstance(found[1], ClientWorkError)
    assert "no such sensor" in str(found[1])
    assert any("atoll resume" in note for note in found[1].__notes__)
    for number in (0, 2):
        one = found[number]
        assert isinstance(one, Run)
        assert facts(one, uri) == alone[number]
    orders.withdraw()
    expected = run(sp.parse(sp.to_dict(other), ["runtime={kind: inline, lanes: 4}"]), runs_folder=folder)
    mended = resume(folder / "failing-1", session=cluster)
    assert facts(mended, uri) == facts(expected, uri)
