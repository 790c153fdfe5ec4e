"""Every kind of client data keeps the promises of `ClientData`: one suite, each kind one row."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import movielens_kit
from atoll.data import (
    ArraysSource,
    Category,
    ClientData,
    CustomSource,
    DataSource,
    Dirichlet,
    Flights,
    Iid,
    LeafOutputsSource,
    LogNormalExamples,
    Movielens,
    ParquetSource,
    QuantitySkew,
    Shakespeare,
    Shards,
    SyntheticSource,
    client_table,
    describe,
    movielens,
    open_data,
)
from atoll.data.leaf_outputs import leaf_outputs_table, save_leaf_outputs


def _rows(rows: int = 400) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(3)
    return {
        "client": stream.integers(0, 23, rows),
        "y": np.arange(rows) % 4,
        "x": stream.standard_normal((rows, 3)).astype(np.float32),
        "c": stream.integers(0, 5, (rows, 2)),
    }


def _parquet(folder: Path) -> DataSource:
    rows = _rows()
    table = {f"f{i}": rows["x"][:, i] for i in range(3)} | {f"k{i}": rows["c"][:, i] for i in range(2)}
    who = pa.array([f"user {i}" for i in rows["client"]])
    pq.write_table(pa.table({"who": who, "label": rows["y"] % 2, **table}), folder / "rows.parquet")
    return ParquetSource(str(folder / "rows.parquet"), "who", "label", categories=("k0", "k1"))


def _arrays(folder: Path, partition: Iid | Dirichlet | Shards | QuantitySkew) -> DataSource:
    rows = _rows()
    np.savez(folder / "rows.npz", x=rows["x"], y=rows["y"], x_test=rows["x"][:50], y_test=rows["y"][:50])
    return ArraysSource(str(folder / "rows.npz"), partition, num_clients=20, seed=5)


def _custom_factory(task: str) -> ClientData:
    rows = _rows()
    sizes = (Category("k0", 5), Category("k1", 5))
    x, y, client, c = (rows[name] for name in ("x", "y", "client", "c"))
    return client_table(x, y, client, task=task, c=c, categories=sizes, unseen=[1, 2], holdout_fraction=0.3)


def _leaf_outputs(folder: Path) -> DataSource:
    rows = _rows()
    base = client_table(rows["x"], rows["y"] % 2, rows["client"], task="binary", unseen=[1, 2], holdout_fraction=0.3)
    counts, width = base.counts(), rows["x"].shape[1]
    blocks = [base.gather(np.array([who]), np.arange(count)[None]) for who, count in enumerate(counts)]
    x, y = (np.concatenate([block[name][0] for block in blocks]) for name in ("x", "y"))
    digest, arrays = leaf_outputs_table("rows", x, y, counts, base.held_out(), np.zeros(width), np.ones(width))
    save_leaf_outputs(folder / "outputs.npz", arrays)
    return LeafOutputsSource(str(folder / "outputs.npz"), digest)


def _movielens(folder: Path) -> DataSource:
    movielens_kit.write_some(folder)
    return Movielens(history=3, user_id=True, unseen_fraction=0.2, path=str(folder))


SOURCES: dict[str, Callable[[Path], DataSource]] = {
    "flights": lambda _: Flights(),
    "flights without weather": lambda _: Flights(weather=False),
    "movielens": _movielens,
    "shakespeare": lambda _: Shakespeare(),
    "shakespeare short windows": lambda _: Shakespeare(window=20, stride=7, holdout_stride=100),
    "parquet": _parquet,
    "arrays iid": lambda folder: _arrays(folder, Iid()),
    "arrays dirichlet": lambda folder: _arrays(folder, Dirichlet(0.1)),
    "arrays shards": lambda folder: _arrays(folder, Shards(2)),
    "arrays quantity": lambda folder: _arrays(folder, QuantitySkew(1.5)),
    "synthetic": lambda _: SyntheticSource(num_clients=50),
    "synthetic full": lambda _: SyntheticSource(
        10**8, 5, 3, (7, 10**6), LogNormalExamples(6, 1.0, 40), 0.5, 0.5, holdout_clients=9, holdout_examples=4
    ),
    "leaf outputs": _leaf_outputs,
    "custom": lambda _: CustomSource("custom_factory_for_tests:make", {"task": "multiclass"}),
}


@pytest.fixture(scope="module", autouse=True)
def _factory_module() -> Iterator[None]:
    module = ModuleType("custom_factory_for_tests")
    module.make = _custom_factory  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # generated files in place of those that may not be shipped
        patch.setattr(movielens, "_FILES", movielens_kit.write_some(Path(folder)))
        yield
    del sys.modules[module.__name__]


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    return SOURCES[request.param](tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(source: DataSource) -> ClientData:
    return open_data(source)


def _block(data: ClientData) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([0, 1, data.num_clients - 1, data.num_clients // 2, 0])
    return ids, np.broadcast_to(np.arange(12), (len(ids), 12))


def _equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def test_gather_has_the_promised_shapes_dtypes_and_ranges(data: ClientData) -> None:
    ids, positions = _block(data)
    block = data.gather(ids, positions)
    shape = data.shape
    assert block.keys() == ({"x", "y", "c"} if shape.categories else {"x", "y"})
    assert block["x"].shape == (*positions.shape, *shape.x_shape)
    assert block["x"].dtype == np.dtype(shape.x_dtype)
    assert block["y"].shape == positions.shape
    assert block["y"].dtype == np.int64
    assert 0 <= block["y"].min() <= block["y"].max() < shape.num_classes
    if shape.categories:
        assert block["c"].shape == (*positions.shape, len(shape.categories))
        assert block["c"].dtype == np.int64
        assert (block["c"] >= 0).all()
        assert (block["c"] < [category.size for category in shape.categories]).all()
    if shape.x_dtype == "int64":
        assert 0 <= block["x"].min() <= block["x"].max() < shape.vocabulary
    assert np.isfinite(block["x"]).all()


def test_blocks_do_not_alias_the_data(data: ClientData) -> None:
    ids, positions = _block(data)
    block = data.gather(ids, positions)
    before = {name: values.copy() for name, values in block.items()}
    for values in block.values():
        values += 1
    _equal(data.gather(ids, positions), before)


def test_padding_is_row_zero_of_the_client(data: ClientData) -> None:
    ids, _ = _block(data)
    counts = data.num_examples(ids)
    last_and_beyond = np.stack([counts - 1, counts, counts + 5, np.zeros_like(counts)], axis=1)
    block = data.gather(ids, last_and_beyond)
    for values in block.values():
        np.testing.assert_array_equal(values[:, 1], values[:, 3])
        np.testing.assert_array_equal(values[:, 2], values[:, 3])


def test_a_row_does_not_depend_on_the_block_it_is_read_in(data: ClientData) -> None:
    ids, positions = _block(data)
    block = data.gather(ids, positions)
    for lane in range(len(ids)):
        one = data.gather(ids[lane : lane + 1], positions[lane : lane + 1, 3:7])
        _equal(one, {name: values[lane : lane + 1, 3:7] for name, values in block.items()})


def test_ids_map_onto_clients_by_remainder(data: ClientData) -> None:
    ids, positions = _block(data)
    beyond = ids + 3 * data.num_clients
    np.testing.assert_array_equal(data.num_examples(beyond), data.num_examples(ids))
    _equal(data.gather(beyond, positions), data.gather(ids, positions))


def test_counts_match_num_examples_and_every_client_trains(data: ClientData) -> None:
    ids = np.arange(min(data.num_clients, 5000))
    sizes = data.num_examples(ids)
    assert sizes.dtype == np.int64
    assert sizes.min() >= 1
    counts = data.counts()
    if counts is not None:
        assert counts.shape == (data.num_clients,)
        np.testing.assert_array_equal(counts[ids], sizes)
    np.testing.assert_array_equal(data.num_examples(ids.reshape(-1, 1)), sizes.reshape(-1, 1))


def test_held_out_rows_have_the_form_of_training_rows(data: ClientData) -> None:
    held_out = data.held_out()
    assert "unseen" in held_out
    ids, positions = _block(data)
    block = data.gather(ids, positions)
    for name, part in held_out.items():
        assert part.num_rows > 0
        assert part.arrays.keys() == block.keys()
        for key, values in part.arrays.items():
            assert values.shape == (part.num_rows, *block[key].shape[2:])
            assert values.dtype == block[key].dtype
        assert part.client.shape == part.train_examples.shape == (part.num_rows,)
        assert 0 <= part.arrays["y"].min() <= part.arrays["y"].max() < data.shape.num_classes
        if name == "unseen":
            assert (part.client >= data.num_clients).all()
            assert (part.train_examples == 0).all()
        if name == "seen":
            assert (part.client < data.num_clients).all()
            np.testing.assert_array_equal(part.train_examples, data.num_examples(part.client))


def test_two_opens_are_equal_and_the_record_pickles(source: DataSource, data: ClientData) -> None:
    again = open_data(pickle.loads(pickle.dumps(source)))
    assert again.identity == data.identity
    assert len(data.identity) == 64
    assert again.shape == data.shape
    ids, positions = _block(data)
    _equal(again.gather(ids, positions), data.gather(ids, positions))
    left, right = again.held_out(), data.held_out()
    assert left.keys() == right.keys()
    for name in left:
        _equal(left[name].arrays, right[name].arrays)
        np.testing.assert_array_equal(left[name].client, right[name].client)


def test_describe_is_plain_json(data: ClientData) -> None:
    facts = json.loads(json.dumps(describe(data)))
    assert facts["clients"] == data.num_clients
    assert 1 <= facts["min_examples"] <= facts["median_examples"] <= facts["max_examples"]


def test_kinds_have_distinct_identities(tmp_path: Path) -> None:
    identities = []
    for number, make in enumerate(SOURCES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        identities.append(open_data(make(folder)).identity)
    assert len(set(identities)) == len(identities)
