import numpy as np
import pytest

from atoll.errors import PlanError, SpecError
from atoll.population import (
    ClientSizes,
    Constant,
    Devices,
    Diurnal,
    HalfNormal,
    Intervals,
    ListedMembers,
    Outcome,
    Population,
    RandomMembers,
    Table,
)
from atoll.timeline import ROW, AsyncSchedule, SyncSchedule, Timeline, concat, stats

HOUR = 3_600_000_000


def people(law=None, size=10**6, **extra):
    return Population(1, size, Devices(law or HalfNormal(60), **extra))


def test_rows_are_48_bytes_little_endian():
    assert ROW.itemsize == 48
    assert Timeline(people(), AsyncSchedule(4, 2), 1).advance(1).rows.dtype == ROW


def test_chunks_are_read_only_and_own_their_rows():
    timeline = Timeline(people(), AsyncSchedule(100, 10), 1)
    chunk = timeline.advance(2)
    assert chunk.rows.base is None or chunk.rows.base.nbytes == chunk.rows.nbytes
    with pytest.raises(ValueError, match="read-only"):
        chunk.rows["step"] = 3


def test_no_steps_is_an_empty_chunk():
    timeline = Timeline(people(), AsyncSchedule(5, 2), 1)
    before = timeline.digest()
    chunk = timeline.advance(0)
    assert (chunk.num_steps, len(chunk.rows), chunk.offsets.tolist()) == (0, 0, [0])
    assert timeline.digest() == before
    assert timeline.in_flight == 5


def test_concat_refuses_gaps_and_nothing():
    timeline = Timeline(people(), AsyncSchedule(5, 2), 1)
    first, _, third = (timeline.advance(3) for _ in range(3))
    with pytest.raises(ValueError, match="step 3 is next"):
        concat([first, third])
    with pytest.raises(ValueError, match="no chunks"):
        concat([])
    with pytest.raises(ValueError, match="num_steps"):
        timeline.advance(-1)


def test_one_client_at_a_time_is_sequential():
    chunk = Timeline(people(Constant(3)), AsyncSchedule(1, 1), 1).advance(4)
    assert chunk.rows["start_version"].tolist() == [0, 1, 2, 3]
    assert chunk.rows["step"].tolist() == [0, 1, 2, 3]
    assert chunk.closed_us.tolist() == [3_000_000, 6_000_000, 9_000_000, 12_000_000]


def test_digest_names_everything_that_makes_the_timeline():
    base, schedule = people(), AsyncSchedule(5, 2)
    made = [
        (base, schedule, 1, 0),
        (base, schedule, 2, 0),
        (base, schedule, 1, 1),
        (base, AsyncSchedule(5, 2, max_staleness=10**6), 1, 0),
        (people(HalfNormal(61)), schedule, 1, 0),
        (base, SyncSchedule(2), 1, 0),
    ]
    digests = []
    for arguments in made:
        timeline = Timeline(*arguments)
        timeline.advance(3)
        digests.append(timeline.digest())
    assert len(set(digests)) == len(made)


def test_clusters_draw_from_their_own_members():
    for cluster in range(3):
        members = RandomMembers(1, cluster, 3)
        population = Population(1, 300, Devices(HalfNormal(1)), members=members)
        rows = Timeline(population, AsyncSchedule(20, 5), 1, cluster).advance(40).rows
        assert np.isin(rows["client_id"], members.client(np.arange(100), 300)).all()
    listed = Population(1, 100, Devices(HalfNormal(1)), members=ListedMembers(np.array([0, 7]), 10))
    rows = Timeline(listed, SyncSchedule(8), 1).advance(5).rows
    assert set((rows["client_id"] % 10).tolist()) == {0, 7}


def test_without_replacement_can_keep_everybody_busy():
    population = people(Table((1, 2, 3)), 12)
    timeline = Timeline(population, AsyncSchedule(12, 4, sampling="without_replacement"), 1)
    rows = timeline.advance(30).rows
    assert timeline.in_flight == 12
    assert set(rows["client_id"].tolist()) == set(range(12))


@pytest.mark.parametrize(
    "schedule", [AsyncSchedule(13, 4, sampling="without_replacement"), SyncSchedule(13)], ids=["async", "sync"]
)
def test_more_distinct_clients_than_there_are_is_refused(schedule):
    with pytest.raises(PlanError, match="at most 12 clients"):
        Timeline(people(size=12), schedule, 1)


def test_the_window_engine_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="window engine"):
        Timeline(people(), AsyncSchedule(2, 2, max_staleness=1), 1, engine="window")


@pytest.mark.parametrize("schedule", [AsyncSchedule(5, 2), AsyncSchedule(5, 2, 3), SyncSchedule(5)])
def test_a_population_that_is_never_there_is_refused(schedule):
    nobody = Intervals(np.array([], int), np.array([], int), np.array([0, 0]), 10)
    population = Population(1, 100, Devices(HalfNormal(1)), availability=nobody)
    with pytest.raises(PlanError, match=r"population\.availability"):
        Timeline(population, schedule, 1).advance(1)


@pytest.mark.parametrize("schedule", [AsyncSchedule(5, 2), AsyncSchedule(5, 2, 3), SyncSchedule(5)])
def test_devices_that_always_time_out_are_refused_instead_of_looping(schedule):
    with pytest.raises(PlanError, match="need"):
        Timeline(people(Constant(9), timeout_s=3), schedule, 1).advance(1)


def test_waiting_slots_start_at_the_next_window_on_the_version_of_that_time():
    population = Population(1, 1000, Devices(Constant(1800)), availability=Diurnal(6, 1))
    for engine in ("window", "heap"):
        chunk = Timeline(population, AsyncSchedule(4, 2), 1, engine=engine).advance(6)
        starts = np.unique(chunk.rows["start_us"]) / HOUR
        assert starts.tolist() == [6.0, 6.5, 30.0]
        assert (chunk.rows["start_version"] == chunk.rows["start_us"].argsort(kind="stable") // 4 * 2).all()


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: AsyncSchedule(0, 0, -1, "sometimes"), 4),
        (lambda: AsyncSchedule(2.5, 1), 1),
        (lambda: SyncSchedule(0, -1, 0, "sometimes"), 4),
    ],
)
def test_wrong_schedules_are_refused_with_all_their_problems(make, count):
    with pytest.raises(SpecError) as caught:
        make()
    assert len(caught.value.problems) == count


def test_stats_merge_to_the_stats_of_the_whole():
    arguments = (people(dropout=0.2, timeout_s=100), AsyncSchedule(50, 7), 1)
    whole = stats(Timeline(*arguments).advance(90))
    timeline = Timeline(*arguments)
    parts = [stats(timeline.advance(count)) for count in (40, 40, 10)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert len(parts) == 3
    for name in ("server_steps", "duration_us", "completions", "busy_us", "wasted_us", "used_examples"):
        assert getattr(merged, name) == getattr(whole, name)
    assert merged.outcomes.tolist() == whole.outcomes.tolist()
    assert merged.staleness_counts.tolist() == whole.staleness_counts.tolist()
    assert merged.p95_staleness == whole.p95_staleness


def test_stats_of_a_timeline_worked_by_hand():
    population = Population(1, 10, Devices(Constant(4)), ClientSizes(np.array([3])))
    total = stats(Timeline(population, AsyncSchedule(3, 2), 1).advance(3))
    # arrivals in threes at 4 s and 8 s: steps close at 4, 8, 8; everybody restarts at 4 s on version 1
    assert (total.server_steps, total.duration_us, total.client_updates, total.completions) == (3, 8_000_000, 6, 6)
    assert total.staleness_counts.tolist() == [3, 3]
    assert total.mean_staleness == pytest.approx(0.5)
    assert (total.staleness_quantile(0.5), total.p95_staleness) == (0, 1)
    assert (total.wasted_share, total.used_examples, total.mean_active_clients) == (0.0, 18, 3.0)
    assert total.steps_per_hour == pytest.approx(3 * 3600 / 8)
    assert total.failures == {"dropped": 0, "timed_out": 0, "interrupted": 0, "aborted": 0, "stale": 0}


def test_mean_active_clients_tells_async_from_sync():
    busy = stats(Timeline(people(HalfNormal(1)), AsyncSchedule(130, 100), 1).advance(300))
    rounds = stats(Timeline(people(HalfNormal(1)), SyncSchedule(100, 0.3), 1).advance(100))
    assert busy.mean_active_clients == pytest.approx(130, rel=0.01)
    assert rounds.mean_active_clients < 110
    assert rounds.wasted_share > 0.2
    assert rounds.failures["aborted"] == 3000


def test_stats_of_nothing():
    total = stats(Timeline(people(), AsyncSchedule(5, 2), 1).advance(0))
    assert np.isnan(total.mean_staleness)
    assert (total.p95_staleness, total.wasted_share, total.steps_per_hour, total.duration_us) == (-1, 0.0, 0.0, 0)


def test_too_stale_tasks_are_aborted_at_the_step_and_replaced_at_once():
    # slots of 1 s and one client type of 100 s: with K = 1 the slow one passes staleness 2 at the third step after it
    population = people(Table((1,) * 9 + (100,)), 10**6)
    schedule = AsyncSchedule(4, 4, max_staleness=2)
    chunk = Timeline(population, schedule, 1).advance(200)
    rows = chunk.rows
    stale = rows[rows["outcome"] == Outcome.STALE]
    assert len(stale) > 10
    assert np.isin(stale["finish_us"], chunk.closed_us).all()
    step_after = np.searchsorted(chunk.closed_us, stale["finish_us"], side="right")
    assert (step_after - stale["start_version"] == 3).all()
    starts = {
        (task >> 32, start) for task, start in zip(rows["task_id"].tolist(), rows["start_us"].tolist(), strict=True)
    }
    early = stale[stale["finish_us"] < rows["finish_us"][-1] - 110_000_000]
    assert all((int(r["task_id"]) >> 32, int(r["finish_us"])) in starts for r in early)
