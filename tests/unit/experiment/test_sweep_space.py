"""The words of a sweep: lists, ranges, overrides; everything that is wrong is told at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.experiment.sweep_space import Choice, Range, corners, dimension_from, read_space


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("client.lr=0.1,0.3", Choice("client.lr", (0.1, 0.3))),
        ("client.lr = 0.1 , 1e-3", Choice("client.lr", (0.1, 0.001))),
        ("model.hidden=[64],[64, 32]", Choice("model.hidden", ([64], [64, 32]))),
        ("clusters.only=null,'a,b',c", Choice("clusters.only", (None, "a,b", "c"))),
        (
            "schedule={kind: sync, cohort: 2},{kind: async, buffer_goal: 1}",
            Choice("schedule", ({"kind": "sync", "cohort": 2}, {"kind": "async", "buffer_goal": 1})),
        ),
        ("client.momentum=0..0.9", Range("client.momentum", 0.0, 0.9)),
        ("x=-1..1", Range("x", -1.0, 1.0)),
        ("client.lr=1e-3..1e1:log", Range("client.lr", 0.001, 10.0, is_log=True)),
        ("client.epochs=1..5:int", Range("client.epochs", 1.0, 5.0, is_int=True)),
        ("client.epochs=1..64:log:int", Range("client.epochs", 1.0, 64.0, is_log=True, is_int=True)),
        ("client.epochs=1..64:int:log", Range("client.epochs", 1.0, 64.0, is_log=True, is_int=True)),
    ],
)
def test_what_is_varied(argument: str, found: Choice | Range) -> None:
    assert read_space([argument, "seed=3"]) == ((found,), ("seed=3",))
    assert dimension_from(found.as_dict()) == found


@pytest.mark.parametrize(
    "argument",
    [
        "client.lr=0.1",
        "model.hidden=[64, 32]",
        "schedule={kind: sync, cohort: 2}",
        "data.path=../flights.parquet",
        "data.path=/a/../b",
        "data.path='1..2'",
        "name='a,b'",
        "no equals sign",
    ],
)
def test_what_is_an_override(argument: str) -> None:
    assert read_space(["client.lr=1,2", argument]) == ((Choice("client.lr", (1, 2)),), (argument,))


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("x=1..2:lin", "need after the range :log, :int or both"),
        ("x=1..2:", "need after the range :log, :int or both"),
        ("x=1..2:int:int", "need after the range :log, :int or both"),
        ("x=2..1", "need low below high"),
        ("x=1..1", "need low below high"),
        ("x=0..1:log", "need low above 0"),
        ("x=0.5..2:int", "need whole numbers"),
        ("x=a..b", "need a range of numbers"),
        ("x=1,,2", "need a value between commas"),
        ("x=1,2,", "need a value between commas"),
        ("x=1,2,1", "x: got 1; need each value once"),
        ("x=1,[2", "need valid YAML"),
        ("seed=1,2", "--seeds 3 runs every trial with three"),
        ("stop.server_steps=1,2", "--rungs"),
        ("runtime.workers=1,2", "trials are compared under the same conditions"),
        ("evaluation.every_steps=1..3:int", "trials are compared under the same conditions"),
    ],
)
def test_what_is_wrong(argument: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_space([argument, "ok=1,2"])
    assert told in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_of_it_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        read_space(["x=2..1", "y=1,1", "z=1,2", "z=3,4", "seed=1,2"])
    assert [one.path for one in caught.value.problems] == ["x", "y", "z", "seed"]
    with pytest.raises(SpecError, match=r"sweep: got no key with several values; need KEY=A,B,C"):
        read_space(["client.lr=0.1"])


@given(st.lists(st.one_of(st.integers(), st.booleans(), st.none()), min_size=2, max_size=6, unique_by=str))
def test_any_list_of_plain_values_is_read_back(values: list) -> None:
    import json

    text = ",".join(map(json.dumps, values))
    equal = [one for index, one in enumerate(values) if one not in values[:index]]
    if len(equal) < len(values):  # Python holds 1 and true for equal
        return
    assert read_space([f"a.b={text}"])[0] == (Choice("a.b", tuple(values)),)


def test_corners() -> None:
    space = (Choice("a", (1, 2)), Range("b", 0.0, 1.0), Range("c", 1.0, 4.0, is_int=True))
    found = corners(space)
    assert len(found) == 8
    assert {"a": 2, "b": 0.0, "c": 4} in found
    assert all(isinstance(one["c"], int) for one in found)
    wide = tuple(Range(f"k{number}", 0.0, 1.0) for number in range(20))
    few = corners(wide)
    assert len(few) == 21
    assert [sum(one.values()) for one in few] == [0.0] + [1.0] * 20
