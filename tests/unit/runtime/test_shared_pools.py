"""Client pools that come and go while runs share them; Ray is a stand-in here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.errors import SpecError
from atoll.runtime import shared as module
from atoll.runtime.places import Place
from atoll.runtime.shared import SharedPools
from atoll.runtime.software import software

VERSIONS = {name: value for name, value in software().items() if name != "processor"}


class Handle:
    """A pool that answers `open` when told to."""

    def __init__(self, number: int) -> None:
        self.number, self.opened, self.closed = number, [], []
        self.where = SimpleNamespace(remote=lambda has_gpu: ("where", self))
        self.open = SimpleNamespace(remote=lambda run, *_: self.opened.append(run) or ("open", self))
        self.close = SimpleNamespace(remote=self.closed.append)


class Calls:
    def __init__(self) -> None:
        self.pending: list[tuple[Any, Any]] = []
        self.forgotten: list[int] = []

    def expect(self, reference: Any, then: Any) -> None:
        self.pending.append((reference, then))

    def ask(self, owner: int, reference: Any, then: Any) -> None:
        self.pending.append((reference, then))

    def forget(self, owner: int) -> None:
        self.forgotten.append(owner)


class Run:
    """What the pools tell a run."""

    number, epoch, version, is_over = 0, 1, 0, False
    parts = SimpleNamespace(make_learner=None, make_evaluator=None)

    def __init__(self) -> None:
        self.ready: list[int] = []
        self.told: list[tuple[str, int]] = []

    def check(self) -> None: ...

    def pool_ready(self, pool: int) -> None:
        self.ready.append(pool)

    def pool_retired(self, pool: int) -> None:
        self.told.append(("retired", pool))

    def pool_gone(self, pool: int) -> None:
        self.told.append(("gone", pool))

    def pool_lost(self, pool: int, **_: Any) -> None:
        self.told.append(("lost", pool))


class World:
    """Two pools of four slots, one run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, least: int = 2, most: int = 4) -> None:
        self.ended: list[Handle] = []
        self.made = [Handle(number) for number in range(least)]
        monkeypatch.setattr(module, "end_process", lambda handle, place: self.ended.append(handle))
        context = SimpleNamespace(get_node_id=lambda: "driver's")
        monkeypatch.setattr(
            module, "ray", SimpleNamespace(get=lambda value: value[1], get_runtime_context=lambda: context)
        )
        self.calls, self.run = Calls(), Run()
        session: Any = SimpleNamespace(
            num_workers=least, most_workers=most, gpus_per_worker=0.0, new_pool=self.new_pool
        )
        calls: Any = self.calls
        run: Any = self.run
        self.over: Any = Run()
        self.over.is_over = True
        self.pools = SharedPools(list(self.made), session, calls, [run, self.over])
        self.pools.open(run)

    def new_pool(self) -> Handle:
        self.made.append(Handle(len(self.made)))
        return self.made[-1]

    def answer(self, nodes: tuple[str, ...] = (), kind: str = "AVX2", **differs: str) -> None:
        """All that were asked where they are, or to open, do so; in the order of their numbers."""
        pending, self.calls.pending = sorted(self.calls.pending, key=lambda one: one[0][1].number), []
        numbers = sorted({reference[1].number for reference, _ in pending})
        node = dict(zip(numbers, nodes or ["n"] * len(numbers), strict=True))
        for reference, then in pending:
            place = Place("host", 1, node[reference[1].number], {**VERSIONS, **differs}, kind)
            then((None, place if reference[0] == "where" else None))


def test_more_pools_prepare_themselves_for_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.answer()
    world.pools.resize(4)
    assert [handle.opened for handle in world.made] == [[0]] * 4
    assert (world.pools.num_wanted, world.pools.num_placed) == (4, 2)
    world.answer()
    assert world.run.ready == [0, 1, 2, 3]
    assert world.pools.num_placed == 4


def test_a_pool_that_goes_finishes_its_calls_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.answer()
    answers: list[str] = []
    run: Any = world.run
    world.pools.watch(1, run, "reference", answers.append)
    world.pools.resize(1)
    assert world.run.told == [("retired", 1)]
    assert world.ended == [], "it works"
    assert world.pools.num_wanted == 1
    (_, then) = world.calls.pending.pop()
    then((None, "sums"))
    assert answers == ["sums"]
    assert world.ended == [world.made[1]]
    assert world.run.told == [("retired", 1), ("gone", 1)]
    world.pools.resize(2)
    assert world.made[2].opened == [0], "its slot is free again"


def test_pools_without_a_place_go_first_then_whole_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, least=3, most=5)
    world.answer(("driver's", "full", "full"))
    world.pools.resize(5)
    for reference, then in world.calls.pending:
        if reference == ("where", world.made[3]):
            then((None, Place("host", 1, "lonely", VERSIONS, "AVX2")))
    for number, gone in ((4, [4]), (3, [4, 3]), (2, [4, 3, 2]), (1, [4, 3, 2, 1])):
        world.pools.resize(number)
        assert [handle.number for handle in world.ended] == gone


def test_a_pool_that_dies_on_its_way_out_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.answer()
    run: Any = world.run
    world.pools.watch(1, run, "reference", print)
    world.pools.resize(1)
    world.pools.replace(1, OSError("gone"))
    assert len(world.made) == 2
    assert world.run.told[-1] == ("lost", 1), "what it had is done again"
    assert world.pools.num_wanted == 1


def test_a_pool_that_would_end_in_other_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    with pytest.raises(SpecError, match=r"worker on host: got numpy '1.0'; need as the others: numpy"):
        world.answer(numpy="1.0")
    world = World(monkeypatch)
    world.answer()
    assert world.pools.kind == "AVX2"
    world.pools.resize(3)
    with pytest.raises(SpecError, match="got device 'AVX512'; need as the others: device 'AVX2'"):
        world.answer(kind="AVX512")


def test_a_run_that_is_over_hears_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.answer()
    world.pools.resize(4)
    world.answer()
    world.pools.resize(1)
    assert world.over.told == world.over.ready == []
    assert [kind for kind, _ in world.run.told] == ["retired", "gone"] * 3
