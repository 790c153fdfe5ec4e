"""Parquet files as client data: order, split, codes, cache, and every refusal."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoll.data import CategoryColumn, Encoding, NumericColumn, ParquetSource, attributes_of, encoding_of, open_data
from atoll.errors import SpecError

ROWS = 60


@pytest.fixture
def columns() -> dict[str, object]:
    return {
        "who": pa.array([f"u{i % 6}" for i in range(ROWS)]),
        "label": pa.array([i % 2 for i in range(ROWS)]),
        "when": pa.array([float(i) for i in range(ROWS)]),
        "flag": pa.array([i % 3 == 0 for i in range(ROWS)]),
        "place": pa.array([("b", "a", "c")[i % 3] for i in range(ROWS)]).dictionary_encode(),
    }


@pytest.fixture
def path(tmp_path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def _source(path: Path, **changes: object) -> ParquetSource:
    base = ParquetSource(str(path), "who", "label", ("when", "flag"), ("place",), unseen_fraction=0.0)
    return replace(base, **changes)


def _places(source: ParquetSource) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        open_data(source)
    return [(problem.path, str(problem)) for problem in caught.value.problems]


def test_rows_keep_file_order_and_the_last_fifth_is_held_out(path: Path) -> None:
    data = open_data(_source(path))
    assert data.num_clients == 6
    assert data.counts().tolist() == [8] * 6
    when = data.gather(np.arange(6), np.broadcast_to(np.arange(8), (6, 8)))["x"][:, :, 0]
    np.testing.assert_array_equal(when, np.arange(6)[:, None] + 6 * np.arange(8))
    seen = data.held_out()["seen"]
    np.testing.assert_array_equal(seen.arrays["x"][seen.client == 2, 0], [50, 56])


def test_values_get_codes_in_sorted_order(path: Path) -> None:
    data = open_data(_source(path))
    block = data.gather(np.arange(6), np.zeros((6, 1), int))
    assert data.shape.categories[0].size == 3
    np.testing.assert_array_equal(block["c"][:, 0, 0], [1, 0, 2, 1, 0, 2])
    np.testing.assert_array_equal(block["x"][:, 0, 1], [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(block["y"][:, 0], [0, 1, 0, 1, 0, 1])


def test_a_folder_is_its_files_in_order_of_name(path: Path, columns: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    table = pa.table(columns)
    pq.write_table(table.slice(25), folder / "b.parquet")
    pq.write_table(table.slice(0, 25), folder / "a.parquet")
    whole, parts = open_data(_source(path)), open_data(_source(folder))
    ids, positions = np.arange(6), np.broadcast_to(np.arange(8), (6, 8))
    for name, values in whole.gather(ids, positions).items():
        np.testing.assert_array_equal(values, parts.gather(ids, positions)[name])


def test_features_default_to_every_other_column(path: Path) -> None:
    assert open_data(_source(path, features=None)).shape.x_shape == (2,)


def test_a_multiclass_text_label_and_no_features(path: Path) -> None:
    data = open_data(_source(path, label_column="place", features=(), categories=("flag",), task="multiclass"))
    assert (data.shape.num_classes, data.shape.x_shape, data.shape.num_outputs) == (3, (0,), 3)
    block = data.gather(np.arange(2), np.zeros((2, 1), int))
    assert block["x"].shape == (2, 1, 0)
    np.testing.assert_array_equal(block["y"][:, 0], [1, 0])


def test_unseen_clients_do_not_depend_on_who_else_is_there(tmp_path: Path) -> None:
    def unseen(num_clients: int) -> set[int]:
        path = tmp_path / f"{num_clients}.parquet"
        ids = np.repeat(np.arange(num_clients), 2)
        pq.write_table(pa.table({"who": ids, "label": np.arange(len(ids)) % 2, "same": ids}), path)
        part = open_data(_source(path, features=("same",), categories=(), unseen_fraction=0.3)).held_out()["unseen"]
        return set(part.arrays["x"][:, 0].astype(int).tolist())

    few, many = unseen(50), unseen(100)
    assert few == {client for client in many if client < 50}
    assert 15 <= len(many) <= 45


def test_the_cache_is_used_and_a_changed_file_is_read_anew(path: Path, columns: dict[str, object]) -> None:
    before = open_data(_source(path))
    cache = Path(f"{path}.atoll-cache")
    folders = sorted(cache.iterdir())
    assert len(folders) == 1
    stamp = (folders[0] / "about.json").stat().st_mtime_ns
    assert open_data(_source(path)).identity == before.identity
    assert (folders[0] / "about.json").stat().st_mtime_ns == stamp

    os.utime(path, ns=(1, 1))
    assert open_data(_source(path)).identity == before.identity
    columns["when"] = pa.array([float(-i) for i in range(ROWS)])
    pq.write_table(pa.table(columns), path)
    changed = open_data(_source(path))
    assert changed.identity != before.identity
    assert changed.gather(np.array([1]), np.array([[0]]))["x"][0, 0, 0] == -1


def test_a_named_cache_folder_and_other_settings_do_not_collide(path: Path, tmp_path: Path) -> None:
    one = open_data(_source(path, cache=str(tmp_path / "cache")))
    two = open_data(_source(path, cache=str(tmp_path / "cache"), holdout_fraction=0.5))
    assert one.identity != two.identity
    assert two.counts().tolist() == [5] * 6
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not Path(f"{path}.atoll-cache").exists()


def test_opens_at_the_same_time_agree_and_leave_one_copy(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_data, [_source(path)] * 4))
    ids, positions = np.arange(6), np.broadcast_to(np.arange(8), (6, 8))
    for data in opened:
        assert data.identity == opened[0].identity
        np.testing.assert_array_equal(data.gather(ids, positions)["x"], opened[0].gather(ids, positions)["x"])
    assert len(list(Path(f"{path}.atoll-cache").iterdir())) == 1


def test_a_cache_folder_that_cannot_be_made_is_named(path: Path) -> None:
    ((place, _),) = _places(_source(path, cache=str(path / "below a file")))
    assert place == "data.path"


def test_a_missing_file_and_bad_fractions_are_named_together(tmp_path: Path) -> None:
    found = _places(_source(tmp_path / "absent.parquet", holdout_fraction=1.0, unseen_fraction=-0.1))
    assert [place for place, _ in found] == ["data.holdout", "data.unseen", "data.path"]
    assert [place for place, _ in _places(_source(tmp_path))] == ["data.path"]


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("a,b\n1,2\n")
    assert "need a Parquet file" in _places(_source(tmp_path / "rows.parquet"))[0][1]


def test_absent_columns_name_the_nearest_one(path: Path) -> None:
    found = _places(_source(path, client_column="whom", label_column="labels", features=("wen", "zzz")))
    assert [place for place, _ in found] == [
        "data.client_column", "data.label_column", "data.features", "data.features",
    ]  # fmt: skip
    for (_, text), name in zip(found[:3], ("who", "label", "when"), strict=True):
        assert f"did you mean '{name}'" in text
    assert "columns: who, label" in found[3][1]


def test_text_features_must_be_declared_as_categories(path: Path) -> None:
    ((place, text),) = _places(_source(path, features=("when", "place"), categories=()))
    assert place == "data.features"
    assert "add it to data.categories" in text


def test_the_label_is_not_a_feature(path: Path) -> None:
    found = _places(_source(path, features=("when", "label"), categories=("label",)))
    assert [place for place, _ in found] == ["data.categories", "data.features"]


def test_integers_beyond_float_precision_are_rounded_not_refused(path: Path, columns: dict[str, object]) -> None:
    columns["when"] = pa.array([2**60 + i for i in range(ROWS)])
    pq.write_table(pa.table(columns), path)
    assert open_data(_source(path)).gather(np.array([0]), np.array([[0]]))["x"][0, 0, 0] == 2.0**60


def test_a_fractional_category_is_refused(path: Path) -> None:
    ((place, _),) = _places(_source(path, features=(), categories=("when",)))
    assert place == "data.categories"


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 1e300])
def test_missing_and_infinite_values_are_counted_and_located(
    path: Path, columns: dict[str, object], bad: float | None
) -> None:
    values = [float(i) for i in range(ROWS)]
    values[7] = values[33] = bad
    columns["when"] = pa.array(values)
    labels = [i % 2 for i in range(ROWS)]
    labels[41] = None
    columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), path)
    found = dict(_places(_source(path)))
    assert "2 missing or infinite values, first in row 7 of rows.parquet" in found["data column 'when'"]
    assert "1 missing or infinite values, first in row 41" in found["data column 'label'"]
    assert not list(path.parent.glob("*.atoll-cache/*"))


def test_an_empty_file(path: Path, columns: dict[str, object]) -> None:
    pq.write_table(pa.table(columns).slice(0, 0), path)
    assert "need at least one row" in _places(_source(path))[0][1]


def test_labels_that_do_not_fit_the_task(path: Path) -> None:
    ((place, text),) = _places(_source(path, label_column="place", categories=()))
    assert place == "data.label_column"
    assert "task: multiclass" in text
    found = _places(_source(path, label_column="when", features=("flag",)))
    assert "3 distinct" in text
    assert "60 distinct" in found[0][1]


def test_files_of_different_columns_are_refused(path: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": ["u1"], "label": [1]}), tmp_path / "z.parquet")
    found = _places(_source(tmp_path))
    assert [place for place, _ in found] == ["data.path"]
    assert "z.parquet" in found[0][1]


def test_attributes_are_one_value_per_client_and_no_default_features(path: Path, columns: dict[str, object]) -> None:
    numbers = [(2.5, None, 1.0, float("nan"), 0.5, 7.0)[i % 6] for i in range(ROWS)]
    columns |= {
        "team": pa.array([("red", "blue", None)[i % 3] for i in range(ROWS)]).dictionary_encode(),
        "size": pa.array([(i % 6) * 10 for i in range(ROWS)]),
        "rank": pa.array([None if i % 6 == 1 else i % 6 for i in range(ROWS)]),
        "height": pa.array(numbers),
        "old": pa.array([i % 2 == 0 for i in range(ROWS)]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    names = ("team", "size", "rank", "height", "old")
    data = open_data(_source(path, features=None, attributes=names))
    assert data.shape.x_shape == (2,)
    found = attributes_of(data)
    assert list(found) == list(names)
    assert found["team"].tolist() == ["red", "blue", "", "red", "blue", ""]
    assert found["size"].tolist() == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(found["rank"], [0, np.nan, 2, 3, 4, 5])
    np.testing.assert_array_equal(found["height"], [2.5, np.nan, 1, np.nan, 0.5, 7])
    assert found["old"].tolist() == [1, 0, 1, 0, 1, 0]


def test_attributes_follow_the_order_of_clients(path: Path, columns: dict[str, object]) -> None:
    columns["number"] = pa.array([i % 6 for i in range(ROWS)])
    pq.write_table(pa.table(columns), path)
    data = open_data(_source(path, attributes=("number",), unseen_fraction=0.6))
    order = attributes_of(data)["number"]
    assert data.num_clients < 6
    assert sorted(order.tolist()) == list(range(6))
    assert order.tolist() != list(range(6))
    np.testing.assert_array_equal(
        data.gather(np.arange(data.num_clients), np.zeros((data.num_clients, 1), int))["x"][:, 0, 0],
        order[: data.num_clients],
    )


def test_an_attribute_may_be_a_feature_or_a_category_too(path: Path, columns: dict[str, object]) -> None:
    columns["team"] = pa.array([("red", "blue")[i % 2] for i in range(ROWS)])
    columns["size"] = pa.array([i % 6 for i in range(ROWS)])
    pq.write_table(pa.table(columns), path)
    data = open_data(_source(path, features=("when", "size"), categories=("team",), attributes=("team", "size")))
    assert data.shape.x_shape == (2,)
    assert attributes_of(data)["team"].tolist() == ["red", "blue"] * 3


def test_columns_that_vary_within_a_client_are_all_refused_with_counts(path: Path, columns: dict[str, object]) -> None:
    columns["mood"] = pa.array(["calm" if i != 30 else None for i in range(ROWS)])
    columns["same"] = pa.array([1] * ROWS)
    pq.write_table(pa.table(columns), path)
    (_, first), (_, second) = _places(_source(path, features=("flag",), attributes=("when", "mood", "same")))
    assert "'when', which varies within 6 of 6 clients" in first
    assert "client 'u0' has 0.0 and 6.0" in first
    assert "'mood', which varies within 1 of 6 clients" in second
    assert not list(path.parent.glob("*.atoll-cache/*"))


def test_wrong_attributes_are_named(path: Path, columns: dict[str, object]) -> None:
    columns["day"] = pa.array([0] * ROWS, pa.date32())
    pq.write_table(pa.table(columns), path)
    found = _places(_source(path, attributes=("label", "plaice", "day")))
    assert [place for place, _ in found] == ["data.attributes"] * 3
    assert "other than the label" in found[0][1]
    assert "did you mean 'place'" in found[1][1]
    assert "date32" in found[2][1]


def test_data_without_attributes_is_what_it_was(path: Path) -> None:
    # the digest of runs that were begun before there were attributes
    assert str(_source(path)).endswith("unseen_fraction=0.0, cache=None)")
    assert open_data(_source(path)).identity != open_data(_source(path, attributes=("who",))).identity


def test_the_encoding_is_the_vocabularies(path: Path) -> None:
    data = open_data(_source(path, features=("flag", "when"), categories=("place",)))
    assert encoding_of(data) == Encoding(
        (NumericColumn("flag"), NumericColumn("when")), (CategoryColumn("place", ("a", "b", "c")),)
    )
