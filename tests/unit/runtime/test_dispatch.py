"""Which pool gets which block, and what happens to blocks whose pool died, ran out of memory or raised."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.errors import ClientWorkError, InfrastructureError
from atoll.messages import Block
from atoll.runtime.dispatch import Dispatcher
from atoll.runtime.events import Train


def block(number: int, *, step: int = 0, examples: int = 100, lanes: int = 2) -> Block:
    return Block(
        block_id=number, task_id=np.arange(lanes), client_id=np.arange(lanes) + 10 * number,
        start_version=np.full(lanes, max(step - 1, 0), np.int32), step=np.full(lanes, step, np.int32),
        num_examples=np.full(lanes, examples), weight=np.ones(lanes), example_weight=np.ones(lanes),
    )  # fmt: skip


def dispatcher(pools, blocks, *, max_failures: int = 3) -> Dispatcher:
    made = Dispatcher(pools, window_steps=4, max_failures=max_failures)
    for found in blocks:
        made.add(found)
    return made


def experienced(pools, blocks) -> Dispatcher:
    """Knows what a block costs: until then calls hold one block each."""
    made = dispatcher(pools, [block(99)])
    (call,) = made.train()
    made.returned(call.call, 0.01)
    for found in blocks:
        made.add(found)
    return made


def ids(call: Train) -> list[int]:
    return [found.block_id for found in call.blocks]


def resident(calls: list[Train]) -> int:
    return sum(len(call.blocks) for call in calls)


# ---- giving -------------------------------------------------------------------------------------------------------


def test_without_pools_nothing_is_given_away() -> None:
    made = dispatcher([], [block(0)])
    assert list(made.train()) == []
    assert made.evaluate(0) is None
    assert made.versions_in_evaluation == []
    made.pool_ready(3)
    (call,) = made.train()
    assert (call.pool, ids(call)) == (3, [0])
    assert made.evaluate(0) is not None


def test_a_pool_holds_one_call_that_runs_and_one_that_waits() -> None:
    made = dispatcher([0, 1], map(block, range(40)))
    calls = list(made.train())
    assert sorted(call.pool for call in calls) == [0, 0, 1, 1]
    assert list(made.train()) == []
    made.returned(calls[0].call, 0.1)
    (more,) = made.train()
    assert more.pool == calls[0].pool


def test_every_block_is_given_once_and_calls_have_numbers_of_their_own() -> None:
    made = dispatcher([0, 1, 2], (block(number, examples=50 + 31 * number) for number in range(100)))
    given, calls, numbers = [], list(made.train()), set()
    while calls:
        call = calls.pop(0)
        given += ids(call)
        numbers.add(call.call)
        made.returned(call.call, 0.2)
        calls += made.train()
    assert sorted(given) == list(range(100))
    assert len(numbers) >= 6


def test_a_call_names_the_versions_that_its_blocks_start_from() -> None:
    made = dispatcher([0], [block(0, step=3), block(1, step=2), block(2, step=3)])
    calls = list(made.train())
    for call in calls:
        assert call.versions == tuple(sorted({int(found.start_version[0]) for found in call.blocks}))


def test_before_it_is_known_what_work_costs_a_call_holds_one_block() -> None:
    made = dispatcher([0, 1], map(block, range(40)))
    assert [len(call.blocks) for call in made.train()] == [1, 1, 1, 1]


def test_what_is_due_first_goes_first_and_windows_do_not_mix() -> None:
    blocks = [block(number, step=step) for number, step in enumerate([9, 8, 5, 4, 1, 0, 2, 3])]
    made = dispatcher([0], blocks)
    order = []
    while calls := list(made.train()):
        for call in calls:
            assert len({int(found.step.min()) // 4 for found in call.blocks}) == 1
            order += ids(call)
            made.returned(call.call, 0.0)
    assert order == [4, 5, 6, 7, 2, 3, 0, 1]


def test_calls_grow_until_they_are_worth_their_overhead() -> None:
    """Many small blocks travel together; how many, what the first ones took decides."""

    def sizes(seconds_per_block: float) -> list[int]:
        made = dispatcher([0], map(block, range(400)))
        found = []
        for _ in range(6):
            for call in list(made.train()):
                found.append(len(call.blocks))
                made.returned(call.call, seconds_per_block * len(call.blocks))
        return found

    assert max(sizes(1e-3)) > 20
    assert sizes(1.0)[2:] == [1] * len(sizes(1.0)[2:])


# ---- losing -------------------------------------------------------------------------------------------------------


def test_a_lost_pool_gives_its_blocks_back_and_gets_none_before_it_is_ready() -> None:
    made = dispatcher([0, 1], map(block, range(12)))
    calls = list(made.train())
    lost = {number for call in calls if call.pool == 0 for number in ids(call)}
    assert made.pool_lost(0, is_out_of_memory=False) == []
    for call in calls:
        if call.pool == 1:
            made.returned(call.call, 0.1)
    again: list[int] = []
    while more := list(made.train()):
        for call in more:
            assert call.pool == 1
            again += ids(call)
            made.returned(call.call, 0.1)
    assert lost <= set(again)
    made.add(block(99))
    made.pool_ready(0)
    assert [call.pool for call in made.train()] == [0]


def test_blocks_that_lost_a_pool_travel_alone_until_they_came_back() -> None:
    made = experienced([0], map(block, range(8)))
    first, second = made.train()
    assert len(first.blocks) > 1
    assert len(second.blocks) > 1
    lost = {*ids(first), *ids(second)}
    made.pool_lost(0, is_out_of_memory=False)
    made.pool_ready(0)
    seen: set[int] = set()
    while seen < lost:
        for call in made.train():
            assert len(call.blocks) == 1 or not set(ids(call)) & lost
            seen.update(ids(call))
            made.returned(call.call, 0.01)
    for found in map(block, lost):
        made.add(found)
    assert resident(list(made.train())) > 2, "once they came back they are as good as others"


def test_a_block_that_lost_a_pool_does_not_join_one_that_did_not() -> None:
    made = dispatcher([0], [block(2)])
    list(made.train())
    made.pool_lost(0, is_out_of_memory=False)
    for number in (0, 1, 3, 4, 5, 6, 7, 8, 9):
        made.add(block(number))
    made.pool_ready(0)
    sizes = []
    while calls := list(made.train()):
        for call in calls:
            assert 2 not in ids(call) or len(call.blocks) == 1
            sizes.append(len(call.blocks))
            made.returned(call.call, 0.01)
    assert max(sizes) > 1


def test_a_late_answer_of_a_lost_pool_is_ignored() -> None:
    made = dispatcher([0], [block(0)])
    (call,) = made.train()
    evaluation = made.evaluate(5)
    assert evaluation is not None
    made.pool_lost(0, is_out_of_memory=False)
    made.returned(call.call, 0.1)
    assert not made.evaluated(evaluation.call)
    assert made.out_of_memory(call.call) == []
    assert made.failed(call.call, ClientWorkError("late")) == []
    made.pool_ready(0)
    (again,) = made.train()
    assert ids(again) == [0]


def test_evaluations_are_handed_back() -> None:
    made = dispatcher([0, 1], [])
    calls = [made.evaluate(version) for version in (0, 4, 8, 12)]
    assert made.versions_in_evaluation == [0, 4, 8, 12]
    lost = [version for call, version in zip(calls, (0, 4, 8, 12), strict=True) if call is not None and call.pool == 0]
    assert len(lost) == 2, "they are spread"
    assert made.pool_lost(0, is_out_of_memory=False) == lost
    left = next(call for call in calls if call is not None and call.pool == 1)
    assert made.out_of_memory(left.call) == [left.version]
    other = next(call for call in calls if call is not None and call.pool == 1 and call is not left)
    assert made.failed(other.call, ClientWorkError("odd")) == [other.version]
    assert made.versions_in_evaluation == []
    again = made.evaluate(4)
    assert again is not None
    assert made.evaluated(again.call)
    assert not made.evaluated(again.call), "once"


def test_a_block_that_kills_every_pool_is_found_and_ends_the_run() -> None:
    made = dispatcher([0], [block(0, lanes=8), block(1)])
    deaths = 0

    def live_on_until_block_0_runs() -> None:
        """The pool dies whenever block 0 is what it works on."""
        nonlocal deaths
        while True:
            calls = list(made.train())
            running = min(calls, key=lambda call: call.call)
            if 0 in ids(running):
                deaths += 1
                made.pool_lost(0, is_out_of_memory=False)
                made.pool_ready(0)
            else:
                made.returned(running.call, 0.1)

    with pytest.raises(InfrastructureError, match=r"block 0 \(8 lanes.*died 8 times.*runtime\.lanes=4"):
        live_on_until_block_0_runs()
    assert deaths in (8, 9)


def test_only_the_call_that_ran_is_to_blame() -> None:
    """The second call waits in line: however often its pool dies, it is not what killed it."""
    made = dispatcher([0], [block(0), block(1)])
    for _ in range(7):
        first, second = made.train()
        assert (ids(first), ids(second)) == ([0], [1])
        made.pool_lost(0, is_out_of_memory=False)
        made.pool_ready(0)
    first, second = made.train()
    made.returned(first.call, 0.1)  # the eighth time block 0 comes back
    for _ in range(7):
        made.pool_lost(0, is_out_of_memory=False)
        made.pool_ready(0)
        (second,) = made.train()
        assert ids(second) == [1]
    with pytest.raises(InfrastructureError, match="block 1 "):
        made.pool_lost(0, is_out_of_memory=False)


def test_an_evaluation_that_ran_is_not_counted_against_a_block() -> None:
    made = dispatcher([0], [block(0)])
    for _ in range(20):
        evaluation = made.evaluate(0)
        (call,) = made.train()
        assert evaluation is not None
        assert evaluation.call < call.call
        made.evaluated(evaluation.call)
        made.returned(call.call, 0.1)
        made.add(block(0))


# ---- memory -------------------------------------------------------------------------------------------------------


def one_by_one(count: int) -> list[Block]:
    """Blocks of a window each, so that none travels with another: what is resident can be counted."""
    return [block(number, step=4 * number) for number in range(count)]


def give_back(made: Dispatcher, calls: list[Train]) -> int:
    """The oldest call returns, and what is given then is added; how many blocks are resident."""
    made.returned(calls.pop(0).call, 0.1)
    calls += made.train()
    return resident(calls)


@pytest.mark.parametrize("is_pool_lost", [False, True])
def test_after_memory_ran_out_half_as_many_are_resident_and_one_more_after_fifty_each(is_pool_lost: bool) -> None:
    """In the whole run, not in the one pool; and always the same blocks."""
    made = dispatcher(range(4), one_by_one(300))
    calls = list(made.train())
    assert resident(calls) == 8
    if is_pool_lost:
        assert made.pool_lost(0, is_out_of_memory=True) == []
        made.pool_ready(0)
        calls = [call for call in calls if call.pool]
    else:
        assert made.out_of_memory(calls.pop(0).call) == []
    assert list(made.train()) == [], "the others come back first"
    while resident(calls) > 4:
        calls_before = len(calls)
        give_back(made, calls)
        assert len(calls) <= calls_before
    came_back = 2 if is_pool_lost else 3
    seen = []
    for _ in range(220):
        seen.append(give_back(made, calls))
    first = 50 - came_back - 1
    assert seen[:first] == [4] * first
    assert seen[first : first + 150] == [5] * 50 + [6] * 50 + [7] * 50
    assert set(seen[first + 150 :]) == {8}


def test_a_pool_that_died_of_something_else_leaves_the_limit_as_it_is() -> None:
    made = dispatcher(range(4), one_by_one(300))
    list(made.train())
    made.pool_lost(0, is_out_of_memory=False)
    made.pool_ready(0)
    assert resident(list(made.train())) == 2


def test_a_limit_holds_within_a_call_too() -> None:
    """Blocks that would travel together by the dozen are held back one by one."""
    made = dispatcher([0, 1, 2], one_by_one(6))
    calls = list(made.train())
    made.out_of_memory(calls.pop(0).call)
    while calls:
        made.returned(calls.pop(0).call, 1e-6)  # so quick that dozens would make one call
        calls += made.train()
    for number in range(100, 200):
        made.add(block(number))
    assert sorted(len(call.blocks) for call in made.train()) == [3]


def test_one_block_at_least_is_resident() -> None:
    made = dispatcher([0, 1], one_by_one(50))
    for _ in range(5):
        calls = list(made.train())
        made.out_of_memory(calls[0].call)
        for call in calls[1:]:
            made.returned(call.call, 0.1)
    assert resident(list(made.train())) == 1


def test_memory_that_runs_out_again_halves_again_and_calm_begins_anew() -> None:
    made = dispatcher([0], one_by_one(300))
    list(made.train())
    made.pool_lost(0, is_out_of_memory=True)
    made.pool_ready(0)
    calls = list(made.train())
    assert resident(calls) == 1
    assert [give_back(made, calls) for _ in range(50)] == [1] * 49 + [2]
    assert [give_back(made, calls) for _ in range(40)] == [2] * 40
    made.out_of_memory(calls.pop(0).call)
    assert list(made.train()) == []
    assert [give_back(made, calls) for _ in range(50)] == [1] * 49 + [2], "the forty do not count"


# ---- failing ------------------------------------------------------------------------------------------------------


def test_a_call_that_raised_is_tried_again_block_by_block() -> None:
    made = experienced([0], map(block, range(8)))
    first, second = made.train()
    assert len(first.blocks) > 1
    made.failed(first.call, ClientWorkError("odd"))
    made.returned(second.call, 0.01)
    again = []
    while calls := list(made.train()):
        for call in calls:
            assert len(call.blocks) == 1 or not set(ids(call)) & set(ids(first))
            again += ids(call)
            made.returned(call.call, 0.01)
    assert set(ids(first)) <= set(again)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_the_first_error_is_told_where_the_budget_is_used_up(budget: int) -> None:
    made = dispatcher([0], [block(0)], max_failures=budget)
    for number in range(budget):
        (call,) = made.train()
        made.failed(call.call, ClientWorkError(f"number {number}"))
    (call,) = made.train()
    with pytest.raises(ClientWorkError, match="number 0" if budget else "last"):
        made.failed(call.call, ClientWorkError("last"))


def test_failures_are_not_deaths() -> None:
    """A block may fail as often as the budget allows and still lose its pool eight times before it ends the run."""
    made = dispatcher([0], [block(0)], max_failures=100)
    for _ in range(50):
        (call,) = made.train()
        made.failed(call.call, ClientWorkError("odd"))
    for _ in range(7):
        (call,) = made.train()
        made.out_of_memory(call.call)
    (call,) = made.train()
    with pytest.raises(InfrastructureError):
        made.out_of_memory(call.call)


# ---- sizes --------------------------------------------------------------------------------------------------------


def costing(pools, seconds: float, blocks) -> Dispatcher:
    """Knows that a block takes so long."""
    made = dispatcher(pools, [block(999)])
    (call,) = made.train()
    made.returned(call.call, seconds)
    for found in blocks:
        made.add(found)
    return made


def test_a_window_that_is_small_is_shared_out_whole() -> None:
    made = costing([0, 1], 1e-3, map(block, range(40)))
    assert [(call.pool, len(call.blocks)) for call in made.train()] == [(0, 20), (1, 20)]


def test_calls_get_smaller_towards_the_end_of_a_window() -> None:
    made = costing([0, 1], 1e-2, map(block, range(64)))
    calls, sizes = list(made.train()), []
    while calls:
        call = calls.pop(0)
        sizes.append(len(call.blocks))
        made.returned(call.call, 1e-2 * len(call.blocks))
        calls += made.train()
    assert sum(sizes) == 64
    assert sizes[0] > 10
    assert max(sizes[-2:]) <= 4


def test_where_windows_have_little_work_a_call_holds_several_oldest_first() -> None:
    blocks = [block(number, step=4 * (number // 3)) for number in range(12)]
    made = costing([0, 1], 1e-3, reversed(blocks))
    first, second = made.train()
    assert ids(first) == list(range(6))
    assert ids(second) == list(range(6, 12))


def test_where_a_window_has_enough_work_calls_hold_nothing_of_the_next() -> None:
    blocks = [block(number, step=4 * (number // 8)) for number in range(16)]
    made = costing([0], 1e-2, blocks)
    order = []
    while calls := list(made.train()):
        for call in calls:
            assert len({found.step[0] for found in call.blocks}) == 1
            order += ids(call)
            made.returned(call.call, 1e-2 * len(call.blocks))
    assert order == list(range(16))


def test_an_evaluation_takes_as_much_of_a_pool_as_the_last_one_did() -> None:
    made = costing([0, 1], 1e-2, ())
    first = made.evaluate(0)
    assert first is not None
    assert made.evaluated(first.call, 0.2)
    second = made.evaluate(1)
    assert second is not None
    for found in map(block, range(12)):
        made.add(found)
    calls = list(made.train())
    assert {call.pool for call in calls} == {1 - second.pool}, "the evaluation is as long as all of the window"
    assert made.evaluated(second.call, 0.2)
    for call in calls:
        made.returned(call.call, 1e-2 * len(call.blocks))
    rest = list(made.train())
    while more := [call for call in rest if made.returned(call.call, 0.1) is None]:
        calls, rest = calls + more, list(made.train())
    assert sorted(number for call in calls for number in ids(call)) == list(range(12))


# ---- what could be done at the same time --------------------------------------------------------------------------


def test_open_work_is_what_pools_have_and_what_they_could_have() -> None:
    made = dispatcher([0], [block(0), block(1)])
    assert made.open_work(1).blocks == 3
    assert made.open_work().seconds is None, "nothing has come back yet"
    (first, _) = made.train()
    made.returned(first.call, 0.5)
    assert made.open_work().blocks == 1
    assert made.open_work().seconds == pytest.approx(0.5)
    for number in range(2, 6):
        made.add(block(number))
    assert made.open_work().blocks == 5
    assert made.open_work().seconds == pytest.approx(2.5)


def test_a_retired_pool_gets_nothing_more_and_its_calls_count() -> None:
    made = dispatcher([0, 1], [block(number) for number in range(4)])
    calls = list(made.train())
    assert {call.pool for call in calls} == {0, 1}
    made.pool_retired(1)
    made.add(block(9))
    for call in calls:
        made.returned(call.call, 0.01)
    assert {call.pool for call in made.train()} == {0}
    assert made.open_work().blocks == 1
