"""The shipped flights data: distinct rows (days, routes, hours of weather …) joined to one index per flight.

The files are built by scripts/build_data.py; SOURCES.json beside them records origin, licence, hashes and scaling.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from atoll.data.shape import I64, Array, Category, CategoryColumn, DataShape, Encoding, NumericColumn
from atoll.data.sources import Flights
from atoll.data.table import ClientTable, content_digest

__all__ = ["open_flights", "shipped_files", "shipped_sources", "to_numpy"]

_UNSEEN = 2
_TRAIN = 0
#: makers that the register of aircraft spells in several ways, or that it knows under former names
_MAKERS = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
}
#: youngest age, in years, of each group of aircraft
_AGE_GROUPS = {"new": 0, "mid": 8, "old": 14}
#: features whose raw value is not what their name says; missing values are the mean, with a flag
_RAW_NAMES = {"distance": "log_distance", "precip": "log1p_100_precip"}


def shipped_files() -> Path:
    """Folder of the data files that come with atoll."""
    return Path(__file__).parent / "files"


@cache
def shipped_sources() -> dict[str, Any]:
    """SOURCES.json: by dataset, its origin, licence, hashes, split rule and scaling statistics."""
    loaded: dict[str, Any] = json.loads((shipped_files() / "SOURCES.json").read_text())
    return loaded


def to_numpy(column: Any) -> Array:
    """An Arrow array of numbers without nulls as NumPy, read-only and without a copy.

    Arrow's own to_numpy imports pandas: a third of a second at the start of every worker.
    """
    values: Array = np.from_dlpack(column)
    return values


def open_flights(source: Flights) -> ClientTable:
    """Flights by aircraft: 28 numeric features (15 without weather), 9 categories, label 1 = over 15 minutes late.

    Nothing that is known only after departure is among the features. Held out: "seen" (the last fifth of each
    aircraft's flights) and "unseen" (every flight of one aircraft in ten). Features are scaled with public statistics,
    computed centrally on training rows of trained aircraft.

    Attributes of an aircraft: `manufacturer`, under one name per maker (the category of that name keeps the register's
    spellings), `engine`, `carrier` (the airline of most of its flights), `age_group` (new, mid, old: from 0, 8, 14
    years in 2013), each "unknown" where the register is silent; `age`, `seats`, `engines` as numbers, NaN there.
    """
    import pyarrow.parquet as pq

    facts = shipped_sources()["flights"]
    # ParquetFile, since read_table imports pyarrow.dataset: a third of a second
    file = shipped_files() / "flights.parquet"
    flights = pq.ParquetFile(file, memory_map=True, read_dictionary=["tailnum"]).read()
    tables = pq.ParquetFile(shipped_files() / "flights_tables.parquet").read()
    index = {name: to_numpy(flights[name].combine_chunks()) for name in flights.column_names if name != "tailnum"}
    # encoded as it is stored: Arrow's dictionary_encode would import pyarrow.compute
    aircraft = to_numpy(flights["tailnum"].combine_chunks().indices)

    # trained aircraft first, each group in the file's order (tail number, then time)
    order = np.argsort(index["split"] == _UNSEEN, kind="stable")
    aircraft, split = aircraft[order], index["split"][order]
    starts = np.flatnonzero(np.diff(aircraft, prepend=-1))
    ends = np.append(starts[1:], len(order))
    trains = np.add.reduceat((split == _TRAIN).astype(np.int64), starts)

    # filled in place: a second copy of the features would double the time
    width = len(facts["features"]) - (0 if source.weather else len(facts["weather_features"]))
    x = np.empty((len(order), width), dtype=np.float32)
    c = np.empty((len(order), len(facts["categories"])), dtype=np.int16)
    categories: list[Category] = []
    filled = 0
    names: list[str] = tables["table"].to_pylist()
    for row, name in enumerate(names):
        rows, height = index[name][order], tables["rows"][row].as_py()
        x_part = to_numpy(tables["x"][row].values).reshape(height, -1)
        c_part = to_numpy(tables["c"][row].values).reshape(height, -1)
        if source.weather or name != "weather":
            x[:, filled : filled + x_part.shape[1]] = x_part[rows]
            filled += x_part.shape[1]
        c[:, len(categories) : len(categories) + c_part.shape[1]] = c_part[rows]
        columns = tables["c_names"][row].as_py()
        categories += [Category(column, len(facts["categories"][column])) for column in columns]
    return ClientTable(
        shape=DataShape("binary", 2, (width,), categories=tuple(categories)),
        num_clients=int(np.count_nonzero(trains)),
        identity=content_digest("flights", str(source), json.dumps(facts["files_sha256"], sort_keys=True)),
        x=x,
        y=index["y"][order],
        c=c,
        starts=starts,
        ends=ends,
        trains=trains,
        about={name: facts[name] for name in ("title", "licence", "package", "version", "client", "label")},
        public=_attributes(x, c, starts, tuple(category.name for category in categories)),
        encoder=partial(_encoding, width, tuple(category.name for category in categories)),
    )


def _attributes(x: Array, c: Array, starts: I64, names: tuple[str, ...]) -> dict[str, Array]:
    """By aircraft, from the rows that begin at `starts`; an aircraft's own columns are equal in all of its rows."""
    facts = shipped_sources()["flights"]

    def number(name: str, flag: str) -> Array:
        scale = facts["statistics"][name]
        raw = x[starts, facts["features"].index(name)].astype(np.float64) * scale["std"] + scale["mean"]
        # whole numbers, of which four decimals are stored after scaling
        return np.where(x[starts, facts["features"].index(flag)] > 0, np.nan, np.rint(raw))

    def text(name: str, codes: I64) -> Array:
        values = [_MAKERS.get(value, value) for value in facts["categories"][name]]
        return np.array(values)[codes]

    age = number("age", "age_unknown")
    group = np.searchsorted(list(_AGE_GROUPS.values()), np.nan_to_num(age), side="right") - 1
    carriers = len(facts["categories"]["carrier"])
    aircraft = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(c)))
    flown = np.bincount(aircraft * carriers + c[:, names.index("carrier")], minlength=len(starts) * carriers)
    return {
        "manufacturer": text("manufacturer", c[starts, names.index("manufacturer")]),
        "engine": text("engine", c[starts, names.index("engine")]),
        "carrier": text("carrier", flown.reshape(-1, carriers).argmax(axis=1)),
        "age_group": np.where(np.isnan(age), "unknown", np.array(list(_AGE_GROUPS))[group]),
        "age": age,
        "seats": number("seats", "aircraft_unknown"),
        "engines": number("engines", "aircraft_unknown"),
    }


def _encoding(width: int, names: tuple[str, ...]) -> Encoding:
    facts = shipped_sources()["flights"]
    features = []
    for name in facts["features"][:width]:
        scale = facts["statistics"].get(name, {"mean": 0.0, "std": 1.0})
        features.append(NumericColumn(_RAW_NAMES.get(name, name), scale["mean"], scale["std"]))
    return Encoding(tuple(features), tuple(CategoryColumn(name, tuple(facts["categories"][name])) for name in names))
