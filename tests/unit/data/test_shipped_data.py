"""The shipped files: what SOURCES.json claims, time order, and nothing from the future among the features."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from atoll.data import Flights, Shakespeare, describe, open_data
from atoll.data.flights import shipped_files, shipped_sources
from atoll.data.shakespeare import TextWindows
from atoll.errors import SpecError


def test_files_are_those_that_sources_json_records() -> None:
    recorded = {name: sha for facts in shipped_sources().values() for name, sha in facts["files_sha256"].items()}
    shipped = {path.name for path in shipped_files().iterdir()} - {"SOURCES.json"}
    assert shipped == set(recorded)
    for name, sha in recorded.items():
        assert hashlib.sha256((shipped_files() / name).read_bytes()).hexdigest() == sha
    assert sum(path.stat().st_size for path in shipped_files().iterdir()) < 8_000_000


def test_flights_have_the_documented_size_and_balance() -> None:
    facts = describe(open_data(Flights()))
    assert facts["clients"] == 3619
    assert facts["train_examples"] + sum(facts["held_out"].values()) == 327_346
    assert (facts["min_examples"], facts["median_examples"], facts["max_examples"]) == (1, 41, 435)
    assert 0.2 < facts["label_shares"]["unseen"][1] < 0.26
    assert facts["licence"] == "CC0-1.0"


def test_flights_features_are_known_before_departure() -> None:
    names = shipped_sources()["flights"]["features"] + list(shipped_sources()["flights"]["categories"])
    assert not [name for name in names if any(word in name for word in ("delay", "actual", "air_time", "dep_time"))]


def test_flights_inside_an_aircraft_are_in_time_order_and_split_by_time() -> None:
    data = open_data(Flights())
    day = shipped_sources()["flights"]["features"].index("day_of_year")
    held_out = data.held_out()["seen"]
    for client in (5, 500, 3000):
        count = data.num_examples(np.array([client]))
        days = data.gather(np.array([client]), np.arange(count[0])[None])["x"][0, :, day]
        assert (np.diff(days) >= 0).all()
        later = held_out.arrays["x"][held_out.client == client, day]
        assert later.size == 0 or later.min() >= days.max()


def test_flights_join_gives_the_rows_the_index_points_to() -> None:
    # one flight put together by hand from the two files
    flights = pq.read_table(shipped_files() / "flights.parquet")
    tables = {row["table"]: row for row in pq.read_table(shipped_files() / "flights_tables.parquet").to_pylist()}
    first_trained = int(np.flatnonzero(flights["split"].to_numpy() != 2)[0])
    x, c = [], []
    for name, table in tables.items():
        row = flights[name][first_trained].as_py()
        x += table["x"][row * len(table["x_names"]) : (row + 1) * len(table["x_names"])]
        c += table["c"][row * len(table["c_names"]) : (row + 1) * len(table["c_names"])]
    block = open_data(Flights()).gather(np.array([0]), np.array([[0]]))
    np.testing.assert_array_equal(block["x"][0, 0], np.array(x, np.float32))
    np.testing.assert_array_equal(block["c"][0, 0], c)
    assert block["y"][0, 0] == flights["y"][first_trained].as_py()


def test_flights_training_features_are_standardised() -> None:
    data = open_data(Flights())
    counts = data.counts()
    longest = int(counts.max())
    ids = np.arange(data.num_clients)
    x = data.gather(ids, np.broadcast_to(np.arange(longest), (len(ids), longest)))["x"]
    rows = x[np.arange(longest) < counts[:, None]].astype(np.float64)
    scaled = [shipped_sources()["flights"]["features"].index(name) for name in ("distance", "departure_minute")]
    np.testing.assert_allclose(rows[:, scaled].mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(rows[:, scaled].std(0), 1, atol=1e-3)


def test_without_weather_the_other_features_stay() -> None:
    ids, positions = np.arange(4), np.zeros((4, 1), int)
    full, less = (open_data(Flights(weather=weather)).gather(ids, positions) for weather in (True, False))
    assert full["x"].shape[-1] - less["x"].shape[-1] == len(shipped_sources()["flights"]["weather_features"])
    np.testing.assert_array_equal(full["x"][..., : less["x"].shape[-1]], less["x"])


def _text(tokens: np.ndarray) -> str:
    vocabulary = shipped_sources()["shakespeare"]["vocabulary"]
    return "".join(vocabulary[token] for token in tokens)


def test_shakespeare_windows_follow_one_another_in_the_text() -> None:
    data = open_data(Shakespeare(stride=1))
    block = data.gather(np.array([0]), np.arange(200)[None])
    text = _text(block["x"][0, 0]) + _text(block["y"][0])
    for position in (1, 17, 199):
        assert _text(block["x"][0, position]) == text[position : position + 80]
    assert " " in text
    assert text.isprintable() or "\n" in text


def test_shakespeare_stride_skips_characters() -> None:
    every, tenth = open_data(Shakespeare(stride=1)), open_data(Shakespeare(stride=10))
    ids = np.array([3])
    left = every.gather(ids, np.array([[0, 10, 20]]))
    right = tenth.gather(ids, np.array([[0, 1, 2]]))
    np.testing.assert_array_equal(left["x"], right["x"])
    np.testing.assert_array_equal(left["y"], right["y"])
    assert every.num_examples(ids)[0] // 10 in (tenth.num_examples(ids)[0] - 1, tenth.num_examples(ids)[0])


def test_shakespeare_training_windows_end_before_held_out_ones_begin() -> None:
    data = open_data(Shakespeare())
    assert isinstance(data, TextWindows)
    last_target = data.starts + (data.trains - 1) * data.stride + 80
    trained = data.trains > 0
    assert (last_target[trained] < data.train_ends[trained]).all()
    assert (data.train_ends <= data.ends).all()


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (Shakespeare(window=81), ["data.window"]),
        (Shakespeare(window=0, stride=0, holdout_stride=-1), ["data.window", "data.stride", "data.holdout_stride"]),
    ],
)
def test_shakespeare_refuses_windows_that_no_role_could_fill(source: Shakespeare, places: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        open_data(source)
    assert [problem.path for problem in caught.value.problems] == places


def test_opening_shipped_data_imports_neither_torch_nor_pandas_nor_ray() -> None:
    code = (
        "import sys; from atoll.data import *; open_data(Flights()); open_data(Shakespeare());"
        "sys.exit(str({'torch', 'pandas', 'ray', 'scipy', 'pyarrow.dataset'} & set(sys.modules)) if"
        " {'torch', 'pandas', 'ray', 'scipy', 'pyarrow.dataset'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_stage_directions_in_the_speeches() -> None:
    texts = pq.read_table(shipped_files() / "shakespeare.parquet")["text"].to_pylist()
    words = [word for text in texts for word in ("Exeunt", "[Aside", "_Enter") if word in text]
    assert len(words) < 5
