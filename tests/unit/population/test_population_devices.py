from itertools import pairwise

import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.population import (
    ClientSizes,
    Constant,
    Devices,
    Diurnal,
    DrawnSizes,
    Exponential,
    FunctionSizes,
    HalfNormal,
    ListedMembers,
    LogNormal,
    Outcome,
    PapayaHistogram,
    Population,
    RandomMembers,
)

IDS = np.arange(40_000)


def rank_correlation(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_base_time_is_a_lasting_property_and_tasks_differ_only_by_jitter():
    devices = Devices(HalfNormal(10), overhead_s=2)
    people = Population(3, 10**8, devices)
    assert (people.draw(IDS, IDS).duration_us == people.draw(IDS, IDS + 77, cluster=4).duration_us).all()
    jittered = Population(3, 10**8, Devices(HalfNormal(10), jitter_sigma=0.3))
    a, b = (jittered.draw(IDS, IDS + shift).duration_us for shift in (0, 10**6))
    assert np.log(a / b).std() == pytest.approx(0.3 * np.sqrt(2), rel=0.02)


def test_draws_do_not_depend_on_company():
    people = Population(
        5,
        10**8,
        Devices(PapayaHistogram(), 0.1, 39, 0.1, 0.3, 0.8, 100),
        DrawnSizes("log_normal", 130, 1.5),
    )
    tasks = IDS[:500] << 32
    whole = people.draw(IDS[:500], tasks)
    pick = np.array([499, 3, 250])
    part = people.draw(IDS[pick], tasks[pick])
    for name in ("duration_us", "outcome", "num_examples"):
        assert (getattr(whole, name)[pick] == getattr(part, name)).all()


def test_another_seed_is_another_population():
    a, b = (Population(seed, 10**6, Devices(HalfNormal(1))).draw(IDS, IDS).duration_us for seed in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_examples_cost_time():
    people = Population(1, 10, Devices(Constant(1), per_example_s=0.5), ClientSizes(np.array([4, 10])))
    assert people.draw(np.arange(4), np.arange(4)).duration_us.tolist() == [3_000_000, 6_000_000] * 2


def test_timeout_cuts_execution_and_not_overhead():
    law = Exponential(60)
    people = Population(1, 10**6, Devices(law, overhead_s=39, timeout_s=120))
    draw = people.draw(IDS, IDS)
    late = draw.outcome == Outcome.TIMED_OUT
    assert late.mean() == pytest.approx(np.exp(-2), abs=0.01)
    assert (draw.duration_us[late] == 159_000_000).all()
    assert draw.duration_us[~late].max() <= 159_000_000


def test_dropouts_end_at_a_uniform_fraction():
    sure, shaky = (Population(1, 10**6, Devices(HalfNormal(60), 0, 39, dropout)) for dropout in (0, 0.2))
    whole, draw = sure.draw(IDS, IDS), shaky.draw(IDS, IDS)
    dropped = draw.outcome == Outcome.DROPPED
    assert dropped.mean() == pytest.approx(0.2, abs=0.01)
    assert (draw.duration_us[~dropped] == whole.duration_us[~dropped]).all()
    fraction = draw.duration_us[dropped] / whole.duration_us[dropped]
    assert np.quantile(fraction, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


@pytest.mark.parametrize("rho", [-0.7, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sizes", [DrawnSizes("log_normal", 130, 1.5), ClientSizes(np.repeat([1, 5, 9, 30], 25))])
def test_copula_correlates_and_keeps_the_marginal_law(rho, sizes):
    devices = Devices(Exponential(10), size_correlation=rho)
    base = devices.base_s(1, IDS, sizes)
    assert np.quantile(base, [0.25, 0.5, 0.9]) == pytest.approx(
        Exponential(10).quantile(np.array([0.25, 0.5, 0.9])), rel=0.04
    )
    assert np.isfinite(base).all()
    quantile = sizes.size_quantile(1, IDS)
    assert rank_correlation(base, quantile) == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=0.02)


@pytest.mark.parametrize(
    "sizes",
    [
        ClientSizes(np.repeat([1, 1, 7], 50)),
        DrawnSizes("log_normal", 100, 2, 5000),
        FunctionSizes(lambda ids: ids % 7 + 1, "seven", 10**8),
    ],
)
def test_size_quantile_is_uniform_and_ascends_with_size(sizes):
    quantile, counts = sizes.size_quantile(2, IDS), sizes.num_examples(2, IDS)
    assert quantile.min() > 0
    assert quantile.max() < 1
    assert np.quantile(quantile, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    highest = {c: quantile[counts == c].max() for c in np.unique(counts).tolist()}
    lowest = {c: quantile[counts == c].min() for c in np.unique(counts).tolist()}
    ordered = sorted(highest)
    assert all(highest[a] <= lowest[b] for a, b in pairwise(ordered))


def test_drawn_sizes():
    assert set(DrawnSizes("constant", 12).num_examples(1, IDS).tolist()) == {12}
    counts = DrawnSizes("log_normal", 130, 1.5, 1000).num_examples(1, IDS)
    assert np.median(counts) == pytest.approx(130, rel=0.05)
    assert counts.min() >= 1
    assert counts.max() == 1000
    assert DrawnSizes("log_normal", 1e6, 90).num_examples(1, IDS).max() == 2**31 - 1


def test_interrupted_at_the_end_of_the_window():
    people = Population(1, 100, Devices(Constant(7200)), availability=Diurnal(0, 1))
    part = people.participation(np.arange(2), np.arange(2), np.array([0, 1_800_000_000]))
    assert part.finish_us.tolist() == [3_600_000_000] * 2
    assert part.outcome.tolist() == [Outcome.INTERRUPTED] * 2
    short = Population(1, 100, Devices(Constant(3600)), availability=Diurnal(0, 1))
    assert short.participation(np.arange(1), np.arange(1), np.array([0])).outcome.tolist() == [Outcome.USED]


def test_random_members_partition_the_population():
    parts = [RandomMembers(9, cluster, 4) for cluster in range(4)]
    ids = [part.client(np.arange(part.count(1003)), 1003) for part in parts]
    assert sorted(np.concatenate(ids).tolist()) == list(range(1003))
    assert {len(part) for part in ids} == {250, 251}


def test_listed_members_are_exactly_the_ids_of_their_rows():
    members = ListedMembers(np.array([0, 3, 4]), 5)
    for size in range(1, 30):
        wanted = [i for i in range(size) if i % 5 in (0, 3, 4)]
        assert members.client(np.arange(members.count(size)), size).tolist() == wanted


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: Devices(Constant(1), dropout=1.0), "dropout"),
        (lambda: Devices(Constant(1), size_correlation=1.5), "size_correlation"),
        (lambda: Devices(Constant(1), timeout_s=0), "timeout_s"),
        (lambda: Devices(Constant(1), overhead_s=-1), "overhead_s"),
        (lambda: Population(1, 0, Devices(Constant(1))), "population.size"),
        (lambda: ClientSizes(np.array([], dtype=np.int64)), "counts"),
        (lambda: ClientSizes(np.array([-1])), "counts"),
        (lambda: DrawnSizes("log_normal", 0), "median"),
        (lambda: DrawnSizes("pareto"), "kind"),
        (lambda: RandomMembers(1, 4, 4), "clusters"),
        (lambda: ListedMembers(np.array([2, 1]), 4), "clusters"),
        (lambda: Population(1, 2, Devices(Constant(1)), members=RandomMembers(1, 3, 4)), "clusters"),
    ],
)
def test_wrong_records_are_refused_by_place(make, place):
    with pytest.raises(SpecError, match=place):
        make()


def test_all_problems_are_reported_together():
    with pytest.raises(SpecError) as caught:
        Devices(Constant(1), overhead_s=-1, dropout=2, timeout_s=-1)
    assert len(caught.value.problems) == 3


def test_identity_covers_every_part():
    base = Population(1, 100, Devices(LogNormal(1, 1)))
    others = [
        Population(2, 100, Devices(LogNormal(1, 1))),
        Population(1, 101, Devices(LogNormal(1, 1))),
        Population(1, 100, Devices(LogNormal(1, 2))),
        Population(1, 100, Devices(LogNormal(1, 1), dropout=0.1)),
        Population(1, 100, Devices(LogNormal(1, 1)), ClientSizes(np.array([1, 2]))),
        Population(1, 100, Devices(LogNormal(1, 1)), ClientSizes(np.array([1, 3]))),
        Population(1, 100, Devices(LogNormal(1, 1)), availability=Diurnal(1, 2)),
        Population(1, 100, Devices(LogNormal(1, 1)), members=RandomMembers(1, 0, 2)),
    ]
    assert len({person.identity for person in [base, *others]}) == len(others) + 1
    assert base.identity == Population(1, 100, Devices(LogNormal(1, 1))).identity
