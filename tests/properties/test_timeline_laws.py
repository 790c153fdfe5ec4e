"""What every timeline keeps, whatever the schedule, the devices and the availability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import rng
from atoll.population import (
    Constant,
    Devices,
    Diurnal,
    DrawnSizes,
    Exponential,
    HalfNormal,
    Intervals,
    Outcome,
    PapayaHistogram,
    Population,
    Table,
)
from atoll.timeline import ROW, AsyncSchedule, SyncSchedule, Timeline, concat, stats

SECOND = 1_000_000
TRACE = Intervals(
    np.array([0, 5, 20]) * SECOND, np.array([12, 9, 30]) * SECOND, np.array([0, 1, 3, 3]), 30 * SECOND
)  # three rows: one window, two windows that wrap to nothing, never

laws = st.sampled_from([Constant(2), Table((1, 2, 3)), HalfNormal(3), Exponential(2), PapayaHistogram(0.1)])
devices = st.builds(
    Devices,
    laws,
    overhead_s=st.sampled_from([0, 1, 2.5]),
    dropout=st.sampled_from([0, 0.1, 0.5]),
    jitter_sigma=st.sampled_from([0, 0.3]),
    timeout_s=st.sampled_from([None, 2.5, 10]),
)
availabilities = st.sampled_from([None, Diurnal(0, 12, 4), TRACE])


@st.composite
def populations(draw, size=None):
    extra = {} if (availability := draw(availabilities)) is None else {"availability": availability}
    sizes = DrawnSizes("log_normal", 10, 1)
    return Population(draw(st.integers(0, 99)), size or draw(st.integers(40, 10**8)), draw(devices), sizes, **extra)


# Of the 40 clients of the smallest population, a trace with an empty row leaves 27 that ever come.
asyncs = st.builds(
    AsyncSchedule,
    st.integers(1, 27),
    st.integers(1, 12),
    st.sampled_from([None, None, 0, 1, 3]),
    st.sampled_from(["with_replacement", "without_replacement"]),
)
plain_asyncs = st.builds(AsyncSchedule, st.integers(1, 30), st.integers(1, 12))
syncs = st.builds(
    SyncSchedule,
    st.integers(1, 12),
    st.sampled_from([0, 0.3, 1]),
    st.sampled_from([None, 6 * SECOND, 60 * SECOND]),
    st.sampled_from(["with_replacement", "without_replacement"]),
)
schedules = st.one_of(asyncs, syncs)


def ended(rows):
    """Order inside an instant: arrivals and failures before the aborts that they cause."""
    return np.isin(rows["outcome"], (Outcome.ABORTED, Outcome.STALE))


@settings(max_examples=30, deadline=None)
@given(populations(), schedules, st.integers(0, 50))
def test_laws_of_every_timeline(population, schedule, seed):
    timeline = Timeline(population, schedule, seed)
    chunk = timeline.advance(25)
    rows, offsets = chunk.rows, chunk.offsets
    used = rows["outcome"] == Outcome.USED
    assert chunk.num_steps == 25
    assert offsets[0] == 0
    assert offsets[-1] == len(rows)
    assert (np.diff(rows["finish_us"]) >= 0).all()
    assert (np.diff(chunk.closed_us) >= 0).all()
    assert (rows["finish_us"] > rows["start_us"]).all()
    assert (rows["start_us"] >= 0).all()
    assert len(np.unique(rows["task_id"])) == len(rows)
    assert (rows["step"][~used] == -1).all()
    assert (rows["step"][used] >= rows["start_version"][used]).all()
    assert (rows["num_examples"] == population.num_examples(rows["client_id"])).all()
    assert population.available(rows["client_id"], rows["start_us"]).all()
    assert population.available(rows["client_id"], rows["finish_us"] - 1).all()
    for step in range(25):
        part = rows[offsets[step] : offsets[step + 1]]
        arrived = part[part["outcome"] == Outcome.USED]
        assert (arrived["step"] == step).all()
        assert part["finish_us"][-1] == chunk.closed_us[step] or isinstance(schedule, SyncSchedule)
        if isinstance(schedule, AsyncSchedule):
            assert len(arrived) == schedule.buffer_goal
            assert part["outcome"][-1] == Outcome.USED
        else:
            assert 1 <= len(arrived) <= schedule.cohort
            assert (part["start_version"] == step).all()
    same = np.flatnonzero(np.diff(rows["finish_us"]) == 0)
    keys = np.stack(
        (ended(rows), rows["task_id"] & 0xFFFFFFFF if isinstance(schedule, SyncSchedule) else rows["task_id"])
    )
    later = (keys[0, same] < keys[0, same + 1]) | (
        (keys[0, same] == keys[0, same + 1]) & (keys[1, same] < keys[1, same + 1])
    )
    if isinstance(schedule, AsyncSchedule):
        assert later.all()
        assert_async_flight(rows, schedule, population, timeline)


def assert_async_flight(rows, schedule, population, timeline):
    """Every version is that of the arrivals up to the start; C in flight, or fewer only while a slot waits."""
    used_finish = np.sort(rows["finish_us"][rows["outcome"] == Outcome.USED])
    last = int(rows["finish_us"][-1])
    inside = rows["start_us"] < last
    before = np.searchsorted(used_finish, rows["start_us"][inside], side="right")
    assert (rows["start_version"][inside] == before // schedule.buffer_goal).all()
    slot, ordinal = rows["task_id"] >> 32, rows["task_id"] & 0xFFFFFFFF
    order = np.lexsort((ordinal, slot))
    slot, ordinal, sorted_rows = slot[order], ordinal[order], rows[order]
    assert slot.max() < schedule.concurrency
    following = np.flatnonzero(slot[1:] == slot[:-1])
    assert (ordinal[1:][following] == ordinal[following] + 1).all()
    gap = sorted_rows["start_us"][following + 1] - sorted_rows["finish_us"][following]
    assert (gap >= 0).all()
    assert timeline.in_flight <= schedule.concurrency
    if population.always_available:
        assert (gap == 0).all()
        assert timeline.in_flight == schedule.concurrency
    if schedule.max_staleness is not None:
        staleness = rows["step"] - rows["start_version"]
        assert staleness[rows["outcome"] == Outcome.USED].max() <= schedule.max_staleness
    if schedule.sampling == "without_replacement":
        order = np.lexsort((rows["start_us"], rows["client_id"]))
        again = np.flatnonzero(np.diff(rows["client_id"][order]) == 0)
        assert (rows["start_us"][order][again + 1] >= rows["finish_us"][order][again]).all()


@settings(max_examples=20, deadline=None)
@given(populations(), schedules, st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_any_partition_into_advances_gives_the_same_rows(population, schedule, cuts):
    total = sum(cuts)
    whole = Timeline(population, schedule, 3)
    parts = Timeline(population, schedule, 3)
    one = whole.advance(total)
    pieces = [parts.advance(count) for count in cuts]
    joined = concat(pieces)
    assert joined.rows.tobytes() == one.rows.tobytes()
    assert joined.offsets.tolist() == one.offsets.tolist()
    assert joined.closed_us.tolist() == one.closed_us.tolist()
    assert parts.digest() == whole.digest()
    assert (parts.num_steps, parts.num_rows, parts.now_us) == (whole.num_steps, whole.num_rows, whole.now_us)
    assert parts.in_flight == whole.in_flight
    longer = Timeline(population, schedule, 3)
    assert longer.advance(total + 5).rows[: len(one.rows)].tobytes() == one.rows.tobytes()
    assert (longer.digest() == whole.digest()) is False


@settings(max_examples=20, deadline=None)
@given(populations(), schedules, st.integers(0, 9))
def test_a_version_that_is_no_longer_live_is_never_asked_for_again(population, schedule, steps):
    timeline = Timeline(population, schedule, 3)
    timeline.advance(steps)
    live = timeline.live_versions().tolist()
    # enough steps that nearly everything in flight has ended
    later = set(timeline.advance(15).rows["start_version"].tolist())
    assert {version for version in later if version < steps} <= set(live)
    assert live == sorted(set(live))
    assert max(live, default=0) <= steps


@settings(max_examples=20, deadline=None)
@given(populations(), plain_asyncs, st.integers(0, 9))
def test_window_engine_and_event_loop_agree(population, schedule, seed):
    window, heap = (Timeline(population, schedule, seed, 2, engine) for engine in ("window", "heap"))
    assert window.advance(25).rows.tobytes() == heap.advance(25).rows.tobytes()
    assert window.digest() == heap.digest()
    assert window.in_flight == heap.in_flight


def oracle(population, schedule, seed, num_steps):
    """The asynchronous rules, as plainly as they can be written: look at every slot at every instant."""
    goal, limit = schedule.buffer_goal, schedule.max_staleness
    rows, arrived, now = [], 0, 0
    slots = [None] * schedule.concurrency
    ordinal = [-1] * schedule.concurrency
    key = rng.key(seed, "select", 0)

    def start(slot):
        ordinal[slot] += 1
        task = slot << 32 | ordinal[slot]
        busy = {s["client"] for s in slots if s} if schedule.sampling == "without_replacement" else set()
        best = None
        for attempt in range(64):
            client = int(rng.integers(key, population.size, task, attempt))
            if client in busy:
                continue
            t = int(population.next_us(np.array([client]), np.array([now]))[0])
            if best is None or t < best[0]:
                best = (t, client)
        t, client = best
        part = population.participation(np.array([client]), np.array([task]), np.array([t]), 0)
        slots[slot] = {
            "task": task, "client": client, "start": t, "finish": int(part.finish_us[0]), "version": None,
            "examples": int(part.num_examples[0]), "outcome": int(part.outcome[0]),
        }  # fmt: skip

    def emit(slot, step, outcome):
        s = slots[slot]
        rows.append((s["task"], s["client"], s["start"], now, s["version"], step, s["examples"], outcome))
        slots[slot] = None

    for slot in range(schedule.concurrency):
        start(slot)
    while arrived < goal * num_steps:
        for s in slots:
            if s["version"] is None and s["start"] <= now:
                s["version"] = arrived // goal
        now = min(s["finish"] if s["version"] is not None else s["start"] for s in slots)
        free = []
        for slot, s in enumerate(slots):
            if s["version"] is not None and s["finish"] == now:
                version = arrived // goal
                stale = s["outcome"] == Outcome.USED and limit is not None and version - s["version"] > limit
                if stale:
                    continue
                outcome = s["outcome"]
                emit(slot, version if outcome == Outcome.USED else -1, outcome)
                arrived += outcome == Outcome.USED
                free.append(slot)
        for slot, s in enumerate(slots):
            if s and limit is not None and s["version"] is not None and arrived // goal - s["version"] > limit:
                emit(slot, -1, int(Outcome.STALE))
                free.append(slot)
        for slot in sorted(free):
            start(slot)
    return np.array(rows, dtype=ROW)


@settings(max_examples=15, deadline=None)
@given(populations(size=10**6), asyncs)
def test_every_async_policy_matches_the_oracle(population, schedule):
    rows = Timeline(population, schedule, 5).advance(6).rows
    assert oracle(population, schedule, 5, 6)[: len(rows)].tobytes() == rows.tobytes()


class Rewritten(Population):
    """The same population, except that the given tasks would fail much later."""

    def rewrite(self, task_ids):
        object.__setattr__(self, "late", task_ids)
        return self

    def draw(self, ids, task_ids, cluster=0):
        draw = super().draw(ids, task_ids, cluster)
        late = np.isin(task_ids, self.late)
        draw.duration_us[late] += 10**9
        draw.outcome[late] = Outcome.DROPPED
        return draw


@settings(max_examples=15, deadline=None)
@given(populations(), schedules, st.floats(0.1, 0.9))
def test_no_decision_reads_what_ends_later(population, schedule, where):
    before = Timeline(population, schedule, 1).advance(12).rows
    now = int(before["finish_us"][int(where * (len(before) - 1))])
    late = before["task_id"][before["finish_us"] > now]
    fields = (population.seed, population.size, population.devices, population.sizes, population.availability)
    after = Timeline(Rewritten(*fields).rewrite(late), schedule, 1)
    rows = after.advance(1).rows
    while rows["finish_us"][-1] <= now:
        rows = np.concatenate((rows, after.advance(1).rows))
    assert rows[rows["finish_us"] <= now].tobytes() == before[before["finish_us"] <= now].tobytes()
    names = ["task_id", "client_id", "start_us", "start_version"]
    started = [{tuple(row) for row in r[r["start_us"] <= now][names].tolist()} for r in (before, rows)]
    known = {row[0] for row in started[0]} & {row[0] for row in started[1]}
    assert {r for r in started[0] if r[0] in known} == {r for r in started[1] if r[0] in known}


@pytest.mark.parametrize("law", [HalfNormal(1), Exponential(1), PapayaHistogram()], ids=["half", "exp", "papaya"])
@pytest.mark.parametrize(
    ("concurrency", "goal", "steps"), [(1000, 10, 12_000), (100, 10, 6000), (1000, 100, 1500), (10, 10, 4000)]
)
def test_mean_staleness_is_c_minus_one_over_k(law, concurrency, goal, steps):
    timeline = Timeline(Population(11, 10**8, Devices(law)), AsyncSchedule(concurrency, goal), 11)
    timeline.advance(20 * concurrency // goal)
    total = stats(timeline.advance(steps))
    assert total.mean_staleness == pytest.approx((concurrency - 1) / goal, rel=0.02)


@pytest.mark.parametrize(
    ("concurrency", "goal", "p50", "p99", "weight"),
    [(1000, 10, 85, 324, 0.142), (100, 10, 8, 32, 0.382), (1000, 100, 8, 32, 0.379), (10, 10, 1, 3, 0.779)],
)
def test_staleness_quantiles_of_the_half_normal_law(concurrency, goal, p50, p99, weight):
    timeline = Timeline(Population(2, 10**8, Devices(HalfNormal(1))), AsyncSchedule(concurrency, goal), 2)
    timeline.advance(20 * concurrency // goal)
    total = stats(timeline.advance(100_000 // goal))
    assert total.staleness_quantile(0.5) == pytest.approx(p50, rel=0.03, abs=1 if p50 > 1 else 0)
    assert total.staleness_quantile(0.99) == pytest.approx(p99, rel=0.03, abs=1)
    share = total.staleness_counts / total.client_updates
    assert (share / np.sqrt(1 + np.arange(len(share)))).sum() == pytest.approx(weight, rel=0.02)


def test_equal_durations_with_k_equal_c_are_rounds():
    people = Population(4, 10**6, Devices(Constant(7)))
    rows = Timeline(people, AsyncSchedule(20, 20), 4).advance(30)
    rounds = Timeline(people, SyncSchedule(20), 4).advance(30)
    assert (rows.rows["step"] == rows.rows["start_version"]).all()
    assert rows.closed_us.tolist() == rounds.closed_us.tolist()
    assert (rows.rows["step"] == rounds.rows["step"]).all()
    assert (rows.rows["start_us"] == rounds.rows["start_us"]).all()


@pytest.mark.parametrize(
    ("cohort", "over_selection", "length"),
    [(10, 0, 1.87), (100, 0, 2.76), (1000, 0, 3.43), (10, 0.3, 1.11), (100, 0.3, 1.19), (1000, 0.3, 1.20)],
)
def test_round_lengths_match_order_statistics(cohort, over_selection, length):
    timeline = Timeline(Population(8, 10**8, Devices(HalfNormal(1))), SyncSchedule(cohort, over_selection), 8)
    num_rounds = {10: 600, 100: 300, 1000: 100}[cohort]
    total = stats(timeline.advance(num_rounds))
    # 13 choose the 10th: 1.14; the reference's 1.11 was rounded from a coarser run, hence the wider band at 10
    assert total.duration_s / num_rounds == pytest.approx(length, rel=0.01 if over_selection and cohort > 10 else 0.035)
    assert total.client_updates == num_rounds * cohort


def test_async_against_sync_steps_per_hour_as_in_papaya():
    people = Population(6, 10**8, Devices(PapayaHistogram(), overhead_s=39, timeout_s=240))
    ratios = []
    for concurrency, cohort in ((130, 100), (650, 500), (1300, 1000), (2600, 2000)):
        busy = Timeline(people, AsyncSchedule(concurrency, 100), 6)
        busy.advance(20 * concurrency // 100)
        rounds = stats(Timeline(people, SyncSchedule(cohort, 0.3), 6).advance(60))
        ratios.append(stats(busy.advance(800)).steps_per_hour / rounds.steps_per_hour)
    assert ratios[0] == pytest.approx(1.2, rel=0.1)
    assert ratios[-1] == pytest.approx(25, rel=0.1)
    assert ratios == sorted(ratios)
