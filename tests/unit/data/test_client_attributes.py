"""What data says beyond its rows: attributes of clients and the encoding of columns, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atoll.data import (
    Category,
    CategoryColumn,
    ClientData,
    ClientTable,
    CustomSource,
    Encoding,
    Flights,
    NumericColumn,
    Shakespeare,
    SyntheticSource,
    attributes_of,
    client_table,
    encoding_of,
    is_null,
    open_data,
)
from atoll.errors import SpecError


class Plain:
    """Client data as people wrote it before attributes and encodings existed."""

    def __init__(self) -> None:
        self._table = table()
        self.shape, self.num_clients = self._table.shape, self._table.num_clients
        self.identity, self.about = self._table.identity, self._table.about
        self.num_examples, self.counts = self._table.num_examples, self._table.counts
        self.gather, self.held_out = self._table.gather, self._table.held_out


def table(**changes: Any) -> ClientTable:
    who = np.repeat(["ann", "bob", "cid"], 2)
    return client_table(np.arange(6.0)[:, None], np.arange(6) % 2, who, task="binary", unseen=["ann"], **changes)


def test_data_that_says_nothing_has_no_attributes_and_no_encoding() -> None:
    data = open_data(CustomSource(f"{__name__}:Plain"))
    assert isinstance(data, ClientData)
    for silent in (data, table(), open_data(Shakespeare())):
        assert attributes_of(silent) == {}
        assert encoding_of(silent) is None


def test_attributes_are_in_the_order_of_clients_and_may_be_null() -> None:
    data = table(attributes={"team": {"ann": "red", "bob": "blue"}, "age": {"cid": 3.0, "bob": 2.0}})
    found = attributes_of(data)
    # ann never trains, so she comes last
    assert found["team"].tolist() == ["blue", None, "red"]
    assert is_null(found["team"]).tolist() == [False, True, False]
    assert is_null(found["age"]).tolist() == [False, False, True]
    assert data.identity == table().identity


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1.0, np.nan]), [False, True]),
        (np.array(["a", ""]), [False, True]),
        (np.array(["a", None, float("nan"), ""], dtype=object), [False, True, True, True]),
        (np.array([0, 1]), [False, False]),
    ],
)
def test_what_is_null(values: Any, expected: list[bool]) -> None:
    assert is_null(values).tolist() == expected


def test_attributes_that_are_not_one_value_per_client_are_refused_together() -> None:
    columns: Mapping[str, Any] = {"short": np.arange(1), "square": np.zeros((3, 2)), "right": np.arange(3)}
    with pytest.raises(SpecError) as caught:
        attributes_of(replace(table(), public=columns))
    assert [problem.value.split("'")[1] for problem in caught.value.problems] == ["short", "square"]


def test_an_encoding_must_fit_the_shape() -> None:
    good = Encoding((NumericColumn("x", 2.0, 0.5),))
    assert encoding_of(table(encoding=good)) == good
    bad = Encoding((NumericColumn("x", 0.0, 0.0), NumericColumn("y")), (CategoryColumn("c", ("a",)),))
    with pytest.raises(SpecError) as caught:
        encoding_of(table(encoding=bad))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("weather", [True, False])
def test_flights_know_their_aircraft(weather: bool) -> None:
    data = open_data(Flights(weather=weather))
    found = attributes_of(data)
    counts = {name: len(values) for name, values in found.items()}
    assert set(counts.values()) == {4037}
    unknown = is_null(found["age"])
    assert np.array_equal(unknown, found["age_group"] == "unknown")
    assert np.array_equal(is_null(found["seats"]), found["manufacturer"] == "unknown")
    assert (found["age_group"][~unknown] == np.select(
        [found["age"][~unknown] < 8, found["age"][~unknown] < 14], ["new", "mid"], "old"
    )).all()  # fmt: skip
    makers = {
        str(name): int(count) for name, count in zip(*np.unique(found["manufacturer"], return_counts=True), strict=True)
    }
    assert makers == {
        "AIRBUS": 736, "BOEING": 1627, "BOMBARDIER INC": 366, "EMBRAER": 299, "MCDONNELL DOUGLAS": 236,
        "other": 52, "unknown": 721,
    }  # fmt: skip
    for name in ("manufacturer", "engine", "carrier", "age_group"):
        assert not is_null(found[name]).any()


@pytest.mark.parametrize("weather", [True, False])
def test_the_encoding_of_flights_gives_their_features(weather: bool) -> None:
    data = open_data(Flights(weather=weather))
    encoding = encoding_of(data)
    assert encoding is not None
    ids = np.arange(200)
    block = data.gather(ids, np.zeros((200, 1), dtype=np.int64))
    names = [column.name for column in encoding.features]
    assert names[:2] == ["log_distance", "departure_minute"]
    age = names.index("age")
    raw = attributes_of(data)["age"][ids]
    known = ~np.isnan(raw)
    scaled = (raw[known] - encoding.features[age].mean) / encoding.features[age].std
    np.testing.assert_allclose(block["x"][known, 0, age], scaled, atol=1e-4)
    assert [column.name for column in encoding.categories] == [category.name for category in data.shape.categories]


def test_the_encoding_of_generated_data_is_the_identity() -> None:
    encoding = encoding_of(open_data(SyntheticSource(num_clients=10, num_features=2, categories=(3,))))
    assert encoding == Encoding(
        (NumericColumn("feature_0"), NumericColumn("feature_1")), (CategoryColumn("category_0", ("0", "1", "2")),)
    )


def test_a_category_without_a_shared_table_reads_as_it_always_did() -> None:
    # this text is in the identities of data that runs were begun with
    assert str(Category("a", 3)) == "Category(name='a', size=3)"
    assert str(Category("a", 3, "items")) == "Category(name='a', size=3, table='items')"
