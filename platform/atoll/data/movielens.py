"""MovieLens 100K: one client per user; does the user rate the movie `threshold` stars or more?

Its licence forbids redistribution, so atoll ships none of it: the three files come from an installation of the PyPI
package recbole (MIT), which is looked at and never imported, or from a folder. Either way their SHA-256 must be the
pinned ones: another copy would be other data under the same name.

Shape legend: N rows in order of (user, time), H history columns, I items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atoll.data.shape import I64, Array, Category, CategoryColumn, DataShape, Encoding, NumericColumn
from atoll.data.sources import Movielens
from atoll.data.table import ClientTable, arrange, content_digest, unseen_draw
from atoll.errors import Problem, SpecError

__all__ = ["open_movielens"]

_PACKAGE, _VERSION = "recbole", "1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
#: file → SHA-256 (hex), as recbole 1.2.1 has them
_FILES: Mapping[str, str] = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
_INSTALL = f"pip install --no-deps {_PACKAGE}=={_VERSION}"
#: youngest age, in years, of each group of users
_AGE_GROUPS = {"under-25": 0, "25-34": 25, "35-44": 35, "45-up": 45}
#: fixed, so that no statistics of the users are used: x = (raw − mean) / std; an unknown year is the mean, with a flag
_AGE = NumericColumn("age", 35.0, 12.0)
_YEAR = NumericColumn("release_year", 1990.0, 10.0)
#: value of a history column where the user has liked no further movie
_NOTHING = ""


@dataclass(frozen=True)
class _Tables:
    """The three files: ratings [N] in order of (user, time, movie); users and items are places in the other tables."""

    user: I64
    item: I64
    rating: I64
    time: I64
    items: tuple[str, ...]
    years: npt.NDArray[np.float64]
    genres: tuple[frozenset[str], ...]
    users: tuple[str, ...]
    ages: npt.NDArray[np.float64]
    genders: tuple[str, ...]
    occupations: tuple[str, ...]
    regions: tuple[str, ...]


def open_movielens(source: Movielens) -> ClientTable:
    """Ratings by user in order of time; label 1 = `threshold` stars or more.

    "x": release year (with a flag for unknown), the user's age, one 0/1 column per genre. "c": item; with `history`,
    the movies that the user liked last, the latest first, which share the item's table, whose last code means none;
    gender; occupation; with `user_id`, the user. History knows only ratings of an earlier second than the row's.

    Held out: "seen" (the last `holdout_fraction` of each user's ratings) and "unseen" (every rating of some users).
    Attributes of a user: `age`, `age_group` (from 0, 25, 35, 45 years), `gender`, `occupation`, `zip_region` (the
    first digit of the zip code, "letter" outside of the United States).

    Raises:
        SpecError: the files are absent, or not the pinned ones.
    """
    tables = _parse(_read(source.path))
    liked = tables.rating >= source.threshold
    genres = tuple(sorted(frozenset().union(*tables.genres)))
    encoding = _encoding(source, tables, genres)
    of_item = np.array([[name in held for name in genres] for held in tables.genres], dtype=np.float32)
    x = np.column_stack([*_numbers(tables), of_item[tables.item]]).astype(np.float32)
    c = np.column_stack([_codes(tables.items)[tables.item], *_history(source.history, tables, liked).T,
                         _codes(tables.genders)[tables.user], _codes(tables.occupations)[tables.user],
                         *([tables.user] if source.user_id else [])])  # fmt: skip
    unseen = np.array([unseen_draw(name) for name in tables.users]) < source.unseen_fraction
    plan = arrange(tables.user, unseen, source.holdout_fraction)
    shared = {"item", *(f"history_{place + 1}" for place in range(source.history))} if source.history else set()
    categories = tuple(
        Category(column.name, len(column.values), "item" if column.name in shared else None)
        for column in encoding.categories
    )
    return ClientTable(
        shape=DataShape("binary", 2, (x.shape[1],), categories=categories),
        num_clients=plan.num_clients,
        identity=content_digest("movielens", str(source), *_FILES.values()),
        x=x[plan.order],
        y=liked[plan.order].astype(np.int8),
        c=c[plan.order].astype(np.int16),
        starts=plan.starts,
        ends=plan.ends,
        trains=plan.trains,
        about={
            "title": "MovieLens 100K, ratings of movies",
            "licence": "GroupLens: no redistribution, no commercial use, to be cited",
            "citation": "Harper, Konstan (2015): The MovieLens Datasets. ACM TiiS 5(4), 19, doi 10.1145/2827872",
            "package": f"{_PACKAGE} {_VERSION}",
            "client": "user",
            "label": f"1 when the rating is {source.threshold} or more",
        },
        public={name: values[plan.clients] for name, values in _attributes(tables).items()},
        encoder=partial(_given, encoding),
    )


def _given(encoding: Encoding) -> Encoding:
    return encoding


def _read(path: str | None) -> dict[str, str]:
    """The files' texts by name, all of them checked."""
    folder, origin, hint = _place(path)
    texts, problems = {}, []
    for name, expected in _FILES.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            got = f"no file {name} in {origin}"
            problems.append(Problem("data.path", got, "the files of MovieLens 100K", error.strerror or "", hint))
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest == expected:
            texts[name] = content.decode("utf-8")
        else:
            got = f"{name} in {origin} with SHA-256 {digest[:12]}…"
            rule = f"the file of {_PACKAGE} {_VERSION}, {expected[:12]}…"
            problems.append(Problem("data.path", got, rule, "It is another version, or was changed", hint))
    if problems:
        raise SpecError(problems)
    return texts


def _place(path: str | None) -> tuple[Path, str, str]:
    """(folder of the files, what it is called, what to do where they are not there)."""
    if path is not None:
        return Path(path), repr(path), f"Copy {', '.join(_FILES)} from {_PACKAGE} {_VERSION}, or leave data.path out"
    try:
        found = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        why = "The licence of MovieLens forbids redistribution, so atoll ships none of it and reads your own copy"
        hint = f"Run `{_INSTALL}` where atoll runs; or set data.path to a folder with {', '.join(_FILES)}"
        got = f"null, with no package {_PACKAGE}"
        raise SpecError([Problem("data.path", got, "the files of MovieLens 100K", why, hint)]) from error
    hint = f"Run `{_INSTALL} --force-reinstall`"
    return Path(str(found.locate_file(_FOLDER))), f"the installed {_PACKAGE} {found.version}", hint


def _parse(texts: Mapping[str, str]) -> _Tables:
    ratings, items, users = (_rows(texts[name]) for name in _FILES)
    item_place = {row[0]: place for place, row in enumerate(items)}
    user_place = {row[0]: place for place, row in enumerate(users)}
    user = np.array([user_place[row[0]] for row in ratings], dtype=np.int64)
    item = np.array([item_place[row[1]] for row in ratings], dtype=np.int64)
    rating, time = (np.array([float(row[at]) for row in ratings]).astype(np.int64) for at in (2, 3))
    # movies in place of a clock: many ratings share a second, and the file's order is arbitrary
    order = np.lexsort((item, time, user))
    return _Tables(
        user=user[order],
        item=item[order],
        rating=rating[order],
        time=time[order],
        items=tuple(row[0] for row in items),
        years=np.array([float(row[2]) if row[2].isdecimal() else np.nan for row in items]),
        genres=tuple(frozenset(row[3].split()) for row in items),
        users=tuple(row[0] for row in users),
        ages=np.array([float(row[1]) for row in users]),
        genders=tuple(row[2] for row in users),
        occupations=tuple(row[3] for row in users),
        regions=tuple(row[4][0] if row[4][:1].isdecimal() else "letter" for row in users),
    )


def _rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.split("\n")[1:] if line]


def _codes(values: tuple[str, ...]) -> I64:
    """The place of every value among the distinct ones in order of `_distinct`."""
    place = {value: code for code, value in enumerate(_distinct(values))}
    return np.array([place[value] for value in values], dtype=np.int64)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _numbers(tables: _Tables) -> list[Array]:
    unknown = np.isnan(tables.years)
    year = (np.where(unknown, _YEAR.mean, tables.years) - _YEAR.mean) / _YEAR.std
    age = (tables.ages - _AGE.mean) / _AGE.std
    return [year[tables.item], unknown.astype(np.float64)[tables.item], age[tables.user]]


def _history(length: int, tables: _Tables, liked: npt.NDArray[np.bool_]) -> I64:
    """[N, H] codes of the movies that the user liked before the second of the row, the latest first; I is none."""
    codes = _codes(tables.items)[tables.item]
    liked_codes = np.append(codes[liked], len(tables.items))
    before = np.concatenate(([0], np.cumsum(liked)))
    rows = np.arange(len(codes))
    new_user = np.diff(tables.user, prepend=-1) != 0
    new_second = new_user | (np.diff(tables.time, prepend=-1) != 0)
    # of every row: how many liked rows lie before its second, and before its user
    until, since = (before[np.maximum.accumulate(np.where(new, rows, 0))] for new in (new_second, new_user))
    place = until[:, None] - 1 - np.arange(length)
    return liked_codes[np.where(place >= since[:, None], place, len(liked_codes) - 1)]


def _attributes(tables: _Tables) -> dict[str, Array]:
    group = np.searchsorted(list(_AGE_GROUPS.values()), tables.ages, side="right") - 1
    return {
        "age": tables.ages,
        "age_group": np.array(list(_AGE_GROUPS))[group],
        "gender": np.array(tables.genders),
        "occupation": np.array(tables.occupations),
        "zip_region": np.array(tables.regions),
    }


def _encoding(source: Movielens, tables: _Tables, genres: tuple[str, ...]) -> Encoding:
    features = (
        _YEAR,
        NumericColumn("release_year_unknown"),
        _AGE,
        *(NumericColumn(f"genre_{name}") for name in genres),
    )
    items = _distinct(tables.items) + ((_NOTHING,) if source.history else ())
    columns = {"item": items} | {f"history_{place + 1}": items for place in range(source.history)}
    columns |= {"gender": _distinct(tables.genders), "occupation": _distinct(tables.occupations)}
    columns |= {"user": tables.users} if source.user_id else {}
    return Encoding(features, tuple(CategoryColumn(name, values) for name, values in columns.items()))
