import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import rng
from atoll.errors import PlanError
from atoll.population import Constant, Devices, Diurnal, HalfNormal, Outcome, Population, Table
from atoll.timeline import SyncSchedule, Timeline

SECOND = 1_000_000
U, D, T, A = Outcome.USED, Outcome.DROPPED, Outcome.TIMED_OUT, Outcome.ABORTED


def people(law, size=10**6, **extra):
    return Population(5, size, Devices(law, **extra))


def by_round(chunk):
    return [chunk.rows[a:b] for a, b in zip(chunk.offsets[:-1], chunk.offsets[1:], strict=True)]


def test_selected_count_is_the_exact_ceiling():
    assert SyncSchedule(10, 0.3).num_selected == 13
    assert SyncSchedule(10, 0.1).num_selected == 11
    assert SyncSchedule(10, 0.11).num_selected == 12
    assert SyncSchedule(1000, 0.3).num_selected == 1300
    assert SyncSchedule(7).num_selected == 7


def test_a_round_keeps_its_first_arrivals_and_aborts_the_rest_at_the_close():
    chunk = Timeline(people(HalfNormal(10)), SyncSchedule(10, 0.3), 2).advance(20)
    begin = 0
    for step, rows in enumerate(by_round(chunk)):
        close = int(chunk.closed_us[step])
        assert (rows["start_us"] == begin).all()
        assert rows["outcome"].tolist() == [U] * 10 + [A] * 3
        assert (rows["finish_us"][10:] == close).all()
        assert rows["finish_us"][9] == close
        whole = people(HalfNormal(10)).draw(rows["client_id"], rows["task_id"]).duration_us + begin
        assert (whole[10:] >= close).all()
        assert (rows["task_id"] >> 32 == step).all()
        assert sorted((rows["task_id"] & 0xFFFFFFFF).tolist()) == list(range(13))
        assert len(set(rows["client_id"].tolist())) == 13
        begin = close


def test_positions_are_a_keyed_permutation_of_the_members():
    rows = Timeline(people(HalfNormal(1), 50), SyncSchedule(50), 2).advance(2).rows
    for step in (0, 1):
        part = rows[rows["step"] == step]
        position = part["task_id"] & 0xFFFFFFFF
        assert (part["client_id"] == rng.permute(rng.key(2, "round", step, 0), position, 50)).all()
        assert sorted(part["client_id"].tolist()) == list(range(50))


def test_ties_at_the_close_go_by_position():
    rows = Timeline(people(Constant(5)), SyncSchedule(3, 1), 2).advance(1).rows
    assert rows["outcome"].tolist() == [U, U, U, A, A, A]
    assert (rows["task_id"] & 0xFFFFFFFF).tolist() == [0, 1, 2, 3, 4, 5]


def test_drop_outs_are_replaced_at_once_in_order_of_failure():
    chunk = Timeline(people(HalfNormal(10), dropout=0.3), SyncSchedule(10, 0.3), 2).advance(50)
    replaced = 0
    for step, rows in enumerate(by_round(chunk)):
        failed = rows[rows["outcome"] == D]
        position = rows["task_id"] & 0xFFFFFFFF
        added = rows[np.argsort(position)][13:]
        # failures at the closing instant itself need no replacement
        before = failed["finish_us"][failed["finish_us"] < chunk.closed_us[step]]
        assert added["start_us"].tolist() == before.tolist()
        assert sorted(position.tolist()) == list(range(13 + len(added)))
        assert (rows["outcome"] == U).sum() == 10
        replaced += len(added)
    assert replaced > 100


@st.composite
def cases(draw):
    law = draw(st.sampled_from([Table((1, 2, 3, 9)), HalfNormal(3)]))
    dropout = draw(st.sampled_from([0, 0.3, 0.7]))
    deadline = draw(st.sampled_from([None, 2 * SECOND, 5 * SECOND]))
    return people(law, dropout=dropout, timeout_s=8), SyncSchedule(draw(st.integers(1, 8)), 0.5, deadline)


def brute_round(population, schedule, seed, step, begin):
    """One round, microsecond order by scanning: (task position → (start, finish, outcome)), close, arrivals."""
    key = rng.key(seed, "round", step, 0)
    running, log, nxt, now = {}, [], 0, begin
    deadline = begin + schedule.deadline_us if schedule.deadline_us else 2**60

    def start():
        nonlocal nxt
        client = rng.permute(key, np.array([nxt]), population.size)
        part = population.participation(client, np.array([(step << 32) + nxt]), np.array([now]), 0)
        running[nxt] = (now, int(part.finish_us[0]), int(part.outcome[0]))
        nxt += 1

    for _ in range(schedule.num_selected):
        start()
    arrived = 0
    while True:
        now = min(min(f for _, f, _ in running.values()), deadline)
        failures = 0
        for position in sorted(p for p, task in running.items() if task[1] == now):
            begun, finish, outcome = running.pop(position)
            log.append((position, begun, finish, outcome))
            arrived += outcome == U
            failures += outcome != U
            if arrived == schedule.cohort:
                break
        if arrived == schedule.cohort or now == deadline:
            log += [(p, begun, now, int(A)) for p, (begun, _, _) in sorted(running.items())]
            return log, now, arrived
        for _ in range(failures):
            start()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_round_matches_the_oracle(case):
    population, schedule = case
    chunk = Timeline(population, schedule, 4).advance(4)
    begin = 0
    for step, rows in enumerate(by_round(chunk)):
        log, close, arrived = brute_round(population, schedule, 4, step, begin)
        if not arrived:
            return  # a repeated round has a permutation of its own
        found = [(r["task_id"] & 0xFFFFFFFF, r["start_us"], r["finish_us"], r["outcome"]) for r in rows]
        assert found == log
        assert close == chunk.closed_us[step]
        begin = close


def test_a_deadline_closes_with_what_has_arrived():
    chunk = Timeline(people(Table((1, 9))), SyncSchedule(20, deadline_us=5 * SECOND), 2).advance(3)
    assert np.diff(chunk.closed_us, prepend=0).tolist() == [5 * SECOND] * 3
    for rows in by_round(chunk):
        assert set(rows["outcome"].tolist()) == {U, A}
        assert (rows["finish_us"][rows["outcome"] == U] == rows["start_us"][0] + SECOND).all()


def test_an_arrival_at_the_very_deadline_counts():
    chunk = Timeline(people(Constant(5)), SyncSchedule(4, deadline_us=5 * SECOND), 2).advance(1)
    assert chunk.rows["outcome"].tolist() == [U] * 4


def test_an_empty_round_is_repeated_on_the_same_version_with_positions_going_on():
    chunk = Timeline(people(Table((1,) + (9,) * 9)), SyncSchedule(2, deadline_us=2 * SECOND), 2).advance(30)
    repeated = [rows for rows in by_round(chunk) if len(rows) > 2]
    assert repeated
    for rows in repeated:
        assert sorted((rows["task_id"] & 0xFFFFFFFF).tolist()) == list(range(len(rows)))
        assert len(np.unique(rows["start_version"])) == 1
        assert len(np.unique(rows["start_us"])) == len(rows) // 2
        assert (rows["outcome"][:-2] == A).all()


def test_a_deadline_nobody_can_meet_is_refused():
    with pytest.raises(PlanError, match="deadline"):
        Timeline(people(Constant(5)), SyncSchedule(4, deadline_us=SECOND), 2).advance(1)


def test_a_round_ends_short_where_everybody_has_been_asked():
    chunk = Timeline(people(HalfNormal(1), 12, dropout=0.5), SyncSchedule(10), 2).advance(20)
    used = [int((rows["outcome"] == U).sum()) for rows in by_round(chunk)]
    assert min(used) < 10
    assert min(used) >= 1
    assert max(len(rows) for rows in by_round(chunk)) <= 12


def test_sampling_with_replacement_may_choose_a_client_twice():
    rows = Timeline(people(HalfNormal(1), 5), SyncSchedule(20, sampling="with_replacement"), 2).advance(1).rows
    assert len(rows) == 20


def test_unavailable_members_are_skipped_and_rounds_wait_for_the_first_to_check_in():
    day = Population(5, 10**6, Devices(Constant(60)), availability=Diurnal(6, 2, 3))
    rows = Timeline(day, SyncSchedule(50, 0.3), 2).advance(5).rows
    assert day.available(rows["client_id"], rows["start_us"]).all()
    assert (rows["task_id"] & 0xFFFFFFFF).max() > 65
    together = Population(5, 10**6, Devices(Constant(60)), availability=Diurnal(6, 1))
    chunk = Timeline(together, SyncSchedule(5, deadline_us=100 * SECOND), 2).advance(2)
    assert (chunk.closed_us - 6 * 3600 * SECOND).tolist() == [60 * SECOND, 120 * SECOND]
