"""Who may have how many client pools of a Ray cluster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.demand import Ask, Leases, Places, fair_shares

CPU, GPU = Places((("CPU", 1.0),)), Places((("CPU", 1.0), ("GPU", 0.5)))
ASKS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)).map(lambda ask: (ask[0], sum(ask))), max_size=6)


@given(asks=ASKS, capacity=st.integers(0, 60))
def test_shares_are_max_min_fair(asks: list[tuple[int, int]], capacity: int) -> None:
    shares = fair_shares(asks, capacity)
    assert all(least <= share <= wanted for share, (least, wanted) in zip(shares, asks, strict=True))
    least = sum(least for least, _ in asks)
    assert sum(shares) == max(least, min(capacity, sum(wanted for _, wanted in asks)))
    for share, (_, wanted) in zip(shares, asks, strict=True):
        if share < wanted:
            others = zip(shares, asks, strict=True)
            assert all(other <= share + 1 or other == least for other, (least, _) in others)


def ask(wanted: int, placed: int, least: int = 1, places: Places = CPU) -> Ask:
    return Ask(places, least, wanted, placed)


def test_as_long_as_there_is_room_everyone_gets_what_it_wants() -> None:
    leases = Leases()
    assert leases.renew("a", ask(8, 0), 0.0) == 8
    assert leases.renew("b", ask(3, 0), 1.0) == 3
    assert leases.floor() == [(CPU, 11)]
    leases.release("a")
    assert leases.floor() == [(CPU, 3)]


def settle(leases: Leases, wants: dict[str, int], room: int, seconds: int, placed: dict[str, int], start: int = 0):
    """Drivers renew every two seconds; who is over its share gives up at once; a pool takes four to find a place."""
    granted: dict[str, int] = {}
    moving: dict[int, list[str]] = {}
    for now in range(start, start + seconds, 2):
        for name in moving.pop(now, []):
            placed[name] += placed[name] < granted[name]
        for name, wanted in wants.items():
            granted[name] = leases.renew(name, ask(wanted, placed[name]), float(now))
            placed[name] = min(placed[name], granted[name])
        leases.expire(float(now))
        under_way = [name for names in moving.values() for name in names]
        for name in wants:
            free = room - sum(placed.values()) - len(under_way)
            coming = min(granted[name] - placed[name] - under_way.count(name), free)
            moving.setdefault(now + 4, []).extend([name] * coming)
            under_way += [name] * coming
    return granted


def test_who_waits_for_long_gets_a_fair_share_and_it_lasts() -> None:
    leases, placed = Leases(), {"a": 8, "b": 0}
    settle(leases, {"a": 16, "b": 16}, 8, 18, placed)
    assert placed == {"a": 8, "b": 0}, "a node may be on its way"
    settle(leases, {"a": 16, "b": 16}, 8, 14, placed, start=18)
    assert placed == {"a": 4, "b": 4}, "at once, and no further: those on their way count"
    settle(leases, {"a": 16, "b": 16}, 8, 200, placed, start=32)
    assert placed == {"a": 4, "b": 4}
    settle(leases, {"a": 16, "b": 16}, 10, 40, placed, start=232)
    assert sum(placed.values()) == 10, "one more is always tried, so a node that comes is noticed"
    granted = settle(leases, {"a": 16, "b": 1}, 17, 100, placed, start=272)
    assert placed == {"a": 16, "b": 1}
    assert granted == {"a": 16, "b": 1}, "the division ends when all have what they want"


def test_a_newcomer_that_wants_one_place_gets_it() -> None:
    leases, placed = Leases(), {"a": 8, "b": 0}
    settle(leases, {"a": 8, "b": 1}, 8, 60, placed)
    assert placed == {"a": 7, "b": 1}


def test_as_long_as_nodes_are_on_their_way_nobody_gives_up_any() -> None:
    leases = Leases()
    for now in range(0, 100, 2):
        assert leases.renew("a", ask(8, 8), float(now)) == 8
        assert leases.renew("b", ask(8, 0), float(now)) == 8
        assert leases.is_waited_for
        leases.expire(float(now), is_growing=True)


def test_alone_nobody_has_to_give_up_what_waits_for_nodes() -> None:
    leases, placed = Leases(), {"a": 2}
    assert settle(leases, {"a": 64}, 2, 300, placed) == {"a": 64}


def test_kinds_of_places_do_not_compete() -> None:
    leases = Leases()
    for now in range(0, 100, 2):
        cpu = leases.renew("a", ask(8, 8), float(now))
        gpu = leases.renew("b", ask(8, 0, places=GPU), float(now))
        leases.expire(float(now))
    assert (cpu, gpu) == (8, 8)
    assert sorted(leases.floor(), key=repr) == sorted([(CPU, 8), (GPU, 8)], key=repr)


def test_a_driver_that_is_not_heard_of_is_forgotten() -> None:
    leases = Leases()
    leases.renew("dead", ask(8, 8), 0.0)
    leases.renew("alive", ask(2, 2), 29.0)
    assert leases.floor() == [(CPU, 10)]
    leases.expire(31.0)
    assert leases.floor() == [(CPU, 2)]
    leases.release("dead")
